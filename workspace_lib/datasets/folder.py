"""Data sets of image files: one folder a class, or an annotation file of `path label` lines."""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..registry import DATASETS
from .base import BaseDataset, FileInfos, class_names
from .formatting import check_file_client
from .packed import Pack, is_pack

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


@DATASETS.register_module()
class CustomDataset(BaseDataset):
    """Images in folders.

    Without `ann_file`, each folder in `data_prefix` is a class and every image below it a sample; the classes
    are in sorted order, or in that of `classes` if it lists the folders' names. With it, each line is `path
    label`: a path below `data_prefix`, and a number from 0.

    Args:
        extensions: of the files that count as images.
        file_client_args: only `dict(backend='disk')` is known.
        Others: as `BaseDataset`.

    Raises:
        FileNotFoundError: no such folder or annotation file, or no image there.
        ValueError: a malformed line, a label beyond the classes, or not as many folders as classes.
    """

    def __init__(self, *args: Any, extensions: Sequence[str] = EXTENSIONS,
                 file_client_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        check_file_client(file_client_args)
        self.extensions = tuple(extension.lower() for extension in extensions)
        super().__init__(*args, **kwargs)

    def load_annotations(self) -> Sequence[dict[str, Any]]:
        self.check_folder()
        if self.ann_file is None:
            return self._from_folders()
        return self._from_file(self.check_file(
            self.ann_file, 'write `path label` lines there, or set ann_file (None: labels are folders)'))

    def _from_file(self, ann_file: str) -> FileInfos:
        infos = _read_plain_lines(self.data_prefix, ann_file) or FileInfos(self.data_prefix, _read_lines(ann_file))
        if not len(infos):
            raise ValueError(f'{type(self).__name__}: {ann_file} lists no images; it should hold lines of '
                             '`path label`')
        count = np.inf if self.CLASSES is None else len(self.CLASSES)
        wrong = np.flatnonzero((infos.labels < 0) | (infos.labels >= count))
        if wrong.size:
            line, label = _line_number(ann_file, wrong[0]), infos.labels[wrong[0]]
            raise ValueError(f'{ann_file}:{line}: label {label}, but there are {count} classes, counted from 0; '
                             'correct it, or set classes')
        return infos

    def _from_folders(self) -> FileInfos:
        root, known = self.data_prefix, ', '.join(self.extensions)
        packed = Pack(root).folders() if is_pack(root) else None
        folders = sorted(packed or (entry.name for entry in os.scandir(root)
                                    if entry.is_dir() and entry.name[0] != '.'))
        self.CLASSES = folders if self.CLASSES is None else self.CLASSES
        if len(folders) != len(self.CLASSES):
            missing = sorted(set(self.CLASSES) - set(folders))
            named = f' (missing: {", ".join(missing[:5])})' if set(folders) < set(self.CLASSES) else ''
            raise ValueError(f'{type(self).__name__}: {root} has {len(folders)} class folders for {len(self.CLASSES)} '
                             f'classes{named}; complete it, set classes, or give an ann_file')
        folders = list(self.CLASSES) if set(folders) == set(self.CLASSES) else folders
        self.folder_to_idx = {folder: label for label, folder in enumerate(folders)}
        infos = FileInfos(root, ((os.fsencode(file), label) for folder, label in self.folder_to_idx.items()
                                 for file in (packed[folder] if packed else self._images(folder))))
        if not len(infos):
            raise FileNotFoundError(f'{type(self).__name__}: no image ({known}) in the {len(folders)} class '
                                    f'folders of {root}; set data_prefix, extensions or ann_file')
        if empty := [folders[label] for label in sorted({*range(len(folders))} - {*infos.labels.tolist()})]:
            warnings.warn(f'no image ({known}) in these class folders of {root}: {", ".join(empty)}', stacklevel=2)
        return infos

    def _images(self, folder: str) -> list[str]:
        """Paths relative to `data_prefix`, sorted; hidden files are none."""
        found = []
        for parent, _, files in os.walk(os.path.join(self.data_prefix, folder), followlinks=True):
            below = os.path.relpath(parent, self.data_prefix)
            found += [f'{below}/{file}' for file in files if file[0] != '.' and file.lower().endswith(self.extensions)]
        return sorted(found)


@DATASETS.register_module()
class ImageNet(CustomDataset):
    """ILSVRC2012: 1,000 classes, in class folders (train) or with `ann_file` (val)."""

    CLASSES = class_names('imagenet')


@DATASETS.register_module()
class ImageNet21k(CustomDataset):
    """ImageNet-21k or any part of it: its names are not known here, so give `classes` where they matter.

    Fourteen million samples take under 1 GB, once for all workers. Reading an `ann_file` is much faster than looking
    through the folders.

    Args:
        recursion_subdir, serialize_data: accepted as mmclassification's; folders are always searched to the bottom,
            and annotations always kept compactly.
        multi_label: False.
        Others: as `CustomDataset`.
    """

    def __init__(self, *args: Any, serialize_data: bool = True, multi_label: bool = False,
                 recursion_subdir: bool = True, **kwargs: Any) -> None:
        if multi_label or not recursion_subdir:
            raise ValueError(f'ImageNet21k got multi_label={multi_label}, recursion_subdir={recursion_subdir}; known: '
                             'multi_label=False, recursion_subdir=True')
        super().__init__(*args, **kwargs)


def _read_plain_lines(prefix: str, path: str) -> FileInfos | None:
    """All lines at once, as arrays: eight times as fast as `_read_lines`. None where one is not just `path label`."""
    with open(path, 'rb') as file:
        text = file.read().replace(b'\r\n', b'\n')  # the same object, not a copy, where there are none
    text += b'' if text.endswith(b'\n') else b'\n'
    data = np.frombuffer(text, np.uint8)
    ends, blanks = np.flatnonzero(data == ord('\n')), np.flatnonzero(data == ord(' '))
    if not blanks.size:
        return None
    starts, last_blanks = np.r_[0, ends[:-1] + 1], blanks[np.searchsorted(blanks, ends) - 1]
    digits = ends - last_blanks - 1
    is_plain = (last_blanks > starts) & (digits > 0) & (digits < 19) & ~np.isin(data[starts], [*b' \t\r\v\f'])
    if not is_plain.all():
        return None
    labels = np.zeros(len(ends), np.int64)
    for place in range(digits.max()):
        has_digit = digits > place
        digit = data[np.where(has_digit, ends - 1 - place, 0)] - ord('0')  # what is none is above 9, as it wraps round
        if (digit[has_digit] > 9).any():
            return None
        labels += has_digit * digit.astype(np.int64) * 10**place
    return FileInfos.within(prefix, text, starts, last_blanks, labels)


def _read_lines(path: str) -> Iterator[tuple[bytes, int]]:
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            name, _, label = line.strip().rpartition(b' ')
            if name and label.removeprefix(b'-').isdigit() and len(label) < 19:
                yield name, int(label)
            elif label:
                raise ValueError(f'{path}:{number}: expected `path label` with a class index for the label, '
                                 f'got {line.decode(errors="replace").strip()!r}')


def _line_number(path: str, sample: int) -> int:
    with open(path, 'rb') as file:
        return [number for number, line in enumerate(file, 1) if line.strip()][sample]
