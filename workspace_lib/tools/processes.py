"""Processes and small files, with the standard library alone: what a background server needs.

In: process numbers, paths. Out: who is alive, who started whom, files written privately and whole.
"""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any


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
