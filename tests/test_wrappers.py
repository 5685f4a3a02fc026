"""Data sets made of others, as mmclassification makes them, and through the loader; RepeatAugSampler's orders."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Subset

from workspace_lib.apis import try_metrics
from workspace_lib.config import Config
from workspace_lib.datasets import (
    ClassBalancedDataset,
    ConcatDataset,
    CustomDataset,
    KFoldDataset,
    MultiLabelDataset,
    RepeatDataset,
    build_dataloader,
    build_dataset,
)
from workspace_lib.datasets.base import BaseDataset, FileInfos
from workspace_lib.datasets.samplers import RepeatAugSampler
from workspace_lib.datasets.wrappers import leaves, locate
from workspace_lib.registry import SAMPLERS

NORMALIZE = dict(type='Normalize', mean=[120, 120, 120], std=[60, 60, 60])
TO_TENSOR = [dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
             dict(type='Collect', keys=['img', 'gt_label'])]
STEPS = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=8), NORMALIZE, *TO_TENSOR]


class Toy(BaseDataset):
    """Labels, and no images: a sample is its index."""

    CLASSES = ('foo', 'bar', 'baz')

    def __init__(self, labels, **settings):
        self.labels = labels
        super().__init__('', **settings)

    def load_annotations(self):
        return FileInfos('', ((b'%d' % i, label) for i, label in enumerate(self.labels)))

    def __getitem__(self, index):
        return index


class Tags(MultiLabelDataset):
    CLASSES = ('foo', 'bar', 'baz')

    def __init__(self, labels, **settings):
        self.labels = np.array(labels, np.int8)
        super().__init__('', **settings)

    def load_annotations(self):
        return FileInfos('', ((b'%d' % i, 0) for i in range(len(self.labels))), self.labels)

    def __getitem__(self, index):
        return index


def single(count: int = 10, seed: int = 0) -> Toy:
    return Toy(np.random.default_rng(seed).choice(3, count, p=[.7, .2, .1]).tolist())


def several(count: int = 10, seed: int = 0) -> Tags:
    return Tags(np.random.default_rng(seed).random((count, 3)) < [.8, .5, .1])


KINDS = pytest.mark.parametrize('make', [single, several])


@KINDS
def test_concat(make):
    first, second = make(10), make(20, 1)
    both = ConcatDataset([first, second])
    assert (len(both), both[5], both[25], both[-1]) == (30, 5, 15, 19)
    assert both.get_cat_ids(25) == second.get_cat_ids(15) and both.get_cat_ids(-30) == first.get_cat_ids(0)
    assert both.filename(25) == second.filename(15) and both.CLASSES == first.CLASSES
    np.testing.assert_array_equal(both.get_gt_labels(), np.concatenate([first.get_gt_labels(), second.get_gt_labels()]))
    with pytest.raises(IndexError):
        both.get_cat_ids(30)


@KINDS
def test_repeat(make):
    inner = make(10)
    repeated = RepeatDataset(inner, 10)
    assert (len(repeated), repeated[5], repeated[15], repeated[27]) == (100, 5, 5, 7)
    assert repeated.get_cat_ids(27) == inner.get_cat_ids(7) and repeated.CLASSES == inner.CLASSES
    with pytest.raises(NotImplementedError, match='RepeatDataset holds samples more than once.*data.val'):
        repeated.evaluate([])


@KINDS
@pytest.mark.parametrize('threshold', [0.01, 0.3, 0.9, 5.])
def test_class_balanced_is_that_of_mmclassification(make, threshold):
    theirs = pytest.importorskip('mmcls.datasets.dataset_wrappers').ClassBalancedDataset
    for seed in range(5):
        inner = make(40, seed)
        inner.labels = np.array(inner.labels)
        if inner.labels.ndim == 2:  # a sample without classes is an error there
            inner.labels[:, 0] |= ~inner.labels.any(1)
        inner.data_infos = inner.load_annotations()
        ours = ClassBalancedDataset(inner, threshold)
        assert ours.repeat_indices.tolist() == theirs(inner, threshold).repeat_indices
        assert [ours[i] for i in range(len(ours))] == ours.repeat_indices.tolist()
    with pytest.raises(NotImplementedError, match='ClassBalancedDataset'):
        ours.evaluate([])


def test_a_sample_without_classes_is_there_once():
    balanced = ClassBalancedDataset(Tags([[1, 0, 0], [0, 0, 0], [-1, 0, 0]]), 4.)
    assert balanced.repeat_indices.tolist() == [0, 0, 0, 0, 1, 2]


@KINDS
@pytest.mark.parametrize('seed', [None, 0, 1, 77])
@pytest.mark.parametrize('test_mode', [False, True])
def test_folds_are_those_of_mmclassification(make, seed, test_mode):
    theirs = pytest.importorskip('mmcls.datasets.dataset_wrappers').KFoldDataset
    for count in (10, 3, 17):
        inner = make(count)
        for fold in range(3):
            ours = KFoldDataset(inner, fold, 3, test_mode, seed)
            expected = theirs(inner, fold, 3, test_mode, seed)
            assert ours.indices.tolist() == expected.indices
            assert [ours[i] for i in range(len(ours))] == expected.indices
            assert [ours.get_cat_ids(i) for i in range(len(ours))] == [inner.get_cat_ids(i) for i in expected.indices]
            np.testing.assert_array_equal(ours.get_gt_labels(), expected.get_gt_labels())


def test_folds_beyond_the_last_are_an_error():
    with pytest.raises(ValueError, match='fold=3 of num_splits=3; folds count from 0'):
        KFoldDataset(single(), 3, 3)


def scores(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(9).random((count, 3)).astype(np.float32))


@KINDS
def test_a_fold_is_evaluated_by_itself(make):
    inner, metric = make(12), None if make is several else ['accuracy', 'support']
    fold, results = KFoldDataset(inner, 1, 3, True, 5), scores(4)
    assert fold.evaluate(results, metric) == inner.evaluate(results, metric, indices=fold.indices)
    assert fold.evaluate(results[:2], metric, indices=[2, 0]) == inner.evaluate(results[:2], metric,
                                                                               indices=fold.indices[[2, 0]])


@KINDS
def test_parts_are_evaluated_each_or_together(make):
    first, second, results = make(10), make(20, 1), scores(30)
    each = ConcatDataset([first, second]).evaluate(results)
    expected = [first.evaluate(results[:10]), second.evaluate(results[10:])]
    assert each == {f'{n}_{key}': value for n, values in enumerate(expected) for key, value in values.items()}
    joint = type(first)([*first.labels, *second.labels]).evaluate(results)
    assert ConcatDataset([first, second], separate_eval=False).evaluate(results) == joint
    folds = [KFoldDataset(dataset, 0, 2, True) for dataset in (first, second)]
    assert set(ConcatDataset(folds).evaluate(scores(15))) == set(each)
    assert ConcatDataset(folds, separate_eval=False).evaluate(scores(15)).keys() == joint.keys()
    with pytest.raises(ValueError, match='29 results for 30 samples'):
        ConcatDataset([first, second]).evaluate(results[:-1])


def test_a_mistake_in_evaluation_is_found_before_the_test_in_every_part():
    both = ConcatDataset([single(3), single(4)])
    assert list(try_metrics(both, metric_options=dict(topk=1))) == ['0_accuracy', '1_accuracy']
    assert list(try_metrics(several())) == ['mAP']
    assert list(try_metrics(KFoldDataset(several(), 0, 2))) == ['mAP']


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match='part 1 has other classes than part 0'):
        ConcatDataset([single(), Toy([0], classes=['a', 'b', 'c'])])
    with pytest.raises(ValueError, match='of one type; got Toy, Tags'):
        ConcatDataset([single(), several()], separate_eval=False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Two folders `x` and `y`, of 6 and 8 JPEGs in two classes."""
    root, noise = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for part, count in (('x', 6), ('y', 8)):
        for number in range(count):
            file = root / part / f'{number % 2}' / f'{number:02}.jpg'
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), cv2.GaussianBlur(noise.integers(0, 256, (24, 31, 3), np.uint8), (5, 5), 2))
    return root


