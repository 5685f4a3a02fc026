"""Decoding: OpenCV's pixels whichever library decodes, and an error that names the file."""
from __future__ import annotations

import importlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from workspace_lib.datasets.decode import DecodeError, decode


@pytest.fixture(scope='module')
def photo() -> Image.Image:
    """Smooth shapes with some noise, 97 x 64, in colour: compresses like a photograph."""
    y, x = np.mgrid[0:64, 0:97]
    waves = np.stack([np.sin(x / 9 + y / 17), np.cos(x / 13), np.sin(y / 7 - x / 31)], -1)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    return Image.fromarray((127 + 100 * waves + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = 'JPEG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opencv(data: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif.tobytes(), quality=90)


def ycck(image: Image.Image) -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK, as Photoshop and some ImageNet files have it."""
    data = bytearray(encoded(image.convert('CMYK')))
    transform = data.index(b'Adobe') + 11
    data[transform] = 2
    return bytes(data)


JPEGS = {
    '444': lambda image: encoded(image, quality=95, subsampling=0),
    '422': lambda image: encoded(image, quality=80, subsampling=1),
    '420': lambda image: encoded(image, quality=75, subsampling=2),
    'progressive': lambda image: encoded(image, progressive=True),
    'grey': lambda image: encoded(image.convert('L')),
    'CMYK': lambda image: encoded(image.convert('CMYK')),
    'YCCK': ycck,
    'comment before tables': lambda image: encoded(image, comment=b'x' * 300),
    'bytes after the end': lambda image: encoded(image) + b'\0' * 64,
}


@pytest.mark.parametrize('kind', JPEGS)
def test_jpeg_has_the_pixels_of_opencv(photo, kind):
    data = JPEGS[kind](photo)
    img = decode(data)
    assert img.dtype == np.uint8
    np.testing.assert_array_equal(img, opencv(data))


@pytest.mark.parametrize('kind', ['444', '420', 'grey', 'CMYK'])
def test_grayscale_has_the_pixels_of_opencv(photo, kind):
    data = JPEGS[kind](photo)
    img = decode(data, 'grayscale')
    assert img.shape == (64, 97)
    np.testing.assert_array_equal(img, opencv(data, cv2.IMREAD_GRAYSCALE))


def test_an_ordinary_jpeg_is_decoded_by_simplejpeg(photo, monkeypatch):
    module = importlib.import_module('workspace_lib.datasets.decode')
    monkeypatch.setattr(module, '_with_opencv', lambda *args: pytest.fail('went to OpenCV'))
    decode(JPEGS['420'](photo))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_rotation_is_honoured(photo, orientation):
    data = with_orientation(photo, orientation)
    img = decode(data)
    assert img.shape == ((64, 97, 3) if orientation < 5 else (97, 64, 3))
    np.testing.assert_array_equal(img, opencv(data))


def test_exif_rotation_can_be_ignored(photo):
    data = with_orientation(photo, 6)
    np.testing.assert_array_equal(decode(data, 'color_ignore_orientation'),
                                  opencv(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION))


def grey_16_bit(image: Image.Image) -> bytes:
    return cv2.imencode('.png', np.asarray(image.convert('L')).astype(np.uint16) * 257)[1].tobytes()


@pytest.mark.parametrize('make', [
    lambda image: encoded(image, 'PNG'),
    lambda image: encoded(image.quantize(16), 'PNG'),
    lambda image: encoded(image.convert('L'), 'PNG'),
    lambda image: encoded(image.convert('LA'), 'PNG'),
    lambda image: encoded(image.convert('RGBA'), 'PNG'),
    lambda image: encoded(image.convert('1'), 'PNG'),
    grey_16_bit,
    lambda image: encoded(image, 'BMP'),
    lambda image: encoded(image, 'PPM'),
    lambda image: encoded(image, 'TIFF'),
], ids=['png', 'palette', 'grey', 'grey+alpha', 'alpha', '1 bit', '16 bit', 'bmp', 'ppm', 'tiff'])
def test_other_formats_become_three_channels_of_uint8(photo, make):
    data = make(photo)
    img = decode(data)
    assert (img.shape, img.dtype) == ((64, 97, 3), np.uint8)
    np.testing.assert_array_equal(img, opencv(data))


def test_a_bad_colour_profile_costs_no_noise_and_no_pixels(photo, capfd):
    profiled = encoded(photo, 'PNG', icc_profile=b'no profile' * 20)
    np.testing.assert_array_equal(decode(profiled), decode(encoded(photo, 'PNG')))
    assert capfd.readouterr().err == ''


def test_a_png_named_jpeg_is_a_png(photo, tmp_path):
    file = tmp_path / 'n02105855_2933.JPEG'
    file.write_bytes(encoded(photo, 'PNG'))
    np.testing.assert_array_equal(decode(file), np.asarray(photo)[:, :, ::-1])


def test_what_opencv_does_not_know_pillow_may(photo):
    data = encoded(photo.quantize(16), 'GIF')
    expected = np.asarray(photo.quantize(16).convert('RGB'))[:, :, ::-1]
    np.testing.assert_allclose(decode(data, backend='pillow'), expected, atol=1)
    assert decode(data).shape == (64, 97, 3)


@pytest.mark.parametrize('color', ['color', 'grayscale', 'unchanged', 'color_ignore_orientation'])
def test_mmcv_gives_the_same_pixels(photo, color):
    mmcv = pytest.importorskip('mmcv')
    for data in [make(photo) for make in JPEGS.values()] + [with_orientation(photo, 8), encoded(photo, 'PNG')]:
        np.testing.assert_array_equal(decode(data, color), mmcv.imfrombytes(data, color))


def half(data: bytes) -> bytes:
    return data[:len(data) // 2]


BROKEN = {
    'half a JPEG': lambda image: half(JPEGS['420'](image)),
    'JPEG without its last bytes': lambda image: JPEGS['444'](image)[:-3],
    'half a progressive JPEG': lambda image: half(JPEGS['progressive'](image)),
    'half a rotated JPEG': lambda image: half(with_orientation(image, 6)),
    'half a CMYK JPEG': lambda image: half(JPEGS['CMYK'](image)),
    'JPEG header only': lambda image: JPEGS['420'](image)[:30],
    'half a PNG': lambda image: half(encoded(image, 'PNG')),
    'PNG without its last chunk': lambda image: encoded(image, 'PNG')[:-20],
    'half a GIF': lambda image: half(encoded(image, 'GIF')),
    'empty': lambda image: b'',
    'an HTML page': lambda image: b'<html><body>404 Not Found</body></html>',
}


@pytest.mark.parametrize('kind', BROKEN)
def test_a_broken_file_is_an_error_that_names_it(photo, tmp_path, kind):
    file = tmp_path / 'broken.JPEG'
    file.write_bytes(BROKEN[kind](photo))
    with pytest.raises(DecodeError, match=r'broken\.JPEG: .*\d bytes; replace'):
        decode(file)


def test_a_jpeg_that_libjpeg_only_warns_of_is_decoded(photo):
    """ImageNet has files with stray bytes between segments: OpenCV reads them, so they are read."""
    data = bytearray(JPEGS['444'](photo))
    data[-2:-2] = b'\x12\x34\x56'
    np.testing.assert_array_equal(decode(bytes(data)), opencv(bytes(data)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.jpg'):
        decode(tmp_path / 'nowhere.jpg')


def test_real_photographs_have_the_pixels_of_opencv(samples_dir):
    files = sorted(Path(samples_dir).rglob('*.JPEG'))[:200]
    assert files
    for file in files:
        np.testing.assert_array_equal(decode(file), opencv(file.read_bytes()), err_msg=str(file))
