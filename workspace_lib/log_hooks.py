"""What a run says while it goes on: console and log file, JSON lines, TensorBoard, a progress bar.

In: the runner's ``log_buffer`` every `interval` iterations, and what is published (evaluations). Out: files in
``work_dir``, in mmcv's formats, so that its log analysis reads them.
"""
from __future__ import annotations

import datetime
import json
import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from .dist import all_gather
from .hooks import Hook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner

_FORMAT = '%(asctime)s - %(levelname)s - %(message)s'


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def get_root_logger(log_file: str | Path | None = None, log_level: int | str = 'INFO') -> logging.Logger:
    """The library's logger with a console handler, and a file handler for `log_file` in place of an earlier one."""
    logger = logging.getLogger('workspace_lib')
    logger.setLevel(log_level)
    if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
        _add(logger, _ConsoleHandler())
        logger.propagate = False
    if log_file is not None:
        for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
        _add(logger, logging.FileHandler(log_file))
    return logger


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)


class LogBuffer:
    """The last values of everything that is logged, kept as they come (tensors stay on their device).

    Turning a CUDA tensor into a float waits for the GPU; that happens in ``average``, once per log line.
    """

    def __init__(self, history: int = 1000) -> None:
        self.history = history
        self.values: dict[str, deque[tuple[Any, int]]] = {}

    def update(self, values: dict[str, Any], count: int = 1) -> None:
        """Append one value per name; `count` is its weight in the average (the number of samples)."""
        for name, value in values.items():
            if name not in self.values:
                self.values[name] = deque(maxlen=self.history)
            self.values[name].append((value, count))

    def merge(self, values: dict[str, Any], count: int) -> None:
        """Average further `count` samples into the last value of each name."""
        for name, value in values.items():
            before, samples = self.values[name].pop()
            self.values[name].append(((before * samples + value * count) / (samples + count), samples + count))

    def average(self, n: int) -> dict[str, float]:
        """The weighted mean of the last `n` values of each name, over all ranks: every one has to call it."""
        own = {name: (_mean(list(entries)[-n:]), self.count(name, n)) for name, entries in self.values.items()}
        ranks = all_gather(own)
        return {name: _mean([rank[name] for rank in ranks if name in rank]) if len(ranks) > 1 else mean
                for name, (mean, _) in own.items()}

    def count(self, name: str, n: int) -> int:
        """Samples behind the last `n` values of a name."""
        return sum(count for _, count in list(self.values.get(name, ()))[-n:])

    def total(self, name: str, n: int) -> float:
        """The sum of the last `n` values of a name."""
        return sum(value for value, _ in islice(reversed(self.values.get(name, ())), n))

    def clear(self) -> None:
        self.values.clear()


def _mean(entries: Sequence[tuple[Any, int]]) -> float:
    total = sum(count for _, count in entries)
    if isinstance(entries[0][0], torch.Tensor):
        values = torch.stack([value.detach().float().mean() for value, _ in entries])
        weights = torch.tensor([count for _, count in entries], dtype=values.dtype)
        return float((values.cpu() * weights).sum()) / total
    return sum(value * count for value, count in entries) / total