def images(folder: Path, part: str = 'x', steps: list = STEPS, **settings) -> dict:
    return dict(type='CustomDataset', data_prefix=str(folder / part), pipeline=steps, **settings)


def test_configs_build_wrappers_and_what_is_inside(folder):
    inner = images(folder)
    assert type(build_dataset([inner, images(folder, 'y')])) is ConcatDataset
    both = build_dataset(dict(type='ConcatDataset', datasets=[inner, images(folder, 'y')], separate_eval=False))
    assert not both.separate_eval and [len(part) for part in both.datasets] == [6, 8]
    assert len(build_dataset(dict(type='RepeatDataset', dataset=inner, times=3))) == 18
    assert len(build_dataset(dict(type='mmcls.RepeatDataset', dataset=[inner, inner], times=3))) == 36
    assert len(build_dataset(dict(type='ClassBalancedDataset', dataset=inner, oversample_thr=1.))) == 12
    cfg = Config(dict(data=dict(type='RepeatDataset', dataset=inner, times=2)))
    assert build_dataset(cfg.data).dataset.pipeline.is_split and cfg.data.dataset.type == 'CustomDataset'


@pytest.mark.parametrize('wrapper', [
    lambda inner: [inner, inner], lambda inner: dict(type='RepeatDataset', dataset=inner, times=3),
    lambda inner: dict(type='ClassBalancedDataset', dataset=inner, oversample_thr=1.),
    lambda inner: dict(type='ConcatDataset', datasets=[inner])])
