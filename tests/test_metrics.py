"""Metrics: equal to mmclassification on random cases, right by hand, additive, and clear about bad input."""
from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from workspace_lib import metrics
from workspace_lib.metrics import METRICS, SingleLabelCounts, accuracy, evaluate
from workspace_lib.tools import evaluation

S = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]], dtype=np.float32)
GT = np.array([0, 2, 2, 1])


# The original's own use of numpy, not ours.
pytestmark = pytest.mark.filterwarnings('ignore:__array_wrap__:DeprecationWarning')


def random_case(seed: int, classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(1, 60)), classes or int(rng.integers(5, 30))
    scores = rng.standard_normal((n, c)).astype(np.float32)
    if seed % 2:
        scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    if seed % 7 == 0:
        scores = scores.astype(np.float64)
    return scores, rng.integers(0, c, n)


def same(a: object, b: object) -> bool:
    return type(a) is type(b) and np.array_equal(np.asarray(a), np.asarray(b))


OPTION_SETS = [
    None, {}, {'topk': 1}, {'topk': (1,)}, {'topk': (3, 1)}, {'thrs': 0.1}, {'thrs': (0.0, 0.1, 0.5)},
    {'thrs': None}, {'topk': 2, 'thrs': (0.1,)}, {'average_mode': 'none'},
    {'average_mode': 'none', 'thrs': (0.05, 0.3), 'topk': (1, 2)},
]


@pytest.mark.parametrize('options', OPTION_SETS, ids=str)
def test_evaluate_equals_mmclassification(options):
    pytest.importorskip('mmcls')
    from mmcls.datasets import BaseDataset

    class Data(BaseDataset):
        def __init__(self, labels):
            self.labels = labels

        def load_annotations(self):
            return []

        def get_gt_labels(self):
            return self.labels

    for seed in range(40):
        scores, labels = random_case(seed)
        wanted = [m for i, m in enumerate(METRICS) if (seed + 1) >> i & 1] or list(METRICS)
        theirs = Data(labels).evaluate(list(scores), wanted, options)
        ours = evaluate(list(scores), labels, wanted, options)
        assert list(ours) == list(theirs)
        assert all(same(ours[key], theirs[key]) for key in theirs), (seed, ours, theirs)


@pytest.mark.parametrize('topk', [1, 3, (1,), (1, 4)])
@pytest.mark.parametrize('thrs', [0., 0.2, (0.1,), (0., 0.3)])
def test_accuracy_equals_mmclassification(topk, thrs):
    reference = pytest.importorskip('mmcls.models.losses.accuracy').accuracy
    for seed in range(20):
        scores, labels = (torch.from_numpy(x) for x in random_case(seed))
        ours, theirs = accuracy(scores, labels, topk, thrs), reference(scores, labels, topk, thrs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['precision', 'recall', 'f1_score', 'support', 'calculate_confusion_matrix'])
def test_functions_equal_mmclassification(name):
    reference = getattr(pytest.importorskip('mmcls.core.evaluation'), name)
    ours = getattr(evaluation, name)
    for seed in range(40):
        scores, labels = random_case(seed)
        for mode in [] if name == 'calculate_confusion_matrix' else ['macro', 'none']:
            assert same(ours(scores, labels, mode), reference(scores, labels, mode))
        if name in ('precision', 'recall', 'f1_score'):
            several = ours(scores, labels, thrs=(0.1, 0.4)), reference(scores, labels, thrs=(0.1, 0.4))
            assert all(same(a, b) for a, b in zip(*several, strict=True))
        if name == 'calculate_confusion_matrix':
            assert torch.equal(ours(scores, labels), reference(scores, labels))


def test_values_by_hand():
    got = evaluate(S, GT, METRICS, {'topk': (1, 2), 'average_mode': 'none'})
    assert list(got) == ['accuracy_top-1', 'accuracy_top-2', 'support', 'precision', 'recall', 'f1_score']
    assert got['accuracy_top-1'] == 75 and got['accuracy_top-2'] == 100
    assert got['support'].tolist() == [1, 1, 2] and got['support'].dtype == np.int64
    assert got['precision'].tolist() == [100, 50, 100]
    assert got['recall'].tolist() == [100, 100, 50]
    np.testing.assert_allclose(got['f1_score'], [100, 200 / 3, 200 / 3], rtol=1e-12)


