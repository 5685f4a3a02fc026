"""Metrics where an image may have any number of classes: mAP, and precision, recall and F1 by class (C) or overall (O).

In: scores (N, C) and labels (N, C) of 1, 0 or -1 (difficult). Out: percent, with the keys and bits of mmclassification.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config.merge import near_names
from .metrics import METRICS as SINGLE_LABEL_METRICS
from .metrics import MULTI_LABEL_METRICS as METRICS
from .metrics import OPTIONS as SINGLE_LABEL_OPTIONS
from .metrics import Counts, applicable

OPTIONS = ('thr', 'k')
DEFAULT_THR = 0.5
_EPS = float(np.finfo(np.float32).eps)  # what the original divides by in place of 0
_log = logging.getLogger(__name__)


class MultiLabelCounts(Counts):
    """What CP, CR, CF1, OP, OR and OF1 are made of; merged, two of them equal all their samples counted at once.

    All int64: `samples` (), and by class (C,) `predicted`, `labelled` and `hits`, which are both. A class is predicted
    where its score is >= `thr`, or, with `k`, where fewer than k classes rank before it (equal scores rank by class
    index, NaN last and never >= thr). Difficult labels count as 0.
    """

    def __init__(self, class_count: int, thr: float | None = None, k: int | None = None,
                 device: torch.device | str = 'cpu') -> None:
        if k is not None and k < 1:
            raise ValueError(f'k={k} predicts nothing; it starts at 1')
        if thr is not None and k is not None:
            _log.warning('both thr and k are given: k=%s is ignored', k)
        self.class_count, self.k = class_count, k if thr is None else None
        self.thr = DEFAULT_THR if thr is None else thr
        self.samples = torch.zeros((), dtype=torch.int64, device=device)
        self.predicted, self.labelled, self.hits = torch.zeros(3, class_count, dtype=torch.int64, device=device)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores (n, C) and labels (n, C)."""
        if self.k is None:
            predicted = scores >= self.thr
        else:
            order = (-scores).argsort(dim=1, stable=True)[:, :self.k]
            predicted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
        positive = labels == 1
        self.samples += len(scores)
        for count, true in ((self.predicted, predicted), (self.labelled, positive), (self.hits, predicted & positive)):
            count += true.sum(0)

    def performance(self) -> dict[str, float]:
        """CP, CR, CF1, OP, OR and OF1; a class that is never predicted (labelled) has precision (recall) 0."""
        hits, predicted, labelled = (count.cpu().numpy() for count in (self.hits, self.predicted, self.labelled))
        cp, cr = ((hits / np.maximum(count, _EPS)).mean() * 100. for count in (predicted, labelled))
        op, or_ = (hits.sum() / np.maximum(count.sum(), _EPS) * 100. for count in (predicted, labelled))
        values = cp, cr, _f1(cp, cr), op, or_, _f1(op, or_)
        return dict(zip(METRICS[1:], map(float, values), strict=True))


def evaluate(results: Any, gt_labels: Any, metric: str | Iterable[str] = 'mAP',
             metric_options: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Several metrics of a data set, as `dataset.evaluate` gives them.

    Args:
        results: scores, (N, C) or a sequence of N vectors (C,). gt_labels: (N, C).
        metric: of `METRICS`, one or several. Those of a single-label data set are left out, with a warning.
        metric_options: `thr` (default 0.5) or `k`, see `MultiLabelCounts`.

    Returns:
        Those asked for, in the order of `METRICS`, in percent.

    Raises:
        ValueError: an unknown metric, or none that applies; no samples, different shapes, or a label other than 1, 0
            and -1.
        TypeError: an unknown option.
    """
    wanted = applicable(metric, METRICS, SINGLE_LABEL_METRICS, 'a data set with one label a sample')
    options = {key: value for key, value in (metric_options or {}).items() if key not in SINGLE_LABEL_OPTIONS}
    for key in options.keys() - set(OPTIONS):
        raise TypeError(f'metric_options has no {key!r}{near_names(key, OPTIONS)}; known: {", ".join(OPTIONS)}')
    scores, labels = _pair(results, gt_labels)
    values = {'mAP': float(_average_precisions(scores, labels).mean() * 100.)} if 'mAP' in wanted else {}
    if wanted != {'mAP'}:
        values |= _count(scores, labels, **options).performance()
    return {name: values[name] for name in METRICS if name in wanted}


def _average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C,), 0..1. By rows of one class each, so that sums have the order, and the rounding, of one class by itself."""
    order = np.argsort(-scores.T, axis=1, kind='stable')
    ranked = np.take_along_axis(labels.T, order, axis=1)
    positive = ranked == 1
    found, seen = np.cumsum(positive, 1), np.cumsum(ranked != -1, 1)
    precision = found * positive / np.maximum(seen, _EPS)
    return precision.sum(1) / np.maximum(found[:, -1], _EPS)


def _count(scores: np.ndarray, labels: np.ndarray, thr: float | None = None, k: int | None = None) -> MultiLabelCounts:
    counts = MultiLabelCounts(scores.shape[1], thr, k)
    counts.update(*(torch.from_numpy(np.ascontiguousarray(values)) for values in (scores, labels)))
    return counts


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / max(precision + recall, _EPS)


def _pair(pred: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Arrays (N, C), N > 0, from tensors, arrays or sequences of rows."""
    if len(pred) == 0:
        raise ValueError('no results to evaluate: the data set, or the split that was tested, is empty')
    scores, labels = (np.vstack([row.detach().cpu().numpy() if isinstance(row, Tensor) else row for row in rows])
                      if not isinstance(rows, np.ndarray) else rows for rows in (pred, target))
    if scores.shape != labels.shape:
        raise ValueError(f'scores have shape {scores.shape} and labels {labels.shape}; both should be '
                         '(samples, classes): is num_classes in the head that of the data set?')
    if len(odd := np.setdiff1d(labels, (1, 0, -1))):
        raise ValueError(f'a label is {odd[0]}; known: 1 (present), 0 (absent), -1 (difficult)')
    return scores, labels
