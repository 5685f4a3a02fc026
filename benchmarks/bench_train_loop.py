"""What the loop, its hooks, the logs and the GPU monitor cost over the same steps written by hand.

    python benchmarks/bench_train_loop.py [--pairs 9] [--out FILE.json]

Interleaved pairs (A B A B ...), medians, one thread; A/A is the bare loop against itself. Bounds: 2 % of a ResNet-18
step at 64 px with everything on, and 50 microseconds a step of a null model with the default hooks. A median above its
bound by more than two standard errors of A/A ends with status 1; it is of processor time (all threads, so that the
monitor's counts), as wall time is that of the neighbours on a machine, too.

Timed is an epoch: opening the logs is not in it, each of their lines is. NVML is replayed from tests/nvml, so that
this runs without a GPU; a real driver's calls take longer, but wait outside Python's lock.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from workspace_lib.faults import CheckInvalidLossHook, StopSignalHook
from workspace_lib.hooks import CheckpointHook, Hook, IterTimerHook, LrUpdaterHook, OptimizerHook
from workspace_lib.loader_watch import LoaderWatchHook
from workspace_lib.log_hooks import ProgressBarHook
from workspace_lib.log_writers import TensorboardLoggerHook, TextLoggerHook
from workspace_lib.models import build_classifier
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.schedules import lr_schedule
from workspace_lib.tools.gpu_hook import GPUMonitorHook
from workspace_lib.tools.nvml import Card

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
from nvml_replay import Replay  # noqa: E402

RATIO_BOUND, MICROSECONDS_BOUND = 1.02, 50.
LOOKS = 1000
Seconds = tuple[float, float]  # wall, processor


class Null(nn.Module):
    """One parameter: everything that is measured is the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def train_step(self, data: dict, optimizer: object = None) -> dict:
        loss = self.weight * 1.0
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=1)


def resnet18() -> nn.Module:
    return build_classifier(dict(
        type='ImageClassifier', backbone=dict(type='ResNet', depth=18), neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=512, topk=(1,),
                  loss=dict(type='CrossEntropyLoss'))))


class Clock(Hook):
    """Reads the clocks before all that other hooks do in an epoch, or behind it."""

    def __init__(self, priority: str, point: str) -> None:
        self.priority = priority
        setattr(self, point, self._read)

    def _read(self, runner: object) -> None:
        self.seconds = now()


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def passed(start: Seconds, end: Seconds) -> Seconds:
    return end[0] - start[0], end[1] - start[1]


def plain(model: nn.Module, batches: list[dict]) -> Seconds:
    """The bare loop, its zero_grad after the step as in the hook."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    optimizer.zero_grad()
    start = now()
    for batch in batches:
        model.train_step(batch)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    return passed(start, now())


def ours(model: nn.Module, batches: list[dict], more: Sequence[Hook] = ()) -> Seconds:
    """One epoch of the runner with the default hooks, and `more`."""
    first, last = Clock('HIGHEST', 'before_train_epoch'), Clock('LOWEST', 'after_train_epoch')
    with tempfile.TemporaryDirectory() as folder:
        runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
                                  work_dir=folder, max_epochs=1, logger=logging.getLogger('bench'))
        schedule = lr_schedule(dict(policy='CosineAnnealing', min_lr=0), 1, len(batches))
        for hook in (first, LrUpdaterHook(schedule), OptimizerHook(), CheckpointHook(interval=2, save_last=False),
                     IterTimerHook(), LoaderWatchHook(), ProgressBarHook(), CheckInvalidLossHook(), StopSignalHook(),
                     TextLoggerHook(interval=100), *more, last):
            runner.register_hook(hook)
        with contextlib.redirect_stderr(io.StringIO()):
            runner.run([batches], [('train', 1)])
    return passed(first.seconds, last.seconds)


def watching() -> list[Hook]:
    return [GPUMonitorHook(nvml=Replay()), TensorboardLoggerHook(interval=100)]


def rounds(loops: Sequence[Callable[[], Seconds]], count: int) -> list[list[Seconds]]:
    """What each loop took in each round, after one that does not count; each round begins with another loop."""
    found = []
    for number in range(count + 1):
        order = [(number + place) % len(loops) for place in range(len(loops))]
        took = {place: loops[place]() for place in order}
        found.append([took[place] for place in range(len(loops))])
    return found[1:]


def compared(measured: list[list[Seconds]], loop: int, clock: int, value: Callable[[float, float], float]) -> float:
    """The median of `value(loop, bare loop)`, pair by pair; the bare loop is the first of a round."""
    return statistics.median(value(one[loop][clock], one[0][clock]) for one in measured)


def noise(measured: list[list[Seconds]], value: Callable[[float, float], float], none: float) -> float:
    """How far A/A, the second loop against the first, is from `none`, or two standard errors of its median."""
    found = [value(one[1][1], one[0][1]) for one in measured]
    low, _, high = statistics.quantiles(found, n=4)
    error = 1.2533 * (high - low) / 1.349 / math.sqrt(len(found))  # of a median, by the quartiles
    return max(abs(statistics.median(found) - none), 2 * error)


def one_look() -> float:
    """Processor seconds that the monitor's thread takes for a sample."""
    card = Card(Replay(), 'gpu0')
    start = now()
    for _ in range(LOOKS):
        card.read()
    return passed(start, now())[1] / LOOKS


