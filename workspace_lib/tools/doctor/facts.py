"""What is true of this machine, each thing looked up once and only when a check asks for it.

In: a `Host`, the checkout. Out: GPUs, driver, Docker, the resolved Compose file, ``.env``.
"""
from __future__ import annotations

import getpass
import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .host import Host, Result

NVIDIA_SMI_ON_WSL = '/usr/lib/wsl/lib/nvidia-smi'


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int] | None  # None: a driver before 510 does not tell


@dataclass(frozen=True)
class Driver:
    """``error`` is what nvidia-smi said when it failed; ``version`` is then '' or the loaded module's."""
    version: str = ''
    gpus: list[Gpu] = field(default_factory=list)
    error: str = ''

    @property
    def number(self) -> tuple[int, ...]:
        return version_number(self.version)


@dataclass(frozen=True)
class Docker:
    """The Docker client and daemon; ``error`` is what the client said when the daemon did not answer."""
    client: bool = False
    error: str = ''
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        return self.info.get('DockerRootDir') or '/var/lib/docker'

    @property
    def version(self) -> str:
        return self.info.get('ServerVersion', '')

    @property
    def rootless(self) -> bool:
        return any('rootless' in option for option in self.info.get('SecurityOptions') or [])

    @property
    def desktop(self) -> bool:
        return 'docker desktop' in str(self.info.get('OperatingSystem')).lower()

    @property
    def snap(self) -> bool:
        return '/var/snap/' in self.root

    @property
    def knows_nvidia(self) -> bool:
        devices = self.info.get('DiscoveredDevices') or []
        return 'nvidia' in (self.info.get('Runtimes') or {}) or any('nvidia.com/gpu' in str(d) for d in devices)


