"""Random flip and erasing by the batch: the images of the written form, each sample's choices, the noise asked for."""
from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from workspace_lib.datasets import CustomDataset, Pipeline, build_dataloader, loader
from workspace_lib.datasets.geometry import RandomErasing
from workspace_lib.datasets.transforms import RandomFlip
from workspace_lib.datasets.wrappers import ConcatDataset
from workspace_lib.registry import PIPELINES

CROP = dict(type='RandomResizedCrop', size=(24, 20))
FLIP, UPSIDE_DOWN = dict(type='RandomFlip'), dict(type='RandomFlip', flip_prob=.3, direction='vertical')
ERASE = dict(type='RandomErasing', fill_color=(1, 200.7, 255))
NOISE = dict(type='RandomErasing', mode='rand', fill_color=200, fill_std=1.)  # never black
NORMALIZE = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
END = [NORMALIZE, dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
       dict(type='Collect', keys=['img', 'gt_label'])]
SUFFIXES = {
    'flip': [FLIP], 'upside down': [UPSIDE_DOWN], 'both': [FLIP, UPSIDE_DOWN], 'erasing': [ERASE],
    'flip, erasing': [FLIP, ERASE], 'erasing, flip': [ERASE, FLIP], 'all': [ERASE, UPSIDE_DOWN, ERASE, FLIP],
    'large': [dict(ERASE, erase_prob=1., min_area_ratio=.9, max_area_ratio=1.), FLIP],
    'nothing': [dict(ERASE, max_area_ratio=0., min_area_ratio=0., erase_prob=1.), dict(FLIP, flip_prob=0.)]}
SEEDS = range(100)
noise = np.random.default_rng(0)
PHOTOGRAPH = cv2.GaussianBlur(noise.integers(0, 256, (40, 51, 3), np.uint8), (5, 5), 2)


