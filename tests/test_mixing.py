"""Mixup and CutMix: mmclassification's batches from the same numbers, in the loader, exact after a resume."""
from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from one_source import one_source  # noqa: F401

from workspace_lib.datasets import BatchAugments, CustomDataset, build_dataloader
from workspace_lib.datasets.mixing import AUGMENTS

MIXUP = dict(type='BatchMixup', alpha=0.8, num_classes=5, prob=0.5)
CUTMIX = dict(type='BatchCutMix', alpha=1.0, num_classes=5, prob=0.5)
STEPS = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=16),
         dict(type='Normalize', mean=[120, 120, 120], std=[60, 60, 60]), dict(type='ImageToTensor', keys=['img']),
         dict(type='ToTensor', keys=['gt_label']), dict(type='Collect', keys=['img', 'gt_label'])]


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 20, 30, generator=generator), torch.arange(size) % 5


@pytest.mark.parametrize('config', [
    MIXUP, dict(MIXUP, alpha=0.1), CUTMIX, dict(CUTMIX, correct_lam=False), dict(CUTMIX, cutmix_minmax=[0.2, 0.8]),
    dict(CUTMIX, alpha=0.3), dict(type='Identity', num_classes=5)], ids=str)
@pytest.mark.parametrize('several', [False, True], ids=['indices', 'rows'])
def test_batches_are_those_of_mmclassification(config, several, one_source, monkeypatch):  # noqa: F811
    augment = pytest.importorskip('mmcls.models.utils.augment.builder').build_augment(dict(config))
    monkeypatch.setattr(np.random, 'beta', random.betavariate)
    monkeypatch.setattr(torch, 'randperm', lambda n: torch.tensor(random.sample(range(n), n)))
    monkeypatch.setattr(np.random, 'randint', lambda low, high, size=None: random.randrange(low, high))
    for seed in range(30):
        img, label = batch()
        label = torch.nn.functional.one_hot(label, 5) * 2 - 1 if several else label
        random.seed(seed)
        expected, labels = augment(img.clone(), label)
        got, got_labels = AUGMENTS.build(config)(img.clone(), label, random.Random(seed))
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got_labels, labels.float(), rtol=1e-6, atol=1e-6)


def kinds(config, count: int = 600) -> dict[str, float]:
    """How often each augment is chosen."""
    augments, chosen = BatchAugments(config), []
    for augment in augments.augments:
        augment.__class__ = type(type(augment).__name__, (type(augment),), {
            '__call__': lambda self, img, label, rng: chosen.append(type(self).__name__)})
    for seed in range(count):
        augments(None, None, random.Random(seed))
    return {name: chosen.count(name) / count for name in set(chosen)}


@pytest.mark.parametrize(('config', 'expected'), [
    (dict(MIXUP, prob=1.), dict(BatchMixup=1)), ([MIXUP, CUTMIX], dict(BatchMixup=.5, BatchCutMix=.5)),
    (dict(MIXUP, prob=.3), dict(BatchMixup=.3, Identity=.7)),
    ([dict(MIXUP, prob=.2), dict(CUTMIX, prob=.7), dict(type='Identity', num_classes=5, prob=.1)],
     dict(BatchMixup=.2, BatchCutMix=.7, Identity=.1))], ids=['dict', 'list', 'rest', 'with identity'])
def test_each_batch_gets_one_augment_by_its_probability(config, expected):
    assert kinds(config) == pytest.approx(expected, abs=0.06)


def test_shares_are_those_of_the_labels():
    """One image is black and one white, so what is left of each can be seen."""
    img = torch.stack([torch.zeros(3, 40, 40), torch.ones(3, 40, 40)])
    for config in (MIXUP, CUTMIX, dict(CUTMIX, cutmix_minmax=[.3, .6])):
        seen = set()
        for seed in range(20):
            got, label = AUGMENTS.build(config)(img.clone(), torch.tensor([0, 1]), random.Random(seed))
            torch.testing.assert_close(got.mean((1, 2, 3)), label[:, 1], rtol=1e-5, atol=1e-5)
            assert label.sum(1).tolist() == pytest.approx([1, 1])
            seen.add(round(float(label[0, 1]), 4))
        assert len(seen) > 5


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """30 JPEGs of five classes."""
    root, noise = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for number in range(30):
        file = root / f'{number % 5}' / f'{number:02}.jpg'
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), cv2.GaussianBlur(noise.integers(0, 256, (24, 31, 3), np.uint8), (5, 5), 2))
    return root


