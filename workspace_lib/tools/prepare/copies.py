"""Training copies: pictures made smaller once, as JPEG files in the same folders or as one raw map of uint8.

In: units that are there. Out: `NAME_short256/` with files of the same names; `NAME_short256.pack/` with `pixels.bin`
and `index.npy`, which `workspace_lib.datasets.packed` reads.
"""
from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .disk import Disk
from .engine import Job, as_json
from .errors import PrepareError, Status
from .pool import Meter
from .units import Entry, Tree, Unit, Writer, files_below, read_listing

if TYPE_CHECKING:
    import numpy as np

    from .images import Size

PIECE = 4 << 20  # bytes that each process gathers before it writes


def originals(units: Sequence[str], part: str) -> list[str]:
    """Those of a part, such as `train`."""
    return [unit for unit in units if unit.split('/')[0] == part]


def copy_name(unit: str, copy: str) -> str:
    """`train/n01440764` is copied to `train_short256/n01440764`."""
    return copy + unit[len(unit.split('/')[0]):]


def resized(tree: Tree, found: Sequence[str], copy: str, size: Size, share: float, workers: int) -> list[Unit]:
    """Units of the JPEG copy, which takes about `share` of the originals' bytes."""
    units = []
    for unit in found:
        entries = read_listing(tree.listing(unit))
        amount = round(share * sum(entry.size for entry in entries))
        units.append(Unit(copy_name(unit, copy), amount, len(entries), partial(
            fill_resized, tree=tree, unit=unit, size=size, threads=threads_each(workers, found))))
    return units


def threads_each(workers: int, units: Sequence[str]) -> int:
    """Processes share the units; where those are fewer than cores, each has threads (the codecs release the GIL)."""
    return max(1, workers // len(units))


def fill_resized(writer: Writer, tree: Tree, unit: str, size: Size, threads: int) -> None:
    from .images import shrunk_jpeg
    for entry, jpeg in _pictures(shrunk_jpeg, tree, unit, size, threads):
        writer.add(entry.name, jpeg)


def _pictures(work: Any, tree: Tree, unit: str, size: Size, threads: int) -> Iterator[tuple[Entry, Any]]:
    """`work` of each picture of a unit, in order; a few at a time, so that memory stays flat."""
    from .images import one_thread
    entries, folder = read_listing(tree.listing(unit)), tree.folder(unit)
    if threads == 1:
        with one_thread():  # the processes fill the cores by themselves
            yield from ((entry, _picture(work, folder, entry, size)) for entry in entries)
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(entries), 8 * threads):
            some = entries[start:start + 8 * threads]
            yield from zip(some, pool.map(lambda entry: _picture(work, folder, entry, size), some), strict=True)


def _picture(work: Any, folder: Path, entry: Entry, size: Size) -> Any:
    path = f'{folder}/{entry.name}'
    file = os.open(path, os.O_RDONLY)
    try:
        return work(os.read(file, entry.size), size, path)
    except ValueError as error:
        raise PrepareError(f'{error}; no copy can be made of it. If it is as it came (--verify), leave the copy out',
                           Status.ARCHIVE) from error
    finally:
        os.close(file)


