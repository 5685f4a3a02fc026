"""``workspace analyze_logs``: learning curves of several runs in one picture, and how long their iterations took.

In: logs as JSON lines, ours or mmclassification's, or the folders they lie in. Out: a `Plot` and a `Table`.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..config.merge import near_names
from .arguments import checked_output
from .plots import LINES, Plot, read_log, styled
from .table import Table

Entries = Sequence[Mapping[str, Any]]
UNITS = {'time': 's', 'data_time': 's', 'memory': 'MiB', 'images_per_second': '1/s'}
_PERCENT = ('accuracy', 'top-', 'precision', 'recall', 'f1_score', 'mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
_MARKERS = 15  # a line has, at most


def read_runs(paths: Sequence[str | os.PathLike]) -> dict[str, list[dict[str, Any]]]:
    """Name -> entries of each run; the name is the folder's, with the file's where folders are the same."""
    folders = [path if path.is_dir() else path.resolve().parent for path in map(Path, paths)]
    names = [folder.name if folders.count(folder) == 1 else Path(path).name.removesuffix('.json').removesuffix('.log')
             for folder, path in zip(folders, paths, strict=True)]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return {name: read_log(path) for name, path in zip(names, paths, strict=True)}


def curve(entries: Entries, key: str, iters_per_epoch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of one key: its training entries, where there are any, else its validations.

    x counts epochs, or iterations where a run counts these on from epoch to epoch (`counts_iterations`). An epoch is
    as long as its last entry tells, unless `iters_per_epoch` does: the first one may not have ended.

    Raises:
        KeyError: no entry has the key.
    """
    train = [entry for entry in entries if entry['mode'] == 'train']
    found = [entry for entry in train if key in entry] or [entry for entry in entries if key in entry]
    if not found:
        known = {key for entry in entries for key, value in entry.items() if isinstance(value, int | float)}
        raise KeyError(f'no entry with {key!r}{near_names(key, known)}; known: {", ".join(sorted(known))}')
    y = np.array([entry[key] for entry in found], dtype=float)
    if counts_iterations(entries):
        return np.array([entry['iter'] for entry in found], dtype=float), y
    per_epoch = iters_per_epoch or max((entry['iter'] for entry in train), default=1)
    return np.array([entry['epoch'] - 1 + entry['iter'] / per_epoch if entry['mode'] == 'train' else entry['epoch']
                     for entry in found]), y


def counts_iterations(entries: Entries) -> bool:
    """Whether `iter` goes on where an epoch ends, as in a run of a number of iterations."""
    train = [entry for entry in entries if entry['mode'] == 'train']
    ends = [(a, b) for a, b in zip(train, train[1:], strict=False) if a['epoch'] != b['epoch']]
    return bool(ends) and all(a['iter'] < b['iter'] for a, b in ends)


@styled
def curves_plot(runs: Mapping[str, Entries], keys: Sequence[str] = ('loss', 'accuracy_top-1'),
                iters_per_epoch: int | None = None) -> Plot:
    """A picture a key, a line a run; the table has the first, the best and the last value of each.

    `iters_per_epoch`: see `curve`.

    Raises:
        KeyError: a run without the key.
        ValueError: nothing to draw, or runs counted in epochs beside runs counted in iterations.
    """
    if not runs or not keys:
        raise ValueError(f'nothing to draw: {len(runs)} runs, {len(keys)} keys')
    axis = {'iteration' if counts_iterations(entries) else 'epoch' for entries in runs.values()}
    if len(axis) > 1:
        raise ValueError('some of the runs count epochs and some iterations; draw them apart')
    columns = min(len(keys), 2)
    lines = -(-len(keys) // columns)
    figure = Figure(figsize=(4.6 * columns if columns > 1 else 7, 3.2 * lines + 0.3 * len(runs)))
    grid = figure.subplots(lines, columns, squeeze=False)
    rows = []
    for axes, key in zip(grid.flat, keys, strict=False):
        for number, (name, entries) in enumerate(runs.items()):
            x, y = _named(name, entries, key, iters_per_epoch)
            axes.plot(x, y, label=name, markersize=5, markevery=max(1, len(x) // _MARKERS),
                      **LINES[number % len(LINES)])
            best = y.min() if 'loss' in key or 'time' in key else y.max()
            rows.append((name, key, len(y), *(f'{value:.5g}' for value in (y[0], best, y[-1]))))
        axes.set(xlabel=axis.copy().pop(), ylabel=labelled(key))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(keys):]:
        axes.axis('off')
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc='outside lower center', ncols=min(len(runs), 3))
    said = '; '.join(f'{key} of {name} from {first} to {last}' for name, key, _, first, _, last in rows)
    return Plot(figure, f'Learning curves: {said}.', Table(('run', 'key', 'entries', 'first', 'best', 'last'), rows))


