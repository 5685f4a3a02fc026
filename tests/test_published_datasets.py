"""VOC, COCO, CUB, Stanford Cars and ImageNet-21k as their authors lay them out, beside mmclassification's reading."""
from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from workspace_lib.datasets import (
    COCO,
    CUB,
    VOC,
    CustomDataset,
    ImageNet21k,
    MultiLabelDataset,
    StanfordCars,
    build_dataloader,
    build_dataset,
)
from workspace_lib.datasets.base import FileInfos


def theirs(cfg: dict):
    return pytest.importorskip('mmcls.datasets').build_dataset({**cfg, 'pipeline': []})


def same_samples(ours, expected) -> None:
    assert len(ours) == len(expected)
    for index in range(len(expected)):
        got, wanted = ours.data_infos[index], expected.data_infos[index]
        assert got['img_prefix'] == wanted['img_prefix'] and got['img_info'] == wanted['img_info']
        np.testing.assert_array_equal(got['gt_label'], wanted['gt_label'])
        assert ours.get_cat_ids(index) == expected.get_cat_ids(index)
    np.testing.assert_array_equal(ours.get_gt_labels(), expected.get_gt_labels())


def xml(*objects: tuple[str, int | None]) -> str:
    def difficulty(value: int | None) -> str:
        return '' if value is None else f'<difficult>{value}</difficult>'

    parts = ''.join(f'<object><name>{name}</name>{difficulty(difficult)}<part><name>head</name></part></object>'
                    for name, difficult in objects)
    return f'<annotation><folder>VOC2007</folder>{parts}</annotation>'


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / 'VOC2007'
    for name in ('Annotations', 'JPEGImages', 'ImageSets'):
        (root / name).mkdir(parents=True)
    (root / 'ImageSets' / 'trainval.txt').write_text('000005\n000007\n000009\n')
    contents = {'000005': xml(('chair', 0), ('chair', 1), ('person', 1)), '000007': xml(('car', 0), ('tree', 0)),
                '000009': xml()}
    for name, content in contents.items():
        (root / 'Annotations' / f'{name}.xml').write_text(content)
        cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), np.full((20, 24, 3), 99, np.uint8))
    return root


def voc_cfg(root: Path, **more) -> dict:
    return dict(type='VOC', data_prefix=str(root), ann_file=str(root / 'ImageSets' / 'trainval.txt'), **more)


@pytest.mark.parametrize('difficult', [None, True, False])
def test_voc_is_that_of_mmclassification(voc, difficult):
    cfg = voc_cfg(voc, difficult_as_postive=difficult)
    ours = build_dataset({**cfg, 'pipeline': []}, dict(test_mode=True))
    same_samples(ours, theirs(cfg))
    chair, person, car = (VOC.CLASSES.index(name) for name in ('chair', 'person', 'car'))
    labels = ours.get_gt_labels()
    assert labels.dtype == np.int8 and labels.shape == (3, 20)
    assert labels[0, chair] == 1 and labels[0, person] == {None: -1, True: 1, False: 0}[difficult]
    assert labels[1].sum() == labels[1, car] == 1 and not labels[2].any()


def test_voc_classes_of_ones_own_and_any_year(voc):
    root = voc.rename(voc.with_name('VOC2012'))
    ours = VOC(str(root), classes=['tree', 'car'], ann_file=str(root / 'ImageSets' / 'trainval.txt'))
    assert ours.get_gt_labels().tolist() == [[0, 0], [1, 1], [0, 0]]


def test_an_object_without_difficult_is_not_difficult(voc):
    (voc / 'Annotations' / '000009.xml').write_text(xml(('car', None)))
    assert VOC(**{key: value for key, value in voc_cfg(voc).items() if key != 'type'}).get_cat_ids(2) == [6]


def test_voc_refuses_what_could_grow_without_bound(voc):
    bomb = '<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;&x;">]>' + xml(('&y;', 0))
    (voc / 'Annotations' / '000007.xml').write_text(bomb)
    with pytest.raises(ValueError, match='000007.xml is no XML file of VOC: it declares a document type.*refused'):
        build_dataset(voc_cfg(voc))
    (voc / 'Annotations' / '000007.xml').write_bytes(bomb.encode('utf-16'))
    with pytest.raises(ValueError, match='000007.xml is no XML file of VOC: it declares a document type'):
        build_dataset(voc_cfg(voc))


def test_voc_names_the_file_that_is_wrong(voc):
    (voc / 'Annotations' / '000007.xml').write_text('<annotation>')
    with pytest.raises(ValueError, match='000007.xml is no XML file'):
        build_dataset(voc_cfg(voc))
    (voc / 'Annotations' / '000007.xml').unlink()
    with pytest.raises(FileNotFoundError, match='000007.xml'):
        build_dataset(voc_cfg(voc))
    with pytest.raises(FileNotFoundError, match='no annotation file None; set ann_file'):
        VOC(str(voc))
    with pytest.raises(FileNotFoundError, match='no folder'):
        VOC('nowhere')


