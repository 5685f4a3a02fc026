"""The train loop counted in iterations: over the loader again and again, until there are enough.

In and out: as `runner.EpochBasedRunner`.
"""
from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from .device import Precision
from .registry import RUNNERS
from .runner import EpochBasedRunner, batches_from


@RUNNERS.register_module()
class IterBasedRunner(EpochBasedRunner):
    """Runs iterations as the workflow says: ``[('train', 1000), ('val', 50)]`` counts batches.

    Args:
        max_iters: after this many the run ends.
        Others: as ``EpochBasedRunner``.

    ``epoch`` counts the passes over the loader. Hooks get ``before_epoch`` and ``after_epoch`` at the start and the
    end of the run, and around a stage of validation; what they do by epoch, they do here by iteration.
    """

    by_epoch = False

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None,
                 work_dir: str | os.PathLike | None = None, logger: logging.Logger | None = None,
                 meta: dict | None = None, max_iters: int | None = None, precision: Precision | None = None) -> None:
        if max_iters is None or max_iters < 1:
            raise ValueError(f'runner.max_iters is {max_iters}; say how long to train, at least 1: '
                             "runner=dict(type='IterBasedRunner', max_iters=10000)")
        super().__init__(model, optimizer, work_dir, logger, meta, max_epochs=1, precision=precision)
        self.max_iters = max_iters

    def progress(self) -> tuple[int, int, str]:
        return self.iter, self.max_iters, 'iters'

    def _find_place(self) -> None:
        self.max_epochs = math.ceil(self.max_iters / self.iters_per_epoch)

    def _loop(self, data_loaders: Sequence[Iterable], workflow: Sequence[tuple[str, int]]) -> None:
        train_loader = self.data_loader
        streams = [_endless(loader, self.iter if loader is train_loader else 0) for loader in data_loaders]
        self.call_hook('before_epoch')
        while self.iter < self.max_iters:
            for (mode, count), loader, stream in zip(workflow, data_loaders, streams, strict=True):
                self.mode, self.data_loader = mode, loader
                if mode == 'train':
                    self._train_for(min(count, self.max_iters - self.iter), stream)
                else:
                    self._validate(islice(stream, count))
                    self.log_buffer.clear()
        self.data_loader = train_loader
        self.call_hook('after_epoch')

    def _train_for(self, count: int, stream: Iterator[Any]) -> None:
        self.model.train()
        for _ in range(count):
            self.inner_iter = self.iter % self.iters_per_epoch
            self.epoch = self.iter // self.iters_per_epoch
            self._iterate('train', next(stream))
            self.iter += 1


def _endless(loader: Any, done: int) -> Iterator[Any]:
    """Its batches, pass after pass, from the one after the first `done`; each pass is an epoch of its own."""
    epoch, first = divmod(done, len(loader))
    while True:
        if hasattr(loader, 'set_epoch'):
            loader.set_epoch(epoch)
        yield from batches_from(loader, first)
        epoch, first = epoch + 1, 0
