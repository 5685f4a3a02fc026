"""What a run has to make, what that takes, and the copies and the manifest at its end.

In: units, sizes of copies. Out: a check of the space, lines for a person, a finished tree.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .archives import Archive, Folder, is_known
from .coco import part_of
from .copies import Packed, copy_name, originals, resized
from .engine import Job, existing
from .estimate import (
    ASSUMED_RATE,
    MARGIN,
    TYPICAL,
    Sample,
    archive_lines,
    bytes_text,
    read_rate,
    sample,
    time_text,
)
from .units import Unit
from .verify import Earlier, write_manifest

if TYPE_CHECKING:
    from .images import Size

MD5_RATE = 500e6  # bytes a second of one core


@dataclass(frozen=True)
class Cost:
    """Bytes, files and seconds of one core."""

    size: float
    files: int
    seconds: float


def missing(archives: Iterable[tuple[Path, Archive]]) -> dict[Path, int]:
    """Bytes that are still to be downloaded to each folder."""
    found: dict[Path, int] = {}
    for path, archive in archives:
        if not path.exists():
            have = part_of(path).stat().st_size if part_of(path).exists() else 0
            found[path.parent] = found.get(path.parent, 0) + max(0, (archive.size or 0) - have)
    return found


class Plan:
    """The units of a run, which of them are still to be made, and the copies to be made of one part.

    Args:
        part: what copies are made of, such as `train`.
        sources: where some of its pictures can be had before it is there.
    """

    def __init__(self, job: Job, units: list[Unit], part: str, sizes: Sequence[Size], pack: bool,
                 sources: Sequence[Any], truth: Any = None) -> None:
        self.job, self.units, self.part, self.sizes, self.pack = job, units, part, sizes, pack
        self.truth = truth
        self.pending = job.pending(units)
        there = [Folder(job.tree.folder(unit.name)) for unit in units
                 if unit.name.split('/')[0] == part and unit not in self.pending]
        sources = there[:8] or sources
        self.samples = {size: job.pool.aside(sample, sources, size) if sources else TYPICAL for size in sizes}

    def copies(self) -> dict[str, Cost]:
        """What each copy that is not all there still takes, about."""
        tree, found = self.job.tree, {}
        originals = [unit for unit in self.units if unit.name.split('/')[0] == self.part]
        for size, seen in self.samples.items():
            name = f'{self.part}_{size}'
            left = [unit for unit in originals if not tree.of_copy(name).folder(copy_name(unit.name, name)).exists()]
            amount, files = sum(unit.size for unit in left), sum(unit.files for unit in left)
            found[name] = Cost(amount * seen.jpeg * MARGIN, files, amount * seen.jpeg_seconds)
            if self.pack:
                found[f'{name}.pack'] = self._pack_cost(f'{name}.pack', sum(unit.size for unit in originals), seen)
        return {name: cost for name, cost in found.items() if cost.seconds}

    def _pack_cost(self, name: str, amount: int, seen: Sample) -> Cost:
        tree, work = self.job.tree, self.job.tree.unfinished(name)
        if tree.folder(name).exists():
            return Cost(0, 0, 0)
        # The index comes after the pixels' blocks; without it they will be given back.
        more = 0 if (work / 'index.npy').exists() else amount * seen.raw * MARGIN - self.job.disk.taken(
            work / 'pixels.bin')
        return Cost(max(0, more), 0, amount * seen.raw_seconds)

    def check_room(self, archives: Iterable[tuple[Path, Archive]] = ()) -> None:
        """Raise unless all that is missing fits; of `archives` what is still to be downloaded, on their own disk."""
        job, copies = self.job, self.copies().values()
        size = sum(unit.size for unit in self.pending) + sum(cost.size for cost in copies)
        for folder, more in missing(archives).items():
            if job.disk.device(existing(folder)) == job.disk.device(existing(job.tree.dest)):
                size += more
            else:
                job.check_space(more, 0, folder)
        job.check_space(round(size), sum(unit.files for unit in self.pending) + sum(cost.files for cost in copies))

    def describe(self, archives: dict[Path, Archive]) -> dict[str, Any]:
        """Say what the run would do, and do nothing."""
        self.job.check_target()
        say, workers = self.job.say, self.job.pool.workers
        there = [path for path in archives if path.is_file()]
        known = {path for path in there if is_known(self.job, path)}
        for line in archive_lines(archives, known):
            say(line)
        size, files = (sum(values) for values in ([u.size for u in self.pending], [u.files for u in self.pending]))
        say(f'to write   {self.job.tree.dest}: about {bytes_text(size)} in {files:,} files; '
            f'{len(self.units) - len(self.pending):,} of {len(self.units):,} units are there')
        for name, cost in self.copies().items():
            say(f'copy       {name}: about {bytes_text(cost.size)}')
        measured = read_rate(sorted(there, key=lambda path: -path.stat().st_size))
        rate = measured or ASSUMED_RATE
        to_sum = max((archive.size or 0 for path, archive in archives.items() if path not in known), default=0)
        times = [('MD5', to_sum / min(rate, MD5_RATE)), ('images', size / rate),
                 *((name, cost.seconds / workers) for name, cost in self.copies().items())]
        say('time       about ' + ', '.join(f'{name} {time_text(seconds)}' for name, seconds in times) +
            f', with {workers} processes on a disk of {bytes_text(rate)}/s ' +
            ('(as fast as the archives are read)' if measured else '(assumed), downloads not counted'))
        self.check_room(archives.items() if self.pending else ())
        say('space      enough. Nothing was written: --dry-run')
        return {}

    def finish(self, archives: dict[str, Any], meta: dict[str, str] | None = None) -> dict[str, Any]:
        """Make the copies, then the manifest, which says that all is there.

        Args:
            meta: SHA-256 of each file in `meta`, as it was written.
        """
        job, made = self.job, [unit.name for unit in self.units]
        earlier = Earlier.of(job.tree, meta or {})
        earlier.check(job.tree)
        packs: dict[str, list[str]] = {}
        found = originals(made, self.part)
        for size, seen in self.samples.items():
            name = f'{self.part}_{size}'
            copies = resized(job.tree, found, name, size, seen.jpeg * MARGIN, job.pool.workers)
            job.build_copy(copies, name)
            made += [unit.name for unit in copies]
            if self.pack:
                packed = Packed(job, found, f'{name}.pack', size)
                if not packed.is_done:
                    packed.make()
                packs[packed.name] = packed.records
        job.remember_options()
        job.disk.remove(job.tree.work)
        return write_manifest(job, made, packs, earlier, {'archives': archives})
