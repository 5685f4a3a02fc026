"""Archives and folders as streams of images, and whether an archive is the official one.

In: paths. Out: `(name, read)` pairs; a `PrepareError` for what is damaged, incomplete, a link, or outside its folder.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .engine import Job, as_json
from .errors import PrepareError, Status
from .pool import Meter
from .units import BLOCK, safe_name, some

PART = '.part'
BEHIND = 8 << 20  # bytes of an archive that have been read and stay in the page cache
SOON = 50 << 20  # bytes whose sum is there before a bar could be read
# A tar header from its byte 124 on: size, time, checksum, type, no link, magic, owners, no prefix
_PLAIN = re.compile(rb'([0-7]{11})[\0 ].{12}([0-7]{6})[\0 ].0.{100}ustar.{83}\0', re.DOTALL)
Images = Iterator[tuple[str, Callable[[], bytes]]]


@dataclass(frozen=True)
class Archive:
    """A file as its publisher describes it; without an MD5 none is known, and its structure alone is checked."""

    name: str
    size: int | None = None
    md5: str | None = None


def damaged(path: Path | str, why: str) -> PrepareError:
    return PrepareError(f'{path} is damaged: {why}. Nothing of it was kept, and the archive is as it was; fetch it '
                        'again', Status.ARCHIVE)


def check_size(path: Path, archive: Archive) -> None:
    size = path.stat().st_size
    if archive.size not in (None, size):
        less = 'incomplete' if size < (archive.size or 0) else 'another file'
        raise PrepareError(f'{path} has {size:,} bytes, the official {archive.name} has {archive.size:,}: it is '
                           f'{less}; fetch it again', Status.ARCHIVE)


def check_md5(job: Job, archives: dict[Path, Archive], keep: bool = True) -> None:
    """Compare with the publisher's sums, all files at once; a file that has not changed since is not read again,
    unless `keep` is off: then nothing is written."""
    store, known = _known(job)
    todo = [path for path, archive in archives.items() if archive.md5 and not is_known(job, path)]
    if not todo:
        return
    size = sum(path.stat().st_size for path in todo)
    sums = job.pool.run(_md5, [(path,) for path in todo], 'MD5' if size > SOON else '', size)
    if keep:
        known.update({_key(path): [*_identity(path), md5] for path, md5 in zip(todo, sums, strict=True)
                      if md5 == archives[path].md5})
        job.replace(store, [as_json(known)])
    for path, md5 in zip(todo, sums, strict=True):
        if md5 != archives[path].md5:
            raise PrepareError(f'{path} has the MD5 {md5}, {archives[path].name} should have {archives[path].md5}: '
                               'it is damaged or another file. Nothing was unpacked, and it is as it was; fetch it '
                               'again', Status.ARCHIVE)


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _known(job: Job) -> tuple[Path, dict[str, list]]:
    """Where sums are kept, and those that are; none if the file is damaged, which costs another reading."""
    store = job.tree.state / 'md5.json'
    try:
        known = json.loads(store.read_text())
    except (FileNotFoundError, ValueError):
        return store, {}
    is_whole = isinstance(known, dict) and all(isinstance(value, list) for value in known.values())
    return store, known if is_whole else {}


def is_known(job: Job, path: Path) -> bool:
    """Whether an earlier run has found its MD5 right, and it has not changed since."""
    return _known(job)[1].get(_key(path), [])[:3] == _identity(path)


def part_of(path: Path) -> Path:
    """The name of an archive for as long as it is fetched."""
    return path.with_name(path.name + PART)


def _key(path: Path) -> str:
    """A file that has come whole, and is renamed now, need not be read again."""
    return path.name.removesuffix(PART)


def _md5(meter: Meter, path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb', buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            meter.add(len(block))
    return digest.hexdigest()


class _Window(io.RawIOBase):
    """A part of a file, as tarfile likes to read it."""

    def __init__(self, file: int, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if self._at < 0:
            raise tarfile.ReadError('a header leads to before the first byte')
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if size < 0:  # tarfile asks for all only where a header says so
            raise tarfile.ReadError('a header has a negative size')
        data = os.pread(self._file, max(0, min(size, self._size - self._at)), self._start + self._at)
        self._at += len(data)
        return data


def is_hidden(name: str) -> bool:
    """Such as `._n01440764_18.JPEG`, which a Mac leaves beside a file and which is no image."""
    return name.rpartition('/')[2].startswith('.')


@dataclass(frozen=True)
class Tar:
    """An uncompressed tar, or one inside another from `start` on."""

    path: Path
    start: int = 0
    size: int | None = None

    def members(self) -> Iterator[tuple[str, int, int]]:
        """Name, first byte in `path`, size of each file; folders and hidden files are passed over."""
        size = self.path.stat().st_size - self.start if self.size is None else self.size
        file = os.open(self.path, os.O_RDONLY)
        try:
            yield from self._members(_Window(file, self.start, size), size)
        finally:
            os.close(file)

    def _members(self, window: _Window, size: int) -> Iterator[tuple[str, int, int]]:
        end = 0
        try:
            with tarfile.open(fileobj=window, mode='r:') as tar:  # type: ignore[call-overload]
                while (member := _plain_member(tar, window) or tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # tarfile remembers each; a million of them would be a gigabyte
                    if member.issparse():  # its bytes here are a map of holes and what lies between them
                        raise PrepareError(f'{self.path} holds {member.name!r}, which is a sparse file; it is not '
                                           'unpacked', Status.ARCHIVE)
                    if member.size < 0 or tar.offset <= end:  # it would be read again and again
                        raise damaged(self.path, f'{member.name!r} has a size of {member.size:,} bytes')
                    end = tar.offset
                    if member.offset_data + member.size > size:
                        raise damaged(self.path, f'it ends within {member.name}')
                    if member.isdir() or is_hidden(member.name) and member.isreg():
                        continue
                    if not member.isreg():
                        raise PrepareError(f'{self.path} holds {member.name!r}, which is a link or no plain file; it '
                                           'is not unpacked', Status.ARCHIVE)
                    yield safe_name(member.name), self.start + member.offset_data, member.size
                end = tar.offset
        except (tarfile.TarError, ValueError) as error:  # ValueError: numbers in a PAX header that are none
            raise damaged(self.path, f'{error} (at byte {self.start + window.tell():,})') from error
        # tarfile takes a header that it cannot read for the end
        window.seek(end)
        if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise damaged(self.path, f'no further file and no end mark at byte {self.start + end:,}')

    def images(self) -> Images:
        """Each byte is read once, and leaves the page cache to those who need it."""
        file, dropped = os.open(self.path, os.O_RDONLY), self.start
        try:
            for name, offset, size in self.members():
                if offset - dropped > BEHIND:
                    os.posix_fadvise(file, dropped, offset - dropped, os.POSIX_FADV_DONTNEED)
                    dropped = offset
                yield name, partial(self._read, file, name, offset, size)
        finally:
            os.close(file)

    def _read(self, file: int, name: str, offset: int, size: int) -> bytes:
        data = os.pread(file, size, offset)
        if len(data) != size:
            raise damaged(self.path, f'it ends within {name}')
        return data


def _plain_member(tar: tarfile.TarFile, window: _Window) -> tarfile.TarInfo | None:
    """The next member where its header is that of a plain file and nothing else, which tarfile takes 10 times as long
    to find out. None: tarfile is to look at it, as it is to look at the first."""
    if tar.firstmember or tar.pax_headers:  # type: ignore[attr-defined] # the first, read already; settings for all
        return None
    window.seek(tar.offset)
    header = window.read(tarfile.BLOCKSIZE)
    fields, name = _PLAIN.match(header, 124), header[:100].partition(b'\0')[0]
    if not fields or not name or not name.isascii() or name.endswith(b'/'):
        return None
    if sum(header) - sum(header[148:156]) + sum(b' ' * 8) != int(fields[2], 8):
        return None
    member = tarfile.TarInfo(name.decode())
    member.size, member.offset_data = int(fields[1], 8), tar.offset + tarfile.BLOCKSIZE
    tar.offset = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return member


@dataclass(frozen=True)
class Folder:
    """The files of a folder, those below it left out, in the order of their names."""

    path: Path

    def images(self) -> Images:
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            if is_hidden(entry.name) or entry.is_dir(follow_symlinks=False):
                continue
            if not entry.is_file(follow_symlinks=False):
                raise PrepareError(f'{entry.path} is a link or no plain file; put the file itself there',
                                   Status.ARCHIVE)
            yield entry.name, Path(entry.path).read_bytes


@dataclass(frozen=True)
class Zip:
    """Members of a zip below `prefix`."""

    path: Path
    prefix: str = ''

    def images(self) -> Images:
        """Names below the prefix. What `read` returns has the CRC that the archive promises."""
        for name, member, archive in self._members():
            yield name, partial(self._read, archive, member)

    def chunks(self, name: str) -> Iterator[bytes]:
        """A large member, piece by piece."""
        for found, member, archive in self._members():
            if found == name:
                with _zip_errors(self.path, name), archive.open(member) as file:
                    while block := file.read(BLOCK):
                        yield block
                return
        raise PrepareError(f'{self.path} holds no {self.prefix}{name}; is it the right archive?', Status.ARCHIVE)

    def _members(self) -> Iterator[tuple[str, zipfile.ZipInfo, zipfile.ZipFile]]:
        with _zip_errors(self.path, 'its table of contents'):
            archive = zipfile.ZipFile(self.path)
        with archive:
            for member in archive.infolist():
                name = safe_name(member.filename)
                if member.is_dir() or is_hidden(name) or not name.startswith(self.prefix):
                    continue
                if (member.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                    raise PrepareError(f'{self.path} holds {name!r}, which is a link or no plain file; it is not '
                                       'unpacked', Status.ARCHIVE)
                yield name[len(self.prefix):], member, archive

    def _read(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        with _zip_errors(self.path, member.filename):
            return archive.read(member)


@contextmanager
def _zip_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise damaged(path, f'{what}: {error}') from error


def check_names(found: set[str], wanted: set[str], what: str) -> None:
    """Raise unless both are the same; names the first that are not."""
    if found != wanted:
        lists = [f'{title}: {some(sorted(names))}' for title, names in (
            ('missing', wanted - found), ('unexpected', found - wanted)) if names]
        raise PrepareError(f'{what}: {"; ".join(lists)}', Status.ARCHIVE)
