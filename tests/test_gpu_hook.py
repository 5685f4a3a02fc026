"""The hook that logs the GPU: what it puts into a log, when it warns, and that a run without a GPU does not notice."""
from __future__ import annotations

import json
import logging
import re
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from nvml_replay import NVMLError, Replay
from torch import nn

from workspace_lib import loader_watch
from workspace_lib.datasets import build_dataloader
from workspace_lib.hooks import Hook, IterTimerHook, OptimizerHook
from workspace_lib.loader_watch import LoaderWatchHook
from workspace_lib.log_hooks import LoggerHook
from workspace_lib.log_writers import TextLoggerHook
from workspace_lib.registry import HOOKS
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.tools import gpu_hook
from workspace_lib.tools.gpu_hook import GPUMonitorHook, advice, summary
from workspace_lib.tools.nvml import Card, Sample

LOGGER = 'workspace_lib.test_gpu'


class Times(Hook):
    """What the timer would have measured: seconds an iteration, and how much of them waiting."""

    priority = 'LOW'

    def __init__(self, waiting, seconds=1.):
        self.waiting, self.seconds = waiting, seconds

    def after_train_iter(self, runner):
        first = 9. if runner.inner_iter == 0 else 0.  # the workers start
        runner.log_buffer.update(dict(data_time=self.waiting * self.seconds + first, time=self.seconds + first))


class Batches(list):
    batch_size, num_workers = 32, 2


class FakeSampler:
    """Two looks for each time it is asked, and no thread."""

    def __init__(self, read, interval):
        self.read, self.stopped = read, False

    def take(self):
        return [self.read(), self.read()]

    def stop(self):
        self.stopped = True
        return True


class Entries(LoggerHook):
    def __init__(self, interval=10):
        super().__init__(interval)
        self.seen = []

    def write(self, runner, entry):
        self.seen.append(entry)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def train_step(self, data, optimizer=None):
        loss = self.weight * 1.
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=1)

    val_step = train_step


def run(*hooks, batches=20, epochs=1, validate=False, work_dir=None):
    model = Model()
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1), work_dir=work_dir,
                              max_epochs=epochs, logger=logging.getLogger(LOGGER))
    for hook in (OptimizerHook(), *hooks):
        runner.register_hook(hook)
    loader = Batches([{}] * batches)
    runner.run([loader, loader], [('train', 1), ('val', 1)]) if validate else runner.run([loader], [('train', 1)])
    return runner


def sample(busy=95, reasons=(), **others):
    fields = dict(memory_used=2**30, memory_total=4 * 2**30, power=100., power_limit=200., temperature=50,
                  sm_clock=1000, memory_clock=1000)
    return Sample(utilisation=busy, reasons=reasons, **{**fields, **others})


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(gpu_hook, 'Sampler', FakeSampler)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    return lambda: [record.getMessage() for record in caplog.records if record.name == LOGGER]


# what is logged

def test_an_entry_holds_mean_load_highest_memory_mean_power_highest_heat():
    samples = [sample(80, memory_used=3 * 2**30, power=300., temperature=60),
               sample(100, ('power cap',), memory_used=2 * 2**30, power=500., temperature=70), sample(60, ('idle',),
                      memory_used=1, power=None, temperature=None), sample(None, None, memory_used=None, power=None)]
    assert summary(samples) == dict(gpu_util=80., gpu_memory=3 * 1024, gpu_power=400., gpu_temperature=70,
                                    gpu_held_back=pytest.approx(100 / 3))


def test_what_no_sample_tells_is_left_out():
    nothing = Sample(*[None] * 9)
    assert summary([nothing, nothing]) == {} == summary([])


def test_each_entry_is_of_its_own_samples(fixed):
    entries = Entries(interval=5)
    run(GPUMonitorHook(nvml=Replay()), entries, batches=12)
    card = Card(Replay(), 'gpu0')
    card.read(), card.read()  # before the epoch
    expected = [summary([card.read(), card.read()]) for _ in range(3)]  # at 5, 10 and the end, 12
    assert [entry['iter'] for entry in entries.seen] == [5, 10, 12]
    assert [{key: entry[key] for key in expected[0]} for entry in entries.seen] == expected
    assert len({entry['gpu_power'] for entry in entries.seen}) == 3


