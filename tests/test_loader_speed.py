"""Rates of a loader: what is counted, and of which loaders; not how fast a machine is."""
from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from figures import assert_nothing_is_cut_off
from image_folders import image_folders

from workspace_lib import apis, jpeg_crop
from workspace_lib.datasets import build_dataloader, build_dataset
from workspace_lib.tools import loader_speed, parts
from workspace_lib.tools.cli import main

DIGITS = 'lenet/lenet5_mnist5k.py'


class Clock:
    """Stands still but for what `Batches` and `Slow` say."""

    def __init__(self, monkeypatch):
        self.now = 0.
        for name in ('perf_counter', 'process_time'):
            monkeypatch.setattr(time, name, lambda: self.now)


class Batches:
    """A loader of three batches of 10, 10 and 5 images, each of which takes a second, and the very first a minute."""

    def __init__(self, clock):
        self.clock, self.passes = clock, 0

    def __iter__(self):
        self.passes += 1
        for size in (10, 10, 5):
            self.clock.now += 60 if self.clock.now == 0 else 1
            yield dict(img=np.zeros(size))


def test_a_rate_counts_images_after_the_first_batches_over_several_epochs(monkeypatch):
    loader = Batches(Clock(monkeypatch))
    # Two batches are left out; then 5, and 10, 10 and 5 of a second epoch: 4 seconds.
    assert loader_speed.images_per_second(loader, seconds=4, warm_up=2) == 30 / 4
    assert loader.passes == 2


def test_each_number_of_workers_has_its_rate(monkeypatch):
    asked = []
    monkeypatch.setattr(loader_speed, 'images_per_second',
                        lambda loader, seconds, warm_up: asked.append((loader.num_workers, warm_up)) or 100.)
    dataset = build_dataset(apis.load_config(DIGITS).data.train)
    assert loader_speed.rates_by_workers(dataset, 32, (0, 2), seconds=1) == {0: 100., 2: 100.}
    assert asked == [(0, 2), (2, 8)]  # twice as many batches as the workers are ahead


def test_numbers_of_workers_are_measured_once_each_in_their_order(monkeypatch):
    monkeypatch.setattr(loader_speed, 'images_per_second', lambda loader, seconds, warm_up: float(loader.num_workers))
    dataset = build_dataset(apis.load_config(DIGITS).data.train)
    assert list(loader_speed.rates_by_workers(dataset, 32, (2, 0, 2, 1)).items()) == [(0, 0.), (1, 1.), (2, 2.)]


@pytest.mark.parametrize('arguments, message', [
    (['--workers', '0', '-1'], 'workers 0, -1; give numbers from 0 on'), (['--seconds', '0'], '0 seconds'),
    (['--device', 'tpu'], "device 'tpu' is not known"),
    (['--part', 'val', '--cfg-options', 'data.val=None'], 'no data.val')])
def test_what_cannot_be_measured_is_refused_before_anything_is_read(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(parts, 'build_dataset', lambda *args: pytest.fail('a data set was built'))
    assert main(['loader_speed', DIGITS, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_command_measures_the_loader_that_feeds_the_device_from_one_data_set(monkeypatch, tmp_path, capsys):
    built, asked = [], []
    build = build_dataset
    monkeypatch.setattr(parts, 'build_dataset', lambda *args: built.append(build(*args)) or built[-1])
    monkeypatch.setattr(loader_speed, 'select_device', lambda name: torch.device('meta') if name == 'cuda' else None)
    monkeypatch.setattr(loader_speed, 'images_per_second',
                        lambda loader, seconds, warm_up: asked.append((loader.device, loader.dataset)) or 1.)
    assert main(['loader_speed', DIGITS, '--device', 'cuda', '--workers', '0', '--out', str(tmp_path / 'a.png')]) == 0
    assert len(built) == 1 and asked == [(torch.device('meta'), built[0])]


def test_the_picture_has_a_line_for_each_data_set_and_the_table_every_rate():
    plot = loader_speed.rates_plot({'files': {0: 100., 2: 150.}, 'pack': {0: 400., 2: 700.}})
    axes = plot.figure.axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 100], [2, 150]], [[0, 400], [2, 700]]]
    assert plot.table.columns == ('workers', 'files (1/s)', 'pack (1/s)')
    assert plot.table.rows == [(0, 100., 400.), (2, 150., 700.)]
    assert plot.alt == 'Images a second with 0 to 2 workers: files, pack.'
    assert_nothing_is_cut_off(plot)


