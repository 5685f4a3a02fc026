"""Fine-grained data sets in the forms their authors publish: CUB-200-2011 and Stanford Cars.

In: lists of files and labels. Out: samples of the train or the test part.
"""
from __future__ import annotations

import os
import os.path as osp
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..registry import DATASETS
from .base import BaseDataset, FileInfos, class_names


@DATASETS.register_module()
class CUB(BaseDataset):
    """CUB-200-2011: 200 kinds of birds; 5,994 images to train, 5,794 in `test_mode`.

    Args:
        ann_file: `images.txt`, lines of `id path`. image_class_labels_file: `id class`, from 1.
        train_test_split_file: `id 1` for images to train with, `id 0` for the others.
        Others: as `BaseDataset`.

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: a malformed line, or files that do not list the same images.
    """

    CLASSES = class_names('cub')

    def __init__(self, *args: Any, image_class_labels_file: str, train_test_split_file: str, **kwargs: Any) -> None:
        self.image_class_labels_file = osp.expanduser(image_class_labels_file)
        self.train_test_split_file = osp.expanduser(train_test_split_file)
        super().__init__(*args, **kwargs)

    def load_annotations(self) -> FileInfos:
        if self.ann_file is None:
            raise ValueError('CUB needs ann_file, the path of images.txt')
        names = _read_pairs(self.ann_file)
        labels, parts = (_read_pairs(path) for path in (self.image_class_labels_file, self.train_test_split_file))
        for path, pairs in ((self.image_class_labels_file, labels), (self.train_test_split_file, parts)):
            if odd := sorted(names.keys() ^ pairs.keys()):
                raise ValueError(f'{self.ann_file} ({len(names)} images) and {path} ({len(pairs)}) should have the '
                                 f'same length and ids; id {odd[0]} is in one of them only')
        mine = '0' if self.test_mode else '1'
        infos = FileInfos(self.data_prefix, ((os.fsencode(name), int(labels[id]) - 1) for id, name in names.items()
                                             if parts[id] == mine))
        _check_labels(infos, self.image_class_labels_file, self.CLASSES)
        return infos


@DATASETS.register_module()
class StanfordCars(BaseDataset):
    """Stanford Cars: 196 models; 8,144 images to train, 8,041 in `test_mode`.

    Args:
        data_prefix: holds `cars_train`, `cars_test` and `devkit`.
        ann_file: default `devkit/cars_train_annos.mat`, or `devkit/cars_test_annos_withlabels.mat` in `test_mode`.
        Others: as `BaseDataset`.

    Raises:
        FileNotFoundError: no such annotation file.
        ValueError: one without labels, such as `cars_test_annos.mat`.
    """

    CLASSES = class_names('stanford_cars')

    def __init__(self, data_prefix: str, pipeline: Sequence[Any] = (), classes: str | Sequence[str] | None = None,
                 ann_file: str | None = None, *, test_mode: bool = False, skip_broken: bool = False) -> None:
        part, file = ('cars_test', 'cars_test_annos_withlabels') if test_mode else ('cars_train', 'cars_train_annos')
        self._annotation = ann_file or osp.join(data_prefix, 'devkit', f'{file}.mat')
        super().__init__(osp.join(data_prefix, part), pipeline, classes, ann_file, test_mode=test_mode,
                         skip_broken=skip_broken)

    def load_annotations(self) -> FileInfos:
        from scipy.io import loadmat

        path = self.check_file(osp.expanduser(self._annotation), 'put the devkit there, or set data_prefix or ann_file')
        records = loadmat(path)['annotations'][0]
        if len(records) and len(records[0]) != 6:  # four sides of a box, class, file name
            raise ValueError(f'{path} has no labels: its records have {len(records[0])} fields, not 6; for the test '
                             'set take cars_test_annos_withlabels.mat')
        infos = FileInfos(self.data_prefix, ((os.fsencode(str(record[5][0])), int(record[4][0][0]) - 1)
                                             for record in records))
        _check_labels(infos, path, self.CLASSES)
        return infos


def _read_pairs(path: str) -> dict[str, str]:
    """Lines of `id value`."""
    pairs = {}
    with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file, 1):
            id, _, value = line.strip().partition(' ')
            if value:
                pairs[id] = value
            elif id:
                raise ValueError(f'{path}:{number}: expected `id value`, got {line.strip()!r}')
    return pairs


def _check_labels(infos: FileInfos, path: str, classes: Sequence[str] | None) -> None:
    wrong = np.flatnonzero((infos.labels < 0) | (infos.labels >= len(classes or ())))
    if wrong.size:
        raise ValueError(f'{path}: the class of {infos[wrong[0]]["img_info"]["filename"]} is '
                         f'{infos.labels[wrong[0]] + 1}, but there are {len(classes or ())}, counted from 1; correct '
                         'it, or set classes')