class Packed:
    """A raw map in the making. The index comes first, so that every class knows its place in `pixels.bin`, and a run
    that was killed goes on with the classes that are missing."""

    def __init__(self, job: Job, found: Sequence[str], name: str, size: Size) -> None:
        self.job, self.found, self.name, self.size = job, found, name, size
        self.folder = job.tree.unfinished(name)

    @property
    def records(self) -> list[str]:
        return [self._record_name(unit) for unit in self.found]

    @property
    def is_done(self) -> bool:
        """In its place, with files of the right sizes. PrepareError if something else is."""
        folder = self.job.tree.folder(self.name)
        if not folder.exists():
            return False
        entries = [entry for unit in self.found for entry in _record(self.job.tree, self._record_name(unit))]
        files = {entry.name: entry for entry in _record(self.job.tree, self.name)}
        sizes = {name: entry.size for name, entry in files.items()} | {'pixels.bin': sum(e.size for e in entries)}
        there = files_below(folder)
        if len(entries) < len(self.found) or not files or sizes != {name: there.get(name) for name in sizes}:
            raise PrepareError(f'{folder} is not what this tool made; move it away and run again', Status.DIFFERENT)
        for name, entry in files.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != entry.digest:
                raise PrepareError(f'{folder / name} has changed since it was made; remove {folder}, and run again to '
                                   'have it made anew', Status.DIFFERENT)
        return True

    def make(self) -> None:
        index, ends = self._index()
        tasks = []
        for unit, (first, last) in zip(self.found, ends, strict=True):
            if not _record(self.job.tree, self._record_name(unit)):
                tasks.append((self.job.tree, self.job.disk, unit, self._record_name(unit),
                              self.folder / 'pixels.bin', index[first:last], self.size,
                              threads_each(self.job.pool.workers, self.found)))
        self.job.pool.run(_pack, tasks, self.name, sum(_bytes(task[5]) for task in tasks))
        self.job.disk.sync(self.folder)
        self.job.disk.rename(self.folder, self.job.tree.folder(self.name))
        self.job.disk.sync_folder(self.job.tree.dest)

    def _record_name(self, unit: str) -> str:
        return f'{self.name}/{unit.rpartition("/")[2]}'

    def _index(self) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The index, and which part of it belongs to each original; made, or of the run before."""
        import numpy as np
        counts = [len(read_listing(self.job.tree.listing(unit))) for unit in self.found]
        path = self.folder / 'index.npy'
        if path.exists():
            index = np.load(path)
        else:
            index = self._make_index()
            self._begin(path, index)
        ends = np.cumsum([0, *counts]).tolist()
        return index, list(zip(ends[:-1], ends[1:], strict=True))

    def _make_index(self) -> np.ndarray:
        import numpy as np
        tasks = [(self.job.tree, unit, self.size) for unit in self.found]
        total = sum(len(read_listing(self.job.tree.listing(unit))) for unit in self.found)
        parts = self.job.pool.run(_shapes, tasks, f'{self.name}: sizes', total, unit=' images')
        names = [name for part in parts for name, _, _ in part]
        index = np.zeros(len(names), [('name', f'S{max(map(len, names))}'), ('offset', '<i8'), ('height', '<i4'),
                                      ('width', '<i4')])
        index['name'] = names
        index['height'] = [height for part in parts for _, height, _ in part]
        index['width'] = [width for part in parts for _, _, width in part]
        sizes = index['height'].astype(np.int64) * index['width'] * 3
        index['offset'] = np.cumsum(sizes) - sizes
        return index

    def _begin(self, path: Path, index: np.ndarray) -> None:
        import numpy as np
        disk, records = self.job.disk, self.job.tree.state / 'units' / self.name
        disk.remove(self.folder)
        self.job.check_space(_bytes(index), 0)
        disk.make_folder(self.folder)
        disk.remove(records)  # of an unfinished pack that is gone
        disk.make_folder(records)
        disk.allocate(self.folder / 'pixels.bin', _bytes(index))
        about = as_json({'format': 1, 'pixels': 'pixels.bin: uint8, BGR, (height, width, 3) at offset',
                         'size': str(self.size)})
        content = io.BytesIO()
        np.save(content, index, allow_pickle=False)
        files = {'about.json': about, path.name: content.getvalue()}
        disk.replace(self.job.tree.listing(self.name), [
            str(Entry(hashlib.sha256(data).hexdigest(), len(data), name)).encode() for name, data in files.items()])
        disk.write(self.folder / 'about.json', [about])
        disk.sync(self.folder)
        disk.replace(path, [content.getvalue()])


def _bytes(index: np.ndarray) -> int:
    return int((index['height'].astype('i8') * index['width'] * 3).sum())


def _record(tree: Tree, name: str) -> list[Entry]:
    path = tree.listing(name)
    return read_listing(path) if path.exists() else []


def _shapes(meter: Meter, tree: Tree, unit: str, size: Size) -> list[tuple[bytes, int, int]]:
    """Name below the split's folder, height and width of each picture of a unit."""
    from .images import shape_of
    below = unit.partition('/')[2]
    found = []
    for entry in read_listing(tree.listing(unit)):
        height, width = _picture(shape_of, tree.folder(unit), entry, size)
        found.append(((f'{below}/{entry.name}' if below else entry.name).encode(), height, width))
        meter.add(1)
    return found


def _pack(meter: Meter, tree: Tree, disk: Disk, *region: Any) -> None:
    with disk.watching(tree.state):
        _fill_region(meter, tree, disk, *region)


def _fill_region(meter: Meter, tree: Tree, disk: Disk, unit: str, record: str, pixels: Path, index: np.ndarray,
                 size: Size, threads: int) -> None:
    """The pictures of one unit into their place, one sync, then the record that they are there."""
    from .images import shrunk
    digest, piece, start = hashlib.sha256(), bytearray(), int(index['offset'][0])
    at = start
    for row, (entry, img) in zip(index, _pictures(shrunk, tree, unit, size, threads), strict=True):
        if img.shape[:2] != (row['height'], row['width']):
            raise PrepareError(f'{tree.folder(unit) / entry.name} has changed while it was packed')
        piece += img.data
        meter.add(img.nbytes)
        if len(piece) > PIECE:
            at = _write_piece(disk, pixels, at, piece, digest)
    at = _write_piece(disk, pixels, at, piece, digest)
    entry = Entry(digest.hexdigest(), at - start, f'pixels.bin@{start}')
    disk.sync(pixels.parent)
    disk.replace(tree.listing(record), [str(entry).encode()])


def _write_piece(disk: Disk, pixels: Path, at: int, piece: bytearray, digest: Any) -> int:
    disk.write_at(pixels, at, piece)
    digest.update(piece)
    at += len(piece)
    piece.clear()
    return at
