"""What a run says of itself: its console line, and whether its loader holds it up; no GPU is asked."""
from __future__ import annotations

import json
import logging
import re

import pytest
import torch
from torch import nn

from workspace_lib import loader_watch
from workspace_lib.hooks import Hook, IterTimerHook, OptimizerHook
from workspace_lib.iter_runner import IterBasedRunner
from workspace_lib.loader_watch import LoaderWatchHook
from workspace_lib.log_writers import TextLoggerHook
from workspace_lib.runner import EpochBasedRunner

LOGGER = 'workspace_lib.test_log'


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def train_step(self, data, optimizer=None):
        loss = self.weight * 1.
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=32)


class Batches(list):
    batch_size, num_workers = 32, 2


class Times(Hook):
    """What the timer would have measured; the first batch of an epoch waits 9 s for the workers to start."""

    priority = 'LOW'

    def __init__(self, waiting, seconds=1.):
        self.waiting, self.seconds = waiting, seconds

    def after_train_iter(self, runner):
        first = 9. if runner.inner_iter == 0 else 0.
        waiting = self.waiting(runner) if callable(self.waiting) else self.waiting
        runner.log_buffer.update(dict(data_time=waiting * self.seconds + first, time=self.seconds + first))


def run(*hooks, batches=20, epochs=1, work_dir=None, by_epoch=True):
    model = Model()
    length = dict(max_epochs=epochs) if by_epoch else dict(max_iters=batches * epochs)
    runner = (EpochBasedRunner if by_epoch else IterBasedRunner)(
        model, torch.optim.SGD(model.parameters(), lr=0.1), work_dir=work_dir, logger=logging.getLogger(LOGGER),
        **length)
    for hook in (OptimizerHook(), *hooks):
        runner.register_hook(hook)
    runner.run([Batches([{}] * batches)], [('train', 1)])
    return runner


@pytest.fixture
def said(caplog):
    """Messages of a level, of the loggers of this file."""
    caplog.set_level(logging.INFO, LOGGER)
    return lambda level: [record.getMessage() for record in caplog.records
                          if record.name == LOGGER and record.levelname == level]


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setattr(loader_watch, 'cores', lambda: 16)


def test_a_line_shows_speed_waiting_memory_rate_loss_and_the_time_left(said):
    run(IterTimerHook(), TextLoggerHook(interval=10), batches=10)
    number = r'-?[\d.]+'
    assert re.fullmatch(
        rf'Epoch \[1\]\[10/10\]  lr: 1\.000e-01, time left: 0:00:00, data_time: {number}, loss: {number}, '
        rf'time: {number}, images_per_second: {number}, memory: \d+', said('INFO')[-1]), said('INFO')[-1]


def test_on_a_cpu_memory_is_the_peak_of_the_process_in_mib(tmp_path):
    run(IterTimerHook(), TextLoggerHook(interval=10), batches=10, work_dir=tmp_path)
    entry = json.loads(next(tmp_path.glob('*.log.json')).read_text().splitlines()[-1])
    with open('/proc/self/status') as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith('VmHWM'))  # KiB
    assert entry['memory'] == pytest.approx(peak / 1024, rel=0.05)


def test_a_loader_that_holds_the_run_up_is_named_once_with_the_way_out(said):
    run(Times(0.62), LoaderWatchHook(), batches=20, epochs=3)
    assert said('WARNING') == [
        'the loader is the limit: 62% of the time goes into waiting for batches. Raise data.workers_per_gpu from 2 '
        '(this process may use 16 cores); if that is not enough, train on a copy of the data set whose images are '
        'resized once, or packed']


@pytest.mark.parametrize(('waiting', 'speaks'), [(0.3, False), (0.34, True)])
def test_where_the_line_is(said, waiting, speaks):
    run(Times(waiting), LoaderWatchHook(), batches=20, epochs=3)
    assert bool(said('WARNING')) == speaks


def test_the_start_of_the_workers_is_no_reason(said):
    run(Times(0.3), LoaderWatchHook(), batches=12, epochs=5)
    assert said('WARNING') == []


def test_a_few_quick_steps_prove_nothing(said):
    run(Times(0.9, seconds=0.01), LoaderWatchHook(), batches=20)
    assert said('WARNING') == []


def test_a_loader_that_becomes_slow_is_seen(said):
    run(Times(lambda runner: 0.5 * (runner.epoch > 1)), LoaderWatchHook(), batches=20, epochs=4)
    assert len(said('WARNING')) == 1


def test_a_run_counted_in_iterations_is_judged_too(said):
    run(Times(0.5), LoaderWatchHook(), batches=20, by_epoch=False)
    assert len(said('WARNING')) == 1


def test_a_loader_that_does_not_tell_its_workers(said):
    model = Model()
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1), logger=logging.getLogger(LOGGER),
                              max_epochs=1)
    for hook in (OptimizerHook(), Times(0.5), LoaderWatchHook()):
        runner.register_hook(hook)
    runner.run([[{}] * 20], [('train', 1)])
    assert 'Raise data.workers_per_gpu (this process' in said('WARNING')[0]


def test_every_training_watches_its_loader(tmp_path):
    from workspace_lib.tools import commands
    runner = commands.train('lenet/lenet5_mnist5k.py', str(tmp_path), seed=0, device='cpu', validate=False,
                            options={'runner.max_epochs': 1, 'checkpoint_config': None, 'data.samples_per_gpu': 2000})
    names = [type(hook).__name__ for hook in runner.hooks]
    assert names.index('IterTimerHook') < names.index('LoaderWatchHook')