def measure(pairs: int) -> dict[str, float]:
    model, null = resnet18(), Null()
    images = [dict(img=torch.randn(16, 3, 64, 64), gt_label=torch.randint(0, 10, (16,))) for _ in range(4)] * 3
    empty: list[dict] = [{}] * 2000
    real = rounds([lambda: plain(model, images), lambda: plain(model, images), lambda: ours(model, images),
                   lambda: ours(model, images, watching())], pairs)
    small = rounds([lambda: plain(null, empty), lambda: plain(null, empty), lambda: ours(null, empty),
                    lambda: ours(null, empty, [GPUMonitorHook()]), lambda: ours(null, empty, watching())], 3 * pairs)

    def ratio(one: float, bare: float) -> float:
        return one / bare

    def added(one: float, bare: float) -> float:
        return (one - bare) / len(empty) * 1e6

    result: dict[str, float] = {}
    for clock, name in enumerate(('wall', 'processor')):
        for loop, what in ((1, 'A/A'), (2, 'default hooks'), (3, 'and TensorBoard, monitor')):
            result[f'ResNet-18, 64 px, ratio, {name}: {what}'] = compared(real, loop, clock, ratio)
        for loop, what in ((1, 'A/A'), (2, 'default hooks'), (3, 'and monitor without a GPU'),
                           (4, 'and TensorBoard, monitor')):
            result[f'null model, microseconds a step, {name}: {what}'] = compared(small, loop, clock, added)
    result['monitor, microseconds of a sample (1 a second)'] = statistics.median(
        one_look() for _ in range(pairs)) * 1e6
    result['noise of the ratio'] = noise(real, ratio, 1.)
    result['noise of the microseconds'] = noise(small, added, 0.)
    return result


def judged(result: dict[str, float]) -> list[str]:
    """What is over its bound by more than the noise."""
    everything, default = (f'{what}, processor: {hooks}' for what, hooks in (
        ('ResNet-18, 64 px, ratio', 'and TensorBoard, monitor'), ('null model, microseconds a step', 'default hooks')))
    wanted = ((everything, RATIO_BOUND, 'noise of the ratio'),
              (default, MICROSECONDS_BOUND, 'noise of the microseconds'))
    return [f'{name}: {result[name]:.3f} is over {bound:g}, and more than {result[apart]:.3f} of noise'
            for name, bound, apart in wanted if result[name] > bound + result[apart]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=9)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f'torch {torch.__version__}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load '
          f'{os.getloadavg()[0]:.1f}, {args.pairs} pairs; bounds: ratio {RATIO_BOUND}, {MICROSECONDS_BOUND:g} '
          'microseconds')
    result = measure(args.pairs)
    for name, value in result.items():
        print(f'{name:72} {value:9.4f}')
    if args.out:
        args.out.write_text(json.dumps({**result, 'pairs': args.pairs}, indent=2) + '\n')
    found = judged(result)
    unsure = result['noise of the ratio'] > RATIO_BOUND - 1 and ', as far as this noise lets see'
    print('\n'.join(found) or f'within the bounds{unsure or ""}')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
