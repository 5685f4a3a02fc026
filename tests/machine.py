"""A machine that is not there, for the tests of ``doctor``: what its commands say is recorded, not run."""
from __future__ import annotations

import json
import os
from pathlib import Path

from workspace_lib.tools.doctor import Host
from workspace_lib.tools.doctor.host import NOT_FOUND, Owner, Result, Space

GIB = 1024 ** 3
SMI_OK = 'NVIDIA H100 PCIe, 580.65.06, 9.0'
SMI_FAILED = ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
              'latest NVIDIA driver is installed and running.')
MODULE = 'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n'


class FakeHost(Host):
    """A healthy GPU host with Docker; a test changes what it is about.

    ``commands`` maps the beginning of a command line to (status, text): the longest that fits answers, others are
    not found. ``files`` maps paths to texts; below ``root`` the real files are seen as well.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.uid = self.gid = os.getuid() or 1000
        self.environ: dict[str, str] = {'USER': 'ada'}
        self.commands: dict[str, tuple[int, str]] = {}
        self.files: dict[str, str] = {}
        self.owners: dict[str, Owner] = {}
        self.spaces: dict[str, Space] = {}
        self.ports: dict[int, dict[tuple[str, str], tuple[int, object]]] = {}
        self.calls: list[str] = []
        self.commands[f'{root}/.venv/bin/python -m workspace_lib.tools.jpeg_crop'] = (0, 'crop decoding is on')
        self.give_gpu()
        self.give_docker()

    def give_gpu(self, smi: str = SMI_OK, status: int = 0) -> None:
        self.files['/sys/bus/pci/devices/0000:01:00.0/vendor'] = '0x10de\n'
        self.files['/sys/bus/pci/devices/0000:01:00.0/class'] = '0x030200\n'
        self.files['/proc/driver/nvidia/version'] = MODULE
        self.commands['nvidia-smi --query-gpu=name,driver_version,compute_cap'] = (status, smi)

    def no_gpu(self) -> None:
        self.files = {k: v for k, v in self.files.items() if not k.startswith(('/sys/bus/pci', '/proc/driver'))}
        self.commands = {k: v for k, v in self.commands.items() if not k.startswith('nvidia-smi')}

    def give_docker(self, **info: object) -> None:
        known = {'ServerVersion': '28.2.2', 'DockerRootDir': '/var/lib/docker', 'OperatingSystem': 'Ubuntu 24.04.1 LTS',
                 'Runtimes': {'nvidia': {'path': 'nvidia-container-runtime'}, 'runc': {}}, **info}
        self.commands['docker info'] = (0, json.dumps(known))
        self.commands['docker --version'] = (0, f'Docker version {known["ServerVersion"]}, build e6534b4')
        self.commands['docker buildx version'] = (0, 'github.com/docker/buildx v0.26.1 1a8287f')
        self.commands['docker compose version --short'] = (0, '2.39.1')
        self.commands['dockerd'] = (0, '')

    def no_daemon(self, error: str) -> None:
        self.commands['docker info'] = (1, json.dumps({'ServerVersion': '', 'ServerErrors': [error]}))

    def no_docker(self) -> None:
        self.commands = {k: v for k, v in self.commands.items() if not k.startswith('docker')}

    def give_compose(self, lane: str = 'lab', **service: object) -> None:
        """The checkout has a Compose file, and this is what ``docker compose config`` makes of it."""
        (Path(self.root) / 'docker-compose.yml').write_text('services: {}')
        config = {'services': {lane: {'image': 'workspace-lab:gpu', 'container_name': 'workspace-lab',
                                      'shm_size': '8589934592', **service}}}
        self.commands[f'docker compose --project-directory {self.root}'] = (0, json.dumps(config))

    def run(self, *command: str, seconds: float = 20) -> Result:
        line = ' '.join(command)
        self.calls.append(line)
        fitting = [known for known in self.commands if line.startswith(known)]
        if not fitting:
            return Result(NOT_FOUND, f'{command[0]}: command not found')
        return Result(*self.commands[max(fitting, key=len)])

    def which(self, name: str) -> str | None:
        return name if any(known.split()[0] == name for known in self.commands) else None

    def _real(self, path: str) -> bool:
        return f'{path}/'.startswith(f'{self.root}/')

    def read(self, path: str) -> str | None:
        if path in self.files:
            return self.files[path]
        return super().read(path) if self._real(path) else None

    def glob(self, pattern: str) -> list[str]:
        if self._real(pattern):
            return super().glob(pattern)
        return [path for path in self.files if Path(path).match(pattern)]

    def owner(self, path: str) -> Owner | None:
        if path in self.owners:
            return self.owners[path]
        if path in self.files:
            return Owner(self.uid, self.gid, 0o600, False)
        found = super().owner(path) if self._real(path) else None
        return found and Owner(self.uid, self.gid, found.mode, found.folder)  # whoever runs the tests plays the person

    def space(self, path: str) -> Space | None:
        return self.spaces.get(path, Space(500 * GIB, 200 * GIB, 30_000_000, 29_000_000))

    def port_taken(self, port: int) -> bool:
        return port in self.ports

    def get(self, port: int, path: str, token: str = '') -> tuple[int, object]:
        return self.ports.get(port, {}).get((path, token), (0, None))
