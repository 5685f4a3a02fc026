"""One box of a JPEG instead of the whole, by `jpeg_crop.c`, where that was compiled for this environment.

In: the bytes of a file, a box. Out: the pixels that simplejpeg gives there, to the bit, or None.
"""
from __future__ import annotations

import ctypes
import hashlib
import logging
import sys
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

SOURCE = Path(__file__).with_suffix('.c')
WAY_OUT = 'python -m workspace_lib.tools.jpeg_crop compiles it'
UNUSABLE = (OSError, AttributeError, RuntimeError)  # what `load` raises
BESIDE = 63  # columns that the C function may need beside a box
Box = tuple[int, int, int, int]  # top, left, height, width


def library_path(prefix: str = sys.prefix) -> Path:
    """Where the compiled form of this very source belongs: of another source it has another name."""
    return Path(prefix, 'lib', 'workspace_lib', f'jpeg_crop-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so')


@cache
def decoder() -> Any:
    """The C function, or None, with the reason once in the log. A process that forks passes it on."""
    try:
        return load(library_path())
    except UNUSABLE as error:
        logging.getLogger(__name__).info('JPEGs are decoded whole before they are cropped: %s; %s', error, WAY_OUT)
        return None


def load(path: Path) -> Any:
    """The C function of a compiled library.

    Raises:
        OSError, AttributeError: there is none, or it is no library of ours. RuntimeError: it gives other pixels in
            boxes amid noise, wide and narrow, at one of the usual resolutions of chroma.
    """
    function = ctypes.CDLL(str(path)).jpeg_crop
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 7, ctypes.c_void_p]
    noise = (np.arange(80 * 80 * 3) ** 2 % 251).astype(np.uint8).reshape(80, 80, 3)
    for chroma, width in product(('444', '422', '420', '440', '411', 'Gray'), (23, 2)):
        data = simplejpeg.encode_jpeg(noise, 90, 'BGR', chroma)
        box = crop(function, data, (80, 80), (21, 35, 29, width))
        if box is None or not np.array_equal(box, simplejpeg.decode_jpeg(data, 'BGR')[21:50, 35:35 + width]):
            raise RuntimeError(f'{path} gives other pixels than simplejpeg ({chroma}): another kind of libjpeg')
    return function


def crop(function: Any, data: bytes, size: tuple[int, int], box: Box) -> np.ndarray | None:
    """uint8 (height, width, 3) in BGR order; None where the file is no plain JPEG of that `size` (height, width)."""
    height, width = box[2:]
    rows = np.empty((height, width + BESIDE, 3), np.uint8)
    at = function(data, len(data), *size, *box, width + BESIDE, rows.ctypes.data)
    return None if at < 0 else rows[:, at:at + width]
