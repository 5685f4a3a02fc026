"""A run goes on exactly where its checkpoint left it: inside an epoch, inside an accumulation, after a signal."""
from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import interrupted
import numpy as np
import pytest
import torch
from test_loader import folder as images  # noqa: F401 - a fixture
from test_loader import loader, same
from test_runner import Batches, Regression
from torch import distributed, nn

from workspace_lib.checkpoint import link_latest, save_checkpoint
from workspace_lib.faults import STOPPED, Stopped, StopSignalHook
from workspace_lib.hooks import CheckpointHook, Hook, LrUpdaterHook, OptimizerHook
from workspace_lib.iter_runner import IterBasedRunner
from workspace_lib.log_writers import TextLoggerHook
from workspace_lib.loops import EvalHook
from workspace_lib.resume import damage_of
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.tools import commands, jobs
from workspace_lib.tools.cli import main
from workspace_lib.tools.processes import alone_in, take_lock
from workspace_lib.tools.recovery import newest
from workspace_lib.weight_hooks import EMAHook, PreciseBNHook

LOG = 'workspace_lib.test'


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level('INFO', 'workspace_lib')


class Chancy(Regression):
    """With statistics, and dropout from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.3)

    def train_step(self, data, optimizer=None):
        return super().train_step(dict(data, img=self.drop(self.norm(data['img']))))

    val_step = train_step


def runner_of(folder, kind=EpochBasedRunner, seed=0, **length):
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    model = Chancy()
    return kind(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), work_dir=folder,
                logger=logging.getLogger(LOG), **(length or dict(max_epochs=3)))


def run(folder, resume=None, batches=None, hooks=(), interval=1, **options):
    """Three epochs of 4, or from a checkpoint on, with all that has state of its own."""
    runner = runner_of(folder, seed=9 if resume else 0, **options)
    runner.register_hook(LrUpdaterHook(lambda base, step: base * 0.9 ** step))
    runner.register_hook(OptimizerHook(cumulative_iters=3))
    runner.register_hook(CheckpointHook(interval=interval, by_epoch=False))
    runner.register_hook(EMAHook(momentum=0.1, warm_up=3))
    if runner.by_epoch:
        runner.register_hook(PreciseBNHook(num_samples=10))
    for hook in hooks:
        runner.register_hook(hook)
    if resume:
        runner.resume(str(resume))
    batches = Batches() if batches is None else batches
    batches.batch_size = 5
    runner.run([batches], [('train', 1)])
    return runner


@pytest.fixture
def library_log(caplog):
    """What the library's logger says, whatever a command before set it to."""
    logger = logging.getLogger('workspace_lib')
    before = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel('INFO')
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(before)


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize('at', range(1, 12))  # 4 and 8: the epoch's batches are done, what comes at its end is not
def test_a_run_goes_on_inside_an_epoch(tmp_path, at):
    run(tmp_path / 'whole')
    run(tmp_path / 'parts', tmp_path / 'whole' / f'iter_{at}.pth')
    assert not interrupted.difference(*(read(tmp_path / name / 'latest.pth') for name in ('whole', 'parts')))


def test_hooks_see_the_rest_of_the_epoch_and_its_beginning_once(tmp_path):
    calls = []
    seen = Hook()
    seen.before_train_epoch = lambda r: calls.append('begin')
    seen.after_train_iter = lambda r: calls.append((r.epoch, r.inner_iter, r.iter))
    seen.after_train_epoch = lambda r: calls.append('end')
    run(tmp_path)
    run(tmp_path / 'x', tmp_path / 'iter_6.pth', hooks=[seen, TextLoggerHook(interval=2)])
    assert calls == ['begin', (1, 2, 6), (1, 3, 7), 'end', 'begin', (2, 0, 8), (2, 1, 9), (2, 2, 10), (2, 3, 11), 'end']
    lines = [json.loads(line) for line in next((tmp_path / 'x').glob('*.log.json')).read_text().splitlines()]
    assert [(line['epoch'], line['iter']) for line in lines if 'epoch' in line] == [(2, 4), (3, 2), (3, 4)]


