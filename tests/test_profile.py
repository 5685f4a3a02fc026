"""Where a step's time goes: parts that add up, a limit that is named, a page and a trace."""
from __future__ import annotations

import gzip
import html
import json
import logging
import re
import shlex
import time

import pytest
import torch
from image_folders import image_folders
from torch import nn

from workspace_lib.datasets import CustomDataset
from workspace_lib.datasets.formatting import LoadImageFromFile
from workspace_lib.models import ImageClassifier
from workspace_lib.recipes import load_config
from workspace_lib.registry import CLASSIFIERS, PIPELINES
from workspace_lib.tools import cli
from workspace_lib.tools.profile import in_memory, profile
from workspace_lib.tools.profile_cards import CARDS, Roof, known_card, measured_roof
from workspace_lib.tools.profile_limit import PARTS, Profile, find_limit


@PIPELINES.register_module()
class SlowStep(LoadImageFromFile):
    """50 ms a sample: much, whatever else a busy machine does."""

    def __init__(self):
        super().__init__()

    def __call__(self, results):
        time.sleep(0.05)
        return results


@CLASSIFIERS.register_module()
class SlowClassifier(ImageClassifier):
    """400 ms a forward pass, in which nothing is computed: much, whatever else a busy machine does."""

    def extract_feat(self, img, stage='neck'):
        time.sleep(0.4)
        return super().extract_feat(img, stage)


@CLASSIFIERS.register_module()
class BusyClassifier(ImageClassifier):
    """A forward pass that is arithmetic."""

    def extract_feat(self, img, stage='neck'):
        with torch.no_grad():
            for _ in range(8):
                torch.mm(torch.ones(700, 700), torch.ones(700, 700))
        return super().extract_feat(img, stage)


def lenet(**options):
    return load_config('lenet/lenet5_mnist5k.py', {'data.workers_per_gpu': 0, **options})


@pytest.fixture(scope='module')
def plain():
    return profile(lenet(), steps=12, warm_up=3, device='cpu')


def test_the_parts_add_up_to_the_step(plain):
    assert [*plain.parts] == list(PARTS)
    assert all(seconds >= 0 for seconds in plain.parts.values())
    assert sum(plain.parts.values()) == pytest.approx(plain.step, rel=0.05)
    assert plain.parts['copy'] == 0  # on a CPU the batch is where it is made
    assert min(plain.parts[name] for name in ('load', 'forward', 'backward', 'optimizer')) > 0


def test_a_slow_loader_is_named_with_the_key_that_helps():
    cfg = lenet(**{'data.samples_per_gpu': 4})
    cfg.data.train.pipeline = [dict(type='SlowStep'), *cfg.data.train.pipeline]
    found = profile(cfg, steps=4, warm_up=1, device='cpu')
    assert found.limit.name == 'loader' and found.limit.part == 'load'
    assert 'data.workers_per_gpu=1 or more' in found.limit.advice  # it is 0
    assert 'prefetch_factor' not in found.limit.advice and '--resize' not in found.limit.advice
    assert found.parts['load'] > 0.8 * found.step


def test_a_slow_forward_pass_is_named():
    found = profile(lenet(**{'model.type': 'SlowClassifier'}), steps=4, warm_up=1, device='cpu')
    assert found.limit.part == 'forward'
    assert found.limit.name == 'overhead'  # no arithmetic to speak of
    assert found.parts['forward'] > 0.8 * found.step


def test_a_forward_pass_of_arithmetic_takes_its_time_there():
    found = profile(lenet(**{'model.type': 'BusyClassifier'}), steps=4, warm_up=1, device='cpu')
    assert found.limit.part == 'forward'


def made(device='cuda', busy=0.95, flops=24e9 * 64, moved=470e6 * 64, roof=None, settings=None, dtype='float32',
         **parts):
    parts = {**dict.fromkeys(PARTS, 0.), **parts}
    return Profile(parts, sum(parts.values()), 64, device, dtype, busy, flops, moved,
                   roof or Roof('NVIDIA H200', 989e12, 4.8e12, 'a data sheet'), settings or {})


