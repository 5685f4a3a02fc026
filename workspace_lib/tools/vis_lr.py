"""``workspace vis_lr``: the learning rate of a whole run, without training.

In: a config, and how many iterations an epoch has. Out: a `Plot`, with the numbers at each epoch.
"""
from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..apis import loader_config
from ..config import Config, where
from ..datasets import build_dataset
from ..recipes import load_config
from ..schedules import lr_schedule
from .arguments import add_config, checked_output
from .plots import BLUE, VERMILLION, Plot, styled
from .table import Table

_MARKS = 20  # rows and markers of a run that is counted in iterations
_MOST_MARKS, _POINTS = 60, 2000  # what a picture has room for


@styled
def lr_plot(config: str | Config, iters_per_epoch: int | None = None, gpus: int = 1,
            options: dict | None = None) -> Plot:
    """The learning rate over a run, of parameters whose `lr_mult` is 1; with a `momentum_config` the momentum too.

    Args:
        iters_per_epoch: default that of the config's training data (which must be there) on `gpus` GPUs.

    Returns:
        Rows: epoch from 1, its first iteration from 0, the rate of its first and of its last iteration.

    Raises:
        KeyError: the config has no optimizer.lr.
        ValueError: an impossible length, or a momentum_config for an optimizer without momentum.
    """
    cfg = load_config(config, options)
    if 'lr' not in cfg.get('optimizer', {}):
        raise KeyError(f'the config has no optimizer.lr to start from ({where(cfg, "optimizer") or cfg.filename})')
    runner: Any = cfg.get('runner') or dict(max_epochs=cfg.get('total_epochs'))
    epochs, max_iters = runner.get('max_epochs'), runner.get('max_iters')
    per_epoch = iters_per_epoch or _iters_per_epoch(cfg, gpus)
    total = max_iters or epochs * per_epoch
    schedule = lr_schedule(cfg.get('lr_config') or dict(policy='Fixed'), epochs, per_epoch, max_iters)
    curves = {'lr': np.array([schedule(cfg.optimizer.lr, i) for i in range(total)])}
    if cfg.get('momentum_config'):
        from ..schedules import momentum_schedule
        momenta, start = momentum_schedule(cfg.momentum_config, epochs, per_epoch, max_iters), _momentum(cfg)
        curves['momentum'] = np.array([momenta(start, i) for i in range(total)])
    starts = range(0, total, per_epoch if epochs else math.ceil(total / _MARKS))
    return _drawn(curves, starts, per_epoch if epochs else 0, str(cfg.filename or 'config').rpartition('/')[2])


def _momentum(cfg: Config) -> float:
    if 'momentum' not in cfg.optimizer and 'betas' not in cfg.optimizer:
        raise ValueError('momentum_config needs optimizer.momentum or optimizer.betas to start from '
                         f'({where(cfg, "momentum_config")})')
    return cfg.optimizer['momentum'] if 'momentum' in cfg.optimizer else cfg.optimizer['betas'][0]


def _iters_per_epoch(cfg: Config, gpus: int) -> int:
    loader = loader_config(cfg, 'train')
    try:
        samples = len(build_dataset(cfg.data.train))
    except OSError as error:
        error.add_note('it would say how long an epoch is; without the data: --iters-per-epoch N')
        raise
    count = samples / (loader['samples_per_gpu'] * gpus)
    return max(1, math.floor(count) if loader.get('drop_last') else math.ceil(count))


def _drawn(curves: dict[str, np.ndarray], starts: range, per_epoch: int, name: str) -> Plot:
    rates = curves['lr']
    figure = Figure(figsize=(8, 1 + 2.5 * len(curves)))
    x = np.arange(len(rates)) / (per_epoch or 1)
    for axes, (key, y), colour in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves.items(),
                                      (BLUE, VERMILLION), strict=False):
        _draw(axes, x, y, colour)
        marks = list(starts)[::math.ceil(len(starts) / _MOST_MARKS)]
        axes.plot(x[marks], y[marks], 'o', color=colour, markersize=4)
        axes.set(xlabel='epoch' if per_epoch else 'iteration', ylabel=dict(lr='learning rate').get(key, key),
                 ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(name)
    ends = [min(start + starts.step, len(rates)) - 1 for start in starts]
    rows = [(number, start, *(f'{y[at]:.4g}' for y in curves.values() for at in (start, end)))
            for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1)]
    columns = [f'{key} {place}' for key in curves for place in ('there', 'at its end')]
    unit = f'{len(starts)} epochs of {per_epoch:,} iterations' if per_epoch else f'{len(rates):,} iterations'
    return Plot(figure, f'Learning rate of {name} over {unit}: from {rates[0]:.3g}, at most {rates.max():.3g}, to '
                f'{rates[-1]:.3g}.', Table(('epoch' if per_epoch else 'part', 'first iteration', *columns), rows))


def _draw(axes: Any, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """The curve; one of more points than a picture shows as the highest and the lowest of each few."""
    if len(y) <= _POINTS:
        axes.plot(x, y, color=colour)
        return
    parts = np.linspace(0, len(y), _POINTS, endpoint=False).astype(int)
    high, low = np.maximum.reduceat(y, parts), np.minimum.reduceat(y, parts)
    axes.plot(x[parts], high, color=colour)
    axes.plot(x[parts], low, color=colour)
    axes.fill_between(x[parts], low, high, color=colour, alpha=0.3, linewidth=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('--iters-per-epoch', type=int, help='default: that of the training data in the config')
    parser.add_argument('--ngpus', '--gpus', type=int, default=1, help='GPUs that share an epoch (default 1)')
    parser.add_argument('--save-path', default='vis_lr.png', help='picture (default vis_lr.png)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    path = checked_output(args.save_path, ('.png', '.svg', '.pdf'), '--save-path')
    plot = lr_plot(args.config, args.iters_per_epoch, args.ngpus, args.cfg_options)
    print(f'{plot.table}\n\n{plot.alt}\n{plot.save(path)}')
