"""Only the box that is cropped is decoded, and no pixel is another for that."""
from __future__ import annotations

import importlib
import io
import logging
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from workspace_lib import jpeg_crop
from workspace_lib.datasets import CustomDataset, DecodeError, Pipeline, build_dataset
from workspace_lib.datasets.decode import decode, decode_later
from workspace_lib.datasets.formatting import LoadImageFromFile
from workspace_lib.datasets.transforms import RandomResizedCrop
from workspace_lib.jpeg_crop import BESIDE, Box, crop, library_path, load
from workspace_lib.tools import crop_decoding as words
from workspace_lib.tools import jpeg_crop as tool

SIZES = [(150, 200), (64, 97), (41, 33), (17, 16), (16, 17), (5, 7), (1, 1), (90, 3), (2, 130), (40, 19)]
LOAD, CROP = dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=96)
REST = [dict(type='RandomFlip'), dict(type='Normalize', mean=[120.] * 3, std=[60.] * 3),
        dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
        dict(type='Collect', keys=['img', 'gt_label'])]


@pytest.fixture(scope='module')
def library(tmp_path_factory) -> Path:
    path = library_path(str(tmp_path_factory.mktemp('prefix')))
    try:
        tool.build(path)
    except RuntimeError as error:
        pytest.skip(str(error))
    return path


@pytest.fixture(scope='module')
def function(library) -> Any:
    return load(library)


@pytest.fixture
def choose(monkeypatch) -> Iterator[Any]:
    """A call with the path of a library makes it that of this environment."""
    def of(path: Path) -> None:
        monkeypatch.setattr(jpeg_crop, 'library_path', lambda: path)
        jpeg_crop.decoder.cache_clear()
    yield of
    jpeg_crop.decoder.cache_clear()


@pytest.fixture
def on(library, choose) -> None:
    choose(library)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def photo(height: int = 240, width: int = 320) -> Image.Image:
    """Smooth with some noise, in colour: compresses like a photograph."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 29 + y / 37), np.cos(x / 23), np.sin(y / 17 - x / 31)], -1)
    return Image.fromarray((127 + 100 * waves + noise(height, width) % 16).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = 'JPEG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def boxes(height: int, width: int, count: int = 16) -> Iterator[Box]:
    """The whole image, its corners, its edges, single pixels, and any."""
    rng = random.Random(height * width)
    yield 0, 0, height, width
    for _ in range(count):
        h, w = rng.choice([1, rng.randint(1, height), height]), rng.choice([1, rng.randint(1, width), width])
        yield (rng.choice([0, height - h, rng.randint(0, height - h)]),
               rng.choice([0, width - w, rng.randint(0, width - w)]), h, w)


def check_boxes(function: Any, data: bytes, count: int = 16) -> None:
    whole = simplejpeg.decode_jpeg(data, 'BGR')
    for top, left, h, w in boxes(*whole.shape[:2], count):
        box = crop(function, data, whole.shape[:2], (top, left, h, w))
        np.testing.assert_array_equal(box, whole[top:top + h, left:left + w], err_msg=str((top, left, h, w)))


class TestBox:
    @pytest.mark.parametrize('quality', [5, 60, 98])
    @pytest.mark.parametrize('chroma', ['444', '422', '420', '440', '411', 'grey'])
    def test_has_the_pixels_of_the_whole(self, function, chroma, quality):
        for size in SIZES:
            if chroma == 'grey':
                data = simplejpeg.encode_jpeg(noise(*size)[:, :, :1].copy(), quality, 'GRAY', 'GRAY')
            else:
                data = simplejpeg.encode_jpeg(noise(*size), quality, 'BGR', chroma)
            check_boxes(function, data)

    @pytest.mark.parametrize('options', [
        dict(restart_marker_blocks=3), dict(restart_marker_rows=1), dict(restart_marker_rows=2, subsampling=0),
        dict(optimize=True), dict(keep_rgb=True), dict(comment=b'x' * 300), dict(icc_profile=b'y' * 500)], ids=str)
    def test_whatever_else_the_file_holds(self, function, options):
        check_boxes(function, encoded(photo(), **options), 40)

    def test_at_every_column_of_a_block(self, function):
        """What is near the edge of a block, and of what is decoded, has its neighbours' chroma."""
        data = simplejpeg.encode_jpeg(noise(48, 120), 90, 'BGR', '420')
        whole = simplejpeg.decode_jpeg(data, 'BGR')
        for left in range(0, 100):
            for width in (1, 2, 15, 16, 17):
                box = crop(function, data, (48, 120), (20, left, 9, width))
                np.testing.assert_array_equal(box, whole[20:29, left:left + width], err_msg=f'{left} {width}')

    def test_at_every_row_of_a_block(self, function):
        for chroma in '420', '440', '444':
            data = simplejpeg.encode_jpeg(noise(70, 40), 90, 'BGR', chroma)
            whole = simplejpeg.decode_jpeg(data, 'BGR')
            for top in range(0, 69):
                for height in {1, 2, min(17, 70 - top), 70 - top} - {0}:
                    if top + height <= 70:
                        box = crop(function, data, (70, 40), (top, 3, height, 30))
                        np.testing.assert_array_equal(box, whole[top:top + height, 3:33], err_msg=f'{top} {height}')

    def test_real_photographs(self, function, samples_dir):
        files = sorted(Path(samples_dir).rglob('*.JPEG'))[:60]
        cropped = 0
        for file in files:
            data = file.read_bytes()
            whole = decode(data)
            for top, left, h, w in boxes(*whole.shape[:2], 4):
                box = crop(function, data, whole.shape[:2], (top, left, h, w))
                if box is not None:  # else it is progressive, has four components, or is no JPEG
                    cropped += 1
                    np.testing.assert_array_equal(box, whole[top:top + h, left:left + w], err_msg=str(file))
        assert cropped > 4 * len(files)