class TestLimit:
    """What limits a step, from made-up figures of a GPU."""

    def test_copy(self):
        assert find_limit(made(load=.001, copy=.01, forward=.01, backward=.01)).name == 'copy'

    def test_a_device_that_waits_for_its_next_kernel(self):
        limit = find_limit(made(busy=0.3, load=.0001, forward=.004, backward=.008, optimizer=.002))
        assert limit.name == 'launch overhead' and 'samples_per_gpu' in limit.advice

    def test_loader(self):
        assert find_limit(made(busy=0.3, load=.02, forward=.004, backward=.008)).name == 'loader'

    def test_hooks(self):
        limit = find_limit(made(busy=0.4, wait=.02, forward=.004, backward=.008))
        assert limit.name == 'hooks' and 'log_config.interval' in limit.advice

    def test_memory_and_compute_by_the_roofline(self):
        steps = dict(forward=.003, backward=.006)
        assert find_limit(made(**steps)).name == 'memory'
        assert find_limit(made(moved=30e6 * 64, **steps)).name == 'compute'

    def test_a_tenth_of_the_roof_is_not_called_the_pace_of_memory(self):
        roof = Roof('a CPU', 100e9, 10e9, 'measured')
        found = made('cpu', 1., flops=3e9, moved=3e9 / 3.3, roof=roof, forward=.3, backward=.7)  # 3 of 33 GFLOP/s
        assert find_limit(found).name == 'overhead'
        found.parts.update(forward=.1, backward=.1)
        found.step = .2
        assert find_limit(found).name == 'memory'  # 15 of 33

    def test_advice_is_not_what_is_set_already(self):
        steps = dict(forward=.003, backward=.006)
        found = made(**steps)
        assert 'channels_last=True' in find_limit(found).advice
        found.settings = dict(channels_last=True, bf16=True, compile=True)
        assert 'channels_last=True' not in find_limit(found).advice


class TestAdvice:
    """What to try follows what the config says, and names it."""

    LOADING = dict(load=.02, forward=.004, backward=.008)

    def of_loader(self, workers, **settings):
        settings = {'data.workers_per_gpu': workers, 'cores': 8, **settings}
        return find_limit(made(settings=settings, **self.LOADING)).advice

    def test_without_workers_the_first_is_named_and_nothing_that_only_workers_have(self):
        said = self.of_loader(0)
        assert 'data.workers_per_gpu=1 or more' in said and 'higher' not in said and 'prefetch_factor' not in said
        assert '--resize' in said  # these images are files

    def test_more_workers_while_there_are_cores_for_them(self):
        assert 'data.workers_per_gpu higher than 2, up to the free ones of 8 cores' in self.of_loader(2)
        said = self.of_loader(8, **{'data.train_dataloader.prefetch_factor': 4})
        assert 'workers' not in said and 'prefetch_factor' not in said and '--resize' in said

    def test_of_images_in_memory_nothing_is_resized(self):
        said = self.of_loader(8, in_memory=True)
        assert '--resize' not in said and 'data.train.pipeline' in said

    def test_of_copies(self):
        found = made(load=.001, copy=.01, forward=.01, settings={'data.pin_memory': True, 'uint8': True})
        assert find_limit(found).advice.startswith('nothing that a config sets')
        found.settings = {'data.pin_memory': False, 'uint8': False}
        assert 'data.pin_memory=True' in find_limit(found).advice and 'uint8' in find_limit(found).advice

    def test_of_hooks(self):
        found = made(wait=.02, forward=.004, backward=.008, settings={'log_config.interval': 10, 'custom_hooks': False})
        assert find_limit(found).advice == 'log_config.interval higher than 10'

    @pytest.mark.parametrize('compile', [dict(mode='reduce-overhead'), 'failed'])
    def test_of_what_is_compiled_already_or_cannot_be(self, compile):
        found = made(busy=0.3, forward=.004, backward=.008, settings=dict(compile=compile))
        assert find_limit(found).advice == 'data.samples_per_gpu higher than 64'

    def test_a_compiled_one_may_have_cuda_graphs(self):
        found = made(busy=0.3, forward=.004, backward=.008, settings=dict(compile=True))
        assert find_limit(found).advice.endswith("compile=dict(mode='reduce-overhead')")

    def test_float16_is_not_told_to_take_bfloat16(self):
        assert 'bf16=True' in find_limit(made(forward=.003, backward=.006)).advice
        assert 'bf16=True' not in find_limit(made(forward=.003, backward=.006, dtype='float16')).advice

    def test_settings_are_those_of_the_run(self, plain):
        assert plain.settings['data.workers_per_gpu'] == 0 and plain.settings['in_memory']
        assert plain.settings['log_config.interval'] == 100 and plain.settings['cores'] >= 1
        assert not plain.settings['data.pin_memory']  # nothing is copied to a CPU

    def test_images_of_files_are_not_in_memory(self, tmp_path):
        folder = image_folders(tmp_path, ['cat', 'dog'], 1, 8)
        assert not in_memory(CustomDataset(str(folder), [dict(type='LoadImageFromFile')]))


