"""Jobs that outlive the terminal, the browser and the Jupyter server: ``make train CONFIG=... DETACH=1``.

In: a command. Out: ``.lab/jobs/NAME/`` with its log and a record, from which it can be told later, on either side of a
container, whether the job runs, ended, or was cut off, and which command resumes it. Standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .processes import process_start, write_private

CHECKOUT = Path(__file__).resolve().parents[2]
NOTED = 'WORKSPACE_JOB'  # set for what runs as a job: its name
STOPPED = 85  # how a training ends that a signal stopped and that can go on, see faults.Stopped


def folder_of(name: str, root: Path = CHECKOUT) -> Path:
    return root / '.lab' / 'jobs' / name


def claim(config: str, root: Path = CHECKOUT) -> str:
    """A name that no other job has, for its folder is made here: two of one config may begin in the same second."""
    stem = re.sub(r'[^\w.-]', '_', Path(config).stem) or 'job'
    first = f'{stem}-{time.strftime("%m%d-%H%M%S")}'
    name, number = first, 1
    while True:
        try:
            folder_of(name, root).mkdir(parents=True)
            return name
        except FileExistsError:
            number += 1
            name = f'{first}-{number}'


def run(name: str, command: list[str], root: Path = CHECKOUT, to_terminal: bool = False) -> int:
    """Run the command to its end, with a record in the folder that `claim` made; return its exit status.

    A signal to end is passed on. A SIGKILL of us, as a stopped container gives, leaves a record that says so by itself:
    the process it names is gone, and no end was written.
    """
    folder = folder_of(name, root)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / 'job.json').exists():
        raise FileExistsError(f'{folder}: a job of this name was here before')
    log = None if to_terminal else open(folder / 'log', 'ab', buffering=0)  # noqa: SIM115 - closed with the process
    env = {**os.environ, 'PYTHONUNBUFFERED': '1', NOTED: name}  # a log is for following
    stdin = None if to_terminal else subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, stdin=stdin, env=env)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda received, frame: process.send_signal(received))
    record = _begin(folder, command, process.pid)
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:  # the terminal gave it to the process too, which ends in its own way
            continue
    _end(folder, record, status)
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def noted(command: list[str], root: Path = CHECKOUT) -> Iterator[None]:
    """A record of a training that a person started in the container without make: ``docker exec ... workspace train``.

    None elsewhere, none of a job (which has one), and none of a run whose folder is outside the checkout. Its words go
    to the terminal; ``make logs`` shows the run's own log.
    """
    outside = not (root / work_dir(command)).resolve().is_relative_to(root.resolve())
    one_of_several = 'LOCAL_RANK' in os.environ  # what started them has the record
    if place() == 'host' or NOTED in os.environ or one_of_several or outside or not (root / '.lab').is_dir():
        yield
        return
    folder = folder_of(claim(command[2], root), root)
    record, status = _begin(folder, command, os.getpid()), 1
    try:
        yield
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
        raise
    finally:  # not reached by a kill: that is what `states` sees
        _end(folder, record, status)


def _begin(folder: Path, command: list[str], pid: int) -> dict[str, Any]:
    record = {
        'name': folder.name,
        'command': command,
        'place': place(),
        'pid': pid,
        'start': process_start(pid),
        'began': time.time(),
        'ended': None,
        'status': None,
    }
    write_private(folder / 'job.json', json.dumps(record))
    return record


def _end(folder: Path, record: dict[str, Any], status: int) -> None:
    write_private(folder / 'job.json', json.dumps({**record, 'ended': time.time(), 'status': status}))


def early_end(
    name: str, root: Path, gave_up: Callable[[], bool], seconds: float = 10, quiet: float = 2
) -> dict[str, Any] | None:
    """Look at a job that was just started: None once it runs, its record if it ended, {} if it never began.

    A wrong config shows after the seconds that importing torch takes. So look for 10 of them, less once it has said
    something and gone on for 2 s.

    Args:
        gave_up: whether what starts it has failed.
    """
    file, log = folder_of(name, root) / 'job.json', folder_of(name, root) / 'log'
    begun = spoke = None
    start = time.monotonic()
    while True:
        now, failed = time.monotonic(), gave_up()  # this first: what failed has written its record before
        begun = begun or (now if file.exists() else None)
        spoke = spoke or (now if log.exists() and log.stat().st_size else None)
        if begun:
            record = json.loads(file.read_text())
            if record['ended'] is not None:
                return record
            if now > begun + seconds or (spoke and now > max(spoke, begun) + quiet):
                return None
        elif failed or now > start + 20:
            return {}
        time.sleep(0.1)


def log_of(name: str, root: Path = CHECKOUT) -> Path | None:
    """The job's log; of a training started without make, the newest in the run's folder. None: there is none."""
    own = folder_of(name, root) / 'log'
    if own.exists():
        return own
    commands = [record['command'] for record in records(root) if record['name'] == name]
    logs = [log for command in commands for log in (root / work_dir(command)).glob('*.log')]
    return max(logs, key=os.path.getmtime, default=None)


def place() -> str:
    """Where process numbers mean what they say: ``container`` or ``host``."""
    return 'container' if os.environ.get('LAB_DEVICE') else 'host'


def records(root: Path = CHECKOUT) -> Iterator[dict[str, Any]]:
    """Oldest first; one that is being written or spoilt is left out."""
    found = []
    for file in (root / '.lab' / 'jobs').glob('*/job.json'):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_text()))
    yield from sorted(found, key=lambda record: record['began'])


def states(
    root: Path = CHECKOUT, in_container: dict[str, str] | None = None, silent: str = 'cut off'
) -> list[dict[str, Any]]:
    """Records with ``state``: running, done, failed, cut off or unknown.

    Args:
        in_container: name -> state, as `alive` says in the container; None: none runs, so no job does in it.
        silent: state of a job in a container of which that tells nothing.
    """
    here, found = place(), []
    for record in records(root):
        if record['ended'] is not None:
            state = {0: 'done', STOPPED: 'cut off'}.get(record['status'], 'failed')
        elif record['place'] == here:
            state = 'running' if process_start(record['pid']) == record['start'] else 'cut off'
        else:
            state = (in_container or {}).get(record['name'], silent)
        found.append({**record, 'state': state})
    return found


def told(jobs: list[dict[str, Any]], root: Path = CHECKOUT, ended: int = 3) -> str:
    """Lines for ``make status``: those that run, those cut off and not taken up again, the last few that ended."""
    lines = []
    last = [job for job in jobs if job['state'] in ('done', 'failed')][-ended:]
    for number, job in enumerate(jobs):
        if job['state'] == 'cut off' and not any(_goes_on(later, job, root) for later in jobs[number + 1 :]):
            lines += [f'  {job["name"]}  cut off; go on with:', f'      {resume_command(job["command"], root)}']
        elif job['state'] == 'unknown':
            lines.append(f'  {job["name"]}  unknown: the container does not answer; see make logs JOB={job["name"]}')
        elif job['state'] == 'running':
            lines.append(f'  {job["name"]}  running (pid {job["pid"]}); follow it: make logs JOB={job["name"]}')
        elif job in last:
            lines.append(f'  {job["name"]}  {how_it_ended(job)}')
    return '\n'.join(['Jobs:', *lines] if lines else [])


def _goes_on(later: dict[str, Any], job: dict[str, Any], root: Path) -> bool:
    """Whether the later job took this one up: the same folder, and it did not fail before its first checkpoint."""
    if work_dir(later['command']) != work_dir(job['command']):
        return False
    if later['state'] != 'failed':
        return True  # it runs, is done, or is itself cut off and listed with the same way on
    checkpoint = root / work_dir(later['command']) / 'latest.pth'
    return checkpoint.exists() and checkpoint.stat().st_mtime > later['began']


def how_it_ended(job: dict[str, Any]) -> str:
    status = job['status']
    if status == 0:
        return 'done'
    how = f'failed with status {status}' if status > 0 else f'ended by signal {-status}'
    return f'{how}; see make logs JOB={job["name"]}'


def work_dir(command: list[str]) -> str:
    """The folder of a training run: ``--work-dir``, else what ``workspace train`` makes of the config's name."""
    for number, word in enumerate(command):
        if word == '--work-dir' and number + 1 < len(command):
            return command[number + 1]
        if word.startswith('--work-dir='):
            return word.partition('=')[2]
    config = command[2] if len(command) > 2 else ''
    return f'work_dirs/{Path(config).stem}'


