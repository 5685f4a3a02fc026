"""The parts of a training step, and which of them is the limit.

In: measured times, FLOPs and bytes. Out: a `Profile` with its `Limit`: what it is, where it shows, what to change.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .profile_cards import Roof

#: load: waiting for the loader. copy: from the host's memory to the device's. forward with the loss, backward with
#: clipping, optimizer with zero_grad. wait: the other hooks (logs, schedules), and the loop itself.
PARTS = ('load', 'copy', 'forward', 'backward', 'optimizer', 'wait')

CUDA_GRAPHS = "in the config compile=dict(mode='reduce-overhead')"
FAILED = 'failed'  #: `Profile.settings` of a model that was to be compiled, and ran without


@dataclass
class Limit:
    """What a step's time is spent on most, and what to change."""

    name: str  #: loader, copy, hooks, launch overhead, overhead, compute, memory
    part: str  #: the part of the step in which it shows
    reason: str
    advice: str


@dataclass
class Profile:
    """One configuration's step. Times in seconds a step, on the device's clock where it is a GPU."""

    parts: dict[str, float]
    step: float
    batch_size: int
    device: str
    dtype: str
    busy: float  #: share of the step in which the GPU computes; 1 on a CPU
    flops: float  #: of a step: three forward passes of get_flops (forward, gradients of inputs and of weights)
    moved: float  #: bytes that the operations of a step read and write, none of them fused
    roof: Roof
    settings: dict[str, Any] = field(default_factory=dict)  #: what is configured; of compile, `FAILED` if it did

    @property
    def intensity(self) -> float:
        """FLOP a byte."""
        return self.flops / self.moved if self.moved else 0.

    @property
    def mode(self) -> str:
        """``eager`` or ``compiled``: how the model was computed, whatever the config asks for."""
        asked = self.settings.get('compile')
        return 'eager, since torch.compile failed' if asked == FAILED else 'compiled' if asked else 'eager'

    @property
    def computing(self) -> float:
        """Seconds a step in forward, backward and optimizer."""
        return sum(self.parts[name] for name in ('forward', 'backward', 'optimizer'))

    @property
    def achieved(self) -> float:
        """FLOP/s in that time."""
        return self.flops / self.computing if self.computing else 0.

    @property
    def limit(self) -> Limit:
        return find_limit(self)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), 'intensity': self.intensity, 'achieved': self.achieved,
                'images_per_second': self.batch_size / self.step, 'limit': dataclasses.asdict(self.limit)}


def find_limit(found: Profile) -> Limit:
    """The first that applies: waiting for the loader, the copy or hooks; a device without work; then the roofline."""
    share = {name: seconds / found.step for name, seconds in found.parts.items()}
    slowest = max(('forward', 'backward', 'optimizer'), key=lambda name: share[name])
    if share['load'] >= 0.2 and share['load'] >= share['copy']:
        return Limit('loader', 'load', f'{share["load"]:.0%} of a step is waiting for the next batch', _advice(
            found, *_of_loader(found.settings)))
    if share['copy'] >= 0.2:
        floats = [] if found.settings.get('uint8') else ['a pipeline that stays uint8 to its Normalize (the log tells)']
        return Limit('copy', 'copy', f'{share["copy"]:.0%} of a step is the copy to the device', _advice(
            found, 'data.pin_memory=True', *floats))
    if share['wait'] >= 0.2:
        return Limit('hooks', 'wait', f'{share["wait"]:.0%} of a step is spent outside the model', _advice(
            found, *_of_hooks(found.settings)))
    if found.busy < 0.7:
        return Limit('launch overhead', slowest, f'the GPU computes {found.busy:.0%} of the time, and waits for the '
                     'host to start the next kernel', _advice(found, _larger_batch(found), 'compile=True', CUDA_GRAPHS))
    attainable = found.roof.attainable(found.intensity)
    if found.flops and found.achieved < 0.15 * attainable:
        return Limit('overhead', slowest, f'{found.achieved / attainable:.1%} of what the roofline allows is reached: '
                     'the time is not arithmetic, but small operations and Python', _advice(
                         found, _larger_batch(found), 'compile=True'))
    if found.intensity < found.roof.ridge:
        return Limit('memory', slowest, f'{found.intensity:.0f} FLOP a byte, and this device has arithmetic for '
                     f'{found.roof.ridge:.0f}: memory sets the pace', _advice(
                         found, 'channels_last=True', 'bf16=True', 'compile=True'))
    return Limit('compute', slowest, f'{found.intensity:.0f} FLOP a byte, above the {found.roof.ridge:.0f} from which '
                 'on arithmetic sets the pace', _advice(found, 'bf16=True', 'channels_last=True', 'compile=True'))


def _of_loader(settings: dict[str, Any]) -> list[str]:
    """Without workers the first; more while there are cores; what makes a sample cheaper."""
    workers, cores, ways = settings.get('data.workers_per_gpu'), settings.get('cores', 0), []
    if workers is None:
        ways.append('data.workers_per_gpu higher, up to the free cores')
    elif workers == 0:
        ways.append('data.workers_per_gpu=1 or more: with 0 no batch is made while another is trained on')
    elif workers < cores:
        ways.append(f'data.workers_per_gpu higher than {workers}, up to the free ones of {cores} cores')
    ways.append('fewer steps in data.train.pipeline: the images are in memory, and no file is read'
                if settings.get('in_memory') else 'training copies resized once (--resize)')
    if workers != 0 and (settings.get('data.train_dataloader.prefetch_factor') or 0) < 4:
        ways.append('data.train_dataloader.prefetch_factor=4')
    return ways


def _of_hooks(settings: dict[str, Any]) -> list[str]:
    interval = settings.get('log_config.interval', '')  # None: no hook logs
    ways = [] if interval is None else [f'log_config.interval higher than {interval}'.removesuffix(' than ')]
    if settings.get('custom_hooks', True):
        ways.append('custom_hooks one by one: which of them waits for the device')
    return ways


def _larger_batch(found: Profile) -> str:
    return f'data.samples_per_gpu higher than {found.batch_size}'


def _is_open(way: str, found: Profile) -> bool:
    """Whether the config does not go this way already, and can."""
    compiled = found.settings.get('compile')
    if way == CUDA_GRAPHS:
        return compiled != FAILED and 'reduce-overhead' not in str(compiled)
    if way == 'bf16=True' and found.dtype != 'float32':
        return False
    return not (way.endswith('=True') and found.settings.get(way.removesuffix('=True')))


def _advice(found: Profile, *ways: str) -> str:
    """Those ways that are open."""
    open_ways = [way for way in ways if _is_open(way, found)]
    if not found.device.startswith('cuda'):  # what they bring there depends on the processor
        open_ways = [way for way in open_ways if not way.endswith('=True')]
    return '; '.join(open_ways) or 'nothing that a config sets: a smaller image or model, or another device'
