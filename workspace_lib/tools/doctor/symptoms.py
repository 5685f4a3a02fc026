"""The symptom table: what a person sees, why, the way out, and the exit status ``doctor`` ends with.

In: an error message or a log. Out: the rows that it fits. Checks of a live machine point at the same rows.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# For the {fields} of the table, where neither the text nor the machine says better.
USUAL = {'port': '8888', 'cuda': 'of the image', 'driver': 'of this host', 'path': 'the folder',
         'name': 'workspace-lab', 'arch': 'of this GPU', 'limit': 'memlock', 'root': '/var/lib/docker',
         'image': 'the image', 'server': 'the registry', 'shm': 'df -h /dev/shm says how large it is',
         'user': '$USER', 'uid': '$(id -u)', 'gid': '$(id -g)'}


@dataclass(frozen=True)
class Symptom:
    """One row. ``patterns`` are searched line by line, case ignored; their named groups fill the {fields}."""
    key: str
    status: int
    title: str
    patterns: tuple[str, ...]
    cause: str
    way_out: tuple[str, ...]

    def match(self, line: str) -> re.Match[str] | None:
        found = (re.search(pattern, line, re.IGNORECASE) for pattern in self.patterns)
        return next(filter(None, found), None)

    def told(self, **values: Any) -> tuple[str, list[str]]:
        """(cause, way out) with the fields filled in."""
        known = {**USUAL, **{k: v for k, v in values.items() if v not in (None, '')}}
        known['other_port'] = int(known['port']) + 1
        return self.cause.format(**known), [line.format(**known) for line in self.way_out]


# A line is given to the first row that fits it, so the particular stands before the general.
SYMPTOMS = (
    Symptom('docker-permission', 10, 'Docker refuses this user', (
        r'permission denied while trying to connect to the docker (daemon socket|api)',
        r'dial unix \S*docker\S*\.sock: connect: permission denied',
        r'PermissionError.*docker\.sock'),
        'This user may not use the socket of the Docker daemon: not in the group docker, in it only since '
        'the last login, or the client talks to the daemon of another context.',
        ('sudo usermod -aG docker "{user}"    # who is in this group is as good as root',
         'newgrp docker                      # for this terminal; log out and in for all of them',
         'docker context ls                  # the starred one is asked; back to the usual: docker context '
         'use default')),
    Symptom('docker-stopped', 11, 'the Docker daemon does not run', (
        r'cannot connect to the docker daemon',
        r'failed to connect to the docker api.*(no such file|connection refused)',
        r'error during connect:.*no such host',
        r'dial unix \S*docker\S*\.sock: connect: (no such file|connection refused)'),
        'The Docker client is installed, but no daemon answers: stopped, not started at boot, crashed at '
        'its start, or the client asks elsewhere (DOCKER_HOST, docker context).',
        ('sudo systemctl enable --now docker',
         'journalctl -u docker -n 50 --no-pager   # why, if it does not stay up',
         'docker context ls; echo "$DOCKER_HOST"   # whom the client asks')),
    Symptom('compose-missing', 12, 'Docker Compose is missing or too old', (
        r"docker: '?compose'? is not a docker command",
        r"unknown (shorthand )?(flag|command):.*(compose|'f' in -f|--wait)",
        r'docker-compose: command not found', r'unsupported config option for services',
        r'additional property name is not allowed'),
        'The plugin of `docker compose` is not installed, or older than 2.3 (docker-compose 1.x is another program).',
        ('scripts/setup_ubuntu.sh docker',
         "sudo apt-get install -y docker-compose-plugin   # Docker's own packages; Ubuntu's: "
         'docker-compose-v2')),
    Symptom('buildx-missing', 15, 'the Docker client cannot build: buildx is missing', (
        r'the buildx component is missing or broken', r'unknown command: docker buildx',
        r"docker: '?buildx'? is not a docker command", r'the legacy builder is deprecated'),
        'From version 23 on the docker command builds with the plugin buildx, a package of its own.',
        ('scripts/setup_ubuntu.sh docker',
         "sudo apt-get install -y docker-buildx            # beside Ubuntu's docker.io",
         "sudo apt-get install -y docker-buildx-plugin     # beside Docker's own docker-ce")),
    Symptom('pull-limit', 16, 'the registry gives no more images for now', (
        r'toomanyrequests', r'you have reached your (unauthenticated )?pull rate limit'),
        'Docker Hub counts the pulls of an address over some hours; behind a shared address others count too.',
        ('docker login                # an account has a limit of its own; or wait some hours',
         'make up ENGINE=local        # or without containers, in a .venv')),
    Symptom('no-network', 17, 'a name cannot be resolved', (
        r'lookup (?P<server>[\w.-]+).*: no such host', r'lookup (?P<server>[\w.-]+).*: server misbehaving',
        r'no such host', r'temporary failure in name resolution', r'could not resolve host:? (?P<server>[\w.-]+)'),
        'This machine, or its Docker daemon, finds no address for {server}: no network, no DNS, or a proxy that the '
        'daemon was not told of.',
        ('getent hosts {server}       # does the machine find it?',
         'docker info | grep -i proxy # does the daemon know the proxy? It reads /etc/docker/daemon.json ("proxies")',
         'sudo systemctl restart docker   # after a change of network, VPN or DNS',
         'make build OFFLINE=1        # without a network, from docker/wheels (make wheels where there is one)')),
    Symptom('image-missing', 18, 'there is no such image', (
        r'pull access denied for (?P<image>[\w./:-]+)', r'(?P<image>[\w./:-]+)"?: pull access denied',
        r'no such image: (?P<image>[\w./:-]+)'),
        'Neither this machine nor the registry has {image}. The image of the lab is built here, not pulled; any '
        'other name is misspelt (BASE_IMAGE in .env?) or private.',
        ('make up                     # builds what is missing; the image alone: make build',)),
    Symptom('docker-missing', 13, 'Docker is not installed', (
        r'docker: (command )?not found', r"command 'docker' not found"),
        'There is no docker command on this machine.',
        ('scripts/setup_ubuntu.sh docker', 'make up ENGINE=local   # or without containers, in a .venv')),
    Symptom('docker-old', 14, 'the Docker Engine is too old', (
        r'client version \S+ is too (old|new)', r'the --mount option requires BuildKit'),
        'The Dockerfile needs BuildKit as Docker 20.10 has it, and client and daemon must speak one API '
        'version.',
        ('scripts/setup_ubuntu.sh docker',)),
    Symptom('driver-mismatch', 20, 'two versions of the NVIDIA driver at once', (
        r'driver/library version mismatch', r'NVRM: API mismatch'),
        'The driver was updated, most often by unattended-upgrades; the kernel still runs the old module, '
        'the programs use the new libraries.',
        ('sudo reboot',
         'sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia   # only if '
         'nothing uses the GPU')),
    Symptom('driver-unreachable', 21, 'the NVIDIA driver is not loaded', (
        r"couldn'?t communicate with the nvidia driver", r'nvml error: driver not loaded',
        r"could not insert '?nvidia'?", r'nvidia-smi: (command )?not found',
        r"command 'nvidia-smi' not found",
        r'found no nvidia driver on your system', r'NVRM: No NVIDIA (GPU|graphics adapter) found'),
        'No kernel module of the driver is loaded: never installed, not built for the running kernel '
        '(after a kernel update), refused by Secure Boot because it is not signed, shut out by nouveau, or '
        'a reboot is due.',
        ('scripts/setup_ubuntu.sh --check driver',
         'mokutil --sb-state; dkms status; uname -r   # Secure Boot, and for which kernel it was built',
         'scripts/setup_ubuntu.sh driver && sudo reboot')),
    Symptom('nvml-unknown', 22, 'the container lost its GPU', (
        r'failed to initialize nvml: unknown error', r'NVML_ERROR_UNKNOWN', r'NVMLError_Unknown'),
        'Outside the GPU works, inside it no longer does: `systemctl daemon-reload` (package updates call '
        "it) reset the container's device rules.",
        ('docker restart {name}          # brings the GPU back; make up makes the container anew if that '
         'does not',
         'sudo nvidia-ctk system create-dev-char-symlinks --create-all   # so that it does not happen '
         'again, or in /etc/docker/daemon.json: "exec-opts": ["native.cgroupdriver=cgroupfs"]')),
    Symptom('toolkit-missing', 23, 'Docker cannot hand over the GPU', (
        r'could not select device driver "(nvidia)?" with capabilities',
        r'could not select device driver .*gpu',
        r'unknown or invalid runtime name: "?nvidia', r'unknown runtime specified nvidia',
        r'failed to discover gpu vendor from cdi', r'unresolvable cdi devices nvidia',
        r'nvidia-container-runtime(-hook)?"?: executable file not found'),
        'The NVIDIA Container Toolkit is not installed, or Docker was not told of it (not restarted since; '
        'a Docker from snap, rootless or Docker Desktop reads other settings).',
        ('scripts/setup_ubuntu.sh toolkit    # or by hand, once its package repository is there:',
         'sudo apt-get install -y nvidia-container-toolkit',
         'sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker',
         'make up DEVICE=cpu                 # the way on without the GPU')),
    Symptom('cuda-too-new', 24, "the driver is older than the image's CUDA", (
        r'unsatisfied condition: cuda\s*>=\s*(?P<cuda>[\d.]+)',
        r'nvidia driver on your system is too old \(found version (?P<driver>\d+)\)',
        r'cuda driver version is insufficient for cuda runtime version'),
        'CUDA {cuda} asks for a newer driver than {driver}. CUDA 13.0 needs driver 580, CUDA 12.6 needs '
        '525.60.13.',
        ('make doctor                                  # names the base image that fits this driver',
         'in .env: BASE_IMAGE=pytorch/pytorch:2.14.0-cuda12.6-cudnn9-devel   # then: make rebuild',
         'scripts/setup_ubuntu.sh driver && sudo reboot   # or the newer driver')),
    Symptom('gpu-architecture', 25, 'this PyTorch has no code for this GPU', (
        r'no kernel image is available',
        r'cuda capability (?P<arch>sm_\d+) is not compatible with the current pytorch',
        r'supports gpus with compute capability'),
        "The GPU's architecture ({arch}) is not among those this PyTorch was compiled for: Pascal and "
        'Volta (6.x, 7.0) are in the CUDA 12.6 builds alone, Blackwell (10.x, 12.x) in those for CUDA '
        '13.0; or mmcv-full was compiled for another card.',
        ("python -c 'import torch; print(torch.cuda.get_arch_list(), torch.cuda.get_device_capability())'",
         'make doctor                                  # names the base image for this card',
         'in .env: TORCH_CUDA_ARCH_LIST of this card, then: make rebuild   # if it was mmcv')),
    Symptom('driver-libraries', 26, "the driver's libraries are not found", (
        r'load library failed: libnvidia-ml\.so', r'libnvidia-ml\.so\.1: (cannot open|file exists)',
        r'libcuda\.so\.1: cannot open shared object',
        r'nvidia-container-cli: (ldcache|initialization) error'),
        "The NVIDIA Container Toolkit runs, but does not find the driver's user-space libraries on the "
        'host: no driver (compute) package, a Docker from snap or Docker Desktop that cannot see them, or '
        'an image that carries its own.',
        ('nvidia-smi                          # on the host; if it fails too, that is the fault',
         'sudo ldconfig && sudo systemctl restart docker',
         'docker info --format "{{{{.DockerRootDir}}}}"   # /var/snap/... : sudo snap remove docker, then '
         'setup_ubuntu.sh docker')),
    Symptom('shm', 30, 'shared memory is full', (
        r'bus error', r'unable to (open|allocate|write).*shared memory', r'shared memory limit',
        r'no space left on device.*(/dev/shm|torch_shm)',
        r'(/dev/shm|torch_\d+_\d+).*no space left on device'),
        'Worker processes hand batches over in /dev/shm ({shm}). It must hold workers x 2 + 3 batches, which '
        'the loader allocates before the first: with 4 workers and 256 images of 224x224 that is 404 MiB on '
        'the way to a GPU (uint8), 1.6 GiB as float32.',
        ('in .env: SHM_SIZE=8gb, then: make up      # the container is made anew',
         'data.workers_per_gpu=0                     # or fewer: --cfg-options on the command line',
         'sudo mount -o remount,size=8G /dev/shm     # without a container')),
    Symptom('port-taken', 31, 'the port is taken', (
        r'bind for \S*?:(?P<port>\d+) failed: port is already allocated', r'port is already allocated',
        r'listen tcp\d? \S*?:(?P<port>\d+): bind: address already in use',
        r'failed to bind host port (for )?\S*?:(?P<port>\d+)\S*: address already in use',
        r'ports are not available.*:(?P<port>\d+)', r'the port (?P<port>\d+) is already in use',
        r'address already in use'),
        'Another program listens on port {port} of this machine.',
        ("sudo ss -ltnp 'sport = :{port}'          # who",
         "docker ps --filter publish={port}         # or which container",
         'make up JUPYTER_PORT={other_port}               # or another port')),
    Symptom('other-jupyter', 32, 'another Jupyter answers, or the token is not its own', (
        r'invalid credentials', r'403 : forbidden', r"'_xsrf' argument missing",
        r'token authentication is enabled', r'refuses our token'),
        'The server on port {port} is not this lab, or was started with another token: an older container, '
        'or a Jupyter of your own.',
        ("docker ps --filter publish={port}; sudo ss -ltnp 'sport = :{port}'   # who answers",
         'make url                                # the address with the token of this lab',
         'make down && make up JUPYTER_PORT={other_port}  # beside the other one')),
    Symptom('rlimit', 33, 'this host does not let a limit be raised', (
        r'rlimits?(\D*type (?P<limit>\d+))?.*operation not permitted',
        r'RLIMIT_(?P<limit>\w+).*operation not permitted'),
        'The daemon runs without CAP_SYS_RESOURCE (inside another container: LXC, Proxmox, some clouds), '
        'so the limit ({limit}; type 8 is memlock, 7 nofile, 3 stack) cannot be raised.',
        ('in docker-compose.yml, under x-gpu: drop the line that begins with `ulimits:` (it is for RDMA alone)',
         'make up DEVICE=cpu                      # its service has no such line')),
    Symptom('token-missing', 38, 'the token of the lab is not there yet', (
        r'(bind source path does not exist|no such file or directory).*\.lab/token',
        r'\.lab/token\b.*(does not exist|no such file or directory|not found)'),
        'Compose was called by itself before `make up` had made the token that the lab asks visitors for.',
        ('make up                                 # makes token, .env and folders, and starts the lab',)),
    Symptom('dataset-empty', 34, 'the data folder is empty', (
        r"(no such file or directory|not found|is empty|found no).*['\"]?/dataset",
        r"/dataset\S*.*(no such file or directory|not found|is empty|does not exist)",
        r'bind source path does not exist: (?P<path>\S+)', r'found no (valid file|classes|class folders)'),
        'What is mounted at /dataset is empty: the data disk is not mounted on the host (then the folder '
        'below it, on the root disk, is shown), or DATASET_DIR names another folder.',
        ('findmnt -T {path}                       # which disk the folder is on; "/" means: not on the data '
         'disk',
         'sudo mount -a                           # mounts what /etc/fstab lists; a new disk: '
         'scripts/setup_ubuntu.sh disk',
         'make up                                 # a container sees a disk mounted later only when made '
         'anew')),
    Symptom('inodes', 35, 'no inodes left', (r'no inodes? (left|free)', r'free inodes?: 0'),
        'The file system at {path} has room but no inodes: too many small files.',
        ('df -i {path}', 'sudo du --inodes -xd1 {path} | sort -n | tail',
            'docker system prune   # asks first')),
    Symptom('disk-full', 36, 'the disk is full', (
        r'no space left on device', r'disk quota exceeded', r'\bENOSPC\b',
        r"you don't have enough free space"),
        'The file system at {path} is full, or out of inodes (df -i), though another disk may have room; '
        "Docker's images lie in {root}.",
        ('df -h {path} {root}; df -i {path} {root}',
         'docker system df; docker builder prune   # asks first; images and volumes stay',
         '"data-root": "/DISK/docker" in /etc/docker/daemon.json, then: sudo systemctl restart docker   # '
         'moves it')),
    Symptom('mount-permission', 37, 'a mounted folder belongs to someone else', (
        r"permissionerror: \[errno 13\] permission denied: '(?P<path>[^']+)'",
        r"cannot (create|open|touch|remove|access)\b.*['‘](?P<path>/[^'’]+)['’].*permission denied",
        r'\b(?P<path>/(workspace|home|dataset|work_dirs)\S*?)[\'":]* permission denied', r'EACCES: permission denied',
        r'cannot (read|make the home folder) (?P<path>/\S+?):'),
        'The owner of {path} is not the user inside: made by root (by Docker, because it was missing when '
        'the container started, or by a call with sudo). /dataset is read-only on purpose.',
        ('ls -ldn {path}; id -u                   # owner against you',
         'sudo chown -R "{uid}:{gid}" {path}',
         'make up                                 # makes the folders it mounts before Docker can')),
    Symptom('settings', 40, 'docker-compose.yml and .env do not fit together', (
        r'required variable \S+ is missing a value', r'error while interpolating',
        r'variable is not set\. defaulting',
        r'invalid interpolation format', r'failed to read .*\.env', r'the lab does not run as root'),
        'Compose cannot make sense of the settings.',
        ('make doctor FIX=1                       # adds keys that are missing in .env; yours stay',
         'docker compose config --quiet           # names the line')),
    Symptom('token-empty', 41, 'the token is empty', (r'token is empty', r'which would let anyone in'),
        'The file with the token exists but is empty, which would let anyone in.',
        ('rm {path} && make up                    # a new one is made',)),
    Symptom('python-missing', 42, 'no suitable Python', (
        r'no python 3\.11, 3\.12 or 3\.13 found', r'requires a different python', r'its venv module is not'),
        'The local lane needs Python 3.11 to 3.13 with its venv module.',
        ('scripts/find_python.sh                  # says which command brings one on this system',)),
    Symptom('no-gpu', 43, 'there is no NVIDIA GPU here', (r'no devices were found', r'no nvidia gpu'),
        'No NVIDIA GPU is on the PCI bus (switched off in the firmware, not handed to this virtual '
        'machine, a loose card), or it fell off the bus.',
        ('lspci -nn -d 10de:                      # what the kernel sees',
            'sudo dmesg | grep -i -e nvrm -e xid | tail',
         'make up DEVICE=cpu')),
    Symptom('torch-cpu', 44, 'this PyTorch is built without CUDA', (r'torch not compiled with cuda enabled',),
        'The installed PyTorch is a CPU build.',
        ('rm .venv/.installed && make venv        # brings the build with CUDA',)),
    Symptom('crop-decoding', 46, 'JPEGs are decoded whole before they are cropped', (
        r'decoded whole before they are cropped', r'crop decoding (is|stays) off'),
        'Nothing is wrong but the speed of training: the decoder that reads only the box of a random crop is not '
        'compiled for this environment, or for an older source.',
        ('sudo apt-get install -y gcc libc6-dev libjpeg-dev',
         '.venv/bin/python -m workspace_lib.tools.jpeg_crop   # a second; of a container: make build')),
    Symptom('no-compiler', 47, 'torch.compile finds no compiler', (
        r'no working c\+\+ compiler found', r'failed to find c(\+\+)? compiler', r'InvalidCxxCompiler',
        r'Compiler: \S+ is not found\.'),
        'torch.compile writes C++ for the CPU, and Triton C for the GPU, that a compiler on this machine has to turn '
        'into code: none is installed, or CC or CXX names one that is not there. The training runs all the same, '
        'uncompiled.',
        ('sudo apt-get install -y g++                 # brings gcc too; or build-essential, which has both',
         'echo "CC=$CC CXX=$CXX"                      # empty: gcc and g++ are taken',
         'docker exec -u root {name} sh -c "apt-get update && apt-get install -y g++"   # in a container, until it is '
         'made anew')),
)
BY_KEY = {symptom.key: symptom for symptom in SYMPTOMS}


@dataclass(frozen=True)
class Recognised:
    """A row that fits, the line it was seen in, and what the line itself says (a port, a path)."""
    symptom: Symptom
    line: str
    values: dict[str, str]


def recognise(text: str) -> list[Recognised]:
    """The rows that fit a text, in the order they are met; the first is nearest to the cause. Empty if none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = _rows(lines) or _rows([' '.join(lines)])  # as one line: a terminal may have wrapped the message
    return list(found.values())


def _rows(lines: list[str]) -> dict[str, Recognised]:
    found: dict[str, Recognised] = {}
    for line in lines:
        symptom, match = next(((s, m) for s in SYMPTOMS if (m := s.match(line))), (None, None))
        if symptom and match:
            values = {k: v for k, v in match.groupdict().items() if v}
            found.setdefault(symptom.key, Recognised(symptom, line, values))
    return found
