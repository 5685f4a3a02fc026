"""``workspace vis_batch``: a batch as the model gets it, drawn as a grid: normalisation undone, each with its label.

In: a config, or a loader. Out: a `Plot`; the files of the batch by name in its table.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from matplotlib.figure import Figure

from ..apis import build_loader, init_random_seed
from ..datasets.wrappers import leaves
from ..log_writers import in_colour
from ..recipes import load_config
from .arguments import add_config, add_part, checked_output
from .parts import dataset_of
from .plots import Plot, label_names, styled
from .table import Table


def take_batch(loader: Any, epoch: int = 0, number: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Batch `number` of an epoch, both counted from 0, and the files in it; no other batch is made.

    Raises:
        IndexError: no such epoch, or the epoch has no such batch.
    """
    if epoch < 0:
        raise IndexError(f'epoch {epoch}: they are counted from 0')
    if not 0 <= number < len(loader):
        raise IndexError(f'batch {number} is not one of the epoch: they are 0 to {len(loader) - 1}')
    loader.set_epoch(epoch)
    loader.start_at(number)
    with closing(iter(loader)) as batches:
        return next(batches), loader.files(epoch, number)


def with_labels(batch: dict[str, Any], loader: Any, epoch: int, number: int) -> dict[str, Any]:
    """The batch with `gt_label`: the data set's, where a pipeline of tests collects only the images. If it has any."""
    if 'gt_label' in batch:
        return batch
    try:
        labels = loader.dataset.get_gt_labels()
    except (AttributeError, KeyError):  # images without annotations
        return batch
    return {**batch, 'gt_label': torch.as_tensor(labels[loader._requests.indices_of(epoch, number)])}


@styled
def batch_plot(batch: dict[str, Any], loader: Any, names: Sequence[str] = (), first: int = 0, count: int = 32,
               columns: int = 8) -> Plot:
    """`count` images of a batch, from number `first` on, as they were before normalisation.

    Args:
        batch: `img` (N, C, H, W) with 1 or 3 channels; `gt_label`, if it has one: (N,), or (N, classes) where labels
            are mixed or several.
        loader: where it comes from: it knows how images were normalised, and the classes. Those that were normalised
            one by one are stretched instead.
        names: of the files, for the table.

    Raises:
        IndexError: nothing there to draw.
        ValueError: another number of channels, no column, or names of another number than images.
    """
    size, classes = len(batch['img']), leaves(loader.dataset)[0].CLASSES
    if not 0 <= first < size or count < 1:
        raise IndexError(f'{count} images from number {first} on, of a batch of {size}')
    if (channels := batch['img'].shape[1]) not in (1, 3):
        raise ValueError(f'images of {channels} channels cannot be drawn; of 1 or 3 they can')
    if columns < 1:
        raise ValueError(f'{columns} columns; at least 1')
    if names and len(names) != size:
        raise ValueError(f'{len(names)} names for {size} images; give one for each of the batch')
    images = in_colour(batch['img'][first:first + count], loader).permute(0, 2, 3, 1).numpy()
    labels = [label_text(label, classes) for label in batch['gt_label'][first:first + count]] \
        if 'gt_label' in batch else [''] * len(images)
    lines = max(label.count('\n') + 1 for label in labels)
    columns = min(columns, 4) if any(len(part) > 9 for label in labels for part in label.split('\n')) else columns
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(8, (8 / columns + 0.25 * lines) * rows))
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis('off')
    for axes, image, label in zip(grid.flat, images, labels, strict=False):
        axes.imshow(image, cmap='gray', vmin=0, vmax=1)
        axes.set_title(label)
    told = ', '.join(label.replace('\n', ' and ') for label in labels)
    what = f'of a batch {tuple(batch["img"].shape)} of {str(batch["img"].dtype).removeprefix("torch.")}'
    return Plot(figure, f'Images {first} to {first + len(images) - 1} {what}, their labels: {told}.', _table(
        labels, batch.get('gt_label'), classes, names, first))


def label_text(label: torch.Tensor, classes: Sequence[str] | None) -> str:
    """A label in words: its class; of a mixed one the classes with their shares; of several each one's."""
    def named(number: int) -> str:
        return label_names([classes[number]])[0] if classes else str(number)

    if label.dim() == 0:
        return named(int(label))
    shares = {i: float(label[i]) for i in label.nonzero().flatten().tolist()}
    if label.is_floating_point() and len(shares) > 1 and abs(sum(shares.values()) - 1) < 1e-3:
        two = sorted(shares, key=lambda i: -shares[i])[:2]
        return '\n'.join(f'{named(i)} {100 * shares[i]:.0f} %' for i in two)
    return '\n'.join(map(named, shares)) or 'none'


def _table(labels: Sequence[str], values: Any, classes: Sequence[str] | None, names: Sequence[str],
           first: int) -> Table:
    rows = []
    for number, label in enumerate(labels, first):
        if classes and values is not None and values.dim() == 1:
            label = str(classes[int(values[number])])  # in full
        rows.append((number, label.replace('\n', ', '), names[number] if names else ''))
    return Table(('image', 'label', 'file'), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_part(parser, 'train')
    parser.add_argument('--epoch', type=int, default=0, help='which one, from 0: each has its own order and chance')
    parser.add_argument('--batch', type=int, default=0, help='of that epoch, from 0')
    parser.add_argument('--number', type=int, default=32, help='of images (default 32)')
    parser.add_argument('--seed', type=int, help="of order and chance (default the config's, else a fresh one)")
    parser.add_argument('--out', default='vis_batch.png', help='picture (default vis_batch.png)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    path = checked_output(args.out, ('.png', '.svg', '.pdf'), '--out')
    cfg = load_config(args.config, args.cfg_options)
    cfg.seed = init_random_seed(args.seed if args.seed is not None else cfg.get('seed'))
    dataset = dataset_of(cfg, args.part)
    # Workers change no batch, and to start them for one takes longer than to make it.
    loader = build_loader(cfg, args.part, dataset, torch.device('cpu'), workers_per_gpu=0)
    try:
        batch, names = take_batch(loader, args.epoch, args.batch)
        plot = batch_plot(with_labels(batch, loader, args.epoch, args.batch), loader, names, count=args.number)
    except IndexError as error:  # which the command line would print with its class, as if it were a fault of ours
        raise ValueError(str(error)) from None
    print(f'{plot.table}\n\nbatch {args.batch} of epoch {args.epoch}, seed {cfg.seed}\n{plot.save(path)}')
