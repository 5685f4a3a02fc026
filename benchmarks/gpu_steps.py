"""What the GPU benchmarks are made of: a size, batches, the training of a config step by step, turns within a time.

In: a device. Out: seconds a step, by the device's events.
"""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import side_by_side  # noqa: F401 (puts the checkout on the path)
import torch

from workspace_lib.apis import build_training, load_config, set_random_seed
from workspace_lib.hooks import Hook
from workspace_lib.models import build_classifier


class Size:
    """How much is measured: on a GPU, on a CPU (the part `keys` alone), or as a toy."""

    def __init__(self, toy: bool, cpu: bool = False) -> None:
        self.depth, self.batch, self.pixels = (18, 4, 32) if toy else (50, 256, 224)
        self.warm, self.timed, self.rounds = (1, 2, 1) if toy else (20, 100, 3)
        self.batches = (4, 2) if toy else (256, 512, 128, 64)
        self.epochs, self.cifar_batch = (1, 8) if toy else (24, 512)
        self.workers = 1 if toy else min(16, len(os.sched_getaffinity(0)))
        self.images, self.copies = (8, 1) if toy else (512, 32)
        # toy: the path through torch.compile without a minute of compiling
        self.compile: Any = dict(backend='eager') if toy else True
        if cpu and not toy:
            self.depth, self.batch, self.pixels, self.batches = 18, 16, 64, (16,)
            self.warm, self.timed, self.rounds = 1, 5, 7


class Enough(Exception):
    """All steps were taken."""


class NotCompiled(Exception):
    """A training that was to be compiled runs without: its figure is one of eager mode."""


def check_compiled(model: Any, asked: Any) -> None:
    """NotCompiled where `asked`, the config's ``compile``, is set and ``compile_model`` has given it up."""
    if asked and model._compiled_call_impl is None:
        raise NotCompiled('torch.compile failed and the steps ran eager; the warning above says why')


class Stopwatch(Hook):
    """Times the steps after `warm` ones by the device's clock, a CPU's processor time, then ends the run."""

    priority = 101

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self, warm: int, timed: int) -> None:
        self.done, self.warm, self.timed, self.moments = 0, warm, timed, []

    def after_train_iter(self, runner: Any) -> None:
        self.done += 1
        if self.done in (self.warm, self.warm + self.timed):
            self.moments.append(moment(self.device))
        if self.done == self.warm + self.timed:
            raise Enough

    def seconds(self) -> float:
        """A step."""
        return between(*self.moments) / self.timed


def moment(device: torch.device) -> Any:
    if device.type != 'cuda':
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class Synthetic:
    """One normalised batch on the device, again and again."""

    def __init__(self, size: Size, device: torch.device, batch: int, nhwc: bool = True) -> None:
        layout = torch.channels_last if nhwc else torch.contiguous_format
        self.batch = dict(img=torch.randn(batch, 3, size.pixels, size.pixels, device=device).contiguous(
            memory_format=layout), gt_label=torch.randint(0, 1000, (batch,), device=device))
        self.dataset = [None]

    def __len__(self) -> int:
        return 10_000

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch


class Endless:
    """Epoch after epoch of a loader, as one."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.dataset = loader, loader.dataset

    def __len__(self) -> int:
        return 10_000

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self.loader


class Still:
    """Stands for a data set where batches are synthetic."""

    CLASSES = None

    def __len__(self) -> int:
        return 100_000


class Training:
    """What ``workspace train`` would run for a config, hooks included, but for its files; step by step on demand."""

    def __init__(self, size: Size, device: torch.device, dataset: Any = None, **options: Any) -> None:
        options = {'bf16': True, 'channels_last': True, 'compile': size.compile, 'cudnn_benchmark': True,
                   'data.samples_per_gpu': size.batch, 'data.workers_per_gpu': 0, **options}
        cfg = load_config(f'resnet/resnet{size.depth}_8xb32_in1k.py', options)
        cfg.checkpoint_config, cfg.workflow, cfg.seed = None, [('train', 1)], 0
        set_random_seed(0)
        model = build_classifier(cfg.model)
        model.init_weights()
        self.runner, (self.loader,) = build_training(model, dataset or Still(), cfg, device=device)
        self.watch, self.asked = Stopwatch(device), options['compile']
        self.runner.register_hook(self.watch)

    def seconds(self, loader: Any, size: Size) -> float:
        """A step, over `loader`. Raises NotCompiled."""
        self.watch.start(size.warm, size.timed)
        with contextlib.suppress(Enough):
            self.runner.run([loader], [('train', 10**9)])
        check_compiled(self.runner.model, self.asked)
        return self.watch.seconds()


def turns(contestants: Mapping[str, Callable[[], float]], size: Size, until: float,
          after: Callable[[dict[str, list[float]]], None],
          missing: Callable[[str, str], None]) -> dict[str, list[float]]:
    """Figures in turns after a short round that does not count, one round at least, until the time is over.

    Who is found not to be compiled is told to `missing`, and has no figures.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    took, timed = 0., size.timed
    for number in range(size.rounds + 1):
        size.timed = timed if number else 2
        start = time.perf_counter()
        if number > 1 and start + took > until:
            break
        for name in [*figures]:
            try:
                figure = contestants[name]()
            except NotCompiled as error:
                del figures[name]
                missing(name, str(error))
                continue
            if number:
                figures[name].append(figure)
        took = time.perf_counter() - start
        if number and figures:
            after(figures)
    return figures
