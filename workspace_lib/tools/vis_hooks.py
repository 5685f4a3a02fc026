"""``workspace vis_hooks``: which hook does what when, and how long it takes.

In: a config, or a runner that is about to run. Out: the order of its hooks, and the time line of a run, as `Plot`s.
"""
from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from torch.utils.data import Subset

from ..apis import build_training, init_random_seed, loader_config, set_random_seed
from ..config import Config
from ..datasets import build_dataset
from ..hooks import PRIORITIES, Hook
from ..models import build_classifier
from ..recipes import load_config
from ..runner import acts
from .arguments import add_config, add_device, checked_output
from .plots import LINES, Plot, styled
from .table import Table

FORWARD = 'forward'  # what the runner itself does between before_train_iter and after_train_iter
_KINDS = ('before an iteration', FORWARD, 'after an iteration', 'around an epoch', 'around the run')
_HATCHES = ('', '//', '', '\\\\', 'xx')
_NARROWEST = 0.004  # of the picture's width: a bar that took less is drawn so wide, so as to be seen


@dataclass(frozen=True)
class Call:
    """One call of a hook, or of the model; epoch and iter count from 0, `start` is in seconds since the recording."""

    stage: str
    hook: str
    epoch: int
    iter: int
    start: float
    seconds: float


@dataclass
class Recording:
    """Calls as they came; `names` are those of the hooks in their order, and last that of the model."""

    names: list[str]
    calls: list[Call] = field(default_factory=list)


def stages_of(hook: Any) -> list[str]:
    """The stages at which a hook does something, in the order of a run."""
    return [stage for stage in Hook.stages if acts(hook, stage)]


@contextmanager
def recorded_hooks(runner: Any) -> Iterator[Recording]:
    """While this is open, every call of the runner's hooks and of its forward pass is noted; the run stays the same.

    The times are the host's: what it asked a GPU for may end later. Hooks of one class share a name.
    """
    model = type(runner.model).__name__
    recording = Recording([*dict.fromkeys(type(hook).__name__ for hook in runner.hooks), model])
    began = time.perf_counter()

    def timed(work: Callable[..., Any], stage: str, name: str) -> Callable[..., Any]:
        @functools.wraps(work)
        def inside(*args: Any) -> Any:
            place, start = (runner.epoch, runner.iter), time.perf_counter()
            try:
                return work(*args)
            finally:
                recording.calls.append(Call(stage, name, *place, start - began, time.perf_counter() - start))
        return inside

    watched = [(hook, stage, type(hook).__name__) for hook in runner.hooks for stage in stages_of(hook)]
    watched.append((runner, FORWARD, model))
    before = [vars(owner).get(stage) for owner, stage, _ in watched]  # something where recordings are nested
    for owner, stage, name in watched:
        setattr(owner, stage, timed(getattr(owner, stage), stage, name))
    runner.calls.clear()  # which methods those are is remembered there
    try:
        yield recording
    finally:
        for (owner, stage, _), own in zip(watched, before, strict=True):
            vars(owner).pop(stage, None)
            if own is not None:
                setattr(owner, stage, own)
        runner.calls.clear()


def short_run(config: str | Config, epochs: int = 2, iters: int = 3, evaluate: bool = False,
              device: str | None = None, options: dict | None = None) -> Recording:
    """Train a few iterations as a config says, into a folder that is gone afterwards, and record the hooks.

    Args:
        iters: of each epoch; the data set is cut to so many batches.
        evaluate: test after each epoch, on all of `data.val`; else the hook that would is there, and idle.

    Raises:
        ValueError: no epoch, or no iteration.
    """
    return _short_training(config, epochs, iters, evaluate, device, options)[1]


def _short_training(config: str | Config, epochs: int, iters: int, evaluate: bool, device: str | None,
                    options: dict | None) -> tuple[Any, Recording]:
    if epochs < 1 or iters < 1:
        raise ValueError(f'{epochs} epochs of {iters} iterations; both are at least 1')
    cfg = load_config(config, options)
    cfg.load_from = cfg.resume_from = cfg.sampler = None
    cfg.workflow = [('train', 1)]
    cfg.runner = _length(cfg.get('runner') or {}, epochs, iters)
    if not evaluate:
        cfg.evaluation = {**(cfg.get('evaluation') or {}), 'interval': 10**9, 'start': None}
    cfg.seed = init_random_seed(cfg.get('seed'))
    set_random_seed(cfg.seed)
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        model = build_classifier(cfg.model)
        model.init_weights()
        dataset = build_dataset(cfg.data.train)
        part = Subset(dataset, range(min(len(dataset), iters * loader_config(cfg, 'train')['samples_per_gpu'])))
        runner, loaders = build_training(model, part, cfg, bool(cfg.data.get('val')), device)
        with recorded_hooks(runner) as recording:
            runner.run(loaders, cfg.workflow)
    return runner, recording


def _length(section: dict[str, Any], epochs: int, iters: int) -> dict[str, Any]:
    """The runner's section for so short a run, by epochs or by iterations as it was."""
    if 'max_iters' in section:
        return {**section, 'max_iters': epochs * iters}
    return {'type': 'EpochBasedRunner', **section, 'max_epochs': epochs}


