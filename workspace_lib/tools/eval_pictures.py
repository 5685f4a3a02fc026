"""Pictures of an evaluation for TensorBoard, after each of a training.

In: a data set and the scores of its images. Out: pictures by name.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..hooks import Hook
from ..log_writers import TensorboardLoggerHook
from ..runner import EpochBasedRunner
from .mistakes import confusion_plot
from .plots import worst_mistakes

Pictures = Callable[[Any, Sequence[np.ndarray]], dict[str, np.ndarray]]


class EvalPicturesHook(Hook):
    """Draws each evaluation of a training into the files of a TensorBoard hook.

    Args:
        board: where the pictures go.
        pictures: ``f(dataset, results)``, uint8 RGB (H, W, 3) by name.
    """

    def __init__(self, board: TensorboardLoggerHook, pictures: Pictures) -> None:
        self.board, self.pictures = board, pictures

    def draw(self, runner: EpochBasedRunner, dataset: Any, results: Sequence[np.ndarray]) -> None:
        """One picture that fails must not end a training."""
        if self.board.writer is None:
            return
        try:
            for name, picture in self.pictures(dataset, results).items():
                self.board.put(runner, 'add_image', f'val/{name}', picture, runner._done, dataformats='HWC')
        except Exception as error:
            runner.logger.warning('TensorBoard lacks pictures of this evaluation: %s: %s', type(error).__name__, error)


def show_evaluations(runner: EpochBasedRunner, pictures: Pictures | None = None) -> None:
    """Let each TensorBoard hook of a training show its evaluations: `pictures`, default `evaluation_pictures`."""
    for hook in [hook for hook in runner.hooks if isinstance(hook, TensorboardLoggerHook)]:
        runner.register_hook(EvalPicturesHook(hook, pictures or evaluation_pictures))


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
