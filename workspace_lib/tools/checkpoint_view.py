"""What is in a checkpoint file: ``workspace checkpoint FILE``, and the same as a table in a notebook.

In: a file, or its dictionary. Out: a row for each entry, with what it is and the bytes of its tensors.
"""
from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..resume import damage_of
from ..safe_load import local_file, read_checkpoint
from .table import Table

_SHOWN = 40  # characters of a value


def contents(checkpoint: dict[str, Any], depth: int = 2) -> Table:
    """Its entries, those of dictionaries down to `depth`, each with what it is and how many bytes its tensors have.

    Raises:
        ValueError: a depth below 1.
    """
    if depth < 1:
        raise ValueError(f'depth {depth}; 1 shows the entries, 2 also what is in them')
    rows = [(path, summary(value), sum(tensor.nbytes for tensor in tensors_in(value)))
            for path, value in _entries(checkpoint, depth)]
    return Table(('entry', 'what it is', 'bytes of tensors'), rows)


def _entries(values: dict[Any, Any], depth: int, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f'{prefix}{key}', value
        if isinstance(value, dict) and depth > 1:
            yield from _entries(value, depth - 1, f'{prefix}{key}.')


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors below, however deep."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def summary(value: Any) -> str:
    """A tensor's dtype and shape, the size of what holds others, the value of anything else, cut where it is long."""
    if isinstance(value, Tensor):
        return f'{str(value.dtype).removeprefix("torch.")} {tuple(value.shape)}'
    if isinstance(value, dict | list | tuple):
        tensors = tensors_in(value)
        held = f', {len(tensors)} tensors with {sum(map(Tensor.numel, tensors)):,} numbers' if tensors else ''
        return f'{type(value).__name__} of {len(value)}{held}'
    text = repr(value)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}... ({type(value).__name__} of {len(text)} characters)'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='path, address or name of a checkpoint')
    parser.add_argument('--depth', type=int, default=2, help='how far to look into dictionaries (2)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    file = local_file(args.checkpoint)
    print(contents(read_checkpoint(args.checkpoint, mmap=True), args.depth))
    if not zipfile.is_zipfile(file):
        print(f'{file.name}: {file.stat().st_size:,} bytes, read; the format before torch 1.6 has no check sums')
        return 0
    damage = damage_of(file)
    print(damage or f'{file.name}: {file.stat().st_size:,} bytes, every one agrees with its check sum')
    return 1 if damage else 0