def loader(folder: Path, workers: int = 0, **settings):
    settings = {'seed': 3, 'augments': [MIXUP, CUTMIX], **settings}
    return build_dataloader(CustomDataset(str(folder), STEPS), 4, workers, **settings)


def epoch(batches) -> tuple[torch.Tensor, torch.Tensor]:
    made = list(batches)
    return torch.cat([batch['img'] for batch in made]), torch.cat([batch['gt_label'] for batch in made])


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_loader_mixes_images_and_labels(folder):
    mixed, plain = epoch(loader(folder, shuffle=False)), epoch(loader(folder, shuffle=False, augments=None))
    assert (mixed[1].shape, mixed[1].dtype) == ((30, 5), torch.float32)
    torch.testing.assert_close(mixed[1].sum(1), torch.ones(30))
    assert plain[1].shape == (30,) and not torch.equal(mixed[0], plain[0])
    assert ((mixed[1] > 0) & (mixed[1] < 1)).any()


def test_mixing_depends_on_seed_epoch_and_batch_alone(folder):
    here, worker = loader(folder), loader(folder, 1)
    first, second = epoch(here), epoch(here)
    assert same(epoch(worker), first) and same(epoch(worker), second) and not same(first, second)
    resumed = loader(folder)
    resumed.set_epoch(1)
    torch.rand(7), np.random.rand(7), random.random()
    assert same(epoch(resumed), second)
    assert not same(epoch(loader(folder, seed=4)), first)


def test_batches_of_an_epoch_and_of_its_ranks_are_mixed_differently(folder):
    from workspace_lib.datasets.loader import Loader
    dataset, orders = CustomDataset(str(folder), STEPS), []
    for rank in range(2):
        ours = Loader(dataset, 5, seed=1, rank=rank, world_size=2,
                      augments=lambda img, label, rng: (orders.append(rng.random()), (img, label))[1])
        epoch(ours)
    assert len(orders) == len(set(orders)) == 6


def test_a_mixed_batch_keeps_its_memory_format(folder):
    for config in (MIXUP, CUTMIX):
        img = next(iter(loader(folder, augments=dict(config, prob=1.), channels_last=True)))['img']
        assert img.is_contiguous(memory_format=torch.channels_last)


def test_the_global_generators_are_left_alone(folder):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    epoch(loader(folder))
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@pytest.mark.parametrize(('config', 'error', 'text'), [
    ([MIXUP, dict(CUTMIX, prob=.6)], ValueError, 'add up to 1.1.*at most 1'),
    ([MIXUP, dict(type='Identity', num_classes=5, prob=.2)], ValueError, 'add up to 0.7.*Identity'),
    (dict(MIXUP, prob=2), ValueError, 'prob=2'), (dict(MIXUP, alpha=0), ValueError, 'alpha=0'),
    (dict(MIXUP, type='BatchMixUp'), KeyError, 'nearest: BatchMixup'),
    (dict(CUTMIX, cutmix_minmax=[.9, .1]), ValueError, 'least, most')])
def test_settings_that_make_no_sense_are_named(config, error, text):
    with pytest.raises(error, match=text):
        BatchAugments(config)


@pytest.mark.parametrize('shape', [(4, 3, 1, 1), (4, 3, 1, 50), (4, 3, 3, 1)])
def test_an_image_that_is_too_small_to_cut_from_is_named(shape):
    cut = BatchAugments(dict(CUTMIX, prob=1., cutmix_minmax=[.3, .6]))
    with pytest.raises(ValueError, match=rf'{shape[2]} x {shape[3]} pixels.*cutmix_minmax'):
        cut(torch.zeros(shape), torch.zeros(4, dtype=torch.int64), random.Random(0))


def test_a_label_beyond_the_classes_names_the_setting():
    with pytest.raises(ValueError, match=r'outside 0\.\.2 .*num_classes in model.train_cfg.augments'):
        AUGMENTS.build(dict(MIXUP, num_classes=3))(*batch(), random.Random(0))
