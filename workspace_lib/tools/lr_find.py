"""``workspace lr_find``: the loss while the learning rate grows from tiny to far too large (arXiv:1506.01186).

In: a config. Out: a `Plot` of the loss over the rate, and a rate to begin with. Nothing is written but the picture.
"""
from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..config import Config
from ..device import select_device
from ..hooks import PRIORITIES, Hook
from ..recipes import load_config
from .arguments import add_config, add_device, checked_output
from .plots import BLUE, GREY, VERMILLION, Plot, styled
from .profile import training_without_files
from .table import Table

SMOOTHING = 0.9  # share of the past in the average that is looked at
DIVERGED = 4.0  # times the least loss, and the test ends


class _Lost(Exception):
    """The loss is, and further steps would tell nothing."""


class _Range(Hook):
    """Sets the rate of each iteration, and notes its loss before the optimizer's step."""

    priority = PRIORITIES['HIGH'] - 1  # before what stops at a loss that is not finite

    def __init__(self, rates: np.ndarray) -> None:
        self.rates = rates
        self.losses: list[float] = []

    def before_run(self, runner: Any) -> None:
        self.groups = [(group, group['lr'] / runner.optimizer.defaults['lr']) for group in
                       runner.optimizer.param_groups]

    def before_train_iter(self, runner: Any) -> None:
        for group, ratio in self.groups:
            group['lr'] = self.rates[runner.iter] * ratio

    def after_train_iter(self, runner: Any) -> None:
        self.losses.append(runner.outputs['loss'].item())
        if not math.isfinite(self.losses[-1]) or self.losses[-1] > DIVERGED * min(self.losses):
            raise _Lost


def lr_range_test(config: str | Config, low: float = 1e-5, high: float = 10.0, iters: int = 100, seed: int = 0,
                  device: str = 'auto', options: dict | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Train for at most `iters` iterations, each with a rate that is a constant factor larger than the last.

    They are those of ``workspace train`` from freshly initialised weights: number format, memory layout, compiler,
    clipping and custom hooks as the config and the device have them. With ``cumulative_iters`` the optimizer steps
    once a window, at the last rate of it.

    Args:
        low, high: the first and the last rate; parameters with an `lr_mult` keep their ratio.

    Returns:
        Rates and losses, float64, shape (iterations,); the test ends early where the loss is lost.

    Raises:
        ValueError: rates or a number of steps that make no range.
    """
    if not 0 < low < high or iters < 2:
        raise ValueError(f'{low=}, {high=}, {iters=} are no range: 0 < low < high, and at least 2 steps')
    cfg, chosen = load_config(config, options), select_device(device)
    cfg.seed, cfg.lr_config, cfg.momentum_config, cfg.log_config = seed, None, None, None
    cfg.runner = dict(type='IterBasedRunner', max_iters=iters)
    runner, loader = training_without_files(cfg, chosen)
    test = _Range(np.geomspace(low, high, iters))
    runner.register_hook(test)
    try:
        runner.run([loader], [('train', 1)])
    except _Lost:
        runner.call_hook('after_run')
    return test.rates[:len(test.losses)], np.array(test.losses)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Exponential averages, corrected for their start as Adam's are."""
    average, averages = 0.0, []
    for number, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        averages.append(average / (1 - SMOOTHING ** number))
    return np.array(averages)


def suggested(rates: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the rate at which the averaged loss is lowest: beyond it the steps begin to be too large."""
    finite = np.where(np.isfinite(losses), losses, np.inf)
    return float(rates[int(smoothed(finite).argmin())]) / 10


@styled
def lr_range_plot(rates: np.ndarray, losses: np.ndarray, name: str = '') -> Plot:
    """The loss of each step, its average, and the suggested rate."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    average, rate = smoothed(losses), suggested(rates, losses)
    axes.plot(rates, losses, '.', color=GREY, label='each step')
    axes.plot(rates, average, color=BLUE, label='average')
    axes.axvline(rate, color=VERMILLION, linestyle='--', label=f'begin with {rate:.2g}')
    seen = average[np.isfinite(average)]
    axes.set(xscale='log', xlabel='learning rate', ylabel='loss', ylim=(0, 1.5 * float(seen[:1].max())), title=name)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    at = np.unique(np.linspace(0, len(rates) - 1, 12).round().astype(int))
    rows = [(f'{rates[i]:.3g}', float(losses[i]), float(average[i])) for i in at]
    return Plot(figure, f'Loss over learning rate, {len(rates)} steps from {rates[0]:.2g} to {rates[-1]:.2g}: lowest '
                f'at {10 * rate:.2g}; begin with about {rate:.2g}.', Table(('learning rate', 'loss', 'average'), rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('--low', type=float, default=1e-5, help='first rate (default 1e-5)')
    parser.add_argument('--high', type=float, default=10.0, help='last rate (default 10)')
    parser.add_argument('--iters', type=int, default=100, help='steps (default 100)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--save-path', default='lr_find.png', help='picture (default lr_find.png)')
    add_device(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    path = checked_output(args.save_path, ('.png', '.svg', '.pdf'), '--save-path')
    found: Any = lr_range_test(args.config, args.low, args.high, args.iters, args.seed, args.device, args.cfg_options)
    plot = lr_range_plot(*found, name=str(args.config).rpartition('/')[2])
    print(f'{plot.table}\n\n{plot.alt}\n{plot.save(path)}')