def test_what_hooks_do_at_the_end_of_an_epoch_is_made_up_for(tmp_path):
    calls = []
    seen = Hook()
    seen.after_train_iter = lambda r: calls.append(r.iter)
    seen.after_train_epoch = lambda r: calls.append(f'end {r.epoch}')
    run(tmp_path)
    assert read(tmp_path / 'iter_4.pth')['meta'].items() >= dict(epoch=1, iter=4, epoch_open=True).items()
    run(tmp_path / 'x', tmp_path / 'iter_4.pth', hooks=[seen])
    assert calls[:2] == ['end 0', 4]


def test_the_last_epoch_can_still_be_ended(tmp_path):
    run(tmp_path)
    runner = run(tmp_path / 'x', tmp_path / 'iter_12.pth')
    assert (runner.epoch, runner.iter) == (3, 12)


def as_mmcv_has_it(path, target, **meta):
    content = read(path)
    for key in ('iters_per_epoch', 'epoch_open'):
        del content['meta'][key]
    content['meta'].update(meta)
    torch.save(content, target)


def test_mmcvs_file_from_amid_an_epoch_goes_on_there(tmp_path):
    """It counts the broken epoch as done, and the iteration just done as not."""
    run(tmp_path)
    as_mmcv_has_it(tmp_path / 'iter_7.pth', tmp_path / 'theirs.pth', epoch=2, iter=6, mmcv_version='1.7.2')
    # Of 6 iterations in 2 epochs, 3 an epoch might be meant: it begins the next one.
    runner = run(tmp_path / 'a', tmp_path / 'theirs.pth')
    assert runner.iter == 12
    as_mmcv_has_it(tmp_path / 'iter_6.pth', tmp_path / 'theirs.pth', epoch=2, iter=5, mmcv_version='1.7.2')
    run(tmp_path / 'b', tmp_path / 'theirs.pth')
    assert not interrupted.difference(read(tmp_path / 'latest.pth'), read(tmp_path / 'b' / 'latest.pth'))


@pytest.mark.parametrize('of_mmcv', [False, True])
def test_with_other_batches_it_goes_on_at_the_start_of_an_epoch_and_says_so(tmp_path, caplog, of_mmcv):
    run(tmp_path)
    path = tmp_path / 'iter_8.pth'
    if of_mmcv:
        as_mmcv_has_it(path, tmp_path / 'theirs.pth', epoch=2, iter=8)
        path = tmp_path / 'theirs.pth'
    batches = Batches(5)
    runner = run(tmp_path / 'x', path, batches=batches)
    assert 'it goes on at the start of epoch' in caplog.text
    assert runner.iter == 15 and batches.epochs[0] == (2 if of_mmcv else 1)


@pytest.mark.parametrize('at', [4, 5, 6, 11])
def test_gradients_amid_an_accumulation_are_kept(tmp_path, at):
    run(tmp_path, kind=IterBasedRunner, max_iters=12)
    assert ('gradients' in read(tmp_path / f'iter_{at}.pth')) == (at % 3 != 0)
    run(tmp_path / 'x', tmp_path / f'iter_{at}.pth', kind=IterBasedRunner, max_iters=12)
    assert not interrupted.difference(read(tmp_path / 'latest.pth'), read(tmp_path / 'x' / 'latest.pth'))


# The loader.

class Counting(list):
    """Samples that note which of them were made."""

    def __init__(self) -> None:
        super().__init__(range(10))
        self.made: list[int] = []

    def __getitem__(self, index):
        self.made.append(index)
        return dict(img=torch.full((1, 2, 2), float(index)), gt_label=index % 3)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('augments', [None, dict(type='BatchMixup', alpha=0.5, num_classes=2)])
def test_a_pass_can_begin_at_a_batch(images, workers, augments):  # noqa: F811
    whole, late = (loader(images, workers, augments=augments) for _ in range(2))
    whole.set_epoch(1), late.set_epoch(1)
    late.start_at(4)
    expected, got = list(whole), list(late)
    assert len(got) == 2 and len(late) == 6
    for a, b in zip(expected[4:], got, strict=True):
        assert same(a.values(), b.values())
    assert all(same(a.values(), b.values()) for a, b in zip(whole, late, strict=True))  # the next pass is whole again


