"""Where the entries of a run's log go: the console and its file, JSON lines, TensorBoard.

In: what a `LoggerHook` collects. Out: files in ``work_dir``, in mmcv's formats, so that its log analysis reads them.
"""
from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import torch

from .log_hooks import LoggerHook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner


@HOOKS.register_module()
class TextLoggerHook(LoggerHook):
    """One line per entry through ``runner.logger``, and the same as JSON lines in ``<timestamp>.log.json``."""

    def before_run(self, runner: EpochBasedRunner) -> None:
        super().before_run(runner)
        self.json_file = runner.work_dir / f'{runner.timestamp}.log.json' if runner.work_dir else None
        self._append({key: value for key, value in runner.meta.items() if isinstance(value, str | int | float)}, runner)

    def write(self, runner: EpochBasedRunner, entry: dict[str, Any]) -> None:
        self._append({key: round(value, 5) if isinstance(value, float) and key != 'lr' else value
                      for key, value in entry.items()}, runner)
        rest = {key: value for key, value in entry.items() if key not in ('mode', 'epoch', 'iter', 'lr')}
        if entry['mode'] == 'train':
            left = datetime.timedelta(seconds=int(self.seconds_left(runner)))
            place = f'Epoch [{entry["epoch"]}][{entry["iter"]}/{len(runner.data_loader)}]' if self.by_epoch \
                else f'Iter [{entry["iter"]}/{runner.max_iters}]'
            runner.logger.info('%s  lr: %.3e, time left: %s, %s', place, entry['lr'], left, _numbers(rest))
        else:
            place = f'Epoch(val) [{entry["epoch"]}]' if self.by_epoch else f'Iter(val) [{entry["iter"]}]'
            runner.logger.info('%s  %s', place, _numbers(rest))

    def _append(self, entry: dict[str, Any], runner: EpochBasedRunner) -> None:
        if self.json_file is None or runner.rank != 0:
            return
        try:
            with open(self.json_file, 'a') as file:
                file.write(json.dumps(entry, default=_listed) + '\n')
        except OSError as error:  # a full disk costs a line, not the run
            runner.logger.error('%s lacks a line: %s', self.json_file, error)


def _numbers(entry: dict[str, Any]) -> str:
    return ', '.join(f'{key}: {value:.4f}' if isinstance(value, float) else f'{key}: {value}'
                     for key, value in entry.items())


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, 'tolist') else str(value)


@HOOKS.register_module()
class TensorboardLoggerHook(LoggerHook):
    """For TensorBoard, in ``<work_dir>/tf_logs``: scalars by global iteration, the first batch, the config.

    ``workspace train`` adds pictures of each evaluation, see ``tools.eval_pictures``.
    """

    def before_run(self, runner: EpochBasedRunner) -> None:
        super().before_run(runner)
        self.writer: Any = None
        if runner.work_dir is None or runner.rank != 0:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError('TensorboardLoggerHook needs the package tensorboard: pip install tensorboard, '
                              'or drop it from log_config.hooks') from error
        self.writer = SummaryWriter(str(runner.work_dir / 'tf_logs'))
        runner.cleanup.callback(self.put, runner, 'close')  # also after an error, or a signal
        if 'config' in runner.meta:
            self.put(runner, 'add_text', 'config', f'```python\n{runner.meta["config"]}\n```')

    def put(self, runner: EpochBasedRunner, method: str, *args: Any, **kwargs: Any) -> None:
        """A call of the writer, whose thread may have met a full disk: that costs the record, and not the run."""
        if self.writer is None:
            return
        try:
            getattr(self.writer, method)(*args, **kwargs)
        except OSError as error:
            self.writer = None
            runner.logger.error('TensorBoard gets nothing more from this run, which goes on: %s', error)

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if runner.iter == self.first_iter:
            img = runner.data_batch.get('img')
            if isinstance(img, torch.Tensor) and img.ndim == 4 and img.shape[1] in (1, 3):
                self.put(runner, 'add_images', 'train/first batch', in_colour(img[:16], runner.data_loader),
                          runner._done)
        super().after_train_iter(runner)

    def write(self, runner: EpochBasedRunner, entry: dict[str, Any]) -> None:
        for key, value in entry.items():
            if key not in ('mode', 'epoch', 'iter') and isinstance(value, int | float):
                self.put(runner, 'add_scalar', f'{entry["mode"]}/{key}', value, runner._done)


def in_colour(img: torch.Tensor, loader: Any) -> torch.Tensor:
    """A batch as the model gets it (N, C, H, W), as RGB in 0..1; stretched where it was normalised image by image."""
    img, norm = img.detach().float().cpu(), getattr(getattr(loader, 'device_stage', None), 'normalize', None)
    if norm is None:
        return (img - img.amin()) / (img.amax() - img.amin()).clamp(min=1e-6)
    mean, std = (torch.from_numpy(value).view(-1, 1, 1) for value in (norm.mean, norm.std))
    img = (img * std + mean).div(255).clamp(0, 1)
    return img if norm.to_rgb else img.flip(1)
