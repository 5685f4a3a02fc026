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
from .plots import BLUE, Plot, styled
from .table import Table

_MARKS = 20  # rows and markers of a run that is counted in iterations


@styled
def lr_plot(config: str | Config, iters_per_epoch: int | None = None, gpus: int = 1,
            options: dict | None = None) -> Plot:
    """The learning rate over a run, of parameters whose `lr_mult` is 1.

    Args:
        iters_per_epoch: default that of the config's training data (which must be there) on `gpus` GPUs.

    Returns:
        Rows: epoch from 1, its first iteration from 0, the rate of its first and of its last iteration.

    Raises:
        KeyError: the config has no optimizer.lr.
        ValueError: an impossible length, or a `momentum_config`, which a run here would not follow.
    """
    cfg = load_config(config, options)
    if 'lr' not in cfg.get('optimizer', {}):
        raise KeyError(f'the config has no optimizer.lr to start from ({where(cfg, "optimizer") or cfg.filename})')
    if cfg.get('momentum_config'):
        raise ValueError('momentum_config is not applied here, the momentum of a run stays what the optimizer says; '
                         f'drop it: --cfg-options momentum_config=None ({where(cfg, "momentum_config")})')
    runner: Any = cfg.get('runner') or dict(max_epochs=cfg.get('total_epochs'))
    epochs, max_iters = runner.get('max_epochs'), runner.get('max_iters')
    per_epoch = iters_per_epoch or _iters_per_epoch(cfg, gpus)
    total = max_iters or epochs * per_epoch
    schedule = lr_schedule(cfg.get('lr_config') or dict(policy='Fixed'), epochs, per_epoch, max_iters)
    rates = np.array([schedule(cfg.optimizer.lr, i) for i in range(total)])
    starts = range(0, total, per_epoch if epochs else math.ceil(total / _MARKS))
    return _drawn(rates, starts, per_epoch if epochs else 0, str(cfg.filename or 'config').rpartition('/')[2])


def _iters_per_epoch(cfg: Config, gpus: int) -> int:
    loader = loader_config(cfg, 'train')
    try:
        samples = len(build_dataset(cfg.data.train))
    except OSError as error:
        error.add_note('it would say how long an epoch is; without the data: --iters-per-epoch N')
        raise
    count = samples / (loader['samples_per_gpu'] * gpus)
    return max(1, math.floor(count) if loader.get('drop_last') else math.ceil(count))


def _drawn(rates: np.ndarray, starts: range, per_epoch: int, name: str) -> Plot:
    figure = Figure(figsize=(8, 3.4))
    axes = figure.subplots()
    x = np.arange(len(rates)) / (per_epoch or 1)
    axes.plot(x, rates, color=BLUE)
    axes.plot(x[list(starts)], rates[list(starts)], 'o', color=BLUE, markersize=4)
    axes.set(xlabel='epoch' if per_epoch else 'iteration', ylabel='learning rate', ylim=(0, None))
    axes.set_title(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    columns = ('epoch' if per_epoch else 'part', 'first iteration', 'lr there', 'lr at its end')
    rows = [(number, start, f'{rates[start]:.4g}', f'{rates[min(start + starts.step, len(rates)) - 1]:.4g}')
            for number, start in enumerate(starts, 1)]
    unit = f'{len(starts)} epochs of {per_epoch:,} iterations' if per_epoch else f'{len(rates):,} iterations'
    return Plot(figure, f'Learning rate of {name} over {unit}: from {rates[0]:.3g}, at most {rates.max():.3g}, to '
                f'{rates[-1]:.3g}.', Table(columns, rows))


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