def test_batches_before_the_first_are_not_made():
    from workspace_lib.datasets.loader import Loader
    data = Counting()
    batches = Loader(data, 2, shuffle=False)
    batches.start_at(3)
    assert [batch['img'][0, 0, 0, 0].item() for batch in batches] == [6, 8]
    assert data.made == [6, 7, 8, 9]


def test_a_loader_that_cannot_begin_anywhere_is_read_and_dropped(tmp_path):
    read_until = []

    class Told(Batches):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                read_until.append(number)
                yield batch

    run(tmp_path)
    run(tmp_path / 'x', tmp_path / 'iter_11.pth', batches=Told())
    assert read_until == [0, 1, 2, 3, 0, 1]  # the last two of PreciseBNHook


# Files of a run: what stays, what is found.

def kept(folder):
    return sorted(path.name for path in folder.glob('*.pth') if not path.is_symlink())


def test_a_damaged_newest_does_not_cost_the_older_ones(tmp_path, monkeypatch, caplog):
    runner = runner_of(tmp_path)
    hook = CheckpointHook(interval=1, max_keep_ckpts=1)
    write = runner._write

    def torn(folder, name, *rest):
        write(folder, name, *rest)
        if name == 'epoch_2.pth':
            os.truncate(folder / name, 1000)

    monkeypatch.setattr(runner, '_write', torn)
    for one in (OptimizerHook(), hook):
        runner.register_hook(one)
    after_two = []
    last = Hook()
    last.priority = 'LOWEST'
    last.after_train_epoch = lambda r: after_two.append(kept(tmp_path))
    runner.register_hook(last)
    runner.run([Batches()], [('train', 1)])
    assert after_two == [['epoch_1.pth'], ['epoch_1.pth', 'epoch_2.pth'], ['epoch_3.pth']]
    assert 'epoch_2.pth is damaged' in caplog.text and 'older ones are kept' in caplog.text


def test_what_a_link_points_to_stays(tmp_path):
    runner = runner_of(tmp_path)
    runner.register_hook(OptimizerHook())
    runner.register_hook(CheckpointHook(interval=1, max_keep_ckpts=1))
    linking = Hook()
    linking.after_train_epoch = lambda r: r.epoch == 0 and link_latest(tmp_path, 'epoch_1.pth', 'best.pth')
    runner.register_hook(linking)
    runner.run([Batches()], [('train', 1)])
    assert kept(tmp_path) == ['epoch_1.pth', 'epoch_3.pth']


@pytest.mark.parametrize('by_epoch', [True, False])
def test_files_of_the_run_that_goes_on_are_counted(tmp_path, by_epoch):
    run(tmp_path / 'source')
    shutil.copytree(tmp_path / 'source', tmp_path / 'run')
    kind = 'epoch' if by_epoch else 'iter'
    for path in (tmp_path / 'run').glob('*.pth'):
        path.unlink()
    for name in ('epoch_1', 'iter_4', 'stopped_iter_6', 'best_x_epoch_1'):
        shutil.copy(tmp_path / 'source' / 'iter_6.pth', tmp_path / 'run' / f'{name}.pth')
    (tmp_path / 'run' / '.iter_6.pth.123.tmp').touch()
    runner = runner_of(tmp_path / 'run')
    runner.register_hook(OptimizerHook())
    runner.register_hook(CheckpointHook(interval=1 if by_epoch else 4, by_epoch=by_epoch, max_keep_ckpts=2))
    runner.resume(str(tmp_path / 'run' / 'stopped_iter_6.pth'))
    runner.run([Batches()], [('train', 1)])
    ours = ['epoch_2', 'epoch_3'] if by_epoch else ['iter_12', 'iter_8']
    others = ['iter_4'] if by_epoch else ['epoch_1']
    assert kept(tmp_path / 'run') == sorted(f'{name}.pth' for name in [*ours, *others, 'best_x_epoch_1'])
    assert not list((tmp_path / 'run').glob('.*.tmp')), kind


