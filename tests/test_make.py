"""The front door before anything is installed: help, advice for a host without Python, nothing run needlessly."""
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (CHECKOUT / 'Makefile').exists() or shutil.which('make') is None,
                                reason='not a checkout, or no make on this machine')
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

    def call(*targets: str, pythons: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        for name, script in (pythons or {}).items():
            (tools / name).write_text(f'#!/bin/sh\n{script}\n')
            (tools / name).chmod(0o755)
        return subprocess.run(['make', *targets], cwd=clone, env={'PATH': str(tools)}, text=True, capture_output=True)
    return call


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
