"""The train loop: epochs over a loader, one step at a time, with hooks called at named points.

In: a model with ``train_step``, an optimizer, loaders. Out: a trained model, and in ``work_dir`` what the hooks wrote.
"""
from __future__ import annotations

import copy
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from . import checkpoint as ckpt
from .device import Precision
from .dist import get_dist_info
from .hooks import PRIORITIES, Hook
from .log_hooks import LogBuffer as LogBuffer
from .randomness import state_kept
from .registry import HOOKS, RUNNERS
from .resume import restore_random_state, state_of_ranks


def _rank(hook: Hook, priority: int | str) -> int:
    if isinstance(priority, int):
        return priority
    if priority.upper() not in PRIORITIES:
        raise ValueError(f'{type(hook).__name__} has priority {priority!r}; known: {", ".join(PRIORITIES)}')
    return PRIORITIES[priority.upper()]


def acts(hook: Hook, point: str) -> bool:
    """Whether `hook` overrides the point, or the one that serves training and validation alike."""
    points = {point, point.replace('train_', '').replace('val_', '')}
    return any(getattr(getattr(hook, name), '__func__', None) is not getattr(Hook, name) for name in points)


def batches_from(loader: Any, first: int) -> Iterator[Any]:
    """A pass over the loader from its `first` batch on; where it cannot begin there, what comes earlier is dropped."""
    if first and hasattr(loader, 'start_at'):
        loader.start_at(first)
        return iter(loader)
    return islice(loader, first, None)


