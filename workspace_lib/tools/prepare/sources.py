"""Where ImageNet comes from: the official archives, or Kaggle's folders. In: a folder. Out: images and their labels."""
from __future__ import annotations

import csv
import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .archives import Archive, Folder, Images, Tar, check_names, check_size, damaged
from .errors import PrepareError, Status
from .pool import Meter
from .units import some

WNID = re.compile(r'n\d{8}')
VAL_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')
TEST_NAME = re.compile(r'ILSVRC2012_test_(\d{8})\.JPEG')
META, TRUTH = 'meta.mat', 'ILSVRC2012_validation_ground_truth.txt'  # of the devkit
KAGGLE = 'ILSVRC/Data/CLS-LOC'
KAGGLE_ENTRIES = ('ILSVRC', 'ILSVRC/Data', KAGGLE)  # any of them may be given
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
    test_images: int = 100_000


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
    found = _devkit_members(path)
    if len(found) != 2:
        raise PrepareError(f'{path} lacks meta.mat or the validation ground truth; found: {some(found) or "neither"}',
                           Status.ARCHIVE)
    try:
        return _classes(found[META]), [int(line) for line in found[TRUTH].split()]
    except Exception as error:  # of a damaged file scipy raises nearly anything
        raise damaged(path, f'{type(error).__name__}: {error}') from error


def _devkit_members(path: Path) -> dict[str, bytes]:
    """The two files that count. The whole stream is read before, so that gzip's own sum is checked: scipy can crash
    on a damaged file."""
    found = {}
    try:
        with gzip.open(path) as file:
            data = io.BytesIO(file.read())
        with tarfile.open(fileobj=data, mode='r:') as tar:
            for member in tar:
                name = member.name.rpartition('/')[2]
                if name in (META, TRUTH) and (content := member.isreg() and tar.extractfile(member)):
                    found[name] = content.read()
    except (gzip.BadGzipFile, zlib.error, EOFError, tarfile.TarError, ValueError) as error:
        raise damaged(path, str(error)) from error
    return found


def _classes(meta: bytes) -> list[tuple[int, str, str]]:
    import scipy.io  # takes 0.7 s
    return [(int(row['ILSVRC2012_ID']), str(row['WNID']), str(row['words']))
            for row in scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)['synsets'] if row['num_children'] == 0]


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


class Pictures(Folder):
    """A folder whose images no published sum covers: each must at least begin like one."""

    def images(self) -> Images:
        for name, read in super().images():
            yield name, partial(_picture, self.path / name, read)


def _picture(path: Path, read: Callable[[], bytes]) -> bytes:
    data = read()
    if not data.startswith((b'\xff\xd8\xff', b'\x89PNG\r\n')):
        raise PrepareError(f'{path} is no JPEG or PNG file ({len(data):,} bytes); the download is incomplete, fetch '
                           'that file again', Status.ARCHIVE)
    return data


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

    def train(self, truth: Truth) -> dict[str, tuple[Pictures, int]]:
        """Every class's folder, and its size in bytes, about."""
        folder = self.folder / KAGGLE / 'train'
        found = {path.name for path in folder.iterdir() if not path.name.startswith('.')} if folder.is_dir() else set()
        check_names(found, {*truth.wnids}, f'the class folders of {folder}')
        size = self.facts.train_images // self.facts.classes * IMAGE_BYTES
        return {wnid: (Pictures(folder / wnid), size) for wnid in truth.wnids}

    def val(self) -> tuple[Pictures, int]:
        return Pictures(self._part('val')), self.facts.val_images * IMAGE_BYTES * 6 // 5

    def test(self) -> tuple[Pictures, int]:
        return Pictures(self._part('test')), self.facts.test_images * IMAGE_BYTES * 6 // 5

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
    for base in (folder, *folder.absolute().parents[:3]):
        if (base / KAGGLE).is_dir() and folder.absolute() in (base.absolute(), *map(base.__truediv__, KAGGLE_ENTRIES)):
            return Kaggle(base, facts)
    source = Official(folder, facts)
    archives = source.archives(test)
    if missing := [path.name for path in archives if not path.is_file()]:
        raise PrepareError(f'{folder} lacks {", ".join(missing)}. Fetch them from image-net.org (a login is needed) '
                           f'and put them there; or give the folder that holds Kaggle\'s {KAGGLE}', Status.ARCHIVE)
    for path, archive in archives.items():
        check_size(path, archive)
    return source


def read_truth(meter: Meter, source: Source) -> Truth:
    """For `Pool.aside`: scipy makes a process five times as large."""
    return source.truth()
