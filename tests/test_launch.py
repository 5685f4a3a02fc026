"""How processes come to be a group: launchers' variables, ``--gpus N``, the scripts, and what is said when it fails."""
from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from descent import descendants, kill

from workspace_lib.config import Config
from workspace_lib.dist import get_dist_info
from workspace_lib.tools import cli, commands, launch, launchers

ROOT = Path(__file__).resolve().parents[1]
OF_LAUNCHERS = [*launch.TORCHRUN, *(name for names in launchers.LAUNCHERS.values() for name in names),
                'SLURM_NODELIST', 'SLURM_JOB_ID', 'TORCHELASTIC_USE_AGENT_STORE']


@pytest.fixture
def env(monkeypatch):
    """The environment without any launcher's words; what is set in it is gone after the test."""
    for name in OF_LAUNCHERS:
        monkeypatch.setenv(name, '')  # so that what a test's code sets is taken away too
        monkeypatch.delenv(name)
    return monkeypatch


def says(env, **variables: object) -> None:
    for name, value in variables.items():
        env.setenv(name, str(value))


@pytest.mark.parametrize('nodes, first', [
    ('gpu-[007-009,12],login', 'gpu-007'), ('gpu[3]', 'gpu3'), ('a,b', 'a'), ('node-1', 'node-1'),
    ('rack[1-2]-node[05,7-9].cluster', 'rack1-node05.cluster')])
def test_the_first_host_of_slurms_list(nodes, first):
    assert launchers.first_host(nodes) == first


def test_slurms_variables_become_torchruns(env):
    says(env, SLURM_PROCID=9, SLURM_NTASKS=16, SLURM_LOCALID=1, SLURM_NODELIST='gpu[4-5]', SLURM_JOB_ID=123456)
    assert launchers._read_environment('slurm', None) == (9, 16, 1)
    assert {name: os.environ[name] for name in launch.TORCHRUN} == dict(
        RANK='9', WORLD_SIZE='16', LOCAL_RANK='1', MASTER_ADDR='gpu4', MASTER_PORT=str(15000 + 123456 % 15000))


def test_a_port_that_is_given_goes_before_slurms(env):
    says(env, SLURM_PROCID=0, SLURM_NTASKS=1, SLURM_LOCALID=0, SLURM_NODELIST='a', MASTER_ADDR='b')
    launchers._read_environment('slurm', 1234)
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('b', '1234')


def test_mpis_variables_become_torchruns(env):
    says(env, OMPI_COMM_WORLD_RANK=3, OMPI_COMM_WORLD_SIZE=4, OMPI_COMM_WORLD_LOCAL_RANK=1, MASTER_ADDR='head')
    assert launchers._read_environment('mpi', None) == (3, 4, 1)
    assert (os.environ['RANK'], os.environ['MASTER_PORT']) == ('3', '29500')


@pytest.mark.parametrize('launcher, named', [
    ('pytorch', 'RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR not set'), ('slurm', 'SLURM_PROCID'),
    ('mpi', 'OMPI_COMM_WORLD_RANK'), ('ray', "launcher 'ray' is not known; use none, pytorch, slurm, mpi")])
def test_a_launcher_that_said_nothing_is_an_error(env, launcher, named):
    with pytest.raises(ValueError, match=named):
        launchers.init_dist(launcher)


def test_no_launcher_is_one_process(env):
    launchers.init_dist('none')
    assert get_dist_info() == (0, 1) and 'RANK' not in os.environ