def coco_content() -> dict:
    """Two images and four categories, ids with gaps and out of order; the second image has nothing on it."""
    return dict(
        images=[dict(id=42, file_name='000000000042.jpg'), dict(id=9, file_name='000000000009.jpg'),
                dict(id=13, file_name='000000000013.jpg')],
        categories=[dict(id=90, name='toothbrush'), dict(id=1, name='person'), dict(id=13, name='stop sign'),
                    dict(id=3, name='car')],
        annotations=[dict(id=1, image_id=42, category_id=90, iscrowd=0, segmentation=[[1, 2, 3, 4]]),
                     dict(id=2, image_id=42, category_id=90, iscrowd=0),
                     dict(id=3, image_id=13, category_id=1, iscrowd=1, segmentation=dict(counts=[1], size=[2, 2])),
                     dict(id=4, image_id=13, category_id=13, iscrowd=0)])


@pytest.fixture
def coco(tmp_path: Path):
    (tmp_path / 'train2017').mkdir()

    def make(content, **settings) -> COCO:
        file = tmp_path / 'instances.json'
        file.write_text(json.dumps(content))
        return build_dataset(dict(type='COCO', data_prefix=str(tmp_path / 'train2017'), ann_file=str(file), pipeline=[],
                                  **settings))
    return make


def test_coco_ids_become_columns_in_ascending_order(coco):
    dataset = coco(coco_content())
    assert dataset.CLASSES == ['person', 'car', 'stop sign', 'toothbrush']
    assert dataset.get_gt_labels().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert dataset.filename(2).endswith('train2017/000000000013.jpg') and dataset.get_cat_ids(2) == [0, 2]
    assert isinstance(dataset, MultiLabelDataset) and isinstance(dataset.data_infos, FileInfos)


def test_coco_with_classes_of_ones_own(coco):
    dataset = coco(coco_content(), classes=['stop sign', 'person'])
    assert dataset.get_gt_labels().tolist() == [[0, 0], [0, 0], [1, 1]]


def test_the_80_names_are_those_of_coco():
    assert len(set(COCO.CLASSES)) == 80
    assert [COCO.CLASSES[i] for i in (0, 11, 26, 37, 60, 79)] == [
        'person', 'stop sign', 'handbag', 'surfboard', 'dining table', 'toothbrush']


@pytest.mark.parametrize(('change', 'text'), [
    (lambda c: c.pop('categories'), 'no COCO instances file'),
    (lambda c: c['annotations'].append(dict(id=8, image_id=1, category_id=1)), 'annotation 8 is of image 1'),
    (lambda c: c['annotations'].append(dict(id=8, image_id=9, category_id=2)), 'category 2')])
def test_a_coco_file_that_does_not_fit_together(coco, change, text):
    content = coco_content()
    change(content)
    with pytest.raises(ValueError, match=text):
        coco(content)


def test_multi_label_batches_and_metrics(voc):
    steps = [dict(type='LoadImageFromFile'), dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6]),
             dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
             dict(type='Collect', keys=['img', 'gt_label'])]
    dataset = build_dataset(voc_cfg(voc, pipeline=steps))
    assert dataset.pipeline.is_split
    batch = next(iter(build_dataloader(dataset, 3, 0, shuffle=False)))
    np.testing.assert_array_equal(batch['gt_label'].numpy(), dataset.get_gt_labels())
    scores = np.random.default_rng(0).random((3, 20))
    values = dataset.evaluate(list(scores))
    assert list(values) == ['mAP']
    assert list(dataset.evaluate(list(scores), ['OF1', 'mAP', 'accuracy'])) == ['mAP', 'OF1']
    assert list(dataset.evaluate(list(scores[:2]), 'CP', dict(k=1), indices=[0, 2])) == ['CP']


@pytest.fixture
def cub(tmp_path: Path) -> dict:
    files = dict(images='1 a/1.jpg\n2 b/2 2.jpg\n3 c/3.jpg\n', labels='1 2\n2 3\n3 200\n', split='1 0\n2 1\n3 1\n')
    for name, text in files.items():
        (tmp_path / f'{name}.txt').write_text(text)
    return dict(type='CUB', data_prefix=str(tmp_path), ann_file=str(tmp_path / 'images.txt'), pipeline=[],
                image_class_labels_file=str(tmp_path / 'labels.txt'), train_test_split_file=str(tmp_path / 'split.txt'))


@pytest.mark.parametrize('test_mode', [False, True])
def test_cub_is_that_of_mmclassification(cub, test_mode):
    Path(cub['ann_file']).write_text('1 a/1.jpg\n2 b/2.jpg\n3 c/3.jpg\n')
    cub['test_mode'] = test_mode
    ours, expected = build_dataset(cub), theirs(cub)
    same_samples(ours, expected)
    assert list(ours.CLASSES) == list(expected.CLASSES) and len(ours) == (1 if test_mode else 2)