class Guarded:
    """The C function's output with bytes around it that must stay as they are."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, data: bytes, size: tuple[int, int], box: Box, room: int | None = None) -> int:
        height, width = box[2:]
        room = width + BESIDE if room is None else room
        rows = max(height, 0) * max(room, 0) * 3
        memory = np.full(4096 + rows + 4096, 0xA5, np.uint8)
        at = self.function(data, len(data), *size, *box, room, memory.ctypes.data + 4096)
        assert (memory[:4096] == 0xA5).all() and (memory[4096 + rows:] == 0xA5).all(), 'wrote beside the rows'
        return at


@pytest.fixture(scope='module')
def guarded(function) -> Guarded:
    return Guarded(function)


class TestRefusal:
    @pytest.mark.parametrize('make', [
        lambda: encoded(photo(), progressive=True), lambda: encoded(photo().convert('CMYK')),
        lambda: encoded(photo(), 'PNG'), lambda: b'', lambda: b'\xff\xd8', lambda: encoded(photo())[:200],
        lambda: encoded(photo())[:-2000]],
        ids=['progressive', 'CMYK', 'PNG', 'empty', 'two bytes', 'header', 'truncated'])
    def test_of_files_that_are_not_plain(self, guarded, make):
        assert guarded(make(), (240, 320), (100, 100, 140, 80)) == -1

    @pytest.mark.parametrize('size', [(240, 321), (241, 320), (120, 160), (480, 640), (0, 0), (-240, -320)])
    def test_of_a_file_of_another_size(self, guarded, size):
        assert guarded(encoded(photo()), size, (10, 10, 50, 50)) == -1

    @pytest.mark.parametrize('box', [
        (-1, 0, 10, 10), (0, -1, 10, 10), (0, 0, 0, 10), (0, 0, 10, 0), (0, 0, -5, 10), (0, 0, 241, 10),
        (0, 0, 10, 321), (231, 0, 10, 10), (0, 311, 10, 10), (240, 320, 1, 1)])
    def test_of_a_box_that_is_not_within_the_image(self, guarded, box):
        assert guarded(encoded(photo()), (240, 320), box) == -1

    def test_of_numbers_whose_sum_overflows(self, function):
        data, most = encoded(photo()), 2 ** 31 - 1
        assert function(data, len(data), 240, 320, most, most, most, most, most, None) == -1

    @pytest.mark.parametrize('room', [-1, 0, 50, 53])
    def test_of_rows_without_room(self, guarded, room):
        """A box of 50 columns from 101 on needs those of its blocks and the next pixels: more than 53."""
        assert guarded(encoded(photo()), (240, 320), (10, 101, 20, 50), room) == -1

    def test_damaged_files_neither_write_outside_nor_pass_for_whole(self, guarded, function):
        rng = random.Random(0)
        sound = [encoded(photo(), quality=80), encoded(photo(), restart_marker_rows=1, subsampling=0),
                 encoded(photo().convert('L'))]
        refused = 0
        for number in range(300):
            data = bytearray(sound[number % 3])
            for _ in range(rng.choice([1, 1, 3, 20])):
                data[rng.randrange(len(data) if number % 2 else 700)] = rng.randrange(256)
            top, left = rng.randint(0, 100), rng.randint(0, 200)
            at = guarded(bytes(data), (240, 320), (top, left, 120, 90))
            refused += at < 0
            try:
                whole = simplejpeg.decode_jpeg(bytes(data), 'BGR')
            except ValueError:
                continue
            if whole.shape == (240, 320, 3) and at >= 0:
                box = crop(function, bytes(data), (240, 320), (top, left, 120, 90))
                np.testing.assert_array_equal(box, whole[top:top + 120, left:left + 90])
        assert 30 < refused < 270


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), exif=exif.tobytes())


def taller_than_it_is() -> bytes:
    data = bytearray(encoded(photo(), quality=95))
    height = data.index(b'\xff\xc0') + 5
    data[height:height + 2] = (400).to_bytes(2, 'big')
    return bytes(data)


FILES = {
    'plain': lambda: encoded(photo()),
    'grey': lambda: encoded(photo().convert('L')),
    'progressive': lambda: encoded(photo(), progressive=True),
    'CMYK': lambda: encoded(photo().convert('CMYK')),
    'rotated': lambda: with_orientation(6),
    'EXIF without rotation': lambda: with_orientation(1),
    'bytes after the end': lambda: encoded(photo()) + b'\0' * 64,
    'stray bytes before the end': lambda: encoded(photo())[:-2] + b'\x12\x34\x56\xff\xd9',
    'half with an end put to it': lambda: encoded(photo())[:6000] + b'\xff\xd9',  # OpenCV makes the rest grey
    'header with too many rows': taller_than_it_is,
    'small': lambda: encoded(photo(60, 80)),
    'PNG': lambda: encoded(photo(), 'PNG'),
}


class TestLater:
    @pytest.mark.parametrize('kind', FILES)
    def test_a_box_is_that_of_the_whole(self, on, kind):
        data = FILES[kind]()
        whole, later = decode(data), decode_later(data)
        assert later.shape == whole.shape
        for top, left, h, w in boxes(*whole.shape[:2], 8):
            np.testing.assert_array_equal(later[top:top + h, left:left + w], whole[top:top + h, left:left + w])

    @pytest.mark.parametrize('kind', ['rotated', 'EXIF without rotation', 'bytes after the end', 'small', 'PNG'])
    def test_what_is_unusual_is_decoded_at_once(self, on, kind):
        assert isinstance(decode_later(FILES[kind]()), np.ndarray)

    @pytest.mark.parametrize('cut', [3, 100, 5000])
    def test_a_truncated_file_is_found_wherever_the_box_is(self, on, tmp_path, cut):
        file = tmp_path / 'broken.JPEG'
        file.write_bytes(encoded(photo(), quality=95)[:-cut])
        with pytest.raises(DecodeError, match=r'broken\.JPEG: JPEG is truncated'):
            decode_later(file)

    def test_damage_below_the_box_goes_unnoticed(self, on):
        """The price of not decoding it. `decode`, and with it verify_dataset, sees it."""
        data = bytearray(encoded(photo(), quality=95))
        data[-3000:-2990] = b'\xff\xd3' * 5
        np.testing.assert_array_equal(decode_later(bytes(data))[0:60, 0:320], decode(encoded(photo(), quality=95))[:60])
        with pytest.raises(ValueError):
            simplejpeg.decode_jpeg(bytes(data), 'BGR')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('images')
    for number, (name, make) in enumerate(FILES.items()):
        for label in 'ab':
            (root / label).mkdir(exist_ok=True)
            (root / label / f'{number}_{name}.jpg').write_bytes(make())
    for number, size in enumerate([(500, 375), (333, 500), (256, 256), (96, 400)]):
        (root / 'a' / f'plain{number}.jpg').write_bytes(encoded(photo(*size), quality=70 + 8 * number))
    return root


def items(folder: Path, steps: list[Any]) -> list[Any]:
    dataset = CustomDataset(str(folder), steps)
    return [dataset.sample(index, seed)['img'] for index in range(len(dataset)) for seed in (1, 2, 3)]


CROPS = {
    'as mmclassification': CROP,
    'EfficientNet': CROP | dict(efficientnet_style=True, interpolation='bicubic'),
    'Pillow': CROP | dict(backend='pillow'),
    'mostly whole': CROP | dict(scale=(0.9, 1.)),
    'no box fits': CROP | dict(ratio=(8., 9.), scale=(0.9, 1.)),
    'small': CROP | dict(scale=(0.001, 0.01)),
}


class TestPipeline:
    @pytest.mark.parametrize('kind', CROPS)
    def test_equal_seeds_give_equal_bytes_with_and_without(self, folder, library, choose, kind):
        steps = [LOAD, CROPS[kind], *REST]
        choose(library)
        cropped = items(folder, steps)
        choose(Path('nowhere'))
        whole = items(folder, steps)
        assert len(whole) == 84
        for a, b in zip(cropped, whole, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_the_written_form_gives_the_same(self, folder, on):
        dataset = CustomDataset(str(folder), [LOAD, CROP])
        for index in range(len(dataset)):
            random.seed(index)
            written = dataset.pipeline(dict(dataset.data_infos[index]))['img']
            after = random.random()
            random.seed(index)
            np.testing.assert_array_equal(dataset.pipeline.item(dataset.data_infos[index])['img'], written)
            assert random.random() == after

    def decodes_boxes(self, monkeypatch, steps: list[Any], source: Any) -> bool:
        asked: list[tuple[int, int]] = []

        def count(function, data, size, box):
            asked.append(size)
            return crop(function, data, size, box)
        monkeypatch.setattr(importlib.import_module('workspace_lib.datasets.decode'), 'crop', count)
        Pipeline(steps).prepare(source, random.Random(0))
        return bool(asked)

    @pytest.mark.parametrize('efficientnet_style', [False, True])
    def test_only_the_box_is_decoded(self, on, monkeypatch, efficientnet_style):
        steps = [LOAD, CROP | dict(efficientnet_style=efficientnet_style), *REST]
        assert jpeg_crop.decoder()  # which compares with simplejpeg, once
        monkeypatch.setattr(simplejpeg, 'decode_jpeg', lambda *args: pytest.fail('decoded the whole'))
        assert self.decodes_boxes(monkeypatch, steps, encoded(photo()))

    class OwnLoad(LoadImageFromFile):
        pass

    class OwnCrop(RandomResizedCrop):
        pass

    @pytest.mark.parametrize('steps', [
        [LOAD | dict(color_type='grayscale'), CROP], [LOAD | dict(imdecode_backend='cv2'), CROP],
        [LOAD | dict(color_type='color_ignore_orientation'), CROP], [LOAD, dict(type='RandomFlip'), CROP],
        [LOAD, dict(type='Resize', size=99)], [LOAD], [CROP], [OwnLoad(), CROP], [LOAD, OwnCrop(96)]], ids=str)
    def test_other_pipelines_read_the_whole(self, on, monkeypatch, folder, steps):
        assert not self.decodes_boxes(monkeypatch, steps, encoded(photo()))
        has_crop = any('Crop' in str(step) for step in steps)
        assert words.crop_decoding(CustomDataset(str(folder), steps)) == (words.OTHER if has_crop else '')

    def test_pixels_that_are_there_already_are_cropped_as_before(self, on, monkeypatch):
        """Those of a pack."""
        assert not self.decodes_boxes(monkeypatch, [LOAD, CROP], np.asarray(photo()))

    def test_a_broken_file_is_left_out_as_before(self, on, tmp_path):
        for number in range(3):
            (tmp_path / 'a').mkdir(exist_ok=True)
            (tmp_path / 'a' / f'{number}.jpg').write_bytes(encoded(photo())[:-500 if number == 1 else None])
        dataset = CustomDataset(str(tmp_path), [LOAD, CROP, *REST], skip_broken=True)
        np.testing.assert_array_equal(dataset.sample(1, 7)['img'], dataset.sample(2, 7)['img'])
        assert [*dataset.broken] == [1]


class TestLibrary:
    def test_without_one_the_log_says_so_once(self, choose, caplog):
        choose(Path('nowhere'))
        with caplog.at_level(logging.INFO, 'workspace_lib'):
            Pipeline([LOAD, CROP])
            Pipeline([LOAD, CROP])
        said = [record.getMessage() for record in caplog.records]
        assert said == ['JPEGs are decoded whole before they are cropped: nowhere: cannot open shared object file: '
                        'No such file or directory; python -m workspace_lib.tools.jpeg_crop compiles it']

    def test_with_one_the_log_is_silent(self, on, caplog):
        with caplog.at_level(logging.INFO, 'workspace_lib'):
            Pipeline([LOAD, CROP])
        assert not caplog.records

    # That of 2.0.2 gives other pixels with 4:4:0 alone.
    @pytest.mark.parametrize('where', ['1', 'info->comp_info[0].h_samp_factor < info->comp_info[0].v_samp_factor'])
    def test_one_that_gives_other_pixels_is_not_used(self, library, choose, tmp_path, monkeypatch, caplog, where):
        source = jpeg_crop.SOURCE.read_text()
        other = tmp_path / 'jpeg_crop.c'
        other.write_text(source.replace('jpeg_start_decompress(info)',
                                        f'info->do_fancy_upsampling = !({where}); jpeg_start_decompress(info)'))
        assert other.read_text() != source
        monkeypatch.setattr(tool, 'SOURCE', other)
        tool.build(tmp_path / 'other.so')
        choose(tmp_path / 'other.so')
        with caplog.at_level(logging.INFO, 'workspace_lib'):
            assert isinstance(Pipeline([LOAD, CROP]).prepare(encoded(photo())), np.ndarray)
        assert 'gives other pixels than simplejpeg' in caplog.text
        assert jpeg_crop.decoder() is None

    @pytest.mark.parametrize('content', [b'', b'no library', b'\x7fELF' + b'\0' * 100])
    def test_a_file_that_is_no_library_is_not_used(self, tmp_path, content):
        file = tmp_path / 'no.so'
        file.write_bytes(content)
        with pytest.raises(OSError, match=r'no\.so: '):
            load(file)

    def test_its_name_is_that_of_its_source(self, tmp_path, monkeypatch):
        before = library_path('/somewhere')
        assert before.parent == Path('/somewhere/lib/workspace_lib')
        changed = tmp_path / 'jpeg_crop.c'
        changed.write_text(jpeg_crop.SOURCE.read_text() + '\n')
        monkeypatch.setattr(jpeg_crop, 'SOURCE', changed)
        assert library_path('/somewhere') != before


class TestCommand:
    def test_compiles_and_says_whether_it_is_on(self, library, tmp_path, capsys):
        arguments = ['--prefix', str(tmp_path)]
        assert tool.main([*arguments, '--check']) == 1
        said = capsys.readouterr().out
        assert 'crop decoding is off: ' in said
        assert said.endswith(f'; python -m workspace_lib.tools.jpeg_crop --prefix {tmp_path} compiles it\n')
        assert [*tmp_path.iterdir()] == []
        assert tool.main(arguments) == 0
        made = library_path(str(tmp_path))
        assert [*made.parent.iterdir()] == [made]
        before = made.stat().st_ino
        assert tool.main([*arguments, '--check']) == 0 and made.stat().st_ino == before
        assert tool.main(arguments) == 0 and made.stat().st_ino != before  # one that is in use is not written into
        assert capsys.readouterr().out.count('crop decoding is on') == 3

    def test_as_it_is_called(self, library, tmp_path):
        done = subprocess.run([sys.executable, '-m', 'workspace_lib.tools.jpeg_crop', '--prefix', str(tmp_path)],
                              capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, '')
        assert done.stdout.startswith('crop decoding is on')

    def test_without_a_compiler_it_says_what_is_missing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv('CC', 'no-such-compiler')
        assert tool.main(['--prefix', str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert 'JPEGs are decoded whole: no C compiler (no-such-compiler): apt-get install gcc' in said
        assert [*tmp_path.iterdir()] == []

    @pytest.mark.parametrize('line', ['jpeg_crop.c:11:10: fatal error: jpeglib.h: No such file or directory',
                                      '/usr/bin/ld: cannot find -ljpeg: No such file or directory'])
    def test_without_libjpeg_it_says_what_is_missing(self, tmp_path, monkeypatch, capsys, line):
        compiler = tmp_path / 'cc'
        compiler.write_text(f'#!/bin/sh\necho "{line}" >&2\nexit 1\n')
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv('CC', str(compiler))
        assert tool.main(['--prefix', str(tmp_path)]) == 1
        assert f'jpeg_crop.c does not compile: {line}. apt-get install' in capsys.readouterr().err
        assert [*tmp_path.iterdir()] == [compiler]

    def test_without_a_static_libjpeg_the_shared_one_is_taken(self, library, tmp_path, monkeypatch):
        monkeypatch.setattr(tool, 'LINKED', (['-l:no-such-archive.a'], *tool.LINKED[1:]))
        tool.build(tmp_path / 'shared.so')
        assert load(tmp_path / 'shared.so')

    def test_a_folder_that_cannot_be_written_is_no_crash(self, tmp_path, capsys):
        (tmp_path / 'lib').write_text('a file')
        assert tool.main(['--prefix', str(tmp_path)]) == 1
        assert 'crop decoding stays off' in capsys.readouterr().err


class TestWords:
    """What a training and a tool say of it."""

    def test_on(self, on, folder):
        assert words.crop_decoding(CustomDataset(str(folder), [LOAD, CROP, *REST])) == tool.ON

    def test_off_with_the_way_out(self, choose, folder):
        choose(Path('nowhere'))
        said = words.crop_decoding(CustomDataset(str(folder), [LOAD, CROP, *REST]))
        assert said == ('crop decoding is off: nowhere: cannot open shared object file: No such file or directory; '
                        'python -m workspace_lib.tools.jpeg_crop compiles it')

    def test_several_data_sets_are_as_the_worst_of_them(self, on, folder):
        alone, whole = (dict(type='CustomDataset', data_prefix=str(folder), pipeline=[load, CROP, *REST])
                        for load in (LOAD, LOAD | dict(imdecode_backend='cv2')))
        assert words.crop_decoding(build_dataset([alone, alone])) == tool.ON
        assert words.crop_decoding(build_dataset([alone, whole])) == words.OTHER

    def test_a_pipeline_that_runs_as_written_decodes_the_whole(self, on, folder):
        assert words.crop_decoding(CustomDataset(str(folder), [LOAD, CROP, lambda results: results])) == words.OTHER

    def test_nothing_of_pixels_that_are_there_already(self, on):
        digits = build_dataset(dict(type='MNIST5k', pipeline=[dict(type='RandomResizedCrop', size=28), *REST]))
        assert words.crop_decoding(digits) == ''

    def test_nothing_of_a_data_set_that_has_no_pipeline(self, on):
        assert words.crop_decoding([dict(img=1)]) == ''


def test_resized_boxes_are_what_opencv_makes_of_the_whole(on):
    """Rows that lie apart, as those of a box do, are resized like any others."""
    data = encoded(photo())
    whole, later = decode(data), decode_later(data)
    box = slice(31, 200), slice(17, 222)
    np.testing.assert_array_equal(cv2.resize(later[box], (96, 96)), cv2.resize(whole[box], (96, 96)))