class Facts:
    """Lazily: ``facts.driver``, ``facts.docker``, ``facts.service`` and so on."""

    def __init__(self, host: Host, root: str) -> None:
        self.host = host
        self.root = root

    def path(self, *parts: str) -> str:
        return os.path.normpath(os.path.join(self.root, *parts))

    @cached_property
    def user(self) -> str:
        return self.host.environ.get('SUDO_USER') or self.host.environ.get('USER') or getpass.getuser()

    # --- the GPU ------------------------------------------------------------------------------------

    @cached_property
    def gpu_on_bus(self) -> bool:
        """An NVIDIA display or 3D device, driver or not; on WSL the pass-through device."""
        for vendor in self.host.glob('/sys/bus/pci/devices/*/vendor'):
            device_class = self.host.read(vendor.replace('vendor', 'class')) or ''
            if (self.host.read(vendor) or '').strip() == '0x10de' and device_class.startswith('0x03'):
                return True
        return self.module_version != '' or self.on_wsl

    @cached_property
    def on_wsl(self) -> bool:
        """In WSL with a GPU: the driver is that of Windows."""
        return self.host.owner(NVIDIA_SMI_ON_WSL) is not None

    @cached_property
    def module_version(self) -> str:
        """Version of the kernel module that is loaded; '' when none is."""
        text = self.host.read('/proc/driver/nvidia/version') or ''
        found = re.search(r'Kernel Module(?: for \S+)?\s+([\d.]+)', text)
        return found.group(1) if found else ''

    @cached_property
    def driver(self) -> Driver:
        said = self._smi('name,driver_version,compute_cap')
        if 'not a valid field' in said.text:
            said = self._smi('name,driver_version')
        if not said.ok or not said.text:
            return Driver(self.module_version, error=said.text or 'nvidia-smi said nothing')
        rows = [[cell.strip() for cell in line.split(',')] for line in said.text.splitlines() if ',' in line]
        if not rows:
            return Driver(self.module_version, error=said.text)
        return Driver(rows[0][1], [Gpu(row[0], capability(row[2]) if len(row) > 2 else None) for row in rows])

    def _smi(self, fields: str) -> Result:
        program = self.host.which('nvidia-smi')
        if not program and self.on_wsl:
            program = NVIDIA_SMI_ON_WSL
        return self.host.run(program or 'nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader')

    # --- Docker -------------------------------------------------------------------------------------

    @cached_property
    def docker(self) -> Docker:
        if not self.host.which('docker'):
            return Docker(error='docker: command not found')
        said = self.host.run('docker', 'info', '--format', '{{json .}}')
        start = said.text.find('{')
        try:
            info = json.loads(said.text[start:said.text.rfind('}') + 1])
        except ValueError:
            info = {}
        errors = info.get('ServerErrors') or []
        if not info.get('ServerVersion'):
            plain = errors[0] if errors else said.text if not info else ''
            return Docker(True, plain or self.host.run('docker', 'version').text, info)
        return Docker(True, '', info)

    @cached_property
    def docker_installed(self) -> bool:
        """A client with something to talk to. The client alone, as some images carry it, is no Docker."""
        if not self.docker.client or not self.docker.error:
            return self.docker.client
        environ = self.host.environ
        if environ.get('DOCKER_HOST') or environ.get('DOCKER_CONTEXT'):
            return True
        sockets = ['/var/run/docker.sock', f'{environ.get("XDG_RUNTIME_DIR", "/nonexistent")}/docker.sock']
        return bool(self.host.which('dockerd') or self.host.which('dockerd-rootless.sh')
                    or any(self.host.owner(path) for path in (*sockets, '/usr/bin/dockerd', '/usr/sbin/dockerd')))

    @cached_property
    def client_version(self) -> str:
        """Of the docker command, which may be of another age than the Engine."""
        found = re.search(r'\d+\.[\d.]+', self.host.run('docker', '--version').text)
        return found.group() if found else ''

    @cached_property
    def buildx_version(self) -> Result:
        return self.host.run('docker', 'buildx', 'version')

    @cached_property
    def compose_version(self) -> Result:
        return self.host.run('docker', 'compose', 'version', '--short')

    @cached_property
    def compose(self) -> tuple[dict[str, Any], str]:
        """(the Compose file with everything filled in, what went wrong)."""
        if not self.compose_version.ok or self.host.read(self.path('docker-compose.yml')) is None:
            return {}, ''
        said = self.host.run('docker', 'compose', '--project-directory', self.root, '--file',
                             self.path('docker-compose.yml'), '--profile', 'cpu', 'config', '--format', 'json')
        try:
            return json.loads(said.text[said.text.index('{'):]), ''
        except ValueError:
            return {}, said.text

    def service(self, lane: str) -> dict[str, Any]:
        return self.compose[0].get('services', {}).get('lab' if lane == 'gpu' else 'lab-cpu', {})

    def built(self, lane: str) -> bool:
        """The image of the lane's service is there."""
        image = self.service(lane).get('image', '')
        return bool(image) and self.host.run('docker', 'image', 'inspect', '--format', '{{.Id}}', image).ok

    @property
    def container(self) -> str:
        """``make up`` gives the container this one name in either lane."""
        return self.settings.get('LAB_NAME') or 'workspace-lab'

    @property
    def uid_inside(self) -> int:
        """Of the lab's user in the container: LAB_UID, else the caller's; for root the checkout's owner, or 1000."""
        wanted = self.settings.get('LAB_UID', '')
        if wanted.isdigit():
            return int(wanted)
        owner = self.host.owner(self.root)
        return self.host.uid or (owner.uid if owner else 0) or 1000

    # --- settings -------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> dict[str, str]:
        """``.env`` with the caller's environment over it, as Compose does."""
        written = parse_env(self.host.read(self.path('.env')) or '')
        return {**written, **{k: v for k, v in self.host.environ.items() if k in written or k in KNOWN_SETTINGS}}

    @cached_property
    def port(self) -> int:
        """0 where JUPYTER_PORT is no port number."""
        wanted = self.settings.get('JUPYTER_PORT') or '8888'
        return int(wanted) if wanted.isdigit() and int(wanted) < 65536 else 0

    @cached_property
    def dataset(self) -> str:
        return self.path(os.path.expanduser(self.settings.get('DATASET_DIR') or 'datasets'))


KNOWN_SETTINGS = ('BASE_IMAGE', 'TORCH_CUDA_ARCH_LIST', 'JUPYTER_PORT', 'SHM_SIZE', 'LAB_NAME', 'LAB_UID',
                  'DATASET_DIR')


def parse_env(text: str) -> dict[str, str]:
    """KEY=VALUE lines as Compose reads them: comments, ``export``, quotes."""
    values = {}
    for line in text.splitlines():
        found = re.match(r'\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*$', line)
        if found:
            key, value = found.groups()
            quoted = re.match(r'''(["'])(.*?)\1''', value)
            values[key] = quoted.group(2) if quoted else re.sub(r'(^|\s+)#.*', '', value)
    return values


def capability(text: str) -> tuple[int, int] | None:
    found = re.match(r'(\d+)\.(\d+)', text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def version_number(text: str) -> tuple[int, ...]:
    """(580, 65, 6) of '580.65.06'; () of ''."""
    found = re.match(r'\d+(\.\d+)*', text)
    return tuple(map(int, found.group().split('.'))) if found else ()


def byte_count(text: Any) -> int | None:
    """8589934592 of '8gb', '8G', 8589934592 or '8589934592', as Docker counts (powers of 1024)."""
    found = re.match(r'(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?$', str(text).strip().lower())
    return int(float(found.group(1)) * 1024 ** ('kmgt'.find(found.group(2) or '-') + 1)) if found else None