def test_cards_are_known_by_the_name_that_the_driver_gives():
    assert known_card('NVIDIA H200', half=True) == Roof('NVIDIA H200', 989.4e12, 4.8e12, CARDS['H200'][3])
    assert known_card('NVIDIA H100 80GB HBM3', half=True).flops == pytest.approx(989.4e12)
    assert known_card('NVIDIA H100 PCIe', half=True).bandwidth == pytest.approx(2.0e12)
    assert known_card('NVIDIA A100-SXM4-80GB', half=False).flops == pytest.approx(156e12)
    assert known_card('Somebody else', half=True) is None


def test_a_roof_is_measured_where_no_table_knows_it():
    roof = measured_roof(torch.device('cpu'), torch.float32, seconds=0.05)
    assert 1e8 < roof.flops < 1e14 and 1e8 < roof.bandwidth < 1e13 and 'measured' in roof.source


@pytest.mark.parametrize('threads, said', [(1, 'CPU, 1 thread'), (2, 'CPU, 2 threads')])
def test_threads_are_counted(monkeypatch, threads, said):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    assert measured_roof(torch.device('cpu'), torch.float32, seconds=0.).name == said


def test_rooflines_of_several_devices_say_what_limits_a_work_on_each():
    from workspace_lib.tools.profile_page import roofs_plot
    slow, fast = Roof('slow', 10e12, 1e12, ''), Roof('fast', 100e12, 1e12, '')
    plot = roofs_plot([slow, fast], {'network': 40.})
    assert plot.table.rows == [('slow', 'network', 10., 10., 'compute'), ('fast', 'network', 100., 40., 'memory')]
    assert 'network on slow: compute sets the pace' in plot.alt
    lines = plot.figure.axes[0].get_lines()
    assert [max(lines[n].get_ydata()) for n in (0, 2)] == pytest.approx([10, 100])


def test_intensity_is_work_over_traffic(plain):
    assert plain.flops > 0 and plain.moved > 0
    assert plain.intensity == pytest.approx(plain.flops / plain.moved)
    # 3 x the forward pass of get_flops
    from workspace_lib.tools.get_flops import config_cost
    cost = config_cost('lenet/lenet5_mnist5k.py', (1, 32, 32))
    assert plain.flops == pytest.approx(3 * 2 * cost.macs * plain.batch_size)


