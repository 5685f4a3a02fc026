"""The order of things: look, lock, check, build, describe. In: folders and options. Out: a finished tree."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import coco, imagenet
from .archives import Archive, Zip, check_md5, check_size, part_of
from .coco import CocoFacts
from .disk import Disk
from .download import check_address
from .engine import MANIFEST, Job, lock, unlock
from .errors import PrepareError, Status, system_errors
from .imagenet import Subset
from .plan import Plan
from .pool import Pool
from .sources import ImageNetFacts, Official, find_source, read_truth
from .units import Unit, Writer, some
from .verify import read_manifest, verify

if TYPE_CHECKING:
    from .images import Size

Say = Callable[[str], object]
LOCK = '.download.lock'  # in the folder of the archives, which several runs may share
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Settings:
    """What both data sets have in common.

    Args:
        workers: cores; None: all that this process may use. 1: no process but this one; else a spare one is added.
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
        return Job(dest, options, worker_count(self.workers), self.disk, self.progress, packs, self.say)


def worker_count(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise PrepareError(f'{workers} workers; give 1 or more', Status.USAGE)
    return len(os.sched_getaffinity(0)) if workers is None else workers


def prepare_imagenet(archives: PathLike | None, dest: PathLike, *, val_layout: str = 'flat', subset: str | None = None,
                     test: bool = False, remove_archives: bool = False, dry_run: bool = False,
                     facts: ImageNetFacts | None = None,
                     **settings: Any) -> dict[str, Any]:
    """Make an ImageNet tree in `dest`; go on with one that is unfinished; look over one that is there.

    Args:
        archives: the folder with the three official archives, or with Kaggle's `ILSVRC`; None where the tree is
            finished already, and only copies are to be added.
        val_layout: 'flat', or 'folders': one for each class.
        subset: `10`: the first ten classes; `10x50`: fifty images of each; `x50`: fifty of every class.
        test: the test images as well.
        remove_archives: afterwards, once everything is written and synced; not with a subset, and not Kaggle's folders.
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
        job = setting.job(dest, options, 'train')
        if archives is None:
            return add_copies(job, sizes, setting.pack, dry_run)
        official = Official(Path(archives).expanduser(), facts).archives(test)
        if remove_archives and chosen != Subset():
            raise PrepareError('--remove-archives deletes the whole archives, of which --subset leaves only a part; '
                               'give one of the two', Status.USAGE)
        if remove_archives and was_removing(job, official):
            manifest = add_copies(job, sizes, setting.pack, dry_run)
            return manifest if dry_run else removed(official, manifest)
        source = find_source(Path(archives).expanduser(), facts, test)
        wanted = source.archives(test)
        if remove_archives and not wanted:
            raise PrepareError(f'--remove-archives deletes archives; {archives} holds folders from Kaggle, which are '
                               'yours to delete', Status.USAGE)

        def planned() -> Plan:
            truth = job.pool.aside(read_truth, source)
            units = imagenet.plan(source, truth, chosen, val_layout, test)
            samples = [images for images, _ in source.train(truth).values()]
            return Plan(job, units, 'train', sizes, setting.pack, samples[::-(-len(samples) // 8)], truth)

        devkit = {path: archive for path, archive in wanted.items() if archive == facts.devkit}
        if dry_run:
            check_md5(job, devkit, keep=False)  # before it is parsed; nothing is written
            return planned().describe(wanted)
        with job:
            check_md5(job, devkit)
            imagenet.discard_changed(job, source, chosen)
            plan = planned()
            plan.check_room()
            imagenet.check_source(job, source, test, plan.pending)
            job.build(plan.pending, 'images')
            counts, meta = imagenet.write_meta(job, plan.truth, chosen, val_layout, test)
            imagenet.check_counts(counts, source, chosen)
            manifest = plan.finish(described(wanted), meta)
        return removed(wanted, manifest) if remove_archives else manifest


def was_removing(job: Job, archives: dict[Path, Archive]) -> bool:
    """Whether the tree is finished and some of its archives are gone: a run was stopped while it deleted them."""
    if all(path.is_file() for path in archives) or not (job.tree.dest / MANIFEST).is_file():
        return False
    return {path.name for path in archives} <= read_manifest(job.tree.dest)['archives'].keys()


def removed(archives: dict[Path, Archive], manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, and no archives any more. PrepareError where another file has the name of one."""
    there = [path for path in archives if path.is_file()]
    for path in there:
        check_size(path, Archive(**manifest['archives'][path.name]))
    for path in there:
        path.unlink()
    return manifest


def add_copies(job: Job, sizes: Sequence[Size], pack: bool, dry_run: bool) -> dict[str, Any]:
    """To a finished tree, whose archives may be gone."""
    before = read_manifest(job.tree.dest)
    units = [Unit(name, about['bytes'], about['images'], gone) for name, about in before['units'].items()
             if name.split('/')[0] in ('train', 'val', 'test')]
    if dry_run:
        return Plan(job, units, 'train', sizes, pack, ()).describe({})
    with job:
        plan = Plan(job, units, 'train', sizes, pack, ())
        if plan.pending:
            raise PrepareError(f'{job.tree.dest} lacks {some(unit.name for unit in plan.pending)}; give ARCHIVES, and '
                               'they are made', Status.DIFFERENT)
        plan.check_room()
        return plan.finish(before['archives'], before['meta'])


def gone(writer: Writer) -> None:
    """How a unit is filled that is there already."""
    raise AssertionError(writer.folder)


def described(archives: dict[Path, Archive]) -> dict[str, Any]:
    return {path.name: asdict(archive) for path, archive in archives.items()}


def prepare_coco(dest: PathLike, *, archives: PathLike | None = None, mirror: str = coco.MIRROR,
                 splits: Sequence[str] = ('train', 'val'), remove_archives: bool = False,
                 dry_run: bool = False, facts: CocoFacts | None = None, **settings: Any) -> dict[str, Any]:
    """Make a COCO 2017 tree in `dest`; archives that are not in `archives` are downloaded to it.

    Args:
        archives: the folder of the archives; default `dest/archives`.
        mirror: the address below which `zips/train2017.zip` and `annotations/` lie.
        splits: 'train', 'val' or both; a split that is there already stays.
        Others, Returns, Raises: as `prepare_imagenet`.
    """
    setting, dest, facts = Settings(**settings), Path(dest).expanduser(), facts or CocoFacts()
    chosen = tuple(split for split in coco.SPLITS if split in splits)
    if not chosen or {*splits} - {*chosen}:
        raise PrepareError(f'splits are train and val, got {splits}', Status.USAGE)
    check_address(mirror)
    folder = dest / 'archives' if archives is None else Path(archives).expanduser()
    sizes, options = setting.sizes, {'dataset': 'coco'}
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
            needed = coco.needed(wanted, plan.pending)
            plan.check_room(needed.items() if plan.pending else ())
            if plan.pending:
                bring(job, needed, mirror, setting.progress)
            job.build(plan.pending, 'images')
            job.pool.aside(coco.check_images, job.tree, chosen, facts)
            manifest = plan.finish({**earlier_archives(job), **described(wanted)})
        for path in wanted if remove_archives else ():
            path.unlink(missing_ok=True)
    return manifest


def earlier_archives(job: Job) -> dict[str, Any]:
    """What a finished tree was made of, which may be another split."""
    return read_manifest(job.tree.dest)['archives'] if (job.tree.dest / MANIFEST).is_file() else {}


def bring(job: Job, wanted: dict[Path, Archive], mirror: str, progress: bool) -> None:
    """Archives that are there are checked; the others downloaded, by one run at a time, and checked."""
    there = {path: archive for path, archive in wanted.items() if path.is_file()}
    for path, archive in there.items():
        check_size(path, archive)
    check_md5(job, there)
    missing = {path: archive for path, archive in wanted.items() if path not in there}
    for folder in {path.parent for path in missing}:
        job.disk.make_folder(folder)
        held = lock(folder / LOCK)
        try:
            for path, archive in missing.items():
                if not path.is_file():  # another run may have brought it before this one had the lock
                    bring_one(job, path, archive, mirror, progress)
            check_md5(job, missing)
        finally:
            unlock(held)


def bring_one(job: Job, path: Path, archive: Archive, mirror: str, progress: bool) -> None:
    """Download an archive; it has its name once its bytes are on the disk, and their MD5 is right."""
    part = part_of(path)
    coco.fetch(archive, path, mirror, progress)
    job.disk.sync_file(part)
    try:
        check_md5(job, {part: archive})
    except PrepareError as error:
        job.disk.remove(part)
        raise PrepareError(f'{mirror} gave a wrong {archive.name}, which was deleted: {error}',
                           Status.DOWNLOAD) from error
    job.disk.rename(part, path)
    job.disk.sync_folder(path.parent)


def verify_tree(dest: PathLike, *, workers: int | None = None, progress: bool = True) -> list[str]:
    """All that differs from the manifest of a finished tree, a line each; reads every byte, writes none."""
    count = worker_count(workers)
    with system_errors(Path(dest)):
        return verify(Path(dest).expanduser(), Pool(count, progress))