@styled
def order_plot(runner: Any) -> Plot:
    """The hooks of a runner from the first to the last, and at which stages each acts, as the how manieth.

    Returns:
        Rows of the table: hook, its priority, the stages.
    """
    acting = [(type(hook).__name__, stages_of(hook)) for hook in runner.hooks]
    stages = [stage for stage in Hook.stages if any(stage in own for _, own in acting)]
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(acting)))
    axes = figure.subplots()
    called = dict.fromkeys(stages, 0)
    for y, (_, own) in enumerate(acting):
        for x, stage in enumerate(stages):
            if stage in own:
                called[stage] += 1
                axes.plot(x, y, 's', markersize=17, color=LINES[0]['color'], alpha=0.25)
                axes.text(x, y, str(called[stage]), ha='center', va='center')
    axes.set(xticks=range(len(stages)), yticks=range(len(acting)), yticklabels=[name for name, _ in acting],
             xlim=(-0.6, len(stages) - 0.4), ylim=(len(acting) - 0.5, -0.6), xlabel='stage of the run')
    axes.set_xticklabels(stages, rotation=30, ha='right', rotation_mode='anchor')
    axes.grid(alpha=0.3)
    rows = [(name, _priority(rank), ', '.join(own))
            for (name, own), rank in zip(acting, runner.priorities, strict=True)]
    return Plot(figure, f'{len(acting)} hooks in their order, from {acting[0][0]} to {acting[-1][0]}, with a number at '
                'each stage where one acts: the how manieth it is there.', Table(('hook', 'priority', 'acts at'), rows))


def _priority(rank: int) -> str:
    return next((f'{name} ({number})' for name, number in PRIORITIES.items() if number == rank), str(rank))


@styled
def timeline_plot(recording: Recording, iteration: int | None = None) -> Plot:
    """A bar for each call, in the row of its hook; where there is none, the runner waits for the loader.

    Args:
        iteration: of the run, counted from 1; None shows all of the run.

    Returns:
        Rows of the table: hook, calls, milliseconds in all and of the longest, where that was, share of the time.

    Raises:
        ValueError: no such iteration was recorded.
    """
    calls = _of_iteration(recording, iteration)
    begin, end = calls[0].start, max(call.start + call.seconds for call in calls)
    names = [name for name in recording.names if any(call.hook == name for call in calls)]
    figure = Figure(figsize=(9, 1.9 + 0.32 * len(names)))
    axes = figure.subplots()
    for kind, style, hatch in zip(_KINDS, LINES, _HATCHES, strict=False):
        own = [call for call in calls if _kind(call.stage) == kind]
        if not own:
            continue  # and no entry of the legend
        axes.barh([names.index(call.hook) for call in own],
                  [1e3 * max(call.seconds, _NARROWEST * (end - begin)) for call in own],
                  left=[1e3 * (call.start - begin) for call in own], color=style['color'], hatch=hatch, label=kind)
    axes.set(xlabel='time (ms)', yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=3)
    what = 'the run' if iteration is None else f'iteration {iteration}'
    return Plot(figure, f'Time line of {what}: what each hook and the model take, bar beside bar in the order of their '
                'calls.', _times(calls, names, end - begin))


def _of_iteration(recording: Recording, iteration: int | None) -> list[Call]:
    inside = [call for call in recording.calls if call.stage.endswith('_iter') or call.stage == FORWARD]
    found = recording.calls if iteration is None else [call for call in inside if call.iter == iteration - 1]
    if not found:
        known = sorted({call.iter + 1 for call in inside})
        raise ValueError(f'iteration {iteration} was not recorded; there are '
                         f'{f"{known[0]} to {known[-1]}" if known else "none"}')
    return found


def _kind(stage: str) -> str:
    when, _, what = stage.partition('_')
    if stage == FORWARD or what.endswith('iter'):
        return FORWARD if stage == FORWARD else f'{when} an iteration'
    return 'around an epoch' if what.endswith('epoch') else 'around the run'


def _times(calls: list[Call], names: list[str], whole: float) -> Table:
    rows = []
    for name in names:
        own = [call for call in calls if call.hook == name]
        longest = max(own, key=lambda call: call.seconds)
        total = sum(call.seconds for call in own)
        rows.append((name, len(own), 1e3 * total, 1e3 * longest.seconds, longest.stage, 100 * total / whole))
    return Table(('hook', 'calls', 'in all (ms)', 'longest (ms)', 'which was', 'of the time (%)'), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_device(parser, default=None)
    parser.add_argument('--epochs', type=int, default=2, help='of the run that is recorded (default 2)')
    parser.add_argument('--iters', type=int, default=3, help='of each of these epochs (default 3)')
    parser.add_argument('--evaluate', action='store_true', help='test after each epoch, on all of data.val')
    parser.add_argument('--out', default='vis_hooks.png', help='picture of the time line (default vis_hooks.png)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    path = checked_output(args.out, ('.png', '.svg', '.pdf'), '--out')
    runner, recording = _short_training(args.config, args.epochs, args.iters, args.evaluate, args.device,
                                        args.cfg_options)
    plot = timeline_plot(recording)
    print(f'{order_plot(runner).table}\n\n{plot.table}\n\n{plot.save(path)}')
