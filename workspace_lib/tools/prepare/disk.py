"""All that is ever done to a disk, in one class, so that a test can cut the power between any two operations.

In: paths and bytes. Out: files that are on the platter when `sync` or `sync_folder` has returned.
"""
from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
TEMPORARY = '.tmp'


class Disk:
    """The real thing."""

    _watched: int | None = None

    @contextmanager
    def watching(self, path: Path) -> Iterator[None]:
        """Let `sync` within know of all errors since now: Linux tells each of those that have a descriptor open, once,
        so that one opened later may miss a failed write, of which another process then hears."""
        self._watched = os.open(path, os.O_RDONLY)
        try:
            yield
        finally:
            os.close(self._watched)
            self._watched = None

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """A new file. FileExistsError if the name is taken; never through a link."""
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            for chunk in chunks:
                _write_all(file, chunk)
        finally:
            os.close(file)

    def allocate(self, path: Path, size: int) -> None:
        """A new file of `size` zeros, whose blocks are reserved."""
        with path.open('wb') as file:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)

    def write_at(self, path: Path, offset: int, data: bytes | bytearray | memoryview) -> None:
        file = os.open(path, os.O_WRONLY)
        try:
            _write_all(file, data, offset)
        finally:
            os.close(file)

    def sync(self, path: Path) -> None:
        """Everything written so far to the file system of `path`.

        One call for the thousand files of a class: an fsync for each would wait for the disk a thousand times.
        """
        file = os.open(path, os.O_RDONLY) if self._watched is None else self._watched
        try:
            if _libc.syncfs(file) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        finally:
            if file != self._watched:
                os.close(file)

    def sync_folder(self, path: Path) -> None:
        """The names in a folder: what was renamed into it stays there."""
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def sync_file(self, path: Path) -> None:
        self.sync_folder(path)  # the same call

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """A file or a whole folder, if it is there."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def replace(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Write a file whole or not at all, and durably; an earlier one stays until then."""
        temporary = path.with_name(path.name + TEMPORARY)
        self.remove(temporary)
        self.write(temporary, chunks)
        self.sync_file(temporary)
        self.rename(temporary, path)
        self.sync_folder(path.parent)

    def free(self, path: Path) -> tuple[int, int | None]:
        """Bytes and inodes that a person may still use; None where the file system does not count inodes."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize, stat.f_favail if stat.f_files else None

    def taken(self, path: Path) -> int:
        """Bytes that a file holds on the disk; 0 if it is not there."""
        return path.stat().st_blocks * 512 if path.exists() else 0

    def device(self, path: Path) -> int:
        """Which file system a path is on."""
        return path.stat().st_dev

    def block_size(self, path: Path) -> int:
        return os.statvfs(path).f_frsize


def _write_all(file: int, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
    view = memoryview(data)
    while view:
        count = os.write(file, view) if offset is None else os.pwrite(file, view, offset)
        view, offset = view[count:], None if offset is None else offset + count
