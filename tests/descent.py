"""A process and all that came of it: torchrun's workers are in sessions of their own, and outlive its being killed."""
from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """`pid`, its children, theirs ..."""
    found = [pid]
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(')')[2].split()[1]) == pid:
                found += descendants(int(stat.parent.name))
    return found


def kill(pids: list[int], folder: Path) -> None:
    """Those that run in `folder`: the number of one that ended may be another's by now."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f'/proc/{pid}/cwd').resolve() == folder.resolve():
                os.kill(pid, signal.SIGKILL)
