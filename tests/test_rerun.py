"""A run's folder is enough to repeat it: the same weights, and a word on everything that is not as it was."""
from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from workspace_lib.checkpoint import read_checkpoint
from workspace_lib.config import Config
from workspace_lib.tools import launch
from workspace_lib.tools import rerun as rerun_tool
from workspace_lib.tools.cli import main
from workspace_lib.tools.rerun import rerun
from workspace_lib.tools.versions import collect_versions, earlier_parts

CONFIG = '''
model = dict(
    type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=10), neck=None,
    head=dict(type='ClsHead', loss=dict(type='CrossEntropyLoss'), topk=(1, )))
pipeline = [
    dict(type='Resize', size=32), dict(type='RandomCrop', size=32, padding=2),
    dict(type='Normalize', mean=[33.46], std=[78.87], to_rgb=False), dict(type='ImageToTensor', keys=['img']),
    dict(type='ToTensor', keys=['gt_label']), dict(type='Collect', keys=['img', 'gt_label'])]
few = dict(type='MNIST5k', pipeline=pipeline)
data = dict(samples_per_gpu=500, workers_per_gpu=0, train=few, val=dict(test_mode=True, **few),
            test=dict(test_mode=True, **few))
optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
lr_config = dict(policy='CosineAnnealing', min_lr=0)
runner = dict(type='EpochBasedRunner', max_epochs=1)
checkpoint_config = dict(interval=1)
log_config = dict(interval=4, hooks=[dict(type='TextLoggerHook')])
evaluation = dict(interval=1, metric='accuracy', metric_options=dict(topk=(1, )))
'''