def test_defaults_reach_the_data_sets_inside(folder, wrapper):
    for given, expected in ((images(folder), True), (images(folder, test_mode=False), False)):
        assert leaves(build_dataset(wrapper(given), dict(test_mode=True)))[0].test_mode is expected


@pytest.mark.parametrize(('own', 'expected'), [({}, (True, False)), (dict(test_mode=False), (False, True)),
                                               (dict(test_mode=None), (True, False))], ids=str)
def test_test_mode_around_a_fold_is_the_folds(folder, own, expected):
    defaults = dict(test_mode=True, classes=['p', 'q'])
    fold = build_dataset(dict(type='KFoldDataset', dataset=images(folder), fold=0, num_splits=3, **own), defaults)
    assert (fold.test_mode, fold.dataset.test_mode) == expected
    assert fold.CLASSES == ['p', 'q'] and defaults == dict(test_mode=True, classes=['p', 'q'])


def test_a_misspelt_key_of_a_wrapper_is_named(folder):
    with pytest.raises(TypeError, match="RepeatDataset has no argument 'time'; did you mean 'times'"):
        build_dataset(dict(type='RepeatDataset', dataset=images(folder), time=3))
    with pytest.raises(TypeError, match='datasets'):
        build_dataset(dict(type='ConcatDataset'))


def epoch(batches) -> list:
    return [(batch['img'], batch['gt_label']) for batch in batches]


def same(first: list, second: list) -> bool:
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(first, second, strict=True))


WRAPPED = {
    'concat': lambda x, y: ConcatDataset([x, y]), 'repeat': lambda x, y: RepeatDataset(x, 3),
    'fold of both': lambda x, y: KFoldDataset(ConcatDataset([x, y]), 1, 2, False, 3),
    'balanced folds': lambda x, y: ClassBalancedDataset(KFoldDataset(y, 0, 2), 1.),
    "torch's own": lambda x, y: Subset(TorchConcatDataset([x, Subset(y, [5, 1])]), [7, 0, 6, 2]),
}


@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
def test_the_loader_serves_wrappers_on_the_fast_path(folder, wrap):
    dataset = wrap(CustomDataset(str(folder / 'x'), STEPS), CustomDataset(str(folder / 'y'), STEPS))
    here, worker = (build_dataloader(dataset, 4, workers, seed=3) for workers in (0, 1))
    assert here.device_stage.normalize is not None
    for _ in range(2):
        batches = epoch(here)
        assert same(batches, epoch(worker)) and sum(len(label) for _, label in batches) == len(dataset)
    straight = build_dataloader(dataset, 4, 0, seed=3, shuffle=False)
    for index, label in enumerate(torch.cat([label for _, label in epoch(straight)]).tolist()):
        leaf, at = locate(dataset, index)
        assert leaf.get_gt_labels()[at] == label


def test_repetitions_of_a_sample_are_augmented_each_by_itself(folder):
    repeated = RepeatDataset(CustomDataset(str(folder / 'x'), STEPS), 2)
    img = torch.cat([img for img, _ in epoch(build_dataloader(repeated, 4, 0, seed=3, shuffle=False))])
    assert not torch.equal(img[:6], img[6:])


@pytest.mark.parametrize('workers', [0, 1])
def test_parts_that_normalise_differently_each_run_as_written(folder, workers, caplog):
    fixed = [dict(type='LoadImageFromFile'), dict(type='Resize', size=8)]
    one = CustomDataset(str(folder / 'x'), [*fixed, NORMALIZE, *TO_TENSOR])
    other = CustomDataset(str(folder / 'y'), [*fixed, dict(NORMALIZE, mean=[0, 0, 0]), *TO_TENSOR])
    expected = torch.stack([part.pipeline(info)['img'] for part in (one, other) for info in part.data_infos[:]])
    batches = epoch(build_dataloader(ConcatDataset([one, other]), 4, workers, shuffle=False))
    torch.testing.assert_close(torch.cat([img for img, _ in batches]), expected, rtol=0, atol=0)
    assert 'the data sets of the loader normalise in different ways' in caplog.text


