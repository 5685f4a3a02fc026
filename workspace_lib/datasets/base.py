"""What every data set is: an annotation kept compactly, a pipeline, an evaluation.

In: where the data lie. Out: samples by index, labels as an array, metrics by name.
"""
from __future__ import annotations

import logging
import os
import os.path as osp
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .. import metrics
from ..arguments import PassesOn
from .decode import DecodeError, decode
from .formatting import image_path
from .packed import Pack, is_pack
from .pipeline import Pipeline

_log = logging.getLogger(__name__)
MAX_BROKEN_RUN = 32  # more broken files in a row than that, and the data set itself is at fault


class Infos(Sequence):
    """Samples that read as a list of mmclassification's dicts, but are kept as a few arrays."""

    labels: np.ndarray  # int64 (N,), or int8 (N, C) where a sample has several

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label = np.array(self.labels[index])  # checks the index
        return {**self._source(index % len(self)), 'gt_label': label}

    @abstractmethod
    def _source(self, index: int) -> dict[str, Any]:
        """`img_prefix` and `img_info`, or `img`."""


class FileInfos(Infos):
    """File names below `prefix`: a million fit in 60 MB, in four objects that forked workers share.

    `labels` (N, C), if given, are in place of those in `samples`.
    """

    def __init__(self, prefix: str, samples: Iterable[tuple[bytes, int]], labels: np.ndarray | None = None) -> None:
        names, lengths, classes = bytearray(), array('i'), array('q')
        for name, label in samples:
            names += name
            lengths.append(len(name))
            classes.append(label)
        self.prefix, self._text, self._lengths = prefix, bytes(names), np.array(lengths)
        self._starts = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        self.labels = np.array(classes) if labels is None else labels

    @classmethod
    def within(cls, prefix: str, text: bytes, starts: np.ndarray, ends: np.ndarray, labels: np.ndarray) -> FileInfos:
        """Names that stand in `text` from `starts` to `ends`, each int64 (N,), as an annotation file has them."""
        infos = cls(prefix, ())
        infos._text, infos._starts, infos.labels = text, starts, labels
        infos._lengths = (ends - starts).astype(np.int32)  # with the start 12 bytes a name instead of 16
        return infos

    def names(self) -> Iterator[bytes]:
        """All file names in order, without a dict for each."""
        starts, lengths = self._starts.tolist(), self._lengths.tolist()
        return (self._text[start:start + length] for start, length in zip(starts, lengths, strict=True))

    def _source(self, index: int) -> dict[str, Any]:
        start = int(self._starts[index])
        name = self._text[start:start + int(self._lengths[index])]
        return {'img_prefix': self.prefix, 'img_info': {'filename': os.fsdecode(name)}}


class ArrayInfos(Infos):
    """uint8 images (N, H, W) or (N, H, W, 3)."""

    def __init__(self, images: np.ndarray, labels: Any) -> None:
        self.images, self.labels = images, np.array(labels, np.int64)

    def _source(self, index: int) -> dict[str, Any]:
        return {'img': self.images[index]}


class PackedInfos(Infos):
    """The samples of an annotation of files, with their pixels out of a pack."""

    def __init__(self, infos: Sequence[dict[str, Any]], folder: str) -> None:
        self.infos, self.pack = infos, Pack(folder)
        self.labels = infos.labels if isinstance(infos, Infos) else np.array([info['gt_label'] for info in infos])
        names = infos.names() if isinstance(infos, FileInfos) else (
            os.fsencode(info['img_info']['filename']) for info in infos)
        self.places = self.pack.find(names, len(infos))

    def _source(self, index: int) -> dict[str, Any]:
        return {**self.infos[index], 'img': self.pack.image(self.places[index])}


def class_names(name: str) -> list[str]:
    """The list that lies beside this file."""
    return Path(__file__).with_name(f'{name}_classes.txt').read_text(encoding='utf-8').splitlines()


