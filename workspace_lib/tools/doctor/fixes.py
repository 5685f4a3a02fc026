"""``--fix``: only what can take nothing away: missing keys of .env, missing folders, modes of private files.

In: `Facts`. Out: files, and one line about each. A key that is there, a folder that is there: never changed.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..processes import write_private
from .base_image import arch_list, choose_base_image
from .checks import mounts
from .facts import Facts, parse_env


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
    wanted = recommended_settings(facts, lane)
    file = facts.path('.env')
    text = facts.host.read(file) or ''
    missing = {key: value for key, value in wanted.items() if key not in parse_env(text)}
    if not missing:
        return
    lines = text + ('\n' if text and not text.endswith('\n') else '')
    write_private(Path(file), lines + ''.join(f'{key}={value}\n' for key, value in missing.items()))
    _give_back(facts, file)
    for key, value in missing.items():
        yield f'.env: {key}={value}'


def recommended_settings(facts: Facts, lane: str) -> dict[str, str]:
    """What .env should say on this host: whose uid the lab runs as; for a GPU its base image and architecture."""
    settings: dict[str, str] = {}
    if lane != 'local' and facts.host.uid:
        settings = {'LAB_UID': str(facts.host.uid), 'LAB_GID': str(facts.host.gid)}
    image = choose_base_image(facts.driver).image if lane == 'gpu' and not facts.driver.error else None
    if not image:
        return settings
    archs = arch_list(facts.driver.gpus)
    return {**settings, 'BASE_IMAGE': image, **({'TORCH_CUDA_ARCH_LIST': archs} if archs else {})}


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
