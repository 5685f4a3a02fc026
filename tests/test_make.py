"""The front door before anything is installed: help, advice for a host without Python, nothing run needlessly."""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (CHECKOUT / 'Makefile').exists() or shutil.which('make') is None,
                                reason='not a checkout, or no make on this machine')
# What a person may type: for make a variable, for the shell a quote.
AWKWARD = ['echo $HOME', "it's", 'say "a  b"', '$(id) `id` # no comment', '100%']
TOOLS = ('sh', 'bash', 'env', 'make', 'awk', 'head', 'cat', 'id', 'cksum', 'dirname', 'flock', 'rm')


@pytest.fixture
def host(tmp_path):
    """A checkout without .venv on a host with a few tools and the Pythons that a test puts there."""
    clone, tools = tmp_path / 'my checkout', tmp_path / 'bin'
    clone.mkdir()
    tools.mkdir()
    for name in ('Makefile', 'pyproject.toml'):
        shutil.copy(CHECKOUT / name, clone)
    for name in ('scripts', 'requirements'):
        shutil.copytree(CHECKOUT / name, clone / name)
    for name in TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)

    def call(*targets: str, pythons: dict[str, str] | None = None,
             environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        for name, script in (pythons or {}).items():
            (tools / name).write_text(f'#!/bin/sh\n{script}\n')
            (tools / name).chmod(0o755)
        env = {'PATH': str(tools), **(environ or {})}
        return subprocess.run(['make', *targets], cwd=clone, env=env, text=True, capture_output=True)
    return call


@pytest.fixture
def echo(host, tmp_path):
    """The same, with scripts that print their words, one a line, instead of doing anything."""
    for name in ('front.sh', 'doctor.sh'):
        (tmp_path / 'my checkout' / 'scripts' / name).write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    return lambda *words, **more: host(*words, **more).stdout.splitlines()


class TestWords:
    """What a person says in words of their own arrives to the letter."""

    @pytest.mark.parametrize('word', AWKWARD)
    @pytest.mark.parametrize('target, key, before', [
        ('exec', 'CMD', ''), ('train', 'CONFIG', '--config='), ('train', 'ARGS', '--args='), ('logs', 'JOB', '--job='),
        ('doctor', 'EXPLAIN', ''), ('train', 'GPUS', '--gpus='), ('train', 'NNODES', '--nnodes='),
        ('train', 'NODE_RANK', '--node-rank='), ('train', 'MASTER', '--meet-at=')])
    def test_from_the_command_line_and_from_the_environment(self, echo, target, key, before, word):
        assert f'{before}{word}' in echo(target, f'{key}={word}')
        assert f'{before}{word}' in echo(target, environ={key: word})

    def test_arguments_of_the_tests_are_words_of_the_shell(self, echo):
        assert echo('test', 'ARGS=-k "a or b" -x')[-3:] == ['-k', 'a or b', '-x']

    def test_what_is_not_said_is_empty(self, echo):
        assert '--config=' in echo('train') and '--args=' in echo('train')


@pytest.fixture
def installed(host, tmp_path):
    """That checkout with a .venv whose `workspace train` obeys the name of its config, and the tools of the front."""
    clone = tmp_path / 'my checkout'
    (clone / 'workspace_lib').mkdir()
    (clone / 'workspace_lib' / '__init__.py').touch()
    shutil.copytree(CHECKOUT / 'workspace_lib' / 'tools', clone / 'workspace_lib' / 'tools')
    (clone / '.venv' / 'bin').mkdir(parents=True)
    (clone / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
    (clone / 'scripts' / 'make_venv.sh').write_text('#!/bin/sh\n')
    workspace = clone / '.venv' / 'bin' / 'workspace'
    workspace.write_text('#!/bin/sh\necho "$@"\ncase $2 in\nwrong*) exit 2;;\n'
                         'long*) while [ -e go ]; do sleep 0.1; done;;\nesac\n')
    workspace.chmod(0o755)
    (clone / 'go').touch()
    (tmp_path / 'bin' / 'sleep').symlink_to(shutil.which('sleep'))
    yield host
    (clone / 'go').unlink()


class TestJobs:
    def test_job_that_runs_is_said_to_run(self, installed):
        done = installed('train', 'CONFIG=long.py', 'ARGS=--seed 1', 'DETACH=1')
        assert done.returncode == 0 and 'runs; the browser' in done.stdout, done.stderr
        assert 'running (pid' in installed('status').stdout

    def test_job_that_ends_at_once_is_an_error_with_its_log(self, installed):
        done = installed('train', 'CONFIG=wrong.py', 'DETACH=1')
        assert done.returncode and 'runs' not in done.stdout
        assert 'failed with status 2' in done.stderr and 'train wrong.py' in done.stderr

    def test_job_that_cannot_even_start_says_why(self, installed, tmp_path):
        (tmp_path / 'my checkout' / '.venv' / 'bin' / 'workspace').unlink()
        done = installed('train', 'CONFIG=long.py', 'DETACH=1')
        assert done.returncode and 'did not start' in done.stderr and 'FileNotFoundError' in done.stderr

    def test_several_machines_are_options_of_the_training(self, installed):
        wishes = ('GPUS=8', 'NNODES=2', 'NODE_RANK=1', 'MASTER=10.0.0.1:29500', 'ARGS=--seed 1')
        done = installed('train', 'CONFIG=c.py', *wishes)
        assert 'train c.py --gpus 8 --nnodes 2 --node-rank 1 --meet-at 10.0.0.1:29500 --seed 1\n' in done.stdout

    def test_of_several_machines_each_says_which_it_is(self, installed):
        done = installed('train', 'CONFIG=c.py', 'NNODES=2', 'GPUS=8')
        assert done.returncode and 'NODE_RANK=0 MASTER=first:29500' in done.stderr

    def test_unfinished_quote_is_named(self, installed):
        assert "ARGS=it's: No closing quotation" in installed('train', 'CONFIG=long.py', "ARGS=it's").stderr

    def test_lab_that_is_not_up_is_said_and_venv_used(self, installed):
        done = installed('exec', 'CMD=echo $VIRTUAL_ENV')
        assert done.stdout.endswith('/.venv\n') and done.stderr.startswith('Lane: .venv (no lab is up here')


def test_make_alone_explains_every_target(host):
    targets = re.search(r'\.PHONY: (.*)', (CHECKOUT / 'Makefile').read_text()).group(1).split()
    said = host().stdout
    assert [t for t in targets if not re.search(rf'^  {t} +\S', said, re.M)] == []


def test_host_without_python_is_told_what_brings_one(host):
    done = host('venv')
    assert done.returncode != 0
    assert 'conda create' in done.stderr and 'uv python install' in done.stderr


@pytest.mark.parametrize('target', ['test', 'up', 'demo', 'lint'])
def test_targets_install_first(host, target):
    assert 'No Python 3.11' in host(target).stderr


def test_old_python_is_named(host):
    done = host('venv', pythons={'python3': 'echo old 3.10.12; echo venv'})
    assert 'Found: python3 (3.10.12)' in done.stderr


def test_python_without_venv_names_the_package(host):
    """Debian and Ubuntu ship the venv module apart."""
    done = host('venv', pythons={'python3.12': 'echo /usr/bin/python3.12 3.12.3; exit 1'})
    assert 'apt-get install -y python3.12-venv' in done.stderr


def test_forced_python_that_does_not_do_is_an_error(host):
    done = host('venv', 'PYTHON=/no/such/python', pythons={'python3.12': 'echo /usr/bin/python3.12 3.12.3; echo venv'})
    assert done.returncode != 0 and 'PYTHON=/no/such/python' in done.stderr


def test_failed_installation_leaves_no_stamp_and_says_where(host, tmp_path):
    """A Python whose pip cannot reach anything."""
    fake = '''case "$*" in
      *ensurepip*) echo "$0 3.12.3"; echo venv;;
      --version) echo Python 3.12.3;;
      *"venv --clear"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
      *"pip install"*) echo "ERROR: no network" >&2; exit 1;;
    esac'''
    fakes = {'python3.12': fake, 'df': 'echo header; echo "/dev/x 0 0 99000000 0% /"'}
    for name in ('mkdir', 'cp'):
        (tmp_path / 'bin' / name).symlink_to(shutil.which(name))
    done = host('venv', pythons=fakes)
    assert done.returncode != 0
    assert 'no network' in done.stderr and 'failed at: 1/3' in done.stderr
    assert not (tmp_path / 'my checkout' / '.venv' / '.installed').exists()


@pytest.mark.parametrize('target, status', [('status', 0), ('logs', 0), ('down', 0), ('url', 2)])
def test_nothing_is_installed_to_say_that_nothing_runs(host, target, status):
    done = host(target)
    assert done.returncode == status
    assert 'nstalled' in done.stdout
