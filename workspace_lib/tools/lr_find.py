"""``workspace lr_find``: the loss while the learning rate grows from tiny to far too large (arXiv:1506.01186).

In: a config. Out: a `Plot` of the loss over the rate, and a rate to begin with. Nothing is written but the picture.
"""
from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ..apis import build_loader, init_random_seed, set_random_seed
from ..config import Config
from ..datasets import build_dataset
from ..device import Precision, select_device
from ..models import build_classifier
from ..optim import build_optimizer
from ..recipes import load_config
from .arguments import add_config, add_device, checked_output
from .plots import BLUE, GREY, VERMILLION, Plot, styled
from .table import Table

SMOOTHING = 0.9  # share of the past in the average that is looked at
DIVERGED = 4.0  # times the least loss, and the test ends


def lr_range_test(config: str | Config, low: float = 1e-5, high: float = 10.0, iters: int = 100, seed: int = 0,
                  device: str = 'auto', options: dict | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Train for at most `iters` steps, each with a rate that is a constant factor larger than the last.

    Args:
        low, high: the first and the last rate; parameters with an `lr_mult` keep their ratio.

    Returns:
        Rates and losses, float64, shape (steps,); the test ends early where the loss is lost.

    Raises:
        ValueError: rates or a number of steps that make no range.
    """
    if not 0 < low < high or iters < 2:
        raise ValueError(f'{low=}, {high=}, {iters=} are no range: 0 < low < high, and at least 2 steps')
    cfg, chosen = load_config(config, options), select_device(device)
    cfg.seed = init_random_seed(seed)
    set_random_seed(cfg.seed)
    model = build_classifier(cfg.model)
    model.init_weights()
    model = model.to(chosen).train()
    loader = build_loader(cfg, 'train', build_dataset(cfg.data.train), chosen)
    optimizer, precision = build_optimizer(model, cfg.optimizer), Precision(chosen, None, bool(cfg.get('bf16')))
    ratios = [group['lr'] / cfg.optimizer.lr for group in optimizer.param_groups]
    rates, losses, batches = np.geomspace(low, high, iters), [], iter(loader)
    for rate in tqdm(rates, desc='lr', disable=None, dynamic_ncols=True):
        batch = next(batches, None)
        if batch is None:  # the next pass
            batches = iter(loader)
            batch = next(batches)
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group['lr'] = rate * ratio
        with precision.autocast():
            loss = model.train_step(batch)['loss']
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or losses[-1] > DIVERGED * min(losses):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rates[:len(losses)], np.array(losses)


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
