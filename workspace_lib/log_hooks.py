"""What a run says while it goes on: the entries of its log, a progress bar.

In: the runner's ``log_buffer`` every `interval` iterations, and what is published (evaluations). Out: entries, which
`log_writers` write.
"""
from __future__ import annotations

import resource
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from .dist import all_gather
from .hooks import Hook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner


class LogBuffer:
    """The last values of everything that is logged, kept as they come (tensors stay on their device).

    Turning a CUDA tensor into a float waits for the GPU; that happens in ``average``, once per log line.
    """

    def __init__(self, history: int = 1000) -> None:
        self.values: dict[str, deque[tuple[Any, int]]] = defaultdict(partial(deque, maxlen=history))

    def update(self, values: dict[str, Any], count: int = 1) -> None:
        """Append one value per name; `count` is its weight in the average (the number of samples)."""
        for name, value in values.items():
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
        values = torch.stack([value.float().mean() if value.ndim else value for value, _ in entries]).detach().float()
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
        entry = dict(mode='train', epoch=runner.epoch + 1, iter=done, lr=runner.current_lr()[0], **averages)
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
