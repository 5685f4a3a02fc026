"""Processes and small files, with the standard library alone: what a background server needs.

In: process numbers, paths. Out: who is alive, who started whom, who has a folder, files written privately and whole.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_held: set[int] = set()  # locks that are this process's alone


def process_start(pid: int) -> str | None:
    """What tells a process from a later one with the same number: its start time. None when it is gone."""
    if not Path('/proc/self/stat').exists():
        shown = subprocess.run(['ps', '-o', 'lstart=', '-p', str(pid)], capture_output=True, text=True)
        return shown.stdout.strip() or None
    fields = stat_fields(pid)
    return fields[19] if fields and fields[0] not in 'ZX' else None


def stat_fields(pid: int) -> list[str]:
    """``/proc/PID/stat`` after the name, which may hold spaces: state, parent, ..., [19] start in ticks."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return []


def process_table() -> dict[int, tuple[int, bytes]]:
    """pid -> (parent, command line) of every process that can be seen."""
    table = {}
    for folder in Path('/proc').glob('[0-9]*'):
        fields = stat_fields(int(folder.name))
        with contextlib.suppress(OSError):
            if fields:
                table[int(folder.name)] = (int(fields[1]), (folder / 'cmdline').read_bytes())
    return table


def end_processes(processes: dict[int, str], how: signal.Signals, seconds: float) -> bool:
    """Signal those still alive and wait. True once all are gone."""
    for pid, start in processes.items():
        if process_start(pid) == start:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
    end = time.monotonic() + seconds
    while any(process_start(pid) == start for pid, start in processes.items()):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def run_within(words: list[str], seconds: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run(text=True)``, but the limit (or Ctrl-C) also ends what the command started.

    ``docker compose`` is a child of ``docker``: it would outlive it, and hold the pipes that we read from.
    """
    with subprocess.Popen(words, text=True, stdin=subprocess.DEVNULL, start_new_session=True, **options) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def take_lock(path: Path, patience: float = 0.0) -> int:
    """An exclusive lock that ends with all that have the open file which is returned, however they end.

    Raises:
        BlockingIOError: another has it, after `patience` seconds too; ``strerror``: 'process PID on HOST' or 'unknown'.
        OSError: the file cannot be opened, or its file system has no locks (ENOLCK, ENOTSUP, ENOSYS).
    """
    deadline = time.monotonic() + patience
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):  # else the one before removed it when it was done
                break
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(file, 200, 0).decode(errors='replace').strip() or 'unknown'
                os.close(file)
                raise BlockingIOError(errno.EWOULDBLOCK, holder, str(path)) from None
            time.sleep(0.05)
        except OSError:
            os.close(file)
            raise
        os.close(file)
    os.ftruncate(file, 0)
    os.pwrite(file, f'process {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)
    return file


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def unlock(file: int) -> None:
    os.ftruncate(file, 0)
    os.close(file)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Meanwhile `folder`, which is made, is this process's; what is empty of it afterwards is removed again.

    Raises:
        FileExistsError: another process has it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / '.lock'
    file = _lock_where_there_are_locks(path)
    _held.add(file)
    try:
        yield
    finally:
        if file in _held:  # not in a process that was forked
            _held.remove(file)
            path.unlink(missing_ok=True)
            os.close(file)
            with contextlib.suppress(OSError):
                for one in made:
                    one.rmdir()


def _lock_where_there_are_locks(path: Path) -> int:
    try:
        return take_lock(path)
    except BlockingIOError as error:
        raise FileExistsError(f'{path.parent} is in use by {error.strerror}; wait for it, or --work-dir OTHER'
                              ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _log.warning('%s is on a file system without locks (%s): a second run into it would not be refused',
                     path.parent, error.strerror)
        return os.open(path, os.O_RDWR)


def _leave_to_the_parent() -> None:
    """A loader's worker outlives a training that was killed by seconds, in which that could not go on."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_to_the_parent)


def write_private(file: Path, text: str) -> None:
    """Write atomically, mode 0600 from the first byte on."""
    temporary = file.with_name(f'{file.name}.{os.getpid()}')
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 'w') as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)


def tail(file: Path, lines: int) -> str:
    return '\n'.join(file.read_text(errors='replace').splitlines()[-lines:]) if file.exists() else '(no log)'