def test_a_run_counted_in_iterations(fixed, warnings):
    iterations = pytest.importorskip('workspace_lib.iter_runner').IterBasedRunner
    model, entries = Model(), Entries(interval=5)
    runner = iterations(model, torch.optim.SGD(model.parameters(), lr=0.1), max_iters=42,
                        logger=logging.getLogger(LOGGER))
    for hook in (OptimizerHook(), Times(0.4), GPUMonitorHook(nvml=of(38)), entries):
        runner.register_hook(hook)
    runner.run([Batches([{}] * 40)], [('train', 1)])
    assert [entry['iter'] for entry in entries.seen] == [5, 10, 15, 20, 25, 30, 35, 40, 42]
    assert all(entry['gpu_util'] == 38 for entry in entries.seen) and len(warnings()) == 1


def test_the_shortest_interval_of_the_loggers_counts(fixed):
    often, seldom = Entries(interval=4), Entries(interval=12)
    run(GPUMonitorHook(nvml=Replay()), seldom, often, batches=12)
    assert len({entry['gpu_power'] for entry in often.seen}) == 3
    assert seldom.seen[0]['gpu_power'] == often.seen[-1]['gpu_power']


def test_json_text_and_tensorboard_get_the_numbers(fixed, tmp_path, caplog):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from workspace_lib.log_writers import TensorboardLoggerHook
    caplog.set_level(logging.INFO, LOGGER)
    run(GPUMonitorHook(nvml=Replay()), TextLoggerHook(interval=10), TensorboardLoggerHook(interval=10), batches=10,
        work_dir=tmp_path)
    entry = next(json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()
                 if '"train"' in line)
    names = ('gpu_util', 'gpu_memory', 'gpu_power', 'gpu_temperature', 'gpu_held_back')
    assert [entry[name] for name in names[1:2]] == [1102] and set(names) <= set(entry)
    line = next(record.getMessage() for record in caplog.records if 'Epoch [1]' in record.getMessage())
    assert all(f'{name}: ' in line for name in names)
    events = EventAccumulator(str(tmp_path / 'tf_logs'))
    events.Reload()
    assert {f'train/{name}' for name in names} <= set(events.Tags()['scalars'])


def test_what_was_seen_during_an_evaluation_is_not_logged(monkeypatch):
    entries = Entries(interval=10)
    taken = []

    class Counting(FakeSampler):
        def take(self):
            taken.append('take')
            return super().take()
    monkeypatch.setattr(gpu_hook, 'Sampler', Counting)
    run(GPUMonitorHook(nvml=Replay()), entries, batches=10, epochs=2, validate=True)
    assert len(taken) == 2 * 3  # before an epoch, at its entry, after the validation
    assert all('gpu_util' not in entry for entry in entries.seen if entry['mode'] == 'val')


def test_a_sample_holds_until_the_next_but_not_for_ever(monkeypatch):
    answers = [[], [sample(70)], [], [], []]

    class Rare(FakeSampler):
        def take(self):
            return answers.pop(0)
    now = iter([100., 101., 104., 107.])
    monkeypatch.setattr(gpu_hook, 'Sampler', Rare)
    monkeypatch.setattr(gpu_hook, 'time', SimpleNamespace(perf_counter=lambda: next(now)))
    entries = Entries(interval=5)
    run(GPUMonitorHook(nvml=Replay()), entries, batches=20)
    assert [entry.get('gpu_util') for entry in entries.seen] == [70, 70, 70, None]


def test_a_thread_samples_a_real_run_and_ends_with_it():
    nvml, entries, before = Replay(), Entries(interval=1), set(threading.enumerate())

    class Slow(Hook):
        def after_train_iter(self, runner):
            time.sleep(0.02)
    hook = GPUMonitorHook(interval=0.005, nvml=nvml)
    run(Slow(), hook, entries, batches=10)
    assert entries.seen[-1]['gpu_memory'] >= 1102
    assert set(threading.enumerate()) <= before and nvml.sessions == 0 and hook.sampler is None


# without a GPU

def test_on_the_cpu_nothing_is_said_and_nothing_runs(warnings, monkeypatch):
    monkeypatch.setattr(gpu_hook, 'open_nvml', lambda nvml: pytest.fail('NVML was asked'))
    before, entries = set(threading.enumerate()), Entries()
    run(GPUMonitorHook(), entries)
    assert warnings() == [] and set(threading.enumerate()) <= before
    assert not any(name.startswith('gpu_') for entry in entries.seen for name in entry)


def cuda_runner(uuid='6a1e2b3c-4d5e-6f70-8192-a3b4c5d6e7f8', monkeypatch=None):
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(uuid=uuid))
    return SimpleNamespace(precision=SimpleNamespace(device=torch.device('cuda', 0)), hooks=[], epoch=0,
                           logger=logging.getLogger(LOGGER))