class Slow:
    """A step that takes so many seconds of `clock`, and counts."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def __call__(self, results):
        self.calls += 1
        self.clock.now += self.seconds
        return results


class Fast(Slow):
    pass


def test_time_goes_to_the_steps_that_take_it(monkeypatch):
    clock = Clock(monkeypatch)
    dataset = build_dataset(apis.load_config(DIGITS).data.train)
    slow, again, fast = Slow(clock, 3), Slow(clock, 1), Fast(clock, 0.5)
    dataset.pipeline.steps = [slow, fast, again]
    assert loader_speed.step_seconds(dataset, range(5)) == {'Slow': 4, 'Fast': 0.5}
    assert slow.calls == again.calls == fast.calls == 5


def test_looking_at_the_steps_changes_no_sample():
    dataset = build_dataset(apis.load_config(DIGITS).data.test)
    before = dataset[3]['img'].copy()
    assert [*loader_speed.step_seconds(dataset, range(4))] == ['Resize', 'Normalize', 'ImageToTensor', 'Collect']
    assert np.array_equal(dataset[3]['img'], before)


def test_the_table_of_steps_adds_up():
    rows = loader_speed.steps_table({'Load': 0.003, 'Crop': 0.001}).rows
    assert rows == [('Load', '3.000', 75.), ('Crop', '1.000', 25.)]


@pytest.mark.parametrize('call', [
    lambda: loader_speed.images_per_second([], seconds=0), lambda: loader_speed.step_seconds([], range(0))])
def test_nothing_to_measure_is_an_error(call):
    with pytest.raises(ValueError, match='at least one|more than 0'):
        call()


def test_a_loader_without_batches_is_an_error():
    class Empty:
        def __iter__(self):
            yield from ()

    with pytest.raises(ValueError, match='no batch'):
        loader_speed.images_per_second(Empty(), seconds=1)


def test_the_command_prints_steps_and_rates_and_writes_the_picture(tmp_path, capsys):
    out = tmp_path / 'speed.png'
    assert main(['loader_speed', DIGITS, '--workers', '0', '1', '--seconds', '0.05', '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert 'RandomCrop' in said and 'lenet5_mnist5k (1/s)' in said and out.stat().st_size > 3000


CROPS = """
pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=16),
            dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
data = dict(samples_per_gpu=4, workers_per_gpu=0, train=dict(type='CustomDataset', data_prefix={!r}, pipeline=pipeline))
"""


@pytest.mark.parametrize('is_on', [True, False])
def test_the_command_says_what_is_decoded_in_a_training_and_in_its_table(monkeypatch, tmp_path, capsys, is_on):
    config = tmp_path / 'crops.py'
    config.write_text(CROPS.format(str(image_folders(tmp_path / 'images', 'ab', 4, 20))))
    monkeypatch.setattr(jpeg_crop, 'decoder', lambda: object() if is_on else None)
    monkeypatch.setattr(jpeg_crop, 'library_path', lambda: Path('nowhere'))
    assert main(['loader_speed', str(config), '--workers', '0', '--seconds', '0.01',
                 '--out', str(tmp_path / 'a.png')]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if 'crop decoding' in line]
    assert len(said) == 1
    if is_on:
        assert said[0].startswith('crop decoding is on: ') and said[0].endswith('these steps are timed one by one, on '
                                                                                'whole files')
    else:
        assert said[0].startswith('crop decoding is off: nowhere: ') and 'whole files' not in said[0]


def test_more_workers_than_cores_were_asked_for_so_torch_need_not_warn(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0}, raising=False)
    dataset = build_dataset(apis.load_config(DIGITS).data.train)
    with pytest.warns(UserWarning, match='This DataLoader will create 2 worker processes'):
        build_dataloader(dataset, 32, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        loader_speed.rates_by_workers(dataset, 32, (2,), seconds=0.01)
    assert not [str(warning.message) for warning in caught if 'worker processes' in str(warning.message)]
