"""``workspace profile``: where a training step's time goes, and what limits it.

In: a config. Out: a `Profile`; a page (index.html), the numbers (profile.json) and a trace for chrome://tracing or
https://ui.perfetto.dev (trace.json.gz). The steps are those of ``workspace train``, hooks included.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profiler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..apis import build_training, init_random_seed, set_random_seed
from ..config import Config
from ..datasets import build_dataset
from ..datasets.ring import cores
from ..datasets.wrappers import leaves
from ..device import is_fast, select_device
from ..hooks import Hook
from ..models import build_classifier
from ..recipes import load_config
from .arguments import add_config, add_device
from .get_flops import count_flops
from .profile_cards import roof_of, synchronize
from .profile_limit import FAILED, PARTS, Profile

logger = logging.getLogger(__name__)

TRACED = 5  # steps in the trace: enough to see them repeat, and a file that a browser opens


class _Done(Exception):
    """Enough steps were taken."""


class _Marks:
    """Moments of a run in their order, by the clock of the device: (what has just ended, when)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, False
        self.moments: list[tuple[str, Any]] = []

    def __call__(self, name: str) -> None:
        if not self.on:
            return
        if self.device.type != 'cuda':
            self.moments.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.moments.append((name, event))

    def seconds(self) -> dict[str, float]:
        """In total, of each name."""
        total = dict.fromkeys(PARTS, 0.)
        for (_, before), (name, after) in zip(self.moments, self.moments[1:], strict=False):
            total[name] += before.elapsed_time(after) / 1e3 if self.device.type == 'cuda' else after - before
        return total


class _First(Hook):
    """Counts steps, and marks the end of load and forward: before all other hooks."""

    priority = -1

    def __init__(self, marks: _Marks, reached: Callable[[int], None]) -> None:
        self.marks, self.reached, self.steps = marks, reached, 0
        self.part: Any = None

    def before_train_iter(self, runner: Any) -> None:
        self.marks('load')

    def after_train_iter(self, runner: Any) -> None:
        self.marks('forward')
        self.enter('backward')

    def enter(self, name: str | None) -> None:
        """A range of the trace."""
        if self.part is not None:
            self.part.__exit__(None, None, None)
        self.part = record_function(name) if name else None
        if self.part is not None:
            self.part.__enter__()


class _Middle(Hook):
    """Right after the optimizer's hook."""

    priority = 'ABOVE_NORMAL'

    def __init__(self, first: _First) -> None:
        self.first, self.stepped = first, False

    def before_step(self, *args: Any) -> None:
        self.first.marks('backward')
        self.first.enter('optimizer')
        self.stepped = True

    def after_train_iter(self, runner: Any) -> None:
        self.first.marks('optimizer' if self.stepped else 'backward')
        self.first.enter(None)
        self.stepped = False


class _Last(Hook):
    """After all other hooks."""

    priority = 101

    def __init__(self, first: _First) -> None:
        self.first = first

    def before_train_iter(self, runner: Any) -> None:
        self.first.marks('wait')
        self.first.enter('forward')

    def after_train_iter(self, runner: Any) -> None:
        self.first.marks('wait')
        self.first.steps += 1
        self.first.reached(self.first.steps)


class _Endless:
    """Epoch after epoch of a loader, as one."""

    def __init__(self, loader: Any, length: int) -> None:
        self.loader, self.length, self.dataset = loader, max(len(loader), length), loader.dataset

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        while True:
            with contextlib.closing(iter(self.loader)) as batches:
                yield from batches