def _named(name: str, entries: Entries, key: str, iters_per_epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        return curve(entries, key, iters_per_epoch)
    except KeyError as error:
        error.add_note(f'in the log of {name}')
        raise


def labelled(key: str) -> str:
    """A key with its unit."""
    unit = UNITS.get(key) or ('%' if key.startswith(_PERCENT) else '')
    return f'{key} ({unit})' if unit else key


def time_table(runs: Mapping[str, Entries], include_outliers: bool = False) -> Table:
    """Seconds an iteration by run: mean, deviation of epochs, fastest and slowest epoch, share of waiting for data.

    The first entry of each epoch, in which loaders start, is left out unless `include_outliers`.
    """
    rows = [row for name, entries in runs.items() if (row := _times(name, entries, include_outliers))]
    return Table(('run', 'entries', 's/iter', 'deviation of epochs', 'fastest epoch', 's/iter there', 'slowest epoch',
                  's/iter then', 'waiting for data (%)'), rows)


def _times(name: str, entries: Entries, include_outliers: bool) -> tuple | None:
    by_epoch: dict[int, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry['mode'] == 'train' and 'time' in entry:
            by_epoch.setdefault(entry['epoch'], []).append(entry)
    if not by_epoch:
        return None
    kept = {epoch: of[1:] if len(of) > 1 and not include_outliers else of for epoch, of in by_epoch.items()}
    means = {epoch: float(np.mean([entry['time'] for entry in of])) for epoch, of in kept.items()}
    everything = [entry for of in kept.values() for entry in of]
    time = np.mean([entry['time'] for entry in everything])
    waiting = np.mean([entry.get('data_time', np.nan) for entry in everything]) / time
    fastest, slowest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return (name, len(everything), f'{time:.4f}', f'{np.std(list(means.values())):.4f}', fastest,
            f'{means[fastest]:.4f}', slowest, f'{means[slowest]:.4f}', 100 * waiting)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('logs', nargs='+', metavar='FILE', help='*.log.json, or the folder of a run')
    parser.add_argument('--keys', nargs='+', help='what to draw (default: loss, and accuracy_top-1 where there is one)')
    parser.add_argument('--legend', nargs='+', metavar='NAME', help='names of the runs, in order')
    parser.add_argument('--include-outliers', action='store_true', help='count the first entry of each epoch too')
    parser.add_argument('--out', default='curves.png', help='picture (default curves.png)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    path = checked_output(args.out, ('.png', '.svg', '.pdf'), '--out')
    # mmclassification has a subcommand for each of the two; here both are done.
    runs = read_runs(args.logs[1:] if args.logs[0] in ('plot_curve', 'cal_train_time') else args.logs)
    if args.legend:
        if len(args.legend) != len(runs):
            raise ValueError(f'--legend has {len(args.legend)} names for {len(runs)} runs')
        runs = dict(zip(args.legend, runs.values(), strict=True))
    plot = curves_plot(runs, args.keys or default_keys(runs))
    print(f'{plot.table}\n\n{time_table(runs, args.include_outliers)}\n\n{plot.save(path)}')


def default_keys(runs: Mapping[str, Entries]) -> list[str]:
    """Of the loss and the usual metrics those that every run has."""
    return [key for key in ('loss', 'accuracy_top-1', 'accuracy', 'mAP')
            if all(any(key in entry for entry in entries) for entries in runs.values())] or ['loss']