def for_device(pipeline: Pipeline, img: np.ndarray, seeds: range = SEEDS) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as a worker leaves them, uint8 (N, C, H, W), and what it has drawn."""
    items = [pipeline.item(dict(img=img, gt_label=np.array(0)), seed, for_device=True) for seed in seeds]
    batch = torch.from_numpy(np.stack([item['img'] for item in items])).permute(0, 3, 1, 2)
    return batch, torch.from_numpy(np.stack([item['_draws'] for item in items]))


def by_image(pipeline: Pipeline, img: np.ndarray, seeds: range = SEEDS) -> torch.Tensor:
    items = [pipeline.item(dict(img=img, gt_label=np.array(0)), seed)['img'] for seed in seeds]
    return torch.from_numpy(np.stack(items)).permute(0, 3, 1, 2)


@pytest.mark.parametrize('grey', [False, True], ids=['colour', 'grey'])
@pytest.mark.parametrize('name', SUFFIXES)
def test_the_batch_equals_the_written_form(name, grey):
    end = [dict(NORMALIZE, mean=[100.], std=[50.]), *END[1:]] if grey else END
    img = PHOTOGRAPH[:, :, 0] if grey else PHOTOGRAPH
    pipeline = Pipeline([CROP, *SUFFIXES[name], *end])
    assert [type(step).__name__ for step in pipeline.device_stage.steps] == [cfg['type'] for cfg in SUFFIXES[name]]
    batch, draws = for_device(pipeline, img)
    untouched = by_image(Pipeline([CROP, *end]), img)
    assert torch.equal(batch, untouched)
    made = pipeline.device_stage.random_steps(batch, draws, random.Random(0))
    assert made.dtype == torch.uint8 and made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, by_image(pipeline, img))
    assert torch.equal(made, untouched) is (name == 'nothing')
    for seed, image in enumerate(pipeline.device_stage(made)):
        written = pipeline(dict(img=img, gt_label=np.array(0), rng=random.Random(seed)))['img']
        torch.testing.assert_close(image, written, rtol=0, atol=0)


@pytest.mark.parametrize('suffix', [[NOISE], [FLIP, NOISE], [NOISE, FLIP], [NOISE, UPSIDE_DOWN, FLIP],
                                    [NOISE, dict(ERASE, fill_color=100), FLIP]],
                         ids=lambda suffix: ', '.join(cfg.get('mode', cfg['type'][6:]) for cfg in suffix))
def test_noise_covers_the_pixels_that_it_covers_in_the_written_form(suffix):
    pipeline = Pipeline([CROP, *suffix, *END])
    batch, draws = for_device(pipeline, np.zeros_like(PHOTOGRAPH))
    assert not batch.any()
    made, expected = pipeline.device_stage.random_steps(batch, draws, random.Random(0)), by_image(
        pipeline, np.zeros_like(PHOTOGRAPH))
    assert torch.equal(made > 0, expected > 0) and torch.equal(made == 100, expected == 100)
    assert made.any(dim=1).any() and not torch.equal(made, expected)


WHOLE = dict(erase_prob=1., min_area_ratio=1., max_area_ratio=1., aspect_range=(1., 1.), mode='rand')


def filled(number: int = 0, **settings: object) -> np.ndarray:
    """Noise alone, (N, 3, 64, 64), as the device paints it."""
    step = RandomErasing(**WHOLE, **settings)
    boxes = torch.tensor([step.draw(64, 64, random.Random(seed)) for seed in range(40)])
    assert boxes.tolist() == [[0, 0, 64, 64]] * 40
    return step.on_batch(torch.zeros(40, 3, 64, 64, dtype=torch.uint8), boxes, random.Random(number)).numpy()


def test_noise_has_the_mean_and_deviation_asked_for():
    made = filled(fill_color=(100, 120, 140), fill_std=(5, 10, 20))
    np.testing.assert_allclose(made.mean((0, 2, 3)), (99.5, 119.5, 139.5), atol=0.25)  # 0.5 is cut off
    # the deviation of whole numbers; 163,840 values know it to 0.2 percent
    np.testing.assert_allclose(made.std((0, 2, 3)), np.sqrt(np.square((5, 10, 20)) + 1 / 12), rtol=0.008)


@pytest.mark.parametrize('settings', [dict(fill_color=(10, 128, 250), fill_std=(20, 57, 58)), dict(fill_std=None)],
                         ids=['normal, clipped at both ends', 'uniform'])
def test_noise_is_distributed_as_the_workers_is(settings):
    made, step = filled(**settings), RandomErasing(**WHOLE, **settings)
    theirs = np.stack([step.transform(np.zeros((64, 64, 3), np.uint8), random.Random(seed)) for seed in range(40)])
    for channel in range(3):
        ours, other = (np.bincount(values.ravel(), minlength=256).cumsum() / values.size
                       for values in (made[:, channel], theirs[..., channel]))
        assert np.abs(ours - other).max() < 0.006  # Kolmogorov and Smirnov's bound of 1 in 100 for this many: 0.0057
    if settings['fill_std'] is None:
        assert (made.min(), made.max()) == (0, 255)


def test_noise_of_all_pixels_is_its_own_and_comes_from_the_seed_alone():
    made = filled(fill_color=128, fill_std=30.)
    planes = made.reshape(120, -1).astype(float)
    assert np.abs(np.corrcoef(planes) - np.eye(120)).max() < 0.08  # 5 deviations of 4,096 independent values
    state = torch.get_rng_state()
    assert np.array_equal(made, filled(fill_color=128, fill_std=30.))
    assert not np.array_equal(made, filled(1, fill_color=128, fill_std=30.))
    assert torch.equal(state, torch.get_rng_state())


def test_two_steps_of_a_pipeline_paint_different_noise():
    pipeline = Pipeline([dict(type='Resize', size=16), *[dict(type='RandomErasing', **WHOLE)] * 2, *END])
    stage, seen = pipeline.device_stage, []
    for step in stage.steps:
        def on_batch(img, numbers, rng, plain=step.on_batch):
            seen.append(plain(img, numbers, rng).clone())
            return img
        step.on_batch = on_batch
    stage.random_steps(*for_device(pipeline, PHOTOGRAPH, range(2)), random.Random(0))
    assert len(seen) == 2 and not torch.equal(*seen)


class Darker(RandomFlip):
    """A person's own step, of which the batch knows nothing."""

    def transform(self, img, rng):
        return super().transform(img, rng) // 2


@pytest.mark.parametrize(('steps', 'left'), [
    ([FLIP, CROP], []), ([FLIP, CROP, ERASE], ['RandomErasing']), ([CROP], []),
    ([FLIP, Darker()], []), ([Darker(), FLIP], ['RandomFlip'])], ids=str)
def test_only_the_last_steps_wait_for_the_device(steps, left):
    pipeline = Pipeline([*steps, *END])
    assert [type(step).__name__ for step in pipeline.device_stage.steps] == left
    item = pipeline.item(dict(img=PHOTOGRAPH, gt_label=np.array(0)), 3, for_device=True)
    assert ('_draws' in item) is bool(left)


