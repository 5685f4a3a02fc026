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
from pathlib import Path

from . import jobs
from .containers import Stack, give, host_report, person
from .doctor.facts import Facts
from .doctor.host import Host
from .lab import CHECKOUT, Lab, LabError
from .lanes import Lane, LaneError, choose_lane, mend
from .processes import tail, write_private


class Front:
    """Every method is one target of the Makefile; it returns the exit status."""

    def __init__(self, root: Path, device: str, engine: str, host: Host | None = None) -> None:
        self.root, self.device, self.engine = root.resolve(), device, engine
        self.host = host or Host()
        self.python = self.root / '.venv' / 'bin' / 'python'

    # --- up and down --------------------------------------------------------------------------------

    def up(self) -> int:
        lane = self.chosen()
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

    def chosen(self) -> Lane:
        """Where ``make up`` would start the lab."""
        return choose_lane(
            Facts(self.host, str(self.root)),
            self.device,
            self.engine,
            lambda device: Stack(self.root, device, self.host).no_image(),
        )

    def _local_up(self, device: str, why: str) -> int:
        engine, running = self.noted() or ('', '')
        if engine == 'docker':
            stack = Stack(self.root, running, self.host)
            if stack.state() == 'running':
                raise LaneError('the lab runs in a container; stop that first: make down')
            stack.note_file.unlink()  # of a container that ended: from here on the lab is the one in .venv
        self._venv()
        return self._lab('up', '--device', device, '--why', why)

    def _refuse_second(self, device: str) -> None:
        if Lab(self.root).running():
            raise LaneError('the lab runs in .venv already; stop that first: make down')
        engine, running = self.noted() or ('', '')
        if engine == 'docker' and running != device and Stack(self.root, running).state() == 'running':
            raise LaneError(f'the lab already runs in the {running} container; stop that first: make down')

    def down(self) -> int:
        stopped = False
        engine, device = self.noted() or ('', '')
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
        """Down, then up in the same lane, device and port, but for what is asked for; with no lab up here, just up."""
        noted, server = self.noted(), Lab(self.root).noted() or {}
        if not noted:
            return self.up()
        self.down()
        if self.engine not in ('auto', noted[0]):
            return self.up()
        device = noted[1] if self.device == 'auto' else self.device
        if noted[0] == 'local':
            os.environ.setdefault('JUPYTER_PORT', str(server['port']))
            return self._local_up(device, 'as before')
        self.engine, self.device = 'docker', device
        return self.up()

    def status(self) -> int:
        engine, device = self.lane()
        stack = Stack(self.root, device, self.host) if engine == 'docker' else None
        if stack:
            print(stack.status())
        elif self.python.exists():
            self._lab('status')
        else:
            print('Not installed yet. Begin with: make up')
        states = stack.job_states() if stack else jobs.states(self.root)
        if found := jobs.told(states, self.root):
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

    def set_up_and_run(self, command: list[str]) -> int:
        """The same; where nothing is here yet, after bringing up what ``make up`` would choose."""
        if self.engine == 'auto' and not self.noted() and not self.python.exists():
            lane = self.chosen()
            if lane.engine == 'docker':
                self.up()
            else:
                print(f'Lane: local environment ({lane.why})', file=sys.stderr, flush=True)
                self.engine = 'local'
        return self.run(command)

    def words(self, command: list[str], **how: bool) -> list[str]:
        """What runs the command in its lane; ``how`` is that of `Stack.exec_words`."""
        engine, device = self.working_lane()
        if engine == 'docker':
            stack = Stack(self.root, device, self.host)
            if stack.state() != 'running':
                raise LaneError(
                    'the container of the lab is not running. Start it: make up; or work in .venv: ENGINE=local'
                )
            return stack.exec_words(*command, **how)
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

    def train(self, config: str, args: str, detach: bool, launch: dict[str, str] | None = None) -> int:
        """``launch``: gpus, nnodes, node_rank, meet_at; what is '' is not said."""
        if not config:
            raise LaneError('which config? make train CONFIG=lenet/lenet5_mnist5k.py [ARGS="--work-dir x"] [DETACH=1]')
        try:
            options = shlex.split(args)
        except ValueError as error:
            raise LaneError(f'ARGS={args}: {error}') from None
        options = launch_options(launch or {}) + options
        stack = self._lab_of_several() if any(word.startswith('--nnodes') for word in options) else None
        # Before anything is made: there may be no lab.
        into = stack.beside_words(detach) if stack else self.words([], detach=detach)
        env = stack.environment() if stack else self.environment()
        name = jobs.claim(config, self.root)
        self._give(jobs.folder_of(name, self.root).parent, jobs.folder_of(name, self.root))
        job = [
            *into,
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
            *options,
        ]
        return self._detached(name, job, env) if detach else _become(job, env)

    def _lab_of_several(self) -> Stack | None:
        """The container whose image trains with other machines, on the host's network; None: the local lane."""
        if self.working_lane()[0] == 'local':
            return None
        self.words([])  # there has to be a lab: its job is told by it
        return Stack(self.root, self.working_lane()[1], self.host)

    def _detached(self, name: str, words: list[str], env: dict[str, str]) -> int:
        """Start the job and look at it for a moment: what ends at once is told here, not found out tomorrow."""
        file = jobs.folder_of(name, self.root) / 'log'
        with open(file, 'ab') as log:  # the job's own, so that what cannot even start it is told there too
            launcher = subprocess.Popen(
                words,
                cwd=self.root,
                env=env,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._give(file)
        record = jobs.early_end(name, self.root, lambda: bool(launcher.poll()))
        if record is None:
            print(
                f'Job {name} runs; the browser and this terminal may be closed.\n'
                f'  make logs JOB={name} FOLLOW=1\n  make status'
            )
            return 0
        if record.get('status') == 0:
            return _say(f'Job {name} is done already; see make logs JOB={name}', 0)
        how = jobs.how_it_ended(record) if record else f'did not start: {shlex.join(words)}'
        raise LaneError(f'the job {name} {how}\nThe end of its log:\n{tail(file, 20)}')

    def _give(self, *paths: Path) -> None:
        """What root made here belongs to whom the lab runs as."""
        uid, gid, _ = person(self.host, self.root)
        for path in paths:
            give(path, uid, gid)

    def gpu_check(self) -> int:
        wanted = self.device if self.device != 'auto' else self.lane()[1]
        return self.run(['python', '-m', 'workspace_lib.tools.gpu_check', '--wanted', wanted])

    def report(self) -> int:
        """``work_dirs/report.json``: what the host knows and what the lane knows."""
        engine, device = self.lane()
        said = subprocess.run(
            self.words(['python', '-m', 'workspace_lib.tools.inventory'], captured=True),
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
        """Docker Compose on the file of the lab, in a container lane."""
        stack = self._stack_beside()
        if not stack:
            raise LaneError('the lab of this checkout is not in a container; with Docker: make up')
        return _become(stack.compose(*words), stack.environment())

    def tensorboard(self) -> int:
        port = os.environ.get('TENSORBOARD_PORT') or '6006'
        stack = self._stack_beside()
        if not stack:
            program = str(self.python.with_name('tensorboard'))
            return _become(
                [program, '--logdir', str(self.root / 'work_dirs'), '--host', '127.0.0.1', '--port', port],
                self.environment(),
            )
        stack.call(stack.compose('up', '--detach', '--no-build', 'tensorboard'), 'starting TensorBoard')
        port = os.environ.get('TENSORBOARD_PORT') or stack.settings.get('TENSORBOARD_PORT') or port
        return _say(f'TensorBoard: http://127.0.0.1:{port}/   It stops with: make down', 0)

    def prepare(self) -> int:
        """A shell that may write into the data set."""
        stack = self._stack_beside()
        print('scripts/prepare_imagenet.sh ARCHIVES DEST makes ImageNet, verified (--help: more); exit leaves.')
        if not stack:
            return _become(['bash'], self.environment())
        return _become(stack.compose('run', '--rm', 'prepare'), stack.environment())

    def _stack_beside(self) -> Stack | None:
        """The project, its image built, for a service beside the lab, which need not be up; None: the local lane."""
        settled = self.noted() or self.engine == 'local' or (self.engine == 'auto' and self.python.exists())
        lane = None if settled else self.chosen()
        engine, device = (lane.engine, lane.device) if lane and lane.engine == 'docker' else self.working_lane()
        if engine == 'local':
            self._venv()
            return None
        stack = Stack(self.root, device, self.host)
        stack.prepare()
        stack.ensure_image()
        return stack

    def _stack_to_build(self) -> Stack:
        """For DEVICE at its word: an image, or wheels for a host without a network, are made without a GPU, too."""
        facts = Facts(self.host, str(self.root))
        if facts.docker.error:
            error = facts.docker.error.strip()  # the client tells of itself first
            raise LaneError(f'Docker does not answer: {error.splitlines()[-1]}\n{mend(error)}make doctor says more.')
        device = self.device if self.device != 'auto' else 'gpu' if facts.gpu_on_bus else 'cpu'
        return Stack(self.root, device, self.host)

    # --- which lane it is, once it is up -----------------------------------------------------------------

    def lane(self) -> tuple[str, str]:
        """(docker, gpu or cpu) as the last ``make up`` noted it, else (local, auto). ENGINE=local has its way."""
        engine, device = self.noted() or ('local', 'auto')
        if self.engine == 'local' or (engine == 'local' and self.engine == 'auto'):
            return 'local', 'auto'
        if engine == 'local':
            raise LaneError('ENGINE=docker: no container of this checkout is up. Start it: make up ENGINE=docker')
        return engine, device

    def working_lane(self) -> tuple[str, str]:
        """`lane`, for a command that needs one: with no lab up here ``.venv`` is used and said, but never installed."""
        if self.engine == 'auto' and not self.noted():
            if not self.python.exists():
                raise LaneError(
                    'no lab is up here, and there is no .venv. Begin with: make up; or, to work in .venv (6.6 GB, '
                    'installed then), add ENGINE=local'
                )
            print('Lane: .venv (no lab is up here; start one with: make up)', file=sys.stderr)
        return self.lane()

    def noted(self) -> tuple[str, str] | None:
        """Of the lab that is up, or was when it crashed: (docker, gpu or cpu), or (local, as asked). None: no lab."""
        try:
            note = json.loads((self.root / '.lab' / 'lane.json').read_text())
            return note['engine'], note['device']
        except (OSError, ValueError, KeyError):
            server = Lab(self.root).noted()
            return ('local', server.get('asked', 'auto')) if server else None

    def _venv(self) -> None:
        if subprocess.run([str(self.root / 'scripts' / 'make_venv.sh')]).returncode:
            raise LaneError('the local environment could not be made; the reason is above')

    def _lab(self, *words: str) -> int:
        return subprocess.run(
            [str(self.python), '-m', 'workspace_lib.tools.lab', *words], cwd=self.root, env=self.environment()
        ).returncode


def launch_options(wishes: dict[str, str]) -> list[str]:
    """Options of ``workspace train`` for GPUS, NNODES, NODE_RANK and MASTER of the Makefile."""
    said = {key: value for key, value in wishes.items() if value}
    if said.get('nnodes', '1') != '1' and not {'gpus', 'node_rank', 'meet_at'} <= said.keys():
        raise LaneError(
            'of several machines each says: make train CONFIG=... NNODES=2 NODE_RANK=0 MASTER=first:29500 GPUS=8, with '
            'its own NODE_RANK (from 0) and GPUS, and the address of the first'
        )
    return [word for key, value in said.items() for word in (f'--{key.replace("_", "-")}', value)]


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


LAUNCH = ('gpus', 'nnodes', 'node_rank', 'meet_at')
ACTIONS = (
    'up',
    'down',
    'restart',
    'status',
    'url',
    'logs',
    'run',
    'set-up-and-run',
    'train',
    'gpu-check',
    'report',
    'build',
    'rebuild',
    'wheels',
    'compose',
    'tensorboard',
    'prepare',
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
    for option in LAUNCH:
        parser.add_argument(f'--{option.replace("_", "-")}', default='')
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
    if args.action in ('run', 'set-up-and-run', 'compose'):
        return getattr(front, args.action.replace('-', '_'))(args.command)
    if args.action == 'train':
        return front.train(args.config, args.args, args.detach, {key: getattr(args, key) for key in LAUNCH})
    if args.action == 'rebuild':
        return front.build(fresh=True)
    return getattr(front, args.action.replace('-', '_'))()


if __name__ == '__main__':
    sys.exit(main())
