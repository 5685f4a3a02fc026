"""``make doctor`` on machines with one fault each: recorded words of the driver, Docker and the kernel."""
from __future__ import annotations

import ast
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from machine import GIB, SMI_FAILED, SMI_OK, FakeHost

import workspace_lib
from workspace_lib.datasets.ring import AHEAD, SPARE
from workspace_lib.tools import doctor, lanes
from workspace_lib.tools.doctor import Facts, Finding, choose_lane, diagnose, findings
from workspace_lib.tools.doctor.checks import SHM_WANTED
from workspace_lib.tools.doctor.host import Owner, Space
from workspace_lib.tools.doctor.render import exit_status
from workspace_lib.tools.doctor.symptoms import BY_KEY

ROOT = Path(workspace_lib.__file__).parents[1]
SOURCES = sorted((ROOT / 'workspace_lib' / 'tools' / 'doctor').glob('*.py'))
NO_DAEMON = 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?'
DENIED = ('permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get '
          '"http://%2Fvar%2Frun%2Fdocker.sock/v1.50/info": dial unix /var/run/docker.sock: connect: permission '
          'denied')


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """A healthy host; its checkout holds a Compose file."""
    fake = FakeHost(tmp_path)
    fake.give_compose()
    return fake


def wsl(host: FakeHost) -> None:
    """The driver is that of Windows: nothing on the bus, no module."""
    host.no_gpu()
    host.files['/usr/lib/wsl/lib/nvidia-smi'] = ''
    host.commands['/usr/lib/wsl/lib/nvidia-smi --query-gpu=name'] = (0, SMI_OK)


def look(host: FakeHost, lane: str = 'gpu', device: str = 'auto') -> list[Finding]:
    return diagnose(Facts(host, host.root), lane, device)


def only_fault(host: FakeHost, lane: str = 'gpu', device: str = 'auto') -> Finding:
    faults = [finding for finding in look(host, lane, device) if finding.level == 'fail']
    assert len(faults) == 1, [finding.said for finding in faults]
    return faults[0]


def warning(host: FakeHost, lane: str = 'gpu') -> Finding:
    findings = look(host, lane)
    assert not [finding.said for finding in findings if finding.level == 'fail']
    warnings = [finding for finding in findings if finding.level == 'warn']
    assert len(warnings) == 1, [finding.said for finding in warnings]
    return warnings[0]


@pytest.mark.parametrize('lane', ['gpu', 'cpu'])
def test_a_healthy_host_passes(host, lane):
    host.give_compose('lab' if lane == 'gpu' else 'lab-cpu')
    findings = look(host, lane)
    assert exit_status(findings) == 0
    assert {finding.level for finding in findings} <= {'ok', 'skip'}


class TestDocker:
    def test_not_installed(self, host):
        host.no_docker()
        assert only_fault(host, 'cpu').symptom == 'docker-missing'

    def test_the_client_alone_is_no_docker(self, host):
        host.no_daemon(NO_DAEMON)
        del host.commands['dockerd']
        assert only_fault(host, 'cpu').cause == 'The docker command is here, a Docker Engine is not.'
        assert choose_lane(Facts(host, host.root)) == 'local'

    def test_daemon_stopped(self, host):
        host.no_daemon(NO_DAEMON)
        found = only_fault(host)
        assert (found.symptom, found.status) == ('docker-stopped', 11)
        assert 'sudo systemctl enable --now docker' in found.way_out

    def test_daemon_stopped_in_the_words_of_docker_29(self, host):
        host.no_daemon('failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is '
                       'correct and if the daemon is running: dial unix /var/run/docker.sock: connect: no such '
                       'file or directory')
        assert only_fault(host).symptom == 'docker-stopped'

    def test_docker_host_points_nowhere(self, host):
        host.no_daemon(NO_DAEMON.replace('unix:///var/run/docker.sock', 'tcp://10.0.0.9:2375'))
        host.environ['DOCKER_HOST'] = 'tcp://10.0.0.9:2375'
        assert only_fault(host).way_out[0] == 'unset DOCKER_HOST'

    def test_permission_denied(self, host):
        host.no_daemon(DENIED)
        found = only_fault(host)
        assert found.symptom == 'docker-permission'
        assert found.way_out[0].startswith('sudo usermod -aG docker "ada"')

    def test_permission_denied_until_the_next_login(self, host):
        host.no_daemon(DENIED)
        host.files['/etc/group'] = 'root:x:0:\ndocker:x:998:grace,ada\n'
        host.commands['id -nG'] = (0, 'ada sudo')
        assert only_fault(host).way_out == ['newgrp docker    # or log out and in again']

    def test_too_old(self, host):
        host.give_docker(ServerVersion='19.03.15')
        assert only_fault(host).symptom == 'docker-old'

    @pytest.mark.parametrize('said', [
        (1, "docker: 'compose' is not a docker command.\nSee 'docker --help'"),
        (125, 'unknown flag: --short\n\nUsage:  docker [OPTIONS] COMMAND [ARG...]'),
        (0, '1.29.2'), (0, '2.2.3')])
    def test_compose_missing_or_of_old(self, host, said):
        host.commands['docker compose version --short'] = said
        assert only_fault(host).symptom == 'compose-missing'

    @pytest.mark.parametrize('version', ['2.3.3', 'v2.12.2', '2.24.6+ds1-0ubuntu1~22.04.1'])
    def test_compose_that_will_do(self, host, version):
        host.commands['docker compose version --short'] = (0, version)
        assert exit_status(look(host)) == 0

    def test_no_buildx(self, host):
        host.commands['docker buildx version'] = (1, 'docker: unknown command: docker buildx')
        found = only_fault(host)
        assert (found.symptom, found.status) == ('buildx-missing', 15)
        assert any('docker-buildx ' in line for line in found.way_out)

    def test_a_client_before_23_builds_without_it(self, host):
        host.give_docker(ServerVersion='20.10.24')
        del host.commands['docker buildx version']
        assert exit_status(look(host)) == 0

    def test_nor_does_who_has_the_image(self, host):
        del host.commands['docker buildx version']
        host.commands['docker image inspect'] = (0, 'sha256:0b1c')
        host.commands['docker run --rm --pull never --gpus all'] = (0, 'GPU 0')
        assert warning(host).symptom == 'buildx-missing'

    def test_settings_that_compose_refuses(self, host):
        host.commands[f'docker compose --project-directory {host.root}'] = (
            15, 'error while interpolating services.lab.ports.[]: required variable JUPYTER_PORT is missing a value')
        assert only_fault(host).symptom == 'settings'