def test_cub_goes_by_the_ids_not_by_the_lines(cub):
    Path(cub['image_class_labels_file']).write_text('3 200\n1 2\n2 3\n')
    ours = build_dataset(cub)
    assert [ours.filename(i).rpartition('/')[2] for i in range(2)] == ['2 2.jpg', '3.jpg']
    assert ours.get_gt_labels().tolist() == [2, 199]


@pytest.mark.parametrize(('file', 'text', 'message'), [
    ('train_test_split_file', '1 0\n2 1\n', 'same length and ids; id 3 is in one of them only'),
    ('image_class_labels_file', '1 2\n2 201\n3 1\n', 'the class of b/2 2.jpg is 201, but there are 200'),
    ('image_class_labels_file', '1 2\n2 0\n3 1\n', 'the class of b/2 2.jpg is 0'),
    ('image_class_labels_file', '1 2\n2\n3 1\n', r'labels.txt:2: expected `id value`')])
def test_what_is_wrong_with_the_lists_of_cub(cub, file, text, message):
    Path(cub[file]).write_text(text)
    with pytest.raises(ValueError, match=message):
        build_dataset(cub)


def test_cub_needs_its_list_of_images(cub):
    with pytest.raises(ValueError, match='CUB needs ann_file'):
        CUB(**{**{key: value for key, value in cub.items() if key != 'type'}, 'ann_file': None})


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    io = pytest.importorskip('scipy.io')
    (tmp_path / 'devkit').mkdir()

    def record(label: int, name: str) -> tuple:
        return *(np.array([side]) for side in (1, 2, 30, 40)), label, np.array([name])

    io.savemat(tmp_path / 'devkit' / 'cars_train_annos.mat', dict(annotations=[(record(15, '001.jpg'),
                                                                               record(196, '002.jpg'))]))
    io.savemat(tmp_path / 'devkit' / 'cars_test_annos_withlabels.mat', dict(annotations=[(record(150, '025.jpg'),
                                                                                         record(1, '111.jpg'))]))
    unlabelled = tuple((*record(0, 'x')[:4], np.array([name])) for name in ('1.jpg', '2.jpg'))
    io.savemat(tmp_path / 'devkit' / 'cars_test_annos.mat', dict(annotations=[unlabelled]))
    return tmp_path


@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize('given', [False, True], ids=['its own file', 'ann_file'])
def test_stanford_cars_is_that_of_mmclassification(cars, test_mode, given):
    cfg = dict(type='StanfordCars', data_prefix=str(cars), test_mode=test_mode)
    if given:
        cfg['ann_file'] = str(cars / 'devkit' / 'cars_train_annos.mat')
    ours, expected = build_dataset(cfg), theirs(cfg)
    same_samples(ours, expected)
    assert list(ours.CLASSES) == list(expected.CLASSES)
    assert ours.data_infos[0]['img_prefix'] == str(cars / ('cars_test' if test_mode else 'cars_train'))


def test_stanford_cars_needs_labels(cars):
    with pytest.raises(ValueError, match='has no labels.*cars_test_annos_withlabels'):
        StanfordCars(str(cars), ann_file=str(cars / 'devkit' / 'cars_test_annos.mat'))
    with pytest.raises(FileNotFoundError, match='devkit'):
        StanfordCars(str(cars / 'elsewhere'))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ('a/1.JPG', 'b/2.jpeg', 'b/subb/3.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'ann.txt').write_text('a/1.JPG 0\nb/2.jpeg 1\nb/subb/3.jpg 21841\n')
    return tmp_path


@pytest.mark.filterwarnings('ignore:The (ImageNet21k|CLASSES):UserWarning')
@pytest.mark.parametrize('annotated', [False, True])
def test_imagenet21k_is_that_of_mmclassification(tree, annotated):
    cfg = dict(type='ImageNet21k', data_prefix=str(tree), recursion_subdir=True,
               **(dict(ann_file=str(tree / 'ann.txt')) if annotated else {}))
    ours, expected = build_dataset(cfg), theirs(cfg)
    assert len(ours) == len(expected) == 3
    for index in range(3):
        assert ours.data_infos[index] == expected.get_data_info(index)
        assert ours.get_cat_ids(index) == expected.get_cat_ids(index)
    assert isinstance(ours, CustomDataset) and ours.CLASSES == expected.CLASSES


@pytest.mark.parametrize('settings', [dict(multi_label=True), dict(recursion_subdir=False)], ids=str)
def test_imagenet21k_has_no_other_form(tree, settings):
    with pytest.raises(ValueError, match='known: multi_label=False, recursion_subdir=True'):
        ImageNet21k(str(tree), **settings)


def test_imagenet21k_keeps_a_sample_in_fifty_bytes(tmp_path):
    count = 100_000
    file = tmp_path / 'ann.txt'
    file.write_text(''.join(f'n{i % 21842:08}/n{i % 21842:08}_{i:07}.JPEG {i % 21842}\n' for i in range(count)))
    tracemalloc.start()
    dataset = ImageNet21k(str(tmp_path), ann_file=str(file))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset) == count and kept / count < 60
