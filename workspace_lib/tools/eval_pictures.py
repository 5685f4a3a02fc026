"""Pictures of an evaluation for TensorBoard, after each of a training.

In: a data set and the scores of its images. Out: pictures by name.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..log_writers import TensorboardLoggerHook
from ..runner import EpochBasedRunner
from .mistakes import confusion_plot
from .plots import worst_mistakes


def show_evaluations(runner: EpochBasedRunner) -> None:
    """Let each TensorBoard hook of a training draw its evaluations."""
    for hook in runner.hooks:
        if isinstance(hook, TensorboardLoggerHook):
            hook.pictures = evaluation_pictures


def evaluation_pictures(dataset: Any, results: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """``confusion matrix`` (of many classes, the part that is confused most) and ``worst mistakes``.

    Returns:
        uint8 RGB (H, W, 3) by name; none for a data set with several labels an image.
    """
    labels = dataset.get_gt_labels()
    if labels.ndim > 1:
        return {}
    return {'confusion matrix': confusion_plot(np.stack(results), labels, dataset.CLASSES).pixels(),
            'worst mistakes': worst_mistakes(dataset, results).pixels()}
