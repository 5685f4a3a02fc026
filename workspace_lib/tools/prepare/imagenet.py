"""ILSVRC2012 from the official archives, or from Kaggle's folders, as `train`, `val` and `meta`.

In: the folder with the archives, the target folder. Out: images byte for byte, annotation files, a manifest.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from .archives import Folder, Tar, check_md5
from .engine import MANIFEST, Job
from .errors import PrepareError, Status
from .sources import IMAGE_BYTES, TEST_NAME, VAL_NAME, Kaggle, Source, Truth
from .units import Unit, Writer, read_listing, some


@dataclass(frozen=True)
class Subset:
    """A trial: the first classes, the first images of each. None means all."""

    classes: int | None = None
    images: int | None = None

    @classmethod
    def parse(cls, text: str | None) -> Subset:
        """`10`: ten classes; `10x50`: fifty images of each of them; `x50`: fifty images of every class."""
        match = re.fullmatch(r'(?=.)([1-9]\d*)?(?:x([1-9]\d*))?', text or '')
        if text is not None and not match:
            raise PrepareError(f'--subset {text}: write CLASSES, CLASSESxIMAGES or xIMAGES, such as 10, 10x50 or x50',
                               Status.USAGE)
        return cls(*(int(part) if part else None for part in match.groups())) if match else cls()

    def __str__(self) -> str:
        return f'{self.classes or ""}' + (f'x{self.images}' if self.images else '')


def plan(source: Source, truth: Truth, subset: Subset, val_layout: str, test: bool) -> list[Unit]:
    """All units, the longest first."""
    facts = source.facts
    chosen = truth.wnids[:subset.classes]
    share = len(chosen) / facts.classes * min(1.0, (subset.images or 1e9) * facts.classes / facts.train_images)
    train = source.train(truth)
    images, size = source.val()
    val = partial(fill_val, images=images, truth=truth, subset=subset, layout=val_layout)
    units = [Unit('val', _part(size, len(chosen) / facts.classes), _part(facts.val_images, share), val)]
    if test:
        images, size = source.test()
        units.append(Unit('test', size, facts.test_images, partial(fill_test, images=images, count=facts.test_images)))
    each = facts.train_images // facts.classes
    for wnid in chosen:
        images, size = train[wnid]
        count = max(1, size // IMAGE_BYTES, each if size < IMAGE_BYTES else 0)
        part = min(1.0, (subset.images or count) / count)
        units.append(Unit(f'train/{wnid}', _part(size, part), _part(count, part),
                          partial(fill_class, images=images, wnid=wnid, limit=subset.images)))
    return units


def _part(amount: int, share: float) -> int:
    return max(1, round(amount * share))


def fill_class(writer: Writer, images: Tar | Folder, wnid: str, limit: int | None) -> None:
    """A class of the training set."""
    pattern = re.compile(rf'{wnid}_\d+\.JPEG')
    for name, read in images.images():
        if not pattern.fullmatch(name):
            raise PrepareError(f'{name!r} is no image of the class {wnid}', Status.ARCHIVE)
        writer.add(name, read())
        if len(writer.entries) == limit:
            return
    if not writer.entries:
        raise PrepareError(f'no image of the class {wnid} in {images.path}', Status.ARCHIVE)


def fill_val(writer: Writer, images: Tar | Folder, truth: Truth, subset: Subset, layout: str) -> None:
    """The val images of the chosen classes, in a folder for each class, or flat."""
    wanted = set(chosen_val(truth, subset))
    seen = set()
    for name, read in images.images():
        match = VAL_NAME.fullmatch(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(truth.val):
            raise PrepareError(f'{name!r} is no val image: they are numbered from 1 to {len(truth.val)}',
                               Status.ARCHIVE)
        seen.add(number)
        if number in wanted:
            writer.add(val_path(number, truth, layout), read())
    if missing := {*range(1, len(truth.val) + 1)} - seen:
        raise PrepareError(f'{images.path} lacks {len(missing):,} val images, such as number {min(missing)}',
                           Status.ARCHIVE)


def chosen_val(truth: Truth, subset: Subset) -> Iterator[int]:
    """Numbers of the val images of a subset, in order."""
    counts: Counter[int] = Counter()
    for number, label in enumerate(truth.val, 1):
        counts[label] += 1
        if label < (subset.classes or len(truth.wnids)) and counts[label] <= (subset.images or len(truth.val)):
            yield number


def val_path(number: int, truth: Truth, layout: str) -> str:
    name = f'ILSVRC2012_val_{number:08}.JPEG'
    return f'{truth.wnids[truth.val[number - 1]]}/{name}' if layout == 'folders' else name


def fill_test(writer: Writer, images: Tar | Folder, count: int) -> None:
    """The test images, which have no labels; the archive has them in a folder `test`."""
    seen = set()
    for name, read in images.images():
        match = TEST_NAME.fullmatch(name.removeprefix('test/'))
        number = int(match[1]) if match else 0
        if not match or not 1 <= number <= count:
            raise PrepareError(f'{name!r} is no test image: they are ILSVRC2012_test_{1:08}.JPEG to {count:08}',
                               Status.ARCHIVE)
        seen.add(number)
        writer.add(match[0], read())
    if missing := {*range(1, count + 1)} - seen:
        raise PrepareError(f'{images.path} lacks {len(missing):,} test images, such as number {min(missing)}',
                           Status.ARCHIVE)


def discard_changed(job: Job, source: Source, subset: Subset) -> None:
    """Classes of an unfinished tree whose folder in Kaggle's download has other files by now are made anew."""
    if not isinstance(source, Kaggle) or (job.tree.dest / MANIFEST).exists():
        return
    listing = job.tree.listing
    changed = [f'train/{wnid}' for wnid, (images, _) in source.train(source.truth()).items()
               if job.tree.folder(f'train/{wnid}').exists() and listing(f'train/{wnid}').exists()
               and [name for name, _ in images.images()][:subset.images] != [
                   entry.name for entry in read_listing(listing(f'train/{wnid}'))]]
    for unit in changed:
        job.discard(unit)
    if changed:
        job.say(f'other files than before in the source, so made anew: {some(changed)}')


