"""The benchmarks run, at toy size: what their files say, not how fast anything is."""
from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.skipif(not (ROOT / 'benchmarks').is_dir(), reason='not a checkout: no benchmarks'),
              pytest.mark.timeout(400)]


def ran(script: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / 'benchmarks' / script), *words], capture_output=True, text=True,
                          cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def check(path: Path) -> dict:
    """The structure that every result has."""
    found = json.loads(path.read_text())
    assert {'cpu', 'cores', 'load'} <= set(found['machine']) and {'torch', 'commit', 'python'} <= set(found['versions'])
    assert found['sections'] and found['rounds'] >= 1 and 'bench_' in found['command']
    for section in found['sections']:
        assert section['base'] in section['rows']
        for row in section['rows'].values():
            assert row['least'] <= row['median'] <= row['most'] and row['runs']
    assert found['toy'] and all(section['title'].endswith('(toy size)') for section in found['sections'])
    for aim in found['aims']:
        assert aim['met'] is None and aim['reason']  # toy size is not judged
    return found


def rows(found: dict, title: str) -> set[str]:
    return set(next(section['rows'] for section in found['sections'] if section['title'].startswith(title)))


def test_image_and_loader_and_the_readme_of_both(tmp_path):
    said = ran('run.py', '--quick', '--only', 'image', 'loader', '--out', str(tmp_path))
    image, loader = check(tmp_path / 'image.json'), check(tmp_path / 'loader.json')
    assert {name.partition(':')[0] for name in rows(image, 'One image to a training crop of 224 px, uint8')} >= {
        'anchor', 'by hand', 'ours'}
    assert rows(loader, 'Loaders, uint8 batches: rate') == {'ours'}
    assert rows(loader, 'Loaders, normalised float32 batches: rate') == {'torchvision v2 float32'}
    assert any(name.startswith('anchor') for name in rows(loader, 'Loaders, uint8 batches: CPU time'))
    assert 'ours, 1 worker' in rows(loader, 'Ours with more workers')
    aims = {aim['what']: aim for aim in loader['aims']}
    assert aims['loader, CPU an image: torchvision v2 float32 over ours']['figure'] > 0
    assert aims['loader, CPU an image: FFCV jpg over ours']['met'] is None
    readme = (tmp_path / 'README.md').read_text()
    assert all(aim['what'] in readme for found in (image, loader) for aim in found['aims'])
    assert (tmp_path / 'image.png').is_file() and 'README.md' in said


@pytest.mark.slow
@pytest.mark.parametrize('name', ['scale', 'config', 'test_loop', 'train_loop', 'monitor'])
def test_the_other_benchmarks(tmp_path, name):
    ran('run.py', '--quick', '--only', name, '--out', str(tmp_path))
    check(tmp_path / f'{name}.json')


def test_a_contestant_that_is_not_installed_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import contestants
    monkeypatch.setattr(contestants, 'BENCH', tmp_path)
    with pytest.raises(contestants.Absent, match='not installed.*make_peers.sh'):
        contestants.Contestant('FFCV jpg', str(tmp_path), 4, 1)
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').symlink_to(sys.executable)
    (tmp_path / 'missing.txt').write_text('ffcv\tno opencv4\n')
    with pytest.raises(contestants.Absent, match='no opencv4'):
        contestants.Contestant('FFCV jpg', str(tmp_path), 4, 1)