def resume_command(command: list[str], root: Path = CHECKOUT) -> str:
    """What to type to go on: from the newest checkpoint, or from the start when there is none yet."""
    if command[:2] != ['workspace', 'train'] or len(command) < 3:
        return shlex.join(command)
    checkpoint = f'{work_dir(command)}/latest.pth'
    rest = _without(command[3:], ('--resume-from', '--load-from'))
    if (root / checkpoint).exists():
        rest += ['--resume-from', checkpoint]
    args = f' ARGS={shlex.quote(shlex.join(rest))}' if rest else ''
    return f'make train CONFIG={shlex.quote(command[2])}{args} DETACH=1'


def _without(words: list[str], options: tuple[str, ...]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif not word.startswith(tuple(f'{option}=' for option in options)):
            kept.append(word)
    return kept


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m workspace_lib.tools.jobs')
    actions = parser.add_subparsers(dest='action', required=True)
    runner = actions.add_parser('run')
    runner.add_argument('--terminal', action='store_true')
    runner.add_argument('name')
    runner.add_argument('command', nargs=argparse.REMAINDER)
    actions.add_parser('alive')
    args = parser.parse_args(argv)
    if args.action == 'run':
        return run(args.name, args.command[args.command[:1] == ['--'] :], to_terminal=args.terminal)
    print(json.dumps({job['name']: job['state'] for job in states()}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