def test_the_best_has_a_link_and_the_best_of_a_broken_run_is_found_again(tmp_path, monkeypatch, caplog):
    scores = iter([1.0, 3.0, 2.0])

    def evaluate(self, runner, moment):
        self._keep_best(runner, {'top-1': next(scores)}, moment)

    monkeypatch.setattr(EvalHook, 'evaluate', evaluate)
    run(tmp_path, hooks=[EvalHook(None, save_best='auto')])
    assert os.readlink(tmp_path / 'best.pth') == 'best_top-1_epoch_2.pth'
    shutil.copy(tmp_path / 'best.pth', tmp_path / 'best_top-1_epoch_1.pth')  # killed before the earlier one was removed
    content = read(tmp_path / 'best_top-1_epoch_1.pth')
    content['meta']['best_score'] = 1.0
    torch.save(content, tmp_path / 'best_top-1_epoch_1.pth')
    (tmp_path / 'best_top-1_epoch_0.pth').write_bytes(b'torn')
    scores = iter([2.5])
    run(tmp_path, tmp_path / 'iter_11.pth', hooks=[hook := EvalHook(None, save_best='auto')])
    assert (hook.best, hook.best_file.name) == (3.0, 'best_top-1_epoch_2.pth')
    assert 'best_top-1_epoch_0.pth' in caplog.text


def test_the_newest_is_the_furthest_in_the_run(tmp_path):
    run(tmp_path, interval=5)
    shutil.copy(tmp_path / 'iter_5.pth', tmp_path / 'zz.pth')
    assert newest(tmp_path) == tmp_path / 'iter_12.pth'
    open_epoch = read(tmp_path / 'iter_12.pth')
    open_epoch['meta']['epoch_open'] = False
    torch.save(open_epoch, tmp_path / 'epoch_3.pth')
    assert newest(tmp_path) == tmp_path / 'epoch_3.pth'
    assert newest(tmp_path / 'nothing') is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('harm', [flip, lambda path: os.truncate(path, path.stat().st_size - 100),
                                  lambda path: path.write_bytes(b'')])
def test_a_damaged_one_is_passed_over_and_named(tmp_path, caplog, harm):
    run(tmp_path, interval=5)
    harm(tmp_path / 'iter_12.pth')
    assert damage_of(tmp_path / 'iter_12.pth')
    assert newest(tmp_path) == tmp_path / 'iter_10.pth'
    assert 'passed over' in caplog.text and 'iter_12.pth' in caplog.text


