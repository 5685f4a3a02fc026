"""Data sets whose images have any number of classes: a label is a row of 1, 0 or -1 (difficult), int8 (C,).

In: annotations in the forms of Pascal VOC and COCO. Out: samples, labels (N, C), and mAP, CP, CR, CF1, OP, OR, OF1.
"""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from .. import multi_label_metrics
from ..registry import DATASETS
from .base import BaseDataset, FileInfos, class_names


class MultiLabelDataset(BaseDataset):
    """A data set with several labels a sample; subclasses write `load_annotations`, with `gt_label` (C,)."""

    def get_cat_ids(self, index: int) -> list[int]:
        """The classes of one sample, without difficult ones."""
        return np.flatnonzero(self.data_infos[index]['gt_label'] == 1).tolist()

    def score(self, results: Sequence[np.ndarray], labels: np.ndarray, metric: Any = None,
              metric_options: dict[str, Any] | None = None) -> dict[str, Any]:
        return multi_label_metrics.evaluate(results, labels, metric or 'mAP', metric_options)

    def _annotation(self, form: str) -> str:
        """The path of the annotation file; FileNotFoundError if there is none, or no folder of images."""
        self.check_folder()
        return self.check_file(self.ann_file, f'set ann_file to {form}')


@DATASETS.register_module()
class VOC(MultiLabelDataset):
    """Pascal VOC: `JPEGImages`, `Annotations` and `ImageSets` below `data_prefix`, of any year.

    Args:
        ann_file: such as `ImageSets/Main/trainval.txt`, an image a line.
        difficult_as_postive: [sic] what objects marked difficult count as: True 1, False 0, None -1.
        Others: as `BaseDataset`. Objects of other classes than `CLASSES` are not looked at.

    Raises:
        FileNotFoundError: no folder, image set or XML file.
        ValueError: an XML file that is malformed, or declares a document type (VOC's do not).
    """

    CLASSES = class_names('voc')

    def __init__(self, *args: Any, difficult_as_postive: bool | None = None, **kwargs: Any) -> None:
        self.difficult_as_postive = difficult_as_postive
        super().__init__(*args, **kwargs)

    def load_annotations(self) -> FileInfos:
        with open(self._annotation('such as ImageSets/Main/trainval.txt'), encoding='utf-8') as file:
            names = [line.split()[0] for line in file if line.strip()]
        labels = np.array([self._label(name) for name in names], np.int8).reshape(len(names), len(self.CLASSES))
        return FileInfos(self.data_prefix, ((os.fsencode(f'JPEGImages/{name}.jpg'), 0) for name in names), labels)

    def _label(self, name: str) -> np.ndarray:
        path = os.path.join(self.data_prefix, 'Annotations', f'{name}.xml')
        found: dict[bool, list[int]] = {True: [], False: []}
        for item in _parse_xml(path).findall('object'):
            label = self.class_to_idx.get(item.findtext('name', '').strip())
            if label is not None:
                found[item.findtext('difficult', '0').strip() not in ('', '0')].append(label)
        row = np.zeros(len(self.CLASSES or ()), np.int8)
        row[found[True]] = -1 if self.difficult_as_postive is None else self.difficult_as_postive
        row[found[False]] = 1  # after the difficult ones: a class may have objects of both kinds
        return row


@DATASETS.register_module()
class COCO(MultiLabelDataset):
    """COCO's objects as labels: a class is present in an image that has an object of it, crowds included.

    The 80 category ids (1..90, with gaps) become 0..79 in ascending order. Images without objects have a row of 0.

    Args:
        data_prefix: the folder of the images, such as `train2017`. ann_file: such as `instances_train2017.json`.
        classes: names of those categories that count, in their order; default all of the file.
        Others: as `BaseDataset`.

    Raises:
        FileNotFoundError: no folder or annotation file.
        ValueError: a file of another form, or one that does not fit together.
    """

    CLASSES = class_names('coco')

    def load_annotations(self) -> FileInfos:
        path = self._annotation('such as annotations/instances_train2017.json')
        with open(path, encoding='utf-8') as file:
            content = json.load(file, object_hook=_without_outline)
        if not isinstance(content, dict) or not {'images', 'annotations', 'categories'} <= content.keys():
            raise ValueError(f'{path} is no COCO instances file: it has no images, annotations and categories')
        kinds = {category['id']: category['name'] for category in sorted(content['categories'], key=lambda c: c['id'])}
        if self.CLASSES is type(self).CLASSES:
            self.CLASSES = list(kinds.values())
        columns = {id: self.class_to_idx.get(name) for id, name in kinds.items()}
        rows = {image['id']: row for row, image in enumerate(content['images'])}
        labels = np.zeros((len(rows), len(self.CLASSES or ())), np.int8)
        for item in content['annotations']:
            if item['image_id'] not in rows or item['category_id'] not in columns:
                raise ValueError(f'{path}: annotation {item.get("id")} is of image {item["image_id"]} and category '
                                 f'{item["category_id"]}, which the file does not list both')
            if columns[item['category_id']] is not None:
                labels[rows[item['image_id']], columns[item['category_id']]] = 1
        names = ((os.fsencode(image['file_name']), 0) for image in content['images'])
        return FileInfos(self.data_prefix, names, labels)


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of the file, and each of their numbers would be a Python object."""
    entry.pop('segmentation', None)
    return entry


class _WithoutDoctype(ElementTree.TreeBuilder):
    def doctype(self, *declared: Any) -> None:
        raise ValueError('it declares a document type; entities in it could grow without bound, so it is refused')


def _parse_xml(path: str) -> ElementTree.Element:
    try:
        return ElementTree.parse(path, ElementTree.XMLParser(target=_WithoutDoctype())).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f'{path} is no XML file of VOC: {error}') from error
