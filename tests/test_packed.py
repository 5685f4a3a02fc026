"""Packed images: the samples that files would give, in shared memory that stays flat."""
from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import mini_ilsvrc as mini
import numpy as np
import pytest

from workspace_lib.config import Config
from workspace_lib.datasets import CustomDataset, ImageNet, build_dataloader, build_dataset
from workspace_lib.datasets.packed import Pack
from workspace_lib.tools.prepare import prepare_imagenet

SIDE = 24
STEPS = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=16), dict(type='RandomFlip'),
         dict(type='Normalize', mean=[120, 110, 100], std=[60, 60, 60], to_rgb=True),
         dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
         dict(type='Collect', keys=['img', 'gt_label'])]


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train`, `train_short24`, `train_short24.pack`, `meta`."""
    folder = tmp_path_factory.mktemp('packed')
    facts = mini.make(folder / 'archives')
    prepare_imagenet(folder / 'archives', folder / 'tree', facts=facts, short=SIDE, pack=True, workers=1,
                     progress=False, say=lambda line: None)
    return folder / 'tree'


def dataset(tree: Path, name: str, **settings: Any) -> Any:
    return build_dataset({**dict(type='ImageNet', data_prefix=str(tree / name), classes=mini.wnids(), pipeline=STEPS),
                          **settings})


def test_one_key_of_a_config_chooses_originals_resized_copy_or_pack(tree, tmp_config):
    text = (f'data = dict(train=dict(type="ImageNet", data_prefix="{tree}/train", classes={mini.wnids()}, '
            f'pipeline={STEPS}))')
    found = []
    for name in ('train', 'train_short24', 'train_short24.pack'):
        cfg = Config.fromfile(tmp_config(text))
        cfg.merge_from_dict({'data.train.data_prefix': f'{tree}/{name}'})
        made = build_dataset(cfg.data.train)
        found.append(([info['img_info']['filename'] for info in made.data_infos], made.get_gt_labels().tolist()))
        batch = next(iter(build_dataloader(made, 16, 0, seed=0)))
        assert batch['img'].shape == (16, 3, 16, 16)
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 90


def test_a_pack_holds_the_pixels_that_the_loader_would_resize(tree):
    import cv2
    originals, packed = dataset(tree, 'train'), dataset(tree, 'train_short24.pack')
    shapes = set()
    for index in range(len(originals)):
        img = originals.load_image(index)  # a PNG, CMYK, grey and a rotated one are among them
        scale = SIDE / min(img.shape[:2])
        size = round(img.shape[1] * scale), round(img.shape[0] * scale)
        np.testing.assert_array_equal(packed.load_image(index), cv2.resize(img, size, interpolation=cv2.INTER_AREA))
        shapes.add(packed.load_image(index).shape)
    assert shapes == {(24, 32, 3), (32, 24, 3)}


def test_an_annotation_file_picks_images_of_a_pack_in_its_own_order(tree, tmp_path):
    lines = (tree / 'meta/train.txt').read_text().splitlines()
    ann_file = tmp_path / 'some.txt'
    ann_file.write_text('\n'.join(lines[5::-1]))
    whole, some = dataset(tree, 'train_short24.pack'), dataset(tree, 'train_short24.pack', ann_file=str(ann_file))
    assert len(some) == 6
    for index in range(6):
        np.testing.assert_array_equal(some.load_image(index), whole.load_image(5 - index))
    assert some.get_gt_labels().tolist() == [int(line.split()[1]) for line in lines[5::-1]]


def test_an_image_that_the_pack_lacks_is_named(tree, tmp_path):
    ann_file = tmp_path / 'some.txt'
    long = 'n01440764/n01440764_5.JPEG' + 'x' * 60
    ann_file.write_text(f'n01440764/n01440764_5.JPEG 0\nn01440764/n01440764_6.JPEG 0\n{long} 0\n')
    with pytest.raises(ValueError, match=r'lacks 2 of the 3 images .*such as n01440764/n01440764_6\.JPEG'):
        dataset(tree, 'train_short24.pack', ann_file=str(ann_file))


def test_a_pipeline_that_runs_as_written_takes_the_packed_pixels(tree):
    float_steps = [dict(STEPS[0], to_float32=True), dict(type='Resize', size=8), *STEPS[3:]]
    packed, copied = (dataset(tree, name, pipeline=float_steps) for name in ('train_short24.pack', 'train_short24'))
    assert not packed.pipeline.is_split
    got, expected = packed[4]['img'], copied[4]['img']
    assert got.shape == expected.shape and float((got - expected).abs().mean()) < 0.1  # JPEG's loss


def test_a_pipeline_for_grey_images_is_refused(tree):
    with pytest.raises(ValueError, match="holds colour images, the pipeline asks for 'grayscale'"):
        dataset(tree, 'train_short24.pack', pipeline=[dict(type='LoadImageFromFile', color_type='grayscale')])


def test_pixels_of_a_pack_cannot_be_written(tree):
    assert not dataset(tree, 'train_short24.pack').load_image(0).flags.writeable


def test_a_pickled_data_set_maps_the_pack_again(tree):
    packed = dataset(tree, 'train_short24.pack')
    data = pickle.dumps(packed)
    assert len(data) < (tree / 'train_short24.pack/pixels.bin').stat().st_size / 2
    np.testing.assert_array_equal(pickle.loads(data).load_image(7), packed.load_image(7))


def test_a_folder_that_is_no_pack_is_named(tree, tmp_path):
    (tmp_path / 'x.pack').mkdir()
    with pytest.raises(FileNotFoundError, match=r'x\.pack is no packed data set: .*--pack'):
        CustomDataset(str(tmp_path / 'x.pack'), [])


def test_a_pack_cut_off_is_named(tree, tmp_path):
    shutil.copytree(tree / 'train_short24.pack', tmp_path / 'x.pack')
    os.truncate(tmp_path / 'x.pack/pixels.bin', 1000)
    with pytest.raises(ValueError, match=r'pixels\.bin has 1,000 bytes, index\.npy is for 207,360'):
        Pack(str(tmp_path / 'x.pack'))


def make_pack(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    size = side * side * 3
    index = np.zeros(count, [('name', 'S24'), ('offset', '<i8'), ('height', '<i4'), ('width', '<i4')])
    index['name'] = [f'a/{number:06}.jpg' for number in range(count)]
    index['offset'], index['height'], index['width'] = np.arange(count) * size, side, side
    np.save(folder / 'index.npy', index)
    with (folder / 'pixels.bin').open('wb') as file:
        for number in range(count):
            file.write(bytes([number % 256]) * size)


def memory() -> dict[str, int]:
    """kB of this process: RssAnon (its own), RssFile (of files, shared)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return {key: int(value.split()[0]) for key, _, value in (line.partition(':') for line in lines)
            if key in ('RssAnon', 'RssFile')}


def read_all(folder: str, queue: Any) -> None:
    packed = CustomDataset(folder, [dict(type='LoadImageFromFile'), dict(type='Resize', size=8)])
    packed[0]
    before = memory()
    total = sum(int(packed[index]['img'][0, 0, 0]) for index in range(len(packed)))
    for index in range(len(packed)):
        packed.load_image(index).max()  # every page
    maps = json.dumps([line for line in Path('/proc/self/maps').read_text().splitlines() if 'pixels.bin' in line])
    queue.put((total, before, memory(), maps))


def test_memory_of_workers_stays_flat_and_the_map_is_shared(tmp_path):
    make_pack(tmp_path / 'x.pack', 1000, 150)  # 67 MB
    context = multiprocessing.get_context('fork')
    queue: Any = context.Queue()
    workers = [context.Process(target=read_all, args=(str(tmp_path / 'x.pack'), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for total, before, after, maps in [queue.get(timeout=60) for _ in workers]:
        assert total == sum(number % 256 for number in range(1000))
        assert after['RssAnon'] - before['RssAnon'] < 5_000  # a copy would be 67,000
        assert after['RssFile'] - before['RssFile'] > 60_000  # the pages of the file: both have the same ones
        assert ' r--s ' in maps
    for worker in workers:
        worker.join(10)


def test_a_loader_gives_the_same_batches_with_and_without_workers(tree):
    packed = dataset(tree, 'train_short24.pack')
    one, two = (list(build_dataloader(packed, 16, workers, seed=3)) for workers in (0, 2))
    for a, b in zip(one, two, strict=True):
        assert a['img'].equal(b['img']) and a['gt_label'].equal(b['gt_label'])


def test_names_of_imagenet_stay_with_a_pack(tree, tmp_path):
    ann_file = tree / 'meta/train.txt'
    assert dataset(tree, 'train_short24.pack', classes=None, ann_file=str(ann_file)).CLASSES == ImageNet.CLASSES
