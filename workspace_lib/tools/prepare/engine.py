"""A data set as units (a class folder, a split), each built aside, synced once, and renamed into place.

In: units, which say how they are filled. Out: folders that are whole or not there, each with a listing
(`sha256 bytes name` lines) in `.prepare/units`. A run that was killed goes on with the units that are missing.
"""
from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .disk import Disk
from .errors import PrepareError, Status, bytes_text, damaged_record
from .pool import Meter, Pool

MANIFEST = 'meta/manifest.json'
COPIES = 'copies'  # in the work folder; kept by every run until one is finished
LOCK_PATIENCE = 3.0  # seconds: the workers of a run that was killed end a moment after it


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


@dataclass(frozen=True)
class Entry:
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
        self._made: set[Path] = set()

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
        """One file; `name` is a path below the unit's folder."""
        path = self.folder / safe_name(name)
        if path.parent not in self._made:
            self.disk.make_folder(path.parent)
            self._made.add(path.parent)
        digest, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk
                self.meter.add(0 if self.count_files else len(chunk))
        try:
            self.disk.write(path, counted())
        except FileExistsError:
            raise PrepareError(f'the archive holds {name} twice', Status.ARCHIVE) from None
        self.entries.append(Entry(digest.hexdigest(), size, name))
        self.meter.add(int(self.count_files))

    def listing(self) -> bytes:
        return ''.join(map(str, sorted(self.entries, key=lambda entry: entry.name))).encode()


