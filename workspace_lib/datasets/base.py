"""What every data set is: an annotation kept compactly, a pipeline, and an evaluation.

In: where the data lie. Out: samples by index, labels by array, metrics by name.
"""

from __future__ import annotations

import logging
import os
import os.path as osp
from array import array
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from workspace_lib import metrics
from workspace_lib.datasets.decode import DecodeError
from workspace_lib.datasets.pipeline import DeviceStage, Pipeline
from workspace_lib.datasets.transforms import image_path

_log = logging.getLogger(__name__)
MAX_BROKEN_RUN = 32  # more broken files in a row than that, and the data set itself is at fault


class FileInfos(Sequence):
    """File names and labels that read as a list of mmclassification's dicts.

    A name takes its own bytes plus 8, a label 8: a million samples fit in 50 MB, which workers share.
    """

    def __init__(self, prefix: str, samples: Iterable[tuple[bytes, int]]) -> None:
        names, ends, labels = bytearray(), array('q', [0]), array('q')
        for name, label in samples:
            names += name
            ends.append(len(names))
            labels.append(label)
        self.prefix, self._names = prefix, bytes(names)
        self._ends, self.labels = np.array(ends, np.int64), np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label = np.array(self.labels[index])  # first: it checks the index
        at = index % len(self)
        start, end = self._ends[at:at + 2].tolist()
        name = os.fsdecode(self._names[start:end])
        return {'img_prefix': self.prefix, 'img_info': {'filename': name}, 'gt_label': label}


class ArrayInfos(Sequence):
    """Images (N, H, W) or (N, H, W, 3), uint8, and labels (N,), as such a list."""

    def __init__(self, images: np.ndarray, labels: Any) -> None:
        self.images, self.labels = images, np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {'img': self.images[index], 'gt_label': np.array(self.labels[index])}


class BaseDataset(Dataset):
    """A data set for single-label classification; subclasses write `load_annotations`.

    Args:
        data_prefix: the folder with the data.
        pipeline: step configs, see `Pipeline`.
        classes: names that replace `CLASSES`: a list, or a file with one a line.
        ann_file: the annotation file, where there is one.
        test_mode: the held-out part, where the data set has parts.
        skip_broken: put the next good sample in the place of one that cannot be read, and count it in
            `broken`, instead of stopping. `evaluate` leaves such samples out.
    """

    CLASSES: Sequence[str] | None = None

    def __init__(self, data_prefix: str | PathLike[str], pipeline: Sequence[Any] = (),
                 classes: str | Sequence[str] | None = None, ann_file: str | PathLike[str] | None = None,
                 test_mode: bool = False, skip_broken: bool = False) -> None:
        self.data_prefix = osp.expanduser(data_prefix or '')
        self.pipeline = Pipeline(pipeline)
        self.CLASSES = self.get_classes(classes)
        self.ann_file = None if ann_file is None else osp.expanduser(ann_file)
        self.test_mode, self.skip_broken = test_mode, skip_broken
        self.broken: dict[int, str] = {}
        self.data_infos = self.load_annotations()

    def load_annotations(self) -> Sequence[dict[str, Any]]:
        """All samples: dicts of `img_prefix` and `img_info=dict(filename=...)`, or `img`; and `gt_label`."""
        raise NotImplementedError(f'{type(self).__name__} does not define load_annotations()')

    @classmethod
    def get_classes(cls, classes: str | Sequence[str] | None = None) -> Sequence[str] | None:
        """The class names that the argument `classes` means."""
        if classes is None:
            return cls.CLASSES
        if isinstance(classes, (str, PathLike)):
            return Path(osp.expanduser(classes)).read_text(encoding='utf-8').rstrip().splitlines()
        if isinstance(classes, (tuple, list)):
            return classes
        raise ValueError(f'classes is a list of names, or a file with one a line; got {type(classes)}')

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.CLASSES or ())}

    @property
    def device_stage(self) -> DeviceStage:
        return self.pipeline.device_stage

    def __len__(self) -> int:
        return len(self.data_infos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index)

    def filename(self, index: int) -> str:
        """The path of a sample, or `MNIST[7]` where it has none."""
        info = self.data_infos[index]
        return image_path(info) if 'img_info' in info else f'{type(self).__name__}[{index}]'

    def get_gt_labels(self) -> np.ndarray:
        """Labels (N,), int64."""
        labels = getattr(self.data_infos, 'labels', None)
        return np.array([info['gt_label'] for info in self.data_infos]) if labels is None else labels.copy()

    def get_cat_ids(self, index: int) -> list[int]:
        """The classes of one sample."""
        return [int(self.data_infos[index]['gt_label'])]

    def sample(self, index: int, seed: int | None = None) -> dict[str, Any]:
        """One sample as the loader takes it, see `Pipeline.item`.

        Raises:
            DecodeError, OSError: a file that is broken or missing, unless `skip_broken`.
        """
        for step in range(MAX_BROKEN_RUN if self.skip_broken else 1):
            at = (index + step) % len(self)
            if at in self.broken:
                continue
            try:
                return self.pipeline.item(self.data_infos[at], seed)
            except (DecodeError, OSError) as error:
                if not self.skip_broken:
                    raise
                self.broken[at] = str(error)
            except Exception as error:
                error.add_note(f'in the pipeline of {self.filename(at)}')
                raise
        raise DecodeError(f'{MAX_BROKEN_RUN} broken files in a row from {self.filename(index)} on; '
                          f'the last: {list(self.broken.values())[-1]}')

    def evaluate(self, results: Sequence[np.ndarray], metric: str | Sequence[str] = 'accuracy',
                 metric_options: dict[str, Any] | None = None, indices: Sequence[int] | None = None,
                 logger: Any = None) -> dict[str, Any]:
        """Metrics of the scores in `results`, N arrays (C,), in data-set order or that of `indices`.

        See `metrics.evaluate` for metric names, options and what is raised.
        """
        wanted = np.arange(len(self)) if indices is None else np.asarray(indices)
        labels = self.get_gt_labels()[wanted]
        if self.broken and len(results) == len(wanted):
            good = ~np.isin(wanted, list(self.broken))
            results, labels = [results[i] for i in np.flatnonzero(good)], labels[good]
            _log.warning('%d broken files are left out of the evaluation', (~good).sum())
        return metrics.evaluate(results, labels, metric, metric_options,
                                class_count=None if self.CLASSES is None else len(self.CLASSES))
