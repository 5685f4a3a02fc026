"""What ``make`` calls: one front door for the three lanes, ``python3 -m workspace_lib.tools.front up``.

In: an action, DEVICE, ENGINE. Out: the same action in the GPU container, the CPU container or ``.venv``. Runs on the
host's own Python (3.9 or newer) with the standard library alone: a container lane needs no ``.venv``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from . import jobs
from .containers import Stack, host_report
from .doctor.facts import Facts
from .doctor.host import Host
from .lab import CHECKOUT, Lab, LabError
from .lanes import LaneError, choose_lane
from .processes import tail, write_private


class Front:
    """Every method is one target of the Makefile; it returns the exit status."""

    def __init__(self, root: Path, device: str, engine: str, host: Host | None = None) -> None:
        self.root, self.device, self.engine = root.resolve(), device, engine
        self.host = host or Host()
        self.python = self.root / '.venv' / 'bin' / 'python'

    # --- up and down --------------------------------------------------------------------------------

    def up(self) -> int:
        lane = choose_lane(
            Facts(self.host, str(self.root)),
            self.device,
            self.engine,
            lambda device: Stack(self.root, device, self.host).no_image(),
        )
        if lane.engine == 'local':
            return self._local_up(lane.device, lane.why)
        stack = Stack(self.root, lane.device, self.host)
        kind = 'GPU container' if lane.device == 'gpu' else 'CPU container'
        print(f'Lane: {kind} ({lane.why})', flush=True)
        self._refuse_second(lane.device)
        stack.prepare()
        stack.ensure_image()
        print(f'JupyterLab is ready:\n\n    {stack.up()}\n\nStop it with: make down')
        return 0

    def _local_up(self, device: str, why: str) -> int:
        engine, running = self.noted()
        if engine == 'docker' and Stack(self.root, running).state() == 'running':
            raise LaneError('the lab runs in a container; stop that first: make down')
        self._venv()
        return self._lab('up', '--device', device, '--why', why)

    def _refuse_second(self, device: str) -> None:
        if Lab(self.root).running():
            raise LaneError('the lab runs in .venv already; stop that first: make down')
        engine, running = self.noted()
        if engine == 'docker' and running != device and Stack(self.root, running).state() == 'running':
            raise LaneError(f'the lab already runs in the {running} container; stop that first: make down')

    def down(self) -> int:
        stopped = False
        engine, device = self.noted()
        if engine == 'docker' or self._leftovers():
            device = device if engine == 'docker' else 'cpu'
            Stack(self.root, device).down()
            stopped = True
            print('Stopped and removed; volumes, images and all data stay.')
        if self.python.exists():
            return self._lab('down') if not stopped or Lab(self.root).running() else 0
        if not stopped:
            print('Nothing is installed here, so nothing runs.')
        return 0

    def _leftovers(self) -> bool:
        """Containers of this checkout without a lab: TensorBoard, or a lab whose note is gone."""
        if not (self.root / '.env').exists() or not self.host.which('docker'):
            return False
        label = f'label=com.docker.compose.project.working_dir={self.root}'
        said = self.host.run('docker', 'ps', '--all', '--quiet', '--filter', label)
        return said.ok and bool(said.text)

    def restart(self) -> int:
        engine, device = self.lane()
        self.down()
        self.engine, self.device = engine, device if engine == 'docker' else self.device
        return self.up()

    def status(self) -> int:
        engine, device = self.lane()
        alive = None
        if engine == 'docker':
            stack = Stack(self.root, device)
            print(stack.status())
            if stack.state() == 'running':
                said = subprocess.run(
                    stack.exec_words('python', '-m', 'workspace_lib.tools.jobs', 'alive'),
                    text=True,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                )
                alive = json.loads(said.stdout) if said.returncode == 0 else {}
        elif self.python.exists():
            self._lab('status')
        else:
            print('Not installed yet. Begin with: make up')
        if found := jobs.told(jobs.states(self.root, alive), self.root):
            print(found)
        return 0

    def url(self) -> int:
        engine, device = self.lane()
        if engine == 'docker':
            print(Stack(self.root, device).url())
            return 0
        return self._lab('url') if self.python.exists() else _say('Not installed yet. Begin with: make up', 1)

    def logs(self, job: str, follow: bool) -> int:
        if job:
            file = jobs.log_of(job, self.root)
            if file is None:
                known = ', '.join(record['name'] for record in jobs.records(self.root)) or 'none yet'
                raise LaneError(f'there is no job {job}. Known: {known}')
            return _become(['tail', '-n', '100', '-F', str(file)]) if follow else _say(tail(file, 100), 0)
        engine, device = self.lane()
        if engine == 'docker':
            return _become(
                ['docker', 'logs', '--tail', '100', *(['--follow'] if follow else []), Stack(self.root, device).name]
            )
        if not self.python.exists():
            return _say('Not installed yet. Begin with: make up', 0)
        return self._lab('logs', *(['--follow'] if follow else []))

    # --- commands in the lane -------------------------------------------------------------------------

    def run(self, command: list[str]) -> int:
        """In the container where the lab is one, else in ``.venv``; the terminal is the command's."""
        return _become(self.words(command), self.environment())

    def words(self, command: list[str], detach: bool = False) -> list[str]:
        engine, device = self.lane()
        if engine == 'docker':
            stack = Stack(self.root, device)
            if stack.state() != 'running':
                raise LaneError(
                    'the container of the lab is not running. Start it: make up; or work in .venv: ENGINE=local'
                )
            return stack.exec_words(*command, detach=detach)
        self._venv()
        return command

    def environment(self) -> dict[str, str]:
        """That of an activated ``.venv``; for docker it does no harm."""
        path = os.pathsep.join([str(self.python.parent), os.environ.get('PATH', os.defpath)])
        drop = ('PYTHONPATH', 'PYTHONHOME')
        return {
            **{k: v for k, v in os.environ.items() if k not in drop},
            'PATH': path,
            'VIRTUAL_ENV': str(self.python.parents[1]),
        }

    def train(self, config: str, args: str, detach: bool) -> int:
        if not config:
            raise LaneError('which config? make train CONFIG=lenet/lenet5_mnist5k.py [ARGS="--work-dir x"] [DETACH=1]')
        name = jobs.new_name(config)
        job = [
            'python',
            '-m',
            'workspace_lib.tools.jobs',
            'run',
            *([] if detach else ['--terminal']),
            name,
            '--',
            'workspace',
            'train',
            config,
            *shlex.split(args),
        ]
        if not detach:
            return self.run(job)
        words = self.words(job, detach=True)
        subprocess.Popen(
            words,
            cwd=self.root,
            env=self.environment(),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 20
        while not (jobs.folder_of(name, self.root) / 'job.json').exists():
            if time.monotonic() > end:
                raise LaneError(f'the job {name} did not start: {shlex.join(words)}')
            time.sleep(0.1)
        print(
            f'Job {name} runs; the browser and this terminal may be closed.\n'
            f'  make logs JOB={name} FOLLOW=1\n  make status'
        )
        return 0

    def gpu_check(self) -> int:
        wanted = self.device if self.device != 'auto' else self.lane()[1]
        return self.run(['python', '-m', 'workspace_lib.tools.gpu_check', '--wanted', wanted])

    def report(self) -> int:
        """``work_dirs/report.json``: what the host knows and what the lane knows."""
        engine, device = self.lane()
        said = subprocess.run(
            self.words(['python', '-m', 'workspace_lib.tools.inventory']),
            cwd=self.root,
            text=True,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        if said.returncode:
            raise LaneError('the report of the lane failed; the reason is above')
        stack = Stack(self.root, device) if engine == 'docker' else None
        report = {'lane': 'local', **host_report(self.root, self.host, stack), 'inside': json.loads(said.stdout)}
        file = self.root / 'work_dirs' / 'report.json'
        file.parent.mkdir(exist_ok=True)
        write_private(file, json.dumps(report, indent=2) + '\n')
        print(json.dumps({k: v for k, v in report['inside'].items() if k != 'packages'}, indent=2))
        return _say(f'Written to {file.relative_to(self.root)}, with every package.', 0)

    def build(self, fresh: bool = False) -> int:
        stack = self._stack_to_build()
        stack.prepare()
        stack.build(fresh)
        return 0

    def wheels(self) -> int:
        stack = self._stack_to_build()
        stack.prepare()
        stack.wheelhouse()
        return 0

    def compose(self, words: list[str]) -> int:
        """A service of docker-compose.yml beside the lab: tensorboard, prepare."""
        stack = Stack(self.root, self.lane()[1] if self.lane()[0] == 'docker' else 'cpu')
        stack.prepare()
        return _become(stack.compose(*words), stack.environment())

    def _stack_to_build(self) -> Stack:
        lane = choose_lane(Facts(self.host, str(self.root)), self.device, 'docker')
        return Stack(self.root, lane.device, self.host)

    # --- which lane it is, once it is up -----------------------------------------------------------------

    def lane(self) -> tuple[str, str]:
        """(docker, gpu or cpu) as the last ``make up`` noted it, else (local, auto). ENGINE=local has its way."""
        engine, device = self.noted()
        if self.engine == 'local' or (engine == 'local' and self.engine == 'auto'):
            return 'local', 'auto'
        if engine == 'local':
            raise LaneError('ENGINE=docker: no container of this checkout is up. Start it: make up ENGINE=docker')
        return engine, device

    def noted(self) -> tuple[str, str]:
        try:
            note = json.loads((self.root / '.lab' / 'lane.json').read_text())
            return note['engine'], note['device']
        except (OSError, ValueError, KeyError):
            return 'local', 'auto'

    def _venv(self) -> None:
        if subprocess.run([str(self.root / 'scripts' / 'make_venv.sh')]).returncode:
            raise LaneError('the local environment could not be made; the reason is above')

    def _lab(self, *words: str) -> int:
        return subprocess.run(
            [str(self.python), '-m', 'workspace_lib.tools.lab', *words], cwd=self.root, env=self.environment()
        ).returncode


def _become(words: list[str], env: dict[str, str] | None = None) -> int:
    """Replace this process, so that signals and the terminal are the command's own."""
    sys.stdout.flush()
    environment = env or dict(os.environ)
    try:
        os.execvpe(words[0], words, environment)
    except FileNotFoundError:
        raise LaneError(f'{words[0]}: command not found') from None


def _say(text: str, status: int) -> int:
    print(text)
    return status


ACTIONS = (
    'up',
    'down',
    'restart',
    'status',
    'url',
    'logs',
    'run',
    'train',
    'gpu-check',
    'report',
    'build',
    'rebuild',
    'wheels',
    'compose',
)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done; 1 failed, the reason on stderr; else that of the command."""
    parser = argparse.ArgumentParser(prog='make', description='The lab, in whichever lane it runs.')
    parser.add_argument('action', choices=ACTIONS)
    parser.add_argument('--root', type=Path, default=CHECKOUT)
    parser.add_argument('--device', choices=['auto', 'cpu', 'gpu'], default='auto')
    parser.add_argument('--engine', choices=['auto', 'local', 'docker'], default='auto')
    parser.add_argument('--follow', action='store_true')
    parser.add_argument('--detach', action='store_true')
    parser.add_argument('--job', default='')
    parser.add_argument('--config', default='')
    parser.add_argument('--args', default='')
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index('--') if '--' in words else len(words)  # what follows is the command's own
    args = parser.parse_args(words[:cut])
    args.command = words[cut + 1 :]
    try:
        return act(Front(args.root, args.device, args.engine), args)
    except (LaneError, LabError) as error:
        print(f'make {args.action}: {error}', file=sys.stderr)
    except PermissionError as error:
        print(
            f'make {args.action}: {error}. It belongs to another user (was make called with sudo?): '
            f'sudo chown -R "$(id -un)" "{args.root / ".lab"}"',
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return 130
    return 1


def act(front: Front, args: argparse.Namespace) -> int:
    if args.action == 'logs':
        return front.logs(args.job, args.follow)
    if args.action in ('run', 'compose'):
        return getattr(front, args.action)(args.command)
    if args.action == 'train':
        return front.train(args.config, args.args, args.detach)
    if args.action == 'rebuild':
        return front.build(fresh=True)
    return getattr(front, args.action.replace('-', '_'))()


if __name__ == '__main__':
    sys.exit(main())