def safe_name(name: str) -> str:
    """`name`, if it stays below the folder that it is put in."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith('/') or '..' in parts or any(c in name for c in '\\\0\n'):
        raise PrepareError(f'the archive holds {name!r}, which would land outside the target; it is not unpacked',
                           Status.ARCHIVE)
    return name


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


def existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


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


def _spelled(option: str, value: Any) -> str:
    """As it is written on the command line."""
    name = {'subset': '--subset', 'val': '--val-layout', 'dataset': 'the data set'}.get(option, option)
    return f'{name} {value}' if value else f'no {name}'


class Job:
    """One run on one target folder, which it locks: a context manager.

    Args:
        options: what the tree depends on; a later run with others is refused.
        keep: names in the work folder that this run can go on with.
        say: takes each line for the person.
    """

    def __init__(self, dest: Path, options: dict[str, Any], workers: int, disk: Disk, show_progress: bool = True,
                 keep: Sequence[str] = (), say: Callable[[str], object] = print) -> None:
        self.tree, self.options, self.disk, self.say, self._keep = Tree(dest), options, disk, say, (COPIES, *keep)
        self.pool = Pool(workers, show_progress)
        self._lock = -1

    def __enter__(self) -> Job:
        self.disk.make_folder(self.tree.state)
        self._lock = lock(self.tree.state / 'lock')
        try:
            self._check_options()
            self._clear_work()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):  # a full disk should not stay full of what will be made again
            with suppress(OSError):
                self._clear_work()
        unlock(self._lock)

    def check_target(self) -> None:
        """What a run would be refused for, found without writing anything."""
        self._check_options()
        place = next(path for path in (self.tree.state, *self.tree.state.absolute().parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))

    def _check_options(self) -> None:
        path = self.tree.state / 'options.json'
        if not path.exists():
            return
        with damaged_record(path, 'and give the options that the tree was made with'):
            before = json.loads(path.read_text())
        if before != self.options:
            keys = sorted(key for key in {*before, *self.options} if before.get(key) != self.options.get(key))
            made, asked = (', '.join(_spelled(key, options.get(key)) for key in keys)
                           for options in (before, self.options))
            raise PrepareError(f'{self.tree.dest} was made with {made}, and this run is for {asked}; give the options '
                               'that it was made with, or another folder', Status.USAGE)

    def _clear_work(self) -> None:
        for left_by_a_kill in sorted(self.tree.work.iterdir()) if self.tree.work.exists() else ():
            if left_by_a_kill.name not in self._keep:
                self.disk.remove(left_by_a_kill)

    def check_space(self, size: int, files: int, target: Path | None = None) -> None:
        """Raise unless so many bytes in so many files fit where `target`, the tree by default, is or will be."""
        target = target or self.tree.dest
        place = existing(target)
        free, inodes = self.disk.free(place)
        need = size + files * self.disk.block_size(place)  # a file wastes half a block; folders, listings
        if need > free:
            try_less = ', or try --subset' * (self.options['dataset'] == 'imagenet')
            raise PrepareError(f'{target} has {bytes_text(free)} free, and {bytes_text(need)} are still to be '
                               f'written; {bytes_text(need - free)} too few. Free some, mount a larger disk '
                               f'(DATASET_DIR){try_less}', Status.SPACE)
        if inodes is not None and files > inodes:
            raise PrepareError(f'the file system of {target} has {inodes:,} inodes left for {files:,} files '
                               '(df -i); no number of free gigabytes helps. Use another file system', Status.SPACE)

    def pending(self, units: Iterable[Unit], tree: Tree | None = None) -> list[Unit]:
        units = list(units)
        done = self.pool.run(_is_done, [(tree or self.tree, unit.name) for unit in units])
        return [unit for unit, is_there in zip(units, done, strict=True) if not is_there]

    def build(self, units: Sequence[Unit], title: str, count_files: bool = False, tree: Tree | None = None) -> None:
        """Make all `units`, of which none is there, in parallel; the bar counts bytes, or files."""
        if not units:
            return
        tree = tree or self.tree
        for unit in units:
            for path in (tree.folder(unit.name), tree.listing(unit.name), tree.unfinished(unit.name)):
                self.disk.make_folder(path.parent)
        self.remember_options()
        total = sum(unit.files if count_files else unit.size for unit in units)
        self.pool.run(_build, [(unit, tree, self.disk, count_files) for unit in units], title, total,
                      ' images' if count_files else 'B')

    def discard(self, unit: str) -> None:
        """Take a unit away at once, to be made anew."""
        aside = self.tree.unfinished(unit)
        self.disk.make_folder(aside.parent)
        self.disk.rename(self.tree.folder(unit), aside)
        self.disk.remove(aside)

    def remember_options(self) -> None:
        if not (self.tree.state / 'options.json').exists():
            self.replace(self.tree.state / 'options.json', [as_json(self.options)])

    def build_copy(self, units: Sequence[Unit], copy: str) -> None:
        """Make what a copy lacks; one that is new has its name once all of it is there."""
        tree = self.tree.of_copy(copy)
        self.build(self.pending(units, tree), copy, count_files=True, tree=tree)
        if tree != self.tree:
            self.disk.rename(tree.folder(copy), self.tree.folder(copy))
            self.disk.sync_folder(self.tree.dest)

    def replace(self, path: Path, chunks: Iterable[bytes]) -> str:
        """Write a small file whole or not at all; returns the SHA-256 of what was written."""
        digest = hashlib.sha256()

        def summed() -> Iterator[bytes]:
            for chunk in chunks:
                digest.update(chunk)
                yield chunk
        self.disk.make_folder(path.parent)
        self.disk.replace(path, summed())
        return digest.hexdigest()


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + '\n').encode()


def _is_done(meter: Meter, tree: Tree, unit: str) -> bool:
    return is_done(tree, unit)


def _build(meter: Meter, unit: Unit, tree: Tree, disk: Disk, count_files: bool) -> None:
    try:
        with disk.watching(tree.state):
            build(unit, tree, disk, meter, count_files)
    except PrepareError as error:
        raise PrepareError(f'{unit.name}: {error}', error.status) from error


def lock(path: Path) -> int:
    """An exclusive lock that ends with this process and its workers, however they end."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(file, 200, 0).decode(errors='replace').strip() or 'unknown'
                os.close(file)
                raise PrepareError(f'another run is at work here ({holder}; {path}); wait for it, or end it',
                                   Status.BUSY) from None
            time.sleep(0.05)
    os.ftruncate(file, 0)
    os.pwrite(file, f'process {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)
    return file


def unlock(file: int) -> None:
    os.ftruncate(file, 0)
    os.close(file)