class TestDriver:
    def test_cannot_communicate(self, host):
        host.give_gpu(SMI_FAILED, 9)
        host.files.pop('/proc/driver/nvidia/version')
        found = only_fault(host)
        assert (found.symptom, found.status) == ('driver-unreachable', 21)

    def test_a_loaded_module_is_not_called_missing(self, host):
        host.give_gpu(SMI_FAILED, 9)
        assert 'not installed' not in only_fault(host).cause

    def test_the_module_without_its_programs(self, host):
        host.commands = {k: v for k, v in host.commands.items() if not k.startswith('nvidia-smi')}
        assert only_fault(host).way_out[0].startswith('sudo apt-get install -y nvidia-utils-580')

    def not_loaded(self, host: FakeHost) -> None:
        host.give_gpu(SMI_FAILED, 9)
        host.files.pop('/proc/driver/nvidia/version')
        host.commands['uname -r'] = (0, '6.8.0-60-generic')

    def test_reboot_pending(self, host):
        self.not_loaded(host)
        host.files['/var/run/reboot-required'] = '*** System restart required ***\n'
        assert only_fault(host).way_out == ['sudo reboot']

    def test_secure_boot(self, host):
        self.not_loaded(host)
        host.commands['modinfo -n nvidia'] = (0, '/lib/modules/6.8.0-60-generic/updates/dkms/nvidia.ko.zst')
        host.commands['mokutil --sb-state'] = (0, 'SecureBoot enabled')
        found = only_fault(host)
        assert 'Secure Boot' in found.cause
        assert any('Enroll MOK' in line for line in found.way_out)

    def test_not_built_for_the_running_kernel(self, host):
        self.not_loaded(host)
        host.commands['modinfo -n nvidia'] = (1, 'modinfo: ERROR: Module nvidia not found.')
        host.commands['dkms status'] = (0, 'nvidia/580.65.06, 6.8.0-59-generic, x86_64: installed')
        assert 'sudo apt-get install -y linux-headers-6.8.0-60-generic' in only_fault(host).way_out

    def test_nouveau(self, host):
        self.not_loaded(host)
        host.files['/proc/modules'] = 'nouveau 3137536 1 - Live 0x0000000000000000\n'
        assert 'nouveau' in only_fault(host).cause

    def test_never_installed(self, host):
        host.no_gpu()
        host.give_gpu()
        host.files.pop('/proc/driver/nvidia/version')
        host.commands = {k: v for k, v in host.commands.items() if not k.startswith('nvidia-smi')}
        found = only_fault(host)
        assert found.cause == 'The NVIDIA driver is not installed.'
        assert found.seen == 'nvidia-smi: command not found'

    def test_library_version_mismatch(self, host):
        host.give_gpu('Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.82', 18)
        found = only_fault(host)
        assert (found.symptom, found.way_out[0]) == ('driver-mismatch', 'sudo reboot')

    def test_a_gpu_asked_for_where_none_is(self, host):
        host.no_gpu()
        assert only_fault(host).symptom == 'no-gpu'

    def test_the_card_fell_off_the_bus(self, host):
        host.give_gpu('No devices were found', 6)
        assert only_fault(host).symptom == 'no-gpu'

    def test_a_driver_that_knows_no_compute_cap(self, host):
        host.give_gpu('Field "compute_cap" is not a valid field to query.', 2)
        host.commands['nvidia-smi --query-gpu=name,driver_version --format'] = (0, 'Tesla K80, 470.256.02')
        found = only_fault(host)
        assert found.symptom == 'cuda-too-new' and '470.256.02' in found.said


