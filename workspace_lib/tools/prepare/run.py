"""The order of things: look, lock, check, build, describe. In: folders and options. Out: a finished tree."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import coco, imagenet
from .archives import Archive, Folder, Zip, check_md5, check_size, is_known
from .coco import CocoFacts
from .copies import Packed, originals, resized
from .disk import Disk
from .engine import Job, Unit
from .errors import PrepareError, Status, system_errors
from .estimate import ASSUMED_RATE, MARGIN, TYPICAL, archive_lines, bytes_text, read_rate, sample, time_text
from .imagenet import Subset
from .pool import Pool
from .sources import ImageNetFacts, find_source, read_truth
from .verify import read_manifest, verify, write_manifest

if TYPE_CHECKING:
    from .images import Size

Say = Callable[[str], object]
PathLike = str | os.PathLike[str]
MD5_RATE = 500e6  # bytes a second of one core


@dataclass(frozen=True)
class Settings:
    """What both data sets have in common.

    Args:
        workers: processes; None: one for each core this process may use. 1: none but this one.
        short, long: make a training copy whose shorter (longer) side has so many pixels.
        pack: make each copy as a raw map, too.
        progress: bars on stderr.
        say: takes each line for the person.
        disk: for tests.
    """

    workers: int | None = None
    short: int | None = None
    long: int | None = None
    pack: bool = False
    progress: bool = True
    say: Say = print
    disk: Disk = field(default_factory=Disk)

    @property
    def sizes(self) -> list[Size]:
        wanted = [(side, pixels) for side, pixels in (('short', self.short), ('long', self.long)) if pixels is not None]
        if self.pack and not wanted:
            raise PrepareError('--pack needs --resize or --max-size: as raw pixels the originals of ImageNet would '
                               'take 700 GB', Status.USAGE)
        if wrong := [pixels for _, pixels in wanted if pixels < 1]:
            raise PrepareError(f'a picture of {wrong[0]} pixels; give a size from 1', Status.USAGE)
        if not wanted:
            return []
        from .images import Size
        return [Size(side, pixels) for side, pixels in wanted]

    def job(self, dest: Path, options: dict[str, Any], part: str) -> Job:
        packs = [f'{part}_{size}.pack' for size in self.sizes] if self.pack else []
        workers = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        if workers < 1:
            raise PrepareError(f'{workers} workers; give 1 or more', Status.USAGE)
        return Job(dest, options, workers, self.disk, self.progress, packs, self.say)


def prepare_imagenet(archives: PathLike, dest: PathLike, *, val_layout: str = 'flat', subset: str | None = None,
                     test: bool = False, remove_archives: bool = False, dry_run: bool = False,
                     facts: ImageNetFacts | None = None,
                     **settings: Any) -> dict[str, Any]:
    """Make an ImageNet tree in `dest`; go on with one that is unfinished; look over one that is there.

    Args:
        archives: the folder with the three official archives, or with Kaggle's `ILSVRC`.
        val_layout: 'flat', or 'folders': one for each class.
        subset: `10`: the first ten classes; `10x50`: fifty images of each; `x50`: fifty of every class.
        test: the test images as well.
        remove_archives: afterwards, once everything is written and synced.
        dry_run: say what would be done, how large it is and how long it takes; returns {}.
        facts: sizes and sums of other archives than the official ones; for tests.
        settings: as `Settings`.

    Returns:
        The manifest, as in `meta/manifest.json`.

    Raises:
        PrepareError: with the exit status that the script would have.
    """
    setting, dest, facts = Settings(**settings), Path(dest).expanduser(), facts or ImageNetFacts()
    if val_layout not in ('flat', 'folders'):
        raise PrepareError(f'val_layout is flat or folders, got {val_layout!r}', Status.USAGE)
    chosen = Subset.parse(subset)
    sizes, options = setting.sizes, {'dataset': 'imagenet', 'subset': str(chosen), 'val': val_layout}
    with system_errors(dest):
        source = find_source(Path(archives).expanduser(), facts, test)
        wanted, job = source.archives(test), setting.job(dest, options, 'train')

        def planned() -> Plan:
            truth = job.pool.aside(read_truth, source)
            units = imagenet.plan(source, truth, chosen, val_layout, test)
            samples = [images for images, _ in source.train(truth).values()]
            return Plan(job, units, 'train', sizes, setting.pack, samples[::-(-len(samples) // 8)], truth)

        if dry_run:
            return planned().describe(wanted)
        with job:
            check_md5(job, {path: archive for path, archive in wanted.items() if archive == facts.devkit})
            plan = planned()
            plan.check_room()
            imagenet.check_source(job, source, test, plan.pending)
            job.build(plan.pending, 'images')
            counts = imagenet.write_meta(job, plan.truth, chosen, val_layout, test)
            imagenet.check_counts(counts, facts, chosen)
            manifest = plan.finish(wanted)
        for path in wanted if remove_archives else ():
            path.unlink(missing_ok=True)
    return manifest


def prepare_coco(dest: PathLike, *, archives: PathLike | None = None, mirror: str = coco.MIRROR,
                 splits: Sequence[str] = ('train', 'val'), remove_archives: bool = False,
                 dry_run: bool = False, facts: CocoFacts | None = None, **settings: Any) -> dict[str, Any]:
    """Make a COCO 2017 tree in `dest`; archives that are not in `archives` are downloaded to it.

    Args:
        archives: the folder of the archives; default `dest/archives`.
        mirror: the address below which `zips/train2017.zip` and `annotations/` lie.
        splits: 'train', 'val' or both.
        Others, Returns, Raises: as `prepare_imagenet`.
    """
    setting, dest, facts = Settings(**settings), Path(dest).expanduser(), facts or CocoFacts()
    chosen = tuple(split for split in ('train', 'val') if split in splits)
    if not chosen or {*splits} - {*chosen}:
        raise PrepareError(f'splits are train and val, got {splits}', Status.USAGE)
    folder = dest / 'archives' if archives is None else Path(archives).expanduser()
    sizes, options = setting.sizes, {'dataset': 'coco', 'splits': list(chosen)}
    wanted = coco.archives(facts, folder, chosen)
    with system_errors(dest):
        job = setting.job(dest, options, part := f'{chosen[0]}2017')

        def planned() -> Plan:
            units = coco.plan(facts, folder, chosen)
            there = [Zip(path, 'train2017/') for path in wanted if path.name == facts.train.name and path.is_file()]
            return Plan(job, units, part, sizes, setting.pack, there)

        if dry_run:
            return planned().describe(wanted)
        with job:
            plan = planned()
            if plan.pending:
                plan.check_room(sum(archive.size or 0 for path, archive in wanted.items() if not path.exists()))
                bring(job, wanted, mirror, setting.progress)
            job.build(plan.pending, 'images')
            job.pool.aside(coco.check_images, job.tree, chosen, facts)
            manifest = plan.finish(wanted)
        for path in wanted if remove_archives else ():
            path.unlink(missing_ok=True)
    return manifest


def bring(job: Job, wanted: dict[Path, Archive], mirror: str, progress: bool) -> None:
    """Archives that are there are checked; the others downloaded, and given their names once their MD5 is right."""
    there = {path: archive for path, archive in wanted.items() if path.is_file()}
    for path, archive in there.items():
        check_size(path, archive)
    check_md5(job, there)
    for path, archive in wanted.items():
        if path in there:
            continue
        coco.fetch(archive, path, mirror, progress)
        part = coco.part_of(path)
        try:
            check_md5(job, {part: archive})
        except PrepareError as error:
            part.unlink()
            raise PrepareError(f'{mirror} gave a wrong {archive.name}, which was deleted: {error}',
                               Status.DOWNLOAD) from error
        part.rename(path)


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

    def finish(self, archives: dict[Path, Archive]) -> dict[str, Any]:
        """Make the copies, then the manifest, which says that all is there."""
        job, made = self.job, [unit.name for unit in self.units]
        packs: dict[str, list[str]] = {}
        found = originals(made, self.part)
        for size, seen in self.samples.items():
            name = f'{self.part}_{size}'
            copies = resized(job.tree, found, name, size, seen.jpeg * MARGIN, job.pool.workers)
            job.build(job.pending(copies), name, count_files=True)
            made += [unit.name for unit in copies]
            if self.pack:
                packed = Packed(job, found, f'{name}.pack', size)
                if not packed.is_done:
                    packed.make()
                packs[packed.name] = packed.records
        job.remember_options()
        job.disk.remove(job.tree.work)
        _keep_earlier(job, made, packs)
        return write_manifest(job, made, packs, {
            'archives': {path.name: asdict(archive) for path, archive in archives.items()}})


def _keep_earlier(job: Job, units: list[str], packs: dict[str, list[str]]) -> None:
    """Copies of earlier runs stay in the manifest for as long as their folders are there."""
    try:
        before = read_manifest(job.tree.dest)
    except PrepareError:
        return
    units += [name for name in before['units'] if name not in units and job.tree.folder(name).exists()]
    for name, about in before['packs'].items():
        if job.tree.folder(name).exists():
            packs.setdefault(name, list(about['records']))


def verify_tree(dest: PathLike, *, workers: int | None = None, progress: bool = True) -> list[str]:
    """All that differs from the manifest of a finished tree, a line each; reads every byte, writes none."""
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    with system_errors(Path(dest)):
        return verify(Path(dest).expanduser(), Pool(count, progress))
