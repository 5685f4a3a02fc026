"""A CUDA source of mmcv-full compiles for this torch, where nvcc is at hand: what the image's build does to 55 of them.

Not run, for there is no GPU: compiled, with the flags and the C++ standard that docker/steps/mmcv.sh gives.
"""
from __future__ import annotations

import glob
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.container,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which('nvcc') is None, reason='nvcc is not at hand'),
]
ARCHITECTURE = '90'


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """mmcv-full 1.7.2 as the package index has it."""
    folder = tmp_path_factory.mktemp('mmcv')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-build-isolation', '--no-binary',
         'mmcv-full', '--dest', str(folder), 'mmcv-full==1.7.2'], check=True)
    with tarfile.open(next(folder.glob('mmcv*.tar.gz'))) as archive:
        archive.extractall(folder, filter='data')
    return next(path for path in folder.iterdir() if path.is_dir()) / 'mmcv' / 'ops' / 'csrc'


def test_nms_compiles_for_one_architecture(source, tmp_path):
    import torch
    from torch.utils import cpp_extension

    assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 14), 'the flags below are those of torch 2.14'
    # The wheels of CUDA's libraries bring their headers; a devel image has them where nvcc looks by itself.
    of_wheels = glob.glob(f'{sysconfig.get_paths()["purelib"]}/nvidia/cu*/include')
    folders = [*cpp_extension.include_paths('cuda'), *of_wheels, sysconfig.get_paths()['include'],
               source / 'common', source / 'common' / 'cuda']
    halves = [f'-D__CUDA_NO_{name}__' for name in ('HALF_OPERATORS', 'HALF_CONVERSIONS', 'HALF2_OPERATORS')]
    begin = time.monotonic()
    done = subprocess.run(
        ['nvcc', '-c', str(source / 'pytorch' / 'cuda' / 'nms_cuda.cu'), '-o', str(tmp_path / 'nms.o'), '-std=c++20',
         '-DMMCV_WITH_CUDA', *halves, f'-gencode=arch=compute_{ARCHITECTURE},code=sm_{ARCHITECTURE}',
         '--compiler-options', '-fPIC', *(f'-I{folder}' for folder in folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    print(f'\nnms_cuda.cu for sm_{ARCHITECTURE}: {time.monotonic() - begin:.0f} s')
    compiled = (tmp_path / 'nms.o').read_bytes()
    assert b'nms_cuda' in compiled and f'sm_{ARCHITECTURE}'.encode() in compiled
