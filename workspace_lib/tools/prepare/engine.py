"""One run on one target folder: locked, with the same options as the runs before, going on with the units they left.

In: units, which say how they are filled. Out: all of them in their places; those that were there are not made again.
"""
from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..processes import take_lock
from ..processes import unlock as unlock
from .disk import Disk
from .errors import PrepareError, Status, bytes_text, damaged_record
from .pool import Pool
from .units import COPIES, Tree, Unit, build_task, gathered, is_done_task

MANIFEST = 'meta/manifest.json'
LOCK_PATIENCE = 3.0  # seconds: the workers of a run that was killed end a moment after it


def existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


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
        done = self.pool.run(is_done_task, [(tree or self.tree, unit.name) for unit in units])
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
        self.pool.run(build_task, [(unit, tree, self.disk, count_files) for unit in units], title, total,
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
            for block in gathered(chunks):
                digest.update(block)
                yield block
        self.disk.make_folder(path.parent)
        self.disk.replace(path, summed())
        return digest.hexdigest()


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + '\n').encode()


def lock(path: Path) -> int:
    """An exclusive lock that ends with this process and its workers, however they end."""
    try:
        return take_lock(path, LOCK_PATIENCE)
    except BlockingIOError as error:
        raise PrepareError(f'another run is at work here ({error.strerror}; {path}); wait for it, or end it',
                           Status.BUSY) from None
