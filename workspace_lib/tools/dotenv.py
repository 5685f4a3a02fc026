"""``.env``, the settings of the container lanes: keys that are missing are added, what a person wrote is never changed.

In: the file, keys with a value and a comment each. Out: the file, whole at every moment, for its owner alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .doctor.facts import parse_env
from .processes import write_private


class Setting(NamedTuple):
    key: str
    value: str
    comment: str


HEADER = """\
# Settings of the lab's containers, read by Docker Compose and by make. Yours to edit: make adds keys that are missing
# and changes none. A value given on the command line, as in `make up JUPYTER_PORT=8899`, wins for that call.
"""


def add_missing(file: Path, settings: list[Setting]) -> list[str]:
    """Append the settings whose key is not there; mode 0600. Returns the keys that were added."""
    text = file.read_text() if file.exists() else ''
    known = parse_env(text)
    new = [setting for setting in settings if setting.key not in known]
    if new:
        before = text if not text or text.endswith('\n') else text + '\n'
        write_private(file, (before or HEADER) + ''.join(f'\n# {s.comment}\n{s.key}={s.value}\n' for s in new))
    elif file.stat().st_mode & 0o077:
        os.chmod(file, 0o600)
    return [setting.key for setting in new]


def read(file: Path) -> dict[str, str]:
    return parse_env(file.read_text()) if file.exists() else {}
