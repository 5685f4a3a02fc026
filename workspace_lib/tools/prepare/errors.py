"""What can go wrong while data are prepared, each with an exit status of its own.

In: a message, or an OSError. Out: `PrepareError`, whose status a script can act on.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path


class Status(IntEnum):
    """Exit statuses; `--help` and datasets/README.md list them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    ARCHIVE = 3
    SPACE = 4
    BUSY = 5
    TARGET = 6
    DIFFERENT = 7
    DOWNLOAD = 8
    INTERRUPTED = 130


MEANING = {
    Status.DONE: 'finished; --verify: nothing differs',
    Status.FAILED: 'anything else; the message says what',
    Status.USAGE: 'a wrong command line, or other options than the tree was made with',
    Status.ARCHIVE: 'an archive is missing, damaged, not the official one, or holds what it must not',
    Status.SPACE: 'too few bytes or inodes, before the start or on the way',
    Status.BUSY: 'another run is at work on the same folder',
    Status.TARGET: 'the target folder cannot be written',
    Status.DIFFERENT: 'the tree differs from its manifest: changed, missing or extra files',
    Status.DOWNLOAD: 'a download failed; the next run goes on where it stopped',
    Status.INTERRUPTED: 'Ctrl-C; the next run goes on',
}
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class PrepareError(Exception):
    """A message that names the thing, the place and the way out; `status` is the exit status."""

    def __init__(self, message: str, status: Status = Status.FAILED) -> None:
        super().__init__(message, status)  # both, so that it can be pickled in a worker
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def damaged_record(path: Path, remedy: str) -> Iterator[None]:
    """Let a ValueError leave as a `PrepareError` that says that this file of `.prepare` cannot be read."""
    try:
        yield
    except ValueError as error:
        raise PrepareError(f'{path} is damaged ({error}); remove it, {remedy}, and run again', Status.DIFFERENT
                           ) from error


@contextmanager
def system_errors(dest: Path) -> Iterator[None]:
    """Let an OSError leave as a `PrepareError` about `dest`."""
    try:
        yield
    except OSError as error:
        raise _explained(error, dest) from error


def _explained(error: OSError, dest: Path) -> PrepareError:
    place = Path(error.filename or dest)
    if error.errno in _OUT_OF_SPACE:
        return PrepareError(f'the disk is full at {place} ({error.strerror}); what is finished stays: free some space '
                            '(df -h, df -i) and run the same command again', Status.SPACE)
    if error.errno in (errno.EACCES, errno.EPERM) and _is_unreadable(place):
        return PrepareError(f'{place}: {error.strerror}; it must be readable for you (ls -l, chmod)', Status.ARCHIVE)
    if error.errno in _NOT_WRITABLE:
        folder = dest if place.is_relative_to(dest) or dest.is_relative_to(place) else place.parent
        return PrepareError(f'{place}: {error.strerror}; {folder} must be writable for you. In the lab /dataset is '
                            'read-only: use `make prepare`', Status.TARGET)
    if error.errno == errno.EXDEV:
        return PrepareError(f'{error.filename2} is on another disk than {dest}/.prepare, so that no folder can be '
                            f'renamed to it. Remove that link or mount, and have all of {dest} on the other disk',
                            Status.TARGET)
    if error.errno in _NO_FOLDER:
        return PrepareError(f'{place}: {error.strerror}; {dest}, and what it lies in, must be folders. Give another '
                            'DEST, or move away what is in its place', Status.TARGET)
    return PrepareError(f'{error}; run the same command again to go on')


def _is_unreadable(place: Path) -> bool:
    """Whether reading is what was refused."""
    return (os.path.lexists(place.parent) and not os.access(place.parent, os.X_OK)
            or os.path.lexists(place) and not os.access(place, os.R_OK))


def bytes_text(amount: float) -> str:
    for unit, size in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6)):
        if amount >= size:
            return f'{amount / size:,.1f} {unit}'
    return f'{amount / 1e3:,.1f} kB'
