"""What a run has to make, what that takes, and the copies and the manifest at its end.

In: units, sizes of copies. Out: a check of the space, lines for a person, a finished tree.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .archives import Archive, Folder, is_known
from .copies import Packed, originals, resized
from .engine import Job, Unit
from .estimate import ASSUMED_RATE, MARGIN, TYPICAL, archive_lines, bytes_text, read_rate, sample, time_text
from .verify import Earlier, write_manifest

if TYPE_CHECKING:
    from .images import Size

MD5_RATE = 500e6  # bytes a second of one core


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

    def originals_size(self) -> int:
        return sum(unit.size for unit in self.units if unit.name.split('/')[0] == self.part)

    def copies(self) -> dict[str, tuple[float, float]]:
        """Bytes and core-seconds of each copy that is not there, about."""
        total, found = self.originals_size(), {}
        for size, seen in self.samples.items():
            found[f'{self.part}_{size}'] = total * seen.jpeg * MARGIN, total * seen.jpeg_seconds
            if self.pack:
                found[f'{self.part}_{size}.pack'] = total * seen.raw * MARGIN, total * seen.raw_seconds
        return {name: cost for name, cost in found.items() if not self.job.tree.folder(name).exists()}

    def check_room(self, more: int = 0) -> None:
        copies = self.copies()
        size = sum(unit.size for unit in self.pending) + more + sum(cost for cost, _ in copies.values())
        of_part = sum(unit.files for unit in self.units if unit.name.split('/')[0] == self.part)
        self.job.check_space(round(size), sum(unit.files for unit in self.pending) + of_part * len(
            [name for name in copies if not name.endswith('.pack')]))

    def describe(self, archives: dict[Path, Archive]) -> dict[str, Any]:
        """Say what the run would do, and do nothing."""
        say, workers = self.job.say, self.job.pool.workers
        there = [path for path in archives if path.is_file()]
        known = {path for path in there if is_known(self.job, path)}
        for line in archive_lines(archives, known):
            say(line)
        size, files = (sum(values) for values in ([u.size for u in self.pending], [u.files for u in self.pending]))
        say(f'to write   {self.job.tree.dest}: about {bytes_text(size)} in {files:,} files; '
            f'{len(self.units) - len(self.pending):,} of {len(self.units):,} units are there')
        for name, (amount, _) in self.copies().items():
            say(f'copy       {name}: about {bytes_text(amount)}')
        measured = read_rate(sorted(there, key=lambda path: -path.stat().st_size))
        rate = measured or ASSUMED_RATE
        to_sum = max((archive.size or 0 for path, archive in archives.items() if path not in known), default=0)
        times = [('MD5', to_sum / min(rate, MD5_RATE)), ('images', size / rate),
                 *((name, seconds / workers) for name, (_, seconds) in self.copies().items())]
        say('time       about ' + ', '.join(f'{name} {time_text(seconds)}' for name, seconds in times) +
            f', with {workers} processes on a disk of {bytes_text(rate)}/s ' +
            ('(as fast as the archives are read)' if measured else '(assumed), downloads not counted'))
        self.check_room(sum(archive.size or 0 for path, archive in archives.items() if not path.exists()))
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
