"""A word on a loader that holds a training up, and what to change.

In: ``IterTimerHook``'s times. Out: one warning a run.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from .datasets.ring import cores
from .hooks import Hook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner

_ITERATIONS = 10  # from one look at the loader to the next
_SECONDS = 2.  # to judge it by
_WAITING = 1 / 3  # of the time: less may be hidden behind a GPU's queue, or gained by no worker


class Waiting:
    """What of a loop's time goes into waiting for its loader, both in seconds, as ``IterTimerHook`` has timed it."""

    def __init__(self) -> None:
        self.waited = self.elapsed = 0.

    def add(self, runner: EpochBasedRunner, count: int) -> None:
        """The last `count` iterations, but not the first of an epoch: it waits for the workers to start."""
        count -= runner.inner_iter + 1 == count
        self.waited += runner.log_buffer.total('data_time', count)
        self.elapsed += runner.log_buffer.total('time', count)


@HOOKS.register_module()
class LoaderWatchHook(Hook):
    """Says once a run when its loader holds it up, and what to change; part of every training.

    Judges by ``IterTimerHook``'s times alone; a hook with a ``sampler``, as ``GPUMonitorHook`` has one where it watches
    a GPU, judges better, and this one is silent.
    """

    priority = 80

    def before_run(self, runner: EpochBasedRunner) -> None:
        self.advised, self.waiting = False, Waiting()

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if self.advised or (runner.inner_iter + 1) % _ITERATIONS:
            return
        self.waiting.add(runner, _ITERATIONS)
        if self.waiting.elapsed < _SECONDS:
            return
        share, self.waiting = self.waiting.waited / self.waiting.elapsed, Waiting()
        if share >= _WAITING and not any(getattr(hook, 'sampler', None) for hook in runner.hooks):
            self.advised = True
            runner.logger.warning('the loader is the limit: %.0f%% of the time goes into waiting for batches. %s',
                                  100 * share, feed(getattr(runner.data_loader, 'num_workers', None)))


def feed(workers: int | None) -> str:
    """What to change where the loader is the limit."""
    free = cores()
    smaller = 'train on a copy of the data set whose images are resized once, or packed'
    if workers is not None and workers >= free:
        return f'data.workers_per_gpu is {workers} for {free} cores: {smaller}'
    given = '' if workers is None else f' from {workers}'
    return f'Raise data.workers_per_gpu{given} (this process may use {free} cores); if that is not enough, {smaller}'
