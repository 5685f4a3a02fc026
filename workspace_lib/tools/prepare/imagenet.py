"""ILSVRC2012 from the official archives, or from Kaggle's folders, as `train`, `val` and `meta`.

In: the folder with the archives, the target folder. Out: images byte for byte, annotation files, a manifest.
"""
from __future__ import annotations

import csv
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .archives import Archive, Folder, Tar, check_md5, check_names, check_size, damaged
from .engine import Job, Unit, Writer, read_listing, some
from .errors import PrepareError, Status
from .pool import Meter

WNID = re.compile(r'n\d{8}')
VAL_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')
KAGGLE = 'ILSVRC/Data/CLS-LOC'
TEST_IMAGES = 100_000
IMAGE_BYTES = 115_000  # mean over the train images; where the number of images is not known yet


@dataclass(frozen=True)
class ImageNetFacts:
    """What the publisher says of the data set. Tests have a small one of their own."""

    train: Archive = Archive('ILSVRC2012_img_train.tar', 147_897_477_120, '1d675b47d978889d74fa0da5fadfb00e')
    val: Archive = Archive('ILSVRC2012_img_val.tar', 6_744_924_160, '29b22e2961454d5413ddabcf34fc5622')
    devkit: Archive = Archive('ILSVRC2012_devkit_t12.tar.gz', 2_568_634, 'fa75699e90414af021442c21a62c3abf')
    test: Archive = Archive('ILSVRC2012_img_test_v10102019.tar')
    classes: int = 1000
    train_images: int = 1_281_167
    val_images: int = 50_000


@dataclass(frozen=True)
class Truth:
    """The classes in the order of their wnids, which is that of the labels, and the labels of the val images."""

    wnids: list[str]
    words: list[str]
    val: list[int]  # label of image 1, 2, ...


def read_devkit(path: Path, facts: ImageNetFacts) -> Truth:
    """The official mapping: line i of the ground truth is the ILSVRC2012_ID of val image i; the ID has a wnid; the
    label is the place of the wnid among all wnids in sorted order. It is not the ID minus 1."""
    ids, lines = _devkit_files(path)
    wnid_of = {number: wnid for number, wnid, _ in ids}
    wnids = sorted(wnid_of.values())
    if [*sorted(wnid_of)] != [*range(1, facts.classes + 1)] or len({*wnids}) != facts.classes:
        raise PrepareError(f'{path}: meta.mat has {len(wnid_of)} classes without children; expected the IDs 1 to '
                           f'{facts.classes}', Status.ARCHIVE)
    words = {wnid: text for _, wnid, text in ids}
    label_of = {number: wnids.index(wnid) for number, wnid in wnid_of.items()}
    if wrong := [number for number in lines if number not in label_of]:
        raise PrepareError(f'{path}: the ground truth names the unknown class {wrong[0]}', Status.ARCHIVE)
    truth = Truth(wnids, [words[wnid] for wnid in wnids], [label_of[number] for number in lines])
    _check_truth(truth, facts, path)
    return truth


def _check_truth(truth: Truth, facts: ImageNetFacts, path: Path) -> None:
    counts = {*Counter(truth.val).values()}
    if len(truth.val) != facts.val_images or counts != {facts.val_images // facts.classes}:
        raise PrepareError(f'{path}: labels for {len(truth.val):,} val images, {min(counts, default=0)} to '
                           f'{max(counts, default=0)} a class; expected {facts.val_images:,}, as many of each',
                           Status.ARCHIVE)


def _devkit_files(path: Path) -> tuple[list[tuple[int, str, str]], list[int]]:
    """(ID, wnid, words) of the classes that have no children, and the ground truth."""
    import scipy.io  # takes 0.7 s
    found: dict[str, Any] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.rpartition('/')[2]
                if member.isreg() and name in ('meta.mat', 'ILSVRC2012_validation_ground_truth.txt'):
                    found[name] = tar.extractfile(member)
                    if name == 'meta.mat':
                        rows = scipy.io.loadmat(found[name], squeeze_me=True)['synsets']
                        ids = [(int(row['ILSVRC2012_ID']), str(row['WNID']), str(row['words'])) for row in rows
                               if row['num_children'] == 0]
                    else:
                        lines = [int(line) for line in found[name].read().split()]
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError) as error:
        raise damaged(path, str(error)) from error
    if len(found) != 2:
        raise PrepareError(f'{path} lacks meta.mat or the validation ground truth; found: {some(found) or "neither"}',
                           Status.ARCHIVE)
    return ids, lines


