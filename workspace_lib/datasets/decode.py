"""Image files to pixels. In: a path or a file's bytes. Out: uint8 (H, W, 3) in BGR order, or (H, W) grey.

Whichever library does the work, the pixels are OpenCV's, to the bit and with EXIF rotation.
"""
from __future__ import annotations

import io
import struct
from os import PathLike

import cv2
import numpy as np
import simplejpeg

FLAGS = {'color': cv2.IMREAD_COLOR, 'grayscale': cv2.IMREAD_GRAYSCALE, 'unchanged': cv2.IMREAD_UNCHANGED,
         'color_ignore_orientation': cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
         'grayscale_ignore_orientation': cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION}
BACKENDS = (None, 'cv2', 'pillow')
_FAST = {'color': 'BGR', 'grayscale': 'GRAY'}
_KINDS = {b'\xff\xd8': 'JPEG', b'\x89P': 'PNG'}
_segment = struct.Struct('>HH').unpack_from


class DecodeError(ValueError):
    """An image file that cannot be decoded; the message names the file and the reason."""


def decode(source: bytes | str | PathLike[str], color: str = 'color', backend: str | None = None) -> np.ndarray:
    """Decode one image.

    Args:
        source: a path, or the bytes of the file.
        color: 'color', 'grayscale', 'unchanged', or one of the first two with `_ignore_orientation`.
        backend: None takes the fastest that gives OpenCV's pixels; 'cv2' or 'pillow' insists on one.

    Returns:
        uint8 (H, W, 3) BGR, or (H, W) for 'grayscale'; 'unchanged' may give 4 channels or uint16.

    Raises:
        DecodeError: no image, or a truncated one.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        data, name = source, '<bytes>'
    else:
        name = source  # type: ignore[assignment]
        with open(source, 'rb') as file:
            data = file.read()
    if backend is None and color in _FAST and _is_plain_jpeg(data):
        try:
            img = simplejpeg.decode_jpeg(data, _FAST[color])
            return img if color == 'color' else img[:, :, 0]
        except ValueError as error:  # also where libjpeg only warns, so OpenCV has the last word
            if 'Premature end' in str(error):
                raise _broken(name, data, 'JPEG is truncated') from error
    return _with_pillow(data, color, name) if backend == 'pillow' else _with_opencv(data, color, name)


def _is_plain_jpeg(data: bytes) -> bool:
    """A JPEG without EXIF data, whose rotation simplejpeg would not see. EXIF comes before any table."""
    if data[:2] != b'\xff\xd8':
        return False
    at, end = 2, len(data) - 10
    while at < end:
        marker, length = _segment(data, at)
        if not (0xFFE0 <= marker <= 0xFFEF or marker == 0xFFFE):  # neither application data nor a comment
            return marker >= 0xFFC0
        if marker == 0xFFE1 and data[at + 4:at + 10] == b'Exif\0\0':
            return False
        at += 2 + length
    return False


def _with_opencv(data: bytes, color: str, name: object) -> np.ndarray:
    if not data:
        raise _broken(name, data, 'the file is empty')
    try:
        img = cv2.imdecode(np.frombuffer(_without_profile(data), np.uint8), FLAGS[color])
    except cv2.error as error:  # such as more pixels than it allows
        raise _broken(name, data, f'OpenCV refuses it ({error.err})') from error
    if img is None and data[:2] in _KINDS:
        raise _broken(name, data, f'{_KINDS[data[:2]]} is truncated or corrupt')
    return _with_pillow(data, color, name) if img is None else img


def _without_profile(data: bytes) -> bytes:
    """A PNG without its colour profile: OpenCV does not apply it, but libpng complains about many of them on stderr."""
    at = data.find(b'iCCP', 0, max(data.find(b'IDAT'), 0)) if data[:4] == b'\x89PNG' else -1
    if at < 0:
        return data
    length = int.from_bytes(data[at - 4:at])  # of the content, which the name precedes and a checksum follows
    return data[:at - 4] + data[at + 4 + length + 4:]


def _with_pillow(data: bytes, color: str, name: object) -> np.ndarray:
    from PIL import Image, ImageOps
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image = image if color.endswith('ignore_orientation') else ImageOps.exif_transpose(image)
        if color.startswith('grayscale'):
            return np.array(image.convert('L'))
        return np.array(image.convert('RGB'))[:, :, ::-1].copy()
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise _broken(name, data, f'no decoder takes it, it starts with {data[:8]!r} ({error})') from error


def _broken(name: object, data: bytes, reason: str) -> DecodeError:
    return DecodeError(f'{name}: {reason}, {len(data):,} bytes; replace the file or leave it out (the data set\'s '
                       'skip_broken=True does)')