class TestHandover:
    def test_toolkit_not_installed(self, host):
        host.give_docker(Runtimes={'runc': {}})
        found = only_fault(host)
        assert (found.symptom, found.status) == ('toolkit-missing', 23)
        assert 'sudo apt-get install -y nvidia-container-toolkit' in found.way_out

    def test_docker_not_told_of_the_toolkit(self, host):
        host.give_docker(Runtimes={'runc': {}})
        host.commands['nvidia-ctk'] = (0, '')
        assert only_fault(host).way_out[0] == 'sudo nvidia-ctk runtime configure --runtime=docker'

    def test_the_hook_alone_will_do(self, host):
        host.give_docker(Runtimes={'runc': {}})
        host.commands['nvidia-container-runtime-hook'] = (0, '')
        assert exit_status(look(host)) == 0
        assert warning(host).way_out[-1] == 'sudo systemctl restart docker'

    def test_docker_desktop_on_wsl(self, host):
        wsl(host)
        host.give_docker(OperatingSystem='Docker Desktop')
        assert exit_status(look(host)) == 0

    @pytest.mark.parametrize('info, way_out', [
        ({'OperatingSystem': 'Docker Desktop'}, 'docker context use default'),
        ({'DockerRootDir': '/var/snap/docker/common/var-lib-docker'}, 'sudo snap remove docker')])
    def test_a_docker_that_cannot(self, host, info, way_out):
        host.give_docker(Runtimes={'runc': {}}, **info)
        assert only_fault(host).way_out[0].startswith(way_out)

    def test_rootless(self, host):
        host.give_docker(Runtimes={'runc': {}}, SecurityOptions=['name=seccomp,profile=builtin', 'name=rootless'])
        host.commands['nvidia-ctk'] = (0, '')
        assert any('no-cgroups' in line for line in only_fault(host).way_out)

    def built(self, host: FakeHost, status: int, said: str) -> None:
        host.commands['docker image inspect'] = (0, 'sha256:0b1c')
        host.commands['docker run --rm --pull never --gpus all'] = (status, said)

    def test_container_starts_with_the_gpu(self, host):
        self.built(host, 0, 'GPU 0: NVIDIA H100 PCIe (UUID: GPU-f15ae561)')
        assert any('a container sees GPU 0' in finding.said for finding in look(host))

    def test_image_wants_a_newer_cuda(self, host):
        self.built(host, 125, (
            'docker: Error response from daemon: failed to create task for container: failed to create shim task: '
            'OCI runtime create failed: runc create failed: unable to start container process: error during '
            'container init: error running prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode '
            "as 'legacy'\n"
            'nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please update '
            'your driver to a newer version, or use an earlier cuda container: unknown'))
        found = only_fault(host)
        assert (found.symptom, found.status) == ('cuda-too-new', 24)
        assert 'CUDA 13.0' in found.cause

    def running(self, host: FakeHost) -> None:
        host.commands['docker ps --filter name='] = (0, 'workspace-lab')

    def test_nvml_unknown_inside_but_fine_outside(self, host):
        self.running(host)
        host.commands['docker exec workspace-lab nvidia-smi'] = (255, 'Failed to initialize NVML: Unknown Error')
        found = only_fault(host)
        assert found.symptom == 'nvml-unknown'
        assert found.way_out[0].startswith('docker restart workspace-lab')

    def test_no_kernel_image(self, host):
        self.running(host)
        host.commands['docker exec workspace-lab nvidia-smi'] = (0, 'GPU 0: NVIDIA GeForce GTX 1080')
        host.commands['docker exec workspace-lab python'] = (
            1, 'torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device')
        assert only_fault(host).symptom == 'gpu-architecture'

    def test_memlock_without_cap_sys_resource(self, host):
        host.files['/proc/1/status'] = 'Name:\tsystemd\nCapBnd:\t00000000a80425fb\n'
        assert only_fault(host).symptom == 'rlimit'

    def test_the_cpu_service_has_no_such_limit(self, host):
        host.files['/proc/1/status'] = 'Name:\tsystemd\nCapBnd:\t00000000a80425fb\n'
        assert exit_status(look(host, 'cpu')) == 0