class LoggerHook(Hook):
    """Collects an entry every `interval` iterations and at the end of each epoch, and hands it to ``write``.

    Args:
        interval: in iterations; each entry averages what came since the one before.
        by_epoch: count iterations anew in each epoch; default as the runner counts.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 10, by_epoch: bool | None = None) -> None:
        if interval < 1:
            raise ValueError(f'{type(self).__name__} got interval={interval}; it counts iterations and starts at 1')
        self.interval, self.by_epoch = interval, by_epoch

    def write(self, runner: EpochBasedRunner, entry: dict[str, Any]) -> None:
        """Write one entry: ``mode``, ``epoch``, ``iter`` (both from 1) and numbers."""
        raise NotImplementedError(f'{type(self).__name__} has to say how it writes an entry')

    def before_run(self, runner: EpochBasedRunner) -> None:
        self.run_start, self.first_iter = time.perf_counter(), runner.iter
        self.by_epoch = runner.by_epoch if self.by_epoch is None else self.by_epoch

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        done = (runner.inner_iter if self.by_epoch else runner.iter) + 1
        if done % self.interval == 0:
            self.write(runner, self._entry(runner, self.interval))
        elif self.end_of_epoch(runner) if self.by_epoch else self.is_last_iter(runner):
            self.write(runner, self._entry(runner, done % self.interval))

    def after_val_epoch(self, runner: EpochBasedRunner) -> None:
        count = runner.inner_iter + 1
        self.write(runner, dict(mode='val', epoch=runner.epoch, iter=count if self.by_epoch else runner.iter,
                                **runner.log_buffer.average(count)))

    def _entry(self, runner: EpochBasedRunner, n: int) -> dict[str, Any]:
        averages = runner.log_buffer.average(n)
        done = (runner.inner_iter if self.by_epoch else runner.iter) + 1
        entry = dict(mode='train', epoch=runner.epoch + 1, iter=done,
                     lr=runner.current_lr()[0], **averages)
        if averages.get('time'):
            samples = runner.log_buffer.count('loss', n) * runner.world_size
            entry['images_per_second'] = samples / (averages['time'] * n)
        entry['memory'] = _peak_memory(runner.precision.device)
        return entry

    def seconds_left(self, runner: EpochBasedRunner) -> float:
        """From the mean time of an iteration since the start of this run, evaluations and checkpoints included."""
        done = runner.iter + 1 - self.first_iter
        return (time.perf_counter() - self.run_start) / done * (runner.max_iters - runner.iter - 1)


def _peak_memory(device: torch.device) -> int:
    """MiB: the most that torch held on a GPU, else the most that this process held."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


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
    """For TensorBoard, in ``<work_dir>/tf_logs``: scalars by global iteration, the first batch, the config, pictures.

    ``pictures(dataset, results)`` draws an evaluation: uint8 RGB (H, W, 3) by name. ``workspace train`` sets it to
    ``tools.eval_pictures.evaluation_pictures``: confusion matrix and worst mistakes.
    """

    pictures: Callable[[Any, Any], dict[str, Any]] | None = None

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
        if 'config' in runner.meta:
            self.writer.add_text('config', f'```python\n{runner.meta["config"]}\n```')

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if runner.iter == self.first_iter and self.writer is not None:
            img = runner.data_batch.get('img')
            if isinstance(img, torch.Tensor) and img.ndim == 4 and img.shape[1] in (1, 3):
                self.writer.add_images('train/first batch', _in_colour(img[:16], runner.data_loader),
                                       runner._done)
        super().after_train_iter(runner)

    def draw(self, runner: EpochBasedRunner, dataset: Any, results: Any) -> None:
        """Write `pictures` of an evaluation; one that fails must not end a training."""
        if self.writer is None or self.pictures is None:
            return
        try:
            for name, picture in self.pictures(dataset, results).items():
                self.writer.add_image(f'val/{name}', picture, runner._done, dataformats='HWC')
        except Exception as error:
            runner.logger.warning('TensorBoard lacks pictures of this evaluation: %s: %s', type(error).__name__, error)

    def write(self, runner: EpochBasedRunner, entry: dict[str, Any]) -> None:
        if self.writer is None:
            return
        for key, value in entry.items():
            if key not in ('mode', 'epoch', 'iter') and isinstance(value, int | float):
                self.writer.add_scalar(f'{entry["mode"]}/{key}', value, runner._done)

    def after_run(self, runner: EpochBasedRunner) -> None:
        if self.writer is not None:
            self.writer.close()


def _in_colour(img: torch.Tensor, loader: Any) -> torch.Tensor:
    """A batch as the model gets it (N, C, H, W), as RGB in 0..1; stretched where it was normalised image by image."""
    img, norm = img.detach().float().cpu(), getattr(getattr(loader, 'device_stage', None), 'normalize', None)
    if norm is None:
        return (img - img.amin()) / (img.amax() - img.amin()).clamp(min=1e-6)
    mean, std = (torch.from_numpy(value).view(-1, 1, 1) for value in (norm.mean, norm.std))
    img = (img * std + mean).div(255).clamp(0, 1)
    return img if norm.to_rgb else img.flip(1)


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Iterations done, rate and time left on a terminal; silent where the output is a file or a notebook."""

    priority = 'LOWEST'

    def before_run(self, runner: EpochBasedRunner) -> None:
        self.bar = tqdm(total=runner.max_iters, initial=runner.iter, unit='it', desc='train',
                        disable=None if runner.rank == 0 else True, dynamic_ncols=True)

    def before_train_epoch(self, runner: EpochBasedRunner) -> None:
        self.bar.set_description(f'train, epoch {runner.epoch + 1}/{runner.max_epochs}')

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        self.bar.update()

    def after_run(self, runner: EpochBasedRunner) -> None:
        self.bar.close()
