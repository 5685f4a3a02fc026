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

from ..jpeg_crop import crop, decoder

FLAGS = {'color': cv2.IMREAD_COLOR, 'grayscale': cv2.IMREAD_GRAYSCALE, 'unchanged': cv2.IMREAD_UNCHANGED,
         'color_ignore_orientation': cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
         'grayscale_ignore_orientation': cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION}
BACKENDS = (None, 'cv2', 'pillow')
_FAST = {'color': 'BGR', 'grayscale': 'GRAY'}
WORTH_IT = 128 * 128  # pixels: below that, asking for a part costs more than the whole
_KINDS = {b'\xff\xd8': 'JPEG', b'\x89P': 'PNG'}
_segment = struct.Struct('>HHBHH').unpack_from  # marker, length; of a frame also precision, height, width
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}


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
    return _decoded(*_contents(source), color, backend)


class UndecodedJpeg:
    """A JPEG of which `img[top:bottom, left:right]` is all that gets decoded, with the pixels of `decode`.

    Damage below that box is not noticed. `shape` is (H, W, 3), as the file's header has it.
    """

    def __init__(self, data: bytes, name: object, size: tuple[int, int]) -> None:
        self.data, self.name, self.shape = data, name, (*size, 3)

    def __getitem__(self, box: tuple[slice, slice]) -> np.ndarray:
        (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
        pixels = crop(decoder(), self.data, self.shape[:2], (top, left, bottom - top, right - left))
        return _decoded(self.data, self.name, 'color', None)[box] if pixels is None else pixels


def decode_later(source: bytes | str | PathLike[str]) -> np.ndarray | UndecodedJpeg:
    """As `decode`, in colour; but of a plain JPEG that ends as it should, only the box that is cut out of it later."""
    data, name = _contents(source)
    size = _size_of_plain_jpeg(data)
    if decoder() and size and size[0] * size[1] >= WORTH_IT and data.endswith(b'\xff\xd9'):
        return UndecodedJpeg(data, name, size)
    return _decoded(data, name, 'color', None)


def _contents(source: bytes | str | PathLike[str]) -> tuple[bytes, object]:
    if isinstance(source, bytes):
        return source, '<bytes>'
    with open(source, 'rb') as file:
        return file.read(), source


def _decoded(data: bytes, name: object, color: str, backend: str | None) -> np.ndarray:
    if backend is None and color in _FAST and _size_of_plain_jpeg(data):
        try:
            img = simplejpeg.decode_jpeg(data, _FAST[color])
            return img if color == 'color' else img[:, :, 0]
        except ValueError as error:  # also where libjpeg only warns, so OpenCV has the last word
            if 'Premature end' in str(error):
                raise _broken(name, data, 'JPEG is truncated') from error
    return _with_pillow(data, color, name) if backend == 'pillow' else _with_opencv(data, color, name)


def _size_of_plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG without EXIF data, whose rotation simplejpeg would not see; else None."""
    if data[:2] != b'\xff\xd8':
        return None
    at, end = 2, len(data) - 10
    while at < end:
        marker, length, _, height, width = _segment(data, at)
        if marker in _FRAMES:
            return height, width
        if marker < 0xFFC0 or marker == 0xFFE1 and data[at + 4:at + 10] == b'Exif\0\0':
            return None
        at += 2 + length
    return None


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
