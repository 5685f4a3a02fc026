"""What the GPU did during a training, in its log, and what to change when it is not the GPU that sets the pace.

In: a `Sample` a second, ``IterTimerHook``'s times. Out: values in ``log_buffer``, at most one warning an epoch.
"""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..hooks import Hook
from ..loader_watch import Waiting, feed
from ..log_hooks import LoggerHook
from ..registry import HOOKS
from .nvml import Card, Sample, Sampler, open_nvml

if TYPE_CHECKING:
    from ..runner import EpochBasedRunner

_ENOUGH = 10  # samples to judge by
_WAITING = 0.2  # of the time of an iteration: a loader that takes less is hidden behind the GPU's queue
_BUSY = 80  # percent; a GPU above it has no fifth to gain
_IDLE = 50  # percent; below it, with no loader to blame, the steps are too small
_HOT = 0.2  # of the samples


@HOOKS.register_module()
class GPUMonitorHook(Hook):
    """Logs the GPU of this process, and says when the loader, small steps or heat hold a training up.

    Each log entry gets, over the samples since the one before: ``gpu_util`` (mean, percent), ``gpu_memory`` (highest,
    MiB, of all processes on the card), ``gpu_power`` (mean, watts), ``gpu_temperature`` (highest, degrees Celsius),
    ``gpu_held_back`` (percent of the samples in which power or heat kept the clocks down). A field that the card does
    not tell is left out. On the CPU the hook does nothing.

    Args:
        interval: seconds between two samples.
        nvml: a module like pynvml; given, its first card is watched when the run is on the CPU.
    """

    priority = 80  # after the timer (LOW), before what writes logs (VERY_LOW)

    def __init__(self, interval: float = 1., nvml: Any = None) -> None:
        if interval <= 0:
            raise ValueError(f'GPUMonitorHook got interval={interval}; it is in seconds, such as 1.0')
        self.interval, self.nvml = interval, nvml
        self.sampler: Sampler | None = None

    def before_run(self, runner: EpochBasedRunner) -> None:
        if self.nvml is None and runner.precision.device.type != 'cuda':
            return
        try:
            self.session = open_nvml(self.nvml)
            card = _card(self.session, runner.precision.device)
        except RuntimeError as error:
            runner.logger.warning('the log will have no GPU figures: %s', error)
            return
        # the entries are the loggers': what is put into the buffer has to be of the same iterations
        self.every = min((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), default=10)
        self.advised: int | None = None
        self.last: tuple[float, list[Sample]] = (0., [])
        self._forget()
        self.sampler = Sampler(card.read, self.interval)

    def after_run(self, runner: EpochBasedRunner) -> None:
        if self.sampler is not None and self.sampler.stop():
            self.session.nvmlShutdown()
        self.sampler = None

    def before_train_epoch(self, runner: EpochBasedRunner) -> None:
        if self.sampler is not None:
            self.sampler.take()  # of an evaluation

    def after_val_epoch(self, runner: EpochBasedRunner) -> None:
        self.before_train_epoch(runner)

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if self.sampler is None:
            return
        by_epoch = getattr(runner, 'by_epoch', True)
        done = (runner.inner_iter if by_epoch else runner.iter) + 1
        last = self.end_of_epoch(runner) if by_epoch else self.is_last_iter(runner)
        if count := self.every if done % self.every == 0 else last and done % self.every:
            samples = self.sampler.take()
            self._log(runner, samples)
            self._judge(runner, samples, count)

    def _log(self, runner: EpochBasedRunner, samples: list[Sample]) -> None:
        now = time.perf_counter()
        if samples:
            self.last = (now, samples[-1:])
        elif now - self.last[0] < 5 * self.interval:  # an interval of a few milliseconds: the sample before it holds
            samples = self.last[1]
        for name in _NAMES:
            runner.log_buffer.values.pop(name, None)  # one value, not an average with those of earlier entries
        runner.log_buffer.update(summary(samples))

    def _judge(self, runner: EpochBasedRunner, samples: list[Sample], count: int) -> None:
        if self.advised == runner.epoch:
            return
        self.samples += samples
        self.waiting.add(runner, count)
        if len(self.samples) < _ENOUGH:
            return
        elapsed = self.waiting.elapsed
        found = advice(self.samples, self.waiting.waited / elapsed if elapsed else None, runner.data_loader)
        self._forget()
        if found:
            self.advised = runner.epoch
            runner.logger.warning('%s', '; '.join(found))

    def _forget(self) -> None:
        self.samples: list[Sample] = []
        self.waiting = Waiting()