def test_macro_averages_over_classes_that_never_occur():
    got = evaluate(np.eye(4)[[0, 1]], [0, 1], ['precision', 'recall', 'f1_score', 'support'])
    assert got == {'support': 2.0, 'precision': 50.0, 'recall': 50.0, 'f1_score': 50.0}


def test_thresholds_are_strict():
    got = evaluate([[0.5, 0.25]], [0], ['accuracy', 'precision'], {'topk': 1, 'thrs': [0.25, 0.5]})
    assert got == {'accuracy_thr_0.25': 100.0, 'accuracy_thr_0.50': 0.0,
                   'precision_thr_0.25': 50.0, 'precision_thr_0.50': 0.0}


def test_negative_logits_never_count_at_the_default_threshold():
    assert evaluate([[-1., -2.]], [0], metric_options={'topk': 1}) == {'accuracy': 0.0}
    assert evaluate([[-1., -2.]], [0], metric_options={'topk': 1, 'thrs': -5.}) == {'accuracy': 100.0}


def test_none_among_thresholds_is_no_threshold():
    got = evaluate([[-1., -2.]], [0], ['accuracy', 'recall'], {'topk': 1, 'thrs': (None, 0.)})
    assert got == {'accuracy_no_thr': 100.0, 'accuracy_thr_0.00': 0.0,
                   'recall_no_thr': 50.0, 'recall_thr_0.00': 0.0}


def test_close_thresholds_keep_keys_of_their_own():
    got = evaluate(S, GT, metric_options={'topk': 1, 'thrs': (0.001, 0.002)})
    assert list(got) == ['accuracy_thr_0.001', 'accuracy_thr_0.002']


def test_ties_go_to_the_lower_class_index():
    tied = np.full((3, 3), 0.5, dtype=np.float32)
    got = evaluate(tied, [0, 1, 2], ['accuracy', 'recall'], {'topk': (1, 2, 3), 'average_mode': 'none'})
    assert [got[f'accuracy_top-{k}'] for k in (1, 2, 3)] == pytest.approx([100 / 3, 200 / 3, 100])
    assert got['recall'].tolist() == [100, 0, 0]


def test_nan_label_score_is_wrong_and_nan_elsewhere_ranks_first():
    nan = float('nan')
    assert accuracy(torch.tensor([[nan, 0.9]]), torch.tensor([0])).item() == 0
    assert accuracy(torch.tensor([[nan, 0.9]]), torch.tensor([1])).item() == 0
    assert accuracy(torch.tensor([[nan, 0.9]]), torch.tensor([1]), topk=2).item() == 100


def test_nan_top_score_still_predicts_its_class():
    scores = np.array([[float('nan'), 0.9]])
    assert evaluation.recall(scores, np.array([0]), 'none').tolist() == [100, 0]


def test_confusion_matrix_rows_are_labels():
    assert evaluation.calculate_confusion_matrix(S, GT).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize('bounds', [(7,), (1, 2, 30), (0, 16, 16)])
def test_counts_add_to_the_same_numbers(bounds):
    scores, labels = torch.randn(50, 9), torch.randint(0, 9, (50,))
    whole = SingleLabelCounts(9, (1, 5), (0., None))
    whole.update(scores, labels)
    total = SingleLabelCounts(9, (1, 5), (0., None))
    for part, part_labels in zip(scores.tensor_split(bounds), labels.tensor_split(bounds), strict=True):
        counts = SingleLabelCounts(9, (1, 5), (0., None))
        counts.update(part, part_labels)
        total.merge(counts)
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors(), total.tensors(), strict=True))
    assert torch.equal(whole.accuracy(), total.accuracy())


def test_counts_of_different_topk_do_not_merge():
    with pytest.raises(ValueError, match='do not add'):
        SingleLabelCounts(9, (1,)).merge(SingleLabelCounts(9, (1, 5)))


