"""A finished tree against its manifest. In: the target folder. Out: every changed, missing and extra file by name."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import MANIFEST, Job, as_json
from .errors import PrepareError, Status
from .pool import Meter, Pool
from .units import BLOCK, Tree, files_below, read_listing


@dataclass(frozen=True)
class Earlier:
    """What an earlier manifest says of copies that this run does not make, and the files of `meta`."""

    units: dict[str, Any]
    packs: dict[str, Any]
    meta: dict[str, str]

    @classmethod
    def of(cls, tree: Tree, meta: dict[str, str]) -> Earlier:
        """A copy is forgotten once all of its folders are gone: of one that lost some, `--verify` misses those."""
        before = read_manifest(tree.dest) if (tree.dest / MANIFEST).exists() else {'units': {}, 'packs': {}, 'meta': {}}
        parts = {unit.split('/')[0] for unit in before['units'] if tree.folder(unit).exists()}
        return cls({unit: about for unit, about in before['units'].items() if unit.split('/')[0] in parts},
                   {pack: about for pack, about in before['packs'].items() if tree.folder(pack).exists()},
                   {**{name: digest for name, digest in before['meta'].items() if Path(name).stem in parts}, **meta})

    def check(self, tree: Tree) -> None:
        """Raise if one of the small files is no longer what it was when it was made."""
        found = [line for name, digest in self.meta.items() for line in _check_file(tree.dest / 'meta' / name, digest)]
        if found:
            raise PrepareError(f'{"; ".join(found)}. Give ARCHIVES, and what this run was to have in meta is written '
                               'anew', Status.DIFFERENT)
        found = [line for pack, about in self.packs.items() for line in _check_pack(tree, pack, about)]
        if found:
            raise PrepareError(f'{"; ".join(found)}. --verify lists all that differs; remove the folder of that copy, '
                               'and run again with its options to have it made anew', Status.DIFFERENT)


def write_manifest(job: Job, units: Iterable[str], packs: dict[str, list[str]], earlier: Earlier,
                   facts: dict[str, Any]) -> dict[str, Any]:
    """What the tree holds, as `meta/manifest.json`, the last file to be written.

    Sums are those that were taken when a file was made, never those of what lies there now.

    Args:
        units: names of the units that are there.
        packs: records of each raw map.
        earlier: what is there besides.
        facts: what else the manifest says.
    """
    tree, parts = job.tree, dict[str, dict[str, int]]()
    listings = {**earlier.units, **{unit: _described(tree, unit) for unit in units}}
    for unit, about in sorted(listings.items()):
        part = parts.setdefault(unit.split('/')[0], {'units': 0, 'images': 0, 'bytes': 0})
        for key, amount in (('units', 1), ('images', about['images']), ('bytes', about['bytes'])):
            part[key] += amount
    maps = {pack: {'files': {entry.name: entry.digest for entry in read_listing(tree.listing(pack))},
                   'records': {name: _digest_of(tree.listing(name)) for name in names}}
            for pack, names in packs.items()}
    manifest = {**facts, 'format': 1, 'options': job.options, 'parts': parts, 'units': listings, 'meta': earlier.meta,
                'packs': {**earlier.packs, **maps}}
    content = as_json(manifest)
    path = tree.dest / MANIFEST
    if not path.exists() or path.read_bytes() != content:
        job.replace(path, [content])
    return manifest


def _described(tree: Tree, unit: str) -> dict[str, Any]:
    entries = read_listing(tree.listing(unit))
    return {'images': len(entries), 'bytes': sum(entry.size for entry in entries),
            'sha256': _digest_of(tree.listing(unit))}


def read_manifest(dest: Path) -> dict[str, Any]:
    path = dest / MANIFEST
    if not path.is_file():
        raise PrepareError(f'{path} is not there: the tree is not finished, or {dest} is not its folder. First run '
                           'the command that makes it to its end; for ImageNet that names both ARCHIVES and DEST',
                           Status.DIFFERENT)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise PrepareError(f'{path} is damaged ({error}); remove it, and run the command that made the tree',
                           Status.DIFFERENT) from error


def verify(dest: Path, pool: Pool) -> list[str]:
    """All that differs, one line each; nothing is written, so that it works on a read-only mount."""
    tree, manifest = Tree(dest), read_manifest(dest)
    tasks: list[tuple] = [(tree, unit, about['sha256']) for unit, about in manifest['units'].items()]
    sizes = sum(part['bytes'] for part in manifest['parts'].values())
    found = [line for lines in pool.run(_check_unit, tasks, 'verify', sizes) for line in lines]
    for pack, about in manifest['packs'].items():
        tasks = [(tree, pack, name, digest) for name, digest in about['records'].items()]
        regions = pool.run(_check_region, tasks, f'verify {pack}', _size_of(tree.folder(pack) / 'pixels.bin'))
        found += [line for lines in regions for line in lines]
        found += _check_pack(tree, pack, about)
    for name, digest in manifest['meta'].items():
        found += _check_file(dest / 'meta' / name, digest)
    return sorted([*found, *_extra(tree, manifest)])


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_file(path: Path, digest: str) -> list[str]:
    if not path.is_file():
        return [f'missing: {path}']
    return [] if _digest_of(path) == digest else [f'changed: {path}']


def _check_pack(tree: Tree, pack: str, about: dict[str, Any]) -> list[str]:
    """Its files but for the pixels."""
    return [line for name, digest in about['files'].items() for line in _check_file(tree.folder(pack) / name, digest)]


def _check_unit(meter: Meter, tree: Tree, unit: str, digest: str) -> list[str]:
    folder, listing = tree.folder(unit), tree.listing(unit)
    if wrong := _check_file(listing, digest):
        return [f'{line} (the list of the files of {unit})' for line in wrong]
    entries = {entry.name: entry for entry in read_listing(listing)}
    there = files_below(folder)
    found = [f'missing: {folder / name}' for name in entries.keys() - there]
    found += [f'extra: {folder / name}' for name in there.keys() - entries]
    for name in entries.keys() & there:
        if there[name] != entries[name].size or _digest_of(folder / name, meter) != entries[name].digest:
            found.append(f'changed: {folder / name}')
    return found


def _check_region(meter: Meter, tree: Tree, pack: str, name: str, digest: str) -> list[str]:
    pixels, listing = tree.folder(pack) / 'pixels.bin', tree.listing(name)
    if wrong := _check_file(listing, digest):
        return [f'{line} (a part of {pack})' for line in wrong]
    entry, = read_listing(listing)
    start = int(entry.name.rpartition('@')[2])
    if not pixels.is_file():
        return [f'missing: {pixels}']
    if _digest_of(pixels, meter, start, entry.size) == entry.digest:
        return []
    return [f'changed: {pixels}, the {entry.size:,} bytes from {start:,} on ({name})']


def _digest_of(path: Path, meter: Meter | None = None, start: int = 0, size: int | None = None) -> str:
    digest = hashlib.sha256()
    with path.open('rb', buffering=0) as file:
        file.seek(start)
        while block := file.read(BLOCK if size is None else min(BLOCK, size)):
            digest.update(block)
            size = None if size is None else size - len(block)
            if meter:
                meter.add(len(block))
    return digest.hexdigest()


def _extra(tree: Tree, manifest: dict[str, Any]) -> Iterator[str]:
    """What lies beside the units of a part, in a pack, or in `meta`; and what a run made that did not end."""
    made = {path.name.removesuffix('.txt') for path in (tree.state / 'units').glob('*')}
    yield from (f'extra: {tree.folder(part)} (no finished run made it; run again with the options of that copy)'
                for part in made - {*manifest['parts'], *manifest['packs']} if tree.folder(part).exists())
    for part in manifest['parts']:
        units = {unit.split('/')[1] for unit in manifest['units'] if unit.startswith(f'{part}/')}
        if units and tree.folder(part).is_dir():
            yield from (f'extra: {tree.folder(part) / name}' for name in {*os.listdir(tree.folder(part))} - units)
    for pack in manifest['packs']:
        if tree.folder(pack).is_dir():
            known = {*manifest['packs'][pack]['files'], 'pixels.bin'}
            yield from (f'extra: {tree.folder(pack) / name}' for name in {*os.listdir(tree.folder(pack))} - known)
    if manifest['meta'] and (tree.dest / 'meta').is_dir():
        known = {*manifest['meta'], Path(MANIFEST).name}
        yield from (f'extra: {tree.dest / "meta" / name}' for name in {*os.listdir(tree.dest / 'meta')} - known)