class BaseDataset(PassesOn, Dataset):
    """A data set for classification, one label a sample; subclasses write `load_annotations`.

    Args:
        data_prefix: the folder with the data; with images, it may be a `.pack` of them.
        pipeline: step configs, see `Pipeline`.
        classes: names in place of `CLASSES`: a list, or a file with one a line.
        ann_file: the annotation file, where there is one.
        test_mode: the held-out part, where the data set has parts.
        skip_broken: put the next good sample in the place of one that cannot be read, and count it in
            `broken`, instead of stopping. `evaluate` leaves such samples out.
    """

    CLASSES: Sequence[str] | None = None

    def __init__(self, data_prefix: str, pipeline: Sequence[Any] = (),
                 classes: str | Sequence[str] | None = None, ann_file: str | None = None, *,
                 test_mode: bool = False, skip_broken: bool = False) -> None:
        self.data_prefix = osp.expanduser(data_prefix or '')
        self.pipeline = Pipeline(pipeline)
        self.CLASSES = self.get_classes(classes)
        self.ann_file = None if ann_file is None else osp.expanduser(ann_file)
        self.test_mode, self.skip_broken = test_mode, skip_broken
        self.broken: dict[int, str] = {}  # index: reason
        self.data_infos = self.load_annotations()
        if is_pack(self.data_prefix):
            if kinds := {getattr(step, 'color_type', 'color') for step in self.pipeline.steps} - {'color'}:
                raise ValueError(f'{self.data_prefix} holds colour images, the pipeline asks for {kinds.pop()!r}; '
                                 'leave color_type out, or set data_prefix to the folder of images')
            self.data_infos = PackedInfos(self.data_infos, self.data_prefix)

    def load_annotations(self) -> Sequence[dict[str, Any]]:
        """The samples: dicts of `img_prefix` and `img_info=dict(filename=...)`, or `img`; and `gt_label`."""
        raise NotImplementedError(f'{type(self).__name__} does not define load_annotations()')

    def check_folder(self) -> None:
        """FileNotFoundError if there is no folder `data_prefix`."""
        if not osp.isdir(self.data_prefix or '.'):
            raise FileNotFoundError(f'{type(self).__name__}: there is no folder {self.data_prefix}; mount or link the '
                                    'data there, or set data_prefix')

    def check_file(self, path: str | None, way_out: str) -> str:
        """The path of an annotation file; FileNotFoundError, which tells the way out, if there is none."""
        if path is None or not osp.isfile(path):
            raise FileNotFoundError(f'{type(self).__name__}: there is no annotation file {path}; {way_out}')
        return path

    @classmethod
    def get_classes(cls, classes: str | Sequence[str] | None = None) -> Sequence[str] | None:
        """The names that the argument `classes` means."""
        if isinstance(classes, (str, os.PathLike)):
            return Path(osp.expanduser(classes)).read_text(encoding='utf-8').rstrip().splitlines()
        if isinstance(classes, (tuple, list)) or classes is None:
            return cls.CLASSES if classes is None else classes
        raise ValueError(f'classes is a list of names, or a file with one a line; got {type(classes)}')

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.CLASSES or ())}

    def __len__(self) -> int:
        return len(self.data_infos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index)

    def filename(self, index: int) -> str:
        """The path of a sample, or such as `MNIST[7]` where it has none."""
        info = self.data_infos[index]
        return image_path(info) if 'img_info' in info else f'{type(self).__name__}[{index}]'

    def load_image(self, index: int) -> np.ndarray:
        """The image before the pipeline: uint8 (H, W, 3) in BGR order, or (H, W)."""
        info = self.data_infos[index]
        return info['img'] if 'img' in info else decode(image_path(info))

    def get_gt_labels(self) -> np.ndarray:
        """Labels (N,), int64; (N, C) where a sample has several."""
        if isinstance(self.data_infos, Infos):
            return self.data_infos.labels.copy()
        return np.array([info['gt_label'] for info in self.data_infos])

    def get_cat_ids(self, index: int) -> list[int]:
        """The classes of one sample."""
        return [int(self.data_infos[index]['gt_label'])]

    def sample(self, index: int, seed: int | None = None, for_device: bool = False) -> dict[str, Any]:
        """One sample as the loader takes it, see `Pipeline.item`.

        Raises:
            DecodeError, OSError: a file that is broken or missing, unless `skip_broken`.
        """
        for at in ((index + step) % len(self) for step in range(MAX_BROKEN_RUN)):
            try:
                if at not in self.broken:
                    return self.pipeline.item(self.data_infos[at], seed, for_device)
            except Exception as error:
                if not isinstance(error, (DecodeError, OSError)):
                    error.add_note(f'in the pipeline, at {self.filename(at)}')
                    raise
                if not self.skip_broken:
                    raise
                self.broken[at] = str(error)
        raise DecodeError(f'{self.filename(index)} and the {MAX_BROKEN_RUN - 1} samples after it are all '
                          f'broken, the last of them: {[*self.broken.values()][-1]}')

    def evaluate(self, results: Sequence[np.ndarray], metric: str | Sequence[str] | None = None,
                 metric_options: dict[str, Any] | None = None, indices: Sequence[int] | None = None,
                 logger: Any = None) -> dict[str, Any]:
        """Metrics of `results`, scores (C,) of all samples in order, or of those that `indices` names.

        See `metrics.evaluate` and `multi_label_metrics.evaluate` for metric names, options and what is raised.
        """
        return self.score(*self.answers(results, indices, logger), metric, metric_options)

    def answers(self, results: Sequence[np.ndarray], indices: Sequence[int] | None = None,
                logger: Any = None) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """`results` and the labels that belong to them, without samples whose file is broken."""
        wanted = np.arange(len(self)) if indices is None else np.asarray(indices)
        labels = self.get_gt_labels()[wanted]
        if self.broken and len(results) == len(wanted):
            good = np.flatnonzero(~np.isin(wanted, [*self.broken])).tolist()
            (logger or _log).warning('%d broken files are left out of this evaluation', len(wanted) - len(good))
            results, labels = [results[i] for i in good], labels[good]
        return results, labels

    def score(self, results: Sequence[np.ndarray], labels: np.ndarray, metric: Any = None,
              metric_options: dict[str, Any] | None = None) -> dict[str, Any]:
        """The metrics of this kind of data set."""
        return metrics.evaluate(results, labels, metric or 'accuracy', metric_options,
                                class_count=None if self.CLASSES is None else len(self.CLASSES))
