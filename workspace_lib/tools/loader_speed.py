"""``workspace loader_speed``: how many images a second the loader makes, by its workers, and where their time goes.

In: a config, or data sets. Out: rates as a `Plot`, seconds by step of the pipeline. Nothing is trained.
"""
from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..apis import loader_config
from ..datasets import build_dataloader
from ..datasets.wrappers import leaves
from ..device import describe_device, is_fast, select_device
from ..recipes import load_config
from .arguments import add_config, add_device, add_part, checked_output
from .crop_decoding import crop_decoding
from .jpeg_crop import ON
from .parts import dataset_of
from .plots import LINES, Plot, styled
from .table import Table


def images_per_second(loader: Any, seconds: float = 2., warm_up: int = 2) -> float:
    """The rate for one who does nothing with the batches, over as many epochs as `seconds` take.

    Args:
        warm_up: batches before the clock starts, in which workers begin.

    Raises:
        ValueError: no time, or no batch.
    """
    _check([0], seconds)
    with closing(_endless(loader)) as batches:
        for _ in range(warm_up):
            next(batches)
        images, start = 0, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds:
            images += len(next(batches)['img'])
    return images / (now - start)


def _check(workers: Sequence[int], seconds: float) -> None:
    if seconds <= 0:
        raise ValueError(f'{seconds:g} seconds; a rate takes more than 0')
    if not workers or min(workers) < 0:
        raise ValueError(f'workers {", ".join(map(str, workers)) or "of no number"}; give numbers from 0 on, '
                         'of which 0 is this process')


def _endless(loader: Any) -> Generator[Any, None, None]:
    while True:
        with closing(iter(loader)) as batches:
            batch = None
            for batch in batches:
                yield batch
        if batch is None:
            raise ValueError('the loader has no batch')


def rates_by_workers(dataset: Any, samples_per_gpu: int, workers: Sequence[int] = (0, 1, 2), seconds: float = 2.,
                     **settings: Any) -> dict[int, float]:
    """Images a second of a shuffling loader, by its number of workers, from the smallest on.

    Args:
        settings: as of ``build_dataloader``; `device` decides how batches are made and whether they are copied.

    Raises:
        ValueError: no time, no number of workers, or one below 0; before anything is measured.
    """
    _check(workers, seconds)
    rates = {}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'This DataLoader will create', UserWarning)  # more than cores: asked for
        for count in sorted(set(workers)):
            loader = build_dataloader(dataset, samples_per_gpu, count, **settings)
            rates[count] = images_per_second(loader, seconds, warm_up=max(2, 4 * count))
            del loader  # its workers end before the next ones begin
    return rates


@styled
def rates_plot(rates: Mapping[str, Mapping[int, float]]) -> Plot:
    """Images a second over the number of workers, a line for each data set, all with the same numbers of workers."""
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    for (name, by_workers), line in zip(rates.items(), LINES, strict=False):
        axes.plot(list(by_workers), list(by_workers.values()), label=name, **line)
    axes.set(xlabel='workers', ylabel='images a second', ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=3)
    counts = list(next(iter(rates.values())))
    rows = [(count, *(by_workers[count] for by_workers in rates.values())) for count in counts]
    return Plot(figure, f'Images a second with {counts[0]} to {counts[-1]} workers: {", ".join(rates)}.',
                Table(('workers', *(f'{name} (1/s)' for name in rates)), rows))


def step_seconds(dataset: Any, indices: Sequence[int]) -> dict[str, float]:
    """CPU seconds an image in each step of the pipeline as it is written, in this process.

    The loader does the same work in another form: it normalises whole batches, and where it can (`crop_decoding`)
    decodes no more of a JPEG than the crop.

    Raises:
        ValueError: no index.
    """
    if not len(indices):
        raise ValueError('at least one sample has to be read')
    steps = dataset.pipeline.steps
    total = [0.] * len(steps)
    for index in indices:
        results = copy.deepcopy(dataset.data_infos[index])
        for number, step in enumerate(steps):
            start = time.process_time()
            results = step(results)
            total[number] += time.process_time() - start
    seconds: dict[str, float] = {}
    for step, spent in zip(steps, total, strict=True):
        name = type(step).__name__
        seconds[name] = seconds.get(name, 0.) + spent / len(indices)
    return seconds


def steps_table(seconds: Mapping[str, float]) -> Table:
    """What `step_seconds` found, in milliseconds an image and in percent."""
    whole = sum(seconds.values()) or 1.
    return Table(('step', 'CPU (ms/image)', 'of all (%)'),
                 [(name, f'{1e3 * spent:.3f}', 100 * spent / whole) for name, spent in seconds.items()])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_part(parser, 'train')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2, 4], help='to try (default 0 1 2 4)')
    parser.add_argument('--seconds', type=float, default=5., help='for each of them (default 5)')
    add_device(parser)
    parser.add_argument('--out', default='loader_speed.png', help='picture (default loader_speed.png)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    path = checked_output(args.out, ('.png', '.svg', '.pdf'), '--out')
    _check(args.workers, args.seconds)
    device = select_device(args.device)
    cfg = load_config(args.config, args.cfg_options)
    dataset = dataset_of(cfg, args.part)
    first = leaves(dataset)[0]
    print(steps_table(step_seconds(first, range(min(len(first), 100)))), flush=True)
    if said := crop_decoding(first):
        print(said + '; these steps are timed one by one, on whole files' * (said == ON), flush=True)
    settings = {key: value for key, value in loader_config(cfg, args.part).items()
                if key not in ('workers_per_gpu', 'dist')}
    settings = {'channels_last': is_fast(cfg.get('channels_last'), device), **settings}
    rates = rates_by_workers(dataset, workers=args.workers, seconds=args.seconds, device=device, **settings)
    plot = rates_plot({Path(args.config).stem: rates})
    print(f'\n{plot.table}\nbatches of {settings["samples_per_gpu"]} for {describe_device(device)}\n')
    print(plot.save(path))
