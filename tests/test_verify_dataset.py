"""Every kind of bad file is found, named with its reason, and told apart from what is merely odd."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from workspace_lib.tools.cli import main
from workspace_lib.tools.verify_dataset import Verification, verify_dataset


@pytest.fixture
def photographs(tmp_path):
    """Six JPEGs of noise, listed in `list.txt`, and the text of a config that reads them."""
    rng = np.random.default_rng(0)
    for index in range(6):
        cv2.imwrite(str(tmp_path / f'{index}.jpg'), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    (tmp_path / 'list.txt').write_text(''.join(f'{index}.jpg 0\n' for index in range(6)))
    config = tmp_path / 'config.py'
    config.write_text(f"""
data = dict(train=dict(type='CustomDataset', data_prefix={str(tmp_path)!r}, ann_file={str(tmp_path / 'list.txt')!r},
                       classes=['noise'], pipeline=[dict(type='LoadImageFromFile')]))
""")
    return tmp_path


def verify(folder, workers=0) -> Verification:
    return verify_dataset(str(folder / 'config.py'), workers=workers, progress=False)


def only(folder) -> tuple[str, str, str]:
    finding, = verify(folder).findings
    return finding.kind, finding.file.rpartition('/')[2], finding.reason


def test_nothing_is_found_where_nothing_is_wrong(photographs):
    assert verify(photographs) == Verification(6, [])


def test_a_truncated_file_is_broken(photographs):
    data = (photographs / '3.jpg').read_bytes()
    (photographs / '3.jpg').write_bytes(data[:len(data) // 2])
    kind, file, reason = only(photographs)
    assert (kind, file) == ('broken', '3.jpg') and 'truncated' in reason


def test_what_is_no_image_is_broken(photographs):
    (photographs / '3.jpg').write_text('<html>404</html>')
    assert only(photographs)[:2] == ('broken', '3.jpg')


def test_a_file_that_is_not_there_is_missing(photographs):
    (photographs / '3.jpg').unlink()
    assert only(photographs)[:2] == ('missing', '3.jpg')


def test_a_png_that_is_called_jpg_is_odd(photographs):
    Image.open(photographs / '3.jpg').save(photographs / '3.jpg', format='PNG')
    assert only(photographs) == ('odd', '3.jpg', 'the file is a PNG by its content')


def test_cmyk_is_odd(photographs):
    Image.open(photographs / '3.jpg').convert('CMYK').save(photographs / '3.jpg')
    assert only(photographs) == ('odd', '3.jpg', 'CMYK colours')


def test_damage_that_decoders_pass_over_is_odd(photographs):
    data = (photographs / '3.jpg').read_bytes()
    (photographs / '3.jpg').write_bytes(data[:-2] + bytes(40) + data[-2:])  # junk before the end marker
    kind, file, reason = only(photographs)
    assert (kind, file) == ('odd', '3.jpg') and 'damage' in reason


def test_one_colour_and_a_tiny_side_are_odd(photographs):
    cv2.imwrite(str(photographs / '2.jpg'), np.full((48, 64, 3), 90, np.uint8))
    cv2.imwrite(str(photographs / '3.jpg'), np.random.default_rng(1).integers(0, 255, (4, 64, 3), dtype=np.uint8))
    found = [(f.kind, f.file.rpartition('/')[2], f.reason) for f in verify(photographs).findings]
    assert found == [('odd', '2.jpg', 'all of it has one colour'),
                     ('odd', '3.jpg', 'its shorter side is 4 pixels, the median is 48')]


def test_a_file_that_is_listed_twice_is_odd(photographs):
    with (photographs / 'list.txt').open('a') as file:
        file.write('3.jpg 0\n')
    assert only(photographs) == ('odd', '3.jpg', 'listed 2 times')


def test_workers_find_what_one_process_finds(photographs):
    (photographs / '1.jpg').write_bytes(b'')
    (photographs / '5.jpg').unlink()
    assert verify(photographs, workers=2) == verify(photographs)
    assert [f.kind for f in verify(photographs).findings] == ['broken', 'missing']


def test_a_data_set_in_a_wrapper_is_reached(photographs):
    text = (photographs / 'config.py').read_text().replace('train=dict(', "train=dict(type='RepeatDataset', times=3, "
                                                           'dataset=dict(').replace(')]))', ')])))')
    (photographs / 'config.py').write_text(text)
    (photographs / '5.jpg').unlink()
    assert only(photographs)[:2] == ('missing', '5.jpg')


def test_the_command_fails_on_broken_files_and_writes_a_log(photographs, capsys):
    log = photographs / 'found.log'
    command = ['verify-dataset', str(photographs / 'config.py'), '--workers', '0', '--out-path', str(log)]
    assert main(command) == 0
    assert log.read_text() == '# 6 samples: 0 missing, 0 broken, 0 odd\n'
    (photographs / '4.jpg').unlink()
    assert main(command) == 1
    assert log.read_text().splitlines()[1] == f'missing\t{photographs}/4.jpg\tthere is no such file'
    assert '4.jpg' in capsys.readouterr().out


def test_odd_files_alone_are_no_failure(photographs):
    Image.open(photographs / '3.jpg').save(photographs / '3.jpg', format='PNG')
    assert main(['verify_dataset', str(photographs / 'config.py'), '--workers', '0', '--out-path',
                 str(photographs / 'log')]) == 0


def test_arrays_in_memory_have_no_files_to_verify(capsys, tmp_path):
    assert main(['verify_dataset', 'lenet/lenet5_mnist5k.py', '--out-path', str(tmp_path / 'log')]) == 1
    assert 'MNIST5k holds its images in memory' in capsys.readouterr().err