@pytest.mark.parametrize('rank, reason', [(0, '1/2 clients joined'), (1, 'timed out')])
def test_peers_that_do_not_come_are_an_error_with_the_place(env, rank, reason):
    port = free_port()
    says(env, RANK=rank, WORLD_SIZE=2, LOCAL_RANK=rank, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    with pytest.raises(RuntimeError) as error:
        launchers.init_dist('pytorch', timeout=1)
    assert f'rank {rank} of 2 did not meet the others at 127.0.0.1:{port}' in str(error.value)
    assert 'NODE_RANK' in str(error.value) and reason in str(error.value)


def test_a_port_that_is_taken_is_an_error_with_the_place(env):
    with socket.socket() as other:
        other.bind(('0.0.0.0', 0))
        other.listen()
        says(env, RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=other.getsockname()[1])
        with pytest.raises(RuntimeError, match=r'(?s)did not meet.*address already in use.*free there'):
            launchers.init_dist('pytorch', timeout=1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


# --- the command line --------------------------------------------------------------------------------


def words_of(*argv: str) -> list[str]:
    """What torchrun is called with for a command line."""
    args = cli.build_parser().parse_args(['train', 'c.py', '--device', 'cpu', *argv])
    return launch._torchrun_words(args)


def test_gpus_on_one_machine_take_a_free_port():
    assert words_of('--gpus', '2') == ['--standalone', '--nproc-per-node', '2', '--max-restarts', '0']


def test_several_machines_meet_at_the_master():
    assert words_of('--gpus', '8', '--nnodes', '2', '--node-rank', '1', '--meet-at', 'a.b:29501') == [
        '--nproc-per-node', '8', '--max-restarts', '0', '--nnodes', '2', '--node-rank', '1', '--master-addr', 'a.b',
        '--master-port', '29501']


def test_machines_that_wait_for_one_that_comes_back_meet_anew():
    words = words_of('--gpus', '1', '--nnodes', '2', '--meet-at', '127.0.0.1:29501', '--max-restarts', '1',
                     '--resume-from', 'auto')
    assert words[words.index('--rdzv-backend') + 1] == 'c10d' and words[words.index('--nnodes') + 1] == '2'
    assert 'is_host=1' in words


def test_a_number_of_machines_that_may_change_is_torchs_elastic_rendezvous():
    words = words_of('--gpus', '1', '--nnodes', '1:2', '--node-rank', '1', '--meet-at', '127.0.0.1:29501',
                     '--resume-from', 'auto')
    assert words[words.index('--max-restarts') + 1] == '3' and 'is_host=0' in words
    assert words[words.index('--rdzv-endpoint') + 1] == '127.0.0.1:29501'
    assert words[words.index('--local-addr') + 1] == '127.0.0.1'


@pytest.mark.parametrize('command', ['train', 'test'])
def test_torchrun_hands_every_option_on(command):
    """Its parser takes the beginning of two of its own options for a mistake, though what follows is not for it."""
    from torch.distributed.run import parse_args
    parser = cli.build_parser()._subparsers._group_actions[0].choices[command]
    parser.parse_known_args(['c.py', 'x.pth'])  # fills it
    words = [command, *(option for action in parser._actions for option in action.option_strings)]
    assert len(words) > 20
    assert parse_args(['--standalone', '-m', 'workspace_lib.tools.cli', *words]).training_script_args == words


@pytest.mark.parametrize('argv, named', [
    (['--gpus', '0'], 'starts at 1'), (['--nnodes', '2', '--meet-at', 'h:1'], '--gpus is None'),
    (['--gpus', '1', '--nnodes', '2', '--meet-at', 'host'], 'HOST:PORT'),
    (['--gpus', '1', '--max-restarts', '2'], '--resume-from auto'),
    (['--gpus', '1', '--nnodes', '1:2', '--resume-from', 'auto', '--meet-at', 'no host:1'], 'no host:1 cannot')])
def test_impossible_wishes_are_refused(argv, named):
    with pytest.raises(ValueError, match=named):
        words_of(*argv)


def test_more_gpus_than_there_are_is_an_error(capsys):
    asked = torch.cuda.device_count() + 1
    if asked == 1:
        asked = 2
    assert cli.main(['train', 'lenet/lenet5_mnist5k.py', '--gpus', str(asked)]) == 1
    assert f'--gpus {asked}, but this machine offers {torch.cuda.device_count()} GPU(s)' in capsys.readouterr().err


def test_one_gpu_of_all_is_an_error_under_a_launcher(env):
    with pytest.raises(ValueError, match='cuda:1 is one GPU for all'):
        launch.join('pytorch', Config({}), 'cuda:1')


@pytest.mark.parametrize('spelling', ['--local_rank=3', '--local-rank=3'])
def test_an_old_launchers_argument_is_understood(env, spelling):
    args = cli.build_parser().parse_args(['test', 'c.py', 'x.pth', spelling, '--launcher', 'pytorch'])
    assert launch.joins(args) and os.environ['LOCAL_RANK'] == '3'


def test_of_other_ranks_only_warnings_are_heard_and_whose_they_are(monkeypatch):
    logger, said = logging.getLogger('workspace_lib'), io.StringIO()
    monkeypatch.setattr(logger, 'handlers', [logging.StreamHandler(said)])
    monkeypatch.setattr(logging.getLogger('py.warnings'), 'handlers', [])
    level = logger.level
    try:
        launch._speak_as(3)
        logger.info('an epoch')
        logger.warning('a broken file')
        logging.getLogger('py.warnings').warning('old name')
    finally:
        logging.captureWarnings(False)
        logger.setLevel(level)
    first, second = said.getvalue().splitlines()
    assert first.endswith('WARNING - rank 3: a broken file') and second.endswith('rank 3: old name')


# --- the learning rate and the batch -----------------------------------------------------------------


@pytest.mark.parametrize('name, base', [
    ('resnet50_8xb32_in1k', 256), ('resnet50_b32x8_imagenet', 256), ('swin-tiny_16xb64_in1k', 1024),
    ('resnet50_8xb256-rsb-a1-600e_in1k', 2048)])
def test_the_recipes_name_tells_the_batch_of_its_lr(name, base):
    assert launch.base_batch_size(Config({}, 'text', f'{name}.py')) == base


def test_the_config_goes_before_the_name_and_one_of_them_has_to_tell():
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=128), optimizer=dict(lr=1)), 'text', 'r_8xb32.py')
    assert launch.base_batch_size(cfg) == 128
    with pytest.raises(ValueError, match='base_batch_size=256'):
        launch.base_batch_size(Config(dict(optimizer=dict(lr=1)), 'text', 'lenet5_mnist5k.py'))