@pytest.mark.parametrize('uuid, handle', [('6a1e2b3c-4d5e-6f70-8192-a3b4c5d6e7f8', 'gpu0'),
                                          ('1f2e3d4c-5b6a-7988-a7b6-c5d4e3f2a1b0', 'gpu1')])
def test_the_card_is_found_by_its_uuid(fixed, monkeypatch, uuid, handle):
    hook = GPUMonitorHook(nvml=Replay())
    hook.before_run(cuda_runner(uuid, monkeypatch))
    assert hook.sampler.read.__self__.handle == handle


def test_a_part_of_a_card_is_found(fixed, monkeypatch):
    nvml = Replay()
    nvml.answers['nvmlDeviceGetHandleByUUID', 'GPU-7'] = [dict(error=6, text='Not Found')]
    nvml.answers['nvmlDeviceGetHandleByUUID', 'MIG-7'] = ['mig']
    hook = GPUMonitorHook(nvml=nvml)
    hook.before_run(cuda_runner('7', monkeypatch))
    assert hook.sampler.read.__self__.handle == 'mig'


def test_a_gpu_whose_driver_does_not_answer_is_said_once_and_the_run_goes_on(warnings, monkeypatch):
    nvml = SimpleNamespace(NVMLError=NVMLError,
                           nvmlInit=lambda: (_ for _ in ()).throw(NVMLError(18, 'version mismatch')))
    run(GPUMonitorHook(nvml=nvml), epochs=2)
    assert warnings() == ['the log will have no GPU figures: no NVIDIA driver answers (version mismatch): make doctor '
                          'finds out why, and what mends it']


def test_a_card_that_nvml_does_not_know_is_said(warnings, monkeypatch):
    nvml = Replay()
    for prefix in ('GPU', 'MIG'):
        nvml.answers['nvmlDeviceGetHandleByUUID', f'{prefix}-7'] = [dict(error=6, text='Not Found')]
    hook = GPUMonitorHook(nvml=nvml)
    hook.before_run(cuda_runner('7', monkeypatch))
    assert hook.sampler is None and nvml.sessions == 0
    assert 'NVML does not find cuda:0 (Not Found): make doctor' in warnings()[0]


def test_the_hook_is_built_from_a_config():
    hook = HOOKS.build(dict(type='GPUMonitorHook', interval=2.))
    assert hook.interval == 2. and type(hook) is GPUMonitorHook


def test_an_impossible_interval_is_refused():
    with pytest.raises(ValueError, match='interval=0'):
        GPUMonitorHook(interval=0)


def test_it_stands_between_the_timer_and_the_loggers():
    runner = EpochBasedRunner(Model(), max_epochs=1)
    for hook in (TextLoggerHook(), GPUMonitorHook(), IterTimerHook()):
        runner.register_hook(hook)
    assert [type(hook).__name__ for hook in runner.hooks] == ['IterTimerHook', 'GPUMonitorHook', 'TextLoggerHook']


# what it says

def of(busy):
    """A session whose first card is that busy."""
    nvml = Replay()
    nvml.answers['nvmlDeviceGetUtilizationRates', 'gpu0'] = [dict(gpu=busy, memory=0)]
    nvml.answers['nvmlDeviceGetCurrentClocksEventReasons', 'gpu0'] = [0]
    return nvml


def test_a_starved_gpu_is_said_once_an_epoch_with_what_to_change(fixed, warnings, monkeypatch):
    monkeypatch.setattr(loader_watch, 'cores', lambda: 16)
    run(Times(0.4), GPUMonitorHook(nvml=of(38)), Entries(interval=2), batches=60, epochs=2)
    assert warnings() == ['the loader, not the GPU, is the limit: 40% of the time goes into waiting for batches, and '
                          'the GPU is 38 % busy. Raise data.workers_per_gpu from 2 (this process may use 16 cores); if '
                          'that is not enough, train on a copy of the data set whose images are resized once, or '
                          'packed'] * 2


def test_a_slow_loader_is_found_by_the_real_timer_and_thread(warnings):
    class Slow(Batches):
        def __iter__(self):
            for batch in super().__iter__():
                time.sleep(0.01)
                yield batch
    model = Model()
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1), max_epochs=1,
                              logger=logging.getLogger(LOGGER))
    for hook in (OptimizerHook(), IterTimerHook(), GPUMonitorHook(interval=0.005, nvml=of(38)), Entries(interval=5)):
        runner.register_hook(hook)
    runner.run([Slow([{}] * 40)], [('train', 1)])
    said, = warnings()
    assert re.match(r'the loader, not the GPU, is the limit: (\d+)% of', said)


