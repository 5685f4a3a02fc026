"""The functions of mmclassification's `core.evaluation`, for whoever has scores and labels and no data set.

In: scores (N, C) and labels, (N,) or, where a sample has several, (N, C) of 1, 0 or -1 (difficult). Out: percent, with
the bits of mmclassification 0.x.
"""
from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from .. import multi_label_metrics as multi
from ..metrics import Array, Thresholds, Value

_log = logging.getLogger(__name__)


def precision_recall_f1(pred: Array, target: Array, average_mode: str = 'macro',
                        thrs: Thresholds = 0.) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 of the top-1 predictions, in percent.

    A prediction whose score is <= thr is none. Per class P = TP / predicted, R = TP / labelled and
    F1 = 2PR / (P + R), each 0 where its denominator is.

    Args:
        average_mode: 'macro', the unweighted mean over all C classes (of F1 too; absent ones 0), or 'none'.

    Returns:
        three times a float ('macro') or float64 array (C,) ('none'); a list of those if thrs is a sequence.

    Raises:
        ValueError: no samples, a label outside 0..C-1, or another average_mode.
    """
    thresholds, one_thr = metrics._several(thrs, 'thrs')
    counts = metrics._count(*metrics._pair(pred, target), thrs=thresholds)
    precisions, recalls, f1s = ([metrics._average(row, average_mode) for row in per_class]
                                for per_class in counts.precision_recall_f1())
    return (precisions[0], recalls[0], f1s[0]) if one_thr else (precisions, recalls, f1s)


def precision(pred: Array, target: Array, average_mode: str = 'macro', thrs: Thresholds = 0.) -> Any:
    """The first of `precision_recall_f1`."""
    return precision_recall_f1(pred, target, average_mode, thrs)[0]


def recall(pred: Array, target: Array, average_mode: str = 'macro', thrs: Thresholds = 0.) -> Any:
    """The second of `precision_recall_f1`."""
    return precision_recall_f1(pred, target, average_mode, thrs)[1]


def f1_score(pred: Array, target: Array, average_mode: str = 'macro', thrs: Thresholds = 0.) -> Any:
    """The third of `precision_recall_f1`."""
    return precision_recall_f1(pred, target, average_mode, thrs)[2]


def support(pred: Array, target: Array, average_mode: str = 'macro') -> Value:
    """Samples per class, int64 (C,) ('none'), or of all classes together, float ('macro': a sum, no mean)."""
    return metrics._average(metrics._count(*metrics._pair(pred, target)).labelled, average_mode, Tensor.sum)


def calculate_confusion_matrix(pred: Array, target: Array) -> Tensor:
    """int64 (C, C), rows the labels, columns the top-1 predictions. Matrices of two batches add.

    Raises:
        ValueError: no samples, or a label outside 0..C-1.
    """
    scores, labels = metrics._pair(pred, target)
    class_count = scores.shape[1]
    metrics._check_labels(labels, class_count)
    cells = labels * class_count + scores.argmax(1)
    return torch.bincount(cells, minlength=class_count ** 2).view(class_count, class_count)


def average_precision(pred: Array, target: Array) -> float:
    """Of one class, 0..1: the mean over its positives of the precision down to each, best score first.

    Args:
        pred: scores (N,); equal ones stay in the order of the data, NaN comes last.
        target: 1, 0, or -1 for difficult samples, which are left out. Without positives the result is 0.
    """
    scores, labels = multi._pair(np.asarray(pred)[:, None], np.asarray(target)[:, None])
    return float(multi._average_precisions(scores, labels)[0])


def mAP(pred: Array, target: Array) -> float:  # noqa: N802 (its name in mmclassification)
    """Mean over all C classes of `average_precision`, in percent; pred and target (N, C).

    Raises:
        ValueError: no samples, different shapes, or a label other than 1, 0 and -1.
    """
    return float(multi._average_precisions(*multi._pair(pred, target)).mean() * 100.)


def average_performance(pred: Array, target: Array, thr: float | None = None,
                        k: int | None = None) -> tuple[float, ...]:
    """(CP, CR, CF1, OP, OR, OF1) in percent; see `MultiLabelCounts` for `thr`, `k` and labels of -1.

    With neither, thr is 0.5; with both, k is ignored; either is said in the log. Raises as `mAP`.
    """
    if thr is None and k is None:
        _log.warning('neither thr nor k is given: thr=%s', multi.DEFAULT_THR)
    return tuple(multi._count(*multi._pair(pred, target), thr, k).performance().values())
