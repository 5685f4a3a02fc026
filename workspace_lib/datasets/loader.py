"""Batches. In: a data set, and how to batch it. Out: dicts on the device, `img` float32 (N, C, H, W) and `gt_label`.

Workers make whole uint8 batches; the device stage normalises them. All order and chance is a function of
(seed, epoch, index), so neither the number of workers nor a restart changes a batch.
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
from torch.utils.data import DataLoader, default_collate, get_worker_info

from workspace_lib.datasets.decode import DecodeError
from workspace_lib.datasets.pipeline import DeviceStage

_log = logging.getLogger(__name__)
Batch = dict[str, Any]
Request = tuple[int, list[int]]  # epoch, indices


class Loader:
    """Iterates over batches that are ready for the model; each pass is one epoch.

    Args:
        dataset: a `BaseDataset`, or any map-style data set of dicts with `img`.
        batch_size: samples a batch, on this process.
        num_workers: processes that prepare them; 0 does it here.
        shuffle, seed: the order of an epoch depends on (seed, epoch) alone; no seed means a random one.
        round_up: over several ranks, repeat samples until all have as many.
        drop_last: leave out a last batch that is not full.
        sampler: indices in the order to use, in place of shuffle and ranks; its `set_epoch` is called if it has one.
        rank, world_size: this process takes every `world_size`-th sample, from `rank` on.
        device, channels_last: where the batch goes, and its memory format.
        loader_options: for torch's `DataLoader`, such as `prefetch_factor`.
    """

    def __init__(self, dataset: Any, batch_size: int, num_workers: int = 0, shuffle: bool = False,
                 seed: int | None = None, round_up: bool = True, drop_last: bool = False, sampler: Any = None,
                 rank: int = 0, world_size: int = 1, device: torch.device | str = 'cpu', channels_last: bool = False,
                 pin_memory: bool = True, persistent_workers: bool = True, **loader_options: Any) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, torch.device(device)
        self.device_stage: DeviceStage = getattr(dataset, 'device_stage', DeviceStage())
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.seed = secrets.randbits(31) if seed is None else seed
        self.requests = _Requests(len(dataset), batch_size, shuffle, self.seed, round_up, drop_last, sampler, rank,
                                  world_size)
        if num_workers == 0:
            loader_options.pop('prefetch_factor', None)
        self._batches = DataLoader(
            _BatchMaker(dataset, self.seed), batch_sampler=self.requests, num_workers=num_workers,
            collate_fn=_as_is, worker_init_fn=_calm_threads, generator=torch.Generator(),
            pin_memory=pin_memory and self.device.type == 'cuda',
            persistent_workers=persistent_workers and num_workers > 0, **loader_options)

    def __len__(self) -> int:
        return len(self.requests)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next pass is; without this call each pass is the one after the last."""
        self.requests.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        for batch, broken in self._batches:
            self._note(broken)
            if isinstance(batch, Exception):
                raise batch
            yield self._on_device(batch)

    def _note(self, broken: dict[int, str]) -> None:
        for index, reason in broken.items():
            self.dataset.broken[index] = reason
            _log.warning('skipped a broken file, %d by now: %s', len(self.dataset.broken), reason)

    def _on_device(self, batch: Batch) -> Batch:
        batch = {key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                 for key, value in batch.items()}
        img = batch['img'].contiguous(memory_format=self.memory_format)
        return {**batch, 'img': self.device_stage(img)}


class _Requests:
    """The batches of an epoch as lists of indices: what the workers are asked for."""

    def __init__(self, length: int, batch_size: int, shuffle: bool, seed: int, round_up: bool, drop_last: bool,
                 sampler: Any, rank: int, world_size: int) -> None:
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.round_up, self.drop_last, self.sampler = round_up, drop_last, sampler
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def indices(self, epoch: int) -> list[int]:
        """This rank's samples in their order."""
        if self.sampler is not None:
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            return list(self.sampler)
        order = np.arange(self.length)
        if self.shuffle:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
            order = torch.randperm(self.length, generator=generator).numpy()
        if self.round_up:
            order = np.resize(order, -(-self.length // self.world_size) * self.world_size)
        return order[self.rank::self.world_size].tolist()

    def __len__(self) -> int:
        if self.sampler is not None:
            count = len(self.sampler)
        elif self.round_up:
            count = -(-self.length // self.world_size)
        else:
            count = len(range(self.rank, self.length, self.world_size))
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Request]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        indices = self.indices(epoch)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield epoch, indices[start:start + self.batch_size]


class _BatchMaker:
    """What runs in the workers: a request in, a batch out, with the files that turned out broken."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, request: Request) -> tuple[Batch | Exception, dict[int, str]]:
        epoch, indices = request
        sample = getattr(self.dataset, 'sample', None) or _unseeded(self.dataset)
        known = len(getattr(self.dataset, 'broken', ()))
        try:
            batch: Batch | Exception = collate([sample(i, _mix(self.seed, epoch, i)) for i in indices])
        except (DecodeError, OSError) as error:
            batch = error  # raised again by the loader, which spares the reader the worker's traceback
        return batch, dict(list(getattr(self.dataset, 'broken', {}).items())[known:])


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """Samples to a batch: `img` to uint8 or float (N, C, H, W), `gt_label` to int64 (N,), other keys as torch does.

    `img_metas` is left out: file names are to be had of the data set.

    Raises:
        ValueError: images of different sizes.
    """
    batch: Batch = {}
    for key in (key for key in items[0] if key != 'img_metas'):
        values = [item[key] for item in items]
        if key == 'img' and isinstance(values[0], np.ndarray):
            batch[key] = _stack(values)
        elif key == 'gt_label' and isinstance(values[0], np.ndarray):
            batch[key] = torch.from_numpy(np.stack(values))
        else:
            batch[key] = default_collate(values)
    return batch


def _stack(images: Sequence[np.ndarray]) -> Tensor:
    """Images (H, W, C) to (N, C, H, W) with the strides of channels_last, at the cost of one copy."""
    if len(shapes := {img.shape for img in images}) > 1:
        raise ValueError(f'the images of a batch differ in (height, width, channels): {sorted(shapes)[:4]}; end the '
                         'pipeline with a step of fixed size (Resize, CenterCrop), or set samples_per_gpu=1')
    batch = _empty((len(images), *images[0].shape))
    np.stack(images, out=batch.numpy())
    return batch.permute(0, 3, 1, 2)


def _empty(shape: tuple[int, ...]) -> Tensor:
    """uint8 memory for a batch; in a worker shared at once, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)), device='cpu')
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)


def _mix(seed: int, epoch: int, index: int | None = None) -> int:
    """Different numbers for different arguments, as long as seeds and epochs stay under 2**31."""
    base = seed << 31 | epoch
    return base if index is None else base << 40 | index


def _unseeded(dataset: Any) -> Any:
    return lambda index, seed: dataset[index]


def _as_is(batch: Any) -> Any:
    return batch


def _calm_threads(worker: int) -> None:
    cv2.setNumThreads(0)  # as many workers as cores, each with as many threads, would only get in each other's way
    torch.set_num_threads(1)
