"""Metrics of several labels a sample: equal to mmclassification's on random cases; ties, NaN and gaps as a few plain
lines say; additive; and what is asked for of the other kind is named."""
from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from workspace_lib import metrics as single
from workspace_lib.multi_label_metrics import METRICS, MultiLabelCounts, evaluate
from workspace_lib.tools import evaluation
from workspace_lib.tools.evaluation import average_performance, average_precision, mAP

EPS = np.finfo(np.float32).eps
S = np.array([[.9, .8, .3, .2], [.1, .2, .2, .1], [.7, .5, .9, .3], [.8, .1, .1, .2], [.8, .1, .1, .2]])
GT = np.array([[1, 1, 0, -1], [1, 1, 0, -1], [0, -1, 1, -1], [0, 1, 0, -1], [0, 1, 0, -1]])


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are all different, labels of which some classes have none."""
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(1, 25)), int(rng.integers(1, 8))
    scores = (rng.permutation(n * c).reshape(n, c) + 0.5) / (n * c)
    labels = rng.choice([1, 0, -1], (n, c), p=[(.3, .5, .2), (.1, .9, 0), (.5, .25, .25)][seed % 3])
    labels[:, rng.random(c) < 0.15] = rng.choice([0, -1])
    return scores.astype((np.float32, np.float64)[seed % 2]), labels.astype(np.int8)


def test_equal_to_mmclassification_on_1000_cases_each():
    theirs = pytest.importorskip('mmcls.core.evaluation')
    for seed in range(1000):
        scores, labels = case(seed)
        options = [dict(thr=.5), dict(thr=.1), dict(k=1), dict(k=3), dict(k=20)][seed % 5]
        assert mAP(scores, labels) == theirs.mAP(scores, labels), seed
        assert average_precision(scores[:, 0], labels[:, 0]) == theirs.average_precision(scores[:, 0], labels[:, 0])
        expected = theirs.average_performance(scores, labels.copy(), **options)
        assert average_performance(scores, labels, **options) == tuple(expected), (seed, options)


@pytest.mark.parametrize('options', [None, {}, dict(thr=0.3), dict(k=2)], ids=str)
def test_evaluate_equals_mmclassification(options):
    pytest.importorskip('mmcls')
    from mmcls.datasets import MultiLabelDataset

    class Data(MultiLabelDataset):
        def __init__(self, labels):
            self.labels = labels

        def load_annotations(self):
            return []

        def get_gt_labels(self):
            return self.labels.copy()

    for seed in range(100):
        scores, labels = case(seed)
        wanted = [m for i, m in enumerate(METRICS) if (seed + 1) >> i & 1]
        expected = Data(labels).evaluate(list(scores), wanted, options)
        got = evaluate(list(scores), labels, wanted, options)
        assert list(got.items()) == list(expected.items())
        assert all(type(value) is float for value in got.values())


def plain_ap(scores, labels) -> float:
    """Best score first, equal ones in the order of the data, NaN last; difficult samples are left out."""
    order = sorted(range(len(scores)), key=lambda i: (np.isnan(scores[i]), -scores[i]))
    found = seen = total = 0
    for i in order:
        seen += labels[i] != -1
        found += labels[i] == 1
        total += found / seen if labels[i] == 1 else 0
    return total / found if found else 0.


def plain_performance(scores, labels, thr=None, k=None) -> list[float]:
    n, c = scores.shape
    positive = np.zeros((n, c), bool)
    for i in range(n):
        best = sorted(range(c), key=lambda j: (np.isnan(scores[i, j]), -scores[i, j]))[:k]
        for j in range(c):
            positive[i, j] = scores[i, j] >= thr if thr is not None else j in best

    def share(hits, count):
        return hits / count if count else 0.

    hits = [int((positive[:, j] & (labels[:, j] == 1)).sum()) for j in range(c)]
    predicted, labelled = positive.sum(0).tolist(), (labels == 1).sum(0).tolist()
    values = []
    for p, r in ((sum(map(share, hits, predicted)) / c, sum(map(share, hits, labelled)) / c),
                 (share(sum(hits), sum(predicted)), share(sum(hits), sum(labelled)))):
        values += [100 * p, 100 * r, 100 * 2 * share(p * r, p + r)]
    return values


@pytest.mark.parametrize('seed', range(60))
def test_ties_nan_and_classes_without_labels_follow_the_plain_definition(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (12, 5)) / 4  # of four values: ties everywhere, and exactly at the threshold
    if seed % 2:
        scores[rng.random((12, 5)) < 0.2] = np.nan
    labels = rng.choice([1, 0, -1], (12, 5))
    labels[:, 1], labels[:, 2] = 0, -1
    expected = 100 * np.mean([plain_ap(scores[:, c], labels[:, c]) for c in range(5)])
    assert mAP(scores, labels) == pytest.approx(expected, abs=1e-9)
    for options in (dict(thr=.5), dict(thr=.75), dict(k=1), dict(k=3), dict(k=99)):
        got, expected = average_performance(scores, labels, **options), plain_performance(scores, labels, **options)
        assert got == pytest.approx(expected, abs=1e-4), options  # 0 / 0 goes by an eps there


def test_equal_scores_keep_the_order_of_the_data():
    same = np.full(40, 0.5)
    assert average_precision(same, np.arange(40) == 0) == pytest.approx(1)
    assert average_precision(same, np.arange(40) == 39) == pytest.approx(1 / 40)


def test_the_worked_example_of_mmclassifications_own_tests():
    target = GT[[0, 1, 2, 3]]
    assert mAP(S[:4], target) == pytest.approx(68.75)
    assert mAP(S[:4], np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])) == pytest.approx(70.83, 1e-4)
    assert average_performance(S, GT, thr=.3) == pytest.approx((31.25, 43.75, 36.46, 33.33, 42.86, 37.5), abs=1e-2)
    assert average_performance(S, GT, k=2) == pytest.approx((43.75, 50, 46.67, 40, 57.14, 47.06), abs=1e-2)


def test_tensors_arrays_and_rows_are_the_same():
    scores, labels = torch.tensor(S), torch.tensor(GT)
    assert mAP(scores, labels) == mAP(S, GT) == mAP(list(S), GT.tolist()) == mAP(scores, GT)
    assert average_performance(list(scores), labels, k=1) == average_performance(S, GT, k=1)


def test_the_labels_given_stay_as_they_are():
    labels = GT.copy()
    average_performance(S, labels)
    np.testing.assert_array_equal(labels, GT)  # mmclassification sets -1 to 0 in the caller's array


def test_thr_and_k_are_settled_in_the_log(caplog):
    assert average_performance(S, GT) == average_performance(S, GT, thr=.5)
    assert 'neither thr nor k is given: thr=0.5' in caplog.text
    assert average_performance(S, GT, thr=.5, k=2) == average_performance(S, GT, thr=.5)
    assert 'k=2 is ignored' in caplog.text


@pytest.mark.parametrize('options', [dict(thr=.3), dict(k=2)], ids=str)
def test_counts_of_the_parts_add_up_to_those_of_the_whole(options):
    scores, labels = case(7)
    whole, parts = MultiLabelCounts(scores.shape[1], **options), []
    whole.update(torch.from_numpy(scores), torch.from_numpy(labels))
    for rows in np.array_split(np.arange(len(scores)), 3):
        parts.append(MultiLabelCounts(scores.shape[1], **options))
        parts[-1].update(torch.from_numpy(scores[rows]), torch.from_numpy(labels[rows]))
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert all(torch.equal(a, b) for a, b in zip(parts[0].tensors(), whole.tensors(), strict=True))
    assert parts[0].performance() == whole.performance()
    with pytest.raises(ValueError, match='do not add'):
        whole.merge(MultiLabelCounts(scores.shape[1], thr=.9))


def test_metrics_of_both_kinds_in_one_call(caplog):
    """mmclassification refuses the whole call."""
    every = [*single.METRICS, *METRICS]
    got = evaluate(S, GT, every, dict(topk=1, thr=.3))
    assert list(got) == list(METRICS) and got['CP'] == pytest.approx(31.25)
    assert ('metrics left out: accuracy, precision, recall, f1_score, support, which need a data set with one label a '
            'sample') in caplog.text
    caplog.clear()
    got = single.evaluate(S[:, :3], np.array([0, 1, 2, 0, 0]), every, dict(topk=1))
    assert list(got) == ['accuracy', 'support', 'precision', 'recall', 'f1_score']
    assert 'metrics left out: mAP, CP, CR, CF1, OP, OR, OF1, which need a multi-label data set' in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize(('make', 'error', 'text'), [
    (lambda: evaluate(S, GT, 'accuracy'), ValueError, r"\['accuracy'\] is not supported.*mAP.*one label a sample"),
    (lambda: evaluate(S, GT, ['mAP', 'map']), ValueError, r"\['map'\] is not supported"),
    (lambda: evaluate(S, GT, 'CP', dict(thrs=.5)), None, ''),
    (lambda: evaluate(S, GT, 'CP', dict(thrr=.5)), TypeError, "no 'thrr'.*thr"),
    (lambda: evaluate(S, GT[:-1]), ValueError, r'\(5, 4\) and labels \(4, 4\)'),
    (lambda: mAP(S[:, :3], GT), ValueError, 'num_classes'),
    (lambda: average_performance(S, GT[:, :1]), ValueError, r'labels \(5, 1\)'),
    (lambda: mAP(S, GT * 2), ValueError, 'a label is -2; known: 1'),
    (lambda: evaluate([], GT), ValueError, 'no results to evaluate'),
    (lambda: average_performance(S, GT, k=0), ValueError, 'k=0'),
])
def test_what_makes_no_sense_is_named(make, error, text):
    if error is None:
        assert make()
        return
    with pytest.raises(error, match=text):
        make()


def test_single_label_equal_to_mmclassification_on_1000_cases_each(recwarn):
    theirs = pytest.importorskip('mmcls.core.evaluation')
    reference = pytest.importorskip('mmcls.models.losses.accuracy').accuracy
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        n, c = int(rng.integers(1, 25)), int(rng.integers(2, 8))
        scores = ((rng.permutation(n * c).reshape(n, c) + 0.5) / (n * c)).astype(np.float32)
        labels, thr, mode = rng.integers(0, c, n), (0., .2, .7)[seed % 3], ('macro', 'none')[seed % 2]
        k = int(rng.integers(1, c + 1))
        assert single.accuracy(scores, labels, k, thr).item() == reference(scores, labels, k, thr).item()
        expected = theirs.precision_recall_f1(scores, labels, mode, thr)
        for got, value in zip(evaluation.precision_recall_f1(scores, labels, mode, thr), expected, strict=True):
            np.testing.assert_array_equal(got, value)
        np.testing.assert_array_equal(evaluation.support(scores, labels, mode), theirs.support(scores, labels, mode))
