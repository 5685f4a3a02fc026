"""The container lanes: settings, folders and token before Docker needs them, the image, the container, commands in it.

In: the checkout, a `Host`. Out: a healthy container; ``docker`` is called with lists of words, never through a shell.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from . import dotenv, jobs
from .doctor.base_image import arch_list, choose_base_image
from .doctor.facts import Facts, version_number
from .doctor.host import Host
from .lab import Lab, find_port, get
from .lanes import LaneError, mend
from .processes import run_within, write_private

CPU_BASE = 'python:3.12-slim-bookworm'
GPU_BASE = 'pytorch/pytorch:2.14.0-cuda13.0-cudnn9-devel'
# Whatever the image is made of; a change means that `make rebuild` brings something new.
INPUTS = (
    'docker/Dockerfile',
    'docker/entrypoint.sh',
    'docker/healthcheck.py',
    'docker/jupyter/**/*',
    'docker/steps/*',
    'docker/requirements/*',
    'requirements/constraints.txt',
    'pyproject.toml',
    'workspace_lib/jpeg_crop.c',
    'workspace_lib/jpeg_crop.py',
    'workspace_lib/tools/jpeg_crop.py',
)
PROFILES = ('cpu', 'tensorboard', 'prepare', 'train')
START_SECONDS = 180
ALIVE = ('running', 'paused')  # states of a container in which jobs may be
ANSWER_SECONDS = 30  # for what a healthy container says at once
PORT_COMMENT = (
    'Port of JupyterLab on this machine, on 127.0.0.1 alone. The first make up kept the one that it was given or found '
    'free, so that the URL stays; to change it for good, change it here.'
)


class Stack:
    """The Compose project of one checkout.

    Args:
        root: the checkout; its ``.env`` and ``.lab/`` are what is written on the host.
        device: gpu or cpu: which service is meant.
    """

    def __init__(self, root: Path, device: str, host: Host | None = None) -> None:
        self.root = root.resolve()
        self.device = device
        self.host = host or Host()
        self.lab = Lab(self.root)
        self.service = 'lab' if device == 'gpu' else 'lab-cpu'

    # --- settings, folders, token -----------------------------------------------------------------

    @property
    def settings(self) -> dict[str, str]:
        """``.env``, with the caller's environment over it, as Compose has it."""
        written = dotenv.read(self.root / '.env')
        return {
            **written,
            **{key: os.environ[key] for key in (*written, 'LAB_NAME', 'JUPYTER_PORT') if key in os.environ},
        }

    @property
    def name(self) -> str:
        return self.settings.get('LAB_NAME') or 'workspace-lab'

    @property
    def image(self) -> str:
        return f'{self.name}:{self.device}'

    def prepare(self) -> None:
        """Write ``.env``, make the mounted folders and the token, all of it the person's own."""
        uid, gid, why = person(self.host, self.root)
        if why:
            print(why, flush=True)
        file = self.root / '.env'
        added = dotenv.add_missing(file, self.wanted_settings(uid, gid))
        if added:
            print(f'.env: wrote {", ".join(added)}', flush=True)
        dataset = Path(os.path.expanduser(self.settings.get('DATASET_DIR') or './datasets'))
        for folder in (self.lab.folder, self.root / 'work_dirs', self.root / 'third_party', self.root / dataset):
            own_folder(folder, uid, gid, inside=self.root)
        self.lab.folder.chmod(0o700)
        self.lab.token(create=True)
        for path in (file, self.lab.token_file):
            give(path, uid, gid)

    def wanted_settings(self, uid: int, gid: int) -> list[dotenv.Setting]:
        written = dotenv.read(self.root / '.env')
        port = '' if 'JUPYTER_PORT' in written else str(find_port())
        wanted = [
            ('LAB_NAME', 'workspace-lab', 'Name of the container, the images and the Compose project.'),
            ('LAB_UID', str(uid), 'Who the lab runs as, and whom its files belong to: you (id -u, id -g).'),
            ('LAB_GID', str(gid), 'The group of the same.'),
            ('JUPYTER_PORT', port, PORT_COMMENT),
            ('SHM_SIZE', '8gb', 'Shared memory, through which worker processes hand over batches; an upper limit.'),
            ('DATASET_DIR', './datasets', 'Folder of the data sets: /dataset in the lab, read-only.'),
            ('MMCV_OPS', '1', "1: mmcv-full, its ops compiled for the image's torch. 0: mmcv without ops, in seconds."),
            ('CPU_BASE_IMAGE', CPU_BASE, 'Base image of the CPU lane.'),
        ]
        if self.device == 'gpu':
            wanted += self._for_this_gpu()
        return [dotenv.Setting(*setting) for setting in wanted]

    def _for_this_gpu(self) -> list[tuple[str, str, str]]:
        driver = Facts(self.host, str(self.root)).driver
        choice = choose_base_image(driver)
        found = [
            ('BASE_IMAGE', choice.image or '', f'Base image of the GPU lane: {choice.reason}.'),
            ('TORCH_CUDA_ARCH_LIST', arch_list(driver.gpus), 'Compute capability that the ops are compiled for.'),
        ]
        # An empty line, or a guess, would stay in .env and hide what a later look at the GPU finds.
        return [setting for setting in found if setting[1]]

    # --- calls --------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Names: the container is LAB_NAME in either lane. Nothing that would send us elsewhere."""
        suffix = {'gpu': ('', '-cpu'), 'cpu': ('-gpu', '')}[self.device]
        env = {
            k: v for k, v in os.environ.items() if k not in ('COMPOSE_FILE', 'COMPOSE_PROJECT_NAME', 'COMPOSE_PROFILES')
        }
        return {
            **env,
            'LAB_GPU_SUFFIX': suffix[0],
            'LAB_CPU_SUFFIX': suffix[1],
            'LAB_TARGET': self.device,
            'DOCKER_BUILDKIT': '1',
        }

    def compose(self, *words: str) -> list[str]:
        profiles = [word for name in PROFILES for word in ('--profile', name)]
        return [
            'docker',
            'compose',
            '--project-directory',
            str(self.root),
            '--file',
            str(self.root / 'docker-compose.yml'),
            *profiles,
            *words,
        ]

    def call(self, words: list[str], what: str, seconds: float | None = None) -> str:
        """Run; return what it printed. Its error, explained, goes into a LaneError, and so does a limit passed."""
        try:
            done = run_within(
                words, seconds, env=self.environment(), cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except subprocess.TimeoutExpired:
            raise LaneError(f'{what}: not done after {seconds:g} s\n') from None
        if done.returncode:
            said = (done.stderr or done.stdout or '').strip()
            raise LaneError(
                f'{what} failed (status {done.returncode}): {" ".join(words[:4])} ...\n{said}\n{mend(said)}'
            )
        return done.stdout.strip()

    def inspect(self, template: str, what: str | None = None) -> str:
        """A field of the container (or of `what`); '' when there is none."""
        done = subprocess.run(
            ['docker', 'inspect', '--format', template, what or self.name],
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.environment(),
        )
        return done.stdout.strip() if done.returncode == 0 else ''

    def state(self) -> str:
        """running, exited, restarting ... of this checkout's container; '' when there is none."""
        said = self.inspect('{{.State.Status}} {{index .Config.Labels "com.docker.compose.project.working_dir"}}')
        status, _, folder = said.partition(' ')
        if folder and folder != '<no value>' and Path(folder) != self.root:
            raise LaneError(
                f'the container {self.name} belongs to another checkout, {folder}. Stop it there (make down), or '
                'give this one a name of its own: LAB_NAME in .env'
            )
        return status

    # --- the image ------------------------------------------------------------------------------------

    def base_image(self) -> str:
        key, default = ('BASE_IMAGE', GPU_BASE) if self.device == 'gpu' else ('CPU_BASE_IMAGE', CPU_BASE)
        return os.environ.get(key) or self.settings.get(key) or default

    def no_image(self) -> str:
        """Why there is no image and none can be built; '' when there is one, or its base can be had."""
        if self.inspect('{{.Id}}', self.image) or self.inspect('{{.Id}}', self.base_image()):
            return ''
        base = self.base_image()
        print(f'Fetching the base image {base} ...', flush=True)
        done = subprocess.run(
            ['docker', 'pull', '--quiet', base], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return (
            '' if done.returncode == 0 else f'{base}: {(done.stderr.strip().splitlines() or ["no reason given"])[-1]}'
        )

    def ensure_image(self) -> None:
        label = self.inspect('{{index .Config.Labels "workspace.inputs"}}', self.image)
        if not self.inspect('{{.Id}}', self.image):
            self.build()
        elif label != self.fingerprint():
            print(
                f'{self.image} was built from other versions of docker/ or of the lock; make rebuild renews it.',
                flush=True,
            )

    def require_architecture(self) -> None:
        """Of the GPU that the ops are for: the build would find it out late, and this host may have none to ask."""
        settings = {**self.settings, **os.environ}
        ops = (settings.get('MMCV_OPS') or '1') == '1'
        if self.device == 'gpu' and ops and not settings.get('TORCH_CUDA_ARCH_LIST'):
            raise LaneError(
                "for which GPU are mmcv's ops to be compiled? TORCH_CUDA_ARCH_LIST=9.0, say; on the GPU's host "
                'nvidia-smi --query-gpu=compute_cap --format=csv tells. Without the ops: MMCV_OPS=0'
            )

    def build(self, fresh: bool = False) -> None:
        """Build; the wheel of mmcv comes out first, to be there next time, whatever becomes of Docker's cache."""
        self.require_architecture()
        self.bring_kept_wheels()
        try:
            self._docker_build('mmcv-wheel', '--output', f'type=local,dest={self.root / "docker" / "mmcv"}')
            self.keep_wheels()
            labels = ['--label', f'workspace.inputs={self.fingerprint()}', '--tag', self.image]
            self._docker_build(self.device, *labels, *(['--no-cache'] if fresh else []))
        finally:
            uid, gid, _ = person(self.host, self.root)
            for path in (self.root / 'docker' / 'mmcv').rglob('*'):
                give(path, uid, gid)

    def wheelhouse(self) -> None:
        self._docker_build('wheelhouse', '--output', f'type=local,dest={self.root / "docker" / "wheels"}')

    def _check_builder(self) -> None:
        """From 23 on the client builds through a plugin, which Ubuntu's docker.io does not bring."""
        client = self.host.run('docker', 'version', '--format', '{{.Client.Version}}')
        if version_number(client.text) >= (23,) and not self.host.run('docker', 'buildx', 'version').ok:
            raise LaneError(
                f'Docker {client.text} builds images with its plugin buildx, which is not here: sudo apt-get install '
                '-y docker-buildx-plugin (docker-buildx beside docker.io)'
            )

    def _docker_build(self, target: str, *words: str) -> None:
        self._check_builder()
        settings = {**self.settings, **os.environ}
        args = {
            'BASE_IMAGE': self.base_image(),
            'MMCV_OPS': settings.get('MMCV_OPS') or '1',
            'TORCH_CUDA_ARCH_LIST': settings.get('TORCH_CUDA_ARCH_LIST', '') if self.device == 'gpu' else '',
            **{
                key: settings[key]
                for key in ('OFFLINE', 'APT_PACKAGES', 'MAX_JOBS', 'TORCH_INDEX')
                if settings.get(key)
            },
        }
        command = ['docker', 'build', '--file', 'docker/Dockerfile', '--target', target, *words]
        for key, value in args.items():
            command += ['--build-arg', f'{key}={value}']
        if settings.get('OFFLINE'):  # what would reach out is found out here, not where there is no network
            command += ['--network', 'none']
        if settings.get('CA_CERT'):
            command += ['--secret', f'id=ca,src={os.path.abspath(settings["CA_CERT"])}']
        if not sys.stderr.isatty():
            command += ['--progress', 'plain']
        print(f'Building {target} on {args["BASE_IMAGE"]} ...', flush=True)
        done = subprocess.run([*command, '.'], env=self.environment(), cwd=self.root, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise LaneError(
                f'the image could not be built (stage {target}); the reason is above. '
                "Without mmcv's ops, which take the longest: MMCV_OPS=0 in .env"
            )

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for pattern in INPUTS:
            for file in sorted(self.root.glob(pattern)):
                if file.is_file():
                    digest.update(str(file.relative_to(self.root)).encode() + b'\0' + file.read_bytes() + b'\0')
        return digest.hexdigest()[:16]

    @property
    def store(self) -> Path:
        """Where compiled wheels outlive the checkout."""
        home = os.environ.get('WORKSPACE_CACHE') or os.path.join(
            os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'workspace-lab'
        )
        return Path(home) / 'mmcv'

    def bring_kept_wheels(self) -> None:
        copy_wheels(self.store, self.root / 'docker' / 'mmcv')

    def keep_wheels(self) -> None:
        copy_wheels(self.root / 'docker' / 'mmcv', self.store)

    # --- up and down ------------------------------------------------------------------------------------

    def up(self) -> str:
        """Start it unless it runs, wait until it is healthy to us and to nobody without the token; return the URL.

        Raises:
            LaneError: it did not start, and what this call had started is removed; or it runs, with jobs in it that a
                change of the settings or of the image would end.
        """
        before = self.inspect('{{.Id}}') if self.state() in ALIVE else ''
        shape = self.shape()
        keep = self._keep_for_jobs(shape) if before else []
        words = self.compose('up', '--detach', '--no-build', '--wait', *keep, self.service)
        try:
            self.call(words, 'starting the container', START_SECONDS)
        except LaneError as error:
            log = self.log_end()
            raise LaneError(f'{error}{log}{self._take_back(before)}') from None
        self._check_token(before)
        note = {'engine': 'docker', 'device': self.device, 'shape': shape}
        write_private(self.note_file, json.dumps(note))
        uid, gid, _ = person(self.host, self.root)
        give(self.note_file, uid, gid)
        return self.url()

    @property
    def note_file(self) -> Path:
        return self.lab.folder / 'lane.json'

    def shape(self) -> str:
        """A digest of what the container is made from, image and settings: when it changes, Compose makes a new one."""
        said = self.call(self.compose('config', '--format', 'json'), 'reading docker-compose.yml')
        service = json.loads(said)['services'][self.service]
        made_of = json.dumps([service, self.inspect('{{.Id}}', self.image)], sort_keys=True)
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def _keep_for_jobs(self, shape: str) -> list[str]:
        """Options of Compose that keep a container in which jobs run; [] when none does, or FORCE=1 gives them up."""
        names = [job['name'] for job in self.job_states() if job['state'] in ('running', 'unknown')]
        if not names or os.environ.get('FORCE'):
            return []
        try:
            known = json.loads(self.note_file.read_text())['shape']
        except (OSError, ValueError, KeyError):
            known = shape
        if known != shape:
            raise LaneError(
                f'the image or a setting has changed: a new container would end what runs in this one: '
                f'{", ".join(names)}. Wait for that (make status), or give it up: make up FORCE=1, or make down'
            )
        return ['--no-recreate']

    def _take_back(self, before: str) -> str:
        """Remove the container that a failed start made, never one that ran before. What fails in that, or ''."""
        made = self.inspect('{{.Id}}')
        if not made or made == before:
            return ''
        try:
            self.call(self.compose('rm', '--stop', '--force', self.service), 'removing the container')
        except LaneError as error:
            return f'\nAnd then: {error}'
        self.note_file.unlink(missing_ok=True)
        return ''

    def _check_token(self, before: str) -> None:
        port = self.port()
        if get(port, '/api/status')[0] not in (403, 0):  # 0: no answer at all, as under load
            raise LaneError(
                'JupyterLab let a visitor in without the token. It is stopped, unless it ran before this call; '
                f'then stop it: make down{self._take_back(before)}'
            )
        if get(port, '/api/status', self.lab.token())[0] != 200:
            raise LaneError(
                f'what answers on port {port} refuses our token, or nobody does: another Jupyter? Choose a port: '
                'make up JUPYTER_PORT=8899'
            )

    def log_end(self) -> str:
        done = subprocess.run(
            ['docker', 'logs', '--tail', '20', self.name], text=True, stdin=subprocess.DEVNULL, capture_output=True
        )
        said = (done.stdout + done.stderr).strip() if done.returncode == 0 else ''
        return f'The end of its log:\n{said}' if said else ''

    def down(self) -> None:
        """Stop and remove the containers of this project and their network; volumes, images and data stay."""
        self.call(self.compose('down', '--timeout', '20'), 'stopping the container')
        self.note_file.unlink(missing_ok=True)

    def port(self) -> int:
        said = self.inspect('{{(index (index .NetworkSettings.Ports "8888/tcp") 0).HostPort}}')
        if not said:
            raise LaneError(f'the container {self.name} is not running; start it with: make up')
        return int(said)

    def url(self) -> str:
        path = self.lab._first_page()
        return f'http://127.0.0.1:{self.port()}/lab{path}?token={urllib.parse.quote(self.lab.token())}'

    def status(self) -> str:
        fields = '{{.State.Status}}, {{if .State.Health}}{{.State.Health.Status}}{{end}}, since {{.State.StartedAt}}'
        said = self.inspect(fields)
        where = f' at http://127.0.0.1:{self.port()}/' if said.startswith('running') else ''
        return f'Container {self.name} ({self.device}): {said or "not there"}{where}'

    # --- commands inside ----------------------------------------------------------------------------------

    def exec_words(self, *command: str, detach: bool = False, captured: bool = False) -> list[str]:
        """``docker exec``; with our terminal, unless the command is to outlive it or its words are for us."""
        terminal = sys.stdin.isatty() and sys.stdout.isatty() and not captured
        options = ['--detach'] if detach else ['--interactive', '--tty'] if terminal else []
        return ['docker', 'exec', *options, self.name, *command]

    def beside_words(self, detach: bool) -> list[str]:
        """A container beside the lab, on the host's network, for a training that meets those of other machines."""
        terminal = [] if sys.stdin.isatty() and sys.stdout.isatty() else ['--no-TTY']
        options = ['--detach'] if detach else terminal
        service = 'train' if self.device == 'gpu' else 'train-cpu'
        return self.compose('run', '--rm', '--no-deps', *options, service)

    def job_states(self) -> list[dict[str, Any]]:
        """Every job of the checkout; one in a container that runs but does not tell of it is ``unknown``."""
        if self.state() not in ALIVE:
            return jobs.states(self.root)
        words = self.exec_words('python', '-m', 'workspace_lib.tools.jobs', 'alive', captured=True)
        try:
            return jobs.states(self.root, json.loads(self.call(words, 'asking for the jobs', ANSWER_SECONDS)))
        except (LaneError, ValueError):
            return jobs.states(self.root, {}, silent='unknown')


def person(host: Host, root: Path) -> tuple[int, int, str]:
    """(uid, gid, what to say) of whom the lab runs as: the caller, through sudo too; never root."""
    sudo = host.environ.get('SUDO_UID', '')
    if os.getuid() == 0 and sudo.isdigit() and int(sudo):
        return int(sudo), int(host.environ.get('SUDO_GID') or sudo), f'Called through sudo: the lab runs as uid {sudo}.'
    if os.getuid():
        return os.getuid(), os.getgid(), ''
    owner = root.stat()
    if owner.st_uid:
        return owner.st_uid, owner.st_gid, f"Called as root: the lab runs as the checkout's owner, uid {owner.st_uid}."
    return (
        1000,
        1000,
        'Called as root in a checkout of root: the lab runs as uid 1000, and so must be able to write here.',
    )


def give(path: Path, uid: int, gid: int) -> None:
    if os.getuid() == 0 and path.exists():
        os.chown(path, uid, gid)


def own_folder(folder: Path, uid: int, gid: int, inside: Path) -> None:
    """Make it before Docker would, as root. Outside the checkout a missing folder is rather a disk not mounted."""
    if folder.is_dir():
        if folder.stat().st_uid == 0 and uid and folder.is_relative_to(inside):
            give(folder, uid, gid)
        return
    if not folder.is_relative_to(inside):
        raise LaneError(
            f'DATASET_DIR={folder} is not there. Is its disk mounted (findmnt -T {folder})? Else make the folder.'
        )
    folder.mkdir(parents=True)
    give(folder, uid, gid)


def copy_wheels(source: Path, target: Path) -> None:
    """Those with ops, folder by folder; what is there already stays."""
    for wheel in source.glob('torch*/*.whl'):
        there = target / wheel.parent.name / wheel.name
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            partial = there.with_suffix(f'.{os.getpid()}')
            shutil.copyfile(wheel, partial)
            partial.replace(there)


def host_report(root: Path, host: Host, stack: Stack | None) -> dict[str, Any]:
    """What only the host knows: its driver and kernel, Docker, the image's id, the commit."""
    facts = Facts(host, str(root))
    # The checkout may be another person's than the caller's (root's): named as safe, for this call.
    git = ['git', '-c', f'safe.directory={root}', '-C', str(root)]
    commit = host.run(*git, 'describe', '--always', '--dirty=+', '--abbrev=12')
    report: dict[str, Any] = {
        'commit': commit.text if commit.ok else None,
        'system': platform.platform(),
        'driver': facts.driver.version or None,
        'gpus': [gpu.name for gpu in facts.driver.gpus],
    }
    if stack:
        report |= {
            'docker': facts.docker.version,
            'compose': facts.compose_version.text,
            'image': stack.image,
            'image_id': stack.inspect('{{.Image}}'),
            'lane': f'{stack.device} container',
        }
    return report