def test_evaluation_in_batches_equals_evaluation_at_once(monkeypatch):
    scores, labels = random_case(3)
    expected = evaluate(scores, labels, METRICS)
    monkeypatch.setattr(metrics, '_BATCH', 4)
    assert evaluate(scores, labels, METRICS) == expected


def test_accepts_tensors_arrays_and_lists_of_either():
    for results in (S, torch.from_numpy(S), list(S), list(torch.from_numpy(S)), S.tolist()):
        assert evaluate(results, GT.tolist(), metric_options={'topk': 1}) == {'accuracy': 75.0}


def test_lists_are_as_good_as_tuples():
    assert evaluate(S, GT, metric_options={'topk': [1, 2], 'thrs': [0.1]}) == \
        evaluate(S, GT, metric_options={'topk': (1, 2), 'thrs': (0.1,)})
    assert len(accuracy(torch.from_numpy(S), torch.from_numpy(GT), topk=[1, 2])) == 2


def test_default_topk_leaves_out_what_few_classes_cannot_have(caplog):
    caplog.set_level(logging.INFO, 'workspace_lib.metrics')
    assert list(evaluate(S, GT)) == ['accuracy_top-1']
    assert 'top-[5] left out, there are only 3 classes' in caplog.text


def test_explicit_topk_beyond_the_classes_is_an_error():
    with pytest.raises(ValueError, match='topk=5 is impossible with 3 classes'):
        evaluate(S, GT, metric_options={'topk': (1, 5)})
    with pytest.raises(ValueError, match='topk=0'):
        accuracy(torch.from_numpy(S), torch.from_numpy(GT), topk=0)


def test_topk_does_not_matter_where_accuracy_is_not_asked_for():
    assert evaluate(S, GT, 'support', {'topk': (1, 5)}) == {'support': 4.0}


@pytest.mark.parametrize('results', [[], np.zeros((0, 3), np.float32)])
def test_empty_results_are_an_error(results):
    with pytest.raises(ValueError, match='no results to evaluate'):
        evaluate(results, [])


def test_accuracy_of_nothing_is_an_error():
    with pytest.raises(ValueError, match='no results'):
        accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_length_mismatch_names_both_lengths():
    with pytest.raises(ValueError, match='4 results for 3 labels'):
        evaluate(S, GT[:3])


@pytest.mark.parametrize('label', [3, -1])
@pytest.mark.parametrize('metric', METRICS)
def test_label_out_of_range_names_sample_and_label(metric, label, monkeypatch):
    monkeypatch.setattr(metrics, '_BATCH', 2)
    with pytest.raises(ValueError, match=rf'label {label} of sample 3 is out of range.* 3 classes, 0 to 2'):
        evaluate(S, [0, 1, 2, label], metric)


def test_accuracy_in_training_counts_an_ignored_label_as_wrong():
    assert accuracy(torch.eye(3)[[0, 1]], torch.tensor([0, -1])).item() == 50


def test_fewer_scores_than_classes_is_an_error():
    with pytest.raises(ValueError, match='holds 3 scores, but the data set has 5 classes; set num_classes=5'):
        evaluate(S, GT, class_count=5)


def test_unknown_metric_names_the_supported_and_where_the_others_belong():
    with pytest.raises(ValueError, match=r"\['mAP'\] is not supported.*accuracy.*multi-label data set"):
        evaluate(S, GT, ['mAP'])


def test_unknown_option_is_ignored_with_a_warning(caplog):
    assert evaluate(S, GT, metric_options={'topk': 1, 'thr': 0.9}) == {'accuracy': 75.0}
    assert "metric_options has no 'thr', ignored; known: topk, thrs, average_mode" in caplog.text


def test_unknown_average_mode():
    with pytest.raises(ValueError, match="average_mode='micro' is not supported"):
        evaluate(S, GT, 'precision', {'average_mode': 'micro'})


@pytest.mark.parametrize('options', [{'topk': '1'}, {'topk': ()}, {'thrs': 'a'}])
def test_options_of_a_wrong_type(options):
    with pytest.raises(TypeError, match=f'{next(iter(options))} should be a number or a non-empty tuple'):
        evaluate(S, GT, metric_options=options)
