"""What mmclassification 0.25's own tests demand of metrics, data sets and pipelines, asked of this library.

Cases that other tests ask already are not repeated: settings that make no sense (`tests/test_augment.py`), wrappers,
builders and RepeatAugSampler (`tests/test_wrappers.py`), VOC, CUB, Stanford Cars, ImageNet-21k (`tests/
test_published_datasets.py`), mAP and its kin (`tests/test_multi_label_metrics.py`).
"""
from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from test_transforms import run, step

from workspace_lib.datasets.base import BaseDataset
from workspace_lib.datasets.multi_label import MultiLabelDataset
from workspace_lib.metrics import accuracy
from workspace_lib.registry import DATASETS

COUNT = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
LIGHT = [[0, 128, 255], [1, 127, 254], [2, 129, 253]]


def grey(rows: list[list[int]]) -> np.ndarray:
    """Three equal channels."""
    return np.repeat(np.array(rows, np.uint8)[:, :, None], 3, 2)


ONE_WAY, OTHER_WAY = dict(random_negative_prob=0.), dict(random_negative_prob=1.)
PIXELS = [
    (COUNT, 'Shear', dict(magnitude=1, pad_val=0, **ONE_WAY), [[1, 2, 3, 4], [0, 5, 6, 7], [0, 0, 9, 10]]),
    *((COUNT, 'Shear', dict(magnitude=by, pad_val=0, direction='vertical', **way),
       [[1, 6, 11, 0], [5, 10, 0, 0], [9, 0, 0, 0]]) for by, way in ((-1, ONE_WAY), (1, OTHER_WAY))),
    (COUNT, 'Translate', dict(magnitude=.5, pad_val=0, **ONE_WAY), [[0, 0, 1, 2], [0, 0, 5, 6], [0, 0, 9, 10]]),
    *((COUNT, 'Translate', dict(magnitude=by, pad_val=0, direction='vertical', **way),
       [[9, 10, 11, 12], [0, 0, 0, 0], [0, 0, 0, 0]]) for by, way in ((-.5, ONE_WAY), (.5, OTHER_WAY))),
    *((COUNT, name, dict(magnitude=0.), COUNT) for name in (
        'Shear', 'Translate', 'Contrast', 'Brightness', 'ColorTransform', 'Sharpness', 'SolarizeAdd')),
    (COUNT, 'Rotate', dict(angle=0.), COUNT), (COUNT, 'Cutout', dict(shape=0), COUNT),
    (LIGHT, 'Invert', {}, [[255, 127, 0], [254, 128, 1], [253, 126, 2]]),
    (LIGHT, 'Solarize', dict(thr=256), LIGHT), (LIGHT, 'Solarize', dict(thr=0), [[255, 127, 0], [254, 128, 1],
                                                                                [253, 126, 2]]),
    (LIGHT, 'Solarize', dict(thr=128), [[0, 127, 0], [1, 127, 1], [2, 126, 2]]),
    (LIGHT, 'SolarizeAdd', dict(magnitude=100, thr=128), [[100, 128, 255], [101, 227, 254], [102, 129, 253]]),
    (LIGHT, 'Posterize', dict(bits=8), LIGHT),
    (LIGHT, 'Posterize', dict(bits=1), [[0, 128, 128], [0, 0, 128], [0, 128, 128]]),
    (LIGHT, 'Posterize', dict(bits=3), [[0, 128, 224], [0, 96, 224], [0, 128, 224]]),
    (COUNT, 'Cutout', dict(shape=6), [[128] * 4] * 3),
    (COUNT, 'RandomErasing', dict(erase_prob=0.), COUNT),
]


@pytest.mark.parametrize(('before', 'name', 'settings', 'after'), PIXELS, ids=str)
def test_pixels_by_hand(before, name, settings, after):
    settings = settings if name == 'RandomErasing' else dict(settings, prob=1.)
    np.testing.assert_array_equal(run(name, grey(before), **settings), grey(after))
    if name != 'RandomErasing':
        np.testing.assert_array_equal(run(name, grey(before), **dict(settings, prob=0.)), grey(before))


def test_a_quarter_turn_is_the_other_way_round_with_both_signs_changed():
    settings = dict(pad_val=0, prob=1., interpolation='bicubic')
    turned = run('Rotate', grey(COUNT), angle=90., **ONE_WAY, **settings)
    assert (turned != grey(COUNT)).any()
    np.testing.assert_array_equal(turned, run('Rotate', grey(COUNT), angle=-90., **OTHER_WAY, **settings))
    np.testing.assert_array_equal(run('Rotate', turned, angle=360., **ONE_WAY, **settings), turned)


def test_cutout_takes_one_pixel_or_a_row_of_two():
    for shape, changed in ((1, 1), ((1, 2), 2)):
        got = run('Cutout', grey(COUNT), shape=shape, pad_val=0, prob=1., seed=4)
        assert 1 <= (got != grey(COUNT)).all(2).sum() <= changed


def test_steps_without_strength_change_nothing_together():
    jittered = run('ColorJitter', grey(LIGHT), brightness=0., contrast=0., saturation=0.)
    np.testing.assert_array_equal(jittered, grey(LIGHT))
    eigen = dict(eigval=[.2175, .0188, .0045], eigvec=[[-.5675, .7192, .4009], [-.5808, -.0045, -.8140],
                                                       [-.5836, -.6948, .4203]])
    still = run('Lighting', np.arange(27, dtype=np.uint8).reshape(3, 3, 3), **eigen, alphastd=0., to_rgb=False)
    np.testing.assert_array_equal(still, np.arange(27).reshape(3, 3, 3))


