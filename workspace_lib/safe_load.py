"""Reads a checkpoint file without running what is in it.

In: a path, an address, a published name. Out: its dictionary; anything beyond tensors, numbers and text is refused.
"""

from __future__ import annotations

import difflib
import os
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .download import fetch
from .model_zoo import SCHEMES, address_of
from .packaged import our_name, packaged_file

_EXAMPLES = 5


class UnsafeCheckpointError(ValueError):
    """The file asks for a class or function that weights do not need; it was not run."""


class Inert:
    """In place of an object of another library: takes any state, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def allowed_globals() -> list[Any]:
    """What files of mmcv 1.x hold beside tensors: numpy scalars and arrays, and mmcv's Config."""
    scalar, array = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    moved = [(f, f'numpy.{core}.multiarray.{f.__name__}') for f in (scalar, array)  # type: ignore[union-attr]
             for core in ('core', '_core')]
    dtypes = [type(np.dtype(code)) for code in '?bhilqpBHILQPefdgFDGSUMm']
    # In place of another library's dict a standard one: the unpickler fills no other.
    stubs = [(Inert, 'mmcv.utils.config.Config'), (OrderedDict, 'mmcv.utils.config.ConfigDict'),
             (OrderedDict, 'addict.addict.Dict')]
    return [np.ndarray, np.dtype, *dtypes, *moved, *stubs]


def read_checkpoint(filename: str | os.PathLike, map_location: Any = 'cpu', mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, as it was saved.

    Args:
        filename: a path; `https://...`, `mmcls://resnet50_8xb32_in1k`, `open-mmlab://...`, `torchvision://resnet50`
            (fetched once); or `packaged://efficientnet-lite0` (real ImageNet weights from the package index).
        map_location: where tensors go, as for `torch.load`.
        mmap: read of a tensor only what is used of it, where the file's format allows.

    Raises:
        FileNotFoundError: no such file; similar names are listed.
        ConnectionError: it could not be fetched; says what to put where by hand.
        UnsafeCheckpointError: it holds more than weights, numbers and text.
        ValueError: it is damaged, no checkpoint, or nothing has that name.
    """
    content = _read(local_file(filename), map_location, mmap)
    if str(filename).startswith('packaged://'):
        return dict(meta={}, state_dict=OrderedDict((our_name(k), v) for k, v in content.items()))
    return content


def local_file(filename: str | os.PathLike) -> Path:
    """The file behind a path, an address or a name, fetched where needed; raises as `read_checkpoint` does."""
    scheme, separator, name = str(filename).partition('://')
    if not separator:
        path = Path(filename).expanduser()
        if not path.is_file():
            raise FileNotFoundError(_not_there(path))
        return path
    if scheme == 'packaged':
        return packaged_file(name)
    if scheme in SCHEMES:
        return fetch(address_of(scheme, name))
    if scheme in ('http', 'https'):
        return fetch(str(filename))
    raise ValueError(f'{filename}: {scheme}:// is unknown; known: a path, https://, '
                     f'{", ".join(f"{known}://" for known in SCHEMES)}, packaged://')


def _not_there(path: Path) -> str:
    if path.is_dir():
        return f'{path} is a folder, not a checkpoint; in it: {some(p.name for p in path.glob("*.pth"))}'
    if not path.parent.is_dir():
        return f'no checkpoint {path}: there is no folder {path.parent}'
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), 3, 0.5)
    return f'no checkpoint {path}' + (f'; near by: {", ".join(near)}' if near else '')


def _read(path: Path, map_location: Any, mmap: bool = False) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(allowed_globals()), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # advice on the very files that are refused below
            content = torch.load(path, map_location=map_location, weights_only=True,
                                 mmap=mmap and zipfile.is_zipfile(path))  # not a file of before torch 1.6
    except PermissionError:
        raise
    except Exception as error:  # a torn file raises nearly anything
        raise _refused(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not a dictionary of weights')
    return content


def _refused(path: Path, error: Exception) -> ValueError:
    wanted = re.findall(r'GLOBAL ([\w.]+) wh?[ao]s', str(error)) or _pickled_globals(path)
    if wanted or re.search('Can only|unrecognized function', str(error)):
        return UnsafeCheckpointError(
            f'{path} is refused: it asks for {some(wanted) or "an object"}, which weights do not need and '
            'which could run code. Nothing of it was run. If you trust it, open it where it was written, and '
            'save only its state_dict')
    # torch's own text goes on to advise unsafe loading
    cause = re.search(r'WeightsUnpickler error:\s*(.+)', str(error))
    text = cause[1] if cause else str(error).split('. In PyTorch')[0].split('. This is')[0]
    return ValueError(f'{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: truncated, or '
                      f'another kind of file? torch says: {type(error).__name__} {text}')


def _pickled_globals(path: Path) -> list[str]:
    """What a plain pickle would import, in a protocol that torch does not write; [] for other files."""
    names: list[str] = []
    texts: list[str] = []
    try:
        with path.open('rb') as file:
            for code, argument, _ in pickletools.genops(file):
                if code.name == 'STACK_GLOBAL':
                    names.append('.'.join(texts[-2:]))
                elif code.name == 'GLOBAL':
                    names.append(str(argument).replace(' ', '.'))
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # no pickle, or a torn one: the reader fails with nearly anything
        return []
    return [name for name in names if not name.startswith(('torch.', 'collections.'))]


def some(names: Iterable[str]) -> str:
    names = list(names)
    more = f', ... ({len(names) - _EXAMPLES} more)' if len(names) > _EXAMPLES else ''
    return ', '.join(names[:_EXAMPLES]) + more
