"""The loader: the same batches however many processes make them, errors that name the file, nothing disturbed."""
from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from workspace_lib.datasets import CustomDataset, DecodeError, build_dataloader
from workspace_lib.datasets.loader import Loader, _Requests
from workspace_lib.datasets.wrappers import RepeatDataset
from workspace_lib.registry import SAMPLERS

NORMALIZE = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
TO_TENSOR = [dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
             dict(type='Collect', keys=['img', 'gt_label'])]
TRAIN = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=16), dict(type='RandomFlip'), NORMALIZE,
         *TO_TENSOR]
TEST = [dict(type='LoadImageFromFile'), dict(type='Resize', size=16), NORMALIZE, *TO_TENSOR]


class Shift:
    """A borrowed step: it takes the whole dictionary and draws from numpy's global generator."""

    def __call__(self, results):
        results['img'] = results['img'] + np.float32(np.random.rand())
        return results


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """22 JPEGs of two classes."""
    root, noise = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for number in range(22):
        file = root / f'{number % 2}' / f'{number:02}.jpg'
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), cv2.GaussianBlur(noise.integers(0, 256, (24, 31, 3), np.uint8), (5, 5), 2))
    return root


def loader(folder: Path, workers: int = 0, steps: list = TRAIN, batch: int = 4, **settings) -> Loader:
    dataset = CustomDataset(str(folder), steps)
    return build_dataloader(dataset, batch, workers, **{'seed': 3, **settings})


def epoch(batches: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    made = list(batches)
    return torch.cat([batch['img'] for batch in made]), torch.cat([batch['gt_label'] for batch in made])


def same(first: tuple, second: tuple) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_is_normalised_float_and_its_labels(folder):
    batches = list(loader(folder))
    assert len(batches) == len(loader(folder)) == 6
    assert [len(batch['img']) for batch in batches] == [4, 4, 4, 4, 4, 2]
    img, label = batches[0]['img'], batches[0]['gt_label']
    assert (img.shape, img.dtype) == ((4, 3, 16, 16), torch.float32) and img.is_contiguous()
    assert (label.shape, label.dtype) == ((4,), torch.int64)
    assert batches[0].keys() == {'img', 'gt_label'}


@pytest.mark.parametrize('steps', [TRAIN, [*TRAIN[:2], Shift(), *TRAIN[3:]]], ids=['fast', 'with a borrowed step'])
def test_batches_do_not_depend_on_the_number_of_workers(folder, steps):
    here, *others = [loader(folder, workers, steps) for workers in (0, 1, 2)]
    for _ in range(2):  # the second epoch from workers that persist
        expected = epoch(here)
        for other in others:
            assert same(epoch(other), expected)


def test_batches_equal_the_written_pipeline(folder):
    dataset = CustomDataset(str(folder), TEST)
    img, label = epoch(build_dataloader(dataset, 4, 2, shuffle=False))
    for index in range(len(dataset)):
        expected = dataset.pipeline(dataset.data_infos[index])
        torch.testing.assert_close(img[index], expected['img'], rtol=0, atol=0)
        assert label[index] == expected['gt_label']


def test_each_epoch_has_its_own_order_and_crops(folder):
    batches = loader(folder)
    first, second = epoch(batches), epoch(batches)
    assert not torch.equal(first[1], second[1])
    fixed = loader(folder, shuffle=False)
    first, second = epoch(fixed), epoch(fixed)
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])


@pytest.mark.parametrize('workers', [0, 2])
def test_an_epoch_can_be_resumed(folder, workers):
    straight = loader(folder, workers)
    expected = [epoch(straight) for _ in range(3)][2]
    resumed = loader(folder, workers)
    resumed.set_epoch(2)
    assert same(epoch(resumed), expected)


def test_another_seed_gives_other_batches(folder):
    assert not same(epoch(loader(folder, seed=1)), epoch(loader(folder, seed=2)))
    assert not same(epoch(loader(folder, seed=None)), epoch(loader(folder, seed=None)))


def test_an_epoch_left_early_does_not_mix_into_the_next(folder):
    batches, expected = loader(folder, 2), epoch_of(folder, 1)
    for _ in batches:
        break
    assert same(epoch(batches), expected)


def epoch_of(folder: Path, number: int) -> tuple:
    batches = loader(folder)
    batches.set_epoch(number)
    return epoch(batches)


