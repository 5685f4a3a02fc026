"""Pictures made smaller, as the loader would see them: BGR, turned as EXIF says, CMYK and grey as colour.

In: a file's bytes. Out: pixels, or a JPEG. Heavy imports (cv2) stay in here, so that unpacking does without them.
"""
from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

QUALITY = 90
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Size:
    """A limit: `side` is 'short' or 'long', and that side gets `pixels` where it has more."""

    side: str
    pixels: int

    def __str__(self) -> str:
        return f'{self.side}{self.pixels}'

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width within the limit, the shape kept; never larger than they were."""
        now = min(height, width) if self.side == 'short' else max(height, width)
        if now <= self.pixels:
            return height, width
        scale = self.pixels / now
        return max(1, round(height * scale)), max(1, round(width * scale))


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV works in the thread that calls it, and not on all cores at once."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def plain_jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in colour or grey without EXIF data; None for all that needs a closer look."""
    at = 2
    if data[:2] != b'\xff\xd8':
        return None
    while at + 10 < len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from('>BH', data, at + 1)
        if marker in _START_OF_FRAME:
            height, width, channels = struct.unpack_from('>HHB', data, at + 5)
            return (height, width) if channels in (1, 3) and height and width else None
        if marker == 0xE1 and data[at + 4:at + 10] == b'Exif\0\0':
            return None
        at += 2 + length
    return None


def pixels_of(data: bytes, name: str, is_plain: bool | None = None) -> np.ndarray:
    """uint8 (H, W, 3) in BGR order. ValueError names the file. `is_plain`: of a plain JPEG, where that is known."""
    if not data:
        raise ValueError(f'{name}: the file is empty')
    if plain_jpeg_shape(data) if is_plain is None else is_plain:
        try:
            return simplejpeg.decode_jpeg(data, 'BGR')
        except ValueError as error:  # also where libjpeg only warns, so OpenCV has the last word
            if 'Premature end' in str(error):
                raise ValueError(f'{name}: the JPEG is truncated') from error
    try:
        img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # such as more pixels than it allows
        raise ValueError(f'{name}: OpenCV refuses it ({error.err})') from error
    return _with_pillow(data, name) if img is None else img


def _with_pillow(data: bytes, name: str) -> np.ndarray:
    from PIL import Image, ImageOps
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        return np.array(image.convert('RGB'))[:, :, ::-1].copy()
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise ValueError(f'{name}: no decoder takes it ({error})') from error


def shape_of(data: bytes, size: Size, name: str) -> tuple[int, int]:
    """Height and width that `shrunk` gives."""
    return size.of(*(plain_jpeg_shape(data) or pixels_of(data, name).shape[:2]))


def shrunk(data: bytes, size: Size, name: str, is_plain: bool | None = None) -> np.ndarray:
    """The picture within `size`: uint8 (H, W, 3) BGR, averaged over areas, so that nothing aliases."""
    img = pixels_of(data, name, is_plain)
    height, width = size.of(*img.shape[:2])
    if (height, width) == img.shape[:2]:
        return img
    return cv2.resize(img, (width, height), interpolation=cv2.INTER_AREA)


def shrunk_jpeg(data: bytes, size: Size, name: str) -> bytes:
    """The picture within `size` as a JPEG; one that is already is kept as it is, to the byte."""
    shape = plain_jpeg_shape(data)
    if shape is not None and size.of(*shape) == shape:
        return data
    done, jpeg = cv2.imencode('.jpg', shrunk(data, size, name, shape is not None), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise ValueError(f'{name}: OpenCV cannot write it as JPEG')
    return jpeg.tobytes()
