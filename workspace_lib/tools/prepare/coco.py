"""COCO 2017 as multi-label data: downloaded, unpacked, and its annotations without their outlines.

In: the target folder, perhaps the archives. Out: `train2017/`, `val2017/`, `annotations/instances_*.json` as published,
and `annotations/multilabel_*.json` in the same form with what multi-label training reads: 20 MB instead of 470.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .archives import Archive, Zip, check_names, part_of
from .download import download
from .errors import PrepareError, Status
from .pool import Meter
from .slim import slim_annotations
from .units import Tree, Unit, Writer, read_listing

MIRROR = 'http://images.cocodataset.org'  # speaks plain HTTP: the MD5 is what tells

SPLITS = 'train', 'val'


@dataclass(frozen=True)
class CocoFacts:
    """What the publisher says of the data set. Tests have a small one of their own."""

    train: Archive = Archive('train2017.zip', 19_336_861_798, 'cced6f7f71b7629ddf16f17bbcfab6b2')
    val: Archive = Archive('val2017.zip', 815_585_330, '442b8da7639aecaf257c1dceb8ba8c80')
    annotations: Archive = Archive('annotations_trainval2017.zip', 252_907_541, 'f4bbac642086de4f52a3fdda2de5fa2c')
    train_images: int = 118_287
    val_images: int = 5_000
    categories: int = 80
    annotation_bytes: int = 469_785_474 + 19_987_840  # of the two files of instances

    def images(self, split: str) -> int:
        return self.train_images if split == 'train' else self.val_images


def archives(facts: CocoFacts, folder: Path, splits: tuple[str, ...]) -> dict[Path, Archive]:
    wanted = [facts.annotations] + [facts.val] * ('val' in splits) + [facts.train] * ('train' in splits)
    return {folder / archive.name: archive for archive in wanted}


def needed(archives: dict[Path, Archive], pending: list[Unit]) -> dict[Path, Archive]:
    """The archives of units that are to be made: `train2017.zip`, `annotations_trainval2017.zip` and so on."""
    names = tuple(unit.name for unit in pending)
    return {path: archive for path, archive in archives.items() if path.name.startswith(names)}


def fetch(archive: Archive, path: Path, mirror: str, show_progress: bool) -> None:
    """Bring an archive to `part_of(path)`."""
    place = 'annotations' if 'annotations' in archive.name else 'zips'
    path.parent.mkdir(parents=True, exist_ok=True)
    download(f'{mirror.rstrip("/")}/{place}/{archive.name}', part_of(path), archive.size, show_progress)


def plan(facts: CocoFacts, folder: Path, splits: tuple[str, ...]) -> list[Unit]:
    units = []
    for split in splits:
        archive = facts.train if split == 'train' else facts.val
        name = f'{split}2017'
        units.append(Unit(name, archive.size or 0, facts.images(split),
                          partial(fill_images, source=Zip(folder / archive.name, f'{name}/'))))
    units.append(Unit('annotations', facts.annotation_bytes, 4, partial(
        fill_annotations, source=Zip(folder / facts.annotations.name, 'annotations/'), categories=facts.categories)))
    return units


def fill_images(writer: Writer, source: Zip) -> None:
    for name, read in source.images():
        writer.add(name, read())


def fill_annotations(writer: Writer, source: Zip, categories: int) -> None:
    """Those of both splits, so that a split can be added to a tree."""
    for split in SPLITS:
        name = f'instances_{split}2017.json'
        writer.stream(name, source.chunks(name))
        try:  # around all of it: the pieces are made while they are written
            writer.stream(f'multilabel_{split}2017.json', slim_annotations(writer.folder / name, categories))
        except ValueError as error:
            raise PrepareError(f'{source.path}: {name}: {error}. Fetch the archive again', Status.ARCHIVE) from error


def check_images(meter: Meter, tree: Tree, splits: tuple[str, ...], facts: CocoFacts) -> None:
    """Every image of the annotations is there, and no other."""
    for split in splits:
        _check_split(tree, split, facts)


def _check_split(tree: Tree, split: str, facts: CocoFacts) -> None:
    found = {entry.name for entry in read_listing(tree.listing(f'{split}2017'))}
    slim = json.loads((tree.folder('annotations') / f'multilabel_{split}2017.json').read_text())
    check_names(found, {image['file_name'] for image in slim['images']},
                f'images of {split}2017 against its annotations')
    if len(found) != facts.images(split):
        raise PrepareError(f'{split}2017 has {len(found):,} images, expected {facts.images(split):,}', Status.ARCHIVE)
