"""Arguments that several commands share. In: a parser. Out: the same parser, with them; nothing here loads torch."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .options import DictAction


def add_config(parser: argparse.ArgumentParser) -> None:
    """The config, and the values of it to override."""
    parser.add_argument('config', help='path of a config, or its name below workspace_lib/configs')
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override values of the config: optimizer.lr=0.01 data.samples_per_gpu=64')


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='path, https://..., or a name: mmcls://NAME, torchvision://NAME, packaged://NAME')


def add_device(parser: argparse.ArgumentParser, default: str | None = 'auto') -> None:
    parser.add_argument('--device', default=default, help='auto (default), cpu, cuda or cuda:N')


def add_part(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument('--part', '--phase', choices=['train', 'val', 'test'], default=default,
                        help=f'which data set of the config (default {default})')


def add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--metrics', nargs='+', metavar='METRIC',
                        help='accuracy precision recall f1_score support; of several labels mAP CP CR CF1 OP OR OF1')
    parser.add_argument('--metric-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='topk=(1,5) thrs=(0.1,0.5) average_mode=none')


def checked_output(path: str | Path, endings: Sequence[str], option: str) -> Path:
    """The path of a file that can be written: its ending is one of `endings` (none: any), and its folder is there.

    Raises:
        ValueError: another ending.
        FileNotFoundError: no such folder; found before an hour of work rather than after it.
    """
    path = Path(path)
    if endings and path.suffix not in endings:
        raise ValueError(f'{option} {path}: the name ends in {", ".join(endings)}')
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f'{option} {path}: the folder {path.resolve().parent} does not exist')
    return path
