"""Data sets of image files: one folder a class, or an annotation file of `path label` lines."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workspace_lib.datasets.base import BaseDataset, FileInfos
from workspace_lib.datasets.transforms import check_file_client
from workspace_lib.registry import DATASETS

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


@DATASETS.register_module()
class CustomDataset(BaseDataset):
    """Images in folders.

    Without `ann_file`, each folder in `data_prefix` is a class, numbered in sorted order (or as `classes` lists
    them, where it lists just their names), and every image below it a sample. With it, each line is
    `path label`, the path relative to `data_prefix`, the label counted from 0.

    Args:
        extensions: of the files that count as images.
        file_client_args: only `dict(backend='disk')` is known.
        Others: as `BaseDataset`.

    Raises:
        FileNotFoundError: no such folder or annotation file, or nothing in it.
        ValueError: a malformed line (named), a label beyond the classes, or not a folder for each class.
    """

    def __init__(self, data_prefix: str, pipeline: Sequence[Any] = (), classes: str | Sequence[str] | None = None,
                 ann_file: str | None = None, extensions: Sequence[str] = EXTENSIONS, test_mode: bool = False,
                 file_client_args: dict[str, Any] | None = None, skip_broken: bool = False) -> None:
        check_file_client(file_client_args)
        self.extensions = tuple(extension.lower() for extension in extensions)
        super().__init__(data_prefix, pipeline, classes, ann_file, test_mode, skip_broken)

    def load_annotations(self) -> Sequence[dict[str, Any]]:
        name = type(self).__name__
        if not Path(self.data_prefix).is_dir():
            raise FileNotFoundError(f'{name}: there is no folder {self.data_prefix}; mount or link the data there, '
                                    'or set data_prefix')
        if self.ann_file is None:
            return self._from_folders()
        infos = FileInfos(self.data_prefix, _read_annotation(self.ann_file))
        if not len(infos):
            raise ValueError(f'{name}: {self.ann_file} lists no images; expected lines `path label`')
        count = np.inf if self.CLASSES is None else len(self.CLASSES)
        wrong = np.flatnonzero((infos.labels < 0) | (infos.labels >= count))
        if wrong.size:
            raise ValueError(f'{name}: {self.ann_file}:{_line_number(self.ann_file, wrong[0])} has label '
                             f'{infos.labels[wrong[0]]}, but there are {count} classes, counted from 0; '
                             'correct it, or set classes')
        return infos

    def _from_folders(self) -> FileInfos:
        name, root = type(self).__name__, self.data_prefix
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != '.')
        if self.CLASSES is None:
            self.CLASSES = folders
        elif len(folders) != len(self.CLASSES):
            missing = sorted(set(self.CLASSES) - set(folders)) if set(folders) < set(self.CLASSES) else []
            raise ValueError(f'{name}: {root} has {len(folders)} class folders, but there are {len(self.CLASSES)} '
                             f'classes{"; missing: " if missing else ""}{", ".join(missing[:5])}; complete the '
                             'folder, or set classes, or give an ann_file')
        elif set(folders) == set(self.CLASSES):
            folders = list(self.CLASSES)
        self.folder_to_idx = {folder: label for label, folder in enumerate(folders)}
        infos = FileInfos(root, ((os.fsencode(file), label) for folder, label in self.folder_to_idx.items()
                                 for file in self._images(folder)))
        known = ', '.join(self.extensions)
        if not len(infos):
            raise FileNotFoundError(f'{name}: no image in the {len(folders)} folders of {root}; a class is a folder '
                                    f'of files that end in {known}; set data_prefix, extensions or ann_file')
        if empty := set(range(len(folders))) - set(infos.labels.tolist()):
            warnings.warn(f'{name}: no image ({known}) in {root} for the classes '
                          f'{", ".join(folders[label] for label in sorted(empty))}', stacklevel=2)
        return infos

    def _images(self, folder: str) -> list[str]:
        """Paths below a class folder, relative to `data_prefix`, sorted; hidden files do not count."""
        found = []
        for parent, _, files in os.walk(os.path.join(self.data_prefix, folder), followlinks=True):
            below = os.path.relpath(parent, self.data_prefix)
            found += [f'{below}/{file}' for file in files
                      if file[0] != '.' and file.lower().endswith(self.extensions)]
        return sorted(found)


@DATASETS.register_module()
class ImageNet(CustomDataset):
    """ILSVRC2012: 1,000 classes, in class folders (train) or with `ann_file` (val)."""

    CLASSES = Path(__file__).with_name('imagenet_classes.txt').read_text(encoding='utf-8').splitlines()

    def __init__(self, data_prefix: str, pipeline: Sequence[Any] = (), classes: str | Sequence[str] | None = None,
                 ann_file: str | None = None, test_mode: bool = False,
                 file_client_args: dict[str, Any] | None = None, skip_broken: bool = False) -> None:
        super().__init__(data_prefix, pipeline, classes, ann_file, EXTENSIONS, test_mode, file_client_args,
                         skip_broken)


def _read_annotation(path: str) -> Iterator[tuple[bytes, int]]:
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            name, _, label = line.strip().rpartition(b' ')
            if name:
                try:
                    yield name, int(label)
                    continue
                except ValueError:
                    pass
            if line.strip():
                raise ValueError(f'{path}:{number}: expected `path label` with a whole number as label, '
                                 f'got {line.decode(errors="replace").strip()!r}')


def _line_number(path: str, sample: int) -> int:
    with open(path, 'rb') as file:
        return [number for number, line in enumerate(file, 1) if line.strip()][sample]