def test_weights_alone_are_not_written_over(tmp_path):
    save_checkpoint(Regression(), tmp_path / 'epoch_1.pth')
    with pytest.raises(FileExistsError, match='epoch_1.pth holds weights, but no optimizer'):
        newest(tmp_path)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Data, a config file, and a run of it."""
    root = tmp_path_factory.mktemp('world')
    interrupted.make_data(root / 'data')
    text = interrupted.EPOCHS.replace('workers_per_gpu=2', 'workers_per_gpu=0').replace('interval=2,', 'interval=6,')
    (root / 'tiny.py').write_text(text.replace('{root}', str(root / 'data')))
    commands.train(str(root / 'tiny.py'), str(root / 'run'), resume_from='auto', device='cpu')
    return root


def test_with_a_corrupted_latest_the_run_goes_on_from_the_one_before(world, tmp_path, library_log):
    shutil.copytree(world / 'run', tmp_path / 'run', symlinks=True)
    for path in (tmp_path / 'run').glob('best*'):
        path.unlink()
    flip(tmp_path / 'run' / 'iter_32.pth')
    commands.train(str(world / 'tiny.py'), str(tmp_path / 'run'), resume_from='auto', device='cpu')
    assert f'passed over: {tmp_path}/run/iter_32.pth is damaged' in library_log.text
    assert f'going on from {tmp_path}/run/iter_30.pth' in library_log.text
    ends = [interrupted.end_of(where / 'run') for where in (world, tmp_path)]
    assert not interrupted.difference(*ends)


def test_auto_in_a_config_starts_anew_where_nothing_is_and_says_so(world, tmp_path, library_log):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'iter_6.pth').write_bytes(b'torn')
    commands.train(str(world / 'tiny.py'), str(tmp_path / 'run'), device='cpu',
                   options={'resume_from': 'auto', 'runner.max_epochs': 1})
    assert 'iter_6.pth' in library_log.text and 'to go on from: a new run' in library_log.text
    assert read(tmp_path / 'run' / 'latest.pth')['meta']['iter'] == 8


def with_out_dir(folder):
    return {'checkpoint_config.out_dir': str(folder / 'ck'), 'checkpoint_config.max_keep_ckpts': -1,
            'runner.max_epochs': 1, 'log_level': 'INFO'}


def test_auto_looks_where_the_checkpoints_are_written(world, tmp_path, library_log):
    options = with_out_dir(tmp_path)
    commands.train(str(world / 'tiny.py'), str(tmp_path / 'run'), validate=False, device='cpu', options=options)
    assert f'{tmp_path}/ck/latest.pth --metrics' in library_log.text
    before = (tmp_path / 'ck' / 'iter_6.pth').read_bytes()
    options['runner.max_epochs'] = 2
    commands.train(str(world / 'tiny.py'), str(tmp_path / 'run'), 'auto', validate=False, device='cpu',
                   options=options)
    assert f'going on from {tmp_path}/ck/iter_8.pth' in library_log.text
    assert (tmp_path / 'ck' / 'iter_6.pth').read_bytes() == before
    shutil.copy(world / 'run' / 'iter_32.pth', tmp_path / 'run' / 'stopped_iter_32.pth')  # a stop writes to the run's
    assert newest(tmp_path / 'run', tmp_path / 'ck') == tmp_path / 'run' / 'stopped_iter_32.pth'


def test_a_run_in_the_folder_for_checkpoints_is_not_written_over(world, tmp_path):
    options = with_out_dir(tmp_path)
    shutil.copytree(world / 'run', tmp_path / 'ck', symlinks=True)
    for source in (None, str(world / 'run' / 'iter_24.pth')):
        with pytest.raises(FileExistsError, match='/ck already holds a run .*checkpoint_config.out_dir=OTHER'):
            commands.train(str(world / 'tiny.py'), str(tmp_path / 'run'), source, device='cpu', options=options)
    assert not (tmp_path / 'run').exists()
    (tmp_path / 'run').mkdir()
    shutil.copy(world / 'run' / 'best.pth', tmp_path / 'run' / 'best_x_epoch_4.pth')
    options['runner.max_epochs'] = 5
    runner = commands.train(str(world / 'tiny.py'), str(tmp_path / 'run'), str(tmp_path / 'ck' / 'latest.pth'),
                            device='cpu', options=options)
    assert runner.iter == 40


def flip_in_a_tensor(path):
    value = next(iter(read(path)['state_dict'].values())).numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(value) + len(value) // 2] ^= 1
    path.write_bytes(data)


def test_a_file_that_is_named_is_verified_before_anything_is_written(world, tmp_path):
    path = tmp_path / 'latest.pth'
    shutil.copy(world / 'run' / 'iter_24.pth', path)
    flip_in_a_tensor(path)
    assert read(path)['meta']['iter'] == 24  # torch takes it
    with pytest.raises(ValueError, match=r'latest.pth is damaged: .*an earlier file, .*--resume-from auto'):
        commands.train(str(world / 'tiny.py'), str(tmp_path / 'a' / 'run'), str(path), device='cpu')
    assert not (tmp_path / 'a').exists()


def test_a_file_of_before_check_sums_can_be_gone_on_from(world, tmp_path):
    torch.save(read(world / 'run' / 'iter_32.pth'), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    runner = commands.train(str(world / 'tiny.py'), str(tmp_path / 'run'), str(tmp_path / 'old.pth'), device='cpu',
                            options={'runner.max_epochs': 5})
    assert runner.iter == 40


# One run at a time.

HOLDS = """
import sys, time
from pathlib import Path
from workspace_lib.tools.processes import alone_in
with alone_in(Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the folder ``run``."""
    with subprocess.Popen([sys.executable, '-c', HOLDS, str(tmp_path / 'run')], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
                          ) as process:
        assert process.stdout.readline() == 'held\n'
        yield process
        process.kill()


@pytest.mark.parametrize('resume_from', [None, 'auto', 'iter_24.pth'])
def test_a_folder_is_one_runs_at_a_time(world, tmp_path, holder, resume_from):
    epochs = 1
    if resume_from == 'iter_24.pth':
        shutil.copy(world / 'run' / 'iter_24.pth', tmp_path / 'run')
        resume_from, epochs = str(tmp_path / 'run' / 'iter_24.pth'), 4
    options = {'runner.max_epochs': epochs}
    args = str(world / 'tiny.py'), str(tmp_path / 'run'), resume_from
    before = sorted(path.name for path in (tmp_path / 'run').iterdir())
    with pytest.raises(FileExistsError, match=f'{tmp_path}/run is in use by process {holder.pid} on '
                                              f'{socket.gethostname()}; wait for it, or --work-dir OTHER'):
        commands.train(*args, device='cpu', options=options)
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == before
    holder.kill()
    holder.wait()
    assert (tmp_path / 'run' / '.lock').exists()  # it is left, and does not matter
    assert commands.train(*args, device='cpu', options=options).iter == 8 * epochs
    assert not (tmp_path / 'run' / '.lock').exists()


def test_a_run_that_failed_leaves_its_folder_free(tmp_path):
    with pytest.raises(KeyError), alone_in(tmp_path / 'a' / 'run'):
        raise KeyError
    assert not (tmp_path / 'a').exists()
    with alone_in(tmp_path / 'a' / 'run'):
        (tmp_path / 'a' / 'run' / 'file').touch()
    assert [path.name for path in (tmp_path / 'a' / 'run').iterdir()] == ['file']


def test_a_worker_does_not_keep_the_folder_of_its_run(tmp_path):
    with alone_in(tmp_path / 'run'):
        if not (child := os.fork()):
            signal.pause()
    try:
        with alone_in(tmp_path / 'run'):
            assert f'process {os.getpid()} on ' in (tmp_path / 'run' / '.lock').read_text()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_whose_file_the_one_before_removed_is_none(tmp_path, monkeypatch):
    """Opened while another had it, locked after that had removed it: a third one would make a file of its own."""
    path, flock = tmp_path / 'lock', fcntl.flock
    path.touch()

    def late(file, how):
        path.unlink()
        monkeypatch.setattr(fcntl, 'flock', flock)
        flock(file, how)

    monkeypatch.setattr(fcntl, 'flock', late)
    file = take_lock(path)
    with pytest.raises(BlockingIOError):
        take_lock(path)
    os.close(file)


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_a_run_goes_on_and_says_so(tmp_path, monkeypatch, caplog, number):
    def none(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', none)
    with alone_in(tmp_path / 'run'):
        (tmp_path / 'run' / 'file').touch()
    assert f'{tmp_path}/run is on a file system without locks' in caplog.text
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['file']


# Signals.

class Sends(Hook):
    """A signal to this very process, after iteration `at` (from 1)."""

    def __init__(self, at, number=signal.SIGTERM):
        self.at, self.number = at, number

    def after_train_iter(self, runner):
        if runner.iter + 1 == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize('kind, length', [(EpochBasedRunner, dict(max_epochs=3)),
                                          (IterBasedRunner, dict(max_iters=12))])
@pytest.mark.parametrize('at', [3, 4, 6])
def test_a_signal_saves_at_the_next_iteration_and_the_run_goes_on_exactly(tmp_path, number, kind, length, at):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, hooks=[Sends(at, number), StopSignalHook()], kind=kind, interval=100, **length)
    assert stopped.value.code == STOPPED == 85
    assert signal.getsignal(number) == before
    assert os.readlink(tmp_path / 'latest.pth') == f'stopped_iter_{at}.pth'
    run(tmp_path / 'rest', newest(tmp_path), kind=kind, **length)
    run(tmp_path / 'whole', kind=kind, **length)
    assert not interrupted.difference(*(read(tmp_path / name / 'latest.pth') for name in ('rest', 'whole')))


def test_a_signal_at_the_last_iteration_lets_the_run_end(tmp_path):
    assert run(tmp_path, hooks=[Sends(12), StopSignalHook()]).iter == 12


def test_what_does_not_end_by_itself_leaves_the_handlers_as_they_were(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]

    class Interrupts(Hook):
        def after_train_iter(self, runner):
            assert signal.getsignal(signal.SIGTERM) != before[0] and signal.getsignal(signal.SIGINT) == before[2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, hooks=[StopSignalHook(), Interrupts()])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_in_another_thread_no_handler_is_set(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run(tmp_path, hooks=[StopSignalHook()]).iter))
    thread.start()
    thread.join()
    assert ended == [12]


def test_what_cannot_be_saved_is_no_exit_that_promises_a_file(tmp_path):
    with pytest.raises(RuntimeError, match='SIGTERM asked to stop, but nothing could be saved'):
        run(None, hooks=[Sends(3), StopSignalHook()])


def test_the_command_ends_with_the_code_though_all_its_processes_got_the_signal(world, tmp_path):
    """As schedulers send it: to the workers too, which the iteration under way still needs."""
    config = tmp_path / 'slow.py'
    config.write_text((world / 'tiny.py').read_text().replace('workers_per_gpu=0', 'workers_per_gpu=2', 1)
                      + "custom_imports = dict(imports=['interrupted'])\n"
                      "custom_hooks = [*custom_hooks, dict(type='Slow')]\n")
    folder = tmp_path / 'run'
    process = subprocess.Popen(
        [sys.executable, '-m', 'workspace_lib.tools.cli', 'train', str(config), '--work-dir', str(folder), '--device',
         'cpu', '--resume-from', 'auto'], start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), *sys.path])})
    try:
        while not (folder / 'iter_6.pth').exists() and process.poll() is None:
            threading.Event().wait(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == STOPPED, said
    assert read(folder / 'latest.pth')['meta']['iter'] >= 6
    assert kept(folder)[-1].startswith('stopped_iter_')


def test_help_tells_the_code(capsys):
    with pytest.raises(SystemExit):
        main(['train', '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    assert f'exit status {STOPPED}' in said and '--resume-from auto' in said


def test_a_job_that_a_signal_stopped_is_one_to_go_on_with(tmp_path):
    assert jobs.STOPPED == STOPPED
    folder = jobs.folder_of('j', tmp_path)
    folder.mkdir(parents=True)
    jobs._end(folder, jobs._begin(folder, ['workspace', 'train', 'x.py'], 1), STOPPED)
    assert [job['state'] for job in jobs.states(tmp_path)] == ['cut off']


# Several processes.

def two_ranks(rank: int, folder: str) -> None:
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    runner = runner_of(Path(folder, 'run'), seed=rank)  # each rank draws for itself
    states, found = [], {}
    watching = Hook()
    watching.priority = 'VERY_LOW'

    def note(r):
        if r.iter == 1:
            found.update({name: p.grad.clone() for name, p in r.model.named_parameters()})
            states.append(torch.get_rng_state())
    watching.after_train_iter = note
    hooks = [OptimizerHook(cumulative_iters=3), CheckpointHook(interval=2, by_epoch=False), watching, StopSignalHook()]
    for hook in [*hooks, *([Sends(5, signal.SIGUSR1)] if rank == 1 else [])]:
        runner.register_hook(hook)
    try:
        runner.run([Batches(8)], [('train', 1)])
    except Stopped:
        stopped_at = runner.iter + 1
    again = runner_of(Path(folder, 'other'), seed=7)
    again.resume(f'{folder}/run/iter_2.pth')
    torch.save(dict(gradients=found, state=states[0], restored=torch.get_rng_state(), stopped_at=stopped_at),
               f'{folder}/rank{rank}')
    distributed.destroy_process_group()


def test_two_processes_save_their_mean_gradients_and_each_random_state_and_stop_together(tmp_path, library_log):
    interrupted.run_ranks(two_ranks, str(tmp_path))
    ranks = [torch.load(tmp_path / f'rank{rank}', weights_only=True) for rank in range(2)]
    saved = read(tmp_path / 'run' / 'iter_2.pth')
    for name, mean in saved['gradients'].items():
        torch.testing.assert_close(mean, (ranks[0]['gradients'][name] + ranks[1]['gradients'][name]) / 2)
    assert not torch.equal(ranks[0]['state'], ranks[1]['state'])
    for rank in ranks:
        assert torch.equal(rank['restored'], rank['state'])
    # The one that got no signal hears of it an iteration later; both stop then.
    assert {rank['stopped_at'] for rank in ranks} == {6}
    assert os.readlink(tmp_path / 'run' / 'latest.pth') == 'stopped_iter_6.pth'
    alone = runner_of(tmp_path / 'alone')
    alone.resume(str(tmp_path / 'run' / 'iter_2.pth'))
    assert 'the checkpoint is of 2 processes, these are 1' in library_log.text
    assert torch.equal(torch.get_rng_state(), ranks[0]['state'])
