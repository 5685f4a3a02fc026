"""Batches. In: a data set and how to batch it. Out: dicts on the device, `img` float32 (N, C, H, W), `gt_label`.

Workers make whole uint8 batches; the device stage normalises them. Order and chance are functions of (seed, epoch,
index), so neither the number of workers nor a restart changes a batch.
"""
from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate, get_worker_info

from .decode import DecodeError
from .pipeline import DeviceStage

_log = logging.getLogger(__name__)
Batch = dict[str, Any]


class Loader:
    """Iterates over batches that are ready for the model; each pass is an epoch.

    Args:
        dataset: a `BaseDataset`, a torch `Subset` of one, or any data set of dicts with `img`.
        batch_size: samples a batch, on this process.
        num_workers: processes that prepare them; 0 does it here.
        shuffle, seed: the order of an epoch depends on (seed, epoch); no seed means a random one.
        round_up: over several ranks, repeat samples until all have as many.
        drop_last: leave out a last batch that is not full.
        sampler: indices in their order, in place of shuffle and ranks; its `set_epoch` is called if there is one.
        rank, world_size: this process takes every `world_size`-th sample, from `rank` on.
        device, channels_last: where batches go, in which memory format.
        options: further ones of torch's `DataLoader`, such as `prefetch_factor`.
    """

    def __init__(self, dataset: Any, batch_size: int, num_workers: int = 0, shuffle: bool = False,
                 seed: int | None = None, round_up: bool = True, drop_last: bool = False, sampler: Any = None,
                 rank: int = 0, world_size: int = 1, device: torch.device | str = 'cpu',
                 channels_last: bool = False, pin_memory: bool = True, persistent_workers: bool = True,
                 **options: Any) -> None:
        if batch_size < 1:
            raise ValueError(f'a batch of {batch_size} samples; samples_per_gpu starts at 1')
        self.dataset, self.batch_size, self.device = dataset, batch_size, torch.device(device)
        self.device_stage: DeviceStage = getattr(_whole(dataset), 'device_stage', DeviceStage())
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.seed = secrets.randbits(31) if seed is None else seed
        self._requests = _Requests(len(dataset), batch_size, shuffle, self.seed, round_up, drop_last, sampler,
                                   rank, world_size)
        self._told: set[int] = set()
        if num_workers == 0:
            options.pop('prefetch_factor', None)
        maker: Any = _BatchMaker(dataset, self.seed)
        requests: Any = self._requests
        self._batches: DataLoader = DataLoader(
            maker, batch_sampler=requests, num_workers=num_workers, collate_fn=_as_is,
            worker_init_fn=_calm_threads, generator=torch.Generator(),  # so as not to draw from the global one
            pin_memory=pin_memory and self.device.type == 'cuda',
            persistent_workers=persistent_workers and num_workers > 0, **options)

    def __len__(self) -> int:
        return len(self._requests)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is; without this call, each pass is the one after the last."""
        self._requests.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        for batch, broken in self._batches:
            for index in broken.keys() - self._told:  # each worker finds a file anew
                self._told.add(index)
                _whole(self.dataset).broken[index] = broken[index]
                _log.warning('skipped broken file %d: %s', len(self._told), broken[index])
            if isinstance(batch, Exception):
                raise batch
            yield self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        batch = {key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                 for key, value in batch.items()}
        img = batch['img']
        if img.device.type != 'cpu':  # reordered while it is a quarter of the bytes; a CPU's look-up does it itself
            img = img.contiguous(memory_format=self.memory_format)
        return {**batch, 'img': self.device_stage(img).contiguous(memory_format=self.memory_format)}


class _Requests:
    """The batches of an epoch, as the workers are asked for them: (epoch, indices)."""

    def __init__(self, length: int, batch_size: int, shuffle: bool, seed: int, round_up: bool, drop_last: bool,
                 sampler: Any, rank: int, world_size: int) -> None:
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.drop_last, self.sampler = drop_last, sampler
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self.total = -(-length // world_size) * world_size if round_up else length

    def _indices(self, epoch: int) -> list[int]:
        """This rank's samples in their order."""
        if self.sampler is not None:
            getattr(self.sampler, 'set_epoch', lambda epoch: None)(epoch)
            return list(self.sampler)
        order = np.arange(self.length)
        if self.shuffle:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch) % 2**63)
            order = torch.randperm(self.length, generator=generator).numpy()
        return np.resize(order, self.total)[self.rank::self.world_size].tolist()

    def __len__(self) -> int:
        mine = range(self.rank, self.total, self.world_size) if self.sampler is None else self.sampler
        return len(mine) // self.batch_size if self.drop_last else -(-len(mine) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        indices = self._indices(epoch)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield epoch, indices[start:start + self.batch_size]


class _BatchMaker:
    """What runs in the workers: a request in, a batch out, with the files that turned out broken."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, request: tuple[int, list[int]]) -> tuple[Batch | Exception, dict[int, str]]:
        epoch, indices = request
        broken = getattr(_whole(self.dataset), 'broken', {})
        known = len(broken)
        try:
            batch: Any = collate([_sample(self.dataset, i, _mix(self.seed, epoch) << 40 | i) for i in indices])
        except (DecodeError, OSError) as error:
            batch = error  # the loader raises it, without a traceback through the worker
        return batch, dict(list(broken.items())[known:])


def _whole(dataset: Any) -> Any:
    return _whole(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _sample(dataset: Any, index: int, seed: int) -> dict[str, Any]:
    if isinstance(dataset, Subset):
        return _sample(dataset.dataset, dataset.indices[index], seed)
    return dataset.sample(index, seed) if hasattr(dataset, 'sample') else dataset[index]


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """Samples to a batch: `img` to uint8 or float (N, C, H, W), `gt_label` to int64 (N,), others as torch does.

    `img_metas` is left out; a file's name is to be had of `dataset.filename`.

    Raises:
        ValueError: images of different sizes.
    """
    batch: Batch = {}
    for key in items[0].keys() - {'img_metas'}:
        values = [item[key] for item in items]
        if key == 'img' and isinstance(values[0], np.ndarray):
            batch[key] = _stack(values)
        else:
            batch[key] = default_collate(values)
    return batch


def _stack(images: Sequence[np.ndarray]) -> Tensor:
    """Images (H, W, C) to (N, C, H, W) with the strides of channels_last: one copy."""
    if len(shapes := {img.shape for img in images}) > 1:
        raise ValueError(f'the images of a batch differ in (height, width, channels): {sorted(shapes)[:4]}; end '
                         'the pipeline with a step of fixed size (Resize, CenterCrop), or batch one by one')
    batch = _empty((len(images), *images[0].shape))
    np.stack(images, out=batch.numpy())
    return batch.permute(0, 3, 1, 2)


def _empty(shape: tuple[int, ...]) -> Tensor:
    """uint8 memory for a batch; in a worker shared from the start, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)), device='cpu')
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _mix(seed: int, epoch: int) -> int:
    """Another number for every seed and epoch below 2**31."""
    return seed << 31 | epoch


def _as_is(batch: Any) -> Any:
    return batch


def _calm_threads(worker: int) -> None:
    cv2.setNumThreads(0)  # workers fill the cores by themselves
    torch.set_num_threads(1)