def write_meta(job: Job, truth: Truth, subset: Subset, val_layout: str,
               test: bool) -> tuple[dict[str, int], dict[str, str]]:
    """`meta/*.txt`; returns how many lines each has, of those that list images, and the SHA-256 of each."""
    meta, tree = job.tree.dest / 'meta', job.tree
    counts = dict.fromkeys(['train.txt', 'val.txt'] + ['test.txt'] * test, 0)

    def count(name: str, lines: Iterator[str]) -> Iterator[bytes]:
        for line in lines:
            counts[name] += 1
            yield line.encode()

    chosen = truth.wnids[:subset.classes]
    train = (f'{wnid}/{entry.name} {label}\n' for label, wnid in enumerate(chosen)
             for entry in read_listing(tree.listing(f'train/{wnid}')))
    val = (f'{val_path(number, truth, val_layout)} {truth.val[number - 1]}\n' for number in chosen_val(truth, subset))
    digests = {'train.txt': job.replace(meta / 'train.txt', count('train.txt', train)),
               'val.txt': job.replace(meta / 'val.txt', count('val.txt', val))}
    if test:
        digests['test.txt'] = job.replace(meta / 'test.txt', count('test.txt', (
            f'{entry.name}\n' for entry in read_listing(tree.listing('test')))))
    digests['classes.txt'] = job.replace(meta / 'classes.txt', [
        f'{wnid} {words}\n'.encode() for wnid, words in zip(truth.wnids, truth.words, strict=True)])
    return counts, digests


def check_counts(counts: dict[str, int], source: Source, subset: Subset) -> None:
    """The whole data set has as many images as its publisher says."""
    facts = source.facts
    expected = {'train.txt': facts.train_images, 'val.txt': facts.val_images}
    for name, count in expected.items():
        if subset == Subset() and counts[name] != count:
            raise PrepareError(f'meta/{name} lists {counts[name]:,} images; ILSVRC2012 has {count:,}. The source '
                               f'{source.folder} is incomplete: complete it (Kaggle lists the train images in '
                               'ILSVRC/ImageSets/CLS-LOC/train_cls.txt), and run the same command again',
                               Status.ARCHIVE)


def check_source(job: Job, source: Source, test: bool, pending: Sequence[Unit]) -> None:
    """MD5 sums of the archives that are still needed."""
    needed = {unit.name.split('/')[0] for unit in pending} | {'devkit'}
    facts = source.facts
    parts = {facts.devkit.name: 'devkit', facts.val.name: 'val', facts.train.name: 'train', facts.test.name: 'test'}
    check_md5(job, {path: archive for path, archive in source.archives(test).items() if parts[path.name] in needed})