def _card(nvml: Any, device: torch.device) -> Card:
    try:
        return Card(nvml, _handle(nvml, device))
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        raise RuntimeError(f'NVML does not find {device} ({error}): make doctor looks at the driver') from error


def _handle(nvml: Any, device: torch.device) -> Any:
    """By its UUID: NVML counts all cards, CUDA those of CUDA_VISIBLE_DEVICES, in another order."""
    if device.type != 'cuda':
        return nvml.nvmlDeviceGetHandleByIndex(0)
    uuid = str(torch.cuda.get_device_properties(device).uuid)  # without the prefix that NVML wants
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f'GPU-{uuid}')
    except nvml.NVMLError:  # a part of a card
        return nvml.nvmlDeviceGetHandleByUUID(f'MIG-{uuid}')


_NAMES = ('gpu_util', 'gpu_memory', 'gpu_power', 'gpu_temperature', 'gpu_held_back')


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """The values of a log entry, as `GPUMonitorHook` names them; those that no sample tells are left out."""
    found: tuple[float | None, ...] = (
        _mean(sample.utilisation for sample in samples),
        max((sample.memory_used // 2**20 for sample in samples if sample.memory_used is not None), default=None),
        _mean(sample.power for sample in samples),
        max((sample.temperature for sample in samples if sample.temperature is not None), default=None),
        _mean(100. * bool(sample.held_back) for sample in samples if sample.reasons is not None))
    return {name: value for name, value in zip(_NAMES, found, strict=True) if value is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None


def advice(samples: Sequence[Sample], waiting: float | None, loader: Any = None) -> list[str]:
    """What holds a training up, and what to change; empty where the GPU works.

    Args:
        waiting: the part of the time, 0 to 1, in which the loop waited for its loader; None where it is not known.
        loader: its ``batch_size`` and ``num_workers`` are named, where it has them.
    """
    busy, found = _mean(sample.utilisation for sample in samples), []
    if waiting is not None and busy is not None:
        if waiting >= _WAITING and busy < _BUSY:
            found.append(f'the loader, not the GPU, is the limit: {waiting:.0%} of the time goes into waiting for '
                         f'batches, and the GPU is {busy:.0f} % busy. {feed(getattr(loader, "num_workers", None))}')
        elif waiting < _WAITING and busy < _IDLE:
            size = getattr(loader, 'batch_size', None)
            found.append(f'the GPU is {busy:.0f} % busy, though only {waiting:.0%} of the time goes into waiting for '
                         f'batches: its steps are too small. Raise data.samples_per_gpu{f" from {size}" * bool(size)} '
                         f'(and optimizer.lr with it){_room(samples[-1])}')
    return found + _heat(samples)


def _room(sample: Sample) -> str:
    if sample.memory_used is None or sample.memory_total is None:
        return ''
    return f'; {sample.memory_used / 2**30:.1f} of {sample.memory_total / 2**30:.1f} GiB of its memory are used'


def _heat(samples: Sequence[Sample]) -> list[str]:
    """The power cap alone is no fault: a card at full load runs into it."""
    counts = Counter(reason for sample in samples for reason in sample.held_back if reason != 'power cap')
    faults = {reason: count / len(samples) for reason, count in counts.items() if count >= _HOT * len(samples)}
    if not faults:
        return []
    temperatures = [sample.temperature for sample in samples if sample.temperature is not None]
    degrees = f' at up to {max(temperatures)} °C' if temperatures else ''
    told = ', '.join(f'{reason} in {share:.0%} of the samples' for reason, share in faults.items())
    return [f'the GPU runs below its clocks{degrees}: {told}. Look at fans, air flow and power supply; '
            'workspace gpu shows it live']