def in_a_process(*words: object, cwd: Path | None = None) -> str:
    """What ``workspace ...`` said on standard output; its own process, as a person starts it."""
    done = subprocess.run([sys.executable, '-m', 'workspace_lib.tools.cli', *map(str, words)], capture_output=True,
                          text=True, cwd=cwd, env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A run with a seed that nobody chose, an override, and choices of the command line; and what it said."""
    root = tmp_path_factory.mktemp('repeat')
    (root / 'digits.py').write_text(CONFIG)
    said = in_a_process('train', 'digits.py', '--work-dir', 'run', '--device', 'cpu', '--no-validate',
                        '--deterministic', '--cfg-options', 'optimizer.lr=0.02', cwd=root)
    return root / 'run', said


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, and the working folder that the run had."""
    monkeypatch.chdir(trained[0].parent)
    return Path(shutil.copytree(trained[0], tmp_path / 'run', symlinks=True))


@pytest.fixture
def no_training(monkeypatch):
    """What `rerun` asks of ``commands.train``, instead of an hour of it."""
    asked: dict = {}

    def train(config: Config, work_dir: str | None = None, resume_from: str | None = None,
              load_from: str | None = None, validate: bool = True, seed: int | None = None,
              deterministic: bool = False, device: str | None = None, options: dict | None = None) -> None:
        asked.update(locals())

    monkeypatch.setattr(rerun_tool.commands, 'train', train)
    return asked


def change(run: Path, **values: object) -> None:
    """Write other values into the run's report, dotted keys into its `run` part."""
    report = json.loads((run / 'report.json').read_text())
    for key, value in values.items():
        (report['run'] if key in report['run'] else report)[key] = value
    (run / 'report.json').write_text(json.dumps(report))


@pytest.fixture
def said(caplog, monkeypatch):
    caplog.set_level(logging.INFO, 'workspace_lib')
    logger = logging.getLogger('workspace_lib')
    monkeypatch.setattr(logger, 'propagate', True)  # a command line in another test turns it off
    return lambda: '\n'.join(record.getMessage() for record in caplog.records)


def test_a_run_is_repeated_to_the_bit_from_its_folder_alone(trained, tmp_path):
    run = Path(shutil.copytree(trained[0], tmp_path / 'elsewhere', symlinks=True))
    said = in_a_process('rerun', run, cwd=trained[0].parent)
    again = tmp_path / 'elsewhere-rerun'
    old, new = (read_checkpoint(folder / 'latest.pth') for folder in (run, again))
    assert old['state_dict'].keys() == new['state_dict'].keys()
    assert all(torch.equal(value, new['state_dict'][name]) for name, value in old['state_dict'].items())
    assert 'epoch_1.pth: all 10 tensors are those of' in said and 'WARNING' not in said
    dumped = Config.fromfile(str(again / 'digits.py'))
    assert dumped.optimizer.lr == 0.02 and dumped.seed == old['meta']['seed'] and dumped.resume_from is None


def test_the_choices_of_the_command_line_are_repeated(run, no_training):
    rerun(run)
    assert (no_training['validate'], no_training['deterministic'], no_training['device']) == (False, True, 'cpu')
    assert no_training['work_dir'] == f'{run}-rerun' and no_training['config'].optimizer.lr == 0.02


def test_another_device_and_folder_may_be_chosen(run, no_training, tmp_path):
    rerun(run, str(tmp_path / 'there'), device='auto')
    assert (no_training['work_dir'], no_training['device']) == (str(tmp_path / 'there'), 'auto')


@pytest.mark.parametrize('key', ['torch', 'numpy', 'gpus', 'commit', 'cpu'])
def test_a_difference_is_named_with_both_values(run, no_training, said, key):
    change(run, **{key: 'of long ago'})
    rerun(run)
    assert f'{key}: of long ago then, {collect_versions()[key]} now' in said()


def test_what_cannot_change_a_result_is_no_difference(run, no_training, said):
    change(run, jupyterlab='0.1', cores=640, system='another')
    rerun(run)
    assert 'then' not in said()


def test_as_many_threads_as_the_run_had(run, no_training, said):
    before = torch.get_num_threads()
    try:
        change(run, threads=before + 1)
        rerun(run)
        assert torch.get_num_threads() == before + 1
        assert f'{before + 1} threads, as the run had' in said()
    finally:
        torch.set_num_threads(before)


def test_another_working_folder_is_named(run, no_training, said, tmp_path, monkeypatch):
    was = Path.cwd()
    monkeypatch.chdir(tmp_path)
    rerun(run)
    assert f'started in {was}' in said() and 'relative paths' in said()


def test_uncommitted_changes_lie_in_the_folder(run, no_training, said, monkeypatch):
    change(run, commit='0123456789ab+')
    (run / 'uncommitted.patch').write_text('a change')
    monkeypatch.setattr(rerun_tool, 'uncommitted_changes', lambda: 'another')
    rerun(run)
    assert 'uncommitted.patch' in said()


def test_the_same_uncommitted_changes_are_no_difference(run, no_training, said, monkeypatch):
    change(run, commit=collect_versions()['commit'])
    (run / 'uncommitted.patch').write_text('a change')
    monkeypatch.setattr(rerun_tool, 'uncommitted_changes', lambda: 'a change')
    rerun(run)
    assert 'uncommitted.patch' not in said()


@pytest.mark.parametrize('moved', [False, True])
def test_a_resumed_run_is_repeated_from_its_start(run, no_training, said, moved):
    checkpoint = 'run/latest.pth' if moved else str(run / 'latest.pth')  # relative to where the run was started
    with open(run / 'digits.py', 'a') as file:
        file.write(f'resume_from = {checkpoint!r}\n')
    change(run, weights=checkpoint, weights_sha256='of the link as it was')
    rerun(run)
    assert no_training['config'].resume_from is None
    assert f'resumed from {checkpoint}' in said() and 'from its start' in said() and 'SHA-256' not in said()


def test_a_run_that_went_on_from_another_folder_goes_on_from_there_again(run, no_training, tmp_path):
    other = tmp_path / 'other' / 'epoch_1.pth'
    other.parent.mkdir()
    shutil.copy(run / 'epoch_1.pth', other)
    with open(run / 'digits.py', 'a') as file:
        file.write(f'resume_from = {str(other)!r}\n')
    rerun(run)
    assert no_training['config'].resume_from == str(other)


def test_the_weights_it_began_with_are_checked(trained, tmp_path, monkeypatch, no_training, said):
    monkeypatch.chdir(trained[0].parent)
    weights = tmp_path / 'weights.pth'
    shutil.copy(trained[0] / 'epoch_1.pth', weights)
    in_a_process('train', 'digits.py', '--work-dir', tmp_path / 'tuned', '--load-from', weights, '--device', 'cpu',
                 '--no-validate', cwd=trained[0].parent)
    rerun(tmp_path / 'tuned')
    assert no_training['config'].load_from == str(weights) and f'{weights} ' not in said()
    weights.write_bytes(b'others')
    rerun(tmp_path / 'tuned')
    assert f'{weights} is not the file that the run began with' in said()


def test_several_processes_are_asked_for(run, no_training, monkeypatch):
    change(run, processes=2)
    with pytest.raises(ValueError, match=r'2 processes and here are 1'):
        rerun(run)
    assert not no_training
    started = []
    monkeypatch.setattr('torch.distributed.run.main', started.append)
    assert main(['rerun', str(run), '--device', 'cpu']) == 0
    assert started == [['--standalone', '--nproc-per-node', '2', '--signals-to-handle', launch.SIGNALS, '-m',
                        'workspace_lib.tools.cli', 'rerun', str(run), '--device=cpu']]


def test_a_process_of_a_rerun_that_fails_is_named_in_a_line(run, monkeypatch, capsys):
    change(run, processes=2)

    def fail(words: list[str]) -> None:
        raise ChildFailedError('rerun', {1: ProcessFailure(local_rank=1, pid=1, exitcode=3, error_file='')})

    monkeypatch.setattr('torch.distributed.run.main', fail)
    assert main(['rerun', str(run)]) == 1
    assert capsys.readouterr().err.startswith('error: process 1 ended with status 3')


def resumed(run: Path, **first: object) -> None:
    """Let the report be that of a second part, after a first one with other values."""
    report = json.loads((run / 'report.json').read_text())
    earlier = {**report, 'run': {**report['run'], **first}}
    (run / 'report.json').write_text(json.dumps({**report, 'earlier': [earlier]}))


def test_a_run_that_changed_its_processes_is_repeated_with_those_of_its_first_part(run, monkeypatch, capsys):
    resumed(run, processes=2)
    started = []
    monkeypatch.setattr('torch.distributed.run.main', started.append)
    assert main(['rerun', str(run)]) == 0
    assert started[0][:3] == ['--standalone', '--nproc-per-node', '2']


def test_what_changed_between_the_parts_is_told(run, no_training, said, monkeypatch):
    before = torch.get_num_threads()
    resumed(run, processes=2, threads=before + 1)
    monkeypatch.setenv('WORLD_SIZE', '2')
    change(run, commit='a later one')
    try:
        rerun(run)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert 'the run had 2 processes, then 1' in said()
    assert f'commit: {collect_versions()["commit"]}, then a later one in the parts of the run' in said()


def test_a_run_that_goes_on_keeps_the_reports_of_its_earlier_parts(run):
    words = ['train', run / 'digits.py', '--work-dir', run, '--device', 'cpu', '--no-validate']
    first = json.loads((run / 'report.json').read_text())
    for epochs in (2, 3):
        in_a_process(*words, '--resume-from', run / 'latest.pth', '--cfg-options', f'runner.max_epochs={epochs}')
    report = json.loads((run / 'report.json').read_text())
    assert report['earlier'][0] == first and len(report['earlier']) == 2
    assert 'earlier' not in report['earlier'][1]


@pytest.mark.parametrize(('resume_from', 'parts'), [(None, 0), ('elsewhere/latest.pth', 0), ('latest.pth', 1)])
def test_earlier_parts_are_those_that_the_run_goes_on_from(run, resume_from, parts):
    found = earlier_parts(run, resume_from and str(run / resume_from))
    assert len(found.get('earlier', [])) == parts


def test_a_broken_report_does_not_keep_a_training_from_going_on(run, said):
    (run / 'report.json').write_text('{')
    assert earlier_parts(run, str(run / 'latest.pth')) == {}
    assert 'report.json cannot be read' in said()


def test_one_of_several_processes_warns_for_all(run, no_training, said, monkeypatch):
    change(run, processes=2, torch='0.1', arguments=dict(launcher='slurm'))
    monkeypatch.setenv('WORLD_SIZE', '2')
    for rank, warns in (('1', False), ('0', True)):
        monkeypatch.setenv('RANK', rank)
        rerun(run)
        assert ('torch: 0.1 then' in said()) == warns
    assert 'launcher' not in said()


def test_an_argument_that_this_version_does_not_know_is_named(run, no_training, said):
    change(run, arguments=dict(validate=False, warp=9))
    rerun(run)
    assert 'warp=9' in said() and no_training['validate'] is False


@pytest.mark.parametrize(('missing', 'named'), [('report.json', 'report.json'), ('digits.py', 'digits.py')])
def test_a_folder_that_is_no_run_is_refused(run, missing, named, capsys):
    (run / missing).unlink()
    assert main(['rerun', str(run)]) == 1
    error = capsys.readouterr().err
    assert f'{run} is no folder of a run' in error and named in error and 'Traceback' not in error


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(['rerun', str(tmp_path / 'nowhere')]) == 1
    assert 'nowhere' in capsys.readouterr().err


def test_a_report_of_an_earlier_version_says_what_to_do(run, capsys):
    (run / 'report.json').write_text(json.dumps(dict(torch='2.0')))
    assert main(['rerun', str(run)]) == 1
    assert 'workspace train' in capsys.readouterr().err


def test_a_rerun_does_not_write_over_another(run, tmp_path, capsys):
    Path(f'{run}-rerun').mkdir()
    shutil.copy(run / 'epoch_1.pth', f'{run}-rerun')
    assert main(['rerun', str(run)]) == 1
    assert 'already holds a run' in capsys.readouterr().err


def test_other_weights_are_told(run, no_training, said):
    other = Path(shutil.copytree(run, f'{run}-rerun', symlinks=True))
    content = torch.load(other / 'epoch_1.pth', weights_only=True)
    name = next(iter(content['state_dict']))
    content['state_dict'][name] += 0.5
    torch.save(content, other / 'epoch_1.pth')
    rerun(run)
    assert f'epoch_1.pth: 1 of 10 tensors differ from those of {run}, at most by 0.5 ({name})' in said()
