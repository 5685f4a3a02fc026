"""What a run would take, before it takes it. In: units, sample images. Out: bytes, seconds, lines for the person."""
from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .archives import Archive
from .errors import PrepareError, Status, bytes_text
from .pool import Meter
from .units import BLOCK

if TYPE_CHECKING:
    from .images import Size

SAMPLES = 32  # pictures
MARGIN = 1.15  # for what a sample does not show
PROBE = 64 << 20  # bytes
ASSUMED_RATE = 150e6  # bytes a second, of a disk that nothing can be read from yet


@dataclass(frozen=True)
class Sample:
    """What some pictures of a copy say: bytes for each byte of an original, and seconds of one core."""

    jpeg: float
    raw: float
    jpeg_seconds: float
    raw_seconds: float


TYPICAL = Sample(0.5, 5.0, 3e-8, 2e-8)  # where no picture can be had yet


def sample(meter: Meter, sources: Sequence[Any], size: Size) -> Sample:
    """Make the copies of the first pictures of a few `sources` (anything with `path` and `images()`), and throw them
    away.

    Raises:
        PrepareError: one of them cannot be read; names it.
    """
    from .images import shrunk, shrunk_jpeg
    each = -(-SAMPLES // max(1, len(sources)))
    originals = [(f'{source.path}: {name}', read()) for source in sources
                 for name, read in itertools.islice(source.images(), each)]
    total = sum(len(data) for _, data in originals)
    if not total:
        return TYPICAL
    start = time.perf_counter()
    try:
        jpeg = sum(len(shrunk_jpeg(data, size, name)) for name, data in originals)
        between = time.perf_counter()
        raw = sum(shrunk(data, size, name).nbytes for name, data in originals)
    except ValueError as error:
        raise PrepareError(f'{error}; no copy can be made of it. Fetch it again, or leave the copy out',
                           Status.ARCHIVE) from error
    return Sample(jpeg / total, raw / total, (between - start) / total, (time.perf_counter() - between) / total)


def read_rate(paths: Iterable[Path]) -> float | None:
    """Bytes a second at which the first file is read, from its middle; None if there is none."""
    for path in paths:
        start, count = time.perf_counter(), 0
        with path.open('rb', buffering=0) as file:
            file.seek(path.stat().st_size // 2)
            while count < PROBE and (block := file.read(BLOCK)):
                count += len(block)
        return max(count, 1) / (time.perf_counter() - start)
    return None


def time_text(seconds: float) -> str:
    if seconds < 60:
        return f'{max(1, round(seconds))} s'
    return f'{round(seconds / 60)} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def archive_lines(archives: dict[Path, Archive], known: set[Path]) -> list[str]:
    """Each archive, its size, and how sure it is."""
    lines = []
    for path, archive in archives.items():
        there = bytes_text(path.stat().st_size) if path.is_file() else f'{bytes_text(archive.size or 0)} to download'
        sure = 'no MD5 published' if not archive.md5 else 'MD5 checked before' if path in known else 'MD5 to be checked'
        lines.append(f'archive    {path}: {there}, {sure}')
    return lines
