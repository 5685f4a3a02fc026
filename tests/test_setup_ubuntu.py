"""``scripts/setup_ubuntu.sh`` on hosts made of a folder and stub commands that record their calls and keep state."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / 'scripts' / 'setup_ubuntu.sh'
REAL = ['awk', 'bash', 'cat', 'chmod', 'cp', 'cut', 'dirname', 'env', 'grep', 'head', 'install', 'ln', 'ls',
        'mkdir', 'mv', 'python3', 'rm', 'sed', 'tail', 'tee', 'touch', 'tr', 'uname', 'wc']
# One program under many names: records the call, then plays its part. $STATE/NAME.out is what NAME says.
STUB = r'''#!/bin/bash
name=${0##*/}
[ "$name" = sudo ] || { args=$*; echo "$name ${args%%$'\n'*}" >> "$STATE/calls"; }
provide() { ln -sf stub "$BIN/$1"; }
case $name in
    sudo) [ "$1" != -u ] || shift 3; exec "$@" ;;
    id) case $1 in -u) echo 1000 ;; -un) echo ada ;; *) cat "$STATE/groups" ;; esac ;;
    getent) echo "ada:x:1000:1000::$STATE/home:/bin/bash" ;;
    dpkg) echo amd64 ;;
    dpkg-query)
        if [[ $* = *'${Package}'* ]]; then sed -n 's/^nvidia-driver/installed &/p' "$STATE/packages"
        else grep -qx -- "${!#}" "$STATE/packages" && printf installed; fi ;;
    apt-get)
        [ ! -e "$STATE/apt-fails" ] || { echo 'E: Unable to locate package' >&2; exit 100; }
        [ "$1" = install ] || exit 0
        shift 2
        printf '%s\n' "$@" >> "$STATE/packages"
        for package in "$@"; do
            case $package in
                docker-ce) provide docker; provide dockerd ;;
                docker-compose-*) touch "$STATE/compose" ;;
                docker-buildx*) touch "$STATE/buildx" ;;
                nvidia-container-toolkit) provide nvidia-ctk ;;
                ubuntu-drivers-common) provide ubuntu-drivers ;;
                code) provide code ;;
            esac
        done ;;
    ubuntu-drivers) echo nvidia-driver-580 >> "$STATE/packages" ;;
    nvidia-ctk) python3 - "$SETUP_ROOT/etc/docker/daemon.json" <<'END'
import json, os, sys
path = sys.argv[1]
settings = json.load(open(path)) if os.path.exists(path) else {}
settings['runtimes'] = {'nvidia': {'path': 'nvidia-container-runtime'}}
os.makedirs(os.path.dirname(path), exist_ok=True)
json.dump(settings, open(path, 'w'))
END
        ;;
    docker) case $1 in compose | buildx) [ -e "$STATE/$1" ] ;; *) echo 'Docker version 29.1.3, build f52814d' ;; esac ;;
    usermod) echo 'ada docker' > "$STATE/groups" ;;
    curl) while [ $# -gt 0 ]; do [ "$1" != -o ] || echo key > "$2"; shift; done ;;
    systemctl) [ "$1" != get-default ] || echo graphical.target ;;
    mkfs.ext4) echo ext4 > "$STATE/fstype"; echo '1b-2c' > "$STATE/uuid" ;;
    lsblk) case $* in
        *FSTYPE*MOUNTPOINTS*) echo 'sdb 4T' ;;
        *FSTYPE*) cat "$STATE/fstype" ;;
        *MOUNTPOINT*) cat "$STATE/mounted" 2> /dev/null ;;
        *NAME*) cat "$STATE/parts" ;;
        *) [[ $* = *sdb* ]] ;; esac ;;
    blkid) case $* in *UUID*) cat "$STATE/uuid" ;; *PTTYPE*) cat "$STATE/pttype" 2> /dev/null ;; esac ;;
    cmp) [ ! -e "$STATE/not-zero" ] ;;
    mount) touch "$STATE/is-mounted" ;;
    findmnt) [ -e "$STATE/is-mounted" ] ;;
    nvidia-smi) cat "$STATE/nvidia-smi.out" ;;
    mokutil) cat "$STATE/mokutil.out" 2> /dev/null ;;
    python3.12) printf '/usr/bin/python3.12 3.12.3\nvenv\n' ;;
esac
'''
ALWAYS = ['apt-get', 'blkid', 'chown', 'cmp', 'curl', 'dpkg', 'dpkg-query', 'findmnt', 'getent', 'groupadd', 'id',
          'lsblk', 'mkfs.ext4', 'mokutil', 'mount', 'python3.12', 'sudo', 'systemctl', 'usermod', 'wipefs']


class Machine:
    """A fresh Ubuntu 24.04 desktop with an NVIDIA card, nothing installed, and one empty disk, /dev/sdb."""

    def __init__(self, folder: Path, release: str = '24.04', distribution: str = 'ubuntu') -> None:
        self.root, self.state, self.bin = (folder / name for name in ('root', 'state', 'bin'))
        for path in (self.root / 'etc/apt/sources.list.d', self.state / 'home', self.bin):
            path.mkdir(parents=True)
        names = {'22.04': 'jammy', '24.04': 'noble', '26.04': 'resolute'}
        self.file('etc/os-release', f'ID={distribution}\nVERSION_ID="{release}"\n'
                                    f'VERSION_CODENAME={names.get(release, "other")}\n')
        self.file('etc/fstab', 'UUID=0a / ext4 defaults 0 1\n')
        self.file('sys/bus/pci/devices/0000:01:00.0/vendor', '0x10de\n')
        self.file('sys/bus/pci/devices/0000:01:00.0/class', '0x030000\n')
        for name, text in {'packages': '', 'groups': 'ada sudo\n', 'calls': '', 'parts': 'sdb\n', 'fstype': '',
                           'uuid': ''}.items():
            (self.state / name).write_text(text)
        (self.bin / 'stub').write_text(STUB)
        (self.bin / 'stub').chmod(0o755)
        for name in ALWAYS:
            (self.bin / name).symlink_to('stub')
        for name in REAL:
            (self.bin / name).symlink_to(os.path.realpath(str(shutil.which(name, path='/usr/bin:/bin:/usr/sbin'))))

    def file(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def call(self, *args: str) -> subprocess.CompletedProcess[str]:
        (self.state / 'calls').write_text('')
        env = {'PATH': str(self.bin), 'SETUP_ROOT': str(self.root), 'STATE': str(self.state), 'BIN': str(self.bin)}
        return subprocess.run([str(self.bin / 'bash'), str(SCRIPT), *args], capture_output=True, text=True, env=env)

    @property
    def changes(self) -> list[str]:
        """Calls since the last `call` that are not mere looking."""
        looking = ('id', 'cmp', 'getent', 'dpkg', 'dpkg-query', 'lsblk', 'blkid', 'wipefs', 'findmnt', 'mokutil',
                   'nvidia-smi',
                   'python3.12', 'docker', 'systemctl get-default', 'systemctl is-active')
        calls = (self.state / 'calls').read_text().splitlines()
        return [call for call in calls if not any(f'{call} '.startswith(f'{name} ') for name in looking)]

    def load_driver(self, version: str = '580.65.06') -> None:
        """What a reboot does after the driver was installed."""
        self.file('proc/driver/nvidia/version', 'NVRM version: NVIDIA UNIX x86_64 Kernel Module\n')
        (self.state / 'nvidia-smi.out').write_text(f'{version}\n')
        (self.bin / 'nvidia-smi').symlink_to('stub')

    def tree(self) -> dict[str, str]:
        return {str(path): path.read_text() for path in sorted(self.root.rglob('*')) if path.is_file()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_new_machine_gets_everything(machine):
    done = machine.call()
    assert done.returncode == 0, done.stdout + done.stderr
    installed = (machine.state / 'packages').read_text().split()
    assert {'docker-ce', 'docker-compose-plugin', 'nvidia-container-toolkit', 'code'} <= set(installed)
    settings = json.loads((machine.root / 'etc/docker/daemon.json').read_text())
    assert settings == {'runtimes': {'nvidia': {'path': 'nvidia-container-runtime'}}, 'default-shm-size': '8G'}
    assert 'usermod -aG docker ada' in machine.changes
    assert 'Log out and in' in done.stdout and 'A reboot is due (the driver was installed)' in done.stdout


def test_a_second_run_does_nothing(machine):
    machine.call()
    machine.load_driver()
    before = machine.tree()
    done = machine.call()
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.changes == [] and machine.tree() == before
    assert 'TODO' not in done.stdout and '\n+' not in done.stdout


def test_before_the_reboot_a_second_run_only_says_that_it_is_due(machine):
    machine.call()
    done = machine.call()
    assert machine.changes == []
    assert 'A reboot is due (the driver is not loaded): sudo reboot' in done.stdout


def test_dry_run_prints_every_command_and_runs_none(machine):
    before = machine.tree()
    done = machine.call('--dry-run')
    assert done.returncode == 0, done.stderr
    assert machine.changes == [] and machine.tree() == before
    printed = [line[len('+ sudo '):] for line in done.stdout.splitlines() if line.startswith('+ sudo ')]
    machine.call()
    ran = [call for call in machine.changes if not call.startswith('code ')]
    stubs = [line.replace('env DEBIAN_FRONTEND=noninteractive ', '') for line in printed]
    missing = [call for call in ran if call not in stubs]
    assert not missing, (missing, stubs)


def test_check_changes_nothing_and_says_by_its_status_that_something_is_to_be_done(machine):
    before = machine.tree()
    done = machine.call('--check')
    assert done.returncode == 1
    assert machine.changes == [] and machine.tree() == before
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith('TODO')] == [
        'driver', 'docker', 'toolkit', 'group', 'shm', 'vscode']


def test_check_of_a_finished_machine(machine):
    machine.call()
    machine.load_driver()
    done = machine.call('--check')
    assert done.returncode == 0 and 'Nothing to do' in done.stdout


def test_single_steps(machine):
    machine.call('shm', 'group')
    assert not [call for call in machine.changes if call.startswith('apt-get')]
    assert 'default-shm-size' in (machine.root / 'etc/docker/daemon.json').read_text()


def test_settings_of_docker_that_are_there_stay(machine):
    machine.file('etc/docker/daemon.json', '{"data-root": "/big/docker"}')
    machine.call('shm')
    settings = json.loads((machine.root / 'etc/docker/daemon.json').read_text())
    assert settings == {'data-root': '/big/docker', 'default-shm-size': '8G'}


@pytest.mark.parametrize('release, codename', [('22.04', 'jammy'), ('24.04', 'noble'), ('26.04', 'resolute')])
def test_dockers_repository_for_each_release(tmp_path, release, codename):
    machine = Machine(tmp_path, release)
    assert machine.call('docker').returncode == 0
    source = (machine.root / 'etc/apt/sources.list.d/docker.sources').read_text()
    assert f'Suites: {codename}\n' in source and 'Signed-By: /etc/apt/keyrings/docker.asc' in source


@pytest.mark.parametrize('distribution, release', [('debian', '12'), ('ubuntu', '20.04'), ('ubuntu', '25.10'),
                                                   ('linuxmint', '22.04')])
def test_other_systems_are_refused_before_anything_is_done(tmp_path, distribution, release):
    machine = Machine(tmp_path, release, distribution)
    done = machine.call()
    assert done.returncode == 3
    assert f'this is {distribution} {release}' in done.stderr and '22.04 24.04 26.04' in done.stderr
    assert machine.changes == []


def test_unknown_step(machine):
    done = machine.call('dokcer')
    assert done.returncode == 2 and 'no such step or option: dokcer' in done.stderr


def test_a_failing_command_ends_the_run_and_is_named(machine):
    (machine.state / 'apt-fails').touch()
    done = machine.call('docker', 'shm')
    assert done.returncode == 1
    assert 'step docker failed' in done.stderr and 'setup_ubuntu.sh docker' in done.stderr
    assert not (machine.root / 'etc/docker/daemon.json').exists()


class TestDriver:
    def test_a_machine_without_a_gpu_needs_neither_driver_nor_toolkit(self, machine):
        shutil.rmtree(machine.root / 'sys')
        machine.call('driver', 'toolkit')
        assert machine.changes == []

    def test_an_older_driver_is_told_its_base_image(self, machine):
        machine.load_driver('535.183.01')
        assert 'CUDA 12.6' in machine.call('--check', 'driver').stdout

    def test_secure_boot_is_told_before_the_reboot(self, machine):
        (machine.state / 'mokutil.out').write_text('SecureBoot enabled')
        assert 'Enroll MOK' in machine.call('driver').stdout

    def test_a_pending_reboot_of_the_system_is_said(self, machine):
        machine.load_driver()
        machine.file('var/run/reboot-required', '*** System restart required ***')
        assert 'A reboot is due' in machine.call('--check', 'driver').stdout


class TestDocker:
    def test_ubuntus_own_engine_stays(self, machine):
        (machine.state / 'packages').write_text('docker.io\n')
        for name in ('docker', 'dockerd'):
            (machine.bin / name).symlink_to('stub')
        assert machine.call('docker').returncode == 0
        installed = (machine.state / 'packages').read_text().split()
        assert 'docker-compose-v2' in installed and 'docker-ce' not in installed

    @pytest.mark.parametrize('engine, buildx', [('docker.io', 'docker-buildx'), ('docker-ce', 'docker-buildx-plugin')])
    def test_buildx_is_missed_and_brought(self, machine, engine, buildx):
        (machine.state / 'packages').write_text(f'{engine}\n')
        (machine.state / 'compose').touch()
        for name in ('docker', 'dockerd'):
            (machine.bin / name).symlink_to('stub')
        assert 'TODO  docker   buildx' in machine.call('--check', 'docker').stdout
        assert machine.call('docker').returncode == 0
        assert buildx in (machine.state / 'packages').read_text().split()
        assert machine.call('--check', 'docker').returncode == 0


class TestDisk:
    FSTAB = 'UUID=0a / ext4 defaults 0 1\n'

    def fstab(self, machine: Machine) -> str:
        return (machine.root / 'etc/fstab').read_text()

    def test_an_empty_disk_is_not_formatted_unasked(self, machine):
        done = machine.call('disk', '--disk', '/dev/sdb')
        assert done.returncode == 1 and '--format' in done.stderr
        assert machine.changes == [] and self.fstab(machine) == self.FSTAB

    def test_an_empty_disk_is_formatted_when_told_to(self, machine):
        done = machine.call('disk', '--disk', '/dev/sdb', '--format')
        assert done.returncode == 0, done.stderr
        assert 'mkfs.ext4 -q -m 0 -L data /dev/sdb' in machine.changes
        assert self.fstab(machine) == self.FSTAB + 'UUID=1b-2c /data ext4 defaults,nofail,noatime 0 2\n'
        assert (machine.root / 'etc/fstab.before-setup').read_text() == self.FSTAB

    @pytest.mark.parametrize('options', [(), ('--format',)])
    def test_a_disk_with_a_file_system_is_mounted_and_never_formatted(self, machine, options):
        (machine.state / 'fstype').write_text('ext4\n')
        (machine.state / 'uuid').write_text('9f-01\n')
        assert machine.call('disk', '--disk', '/dev/sdb', '--mount', '/dataset-disk', *options).returncode == 0
        assert not [call for call in machine.changes if call.startswith(('mkfs', 'chown'))]
        assert 'UUID=9f-01 /dataset-disk ext4 ' in self.fstab(machine)
        assert 'mount /dataset-disk' in machine.changes

    @pytest.mark.parametrize('what, text, said', [
        ('fstype', 'LVM2_member', 'LVM2_member'), ('fstype', 'crypto_LUKS', 'crypto_LUKS'), ('pttype', 'gpt', 'gpt'),
        ('parts', 'sdb\nsdb1\n', 'has parts'), ('not-zero', '', 'not empty either'), ('mounted', '/home\n', 'in use')])
    def test_what_is_refused_even_with_format(self, machine, what, text, said):
        (machine.state / what).write_text(text)
        done = machine.call('disk', '--disk', '/dev/sdb', '--format')
        assert done.returncode == 1 and said in done.stderr
        assert machine.changes == [] and self.fstab(machine) == self.FSTAB

    def test_a_folder_with_files_is_not_hidden(self, machine):
        machine.file('data/photo.jpg', '')
        done = machine.call('disk', '--disk', '/dev/sdb', '--format')
        assert done.returncode == 1 and 'hide' in done.stderr and machine.changes == []

    def test_a_second_time_nothing_is_done(self, machine):
        machine.call('disk', '--disk', '/dev/sdb', '--format')
        machine.call('disk', '--disk', '/dev/sdb', '--format')
        assert machine.changes == []

    def test_listed_but_not_mounted(self, machine):
        machine.file('etc/fstab', self.FSTAB + 'UUID=9f /data ext4 nofail 0 2\n')
        machine.call('disk')
        assert machine.changes == ['mount /data']

    def test_no_such_device(self, machine):
        assert 'no block device' in machine.call('disk', '--disk', '/dev/nope').stderr


def test_conda_is_offered_and_only_installed_when_named(machine):
    assert 'conda' not in machine.call('--check').stdout
    done = machine.call('--dry-run', 'conda')
    assert 'Miniforge3-Linux-' in done.stdout


def test_which_python_for_the_local_lane(machine):
    assert '/usr/bin/python3.12 serves the local lane' in machine.call('--check', 'python').stdout
    (machine.bin / 'python3.12').unlink()
    (machine.bin / 'python3').unlink()
    assert 'uv python install' in machine.call('--check', 'python').stdout