def test_erasing_in_both_modes_touches_one_rectangle():
    img = np.zeros((60, 60, 3), np.uint8)
    for settings in (dict(mode='const', fill_color=(255, 255, 255)), dict(mode='rand'),
                     dict(mode='rand', fill_color=(200, 200, 200), fill_std=(10, 255, 1))):
        touched = step('RandomErasing', erase_prob=1., **settings).transform(img, random.Random(3)).any(2)
        rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
        assert np.ptp(rows) + 1 == len(rows) and np.ptp(columns) + 1 == len(columns)
        assert touched[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].mean() > 0.97  # a random pixel may be 0


def test_accuracy_of_the_example():
    pred = torch.tensor([[.1, .2, .4], [.2, .5, .3], [.4, .3, .1], [.8, .9, .0]])
    target = torch.tensor([2, 0, 0, 0])
    for scores, labels in ((pred, target), (pred.numpy(), target.numpy()), (pred, target.numpy())):
        assert accuracy(scores, labels).item() == 50
        assert [value.item() for value in accuracy(scores, labels, topk=(1, 2))] == [50, 75]


class Given(BaseDataset):
    """Samples as they are given."""

    def __init__(self, infos: list[dict], **settings) -> None:
        self.infos = infos
        super().__init__('', **settings)

    def load_annotations(self):
        return self.infos


class GivenSeveral(Given, MultiLabelDataset):
    pass


SCORES = np.array([[.7, 0, .3], [.5, .2, .3], [.4, .5, .1], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
LABELS = [0, 0, 1, 2, 1, 0]
EVERY = ['precision', 'recall', 'f1_score', 'support', 'accuracy']


def data(labels=LABELS) -> Given:
    return Given([dict(gt_label=np.array(label)) for label in labels])


@pytest.mark.parametrize(('count', 'options', 'expected'), [
    (6, dict(topk=1), dict(precision=700 / 9, recall=(2 / 3 + 1 / 2 + 1) / 3 * 100,
                           f1_score=(4 / 5 + 2 / 3 + 1 / 2) / 3 * 100, support=6, accuracy=400 / 6)),
    (5, dict(topk=1), dict(precision=250 / 3, recall=250 / 3, f1_score=700 / 9, support=5, accuracy=80)),
    (6, dict(topk=1, thrs=.6), dict(precision=(1 + 1 / 3) / 3 * 100, recall=(1 / 3 + 1) / 3 * 100, f1_score=100 / 3,
                                    support=6, accuracy=200 / 6))], ids=str)
@pytest.mark.parametrize('form', [lambda s: s, torch.from_numpy, list], ids=['array', 'tensor', 'rows'])
def test_metrics_of_the_example(count, options, expected, form):
    got = data().evaluate(form(SCORES[:count]), EVERY, options, indices=range(count))
    assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(('options', 'endings'), [
    (dict(thrs=(.5, .6), topk=(1, 2)), ['_top-1_thr_0.50', '_top-1_thr_0.60', '_top-2_thr_0.50', '_top-2_thr_0.60']),
    (dict(thrs=.5, topk=(1, 2)), ['_top-1', '_top-2']),
    (dict(thrs=(.5, .6), topk=1), ['_thr_0.50', '_thr_0.60'])], ids=str)
def test_keys_of_the_metrics(options, endings):
    got = data().evaluate(SCORES, 'accuracy', options)
    assert list(got) == [f'accuracy{ending}' for ending in endings]
    assert all(type(value) is float for value in got.values())


def test_metrics_by_class_and_what_is_refused():
    got = data().evaluate(SCORES, EVERY[:4], dict(average_mode='none'))
    assert {value.shape for value in got.values()} == {(3,)}
    for error, metric, options in ((ValueError, EVERY, dict(average_mode='micro')),
                                   (TypeError, EVERY, dict(thrs='thr')), (ValueError, 'unknown', None)):
        with pytest.raises(error):
            data().evaluate(SCORES, metric, options)


def test_classes_of_a_data_set(tmp_path):
    (tmp_path / 'classes.txt').write_text('bus\ncar\n')
    for given, expected in ((None, None), (('bus', 'car'), ('bus', 'car')), (['bus', 'car'], ['bus', 'car']),
                            (str(tmp_path / 'classes.txt'), ['bus', 'car'])):
        dataset = Given([], classes=given)
        assert expected == dataset.CLASSES and dataset.ann_file is None and not dataset.test_mode
    assert dataset.class_to_idx == dict(bus=0, car=1)
    with pytest.raises(ValueError, match="<class 'dict'>"):
        Given([], classes=dict(classes=1))
    assert all(DATASETS.get(name).CLASSES for name in ('MNIST', 'CIFAR10', 'CIFAR100', 'VOC', 'CUB', 'StanfordCars'))


def test_classes_of_a_sample():
    assert data().get_cat_ids(3) == [2]
    assert GivenSeveral([dict(gt_label=np.array([0, 1, 1, -1], np.int8))]).get_cat_ids(0) == [1, 2]


def test_a_data_set_of_several_labels_evaluates_its_own_metrics():
    target = [[1, 1, 0, -1], [1, 1, 0, -1], [0, -1, 1, -1], [0, 1, 0, -1], [0, 1, 0, -1]]
    scores = np.array([[.9, .8, .3, .2], [.1, .2, .2, .1], [.7, .5, .9, .3], [.8, .1, .1, .2], [.8, .1, .1, .2]])
    dataset = GivenSeveral([dict(gt_label=np.array(row, np.int8)) for row in target])
    assert dataset.evaluate(scores, 'mAP') == pytest.approx(dict(mAP=67.5))
    expected = dict(mAP=67.5, CR=43.75, OF1=42.8571)
    assert dataset.evaluate(scores, ['mAP', 'CR', 'OF1']) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="'unknown'.*is not supported"):
        dataset.evaluate(scores, 'unknown')
