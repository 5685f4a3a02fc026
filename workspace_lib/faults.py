"""Hooks that end a training before its end: losses that are no numbers, and signals of a scheduler.

In: the runner. Out: an error that names iteration and files; or a checkpoint to go on from, and an exit status.
"""
from __future__ import annotations

import math
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from .checkpoint import unwrapped
from .dist import all_reduce_sum
from .hooks import Hook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 85  # the exit status of a run that a signal stopped and that can go on; no shell or signal uses it
_IN_A_ROW = 10  # batches skipped one after another: then it is not the batches


class Stopped(SystemExit):
    """The run was asked to stop, and saved; its exit status is `STOPPED`."""


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Stops when a loss is NaN or infinite, or leaves its batch out; names the iteration and the files.

    Nothing is saved after such a loss, nor with parameters that are no numbers. On the CPU every loss is looked at
    before its step. To look at one on a GPU would be to wait for it: there those of the last `interval` iterations set
    out for the host together, and are looked at once they are there; all of them before each checkpoint. So the weights
    of the iterations since are spoiled.

    Args:
        interval: iterations from one look to the next; default 1 on the CPU, 10 on a GPU, which waits for none.
        on_invalid: ``'stop'``, or ``'skip'``: the batch gives no gradients, and leaves the model's buffers (statistics
            of BatchNorm) as they were. Looks, and waits, at every iteration; where one of several processes skips, all
            do. Ten in a row stop the run. Of a batch that is done in parts only the part is left out.
    """

    priority = 'HIGH'  # before the optimizer

    def __init__(self, interval: int | None = None, on_invalid: str = 'stop') -> None:
        if on_invalid not in ('stop', 'skip') or (interval is not None and interval < 1):
            raise ValueError("CheckInvalidLossHook takes on_invalid='stop' or 'skip' and an interval of at least 1, "
                             f'but got {on_invalid=}, {interval=}')
        self.interval, self.skips = interval, on_invalid == 'skip'
        self.skipped = self.in_a_row = 0

    def before_run(self, runner: EpochBasedRunner) -> None:
        self.every = self.interval or (1 if runner.precision.device.type == 'cpu' else 10)
        self.pending: list[tuple[int, Tensor]] = []  # the iteration and its loss, not looked at yet
        self.sent: deque[tuple[list[tuple[int, Tensor]], Tensor, Any]] = deque()  # with their copies for the host
        self.buffers = list(unwrapped(runner.model).buffers()) if self.skips else []
        self.before = [buffer.clone() for buffer in self.buffers]

    def before_train_iter(self, runner: EpochBasedRunner) -> None:
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        self.pending.append((runner.iter, runner.outputs['loss'].detach()))
        if self.skips:
            self._skip_if_invalid(runner, *self.pending.pop())
        elif self.is_last_iter(runner) or len(self.pending) >= self.every and not self.pending[0][1].is_cuda:
            self._look(runner)
        elif len(self.pending) >= self.every:
            self._look_without_waiting(runner)

    after_part = after_train_iter

    def before_save(self, runner: EpochBasedRunner) -> None:
        self._look(runner)
        finite = {name: p.isfinite().all() for name, p in unwrapped(runner.model).named_parameters()}
        if finite and not torch.stack([*finite.values()]).all():
            name = next(name for name, fine in finite.items() if not fine)
            raise FloatingPointError(f'{name} holds NaN or infinite values after iteration {runner._done}, though the '
                                     f'losses until then are finite: nothing is saved. {_ADVICE}')

    def _look(self, runner: EpochBasedRunner) -> None:
        pending, self.pending = [*(one for earlier, *_ in self.sent for one in earlier), *self.pending], []
        self.sent.clear()
        _judge(runner, pending, torch.stack([loss for _, loss in pending]).tolist() if len(pending) > 1 else
               [loss.item() for _, loss in pending])

    def _look_without_waiting(self, runner: EpochBasedRunner) -> None:
        losses, there = torch.stack([loss for _, loss in self.pending]), torch.cuda.Event()
        self.sent.append((self.pending, losses.to('cpu', non_blocking=True), there))  # into pinned memory
        there.record(torch.cuda.current_stream(losses.device))
        self.pending = []
        while self.sent and self.sent[0][2].query():
            pending, values, _ = self.sent.popleft()
            _judge(runner, pending, values.tolist())

    def _skip_if_invalid(self, runner: EpochBasedRunner, iteration: int, loss: Tensor) -> None:
        if not all_reduce_sum((~loss.isfinite()).float()):
            self.in_a_row = 0
            if runner.rest and self.buffers:
                torch._foreach_copy_(self.before, self.buffers)  # what the next part of the batch begins with
            return
        told = _told(runner, iteration, loss.item())
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= _IN_A_ROW:
            raise FloatingPointError(f'{told}\n{_IN_A_ROW} batches in a row had to be skipped. {_ADVICE}')
        runner.logger.warning('skipped, %d so far: %s', self.skipped, told)
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.before)
        runner.outputs['loss'] = None


_ADVICE = ('Look at these files and their labels; else lower optimizer.lr, give lr_config a warmup, or set '
           'optimizer_config.grad_clip')


def _judge(runner: EpochBasedRunner, pending: list[tuple[int, Tensor]], values: list[float]) -> None:
    for (iteration, _), value in zip(pending, values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(f'{_told(runner, iteration, value)}\n{_ADVICE}; on_invalid=\'skip\' of '
                                     'CheckInvalidLossHook in custom_hooks leaves such batches out')


def _told(runner: EpochBasedRunner, iteration: int, loss: float) -> str:
    epoch, batch = divmod(iteration, runner.iters_per_epoch)
    files = runner.data_loader.files(epoch, batch) if hasattr(runner.data_loader, 'files') else []
    late = f' (seen at {runner.iter + 1}: the weights are spoiled from there on)' if iteration < runner.iter else ''
    return '\n  '.join([f'the loss is {loss} in iteration {iteration + 1}, batch {batch + 1} of epoch {epoch + 1}{late}'
                        + ', of:' * bool(files), *files])


@HOOKS.register_module()
class StopSignalHook(Hook):
    """On SIGTERM or SIGUSR1, a scheduler's warning, saves after the next iteration and ends the process: status 85.

    The file is ``stopped_iter_N.pth``, to which ``latest.pth`` then points. At the last iteration of an epoch what is
    done at its end comes first; at that of the run, it just ends. With several processes it is enough that one gets the
    signal: all agree, an iteration later, over a side channel that no GPU waits for.
    """

    priority = 'LOWEST'

    def before_run(self, runner: EpochBasedRunner) -> None:
        self.received: int | None = None
        self.asked = False
        self.word: tuple[Tensor, Any] | None = None  # the sum of flags that is under way
        self.group: Any = distributed.new_group(backend='gloo') if runner.world_size > 1 else None
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            for number in SIGNALS:
                before = signal.signal(number, self._note)
                runner.cleanup.callback(signal.signal, number, signal.SIG_DFL if before is None else before)

    def _note(self, number: int, frame: Any) -> None:
        self.received = number

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        self.asked = self.asked or (self.received is not None if self.group is None else self._any_asked())
        if self.asked and not (runner.by_epoch and self.end_of_epoch(runner)):
            self._stop(runner, runner.iter + 1)

    def after_train_epoch(self, runner: EpochBasedRunner) -> None:
        if self.asked:
            self._stop(runner, runner.iter)

    def _any_asked(self) -> bool:
        """Whether any process was asked an iteration ago: that sum has come while the step was computed."""
        asked = False
        if self.word is not None:
            flag, work = self.word
            work.wait()
            asked = bool(flag)
        flag = torch.tensor(int(self.received is not None))
        self.word = flag, distributed.all_reduce(flag, group=self.group, async_op=True)
        return asked

    def _stop(self, runner: EpochBasedRunner, done: int) -> None:
        if done >= runner.max_iters:
            return
        name = signal.Signals(self.received).name if self.received else 'a signal to another process'
        path = runner.save_checkpoint(f'stopped_iter_{done}.pth')
        if path is None and runner.rank == 0:
            raise RuntimeError(f'{name} asked to stop, but nothing could be saved')
        runner.logger.warning('stopped by %s after iteration %d, exit status %d; go on with: --resume-from %s', name,
                              done, STOPPED, path or 'auto')
        raise Stopped(STOPPED)