def test_what_came_after_a_warning_does_not_count_in_the_next_epoch(fixed, warnings):
    nvml, busy = of(38), 2 * (2 + 30)  # looks until the second epoch: before each, and at the entries of the first
    nvml.answers['nvmlDeviceGetUtilizationRates', 'gpu0'] = [dict(gpu=38, memory=0)] * busy + [dict(gpu=96, memory=0)]
    run(Times(0.4), GPUMonitorHook(nvml=nvml), Entries(interval=2), batches=60, epochs=2)
    assert len(warnings()) == 1


@pytest.mark.parametrize(('nvml', 'speaks'), [(of(97), False), (None, True)])
def test_where_a_gpu_is_watched_the_times_alone_are_no_reason(fixed, warnings, nvml, speaks):
    run(Times(0.6), LoaderWatchHook(), GPUMonitorHook(nvml=nvml), Entries(interval=100), batches=40)
    assert bool(warnings()) == speaks


def test_a_busy_gpu_is_no_reason_to_speak(fixed, warnings):
    run(Times(0.05), GPUMonitorHook(nvml=of(96)), Entries(interval=2), batches=60)
    assert warnings() == []


def test_ten_samples_come_before_a_word(fixed, warnings):
    run(Times(0.4), GPUMonitorHook(nvml=of(38)), Entries(interval=2), batches=8)  # four entries of two samples
    assert warnings() == []


def test_without_a_timer_the_loader_is_not_blamed(fixed, warnings):
    run(GPUMonitorHook(nvml=of(10)), Entries(interval=2), batches=60)
    assert warnings() == []


def test_small_steps_are_told_from_a_slow_loader():
    found, = advice([sample(30)], 0.02, Batches())
    assert found == ('the GPU is 30 % busy, though only 2% of the time goes into waiting for batches: its steps are '
                     'too small. Raise data.samples_per_gpu from 32 (and optimizer.lr with it); 1.0 of 4.0 GiB of its '
                     'memory are used')


@pytest.mark.parametrize('busy, waiting, speaks', [(79, .2, True), (80, .2, False), (79, .19, False), (49, .19, True),
                                                   (50, .19, False), (None, .9, False), (10, None, False)])
def test_where_the_lines_are(busy, waiting, speaks):
    assert bool(advice([sample(busy)], waiting)) == speaks


def test_more_workers_than_cores_are_not_advised(monkeypatch):
    monkeypatch.setattr(loader_watch, 'cores', lambda: 2)
    found, = advice([sample(30)], 0.5, Batches())
    assert 'Raise' not in found and found.endswith('data.workers_per_gpu is 2 for 2 cores: train on a copy of the data '
                                                   'set whose images are resized once, or packed')


def test_the_librarys_loader_names_its_workers_and_its_batch():
    loader = build_dataloader([dict(img=torch.zeros(3, 8, 8, dtype=torch.uint8))] * 8, 4, 0)
    assert 'Raise data.samples_per_gpu from 4 ' in advice([sample(30)], 0.02, loader)[0]
    assert 'Raise data.workers_per_gpu from 0 ' in advice([sample(30)], 0.5, loader)[0]


def test_a_loader_that_names_nothing():
    assert 'Raise data.workers_per_gpu (this process' in advice([sample(30)], 0.5)[0]
    assert 'Raise data.samples_per_gpu (and' in advice([sample(30)], 0.)[0]


def test_heat_is_said_with_its_share():
    hot = ('hardware slowdown', 'heat (hardware)')
    found, = advice([sample(95, hot, temperature=88)] * 3 + [sample(95)] * 7, 0.)
    assert found == ('the GPU runs below its clocks at up to 88 °C: hardware slowdown in 30% of the samples, heat '
                     '(hardware) in 30% of the samples. Look at fans, air flow and power supply; workspace gpu shows '
                     'it live')


def test_the_power_cap_and_a_rare_event_are_no_fault():
    assert advice([sample(95, ('power cap',))] * 9 + [sample(95, ('heat (software)',))], 0.) == []


def test_heat_and_loader_share_the_one_warning(fixed, warnings):
    nvml = of(38)
    nvml.answers['nvmlDeviceGetCurrentClocksEventReasons', 'gpu0'] = [0x40]
    run(Times(0.4), GPUMonitorHook(nvml=nvml), Entries(interval=2), batches=60)
    said, = warnings()
    assert 'the loader, not the GPU' in said and 'heat (hardware) in 100%' in said