@pytest.mark.parametrize('steps', [TRAIN, [*TRAIN[:2], Shift(), *TRAIN[3:]]], ids=['fast', 'with a borrowed step'])
@pytest.mark.parametrize('workers', [0, 1])
def test_the_global_generators_are_left_alone(folder, workers, steps):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    before = states()
    epoch(loader(folder, workers, steps))
    assert states() == before


def test_every_sample_comes_once_when_shuffled(folder):
    requests = _Requests(22, 4, True, 0, True, False, None, 0, 1)
    assert sorted(index for _, _, indices in requests for index in indices) == list(range(22))


@pytest.mark.parametrize('round_up, counts', [(True, [8, 8, 8]), (False, [8, 7, 7])])
def test_ranks_share_the_samples(round_up, counts):
    ranks = [_Requests(22, 3, True, 5, round_up, False, None, rank, 3) for rank in range(3)]
    shares = [[index for _, _, indices in rank for index in indices] for rank in ranks]
    assert [len(share) for share in shares] == counts
    assert {index for share in shares for index in share} == set(range(22))
    assert [len(rank) for rank in ranks] == [3, 3, 3]
    if not round_up:
        assert sum(map(len, shares)) == 22


def test_drop_last_leaves_out_what_is_not_full(folder):
    batches = loader(folder, drop_last=True)
    assert len(batches) == 5 and [len(batch['img']) for batch in batches] == [4] * 5


def test_num_gpus_multiplies_as_in_mmclassification(folder):
    assert len(next(iter(loader(folder, num_gpus=2)))['img']) == 8


@SAMPLERS.register_module()
class Backwards:
    def __init__(self, dataset, num_replicas, rank, shuffle, seed, step=1):
        self.order = range(len(dataset) - 1, -1, -step)
        self.shuffle = shuffle

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


def test_a_registered_sampler_gives_the_order(folder):
    batches = loader(folder, steps=TEST, shuffle=False, sampler_cfg=dict(type='Backwards', step=2))
    dataset = batches.dataset
    img, _ = epoch(batches)
    assert len(img) == 11
    torch.testing.assert_close(img[0], dataset.pipeline(dataset.data_infos[21])['img'], rtol=0, atol=0)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_file_stops_the_loader_with_its_path(folder, tmp_path, workers):
    root = copy_of(folder, tmp_path)
    (root / '1' / '07.jpg').write_bytes((root / '1' / '07.jpg').read_bytes()[:300])
    with pytest.raises(DecodeError, match=r'1/07\.jpg: JPEG is truncated .*300 bytes; replace') as caught:
        epoch(loader(root, workers))
    assert 'Traceback' not in str(caught.value)