def test_a_contestant_that_breaks_is_absent_with_what_it_said(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import contestants
    with pytest.raises(contestants.Absent, match='does not run: .*nowhere'):
        contestants.Contestant('ours', str(tmp_path / 'nowhere'), 4, 1)


def test_without_a_compiler_the_anchor_is_a_stand_in_and_says_so(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import anchor
    import cv2
    import numpy as np
    path = str(tmp_path / 'x.jpg')
    cv2.imwrite(path, np.zeros((8, 8, 3), np.uint8))
    found, reason = anchor.anchors([path], compiler='no-such-cc')
    assert [*found] == [anchor.STAND_IN] and 'no-such-cc' in reason
    assert found[anchor.STAND_IN]() > 0


@pytest.mark.parametrize('part', ['speed', 'fed', 'cifar10', 'keys', pytest.param('sweep', marks=pytest.mark.slow)])
def test_the_gpu_benchmark_runs_on_a_cpu_at_toy_size(tmp_path, part):
    said = ran('bench_gpu.py', '--device', 'cpu', '--toy', '--part', part, '--out', str(tmp_path))
    found = check(tmp_path / f'gpu_{part}.json')
    assert found['device'] == 'CPU' and found['toy']
    if part == 'speed':
        assert rows(found, 'ResNet-18') == {'ours: bf16, NHWC, compile', 'torchvision eager', 'timm eager'}
        assert all(aim['met'] is None and 'H200' in aim['reason'] for aim in found['aims'])  # a CPU meets no such aim
        assert all(aim['figure'] > 0 for aim in found['aims']) and 'not measured' not in said
    if part == 'cifar10':
        (aim,) = found['aims']
        assert aim['what'] == 'CIFAR-10, ResNet-18, accuracy after 1 epoch' and aim['aim'] == '>= 95'
        assert aim['figure'] is not None and '1 epochs' not in said
    if part == 'keys':
        assert rows(found, 'ResNet-18 training, batch 2, eager') == {
            'defaults', 'optimizer.fused=False', 'channels_last=False', 'bf16=False', 'cudnn_benchmark=False'}
        assert rows(found, 'ResNet-18 training, 32 px') == {
            'eager', "compile=dict(backend='eager')"}  # what was run, and not the modes of a GPU
    if part == 'sweep':
        assert len(rows(found, 'ResNet-18')) == 8 and said.count('ResNet-18 training') == 1  # one table


class TestGpuParts:
    """The parts are processes: what ends one leaves the others, and what it measured."""

    @pytest.fixture
    def bench_gpu(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
        import bench_gpu
        loggers = [logging.getLogger(name) for name in (None, 'workspace_lib', 'workspace_lib.device')]
        levels, threads = [logger.level for logger in loggers], bench_gpu.torch.get_num_threads()
        yield bench_gpu
        bench_gpu.torch.set_num_threads(threads)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

    def run(self, bench_gpu, monkeypatch, tmp_path, answer):
        calls = []

        def stand_in(words, **options):
            calls.append((words, options))
            return answer(words, options)

        monkeypatch.setattr(bench_gpu.subprocess, 'run', stand_in)
        monkeypatch.setattr(bench_gpu, 'write_readme', lambda folder: folder)
        monkeypatch.setattr(sys, 'argv', ['bench_gpu.py', '--device', 'cpu', '--toy', '--out', str(tmp_path)])
        return calls

    def test_all_parts_together_end_within_ten_minutes(self, bench_gpu, monkeypatch, tmp_path):
        calls = self.run(bench_gpu, monkeypatch, tmp_path,
                         lambda words, options: subprocess.CompletedProcess(words, 0))
        bench_gpu.main()
        assert len(calls) == len(bench_gpu.PARTS)
        assert sum(options['timeout'] for _, options in calls) < 600

    def test_a_part_that_hangs_or_crashes_is_named_and_the_others_run(self, bench_gpu, monkeypatch, tmp_path):
        def answer(words, options):
            if 'speed' in words:
                raise subprocess.TimeoutExpired(words, options['timeout'])
            return subprocess.CompletedProcess(words, 1 if 'fed' in words else 0)

        calls = self.run(bench_gpu, monkeypatch, tmp_path, answer)
        with pytest.raises(SystemExit, match='failed: speed, fed; .*kept'):
            bench_gpu.main()
        assert len(calls) == len(bench_gpu.PARTS)

    def test_turns_end_when_the_time_is_over_but_not_before_one_counts(self, bench_gpu):
        seen = []
        size = bench_gpu.Size(toy=False)
        figures = bench_gpu.turns({'A': lambda: 1., 'B': lambda: 2.}, size, until=0.,
                                  after=lambda now: seen.append(1), missing=lambda name, why: None)
        assert figures == {'A': [1.], 'B': [2.]} and len(seen) == 1
        assert size.timed == 100  # the round that does not count is short, those that do are not

    @pytest.fixture
    def no_compiler(self, bench_gpu, monkeypatch):
        """Sizes whose trainings are compiled by what fails, as on a machine without a compiler."""
        def refuses(graph, inputs):
            raise RuntimeError('no compiler here')

        made = bench_gpu.Size.__init__

        def init(size, *args):
            made(size, *args)
            size.compile = dict(backend=refuses)

        import torch
        torch._dynamo.reset()
        monkeypatch.setattr(bench_gpu.Size, '__init__', init)

    def part(self, bench_gpu, tmp_path, name):
        import argparse
        bench_gpu.one_part(name, argparse.Namespace(device='cpu', toy=True, minutes=0.5, out=tmp_path, images=None,
                                                    cifar10=None))
        return json.loads((tmp_path / f'gpu_{name}.json').read_text())

    def test_what_ran_eager_is_missing_and_no_figure_of_compile(self, bench_gpu, no_compiler, tmp_path, caplog):
        found = self.part(bench_gpu, tmp_path, 'speed')
        assert 'torch.compile failed' in found['missing'][bench_gpu.OURS]
        assert bench_gpu.OURS not in rows(found, 'ResNet-18')
        assert {aim['reason'] for aim in found['aims']} == {'not compiled'}

    def test_the_warning_of_the_fallback_is_let_through(self, bench_gpu, no_compiler, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(logging.getLogger('workspace_lib'), 'propagate', True)
        size, device = bench_gpu.Size(True), bench_gpu.torch.device('cpu')
        bench_gpu.quiet()
        training = bench_gpu.Training(size, device)
        with pytest.raises(bench_gpu.NotCompiled, match='the warning above says why'):
            training.seconds(bench_gpu.Synthetic(size, device, size.batch), size)
        assert 'no compiler here' in caplog.text
        ours = {record.name for record in caplog.records if record.name.startswith('workspace_lib')}
        assert ours == {'workspace_lib.device'}

    def test_who_falls_back_in_a_later_turn_has_no_figures_at_all(self, bench_gpu):
        answers, missing = iter([1., 1., bench_gpu.NotCompiled('ran eager')]), {}

        def compiled():
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        figures = bench_gpu.turns({'compile': compiled, 'eager': lambda: 2.}, bench_gpu.Size(toy=False),
                                  until=float('inf'), after=lambda now: None, missing=missing.__setitem__)
        assert figures == {'eager': [2.] * 3} and missing == {'compile': 'ran eager'}

    def test_out_of_memory_in_a_sweep_is_told(self, bench_gpu, tmp_path, monkeypatch):
        import torch

        def seconds(training, loader, size):
            if len(loader.batch['img']) == 4:
                raise torch.OutOfMemoryError('CUDA out of memory')
            if training.asked:
                raise bench_gpu.NotCompiled('ran eager')
            return 1.

        monkeypatch.setattr(bench_gpu.Training, 'seconds', seconds)
        found = self.part(bench_gpu, tmp_path, 'sweep')
        assert rows(found, 'ResNet-18') == {'NHWC, eager, batch 2', 'NCHW, eager, batch 2'}
        assert sorted(found['missing'].values()) == ['out of memory'] * 4 + ['ran eager'] * 2

    def test_on_a_cpu_only_the_keys_are_measured(self, bench_gpu, monkeypatch, tmp_path):
        self.run(bench_gpu, monkeypatch, tmp_path, None)
        monkeypatch.setattr(sys, 'argv', ['bench_gpu.py', '--device', 'cpu', '--out', str(tmp_path)])
        with pytest.raises(SystemExit, match='--part keys'):
            bench_gpu.main()

    def test_an_aim_of_the_h200_is_judged_on_one_alone(self, bench_gpu, tmp_path):
        for name, met in (('NVIDIA H200', False), ('NVIDIA L4', None)):
            results = bench_gpu.Results('gpu', tmp_path, device=name)
            bench_gpu.on_an_h200(results, 'ours over eager', 1.2, '>= 1.3')
            assert results.content['aims'][0]['met'] is met and results.content['aims'][0]['figure'] == 1.2