@pytest.mark.parametrize('changes, factor', [
    ({}, 1), ({'auto_scale_lr.enable': True}, 2), ({'auto_scale_lr.enable': True, 'resume_from': 'x.pth'}, 1)])
def test_lr_grows_with_the_images_of_an_optimizer_step(changes, factor):
    cfg = Config(dict(optimizer=dict(lr=0.1)), 'text', 'resnet50_8xb32.py')
    cfg.merge_from_dict(changes)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    runner = SimpleNamespace(meta=dict(batch_size=128, cumulative_iters=4), optimizer=optimizer)
    launch.scale_lr(runner, cfg)
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.1 * factor)


def test_auto_scale_lr_of_a_run_is_logged_and_leaves_the_config_as_it_was(env, tmp_path):
    runner = commands.train('lenet/lenet5_mnist5k.py', str(tmp_path / 'run'), validate=False, seed=0, device='cpu',
                            options={'runner.max_epochs': 1, 'auto_scale_lr': dict(base_batch_size=128)},
                            auto_scale_lr=True)
    assert runner.optimizer.param_groups[0]['initial_lr'] == pytest.approx(0.05)
    assert Config.fromfile(str(tmp_path / 'run' / 'lenet5_mnist5k.py')).optimizer.lr == 0.1
    said = next((tmp_path / 'run').glob('*.log')).read_text()
    assert 'lr times 64 / 128' in said
    assert '1 process x 64 samples x 1 iterations = 64 images an optimizer step' in said


# --- the scripts -------------------------------------------------------------------------------------

SCRIPTS = ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh', 'torchrun.sh', 'srun.sh']
CONFIG = '''
_base_ = '{root}/workspace_lib/configs/lenet/lenet5_mnist5k.py'
runner = dict(max_epochs=1)
data = dict(samples_per_gpu=250)
'''
# What srun does with the options that the script gives it: so many processes, each with Slurm's variables.
SRUN = '''#!/usr/bin/env bash
echo "srun $*" >> "$SRUN_LOG"
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST=127.0.0.1 SLURM_JOB_ID=$$
pids=()
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit $status
'''