# --- through the loader, with workers and images as for a GPU, computed on this CPU

TRAIN = [dict(type='LoadImageFromFile'), CROP, FLIP, ERASE, *END]
NOISY = [*TRAIN[:3], NOISE, *END]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """18 JPEGs of two classes."""
    root = tmp_path_factory.mktemp('data')
    for number in range(18):
        file = root / f'{number % 2}' / f'{number:02}.jpg'
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), np.roll(PHOTOGRAPH, number, 0))
    return root


@pytest.fixture
def gpu(monkeypatch) -> dict:
    """Settings of a loader whose device is no CPU, and whose batches stay where they can be computed with."""
    monkeypatch.setattr(loader, 'to_device', lambda batch, device: dict(batch))
    return dict(device='xpu')


def batches(dataset, workers: int = 0, **settings) -> loader.Loader:
    if not isinstance(dataset, torch.utils.data.Dataset):
        dataset = CustomDataset(*dataset) if isinstance(dataset, tuple) else dataset
    return build_dataloader(dataset, 4, workers, **{'seed': 3, **settings})


def same(first: list[dict], second: list[dict]) -> bool:
    return all(torch.equal(a['img'], b['img']) and torch.equal(a['gt_label'], b['gt_label'])
               for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('last', [False, True], ids=['NCHW', 'NHWC'])
@pytest.mark.parametrize('workers', [0, 2])
def test_parameters_travel_and_the_batches_are_those_of_the_cpu(folder, gpu, workers, last):
    made = batches((str(folder), TRAIN), workers, channels_last=last, **gpu)
    expected = batches((str(folder), TRAIN))
    for _ in range(2):
        epoch = list(made)
        assert same(epoch, list(expected))
        assert all(batch.keys() == {'img', 'gt_label'} for batch in epoch)
        assert all(batch['img'].is_contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format) for batch in epoch)


@pytest.mark.parametrize('workers', [0, 2])
def test_workers_leave_the_last_steps_to_the_device(folder, gpu, workers):
    made = batches((str(folder), TRAIN), workers, **gpu)
    made.prepare()
    plain = batches((str(folder), [*TRAIN[:2], *END]), **gpu)
    plain.prepare()
    for batch, untouched in zip(made._received(), plain._received(), strict=True):
        assert torch.equal(batch['img'], untouched['img']) and '_draws' not in untouched
        assert batch['_draws'].shape == (len(batch['img']), 5) and batch['_draws'].dtype == torch.int32


def test_noise_depends_on_seed_epoch_batch_and_rank_alone(folder, gpu):
    here, two = (batches((str(folder), NOISY), workers, **gpu) for workers in (0, 2))
    epochs = [list(here) for _ in range(2)]
    assert same(epochs[0], list(two)) and same(epochs[1], list(two))
    resumed = batches((str(folder), NOISY), **gpu)
    resumed.set_epoch(1)
    resumed.start_at(2)
    assert same(list(resumed), epochs[1][2:])

    def noise_of(**settings):
        still = [dict(type='LoadImageFromFile'), dict(type='Resize', size=8), dict(type='RandomErasing', **WHOLE), *END]
        return [batch['img'] for batch in batches((str(folder), still), **gpu, **settings)][:2]
    first, second = noise_of()
    assert not any(torch.equal(first, other) for other in (second, noise_of(seed=4)[0]))


def test_ranks_paint_different_noise(folder, gpu):
    still = [dict(type='LoadImageFromFile'), dict(type='Resize', size=8), dict(type='RandomErasing', **WHOLE), *END]
    first, second = (list(loader.Loader(CustomDataset(str(folder), still), 4, seed=3, rank=rank, world_size=2, **gpu))
                     for rank in range(2))
    assert not any(torch.equal(a['img'], b['img']) for a in first for b in second if len(a['img']) == len(b['img']))


def test_mixing_is_the_same_wherever_the_random_steps_are(folder, gpu):
    mixed = dict(type='BatchCutMix', alpha=1., num_classes=2, prob=1.)
    assert same(list(batches((str(folder), TRAIN), augments=mixed, **gpu)),
                list(batches((str(folder), TRAIN), augments=mixed)))


def test_a_key_leaves_the_random_steps_with_the_workers(folder, gpu):
    made = batches((str(folder), NOISY), device_steps=False, **gpu)
    assert '_draws' not in next(made._received())
    made.set_epoch(0)
    assert same(list(made), list(batches((str(folder), NOISY))))


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_what_computes_nothing_faster_than_a_worker_is_left_nothing(folder, device):
    made = batches((str(folder), NOISY), device=device)
    assert '_draws' not in next(made._received())
    made.set_epoch(0)
    assert [batch['img'].shape for batch in made] == [(4, 3, 24, 20)] * 4 + [(2, 3, 24, 20)]


