"""Single-label classification metrics, kept as counts that add over batches and ranks.
In: scores (N, C) and labels (N,). Out: percent, with the keys, order and bits of mmclassification 0.x."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

METRICS = ('accuracy', 'precision', 'recall', 'f1_score', 'support')
MULTI_LABEL_METRICS = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
OPTIONS = ('topk', 'thrs', 'average_mode')
DEFAULT_TOPK = (1, 5)
_BATCH = 1024  # rows counted at once: keeps the temporaries of a 50,000 x 1,000 result to a few MB
_log = logging.getLogger(__name__)

Array = Tensor | np.ndarray
Threshold = float | None  # None: any score will do
Thresholds = float | Sequence[Threshold]
Value = float | np.ndarray


class Counts:
    """Tensors of counts, and the settings by which was counted; two of the same settings add."""

    def tensors(self) -> tuple[Tensor, ...]:
        """The counts themselves, to be summed in place over ranks (`all_reduce`)."""
        return tuple(value for value in vars(self).values() if isinstance(value, Tensor))

    def merge(self, other: Self) -> None:
        """Add the counts of another part of the same data set."""
        mine, theirs = ({name: value for name, value in vars(counts).items() if not isinstance(value, Tensor)}
                        for counts in (self, other))
        if mine != theirs:
            raise ValueError(f'counts of different settings do not add: {mine} and {theirs}')
        for ours, more in zip(self.tensors(), other.tensors(), strict=True):
            ours += more.to(ours.device)


class SingleLabelCounts(Counts):
    """What every single-label metric is made of; merged, two of them equal all their samples counted at once.

    All counts are int64: `samples` (), `correct` (K, T), `predicted` and `hits` (T, C), `labelled` (C,) for
    K = len(topk), T = len(thrs). A sample is *correct* for k if fewer than k classes rank before its label
    (equal scores rank by class index) and the label's score > thr. A class is *predicted* where it is the
    argmax and its score is not <= thr, and a *hit* where it is also the label. NaN ranks before every number:
    as a label's score it is never correct, as the top score it is predicted.
    """

    def __init__(self, class_count: int, topk: Sequence[int] = (1,), thrs: Sequence[Threshold] = (0.,),
                 device: torch.device | str = 'cpu') -> None:
        self.class_count, self.topk, self.thrs = class_count, _checked_topk(topk, class_count), tuple(thrs)
        self.samples = torch.zeros((), dtype=torch.int64, device=device)
        self.correct = torch.zeros(len(self.topk), len(self.thrs), dtype=torch.int64, device=device)
        self.predicted, self.hits = torch.zeros(2, len(self.thrs), class_count, dtype=torch.int64, device=device)
        self.labelled = torch.zeros(class_count, dtype=torch.int64, device=device)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores (n, C) and int labels (n,). On a GPU this is a sync point: the labels are checked.

        Raises:
            ValueError: a label outside 0..C-1, or shapes that do not match; nothing has been added then.
        """
        expected = (len(labels), self.class_count)
        if scores.shape != expected:
            raise ValueError(f'scores have shape {tuple(scores.shape)}; expected {expected}')
        _check_labels(labels, self.class_count, first=int(self.samples))
        self.samples += len(scores)
        self.correct += _count_correct(scores, labels, self.topk, self.thrs)
        self.labelled += torch.bincount(labels, minlength=self.class_count)
        top = scores.argmax(1)
        top_score = scores.gather(1, top[:, None])[:, 0]
        for row, thr in enumerate(self.thrs):
            positive = torch.ones_like(top, dtype=torch.bool) if thr is None else ~(top_score <= thr)
            self.predicted[row] += torch.bincount(top[positive], minlength=self.class_count)
            self.hits[row] += torch.bincount(top[positive & (top == labels)], minlength=self.class_count)

    def accuracy(self) -> Tensor:
        """(K, T) float32 percent."""
        return _percent(self.correct, int(self.samples))

    def precision_recall_f1(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each (T, C) float64 percent; 0 for a class that never occurs."""
        correct = self.hits.double()
        precision = correct / self.predicted.clamp(min=1) * 100
        recall = correct / self.labelled.clamp(min=1) * 100
        eps = torch.finfo(torch.float32).eps
        return precision, recall, 2 * precision * recall / (precision + recall).clamp(min=eps)


def accuracy(pred: Array, target: Array, topk: int | Sequence[int] = 1, thrs: Thresholds = 0.) -> Any:
    """Top-k accuracy in percent, on the device of `pred`; free of sync points, so fit for a training step.

    Args:
        pred: scores (N, C). target: int labels (N,) or (N, 1); one outside 0..C-1 counts as wrong.
        topk, thrs: a number or several; a label counts only if its score is > thr, so logits below 0 do not
            at the default 0. `None` among several thrs means no threshold.

    Returns:
        float32 tensor (1,); a list over topk or over thrs if one of them is a sequence; a list over topk of
        lists over thrs if both are.

    Raises:
        ValueError: no samples, or a k that is not in 1..C.
    """
    ks, one_k = _several(topk, 'topk')
    thresholds, one_thr = _several(thrs, 'thrs')
    scores, labels = _pair(pred, target)
    correct = _count_correct(scores, labels, _checked_topk(ks, scores.shape[1]), thresholds)
    table = [[value.reshape(1) for value in row] for row in _percent(correct, len(scores))]
    rows = [row[0] for row in table] if one_thr else table
    return rows[0] if one_k else rows


def evaluate(results: Any, gt_labels: Any, metric: str | Iterable[str] = 'accuracy',
             metric_options: Mapping[str, Any] | None = None, class_count: int | None = None) -> dict[str, Value]:
    """All metrics of a data set, as `dataset.evaluate` gives them.

    Args:
        results: scores, (N, C) or a sequence of N vectors (C,). gt_labels: N int labels.
        metric: of `METRICS`, one or several. Those of a multi-label data set are left out, with a warning.
        metric_options: `topk` (an int, or several: default 1 and, where there are as many classes, 5), `thrs`
            (a number or several: default 0), `average_mode` ('macro' or 'none').
        class_count: of the data set; C may not be less.

    Returns:
        In this order `accuracy` (int topk) or `accuracy_top-{k}`, `support`, `precision`, `recall`,
        `f1_score`; for several thrs all but support end in `_thr_{thr:.2f}`. Percent, but support; for 'none'
        arrays (C,).

    Raises:
        ValueError: another metric or average_mode, no results, not as many as labels, a label or k that is out
            of range.
    """
    wanted = applicable(metric, METRICS, MULTI_LABEL_METRICS, 'a multi-label data set')
    options = metric_options or {}
    for key in set(options) - set(OPTIONS):
        _log.warning('metric_options has no %r, ignored; known: %s', key, ', '.join(OPTIONS))
    scores, labels = _pair(results, gt_labels)
    if class_count is not None and scores.shape[1] < class_count:
        raise ValueError(f'each result holds {scores.shape[1]} scores, but the data set has {class_count} classes; '
                         f'set num_classes={class_count} in the head')
    topk: Any = 1
    if 'accuracy' in wanted:
        topk = options['topk'] if 'topk' in options else _possible(DEFAULT_TOPK, scores.shape[1])
    ks, one_k = _several(topk, 'topk')
    thrs, one_thr = _several(0. if options.get('thrs') is None else options['thrs'], 'thrs')
    counts, mode = _count(scores, labels, ks, thrs), options.get('average_mode', 'macro')
    endings = [''] if one_thr else _endings(thrs)
    values: dict[str, Value] = {}

    def put(key: str, row: Iterable[Value]) -> None:
        values.update({key + ending: value for ending, value in zip(endings, row, strict=True)})

    if 'accuracy' in wanted:
        for k, row in zip(ks, counts.accuracy().tolist(), strict=True):
            put('accuracy' if one_k else f'accuracy_top-{k}', row)
    if 'support' in wanted:
        values['support'] = _average(counts.labelled, mode, Tensor.sum)
    for key, per_class in zip(('precision', 'recall', 'f1_score'), counts.precision_recall_f1(), strict=True):
        if key in wanted:
            put(key, [_average(row, mode) for row in per_class])
    return values


def _count(scores: Tensor, labels: Tensor, topk: Sequence[int] = (1,),
           thrs: Sequence[Threshold] = (0.,)) -> SingleLabelCounts:
    """Count a whole result set, batch by batch."""
    counts = SingleLabelCounts(scores.shape[1], topk, thrs, scores.device)
    for batch, batch_labels in zip(scores.split(_BATCH), labels.split(_BATCH), strict=True):
        counts.update(batch, batch_labels)
    return counts


def _count_correct(scores: Tensor, labels: Tensor, topk: Sequence[int], thrs: Sequence[Threshold]) -> Tensor:
    """(K, T) int64. Counts who ranks before the label instead of sorting: how a device breaks ties is no matter.
    `~(a <= b)` rather than `a > b`, so that NaN ranks first."""
    class_count = scores.shape[1]
    scores = scores.detach().float()
    known = (labels >= 0) & (labels < class_count)
    column = labels.clamp(0, class_count - 1)[:, None]
    own = scores.gather(1, column)
    earlier = torch.arange(class_count, device=scores.device) < column
    rank = (~(scores <= own) | ((scores == own) & earlier)).sum(1)
    rank = torch.where(known, rank, class_count)
    passed = [torch.ones_like(known) if thr is None else own[:, 0] > thr for thr in thrs]
    return torch.stack([torch.stack([((rank < k) & ok).sum() for ok in passed]) for k in topk])


def _percent(count: Tensor, total: int) -> Tensor:
    """float32, multiplied in mmclassification's order: 2 of 3 is 66.66667175292969 there as here."""
    return count.float() * (100. / total)


def _average(per_class: Tensor, mode: str, total: Callable[[Tensor], Tensor] = Tensor.mean) -> Value:
    if mode not in ('macro', 'none'):
        raise ValueError(f"average_mode={mode!r} is not supported; choose 'macro' or 'none'")
    return float(total(per_class)) if mode == 'macro' else per_class.cpu().numpy()


def _several(value: Any, name: str) -> tuple[tuple[Any, ...], bool]:
    """(values, whether it was a single number)."""
    if isinstance(value, Number):
        return (value,), True
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0:
        return tuple(value), False
    raise TypeError(f'{name} should be a number or a non-empty tuple or list of numbers, but got {value!r}')


def _endings(thrs: Sequence[Threshold]) -> list[str]:
    """Two decimals, unless that would give two thresholds the same key."""
    endings = ['_no_thr' if thr is None else f'_thr_{thr:.2f}' for thr in thrs]
    if len(set(endings)) == len(set(thrs)):
        return endings
    return ['_no_thr' if thr is None else f'_thr_{thr:g}' for thr in thrs]


def _pair(pred: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Scores (N, C) and int64 labels (N,), N > 0, from tensors, arrays or sequences of rows."""
    if len(pred) == 0:
        raise ValueError('no results to evaluate: the data set, or the split that was tested, is empty')
    if not isinstance(pred, Tensor):
        pred = torch.from_numpy(pred if isinstance(pred, np.ndarray) else np.vstack([np.asarray(row) for row in pred]))
    if pred.ndim != 2:
        raise ValueError(f'scores have shape {tuple(pred.shape)}; expected (N, C)')
    labels = target if isinstance(target, Tensor) else torch.from_numpy(np.asarray(target, dtype=np.int64))
    labels = labels.detach().to(pred.device).flatten().long()
    if len(pred) != len(labels):
        raise ValueError(f'{len(pred)} results for {len(labels)} labels; they must be of the same length')
    return pred.detach(), labels


def _check_labels(labels: Tensor, class_count: int, first: int = 0) -> None:
    outside = ((labels < 0) | (labels >= class_count)).nonzero()
    if len(outside):
        index = int(outside[0])
        raise ValueError(f'label {int(labels[index])} of sample {first + index} is out of range: '
                         f'the scores are of {class_count} classes, 0 to {class_count - 1}')


def _checked_topk(topk: Sequence[int], class_count: int) -> tuple[int, ...]:
    for k in topk:
        if not 1 <= k <= class_count:
            raise ValueError(f'topk={k} is impossible with {class_count} classes; choose 1 to {class_count}')
    return tuple(topk)


def _possible(topk: Sequence[int], class_count: int) -> tuple[int, ...]:
    left_out = [k for k in topk if k > class_count]
    if left_out:
        _log.info('accuracy: top-%s left out, there are only %d classes', left_out, class_count)
    return tuple(k for k in topk if k <= class_count)


def applicable(metric: str | Iterable[str], own: Sequence[str], others: Sequence[str], their_kind: str) -> set[str]:
    """Those metrics asked for that are a data set's `own`; a warning names the `others`, which need `their_kind`.

    Raises:
        ValueError: an unknown metric, or only others.
    """
    wanted = {metric} if isinstance(metric, str) else set(metric)
    foreign = [name for name in others if name in wanted]
    unknown = sorted(wanted - {*own, *others}) or ([] if wanted & {*own} else foreign)
    if unknown:
        raise ValueError(f'metric {unknown} is not supported; supported are {list(own)} '
                         f'({", ".join(others)} need {their_kind})')
    if foreign:
        _log.warning('metrics left out: %s, which need %s', ', '.join(foreign), their_kind)
    return wanted & {*own}
