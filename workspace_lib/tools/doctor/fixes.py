"""``--fix``: only what can take nothing away: missing keys of .env, missing folders, modes of private files.

In: `Facts`. Out: files, and one line about each. A key that is there, a folder that is there: never changed.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .checks import mounts
from .facts import Facts


def apply_fixes(facts: Facts, lane: str) -> list[str]:
    """What was done, one line each; empty when there was nothing to do."""
    return [*_folders(facts, lane), *_keys(facts, lane), *_modes(facts)]


def _folders(facts: Facts, lane: str) -> Iterator[str]:
    """Those below the checkout alone: elsewhere a missing folder is rather a disk that is not mounted."""
    folders = [source for source, _, _ in mounts(facts, lane)] + [facts.path('work_dirs'), facts.path('datasets')]
    for folder in dict.fromkeys(folders):
        if f'{folder}/'.startswith(f'{facts.root}/') and not os.path.lexists(folder):
            os.makedirs(folder)
            _give_back(facts, folder)
            yield f'made {folder}'


def _keys(facts: Facts, lane: str) -> Iterator[str]:
    """The keys that ``make up`` would write; not by guessing: without an answer of the driver none for the GPU."""
    if lane == 'local' or (lane == 'gpu' and facts.driver.error):
        return
    from .. import dotenv  # these stand on this package
    from ..containers import Stack, person
    from ..lab import LabError
    root, file = Path(facts.root), Path(facts.path('.env'))
    uid, gid, _ = person(facts.host, root)
    try:
        wanted = Stack(root, lane, facts.host).wanted_settings(uid, gid)
    except LabError as error:  # a port that is taken or no port, say: what the findings are about
        yield f'.env: not written: {error}'
        return
    for key in dotenv.add_missing(file, wanted):
        yield f'.env: {key}={dotenv.read(file)[key]}'
    _give_back(facts, str(file))


def _modes(facts: Facts) -> Iterator[str]:
    for file in (facts.path('.env'), facts.path('.lab', 'token')):
        owner = facts.host.owner(file)
        if owner and owner.mode & 0o077 and owner.uid in (facts.host.uid, os.geteuid()):
            os.chmod(file, 0o600)
            yield f'{file}: mode 0600'


def _give_back(facts: Facts, path: str) -> None:
    """Called through sudo: what is made belongs to the person, not to root."""
    if os.geteuid() == 0 and facts.host.uid:
        os.chown(path, facts.host.uid, facts.host.gid)