@dataclass(frozen=True)
class Official:
    """The archives as image-net.org gives them."""

    folder: Path
    facts: ImageNetFacts

    def archives(self, test: bool) -> dict[Path, Archive]:
        wanted = [self.facts.devkit, self.facts.val, self.facts.train] + [self.facts.test] * test
        return {self.folder / archive.name: archive for archive in wanted}

    def truth(self) -> Truth:
        return read_devkit(self.folder / self.facts.devkit.name, self.facts)

    def train(self, truth: Truth) -> dict[str, tuple[Tar, int]]:
        """The inner tar of each class, and its size in bytes."""
        path = self.folder / self.facts.train.name
        found = {}
        for name, start, size in Tar(path).members():
            wnid = name.removesuffix('.tar')
            if wnid == name or not WNID.fullmatch(wnid):
                raise PrepareError(f'{path} holds {name!r}; expected one tar for each class, such as n01440764.tar',
                                   Status.ARCHIVE)
            found[wnid] = Tar(path, start, size), size
        check_names({*found}, {*truth.wnids}, f'the classes of {path} against those of the devkit')
        return found

    def val(self) -> tuple[Tar, int]:
        path = self.folder / self.facts.val.name
        return Tar(path), path.stat().st_size

    def test(self) -> tuple[Tar, int]:
        path = self.folder / self.facts.test.name
        return Tar(path), path.stat().st_size


@dataclass(frozen=True)
class Kaggle:
    """The unpacked download of Kaggle's `imagenet-object-localization-challenge`."""

    folder: Path
    facts: ImageNetFacts

    def archives(self, test: bool) -> dict[Path, Archive]:
        return {}

    def truth(self) -> Truth:
        mapping, solution = self.folder / 'LOC_synset_mapping.txt', self.folder / 'LOC_val_solution.csv'
        for path in (mapping, solution):
            if not path.is_file():
                raise PrepareError(f'{path} is missing; it lies beside ILSVRC in the download from Kaggle',
                                   Status.ARCHIVE)
        words = dict(line.split(' ', 1) for line in mapping.read_text().splitlines() if line)
        wnids = sorted(words)
        if len(wnids) != self.facts.classes:
            raise PrepareError(f'{mapping} lists {len(wnids)} classes; expected {self.facts.classes}', Status.ARCHIVE)
        index = {wnid: label for label, wnid in enumerate(wnids)}
        labels: dict[int, int] = {}
        with solution.open(newline='') as file:
            for row in csv.DictReader(file):
                match = VAL_NAME.fullmatch(f'{row["ImageId"]}.JPEG')
                wnid = row['PredictionString'].split(' ', 1)[0]
                if not match or wnid not in index:
                    raise PrepareError(f'{solution}: {row["ImageId"]} {wnid} is no val image of a known class',
                                       Status.ARCHIVE)
                labels[int(match[1])] = index[wnid]
        truth = Truth(wnids, [words[wnid] for wnid in wnids], [labels[number] for number in sorted(labels)])
        _check_truth(truth, self.facts, solution)
        return truth

    def train(self, truth: Truth) -> dict[str, tuple[Folder, int]]:
        """Every class's folder, and its size in bytes, about."""
        folder = self.folder / KAGGLE / 'train'
        found = {path.name for path in folder.iterdir() if not path.name.startswith('.')} if folder.is_dir() else set()
        check_names(found, {*truth.wnids}, f'the class folders of {folder}')
        size = self.facts.train_images // self.facts.classes * IMAGE_BYTES
        return {wnid: (Folder(folder / wnid), size) for wnid in truth.wnids}

    def val(self) -> tuple[Folder, int]:
        return Folder(self._part('val')), self.facts.val_images * IMAGE_BYTES * 6 // 5

    def test(self) -> tuple[Folder, int]:
        return Folder(self._part('test')), TEST_IMAGES * IMAGE_BYTES * 6 // 5

    def _part(self, name: str) -> Path:
        folder = self.folder / KAGGLE / name
        if not folder.is_dir():
            raise PrepareError(f'there is no folder {folder}', Status.ARCHIVE)
        return folder