class _Steps(torch.nn.Module):
    """The model's ``train_step`` and ``val_step`` as a forward pass, which is what DistributedDataParallel takes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, mode: str, batch: Any, optimizer: Any) -> dict[str, Any]:
        return getattr(self.model, f'{mode}_step')(batch, optimizer)

    __call__ = forward  # it has no hooks of its own to look for


def _dealt(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """The batch in `parts`, each with every `parts`-th sample, as the ranks of a larger group would have had it."""
    parts = min(parts, len(batch['img']))
    return [{key: values[first::parts] for key, values in batch.items()} for first in range(parts)]


@RUNNERS.register_module()
class EpochBasedRunner:
    """Runs epochs as the workflow says and calls the hooks, lowest priority number first.

    Args:
        model: its ``train_step(batch, optimizer)`` returns ``dict(loss, log_vars, num_samples)``.
        optimizer: stepped by ``OptimizerHook``.
        work_dir: where checkpoints and logs go; None writes nothing.
        max_epochs: after this many the run ends.
        precision: number format of the forward pass; float32 when None.

    ``model`` is the classifier itself, in one process and in several; what the ranks share their gradients through is
    ``step``. With ``parts`` above 1 the model gets a batch of training in so many parts, one after the other.

    State that hooks read: ``epoch``, ``iter``, ``inner_iter`` (counted from 0), ``max_epochs``, ``max_iters``,
    ``mode``, ``data_loader``, ``data_batch``, ``outputs``, ``log_buffer``, ``meta``. ``hooks`` stand in the order of
    ``priorities``; ``calls`` remembers what each point calls, and who replaces a method of a hook clears it.

    A hook may set ``shown_weights``, the context in which the model is evaluated and saved: it puts other weights
    into the model than those that are trained, and yields the latter by name. ``trained_weights`` are those of a
    checkpoint that was saved so, until the hook takes them; ``gradients`` those of one from amid an accumulation.
    What a hook pushes on ``cleanup`` is undone however the run ends. A hook's ``before_save`` may refuse, by raising,
    what is about to be saved.
    """

    by_epoch = True

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None,
                 work_dir: str | os.PathLike | None = None, logger: logging.Logger | None = None,
                 meta: dict | None = None, max_epochs: int | None = None, precision: Precision | None = None) -> None:
        if max_epochs is None or max_epochs < 1:
            raise ValueError(f'runner.max_epochs is {max_epochs}; say how long to train, at least 1: '
                             "runner=dict(type='EpochBasedRunner', max_epochs=100)")
        self.model: Any = model
        self.step: Any = _Steps(model)
        self.parts = 1
        self.rest: list[Any] = []
        self._settled = True
        self.optimizer: Any = optimizer
        self.work_dir = Path(work_dir) if work_dir is not None else None
        self.logger = logger or logging.getLogger('workspace_lib')
        self.meta = dict(meta or {})
        self.max_epochs = max_epochs
        self.precision = precision or Precision(torch.device('cpu'))
        self.epoch = self.iter = self.inner_iter = self._done = 0
        self.max_iters = self.iters_per_epoch = 0
        self._first = 0  # batches of the coming epoch that a checkpoint from amid it has behind it
        self._epoch_open = False  # the epoch's batches may all be done, but what hooks do at its end is not
        self._length_then: int | None = None  # iterations of an epoch of the run that is resumed
        self.mode = 'train'
        self.rank, self.world_size = get_dist_info()
        self.timestamp = time.strftime('%Y%m%d_%H%M%S')
        self.hooks: list[Hook] = []
        self.priorities: list[int] = []
        self.calls: dict[str, list[Callable[[EpochBasedRunner], None]]] = {}
        self.log_buffer = LogBuffer()
        self.shown_weights: Callable[[], AbstractContextManager[dict[str, torch.Tensor] | None]] = nullcontext
        self.trained_weights: dict[str, torch.Tensor] | None = None
        self.gradients: dict[str, torch.Tensor] | None = None
        self.cleanup = ExitStack()
        self.last_saved: Path | None = None
        self.unsaved: OSError | None = None  # why the last checkpoint could not be written
        self.data_loader: Any = None
        self.data_batch: Any = None
        self.outputs: dict[str, Any] = {}

    def register_hook(self, hook: Hook | dict, priority: int | str | None = None) -> None:
        """Insert a hook behind those of the same priority (a name or a number; else the hook's own)."""
        if isinstance(hook, dict):
            section = copy.copy(hook)  # which still knows where in the config it stands
            priority = section.pop('priority', priority)
            hook = cast(Hook, HOOKS.build(section))
        # A hook of mmcv's own has no priority.
        rank = _rank(hook, getattr(hook, 'priority', 'NORMAL') if priority is None else priority)
        position = sum(other <= rank for other in self.priorities)
        self.hooks.insert(position, hook)
        self.priorities.insert(position, rank)
        self.calls.clear()

    def call_hook(self, point: str) -> None:
        """Call every hook that does something there; which ones is looked up once, not every step."""
        if point not in self.calls:
            self.calls[point] = [getattr(hook, point) for hook in self.hooks if acts(hook, point)]
        for call in self.calls[point]:
            call(self)

    def tell(self, point: str) -> None:
        """Call what few hooks have: ``before_save``, and ``after_part`` after each further part of a batch."""
        for hook in self.hooks:
            getattr(hook, point, lambda runner: None)(self)

    def run(self, data_loaders: Sequence[Iterable], workflow: Sequence[tuple[str, int]]) -> None:
        """Train to the end; ``workflow=[('train', 2), ('val', 1)]`` validates after every second epoch.

        Raises:
            OSError: the run is over, and its last checkpoint could not be written.
            Others come with a note of where the run stood, and of the last checkpoint.
        """
        self._set_out(data_loaders, workflow)
        with self.cleanup:
            self._call_before_run()
            try:
                self._loop(data_loaders, workflow)
            except Exception as error:
                self._explain(error)
                raise
            self.call_hook('after_run')
        if self.unsaved is not None:
            self.unsaved.add_note(f'so the end of this run is lost; the last good checkpoint: {self.last_saved}')
            raise self.unsaved

    def _explain(self, error: Exception) -> None:
        """Note where the run stood, and from which file it can go on."""
        if hasattr(self.data_loader, 'explain'):
            self.data_loader.explain(error)
        saved = f'the last good checkpoint: {self.last_saved}' if self.last_saved else 'no checkpoint was saved yet'
        error.add_note(f'in epoch {self.epoch + 1}, iteration {self.iter + 1} of the run; {saved}')

    def _loop(self, data_loaders: Sequence[Iterable], workflow: Sequence[tuple[str, int]]) -> None:
        while self.epoch < self.max_epochs:
            for (mode, epochs), loader in zip(workflow, data_loaders, strict=True):
                for _ in range(epochs):
                    if mode == 'train' and self.epoch >= self.max_epochs:
                        break
                    getattr(self, mode)(loader)

    def _set_out(self, data_loaders: Sequence[Any], workflow: Sequence[tuple[str, int]]) -> None:
        self.check_workflow(data_loaders, workflow)
        self.data_loader = next(loader for (mode, _), loader in zip(workflow, data_loaders, strict=True)
                                if mode == 'train')
        self.iters_per_epoch = len(self.data_loader)
        self._find_place()
        if self.work_dir is not None:
            self.work_dir.mkdir(parents=True, exist_ok=True)

    def _call_before_run(self) -> None:
        self.call_hook('before_run')
        if self.trained_weights is not None:
            self.logger.warning('the checkpoint holds averaged weights beside those that were trained, but no EMAHook '
                                'takes them up: the training goes on from the averages')
        self.trained_weights = self.gradients = None

    def train(self, data_loader: Any) -> None:
        """One epoch of training."""
        self.model.train()
        self._enter('train', data_loader)
        self.log_buffer.clear()
        self.call_hook('before_train_epoch')
        first, self._first = self._first, 0
        self.inner_iter = first - 1
        for self.inner_iter, batch in enumerate(batches_from(data_loader, first), first):
            self._iterate('train', batch)
            self.iter += 1
        self._epoch_open = False
        self.call_hook('after_train_epoch')
        self.epoch += 1

    def val(self, data_loader: Any) -> None:
        """One epoch of the same step without gradients: its losses are logged."""
        self._enter('val', data_loader)
        self._validate(data_loader)

    def _enter(self, mode: str, data_loader: Any) -> None:
        self.mode, self.data_loader = mode, data_loader
        if hasattr(data_loader, 'set_epoch'):
            data_loader.set_epoch(self.epoch)

    @torch.no_grad()
    def _validate(self, batches: Iterable[Any]) -> None:
        self.model.eval()
        with self.shown_weights():
            self.log_buffer.clear()
            self.call_hook('before_val_epoch')
            for self.inner_iter, batch in enumerate(batches):
                self._iterate('val', batch)
            self.call_hook('after_val_epoch')

    def _iterate(self, mode: str, batch: Any) -> None:
        self.data_batch = batch
        first, *self.rest = _dealt(batch, self.parts) if mode == 'train' and self.parts > 1 else [batch]
        if mode == 'train' and not self._settled:
            self._settle(first)
        self.call_hook(f'before_{mode}_iter')
        self.forward(mode, first)
        self.log_buffer.update(self.outputs['log_vars'], self.outputs['num_samples'])
        self._epoch_open = mode == 'train'
        self._done = self.iter + self._epoch_open  # what a hook may save from here on
        self.call_hook(f'after_{mode}_iter')

    def forward(self, mode: str, batch: Any) -> None:
        """One step of the model, its results in ``outputs``."""
        with self.precision.autocast():
            self.outputs = self.step(mode, batch, self.optimizer)

    def share_gradients(self, **options: Any) -> None:
        """From here on a backward pass averages the gradients of all ranks, which begin with the weights of rank 0.

        Args:
            options: of ``torch.nn.parallel.DistributedDataParallel``.
        """
        parallel = torch.nn.parallel.DistributedDataParallel
        # The name of torch 2.14, or of before. Buffers stay each rank's own, as in mmcls.
        name = {'forward_sync_buffers', 'broadcast_buffers'} & {*inspect.signature(parallel).parameters}
        self.step = parallel(self.step, **{max(name): False, **options})
        self._settled = self.world_size < 3

    def _settle(self, batch: Any) -> None:
        """A pass that is thrown away, since the first one decides in which buckets gradients are summed.

        And so in which order, from three ranks on: a resumed run would differ from one that was not in the last digit.
        """
        self._settled, put_back = True, state_kept(self.model)
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        self.model.zero_grad(set_to_none=True)
        self.step.require_backward_grad_sync = True
        self.forward('train', batch)
        self.outputs['loss'].backward()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        put_back()

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

    def _find_place(self) -> None:
        """Length of the run, and where in the epoch a checkpoint left it."""
        length = self.iters_per_epoch
        self.max_iters = self.max_epochs * length
        done = self.iter - self.epoch * length
        if self._length_then is None and -length <= done < 0:  # mmcv's from amid an epoch: that counts as done there,
            self.epoch, self.iter, done = self.epoch - 1, self.iter + 1, done + length + 1  # but its last iteration not
        if self._length_then not in (None, length) or not 0 <= done <= length:
            self.logger.warning('the checkpoint is of a run with %s iterations an epoch, this one has %d: it goes on '
                                'at the start of epoch %d', self._length_then or 'other', length, self.epoch + 1)
            self.iter, done = self.epoch * length, 0
        self._done, self._first = self.iter, done

    def current_lr(self) -> list[float]:
        return [group['lr'] for group in self.optimizer.param_groups]

    def save_checkpoint(self, name: str, out_dir: str | os.PathLike | None = None,
                        save_optimizer: bool = True, link: str | None = 'latest.pth',
                        meta: dict | None = None) -> Path | None:
        """Write the state after the current step, with more `meta` if given; all ranks call it, and rank 0 writes.

        `link` in the same folder is made to point to it.

        Returns:
            The path; None on other ranks, and where the file could not be written (a full disk): the run goes on then,
            and raises at its end unless a later one is written.
        """
        folder = Path(out_dir) if out_dir is not None else self.work_dir
        if folder is None:
            return None
        self.tell('before_save')
        extra = state_of_ranks(self.model)
        if self.rank != 0:
            return None
        try:
            self._write(folder, name, save_optimizer, meta, extra)
            if link:
                ckpt.link_latest(folder, name, link)
        except OSError as error:
            self.unsaved = error
            said = '; '.join([str(error), *getattr(error, '__notes__', [])])
            self.logger.error('%s could not be written (%s); the run goes on, the last good checkpoint: %s',
                              folder / name, said, self.last_saved)
            return None
        self.unsaved, self.last_saved = None, folder / name
        return folder / name

    def _write(self, folder: Path, name: str, save_optimizer: bool, meta: dict | None, extra: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        done = dict(epoch=self._done // self.iters_per_epoch, iter=self._done, iters_per_epoch=self.iters_per_epoch,
                    epoch_open=self.by_epoch and self._epoch_open and self._done % self.iters_per_epoch == 0)
        if self.precision.scaler.is_enabled():
            extra['scaler'] = self.precision.scaler.state_dict()
        with self.shown_weights() as trained:
            if trained is not None and save_optimizer:
                extra['trained_weights'] = trained
            ckpt.save_checkpoint(self.model, folder / name, self.optimizer if save_optimizer else None,
                                 {**self.meta, **done, **(meta or {})}, **extra)

    def publish(self, entry: dict[str, Any], dataset: Any = None, results: Any = None) -> None:
        """Hand an evaluation's metrics to every hook that writes logs, and what they are of to those that draw it."""
        for hook in self.hooks:
            if hasattr(hook, 'write'):
                hook.write(self, entry)
            if hasattr(hook, 'draw') and results is not None:
                hook.draw(self, dataset, results)

    def load_checkpoint(self, filename: str) -> dict:
        """Weights only: where a training starts from."""
        self.logger.info('weights from %s', filename)
        return ckpt.load_checkpoint(self.model, filename)

    def resume(self, filename: str) -> None:
        """Weights, optimizer, loss scale, averages, random state, epoch and iteration: the run goes on where it was.

        Other processes than those that saved it, or another number of iterations an epoch, are said in the log.
        """
        state = ckpt.load_checkpoint(self.model, filename, strict=True)
        meta = state.get('meta') or {}
        if 'epoch' not in meta or 'optimizer' not in state:
            raise ValueError(f'{filename} holds weights, but no optimizer and epoch to resume from; '
                             'use --load-from to start a new run with its weights')
        self.optimizer.load_state_dict(state['optimizer'])
        if 'scaler' in state:
            self.precision.scaler.load_state_dict(state['scaler'])
        weights = ckpt.weights_of(state)
        self.trained_weights = state.get('trained_weights') or \
            {name: weights[buffer] for buffer, name in ckpt.ema_buffers(weights).items()} or None
        self.gradients = state.get('gradients')
        self.epoch, self.iter = meta['epoch'] - meta.get('epoch_open', 0), meta['iter']
        # A file that does not tell it, of the end of an epoch, tells it by division.
        self._length_then = meta.get('iters_per_epoch') or (
            self.iter // self.epoch if self.epoch and self.iter % self.epoch == 0 else None)
        self._done, self.last_saved = self.iter, Path(filename)
        if 'random' in state:
            restore_random_state(state['random'])
        self.logger.info('resumed %s: epoch %d, iteration %d', filename, self.epoch, self.iter)
