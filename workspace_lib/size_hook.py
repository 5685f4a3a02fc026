"""A training that begins on smaller images than it ends on: less to compute while the weights are still coarse.

In: batches of the largest size. Out: the model sees them resized, on their device.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.functional import interpolate

from .hooks import Hook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner


@HOOKS.register_module()
class ProgressiveSizeHook(Hook):
    """Resizes each batch of training to a side that grows over the epochs; images of evaluation stay as they are.

    The rule of ffcv-imagenet (train_imagenet.py, get_resolution): `start` pixels up to epoch `begin` (from 0), `end`
    from epoch `until` on, in between on a line, rounded to a multiple of `step`. The loader makes images of `end`
    pixels all the while, so the device has less to do, and the workers have not. Bilinear without antialiasing.
    Images are square: others would be squashed, and raise ValueError.
    """

    def __init__(self, start: int, end: int, begin: int, until: int, step: int = 32) -> None:
        if not (0 < start <= end and 0 <= begin < until and step > 0):
            raise ValueError(f'ProgressiveSizeHook takes start <= end and begin < until, but got {start=}, {end=}, '
                             f'{begin=}, {until=}, {step=}')
        self.start, self.end, self.begin, self.until, self.step = start, end, begin, until, step
        self.now = end

    def size(self, epoch: int) -> int:
        """Side of the images in an epoch, counted from 0."""
        if not self.begin < epoch < self.until:
            return self.start if epoch <= self.begin else self.end
        return round((self.start + (self.end - self.start) * (epoch - self.begin) / (self.until - self.begin))
                     / self.step) * self.step

    def before_run(self, runner: EpochBasedRunner) -> None:
        runner.cleanup.callback(runner.model.register_forward_pre_hook(self._resize, with_kwargs=True).remove)

    def before_train_iter(self, runner: EpochBasedRunner) -> None:
        self.now = self.size(runner.epoch)

    def _resize(self, model: Any, args: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        height, width = batch['img'].shape[2:]
        if model.training and height != width:
            raise ValueError(f'ProgressiveSizeHook takes square images, but a batch has {height}x{width} pixels; crop '
                             'them square in data.train.pipeline, or leave the hook out of custom_hooks')
        if model.training and self.now < height:
            batch = {**batch, 'img': interpolate(batch['img'], (self.now, self.now), mode='bilinear')}
        return args, batch
