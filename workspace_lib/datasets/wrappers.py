"""Data sets made of others: a part of one, one repeated or balanced, several one after another.

All are torch's `Subset` or `ConcatDataset`, which the loader knows: `locate` finds the sample behind an index, `leaves`
the data sets that read files.
"""
from __future__ import annotations

import bisect
import math
import os.path as osp
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Subset

from ..registry import DATASETS
from .base import BaseDataset


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set that reads the sample, and the sample's index in it."""
    if isinstance(dataset, Subset):
        return locate(dataset.dataset, int(dataset.indices[index]))
    if isinstance(dataset, TorchConcatDataset):
        index = range(len(dataset))[index]  # checks it, and counts a negative one from the end
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        return locate(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    return dataset, index


def leaves(dataset: Any) -> list[Any]:
    """The data sets that read files, each once."""
    if isinstance(dataset, Subset):
        return leaves(dataset.dataset)
    parts = dataset.datasets if isinstance(dataset, TorchConcatDataset) else ()
    found = {id(leaf): leaf for part in parts for leaf in leaves(part)}
    return list(found.values()) if parts else [dataset]


class _Wrapper:
    """What a wrapper answers by asking the data set behind each sample."""

    CLASSES: Sequence[str] | None

    def get_cat_ids(self, index: int) -> list[int]:
        dataset, at = locate(self, index)
        return dataset.get_cat_ids(at)

    def filename(self, index: int) -> str:
        dataset, at = locate(self, index)
        return dataset.filename(at)

    def load_image(self, index: int) -> np.ndarray:
        dataset, at = locate(self, index)
        return dataset.load_image(at)

    @property
    def data_prefix(self) -> str:
        """The folder that all files are in."""
        prefixes = [leaf.data_prefix for leaf in leaves(self)]
        return prefixes[0] if len(prefixes) == 1 else osp.commonpath([osp.abspath(prefix) for prefix in prefixes])


class View(_Wrapper, Subset):
    """The samples of `dataset` that `indices` (int64) names, in that order."""

    def __init__(self, dataset: Any, indices: np.ndarray) -> None:
        Subset.__init__(self, dataset, indices)  # type: ignore[arg-type]
        self.CLASSES = dataset.CLASSES

    def get_gt_labels(self) -> np.ndarray:
        return self.dataset.get_gt_labels()[self.indices]  # type: ignore[attr-defined]

    def evaluate(self, results: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError(f'{type(self).__name__} holds samples more than once, so its metrics would be those '
                                  'of no data set; set data.val and data.test to the data set inside')


@DATASETS.register_module()
class RepeatDataset(View):
    """A data set `times` times over, so that a small one makes long epochs."""

    def __init__(self, dataset: Any, times: int) -> None:
        super().__init__(dataset, np.tile(np.arange(len(dataset)), times))
        self.times = times


@DATASETS.register_module()
class ClassBalancedDataset(View):
    """Samples of rare classes several times (Gupta et al. 2019, arXiv:1908.03195, section 4.1).

    With f(c) the share of samples that have class c, one is there ceil(max over its classes c of
    max(1, sqrt(oversample_thr / f(c)))) times; one without classes once.
    """

    def __init__(self, dataset: Any, oversample_thr: float) -> None:
        classes = [set(dataset.get_cat_ids(index)) for index in range(len(dataset))]
        counts = Counter(name for of_sample in classes for name in of_sample)
        factors = {name: math.sqrt(oversample_thr / (count / len(classes))) for name, count in counts.items()}
        times = [math.ceil(max(1., *(factors[name] for name in of_sample))) if of_sample else 1
                 for of_sample in classes]
        super().__init__(dataset, np.repeat(np.arange(len(dataset)), times))
        self.oversample_thr, self.repeat_indices = oversample_thr, self.indices


@DATASETS.register_module()
class KFoldDataset(View):
    """All but one of `num_splits` parts of a data set, or in `test_mode` that part, the `fold`-th.

    Args:
        fold: from 0. seed: shuffle before splitting; None keeps the order.

    Raises:
        ValueError: no such fold.
    """

    def __init__(self, dataset: Any, fold: int = 0, num_splits: int = 5, test_mode: bool = False,
                 seed: int | None = None) -> None:
        if not 0 <= fold < num_splits:
            raise ValueError(f'KFoldDataset got fold={fold} of num_splits={num_splits}; folds count from 0')
        order = np.arange(len(dataset))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        held_out = slice(len(order) * fold // num_splits, len(order) * (fold + 1) // num_splits)
        super().__init__(dataset, order[held_out] if test_mode else np.delete(order, held_out))
        self.fold, self.num_splits, self.test_mode, self.seed = fold, num_splits, test_mode, seed

    def answers(self, results: Any, indices: Any = None, logger: Any = None) -> tuple[Any, np.ndarray]:
        chosen = np.asarray(self.indices)
        return self.dataset.answers(  # type: ignore[attr-defined]
            results, chosen if indices is None else chosen[np.asarray(indices)], logger)

    def score(self, *args: Any) -> dict[str, Any]:
        return self.dataset.score(*args)  # type: ignore[attr-defined]

    evaluate = BaseDataset.evaluate  # type: ignore[assignment]


@DATASETS.register_module()
class ConcatDataset(_Wrapper, TorchConcatDataset):
    """Several data sets of the same classes, one after another.

    Args:
        separate_eval: metrics of each part, as `0_accuracy`, `1_accuracy` ...; else of all samples together.

    Raises:
        ValueError: parts of different classes, or of different types that should be evaluated together.
    """

    def __init__(self, datasets: Sequence[Any], separate_eval: bool = True) -> None:
        TorchConcatDataset.__init__(self, datasets)
        self.separate_eval, self.CLASSES = separate_eval, datasets[0].CLASSES
        for number, dataset in enumerate(datasets):
            if list(dataset.CLASSES or ()) != list(self.CLASSES or ()):
                raise ValueError(f'ConcatDataset: part {number} has other classes than part 0, so their labels mean '
                                 'different things; set classes in both')
        if not separate_eval and len({type(dataset) for dataset in datasets}) > 1:
            raise ValueError('ConcatDataset(separate_eval=False) evaluates all parts together, so they must be of one '
                             f'type; got {", ".join(type(dataset).__name__ for dataset in datasets)}')

    def get_gt_labels(self) -> np.ndarray:
        return np.concatenate([dataset.get_gt_labels() for dataset in self.datasets])  # type: ignore[attr-defined]

    def _split(self, results: Any, indices: Any) -> list[tuple[Any, list[Any], np.ndarray]]:
        """For each part: it, its results, and their indices in it."""
        wanted = np.arange(len(self)) if indices is None else np.asarray(indices)
        if len(results) != len(wanted):
            raise ValueError(f'{len(results)} results for {len(wanted)} samples; they must be of the same length')
        part_of = np.searchsorted(self.cumulative_sizes, wanted, 'right')
        starts = [0, *self.cumulative_sizes]
        places = [np.flatnonzero(part_of == part) for part in range(len(self.datasets))]
        return [(dataset, [results[i] for i in mine], wanted[mine] - start)
                for dataset, mine, start in zip(self.datasets, places, starts, strict=False)]

    def answers(self, results: Any, indices: Any = None, logger: Any = None) -> tuple[list[Any], np.ndarray]:
        parts = [dataset.answers(mine, at, logger) for dataset, mine, at in self._split(results, indices)]
        return [row for rows, _ in parts for row in rows], np.concatenate([labels for _, labels in parts])

    def score(self, *args: Any) -> dict[str, Any]:
        return self.datasets[0].score(*args)  # type: ignore[attr-defined]

    def evaluate(self, results: Any, metric: Any = None, metric_options: dict[str, Any] | None = None,
                 indices: Any = None, logger: Any = None) -> dict[str, Any]:
        """As `BaseDataset.evaluate`; with `separate_eval` the keys begin with the number of the part."""
        if not self.separate_eval:
            return self.score(*self.answers(results, indices, logger), metric, metric_options)
        values: dict[str, Any] = {}
        for number, (dataset, mine, at) in enumerate(self._split(results, indices)):
            if mine:
                found = dataset.evaluate(mine, metric, metric_options, at, logger)
                values.update({f'{number}_{key}': value for key, value in found.items()})
        return values
