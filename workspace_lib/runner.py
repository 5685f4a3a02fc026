"""The train loop: epochs over a loader, one step at a time, with hooks called at named points.

In: a model with ``train_step``, an optimizer, loaders. Out: a trained model, and in ``work_dir`` what the hooks wrote.
"""
from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch

from . import checkpoint as ckpt
from .device import Precision
from .dist import get_dist_info
from .hooks import PRIORITIES, Hook
from .log_hooks import LogBuffer as LogBuffer
from .randomness import random_state as random_state
from .randomness import set_random_state
from .registry import HOOKS, RUNNERS


def _rank(hook: Hook, priority: int | str) -> int:
    if isinstance(priority, int):
        return priority
    if priority.upper() not in PRIORITIES:
        raise ValueError(f'{type(hook).__name__} has priority {priority!r}; known: {", ".join(PRIORITIES)}')
    return PRIORITIES[priority.upper()]


def _acts(hook: Hook, point: str) -> bool:
    """Whether `hook` overrides the point, or the one that serves training and validation alike."""
    points = {point, point.replace('train_', '').replace('val_', '')}
    return any(getattr(getattr(hook, name), '__func__', None) is not getattr(Hook, name) for name in points)


def _without(section: dict, key: str) -> dict:
    """A copy that still knows where in the config it stands."""
    rest = copy.copy(section)
    rest.pop(key, None)
    return rest


