"""``--fix``: only what can take nothing away: missing keys of .env, missing folders, modes of private files.

In: `Facts`. Out: files, and a finding about each. A key that is there, a folder that is there: never changed.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .base_image import choose_base_image
from .checks import mounts
from .facts import Facts
from .findings import Finding, ok


def apply_fixes(facts: Facts, lane: str) -> list[Finding]:
    """``ok``: what was done; ``warn``: what could not be done. Empty when there was nothing to do."""
    found: list[Finding] = []
    for fix in (_folders, _keys, _modes):
        try:
            found.extend(ok(line) for line in fix(facts, lane))
        except (OSError, CannotMend) as error:
            found.append(Finding('warn', 'not everything could be mended', cause=str(error), way_out=[
                'make doctor FIX=1    # again, once that and the faults below are mended']))
    return found


class CannotMend(Exception):
    """What must be mended by hand first."""


def _folders(facts: Facts, lane: str) -> Iterator[str]:
    """Those below the checkout alone: elsewhere a missing folder is rather a disk that is not mounted."""
    folders = [source for source, _, _ in mounts(facts, lane)] + [facts.path('work_dirs'), facts.path('datasets')]
    for folder in dict.fromkeys(folders):
        if f'{folder}/'.startswith(f'{facts.root}/') and not os.path.lexists(folder):
            os.makedirs(folder)
            _give_back(facts, folder)
            yield f'made {folder}'


def _keys(facts: Facts, lane: str) -> Iterator[str]:
    """The keys that ``make up`` would write; not by guessing: none for a GPU that does not answer or has no image."""
    if lane == 'local' or (lane == 'gpu' and (facts.driver.error or not choose_base_image(facts.driver).image)):
        return
    from .. import dotenv  # these stand on this package
    from ..containers import Stack, person
    from ..lab import LabError
    root, file = Path(facts.root), Path(facts.path('.env'))
    uid, gid, _ = person(facts.host, root)
    try:
        wanted = Stack(root, lane, facts.host).wanted_settings(uid, gid)
    except LabError as error:
        raise CannotMend(f'.env was not written: {error}') from error
    for key in dotenv.add_missing(file, wanted):
        yield f'.env: {key}={dotenv.read(file)[key]}'
    _give_back(facts, str(file))


def _modes(facts: Facts, lane: str) -> Iterator[str]:
    for file in (facts.path('.env'), facts.path('.lab', 'token')):
        owner = facts.host.owner(file)
        if owner and owner.mode & 0o077 and owner.uid in (facts.host.uid, os.geteuid()):
            os.chmod(file, 0o600)
            yield f'{file}: mode 0600'


def _give_back(facts: Facts, path: str) -> None:
    """Called through sudo: what is made belongs to the person, not to root."""
    if os.geteuid() == 0 and facts.host.uid:
        os.chown(path, facts.host.uid, facts.host.gid)