Source = Official | Kaggle


def find_source(folder: Path, facts: ImageNetFacts, test: bool = False) -> Source:
    """What lies in `folder`; sizes are checked.

    Raises:
        PrepareError: neither all the archives nor Kaggle's folders; names what is missing.
    """
    for base in (folder, folder.parent):
        if (base / KAGGLE).is_dir() and (base == folder or folder.name == 'ILSVRC'):
            return Kaggle(base, facts)
    source = Official(folder, facts)
    archives = source.archives(test)
    if missing := [path.name for path in archives if not path.is_file()]:
        raise PrepareError(f'{folder} lacks {", ".join(missing)}. Fetch them from image-net.org (a login is needed) '
                           f'and put them there; or give the folder that holds Kaggle\'s {KAGGLE}', Status.ARCHIVE)
    for path, archive in archives.items():
        check_size(path, archive)
    return source


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
        units.append(Unit('test', size, TEST_IMAGES, partial(fill_flat, images=images)))
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
        writer.add(name, [read()])
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
            writer.add(val_path(number, truth, layout), [read()])
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


def fill_flat(writer: Writer, images: Tar | Folder) -> None:
    """The test images, which have no labels; the archive has them in a folder `test`."""
    for name, read in images.images():
        writer.add(name.removeprefix('test/'), [read()])


def write_meta(job: Job, truth: Truth, subset: Subset, val_layout: str, test: bool) -> dict[str, int]:
    """`meta/*.txt`; returns how many lines each has, of those that list images."""
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
    job.replace(meta / 'train.txt', count('train.txt', train))
    job.replace(meta / 'val.txt', count('val.txt', val))
    if test:
        job.replace(meta / 'test.txt', count('test.txt', (
            f'{entry.name}\n' for entry in read_listing(tree.listing('test')))))
    job.replace(meta / 'classes.txt', [f'{wnid} {words}\n'.encode() for wnid, words in zip(
        truth.wnids, truth.words, strict=True)])
    return counts


def check_counts(counts: dict[str, int], facts: ImageNetFacts, subset: Subset) -> None:
    """The whole data set has as many images as its publisher says."""
    expected = {'train.txt': facts.train_images, 'val.txt': facts.val_images}
    for name, count in expected.items():
        if subset == Subset() and counts[name] != count:
            raise PrepareError(f'meta/{name} lists {counts[name]:,} images; ILSVRC2012 has {count:,}. The source is '
                               'incomplete', Status.ARCHIVE)


def check_source(job: Job, source: Source, test: bool, pending: Sequence[Unit]) -> None:
    """MD5 sums of the archives that are still needed."""
    needed = {unit.name.split('/')[0] for unit in pending} | {'devkit'}
    facts = source.facts
    parts = {facts.devkit.name: 'devkit', facts.val.name: 'val', facts.train.name: 'train', facts.test.name: 'test'}
    check_md5(job, {path: archive for path, archive in source.archives(test).items() if parts[path.name] in needed})


def read_truth(meter: Meter, source: Source) -> Truth:
    """For `Pool.aside`: scipy makes a process five times as large."""
    return source.truth()
