"""A unit of a data set (a class folder, a split): built aside, synced once, and renamed into place.

In: how it is filled. Out: a folder that is whole or not there, and a listing of it (`sha256 bytes name` lines) in
`.prepare/units`.
"""
from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .disk import Disk
from .errors import PrepareError, Status, damaged_record
from .pool import Meter

COPIES = 'copies'  # in the work folder; kept by every run until one is finished
BLOCK = 1 << 20  # bytes that are read or written at once
_NEVER = re.compile(r'[\\\0\n]')  # in a name
_NOT_UTF8 = re.compile('[\ud800-\udfff]')  # what Python makes of such bytes


@dataclass(frozen=True)
class Tree:
    """Where things lie below the target folder."""

    dest: Path
    place: Path | None = None  # where folders are put instead, until they are whole

    @property
    def state(self) -> Path:
        return self.dest / '.prepare'

    @property
    def work(self) -> Path:
        return self.state / 'work'

    @property
    def aside(self) -> Tree:
        """Copies in the making: a folder that others train from has all of its classes or is not there."""
        return Tree(self.dest, self.work / COPIES)

    def of_copy(self, copy: str) -> Tree:
        """Where the units of a copy belong."""
        return self if self.folder(copy).exists() else self.aside

    def folder(self, unit: str) -> Path:
        return (self.place or self.dest) / unit

    def listing(self, unit: str) -> Path:
        return self.state / 'units' / f'{unit}.txt'

    def unfinished(self, unit: str) -> Path:
        return self.work / unit


@dataclass(frozen=True)
class Unit:
    """What appears at once.

    Args:
        name: the folder below the target, such as `train/n01440764`.
        size, files: how much it will be, about; for the check of space and for progress.
        fill: writes the files; runs in a worker process, so it can be pickled.
    """

    name: str
    size: int
    files: int
    fill: Callable[[Writer], None]


class Entry(NamedTuple):
    """A line of a listing."""

    digest: str
    size: int
    name: str

    def __str__(self) -> str:
        return f'{self.digest} {self.size} {self.name}\n'


class Writer:
    """Takes the files of one unit, and counts bytes or files."""

    def __init__(self, folder: Path, disk: Disk, meter: Meter, count_files: bool = False) -> None:
        self.folder, self.disk, self.meter, self.count_files = folder, disk, meter, count_files
        self.entries: list[Entry] = []
        self._made: set[str] = set()

    def add(self, name: str, data: bytes) -> None:
        """One file; `name` is a path below the unit's folder."""
        self._write(name, [data])
        self._note(Entry(hashlib.sha256(data).hexdigest(), len(data), name), 1 if self.count_files else len(data))

    def stream(self, name: str, pieces: Iterable[bytes]) -> None:
        """One file that is larger than memory."""
        digest, size = hashlib.sha256(), 0

        def summed() -> Iterator[bytes]:
            nonlocal size
            for block in gathered(pieces):
                digest.update(block)
                size += len(block)
                self.meter.add(0 if self.count_files else len(block))
                yield block
        self._write(name, summed())
        self._note(Entry(digest.hexdigest(), size, name), int(self.count_files))

    def _write(self, name: str, blocks: Iterable[bytes]) -> None:
        path, parent = self.folder / safe_name(name), name.rpartition('/')[0]
        if parent not in self._made:
            self.disk.make_folder(path.parent)
            self._made.add(parent)
        try:
            self.disk.write(path, blocks)
        except FileExistsError:
            raise PrepareError(f'the archive holds {name} twice', Status.ARCHIVE) from None

    def _note(self, entry: Entry, amount: int) -> None:
        self.entries.append(entry)
        self.meter.add(amount)

    def listing(self) -> bytes:
        return ''.join(map(str, sorted(self.entries, key=lambda entry: entry.name))).encode()


def safe_name(name: str) -> str:
    """`name`, if it stays below the folder that it is put in, and is text."""
    if not name.strip('./') or name[0] == '/' or '..' in name.split('/') or _NEVER.search(name):
        raise PrepareError(f'the archive holds {name!r}, which would land outside the target; it is not unpacked',
                           Status.ARCHIVE)
    if _NOT_UTF8.search(name):  # no listing could hold it
        raise PrepareError(f'the archive holds {name!r}, whose name is not UTF-8; it is not unpacked', Status.ARCHIVE)
    return name


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks: each costs a call to the system, whether it is a line or a megabyte."""
    block = bytearray()
    for piece in pieces:
        block += piece
        if len(block) >= BLOCK:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def read_listing(path: Path) -> list[Entry]:
    with damaged_record(path, 'and the folder that it lists'), path.open(encoding='utf-8') as file:
        lines = [line.rstrip('\n').split(' ', 2) for line in file]
        return [Entry(digest, int(size), name) for digest, size, name in lines]


def files_below(folder: Path) -> dict[str, int]:
    """Name and size of every file below, links and the like (size -1) included."""
    found: dict[str, int] = {}
    below = [''] if folder.is_dir() else []
    while below:
        prefix = below.pop()
        for entry in os.scandir(folder / prefix):
            if entry.is_dir(follow_symlinks=False):
                below.append(f'{prefix}{entry.name}/')
            else:
                about = entry.stat(follow_symlinks=False)
                found[prefix + entry.name] = about.st_size if stat.S_ISREG(about.st_mode) else -1
    return found


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few, and how many more."""
    names = list(names)
    return ', '.join(names[:limit]) + (f' and {len(names) - limit:,} more' if len(names) > limit else '')


def is_done(tree: Tree, unit: str) -> bool:
    """Whether a unit is in its place, with all its files in their sizes.

    Raises:
        PrepareError: something else is in its place.
    """
    folder, listing = tree.folder(unit), tree.listing(unit)
    if not folder.exists():
        return False
    if not listing.exists():
        raise PrepareError(f'{folder} is there already, and this tool did not make it; move it away, or prepare into '
                           'another folder', Status.DIFFERENT)
    found, wanted = files_below(folder), {entry.name: entry.size for entry in read_listing(listing)}
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise PrepareError(f'{folder} has changed since it was made: {some(names)}. --verify lists all that differs; '
                           'remove that folder and run again to have it made anew', Status.DIFFERENT)
    return True


def build(unit: Unit, tree: Tree, disk: Disk, meter: Meter, count_files: bool = False) -> None:
    """Fill a unit aside, sync it once, and put it in its place.

    In this order a cut of the power leaves either a unit that will be made again, or a whole one: its data and
    listing are on the disk before any of their final names are, and a folder never has its name before its listing.
    """
    folder, listing = tree.unfinished(unit.name), tree.listing(unit.name)
    draft = tree.unfinished(f'{unit.name}.txt')
    disk.make_folder(folder)
    writer = Writer(folder, disk, meter, count_files)
    unit.fill(writer)
    disk.write(draft, [writer.listing()])
    disk.sync(folder)
    disk.rename(draft, listing)
    disk.sync_folder(listing.parent)
    disk.rename(folder, tree.folder(unit.name))
    disk.sync_folder(tree.folder(unit.name).parent)


def is_done_task(meter: Meter, tree: Tree, unit: str) -> bool:
    return is_done(tree, unit)


def build_task(meter: Meter, unit: Unit, tree: Tree, disk: Disk, count_files: bool) -> None:
    try:
        with disk.watching(tree.state):
            build(unit, tree, disk, meter, count_files)
    except PrepareError as error:
        raise PrepareError(f'{unit.name}: {error}', error.status) from error