@pytest.mark.parametrize('workers', [0, 1])
def test_broken_files_are_counted_in_the_part_they_belong_to(folder, tmp_path, workers):
    for part in ('x', 'y'):
        for number in range(4):
            file = tmp_path / part / '0' / f'{number}.jpg'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((folder / 'x' / '0' / '00.jpg').read_bytes())
    (tmp_path / 'y' / '0' / '2.jpg').write_bytes(b'')
    parts = [CustomDataset(str(tmp_path / part), STEPS, skip_broken=True) for part in ('x', 'y')]
    both = ConcatDataset(parts, separate_eval=False)
    batches = epoch(build_dataloader(RepeatDataset(both, 2), 5, workers, shuffle=False))
    assert sum(len(label) for _, label in batches) == 16
    assert [list(part.broken) for part in parts] == [[], [2]]
    values = both.evaluate([np.ones(1)] * 8, 'support')
    assert values == {'support': 7.0}


def test_the_folder_of_all_files(folder):
    both = build_dataset([images(folder), images(folder, 'y')])
    assert Path(both.data_prefix) == folder and Path(both.filename(7)).relative_to(folder).parts[0] == 'y'
    assert RepeatDataset(both.datasets[0], 2).data_prefix == both.datasets[0].data_prefix
    np.testing.assert_array_equal(both.load_image(7), both.datasets[1].load_image(1))


@pytest.mark.parametrize('settings', [
    {}, dict(selected_round=0), dict(selected_round=0, shuffle=False), dict(num_repeats=2, selected_round=10),
    dict(selected_round=0, selected_ratio=5), dict(selected_round=7, num_repeats=4, shuffle=False)], ids=str)
@pytest.mark.parametrize(('world', 'size'), [(1, 1000), (2, 1000), (3, 517), (8, 1281)])
def test_repeated_orders_are_those_of_mmclassification(settings, world, size, monkeypatch):
    """With one process and shuffling, the original draws from the global generator: there its seed is set here."""
    theirs = pytest.importorskip('mmcls.datasets').RepeatAugSampler
    data = range(size)
    for rank in {0, world // 2, world - 1}:
        ours, expected = (kind(data, world, rank, seed=5, **settings) for kind in (RepeatAugSampler, theirs))
        for epoch in (0, 1, 7):
            ours.set_epoch(epoch)
            expected.set_epoch(epoch)
            if world == 1:
                plain, seed = torch.randperm, epoch + 5
                monkeypatch.setattr(torch, 'randperm', lambda n, generator=None, plain=plain, seed=seed: plain(
                    n, generator=torch.Generator().manual_seed(seed)))
            assert list(ours) == list(expected)
            monkeypatch.undo()
        assert len(ours) == len(expected) == len(list(ours))


def test_repeat_aug_by_default_sees_a_third_three_times():
    order = list(SAMPLERS.build(dict(type='RepeatAugSampler', dataset=range(1000))))
    assert len(order) == 768 and order[0::3] == order[1::3] == order[2::3] and len(set(order)) == 256


def test_a_data_set_too_small_to_round_down_is_an_error():
    with pytest.raises(ValueError, match='100 samples.*multiple of 256.*selected_round=0'):
        RepeatAugSampler(range(100))


def test_the_loader_augments_each_repetition_by_itself(folder):
    sampler = dict(type='RepeatAugSampler', selected_round=0)
    dataset = CustomDataset(str(folder / 'y'), STEPS)
    here, worker = (build_dataloader(dataset, 3, workers, seed=3, sampler_cfg=sampler) for workers in (0, 1))
    first, second = epoch(here), epoch(here)
    assert same(first, epoch(worker)) and same(second, epoch(worker)) and not same(first, second)
    img, label = first[0]  # one sample, three times
    assert len(set(label.tolist())) == 1 and not torch.equal(img[0], img[1]) and not torch.equal(img[1], img[2])
    straight = build_dataloader(dataset, 3, 0, seed=3, sampler_cfg=sampler, shuffle=False)
    assert straight._requests._indices(0) == [0, 0, 0, 1, 1, 1, 2, 2]