class TestBaseImageSetting:
    def test_env_asks_for_more_than_the_driver_has(self, host):
        host.give_gpu('NVIDIA GeForce RTX 3090, 570.133.20, 8.6')
        host.files[f'{host.root}/.env'] = 'BASE_IMAGE=pytorch/pytorch:2.14.0-cuda13.0-cudnn9-devel\n'
        found = only_fault(host)
        assert found.symptom == 'cuda-too-new'
        assert 'BASE_IMAGE=pytorch/pytorch:2.14.0-cuda12.6-cudnn9-devel' in found.way_out[0]

    def test_env_asks_for_a_build_without_this_card(self, host):
        host.give_gpu('Tesla V100-SXM2-16GB, 580.65.06, 7.0')
        host.files[f'{host.root}/.env'] = 'BASE_IMAGE=pytorch/pytorch:2.14.0-cuda13.0-cudnn9-devel\n'
        assert only_fault(host).symptom == 'gpu-architecture'

    def test_says_so_when_the_default_does_not_fit(self, host):
        host.give_gpu('NVIDIA GeForce RTX 3090, 570.133.20, 8.6')
        assert '-cuda12.6-' in warning(host).said

    @pytest.mark.parametrize('card, status', [('Tesla K80, 470.256.02, 3.7', 25), ('Quadro K600, 580.65.06, 3.0', 25),
                                              ('NVIDIA A100, 515.43.04, 8.0', 24)])
    def test_a_card_or_driver_that_no_image_fits(self, host, card, status):
        host.give_gpu(card)
        found = only_fault(host)
        assert found.status == status and not any('BASE_IMAGE=pytorch' in line for line in found.way_out)

    def test_an_image_of_ones_own_is_taken_as_it_is(self, host):
        host.give_gpu('Tesla K80, 470.256.02, 3.7')
        host.environ['BASE_IMAGE'] = 'pytorch/pytorch:1.12.1-cuda11.3-cudnn8-devel'
        assert exit_status(look(host)) == 0

    def test_of_two_cards_that_no_one_image_serves_one_may_be_chosen(self, host):
        host.give_gpu('NVIDIA GeForce GTX 1080, 580.65.06, 6.1\nNVIDIA GeForce RTX 5090, 580.65.06, 12.0')
        assert 'BASE_IMAGE in .env' in only_fault(host).said
        host.environ['BASE_IMAGE'] = 'pytorch/pytorch:2.14.0-cuda13.0-cudnn9-devel'
        assert 'no code for NVIDIA GeForce GTX 1080' in warning(host).said

    def test_mmcv_compiled_for_another_card(self, host):
        host.files[f'{host.root}/.env'] = 'TORCH_CUDA_ARCH_LIST=8.6\n'
        assert 'TORCH_CUDA_ARCH_LIST=9.0' in warning(host).way_out[0]


class TestPort:
    def test_taken_by_a_program(self, host):
        host.ports[8888] = {}
        host.commands['ss -ltnpH sport = :8888'] = (
            0, 'LISTEN 0 128 127.0.0.1:8888 0.0.0.0:* users:(("node",pid=4242,fd=18))')
        found = only_fault(host)
        assert found.symptom == 'port-taken' and found.said.endswith('by node (pid 4242)')

    @pytest.mark.parametrize('lane', ['gpu', 'cpu', 'local'])
    @pytest.mark.parametrize('port', ['abc', '0', '65536'])
    def test_no_port_number(self, host, lane, port):
        host.commands[f'{host.root}/scripts/find_python.sh'] = (0, '/usr/bin/python3.12')
        host.environ['JUPYTER_PORT'] = port
        assert only_fault(host, lane).said == f'JUPYTER_PORT={port} is no port number (1 to 65535)'

    def test_taken_by_a_container(self, host):
        host.ports[8888] = {}
        host.commands['docker ps --filter publish=8888'] = (0, 'old-notebook')
        assert only_fault(host).said.endswith('by the container old-notebook')

    def test_another_jupyter_answers(self, host):
        host.ports[8888] = {('/api', ''): (200, {'version': '2.17.0'})}
        assert only_fault(host).symptom == 'other-jupyter'

    def test_our_own_lab_answers(self, host, tmp_path):
        (tmp_path / '.lab').mkdir()
        (tmp_path / '.lab' / 'token').write_text('secret')
        (tmp_path / '.lab' / 'token').chmod(0o600)
        host.ports[8888] = {('/api/status', 'secret'): (200, {})}
        assert exit_status(look(host)) == 0

    def test_the_local_lane_takes_the_next_one(self, host, tmp_path):
        (tmp_path / '.venv').mkdir()
        (tmp_path / '.venv' / '.installed').touch()
        host.no_docker()
        host.no_gpu()
        host.ports[8888] = {}
        assert warning(host, 'local').symptom == 'port-taken'