class Own(CustomDataset):
    def sample(self, index, seed=None):
        return super().sample(index, seed)


class Foreign(torch.utils.data.Dataset):
    CLASSES = ['0', '1']

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return dict(img=np.full((24, 20, 3), index, np.uint8), gt_label=np.int64(0))


def parts_of(folder: Path, name: str) -> list:
    ours = CustomDataset(str(folder), TRAIN)
    return {'alike': [ours, CustomDataset(str(folder), TRAIN)],
            'one without flips': [ours, CustomDataset(str(folder), [*TRAIN[:2], *END])],
            'one of their own': [ours, Own(str(folder), TRAIN)], 'one of a stranger': [ours, Foreign()]}[name]


@pytest.mark.parametrize('name', ['alike', 'one without flips', 'one of their own', 'one of a stranger'])
def test_parts_that_end_differently_do_their_own_steps_and_stay_fast(folder, gpu, name):
    made = batches(ConcatDataset(parts_of(folder, name)), 2, **gpu)
    expected = batches(ConcatDataset(parts_of(folder, name)))
    made.prepare()
    assert all(('_draws' in batch) is (name == 'alike') for batch in made._received())
    made.set_epoch(0)
    assert same(list(made), list(expected))
    assert all(leaf.pipeline.is_split for leaf in made._leaves if hasattr(leaf, 'pipeline'))


def test_a_loader_for_a_gpu_changes_nothing_for_others_of_its_data_set(folder, gpu):
    dataset = CustomDataset(str(folder), TRAIN)
    sample, one = dataset.sample(3, 7), CustomDataset(str(folder), TEST).pipeline.batch_of_one(dataset.data_infos[0])
    list(batches(dataset, **gpu))
    again = dataset.sample(3, 7)
    assert again.keys() == sample.keys() and np.array_equal(again['img'], sample['img'])
    assert torch.equal(CustomDataset(str(folder), TEST).pipeline.batch_of_one(dataset.data_infos[0])['img'], one['img'])
    random.seed(5)
    first = dataset.pipeline.batch_of_one(dataset.data_infos[0])['img']
    random.seed(5)
    assert torch.equal(first[0], dataset.pipeline(dict(dataset.data_infos[0]))['img'])


TEST = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(24, 20)), *END]


def test_an_evaluation_has_nothing_to_draw(folder, gpu):
    made = batches((str(folder), TEST), shuffle=False, **gpu)
    assert all(batch.keys() == {'img', 'gt_label'} for batch in made._received())
    made.set_epoch(0)
    assert same(list(made), list(batches((str(folder), TEST), shuffle=False)))


def test_what_waits_for_the_device_shows_how_many_numbers_it_takes():
    steps = [cls for cls in PIPELINES.module_dict.values() if vars(cls).get('draws')]
    assert {cls.__name__ for cls in steps} == {'RandomFlip', 'RandomErasing'}
    for cls in steps:
        assert len(cls().draw(9, 7, random.Random(0))) == cls.draws


@pytest.mark.gpu
def test_on_a_gpu_the_images_are_the_same_and_nothing_waits(folder):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    pipeline = Pipeline([CROP, *SUFFIXES['all'], NOISE, *END])
    (batch, draws), rng = for_device(pipeline, PHOTOGRAPH), random.Random(0)
    expected = pipeline.device_stage.random_steps(batch.clone(), draws, rng)
    there = batch.cuda(), draws.cuda()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode('error')
        made = pipeline.device_stage.random_steps(*there, rng)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    made = made.cpu()
    assert made.is_contiguous(memory_format=torch.channels_last)
    painted = (made - expected).any(1)  # with noise, of which each device has its own
    assert 0.05 < painted.float().mean() < 0.3 and (made.permute(0, 2, 3, 1)[painted].int() - 200).abs().max() < 8
    first, again = (list(batches((str(folder), NOISY), workers, device='cuda')) for workers in (0, 2))
    assert same(first, again)
    for here, there in zip(batches((str(folder), TRAIN)), batches((str(folder), TRAIN), 2, device='cuda'), strict=True):
        torch.testing.assert_close(there['img'].cpu(), here['img'], rtol=1e-6, atol=1e-6)
