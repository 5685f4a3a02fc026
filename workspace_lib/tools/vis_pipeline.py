"""``workspace vis_pipeline``: real samples as they are on disk, after each step of their pipeline, and at its end.

In: a config. Out: a `Plot` of each sample; from the command a PNG of each.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..apis import set_random_seed
from ..config import Config
from ..recipes import load_config
from .arguments import add_config, add_part
from .parts import datasets_of
from .plots import Plot, changes, displayed, short_name, styled
from .table import Table

MODES = ('original', 'transformed', 'pipeline', 'concat')


def pipeline_plots(config: str | Config, part: str = 'train', number: int = 4, mode: str = 'pipeline', seed: int = 0,
                   options: dict | None = None) -> Iterator[tuple[str, Plot]]:
    """(name, picture) of the first `number` samples of a part of a config, evenly spread over it.

    Args:
        part: 'train', 'val' or 'test'.
        mode: 'original' shows the file, 'transformed' the end of the pipeline, 'concat' both, 'pipeline' the image
            after each step that changes it. Normalised images are stretched to what a screen can show.
        seed: of the random choices; sample i draws its own with seed + i.

    Raises:
        ValueError: an unknown mode, or no sample asked for.
    """
    if mode not in MODES:
        raise ValueError(f'mode {mode!r} is unknown; choose from {", ".join(MODES)}')
    if number < 1:
        raise ValueError(f'number is {number}; it starts at 1')
    datasets = datasets_of(load_config(config, options), part)
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    for dataset, index in islice(places[::max(1, len(places) // number)], number):
        set_random_seed(seed + index)
        yield f'{index:06d}_{Path(dataset.filename(index)).stem}', sample_plot(dataset, index, mode)


@styled
def sample_plot(dataset: Any, index: int, mode: str = 'pipeline') -> Plot:
    """Sample `index` of a data set in one row of pictures, the name of each below it with shape and dtype."""
    info = dict(dataset.data_infos[index])
    source = 'file' if 'img_info' in info else 'as stored'
    shown = [(source, dataset.load_image(index)), *changes(dataset.pipeline, info)]
    if len(shown) > 1 and shown[1][0].startswith('LoadImage'):
        del shown[1]  # which the file shows already
    shown = {'original': shown[:1], 'transformed': shown[-1:], 'concat': [shown[0], shown[-1]]}.get(mode, shown)
    rows = [(name, 'x'.join(map(str, img.shape)), str(img.dtype).removeprefix('torch.')) for name, img in shown]
    figure = Figure(figsize=(max(4.8, 2.4 * len(shown)), 3.9))
    for axes, (_, img), row in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, rows, strict=True):
        axes.imshow(displayed(img, bgr=row[2] == 'uint8'), cmap='gray')
        axes.set_xlabel('\n'.join(row) + ' (stretched)' * (row[2] != 'uint8'))
        axes.set(xticks=[], yticks=[], anchor='N')  # what is left of the height is for the names
    name = Path(dataset.filename(index)).name
    labels = dataset.get_cat_ids(index) if dataset.CLASSES else []
    classes = ', '.join(short_name(str(dataset.CLASSES[label])) for label in labels)
    figure.suptitle(f'{name}\n{classes}' if classes else name)
    said = ', '.join(f'{step} {shape} {dtype}' for step, shape, dtype in rows)
    return Plot(figure, f'{name} ({classes}) in its pipeline: {said}.', Table(('step', 'shape', 'dtype'), rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_part(parser, 'train')
    parser.add_argument('--number', type=int, default=4, help='of samples, spread over the data set (default 4)')
    parser.add_argument('--mode', choices=MODES, default='pipeline',
                        help='the file, the end of the pipeline, every step (default), or file and end')
    parser.add_argument('--seed', type=int, default=0, help='of the random steps (default 0)')
    parser.add_argument('--output-dir', default='vis_pipeline', help='folder of the pictures (default vis_pipeline)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    folder = Path(args.output_dir)
    for name, plot in pipeline_plots(args.config, args.part, args.number, args.mode, args.seed, args.cfg_options):
        folder.mkdir(parents=True, exist_ok=True)
        path = plot.save(folder / f'{name}_{args.mode}.png')
        print(f'{path}\n{plot.table}\n')