class TestFilesAndDisks:
    def test_folder_made_by_root(self, host, tmp_path):
        (tmp_path / 'work_dirs').mkdir()
        host.owners[f'{tmp_path}/work_dirs'] = Owner(0, 0, 0o755, True)
        found = only_fault(host)
        assert found.symptom == 'mount-permission'
        assert f'sudo chown -R "{host.uid}:$(id -g)" {tmp_path}/work_dirs' in found.way_out

    def test_a_person_other_than_the_owner_was_set(self, host, tmp_path):
        host.environ['LAB_UID'] = '12345'
        assert f'{tmp_path} belongs to uid {host.uid}, the lab is 12345' in [finding.said for finding in look(host)]

    def test_root_may_keep_a_checkout_of_its_own(self, host):
        host.uid = 0
        assert warning(host).said.endswith('the lab is 1000')

    def test_the_lab_as_root(self, host):
        host.environ['LAB_UID'] = '0'
        assert only_fault(host).symptom == 'settings'

    def test_read_only_data_may_belong_to_others(self, host, tmp_path):
        host.owners['/data/imagenet'] = Owner(0, 0, 0o755, True)
        host.give_compose(volumes=[dict(type='bind', source='/data/imagenet', target='/dataset', read_only=True)])
        assert exit_status(look(host)) == 0

    def test_data_disk_not_mounted(self, host):
        host.environ['DATASET_DIR'] = '/data/imagenet'
        host.owners['/data/imagenet'] = Owner(host.uid, host.gid, 0o755, True)
        host.files['/etc/fstab'] = '# disks\nUUID=1b / ext4 defaults 0 1\nUUID=2c /data ext4 nofail 0 2\n'
        host.files['/proc/mounts'] = '/dev/nvme0n1p2 / ext4 rw 0 0\n'
        found = only_fault(host)
        assert (found.symptom, found.status) == ('dataset-empty', 34)
        assert found.way_out[0].startswith('sudo mount /data')

    def test_data_folder_empty(self, host):
        host.environ['DATASET_DIR'] = '/data/imagenet'
        assert 'does not exist' in only_fault(host).said

    def test_data_on_the_root_disk(self, host):
        host.environ['DATASET_DIR'] = '/data/imagenet'
        host.files['/data/imagenet/train'] = ''
        host.commands['findmnt -no TARGET -T /data/imagenet'] = (0, '/')
        assert 'root disk' in warning(host).said

    def test_disk_full_where_docker_keeps_images(self, host):
        host.spaces['/var/lib/docker'] = Space(100 * GIB, 3 * GIB, 6_000_000, 5_000_000)
        found = only_fault(host)
        assert found.symptom == 'disk-full' and '/var/lib/docker: 3 GiB free' in found.said

    def test_room_but_no_inodes(self, host):
        host.spaces['/var/lib/docker'] = Space(500 * GIB, 300 * GIB, 32_000_000, 12)
        assert only_fault(host).symptom == 'inodes'

    def test_shared_memory_of_dockers_own_size(self, host):
        host.give_compose(shm_size='67108864')
        found = only_fault(host)
        assert found.symptom == 'shm' and '0.06 GiB' in found.said and 'SHM_SIZE=8gb' in found.way_out[0]

    def test_shared_memory_small_for_large_batches(self, host):
        host.give_compose(shm_size='256mb')
        assert warning(host).symptom == 'shm'

    def test_shared_memory_is_measured_by_what_the_loader_allocates(self):
        assert (4 * AHEAD + SPARE) * 256 * 3 * 224 * 224 == SHM_WANTED
        cause, _ = BY_KEY['shm'].told(shm='64 MiB')
        assert f'{SHM_WANTED / 2**20:.0f} MiB' in cause and f'{4 * SHM_WANTED / GIB:.1f} GiB as float32' in cause

    def test_empty_token(self, host, tmp_path):
        (tmp_path / '.lab').mkdir()
        (tmp_path / '.lab' / 'token').write_text('\n')
        (tmp_path / '.lab' / 'token').chmod(0o600)
        assert only_fault(host).symptom == 'token-empty'

    def test_token_that_others_can_read(self, host, tmp_path):
        (tmp_path / '.lab').mkdir()
        (tmp_path / '.lab' / 'token').write_text('secret')
        (tmp_path / '.lab' / 'token').chmod(0o644)
        assert 'chmod 600' in warning(host).way_out[0]