def profile(config: str | Config, steps: int = 50, warm_up: int = 10, device: str | None = None,
            options: dict | None = None, trace: Path | None = None) -> Profile:
    """Train `steps` steps after `warm_up` and say where their time went; a few more are recorded for the trace.

    Nothing is written into a run's folder. The times are taken without the recorder, which would slow the steps down.

    Args:
        trace: where the trace goes, a name that ends in .json.gz; None records it for the GPU's share alone.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1 or warm_up < 0:
        raise ValueError(f'--steps {steps} --warm-up {warm_up}: at least 1 step, after 0 or more')
    cfg = load_config(config, options)
    chosen = select_device(device or cfg.get('device', 'auto'))
    runner, loader = training_without_files(cfg, chosen)
    if cfg.get('compile'):
        logger.info('compiled: the first step of each shape may take minutes')
    marks = _Marks(chosen)
    times: list[float] = []
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if chosen.type == 'cuda' else [])]
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')  # it would tell each start and stop, and that there is no GPU
    recorder = torch_profiler(activities=activities) if trace is not None or chosen.type == 'cuda' else None

    def reached(step: int) -> None:
        if step in (warm_up, warm_up + steps):
            synchronize(chosen)
            times.append(time.perf_counter())
            marks.on = step == warm_up
            marks('wait')
        if step == warm_up + steps:
            if recorder is None:
                raise _Done
            recorder.start()
        if step == warm_up + steps + TRACED:
            synchronize(chosen)
            raise _Done

    _run(runner, _Endless(loader, warm_up + steps + TRACED), marks, reached, warm_up)
    busy, copied = 1., 0.
    if recorder is not None:
        recorder.stop()
        if trace is not None:
            recorder.export_chrome_trace(str(trace))
        if chosen.type == 'cuda':
            busy, copied = (seconds / TRACED for seconds in _device_seconds(recorder))
    step = (times[1] - times[0]) / steps
    parts = {name: seconds / steps for name, seconds in marks.seconds().items()}
    parts['copy'] = min(copied, parts['load'])
    parts['load'] -= parts['copy']
    batch, dtype = runner.data_batch, runner.precision.dtype
    return Profile(parts, step, len(batch['img']), str(chosen), str(dtype).removeprefix('torch.'),
                   min(busy / step, 1.) if chosen.type == 'cuda' else 1., 3 * _forward_flops(cfg, batch['img']),
                   counted_bytes(lambda: _one_step(runner, batch)), roof_of(chosen, dtype),
                   _settings(cfg, chosen, runner.model, loader))


def _settings(cfg: Config, device: torch.device, model: Any, loader: Any) -> dict[str, Any]:
    """What the run does, whether the config or a default says so; names of keys where there is one."""
    log = cfg.get('log_config') or {}
    failed = cfg.get('compile') and model._compiled_call_impl is None  # see compile_model
    return {**{key: is_fast(cfg.get(key), device) for key in ('bf16', 'channels_last')},
            'compile': FAILED if failed else cfg.get('compile'),
            'data.workers_per_gpu': loader.num_workers, 'data.pin_memory': loader._locks,
            'data.train_dataloader.prefetch_factor': loader._batches.prefetch_factor,
            'in_memory': in_memory(loader.dataset), 'uint8': loader.device_stage.normalize is not None,
            'log_config.interval': log.get('interval', 10) if log.get('hooks') else None,
            'custom_hooks': bool(cfg.get('custom_hooks')), 'cores': cores()}


def in_memory(dataset: Any) -> bool:
    """Whether samples begin as pixels, of an array or a pack, and not as names of files that are read and decoded."""
    infos = [getattr(leaf, 'data_infos', None) for leaf in leaves(dataset)]
    return all(one is not None and len(one) > 0 and isinstance(one[0], dict) and 'img' in one[0] for one in infos)


def training_without_files(cfg: Config, device: torch.device) -> tuple[Any, Any]:
    """The runner of a training with all hooks that act in a step, and its loader; no folder, no checkpoints."""
    for key in ('checkpoint_config', 'load_from', 'resume_from', 'work_dir'):
        cfg[key] = None
    cfg.workflow = [('train', 1)]
    cfg.seed = init_random_seed(cfg.get('seed'))
    set_random_seed(cfg.seed)
    model = build_classifier(cfg.model)
    model.init_weights()
    runner, loaders = build_training(model, build_dataset(cfg.data.train), cfg, device=device)
    return runner, loaders[0]


def _run(runner: Any, loader: Any, marks: _Marks, reached: Callable[[int], None], warm_up: int) -> None:
    first = _First(marks, reached)
    middle = _Middle(first)
    for hook in (first, middle, _Last(first)):
        runner.register_hook(hook)
    handle = runner.optimizer.register_step_pre_hook(middle.before_step)
    if warm_up == 0:
        reached(0)
    try:
        runner.run([loader], [('train', 10**9)])
    except _Done:
        runner.call_hook('after_run')
    finally:
        handle.remove()
        first.enter(None)


def _device_seconds(recorder: Any) -> tuple[float, float]:
    """Of kernels and copies on the GPU, and of the copies from the host alone; ranges around them are neither."""
    work = [event for event in recorder.events() if event.device_type == torch.autograd.DeviceType.CUDA
            and not event.is_user_annotation]
    copies = [event for event in work if 'HtoD' in event.name]
    return (sum(event.time_range.elapsed_us() for event in work) / 1e6,
            sum(event.time_range.elapsed_us() for event in copies) / 1e6)


def _forward_flops(cfg: Config, img: torch.Tensor) -> float:
    """Of a forward pass of the batch; 0 for a model that the counter cannot run."""
    model = build_classifier(cfg.model)
    if getattr(model.backbone, 'test_views', False):
        model.backbone.test_views = False  # of which a training has one
    try:
        return 2. * count_flops(model, tuple(img.shape[1:])).macs * len(img)
    except ValueError:
        return 0.


def _one_step(runner: Any, batch: Any) -> None:
    with torch.compiler.set_stance('force_eager'), runner.precision.autocast():
        loss = runner.model.train_step(batch, runner.optimizer)['loss']
    loss.backward()
    runner.optimizer.step()
    runner.optimizer.zero_grad()


def counted_bytes(work: Callable[[], object]) -> float:
    """Bytes that the operations of `work` read and write, each its inputs and outputs; views move nothing."""
    with _Traffic() as traffic:
        work()
    return float(traffic.bytes)


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not views:
            self.bytes += sum(value.nbytes for value in tree_leaves((args, kwargs, result))
                              if isinstance(value, torch.Tensor))
        return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_device(parser, default=None)
    parser.add_argument('--steps', type=int, default=50, help='that are measured (default 50)')
    parser.add_argument('--warm-up', type=int, default=10, help='steps before them (default 10)')
    parser.add_argument('--out-dir', help='folder of page, numbers and trace; default work_dirs/<config>/profile')
    parser.set_defaults(run=_command)


def _command(args: argparse.Namespace) -> None:
    from .commands import write_whole
    from .profile_page import text, write_page
    folder = Path(args.out_dir or Path('work_dirs') / Path(args.config).stem / 'profile')
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = profile(args.config, args.steps, args.warm_up, args.device, args.cfg_options, folder / 'trace.json.gz')
    write_whole(folder / 'profile.json', json.dumps(found.to_dict(), indent=1, default=str) + '\n')
    page = write_page(folder, args.config, found, time.perf_counter() - start, args.words)
    print(f'{text(found)}\n\n{page}, {folder / "trace.json.gz"} (open it at https://ui.perfetto.dev)')
