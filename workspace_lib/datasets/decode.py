"""Image files to pixels. In: a path or the file's bytes. Out: uint8 (H, W, 3) in BGR order, or (H, W) grey.

Whatever library does the work, the pixels are those of OpenCV, EXIF rotation included.
"""

from __future__ import annotations

import io
import struct
from os import PathLike

import cv2
import numpy as np
import simplejpeg

FLAGS = {
    'color': cv2.IMREAD_COLOR,
    'grayscale': cv2.IMREAD_GRAYSCALE,
    'unchanged': cv2.IMREAD_UNCHANGED,
    'color_ignore_orientation': cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    'grayscale_ignore_orientation': cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
}
BACKENDS = (None, 'cv2', 'pillow')
_COLORSPACE = {'color': 'BGR', 'grayscale': 'GRAY'}
_JPEG, _PNG = b'\xff\xd8', b'\x89PNG'
_SEGMENT = struct.Struct('>HH').unpack_from  # marker, length
_APP1, _SCAN = 0xFFE1, 0xFFDA
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}


class DecodeError(ValueError):
    """An image file that cannot be decoded; the message names the file and the reason."""


def decode(source: bytes | str | PathLike[str], color: str = 'color', backend: str | None = None) -> np.ndarray:
    """Decode one image.

    Args:
        source: a path, or the bytes of the file.
        color: 'color', 'grayscale', 'unchanged', or the first two with `_ignore_orientation`.
        backend: None takes the fastest that gives OpenCV's pixels; 'cv2' or 'pillow' insists on one.

    Returns:
        uint8 (H, W, 3) BGR, or (H, W) for 'grayscale'; 'unchanged' may give 4 channels or uint16.

    Raises:
        DecodeError: no image, or a truncated one.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return _decode(source, color, backend, '<bytes>')
    with open(source, 'rb') as file:
        return _decode(file.read(), color, backend, source)


def _decode(data: bytes, color: str, backend: str | None, name: object) -> np.ndarray:
    if backend == 'pillow':
        return _with_pillow(data, color, name)
    if backend is None and color in _COLORSPACE and _is_plain_jpeg(data):
        try:
            img = simplejpeg.decode_jpeg(data, _COLORSPACE[color])
            return img if color == 'color' else img[:, :, 0]
        except ValueError as error:  # strict: also what libjpeg only warns of, so OpenCV has the last word
            if 'Premature end' in str(error):
                raise DecodeError(f'{name}: the JPEG is truncated after {len(data):,} bytes; '
                                  'copy it again or leave it out') from error
    return _with_opencv(data, color, name)


def _is_plain_jpeg(data: bytes) -> bool:
    """A JPEG of 1 or 3 components without EXIF data: there simplejpeg and OpenCV agree to the bit."""
    if data[:2] != _JPEG:
        return False
    at, end = 2, len(data) - 10
    while at < end:
        marker, length = _SEGMENT(data, at)
        if marker == _SCAN:
            return True
        if marker in _FRAMES and data[at + 9] not in (1, 3):
            return False
        if marker < 0xFFC0 or marker == _APP1 and data[at + 4:at + 10] == b'Exif\0\0':
            return False
        at += 2 + length
    return False


def _with_opencv(data: bytes, color: str, name: object) -> np.ndarray:
    if not data:
        raise DecodeError(f'{name}: the file is empty (0 bytes); copy it again or leave it out')
    try:
        img = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS[color])
    except cv2.error as error:
        raise DecodeError(f'{name}: OpenCV cannot decode it: {error}') from error
    if img is not None:
        return img
    if data[:2] == _JPEG or data[:4] == _PNG:
        kind = 'JPEG' if data[:2] == _JPEG else 'PNG'
        raise DecodeError(f'{name}: the {kind} is truncated or corrupt ({len(data):,} bytes); '
                          'copy it again or leave it out')
    return _with_pillow(data, color, name)


def _with_pillow(data: bytes, color: str, name: object) -> np.ndarray:
    from PIL import Image, ImageOps
    try:
        image = Image.open(io.BytesIO(data))
        if not color.endswith('ignore_orientation'):
            image = ImageOps.exif_transpose(image)
        if color.startswith('grayscale'):
            return np.array(image.convert('L'))
        return np.array(image.convert('RGB'))[:, :, ::-1].copy()
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise DecodeError(f'{name}: not an image that can be decoded, it starts with {data[:8]!r} '
                          f'({type(error).__name__}: {error})') from error