def test_moved_bytes_of_one_addition():
    from workspace_lib.tools.profile import counted_bytes
    a, b = torch.ones(100), torch.ones(100)
    assert counted_bytes(lambda: a + b) == 3 * 400
    assert counted_bytes(lambda: a.view(10, 10).t()) == 0  # nothing moves
    weight = nn.Parameter(torch.ones(100))
    assert counted_bytes(lambda: (weight * 2).sum().backward()) > 2 * 400 + 404


def test_the_command_writes_a_page_and_a_trace(tmp_path, capsys):
    out = tmp_path / 'made'
    words = ['profile', 'lenet/lenet5_mnist5k.py', '--steps', '4', '--warm-up=1', '--device', 'cpu', '--out-dir',
             str(out), '--cfg-options', 'data.workers_per_gpu=0', 'compile.backend=eager']
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    page = (out / 'index.html').read_text()
    for part in PARTS:
        assert part in said and part in page
    assert 'limit' in said and 'images/s' in said
    assert not re.search(r'(src|href)="http', page)  # it fetches nothing
    commands = html.unescape(re.sub('<.*?>', '', page[page.index('Go on with'):]))
    assert f'workspace {shlex.join(words)}  # again' in commands  # the command that made it, whole
    assert f'workspace {shlex.join(["train", words[1], *words[5:7], *words[9:]])}Versions' in commands
    assert json.loads((out / 'profile.json').read_text())['limit']['name']
    with gzip.open(out / 'trace.json.gz', 'rt') as file:
        names = {event.get('name') for event in json.load(file)['traceEvents']}
    assert {'forward', 'backward', 'optimizer'} <= names


def test_time_on_the_gpu_is_that_of_kernels_and_copies():
    from types import SimpleNamespace

    from workspace_lib.tools.profile import _device_seconds
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(name, device, us, user=False):
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=user,
                               time_range=SimpleNamespace(elapsed_us=lambda: us))

    events = [event('conv', cuda, 30), event('Memcpy HtoD (Pinned -> Device)', cuda, 10), event('aten::conv', cpu, 99),
              event('Memcpy DtoD', cuda, 5), event('forward', cuda, 60, user=True)]
    busy, copied = _device_seconds(SimpleNamespace(events=lambda: events))
    assert busy == pytest.approx(45e-6) and copied == pytest.approx(10e-6)


def test_a_compiled_model_is_profiled(caplog):
    caplog.set_level(logging.INFO, 'workspace_lib')
    found = profile(lenet(compile=dict(backend='eager')), steps=3, warm_up=2, device='cpu')
    assert found.moved > 0 and found.settings['compile'] and found.mode == 'compiled'
    assert 'compiled: the first step of each shape may take minutes' in caplog.text  # in which nothing else is said


def test_a_model_that_could_not_be_compiled_is_not_profiled_as_if_it_were(plain, monkeypatch):
    from workspace_lib.tools.profile_page import text

    def refuses(graph, inputs):
        raise RuntimeError('no compiler')

    found = profile(lenet(compile=dict(backend=refuses)), steps=3, warm_up=2, device='cpu')
    assert ', eager, since torch.compile failed, on' in text(found) and ', eager, on' in text(plain)
    monkeypatch.setattr(found, 'device', 'cuda:0')
    assert 'compile' not in found.limit.advice  # it was tried


def test_a_run_in_iterations_and_one_that_accumulates_gradients():
    cfg = lenet()
    cfg.runner = dict(type='IterBasedRunner', max_iters=1000)
    cfg.optimizer_config = dict(cumulative_iters=2)
    found = profile(cfg, steps=4, warm_up=1, device='cpu')
    assert sum(found.parts.values()) == pytest.approx(found.step, rel=0.1)


@pytest.mark.parametrize('steps, warm_up', [(0, 1), (4, -1)])
def test_steps_are_counted_from_one(steps, warm_up):
    with pytest.raises(ValueError, match='--steps'):
        profile(lenet(), steps=steps, warm_up=warm_up, device='cpu')