@RUNNERS.register_module()
class EpochBasedRunner:
    """Runs epochs as the workflow says and calls the hooks, lowest priority number first.

    Args:
        model: its ``train_step(batch, optimizer)`` returns ``dict(loss, log_vars, num_samples)``.
        optimizer: stepped by ``OptimizerHook``.
        work_dir: where checkpoints and logs go; None writes nothing.
        max_epochs: after this many the run ends.
        precision: number format of the forward pass; float32 when None.

    State that hooks read: ``epoch``, ``iter``, ``inner_iter`` (counted from 0), ``max_epochs``, ``max_iters``,
    ``mode``, ``data_loader``, ``data_batch``, ``outputs``, ``log_buffer``, ``meta``.

    A hook may set ``shown_weights``, the context in which the model is evaluated and saved: it puts other weights
    into the model than those that are trained, and yields the latter by name. ``trained_weights`` are those of a
    checkpoint that was saved so, until the hook takes them.
    """

    by_epoch = True

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None,
                 work_dir: str | os.PathLike | None = None, logger: logging.Logger | None = None,
                 meta: dict | None = None, max_epochs: int | None = None,
                 precision: Precision | None = None) -> None:
        if max_epochs is None or max_epochs < 1:
            raise ValueError(f'runner.max_epochs is {max_epochs}; say how long to train, at least 1: '
                             "runner=dict(type='EpochBasedRunner', max_epochs=100)")
        self.model: Any = model
        self.optimizer: Any = optimizer
        self.work_dir = Path(work_dir) if work_dir is not None else None
        self.logger = logger or logging.getLogger('workspace_lib')
        self.meta = dict(meta or {})
        self.max_epochs = max_epochs
        self.precision = precision or Precision(torch.device('cpu'))
        self.epoch = self.iter = self.inner_iter = self._done = 0
        self.max_iters = self.iters_per_epoch = 0
        self.mode = 'train'
        self.rank, self.world_size = get_dist_info()
        self.timestamp = time.strftime('%Y%m%d_%H%M%S')
        self.hooks: list[Hook] = []
        self._ranks: list[int] = []
        self._calls: dict[str, list[Callable[[EpochBasedRunner], None]]] = {}
        self.log_buffer = LogBuffer()
        self.shown_weights: Callable[[], AbstractContextManager[dict[str, torch.Tensor] | None]] = nullcontext
        self.trained_weights: dict[str, torch.Tensor] | None = None
        self.data_loader: Any = None
        self.data_batch: Any = None
        self.outputs: dict[str, Any] = {}

    def register_hook(self, hook: Hook | dict, priority: int | str | None = None) -> None:
        """Insert a hook behind those of the same priority (a name or a number; else the hook's own)."""
        if isinstance(hook, dict):
            priority = hook.get('priority', priority)
            hook = cast(Hook, HOOKS.build(_without(hook, 'priority')))
        # A hook of mmcv's own has no priority.
        rank = _rank(hook, getattr(hook, 'priority', 'NORMAL') if priority is None else priority)
        position = sum(other <= rank for other in self._ranks)
        self.hooks.insert(position, hook)
        self._ranks.insert(position, rank)
        self._calls.clear()

    def call_hook(self, point: str) -> None:
        """Call every hook that does something there; which ones is looked up once, not every step."""
        if point not in self._calls:
            self._calls[point] = [getattr(hook, point) for hook in self.hooks if _acts(hook, point)]
        for call in self._calls[point]:
            call(self)

    def run(self, data_loaders: Sequence[Iterable], workflow: Sequence[tuple[str, int]]) -> None:
        """Train to ``max_epochs``; ``workflow=[('train', 2), ('val', 1)]`` validates after every second epoch."""
        self._set_out(data_loaders, workflow)
        self.max_iters = self.max_epochs * self.iters_per_epoch
        self._restart_broken_epoch()
        self._call_before_run()
        while self.epoch < self.max_epochs:
            for (mode, epochs), loader in zip(workflow, data_loaders, strict=True):
                for _ in range(epochs):
                    if mode == 'train' and self.epoch >= self.max_epochs:
                        break
                    getattr(self, mode)(loader)
        self.call_hook('after_run')

    def _set_out(self, data_loaders: Sequence[Any], workflow: Sequence[tuple[str, int]]) -> None:
        self.check_workflow(data_loaders, workflow)
        self.data_loader = next(loader for (mode, _), loader in zip(workflow, data_loaders, strict=True)
                                if mode == 'train')
        self.iters_per_epoch = len(self.data_loader)
        if self.work_dir is not None:
            self.work_dir.mkdir(parents=True, exist_ok=True)

    def _call_before_run(self) -> None:
        self.call_hook('before_run')
        if self.trained_weights is not None:
            self.logger.warning('the checkpoint holds averaged weights beside those that were trained, but no EMAHook '
                                'takes them up: the training goes on from the averages')
            self.trained_weights = None

    def train(self, data_loader: Any) -> None:
        """One epoch of training."""
        self.model.train()
        self._begin('train', data_loader)
        for self.inner_iter, batch in enumerate(data_loader):
            self._iterate('train', batch)
            self.iter += 1
        self.call_hook('after_train_epoch')
        self.epoch += 1

    @torch.no_grad()
    def val(self, data_loader: Any) -> None:
        """One epoch of the same step without gradients: its losses are logged."""
        self.model.eval()
        with self.shown_weights():
            self._begin('val', data_loader)
            for self.inner_iter, batch in enumerate(data_loader):
                self._iterate('val', batch)
            self.call_hook('after_val_epoch')

    def _begin(self, mode: str, data_loader: Any) -> None:
        self.mode, self.data_loader = mode, data_loader
        if hasattr(data_loader, 'set_epoch'):
            data_loader.set_epoch(self.epoch)
        self.log_buffer.clear()
        self.call_hook(f'before_{mode}_epoch')

    def _iterate(self, mode: str, batch: Any) -> None:
        self.data_batch = batch
        self.call_hook(f'before_{mode}_iter')
        with self.precision.autocast():
            self.outputs = getattr(self.model, f'{mode}_step')(batch, self.optimizer)
        self.log_buffer.update(self.outputs['log_vars'], self.outputs['num_samples'])
        self._done = self.iter + (mode == 'train')  # what a hook may save from here on
        self.call_hook(f'after_{mode}_iter')

    def check_workflow(self, data_loaders: Sequence, workflow: Sequence[tuple[str, int]]) -> None:
        """Raise ValueError for a workflow that cannot be run with these loaders."""
        for mode, _ in workflow:
            if mode not in ('train', 'val'):
                raise ValueError(f'workflow has {mode!r}; known are train and val, as in [("train", 1)]')
        if not any(mode == 'train' and epochs > 0 for mode, epochs in workflow):
            raise ValueError(f'workflow {list(workflow)} never trains; it needs a ("train", n) entry')
        if len(data_loaders) != len(workflow):
            raise ValueError(f'workflow has {len(workflow)} entries, but {len(data_loaders)} loaders were given')
        if not all(map(len, data_loaders)):
            raise ValueError('a loader has no batch: with drop_last its data set is smaller than samples_per_gpu')
        done, end, unit = self.progress()
        if done >= end:
            raise ValueError(f'the checkpoint has {done} {unit} and the run ends at {end}: nothing is left to train; '
                             f'raise runner.max_{unit} to go on')

    def progress(self) -> tuple[int, int, str]:
        """What is done, of how much, in which unit: (3, 100, 'epochs')."""
        return self.epoch, self.max_epochs, 'epochs'

    def _restart_broken_epoch(self) -> None:
        whole = self.epoch * len(self.data_loader)
        if self.iter != whole:
            self.logger.warning('the checkpoint is not from the end of an epoch of %d iterations: '
                                'epoch %d starts again', len(self.data_loader), self.epoch + 1)
            self.iter = self._done = whole

    def current_lr(self) -> list[float]:
        return [group['lr'] for group in self.optimizer.param_groups]

    def save_checkpoint(self, name: str, out_dir: str | os.PathLike | None = None,
                        save_optimizer: bool = True, link: bool = True, meta: dict | None = None) -> Path | None:
        """Write the state after the current step, with more `meta` if given; only rank 0 writes. Returns the path."""
        folder = Path(out_dir) if out_dir is not None else self.work_dir
        if self.rank != 0 or folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        done = dict(epoch=self._done // self.iters_per_epoch, iter=self._done)
        extra: dict[str, Any] = {'random': random_state()}
        if self.precision.scaler.is_enabled():
            extra['scaler'] = self.precision.scaler.state_dict()
        with self.shown_weights() as trained:
            if trained is not None and save_optimizer:
                extra['trained_weights'] = trained
            ckpt.save_checkpoint(self.model, folder / name, self.optimizer if save_optimizer else None,
                                 {**self.meta, **done, **(meta or {})}, **extra)
        if link:
            ckpt.link_latest(folder, name)
        return folder / name

    def publish(self, entry: dict[str, Any], dataset: Any = None, results: Any = None) -> None:
        """Hand an evaluation's metrics to every hook that writes logs, and what they are of to those that draw it."""
        for hook in self.hooks:
            if hasattr(hook, 'write'):
                hook.write(self, entry)
            if hasattr(hook, 'draw') and results is not None:
                hook.draw(self, dataset, results)

    def remove_checkpoint(self, path: str) -> None:
        """Delete one, unless a link of the run points at it or it is gone already."""
        file = Path(path)
        links = [link.resolve() for link in file.parent.glob('*.pth') if link.is_symlink()]
        if file.resolve() not in links:
            file.unlink(missing_ok=True)

    def load_checkpoint(self, filename: str, map_location: str = 'cpu', strict: bool = False) -> dict:
        """Weights only: where a training starts from."""
        self.logger.info('weights from %s', filename)
        return ckpt.load_checkpoint(self.model, filename, map_location, strict)

    def resume(self, filename: str, resume_optimizer: bool = True, map_location: str = 'cpu') -> None:
        """Weights, optimizer, loss scale, averages, random state, epoch and iteration: the run goes on where it was."""
        state = ckpt.load_checkpoint(self.model, filename, map_location, strict=True)
        meta = state.get('meta') or {}
        if 'epoch' not in meta or (resume_optimizer and 'optimizer' not in state):
            raise ValueError(f'{filename} holds weights, but no optimizer and epoch to resume from; '
                             'use --load-from to start a new run with its weights')
        if resume_optimizer:
            self.optimizer.load_state_dict(state['optimizer'])
        if 'scaler' in state:
            self.precision.scaler.load_state_dict(state['scaler'])
        weights = ckpt.weights_of(state)
        self.trained_weights = state.get('trained_weights') or \
            {name: weights[buffer] for buffer, name in ckpt.ema_buffers(weights).items()} or None
        self.epoch, self.iter = meta['epoch'], meta['iter']
        self._done = self.iter
        if 'random' in state:
            set_random_state(state['random'])
        self.logger.info('resumed %s: epoch %d, iteration %d', filename, self.epoch, self.iter)