def copy_of(folder: Path, to: Path) -> Path:
    for file in folder.rglob('*.jpg'):
        (to / file.parent.name).mkdir(exist_ok=True)
        (to / file.parent.name / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_files_are_skipped_and_counted_if_asked(folder, tmp_path, workers, caplog):
    root = copy_of(folder, tmp_path)
    (root / '0' / '04.jpg').write_bytes(b'')
    (root / '1' / '07.jpg').write_bytes(b'no image')
    dataset = CustomDataset(str(root), TRAIN, skip_broken=True)
    batches = build_dataloader(dataset, 4, workers, seed=1)
    for _ in range(2):
        assert len(epoch(batches)[0]) == 22
    assert {dataset.filename(index)[-8:] for index in dataset.broken} == {'0/04.jpg', '1/07.jpg'}
    assert 'skipped broken file 2' in caplog.text


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_file_is_known_though_its_batch_was_never_taken(folder, tmp_path, workers):
    root = copy_of(folder, tmp_path)
    (root / '0' / '05.jpg').write_bytes(b'')
    dataset = CustomDataset(str(root), TRAIN, skip_broken=True)
    batches = build_dataloader(dataset, 4, workers, shuffle=False)
    left = iter(batches)
    next(left)
    left.close()  # the batch with the broken file is on its way, and lost
    for _ in range(2):
        epoch(batches)
    assert [dataset.filename(index)[-8:] for index in dataset.broken] == ['0/05.jpg']


def test_images_of_different_sizes_are_an_error_that_says_what_to_do(folder, tmp_path):
    root = copy_of(folder, tmp_path)
    cv2.imwrite(str(root / '0' / 'a.png'), np.zeros((9, 9, 3), np.uint8))
    steps = [dict(type='LoadImageFromFile'), *TO_TENSOR]
    with pytest.raises(ValueError, match=r'differ .*\(24, 31, 3\) uint8 and \(9, 9, 3\) uint8; end the pipeline with'):
        epoch(loader(root, 0, steps))


@pytest.mark.parametrize('workers', [0, 1])
def test_channels_last(folder, workers):
    plain, last = (epoch(loader(folder, workers, channels_last=flag)) for flag in (False, True))
    assert same(plain, last)
    assert next(iter(loader(folder, workers, channels_last=True)))['img'].is_contiguous(
        memory_format=torch.channels_last)


def test_any_data_set_of_dictionaries_will_do():
    data = [dict(img=torch.full((1, 2, 2), float(k)), gt_label=k, weight=0.5) for k in range(5)]
    batch = next(iter(build_dataloader(data, 3, 0, shuffle=False)))
    assert batch['img'].shape == (3, 1, 2, 2) and batch['gt_label'].tolist() == [0, 1, 2]
    assert batch['weight'].tolist() == [0.5] * 3


def test_a_subset_will_do(folder):
    dataset = CustomDataset(str(folder), TEST)
    img, _ = epoch(build_dataloader(torch.utils.data.Subset(dataset, [5, 3, 8]), 2, 0, shuffle=False))
    expected = [dataset.pipeline(dataset.data_infos[index])['img'] for index in (5, 3, 8)]
    torch.testing.assert_close(img, torch.stack(expected), rtol=0, atol=0)


class Own(RepeatDataset):
    def sample(self, index: int, seed: int | None = None) -> dict:
        raise AssertionError('a wrapper is looked behind')


@pytest.mark.parametrize('device', ['cpu', 'xpu'])
def test_a_sample_of_a_wrapper_of_ones_own_is_not_asked(folder, device, monkeypatch):
    monkeypatch.setattr('workspace_lib.datasets.loader.to_device', lambda batch, device: dict(batch))
    dataset = CustomDataset(str(folder), TRAIN)
    batches = build_dataloader(Own(dataset, 2), 16, 0, seed=1, device=device)
    assert sum(len(batch['gt_label']) for batch in batches) == 2 * len(dataset)


def test_options_of_the_data_loader_are_passed_on(folder):
    assert same(epoch(loader(folder, 1, prefetch_factor=4, timeout=60)), epoch(loader(folder, 0, prefetch_factor=4)))


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_that_come_out_of_order_are_refused(folder, workers):
    with pytest.raises(ValueError, match='in_order=False: which samples'):
        loader(folder, workers, in_order=False)
    assert same(epoch(loader(folder, workers, in_order=True)), epoch(loader(folder)))


def test_a_misspelt_setting_is_named(folder):
    with pytest.raises(TypeError, match="no setting 'persistant_workers'; did you mean 'persistent_workers'"):
        loader(folder, persistant_workers=True)


@pytest.mark.gpu
@pytest.mark.parametrize('workers', [0, 2])
def test_on_a_gpu_the_batches_are_the_same(folder, workers):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    img, label = epoch(loader(folder, workers, device='cuda', channels_last=True))
    assert img.is_cuda and label.is_cuda and img.is_contiguous(memory_format=torch.channels_last)
    expected = epoch(loader(folder))
    torch.testing.assert_close(img.cpu(), expected[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(label.cpu(), expected[1])


def test_workers_send_bytes_to_another_device_and_finished_batches_to_the_cpu(folder):
    for device, dtype in (('meta', torch.uint8), ('cpu', torch.float32)):
        batch, broken, _ = next(iter(loader(folder, 1, device=device)._batches))
        assert (batch['img'].dtype, batch['img'].is_shared(), broken) == (dtype, True, {})  # no ring yet
        batches = loader(folder, 1, device=device)
        batches.prepare()
        sent, broken, slot = next(iter(batches._batches))
        array = batch['img'].numpy()
        assert (sent['img'][:3], broken, slot) == ((None, array.dtype.str, (4, 3, 16, 16)), {}, 0)
        assert sent['gt_label'] == (batch['gt_label'].numpy().tobytes(), '<i8', (4,), (8,))


def test_a_data_set_that_draws_from_the_global_generators_depends_on_seed_epoch_and_index():
    class Drawing(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return dict(img=torch.rand(1, 2, 2) + index, drawn=np.random.rand())

    def batches(workers):
        torch.manual_seed(workers)
        loader = Loader(Drawing(), 2, workers, seed=3)
        return [torch.cat([batch['img'].flatten(), batch['drawn']]) for _ in range(2) for batch in loader]

    here, there = batches(0), batches(2)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert not torch.equal(here[0], here[2])