def run(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    env |= dict(PATH=f'{Path(sys.executable).parent}:{env["PATH"]}', VIRTUAL_ENV=sys.prefix, OMP_NUM_THREADS='1')
    done = subprocess.run([str(word) for word in words], cwd=cwd, env={**env, **variables}, text=True,
                          capture_output=True, timeout=100)
    return done


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_are_bash_and_say_how_they_are_used(script):
    path = ROOT / 'scripts' / script
    assert subprocess.run(['bash', '-n', path]).returncode == 0 and os.access(path, os.X_OK)
    if script not in ('torchrun.sh', 'srun.sh'):  # which the others call
        done = subprocess.run([path], text=True, capture_output=True)
        assert done.returncode == 2 and 'usage' in done.stderr and 'CONFIG' in done.stderr


def test_dist_train_and_dist_test_run_two_processes(tmp_path):
    (tmp_path / 'tiny.py').write_text(CONFIG.format(root=ROOT))
    done = run(ROOT / 'scripts/dist_train.sh', 'tiny.py', 2, '--device', 'cpu', '--seed', 0, '--work-dir', 'run',
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '2 processes x 250 samples x 1 iterations = 500 images an optimizer step' in done.stdout
    assert done.stdout.count('saved run/epoch_1.pth') == 1 and len(list((tmp_path / 'run').glob('*.log'))) == 1
    done = run(ROOT / 'scripts/dist_test.sh', 'tiny.py', 'run/latest.pth', 2, '--device', 'cpu', '--metrics',
               'accuracy', '--metric-options', 'topk=(1,)', '--out', 'result.json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'result.json').read_text())
    assert re.findall(r'accuracy_top-1 : ([\d.]+)', done.stdout) == [f'{result["accuracy_top-1"]:.1f}']
    assert np.array(result['class_scores']).shape == (1000, 10)


def test_slurm_train_starts_what_srun_is_told(tmp_path):
    (tmp_path / 'tiny.py').write_text(CONFIG.format(root=ROOT))
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'srun').write_text(SRUN)
    (tmp_path / 'bin' / 'srun').chmod(0o755)
    done = run(ROOT / 'scripts/slurm_train.sh', 'debug', 'digits', 'tiny.py', 'run', '--device', 'cpu', cwd=tmp_path,
               PATH=f'{tmp_path / "bin"}:{Path(sys.executable).parent}:{os.environ["PATH"]}', GPUS='2',
               GPUS_PER_NODE='2', SRUN_ARGS='--time=5', PY_ARGS='--seed 0', SRUN_LOG=str(tmp_path / 'log'))
    assert done.returncode == 0, done.stderr
    told = (tmp_path / 'log').read_text()
    wanted = ('--partition=debug --job-name=digits --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=5 '
              '--kill-on-bad-exit=1 --time=5')
    assert told.startswith(f'srun {wanted} python -u ')
    assert '2 processes x 250 samples' in done.stdout and 'seed 0;' in done.stdout
    assert (tmp_path / 'run' / 'epoch_1.pth').exists()


def test_a_process_that_fails_ends_the_others_and_the_command(tmp_path):
    (tmp_path / 'hook.py').write_text('''
from workspace_lib.hooks import Hook
from workspace_lib.registry import HOOKS

@HOOKS.register_module()
class FailsOnRank1(Hook):
    def after_train_iter(self, runner):
        if runner.rank == 1:
            raise ValueError('a fault of rank 1')
''')
    (tmp_path / 'tiny.py').write_text(CONFIG.format(root=ROOT) + '''
custom_imports = dict(imports=['hook'])
custom_hooks = [dict(type='FailsOnRank1')]
''')
    done = run(sys.executable, '-m', 'workspace_lib.tools.cli', 'train', 'tiny.py', '--gpus',
               2, '--device', 'cpu', cwd=tmp_path, PYTHONPATH=f'{ROOT}:{tmp_path}')
    assert done.returncode == 1
    assert 'a fault of rank 1' in done.stderr and 'process 1 ended with status 1' in done.stderr


def stopped_by(number: signal.Signals, words: list[object], folder: Path, when: str) -> tuple[int, str]:
    """Exit status, and what was said, of a command that gets a signal once it has said `when`."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'VIRTUAL_ENV': sys.prefix,
           'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    with open(folder / 'said', 'wb') as said:
        process = subprocess.Popen([str(word) for word in words], cwd=folder, env=env, stdout=said, stderr=said)
    group = [process.pid]
    try:
        while when not in (folder / 'said').read_text():
            assert process.poll() is None, (folder / 'said').read_text()
            time.sleep(0.1)
        group = descendants(process.pid)
        process.send_signal(number)
        return process.wait(60), (folder / 'said').read_text()
    finally:
        kill(group, folder)


@pytest.mark.parametrize('start', [
    [sys.executable, '-m', 'workspace_lib.tools.cli', 'train', 'tiny.py', '--gpus', 2],
    [ROOT / 'scripts/dist_train.sh', 'tiny.py', 2]], ids=['workspace', 'script'])
def test_a_signal_stops_all_processes_with_a_checkpoint_to_go_on_from(tmp_path, start):
    (tmp_path / 'tiny.py').write_text(CONFIG.format(root=ROOT).replace('max_epochs=1', 'max_epochs=300'))
    status, said = stopped_by(signal.SIGUSR1, [*start, '--device', 'cpu', '--work-dir', 'run', '--no-validate'],
                              tmp_path, 'Epoch [1]')
    assert status == 85 and 'Traceback' not in said, said
    (file,) = (tmp_path / 'run').glob('stopped_iter_*.pth')
    meta = torch.load(file, weights_only=True)['meta']
    assert (meta['world_size'], meta['samples_per_gpu'], meta['batch_size']) == (2, 250, 500)


def test_a_signal_while_they_start_is_no_run_to_go_on_with(tmp_path):
    (tmp_path / 'slow.py').write_text("import time\nprint('starting', flush=True)\ntime.sleep(100)\n")
    (tmp_path / 'tiny.py').write_text(CONFIG.format(root=ROOT) + "custom_imports = dict(imports=['slow'])\n")
    status, said = stopped_by(signal.SIGTERM, [sys.executable, '-m', 'workspace_lib.tools.cli', 'train', 'tiny.py',
                                               '--gpus', 2, '--device', 'cpu'], tmp_path, 'starting')
    assert status == 128 + signal.SIGTERM and 'ended by SIGTERM before anything was saved' in said, said
    assert 'Traceback' not in said, said


@pytest.mark.parametrize('number, statuses, ends', [
    (signal.SIGTERM, [-15, 85], 85), (signal.SIGUSR1, [], 138), (signal.SIGHUP, [0, -1], 129),
    (signal.SIGTERM, [0, 0], None)])
def test_a_group_that_a_signal_ends_has_the_status_of_what_its_processes_did(number, statuses, ends):
    try:
        launch._end_by(number, statuses)
        status = None
    except SystemExit as ended:
        status = ended.code
    assert status == ends


def test_ctrl_c_is_ctrl_c_whatever_the_processes_did():
    with pytest.raises(KeyboardInterrupt):
        launch._end_by(signal.SIGINT, [130, -2])


def test_the_scripts_are_the_command_with_the_machines_of_the_environment(tmp_path):
    """A stand-in for python writes down what it is to run."""
    (tmp_path / 'python').write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    done = run(ROOT / 'scripts/dist_train.sh', 'c.py', 2, '--seed', 1, cwd=tmp_path, PATH=path)
    assert done.stdout.split() == ['-m', 'workspace_lib.tools.cli', 'train', 'c.py', '--seed', '1', '--gpus', '2',
                                   '--nnodes', '1', '--node-rank', '0', '--meet-at', '127.0.0.1:29500']
    done = run(ROOT / 'scripts/dist_test.sh', 'c.py', 'x.pth', 8, cwd=tmp_path, PATH=path, NNODES='2', NODE_RANK='1',
               MASTER_ADDR='a.b', PORT='29501')
    assert done.stdout.split()[2:] == ['test', 'c.py', 'x.pth', '--gpus', '8', '--nnodes', '2', '--node-rank', '1',
                                       '--meet-at', 'a.b:29501']


def test_launcher_pytorch_with_gpus_starts_them_unless_torchrun_did(env):
    """mmclassification's habit: its scripts append it."""
    args = cli.build_parser().parse_args(['train', 'c.py', '--launcher', 'pytorch', '--gpus', '2'])
    assert not launch.joins(args)
    says(env, **dict.fromkeys(launch.TORCHRUN, 1))
    assert launch.joins(args)