class TestLocal:
    @pytest.fixture
    def host(self, tmp_path) -> FakeHost:
        fake = FakeHost(tmp_path)
        fake.no_docker()
        fake.commands[f'{tmp_path}/scripts/find_python.sh'] = (0, '/usr/bin/python3.12')
        return fake

    def test_works_without_a_gpu(self, host):
        host.no_gpu()
        assert exit_status(look(host, 'local')) == 0

    def test_no_python(self, host, tmp_path):
        host.no_gpu()
        host.commands[f'{tmp_path}/scripts/find_python.sh'] = (
            1, 'No Python 3.11, 3.12 or 3.13 found (looked for: python3).\n    sudo apt-get install -y python3.12')
        found = only_fault(host, 'local')
        assert found.symptom == 'python-missing' and found.way_out == ['sudo apt-get install -y python3.12']

    @pytest.mark.parametrize('compiled', [True, False])
    def test_says_whether_crops_are_decoded(self, host, tmp_path, compiled):
        host.no_gpu()
        (tmp_path / '.venv').mkdir()
        (tmp_path / '.venv' / '.installed').touch()
        said = 'crop decoding is on' if compiled else 'crop decoding is off: no jpeg_crop.so'
        host.commands[f'{tmp_path}/.venv/bin/python -m workspace_lib.tools.jpeg_crop --check'] = (not compiled, said)
        if compiled:
            assert said in [finding.said for finding in look(host, 'local') if finding.level == 'ok']
        else:
            found = warning(host, 'local')
            assert (found.symptom, found.seen) == ('crop-decoding', said)
            assert found.way_out[0] == 'sudo apt-get install -y gcc libc6-dev libjpeg-dev'

    def test_pytorch_cannot_use_the_gpu(self, host, tmp_path):
        (tmp_path / '.venv' / 'bin').mkdir(parents=True)
        (tmp_path / '.venv' / 'bin' / 'python').touch()
        host.commands[f'{tmp_path}/.venv/bin/python -c'] = (1, (
            'RuntimeError: The NVIDIA driver on your system is too old (found version 12040). Please update your '
            'GPU driver by downloading and installing a new version'))
        assert only_fault(host, 'local').symptom == 'cuda-too-new'

    def test_without_a_driver_it_runs_on_the_cpu_and_says_why(self, host):
        host.give_gpu(SMI_FAILED, 9)
        host.files.pop('/proc/driver/nvidia/version')
        assert 'runs on the CPU' in warning(host, 'local').said
        assert look(host, 'local', device='gpu')[0].status == 21

    def test_device_cpu_asks_nothing_of_the_gpu(self, host):
        host.give_gpu(SMI_FAILED, 9)
        assert exit_status(look(host, 'local', device='cpu')) == 0

    def test_small_shared_memory(self, host):
        host.no_gpu()
        host.spaces['/dev/shm'] = Space(GIB // 16, GIB // 16, 0, 0)
        assert only_fault(host, 'local').symptom == 'shm'


def card(text: str):
    return lambda host: host.give_gpu(text)


def engine(**info: object):
    return lambda host: host.give_docker(**info)


def says(command: str, status: int, text: str):
    return lambda host: host.commands.update({command: (status, text)})


def reads(path: str, text: str):
    return lambda host: host.files.update({path: text})


def hook_alone(host: FakeHost) -> None:
    host.give_docker(Runtimes={'runc': {}})
    host.commands.update({'nvidia-ctk': (0, ''), 'nvidia-container-runtime-hook': (0, '')})


def desktop_on_wsl(host: FakeHost) -> None:
    wsl(host)
    host.give_docker(OperatingSystem='Docker Desktop')


def client_alone(host: FakeHost) -> None:
    host.no_daemon(NO_DAEMON)
    del host.commands['dockerd']


def own_image(host: FakeHost) -> None:
    host.give_gpu('Tesla K80, 470.256.02, 3.7')
    host.environ['BASE_IMAGE'] = 'pytorch/pytorch:1.12.1-cuda11.3-cudnn8-devel'


# A machine, and the statuses of doctor in the GPU, the CPU and the local lane (0: it works).
MACHINES = {
    'healthy': (lambda host: None, 0, 0, 0),
    'no gpu': (FakeHost.no_gpu, 43, 0, 0),
    'no docker': (FakeHost.no_docker, 13, 13, 0),
    'client alone': (client_alone, 13, 13, 0),
    'stopped': (lambda host: host.no_daemon(NO_DAEMON), 11, 11, 0),
    'denied': (lambda host: host.no_daemon(DENIED), 10, 10, 0),
    'engine 19.03': (engine(ServerVersion='19.03.15'), 14, 14, 0),
    'engine 20.10': (engine(ServerVersion='20.10.24'), 0, 0, 0),
    'compose 1.29': (says('docker compose version --short', 0, '1.29.2'), 12, 12, 0),
    'compose 2.2': (says('docker compose version --short', 0, '2.2.3'), 12, 12, 0),
    'compose 2.3': (says('docker compose version --short', 0, '2.3.3'), 0, 0, 0),
    'no compose': (says('docker compose version --short', 1, "docker: 'compose' is not a docker command."), 12, 12, 0),
    'no buildx': (says('docker buildx version', 1, 'docker: unknown command: docker buildx'), 15, 15, 0),
    'no toolkit': (engine(Runtimes={'runc': {}}), 23, 0, 0),
    'hook alone': (hook_alone, 0, 0, 0),
    'cdi': (engine(Runtimes={'runc': {}}, DiscoveredDevices=[{'ID': 'nvidia.com/gpu=all'}]), 0, 0, 0),
    'desktop on linux': (engine(OperatingSystem='Docker Desktop'), 23, 0, 0),
    'desktop on wsl': (desktop_on_wsl, 0, 0, 0),
    'snap': (engine(Runtimes={'runc': {}}, DockerRootDir='/var/snap/docker/common/var-lib-docker'), 23, 0, 0),
    'driver mute': (lambda host: host.give_gpu(SMI_FAILED, 9), 21, 0, 21),
    'K80': (card('Tesla K80, 470.256.02, 3.7'), 25, 0, 0),
    'sm_30': (card('Quadro K600, 580.65.06, 3.0'), 25, 0, 0),
    'old driver': (card('NVIDIA A100, 515.43.04, 8.0'), 24, 0, 0),
    'own image': (own_image, 0, 0, 0),
    'V100': (card('Tesla V100-SXM2-16GB, 580.65.06, 7.0'), 0, 0, 0),
    'no CAP_SYS_RESOURCE': (reads('/proc/1/status', 'CapBnd:\t00000000a80425fb\n'), 33, 0, 0),
    'port abc': (lambda host: host.environ.update(JUPYTER_PORT='abc'), 40, 40, 40),
}


@pytest.mark.parametrize('name', MACHINES)
def test_status_of_doctor_in_each_lane(host, name):
    change, *statuses = MACHINES[name]
    host.commands[f'{host.root}/scripts/find_python.sh'] = (0, '/usr/bin/python3.12')
    change(host)
    assert [exit_status(look(host, lane)) for lane in ('gpu', 'cpu', 'local')] == statuses


@pytest.mark.parametrize('name', MACHINES)
@pytest.mark.parametrize('device', ['auto', 'cpu', 'gpu'])
@pytest.mark.parametrize('engine', ['auto', 'docker', 'local'])
def test_doctor_and_make_up_mean_the_same_lane(host, name, device, engine):
    """Both ways: what doctor calls a fault, make up refuses, in doctor's words; what works, it takes."""
    host.commands[f'{host.root}/scripts/find_python.sh'] = (0, '/usr/bin/python3.12')
    MACHINES[name][0](host)
    facts = Facts(host, host.root)
    lane = choose_lane(facts, device, engine)
    faults = [finding for finding in diagnose(facts, lane, device) if finding.level == 'fail']
    if lane == 'local' and name == 'driver mute' and device == 'auto':
        faults = []  # the local lane asks PyTorch, which .venv must have first
    if faults:
        with pytest.raises(lanes.LaneError) as refused:
            lanes.choose_lane(facts, device, engine)
        assert faults[0].said in str(refused.value) and faults[0].way_out[0] in str(refused.value)
    else:
        taken = lanes.choose_lane(facts, device, engine)
        assert lane == ('local' if taken.engine == 'local' else taken.device)


@pytest.mark.parametrize('name', [name for name, (_, gpu, *_) in MACHINES.items() if gpu])
def test_the_way_on_is_one_that_works(host, name, capsys):
    """What doctor and make up name as the way on without the fault."""
    host.commands[f'{host.root}/scripts/find_python.sh'] = (0, '/usr/bin/python3.12')
    MACHINES[name][0](host)
    fault = next(finding for finding in look(host) if finding.level == 'fail')
    words = dict(word.split('=') for word in findings.way_on('gpu', [fault]).split() if '=' in word)
    if words:
        lanes.choose_lane(Facts(host, host.root), words.get('DEVICE', 'auto'), words.get('ENGINE', 'auto'))
    assert bool(words) == (fault.symptom != 'settings')


@pytest.mark.parametrize('gpu, docker, device, engine, lane', [
    (True, True, 'auto', 'auto', 'gpu'), (False, True, 'auto', 'auto', 'cpu'), (True, True, 'cpu', 'auto', 'cpu'),
    (False, True, 'gpu', 'auto', 'gpu'), (True, False, 'auto', 'auto', 'local'), (True, True, 'auto', 'local', 'local'),
    (False, False, 'auto', 'docker', 'cpu')])
def test_the_lane_that_make_up_takes(host, gpu, docker, device, engine, lane):
    if not gpu:
        host.no_gpu()
    if not docker:
        host.no_docker()
    assert choose_lane(Facts(host, host.root), device, engine) == lane


class TestCommandLine:
    def call(self, host: FakeHost, *args: str) -> int:
        return doctor.main(['--root', host.root, *args], host)

    def test_status_is_that_of_the_first_fault(self, host, capsys):
        host.give_gpu('Failed to initialize NVML: Driver/library version mismatch', 18)
        host.no_daemon(NO_DAEMON)
        assert self.call(host) == 20
        assert '2 faults; mend the first one first' in capsys.readouterr().out

    def test_the_way_on_goes_round_every_fault(self, host, capsys):
        host.give_gpu(SMI_FAILED, 9)
        host.no_daemon(NO_DAEMON)
        self.call(host)
        assert capsys.readouterr().out.endswith('The way on without it: make up ENGINE=local\n')

    def test_json(self, host, capsys):
        assert self.call(host, '--json') == 0
        said = json.loads(capsys.readouterr().out)
        assert said['works'] and said['lane'] == 'gpu'
        assert said['base_image']['image'] == 'pytorch/pytorch:2.14.0-cuda13.0-cudnn9-devel'
        assert said['base_image']['arch_list'] == '9.0'

    def test_names_the_variant_and_why(self, host, capsys):
        self.call(host)
        assert 'base image -cuda13.0-: driver 580.65.06 is 580 or newer' in capsys.readouterr().out

    def test_fix_adds_missing_keys_and_leaves_the_others(self, host, tmp_path, capsys):
        host.give_gpu('NVIDIA GeForce GTX 1080 Ti, 580.65.06, 6.1')
        (tmp_path / '.env').write_text('# mine\nTORCH_CUDA_ARCH_LIST=6.1;7.5')
        assert self.call(host, '--fix') == 0
        written = (tmp_path / '.env').read_text()
        assert written.startswith('# mine\nTORCH_CUDA_ARCH_LIST=6.1;7.5\n')
        assert written.count('TORCH_CUDA_ARCH_LIST=') == 1
        assert '\nBASE_IMAGE=pytorch/pytorch:2.14.0-cuda12.6-cudnn9-devel\n' in written
        assert (tmp_path / '.env').stat().st_mode & 0o777 == 0o600
        assert (tmp_path / 'work_dirs').is_dir()

    def test_fix_guesses_nothing_where_the_driver_does_not_answer(self, host, tmp_path):
        host.give_gpu(SMI_FAILED, 9)
        self.call(host, '--fix')
        assert not (tmp_path / '.env').exists()

    def test_fix_writes_no_base_image_where_none_fits(self, host, tmp_path):
        host.give_gpu('Tesla K80, 470.256.02, 3.7')
        assert self.call(host, '--fix') == 25
        assert not (tmp_path / '.env').exists()

    @pytest.mark.parametrize('port, status', [('taken', 31), ('abc', 40)])
    def test_fix_reports_the_port_that_it_cannot_use(self, host, tmp_path, capsys, monkeypatch, port, status):
        with socket.socket() as other:
            other.bind(('127.0.0.1', 0))
            other.listen()
            number = other.getsockname()[1]
            host.environ['JUPYTER_PORT'] = str(number) if port == 'taken' else port
            host.ports[number] = {}
            monkeypatch.setenv('JUPYTER_PORT', host.environ['JUPYTER_PORT'])
            assert self.call(host, '--fix') == status
        said = ' '.join(capsys.readouterr().out.split())
        assert f'.env was not written: JUPYTER_PORT={host.environ["JUPYTER_PORT"]}' in said
        assert 'make doctor FIX=1 # again' in said
        assert (tmp_path / 'work_dirs').is_dir()  # what can be mended is

    def test_fix_where_nothing_may_be_written(self, host, capsys, monkeypatch):
        monkeypatch.setattr('os.makedirs', lambda path: (_ for _ in ()).throw(PermissionError(13, 'denied', path)))
        self.call(host, '--fix')
        assert 'not everything could be mended' in capsys.readouterr().out

    def test_a_second_fix_finds_nothing_to_do(self, host, tmp_path, capsys):
        self.call(host, '--fix')
        before = (tmp_path / '.env').stat()
        capsys.readouterr()
        self.call(host, '--fix', '--json')
        assert json.loads(capsys.readouterr().out)['fixed'] == []
        assert (tmp_path / '.env').stat().st_mtime_ns == before.st_mtime_ns

    def test_a_reader_that_goes_away(self):
        done = subprocess.run(f'{ROOT}/scripts/doctor.sh --symptoms | head -n 1', shell=True, capture_output=True,
                              text=True)
        assert 'docker-permission' in done.stdout and not done.stderr

    def test_without_fix_nothing_is_written(self, host, tmp_path):
        before = sorted(tmp_path.rglob('*'))
        self.call(host)
        assert sorted(tmp_path.rglob('*')) == before

    def test_every_fault_has_cause_way_out_and_a_status_of_its_own(self):
        assert all(s.cause and s.way_out and s.patterns for s in doctor.SYMPTOMS)
        statuses = [s.status for s in doctor.SYMPTOMS]
        assert len(set(statuses)) == len(statuses) and min(statuses) >= 10 and max(statuses) < 124
        for symptom in doctor.SYMPTOMS:
            cause, way_out = symptom.told()
            assert '{' not in cause.replace('{{', ''), symptom.key
            assert all(way_out)


class TestBeforeAnythingIsInstalled:
    @pytest.mark.parametrize('path', [*SOURCES, *(ROOT / 'workspace_lib' / name for name in (
        '__init__.py', 'tools/__init__.py', 'tools/processes.py'))], ids=lambda path: path.stem)
    def test_python_38_can_read_it_and_nothing_is_imported_but_the_standard_library(self, path):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        names = [name.name.split('.')[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
                 for name in node.names]
        names += [(node.module or '').split('.')[0] for node in ast.walk(tree)
                  if isinstance(node, ast.ImportFrom) and node.level == 0]
        assert set(names) <= set(sys.stdlib_module_names)

    def script(self, *args: str, python: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [python, '-m', 'workspace_lib.tools.doctor'] if python else [str(ROOT / 'scripts' / 'doctor.sh')]
        return subprocess.run([*command, *args], capture_output=True, text=True, cwd=ROOT)

    def test_real_run_of_the_local_lane(self):
        done = self.script('--lane', 'local', '--json')
        said = json.loads(done.stdout)
        assert said['lane'] == 'local' and done.returncode == said['status']
        assert not [finding for finding in said['findings'] if finding['level'] == 'fail' and not finding['way_out']]

    def test_real_run_against_a_stopped_daemon(self):
        if not shutil.which('docker') or subprocess.run(['docker', 'info'], capture_output=True).returncode == 0:
            pytest.skip('for a host whose Docker client finds no daemon')
        done = self.script('--lane', 'cpu')
        assert done.returncode in (10, 11, 13) and 'Docker' in done.stdout

    @pytest.mark.parametrize('version', ['3.8', '3.9', '3.10', '3.13'])
    def test_runs_on_python(self, version):
        found = next(iter(sorted(Path.home().glob(f'.pyenv/versions/{version}.*/bin/python'))), None)
        python = str(found) if found else shutil.which(f'python{version}')
        if not python:
            pytest.skip(f'no Python {version} here')
        done = self.script('--explain', 'Driver/library version mismatch', python=python)
        assert done.returncode == 20, done.stderr

    def test_without_any_python_it_says_what_to_do(self, tmp_path):
        (tmp_path / 'scripts').mkdir()
        script = tmp_path / 'scripts' / 'doctor.sh'
        script.write_text((ROOT / 'scripts' / 'doctor.sh').read_text().replace('/usr/bin/python3', 'nopython'))
        done = subprocess.run(['/bin/sh', str(script)], capture_output=True, text=True, env={'PATH': '/nonexistent'})
        assert done.returncode == 42 and 'apt-get install -y python3' in done.stderr
