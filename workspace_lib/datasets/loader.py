"""Batches. In: a data set and how to batch it. Out: dicts on the device, `img` float32 (N, C, H, W), `gt_label`.

Workers make whole uint8 batches; the device stage flips, erases and normalises them there (on a CPU: still in the
workers). Order and chance are functions of (seed, epoch, index), so neither the number of workers nor a restart changes
a batch.
"""
from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, get_worker_info

from .base import BaseDataset
from .decode import DecodeError
from .mixing import BatchAugments
from .pipeline import DRAWS, DeviceStage, Pipeline, _seeded_globals
from .ring import SPARE, Batch, Ring, batch_memory, choose_workers, copied_ahead, cores, to_device, to_send, way_out
from .wrappers import leaves, locate

_log = logging.getLogger(__name__)
SHARED_MEMORY = '/dev/shm'  # through which workers hand over their batches
_WHY_WORKERS_DIE = ('Killed: look for the out-of-memory killer in dmesg, and lower data.workers_per_gpu. Bus error: '
                    '/dev/shm is full (SHM_SIZE in .env, or docker run --shm-size). Segmentation fault: look at the '
                    'file (workspace verify_dataset)')
Broken = dict[tuple[int, int], str]  # (which of the leaves, index): reason


class Loader:
    """Iterates over batches that are ready for the model; each pass is an epoch.

    Args:
        dataset: a `BaseDataset`, any data set of dicts with `img`, or torch's `Subset` and `ConcatDataset` of such.
        batch_size: samples a batch, on this process.
        num_workers: processes that prepare them; 0 does it here, None chooses by cores and shared memory, and says so.
        shuffle, seed: the order of an epoch depends on (seed, epoch); no seed means a random one.
        round_up: over several ranks, repeat samples until all have as many.
        drop_last: leave out a last batch that is not full.
        sampler: indices in their order, in place of shuffle and ranks; its `set_epoch` is called if there is one.
        rank, world_size: this process takes every `world_size`-th sample, from `rank` on.
        device, channels_last: where batches go, in which memory format.
        augments: mixes each batch on the device, by chance that depends on seed, epoch, batch and rank.
        device_steps: a GPU does the random flips and erasings that end a pipeline: in the same places, with noise that
            depends on seed, epoch, batch and rank. On a CPU, and on 'meta', which has no noise, the workers do them.
        options: further ones of torch's `DataLoader`, such as `prefetch_factor`.

    Raises:
        ValueError: no sample in a batch, or `in_order=False`.
    """

    def __init__(self, dataset: Any, batch_size: int, num_workers: int | None = 0, shuffle: bool = False,
                 seed: int | None = None, round_up: bool = True, drop_last: bool = False, sampler: Any = None,
                 rank: int = 0, world_size: int = 1, device: torch.device | str = 'cpu',
                 channels_last: bool = False, pin_memory: bool = True, persistent_workers: bool = True,
                 augments: BatchAugments | None = None, device_steps: bool = True, **options: Any) -> None:
        if batch_size < 1:
            raise ValueError(f'a batch of {batch_size} samples; samples_per_gpu starts at 1')
        if not options.get('in_order', True):
            raise ValueError('in_order=False: which samples a batch is of, its place tells; leave in_order out')
        self.dataset, self.batch_size, self.device = dataset, batch_size, torch.device(device)
        self._leaves = leaves(dataset)
        self.device_stage, self.augments = _common_stage(self._leaves), augments
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.seed = secrets.randbits(31) if seed is None else seed
        self._requests = _Requests(len(dataset), batch_size, shuffle, self.seed, round_up, drop_last, sampler,
                                   rank, world_size)
        self._told: set[tuple[int, int]] = set()
        stage = self.device_stage if self.device.type == 'cpu' else None
        left = device_steps and self.device.type not in ('cpu', 'meta') and _end_alike(self._leaves)
        self._maker = _BatchMaker(dataset, stage, left)
        if num_workers is None:
            num_workers, ahead = self._chosen()
            options = {'prefetch_factor': ahead, **options}
        if num_workers == 0:
            options.pop('prefetch_factor', None)
        self.num_workers, self._locks = num_workers, pin_memory and self.device.type == 'cuda'
        # Where each worker is: its process, and the sample that it reads.
        self._maker.reading = self._places = multiprocessing.RawArray('q', [-1] * 2 * max(num_workers, 1))
        self._batches: DataLoader = DataLoader(
            self._maker, batch_sampler=self._requests, num_workers=num_workers, collate_fn=tuple,  # type: ignore
            worker_init_fn=_calm, generator=torch.Generator(),  # so as not to draw from the global one
            persistent_workers=persistent_workers and num_workers > 0, **options)
        # Batches that may be on their way or in use at once.
        self._slots = min(num_workers * (self._batches.prefetch_factor or 0), len(self)) + SPARE

    def __len__(self) -> int:
        return len(self._requests)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is; without this call, each pass is the one after the last."""
        self._requests.epoch = epoch

    def start_at(self, batch: int) -> None:
        """With which batch, counted from 0, the next pass begins; those before it are not made."""
        self._requests.first = batch

    def files(self, epoch: int, batch: int) -> list[str]:
        """The files of a batch, in its order: what a message about it names."""
        return [self._maker.name_of(index) for index in self._requests.indices_of(epoch, batch)]

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._requests.epoch, self._requests.first
        batches = copied_ahead(self._received(), self.device) if self.device.type == 'cuda' else self._received()
        self._pass = mine = object()
        try:
            self.prepare()
            for number, batch in enumerate(batches, first):
                if isinstance(batch, Exception):
                    raise batch
                yield self._finished(batch, epoch, number)
                if self._pass is not mine and self._batches.persistent_workers:  # whose batches this would take
                    raise RuntimeError(f'the pass of epoch {epoch} was left after batch {number}, when another began: '
                                       'set persistent_workers=False, or build a loader for each')
        except (RuntimeError, OSError, EOFError) as error:
            self.explain(error)
            raise

    def prepare(self) -> None:
        """Reserve shared memory for the workers that are to start; those that persist keep theirs while all live.

        Each pass sees to it; called before, a run that lacks room for one of its loaders ends before it has begun.

        Raises:
            RuntimeError: there is too little.
        """
        if any(worker.exitcode is not None for worker in self._workers()):
            with suppress(RuntimeError):  # torch says once more that one died
                self._batches._iterator._shutdown_workers()  # type: ignore[union-attr]
            self._batches._iterator = self._requests.ring = None  # so that new ones are started
        if self.num_workers == 0 or self._requests.ring and self._batches.persistent_workers:
            return
        self._requests.ring, self._maker.slots = None, torch.empty(0, 0)  # its place is the next one's
        if why := self.shortage():
            raise RuntimeError(why)
        ring = Ring(self._slots, self._batch_bytes) if self._batch_bytes else Ring()
        if self._locks and self._batch_bytes and (why := ring.lock_pages(self.device)):
            _log.warning('batches are copied once more on their way to the GPU, by a thread of torch: %s', why)
            self._batches.pin_memory, ring = True, Ring()
        self._requests.ring, self._maker.slots = ring, ring.slots

    def shortage(self) -> str:
        """Why the batches that may be on their way do not fit into what is free of shared memory; '' where they do.

        Those of this process alone: what the others of this machine have reserved is not free any more.
        """
        needed = self._batch_bytes * self._slots if self.num_workers else 0
        if needed == 0 or needed <= (free := _free_memory()):
            return ''
        return (f'{SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but {self._slots} batches of '
                f'{self._batch_bytes / 2**20:.1f} MiB may be on their way from {self.num_workers} workers, '
                f'{needed / 2**20:.0f} MiB in all: {way_out(needed)}')

    def explain(self, error: BaseException) -> None:
        """Add to an error which worker died, if one did, which file it was reading, and why that may be."""
        if 'shared memory(shm)' in str(error) and not hasattr(error, '__notes__'):  # of other fields, in torch's words
            error.add_note(f'shared memory is full: {way_out(self._batch_bytes * self._slots)}')
        if isinstance(error, ConnectionError | EOFError):
            with suppress(RuntimeError):  # torch lost a worker amid a batch, and may say which while the system notes
                time.sleep(0.2)  # that it ended
        told = re.findall(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)', str(error))  # or not all have started
        dead = {int(pid): 0 for pids in told for pid in pids.split(',')}
        dead |= {worker.pid: worker.exitcode for worker in self._workers() if worker.exitcode}
        for pid, index in zip(self._places[::2], self._places[1::2], strict=True):
            if pid in dead and not any(f'process {pid}' in note for note in getattr(error, '__notes__', ())):
                at = f'was reading {self._maker.name_of(index)}' if index >= 0 else 'was between two batches'
                how = f' ended by {signal.Signals(-code).name},' if (code := dead[pid]) < 0 else ''
                error.add_note(f'a worker of the loader, process {pid}{how} {at}. {_WHY_WORKERS_DIE}')

    @cached_property
    def _batch_bytes(self) -> int:
        """Of a batch's images on their way from a worker, as the first sample has them; 0 where that is broken."""
        batch, broken, _ = self._maker.__getitems__((-1, (0, [0]), [0]))
        self._tell(broken)
        return 0 if isinstance(batch, Exception) else min(self.batch_size, self._requests.samples) * batch['img'].nbytes

    def _chosen(self) -> tuple[int, int]:
        """Workers, and batches ahead of each."""
        here, ranks, free = cores(), int(os.environ.get('LOCAL_WORLD_SIZE', 1)), _free_memory()
        workers, ahead = choose_workers(here // ranks, free // 2 // ranks // max(self._batch_bytes, 1))
        _log.info('loader: %d workers, %d batches ahead each: %d cores, %d rank%s, %.1f GiB of shared memory', workers,
                  ahead, here, ranks, 's' * (ranks > 1), free / 2**30)
        return workers, ahead

    def _workers(self) -> list[Any]:
        """The processes of workers that persist."""
        return getattr(getattr(self._batches, '_iterator', None), '_workers', [])

    def _received(self) -> Iterator[Any]:
        """Batches, on the device unless a stream copies them ahead; and errors, for whoever hands them on.

        A batch has no name here that outlives its copy: its slot is free before the next is asked for.
        """
        ring, at = self._requests.ring or Ring(), 'cpu' if self.device.type == 'cuda' else self.device
        for sent, broken, slot in self._batches:
            self._tell(broken)
            yield sent if isinstance(sent, Exception) else to_device(ring.receive(slot, sent), at)

    def _finished(self, batch: Batch, epoch: int, number: int) -> Batch:
        """A batch, where it is on its device: late steps done, normalised, in the memory format asked for, mixed."""
        img = batch['img'].contiguous(memory_format=self.memory_format)  # while it is a quarter of the bytes
        if (draws := batch.pop(DRAWS, None)) is not None:
            img = self.device_stage.random_steps(img, draws, self._chance(epoch, number, 3))
        batch = {**batch, 'img': self.device_stage(img).contiguous(memory_format=self.memory_format)}
        return batch if self.augments is None else self._mixed(batch, epoch, number)

    def _tell(self, broken: Broken) -> None:
        for leaf, index in sorted(broken.keys() - self._told):  # each worker finds a file anew
            self._leaves[leaf].broken[index] = reason = broken[leaf, index]
            self._told.add((leaf, index))
            _log.warning('skipped broken file %d: %s', len(self._told), reason)

    def _chance(self, epoch: int, number: int, use: int) -> random.Random:
        """Of a batch; `use`: 2 or 3, so that it has the seed of no sample."""
        place = number * self._requests.world_size + self._requests.rank  # among the batches of all ranks
        return random.Random(_mix(self.seed, epoch) << 40 | use << 38 | place)

    def _mixed(self, batch: Batch, epoch: int, number: int) -> Batch:
        rng = self._chance(epoch, number, 2)
        img, label = self.augments(batch['img'], batch['gt_label'], rng)  # type: ignore[misc]
        return {**batch, 'img': img.contiguous(memory_format=self.memory_format), 'gt_label': label}


class _Requests:
    """The batches of an epoch, as the workers are asked for them: (slot of the ring, (base, places), indices).

    A sample's seed is `base | place`, of seed and epoch, and of its index or, as a sampler may give one several times,
    its place in the epoch: a list of such long numbers would take as long to send as all the rest.
    """

    def __init__(self, length: int, batch_size: int, shuffle: bool, seed: int, round_up: bool, drop_last: bool,
                 sampler: Any, rank: int, world_size: int) -> None:
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.drop_last, self.sampler = drop_last, sampler
        self.rank, self.world_size, self.epoch, self.first = rank, world_size, 0, 0
        self.ring: Ring | None = None
        self._order: tuple[int, list[int]] = -1, []  # of the last epoch asked for
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

    @property
    def samples(self) -> int:
        """Of this rank."""
        return len(range(self.rank, self.total, self.world_size) if self.sampler is None else self.sampler)

    def __len__(self) -> int:
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    def indices_of(self, epoch: int, batch: int) -> list[int]:
        if self._order[0] != epoch:
            self._order = epoch, self._indices(epoch)
        return self._order[1][batch * self.batch_size:(batch + 1) * self.batch_size]

    def __iter__(self) -> Iterator[tuple[int, tuple[int, Sequence[int]], list[int]]]:
        ring = self.ring or Ring()
        ring.recall()  # torch has waited for what workers were still at before it comes here
        epoch, self.epoch = self.epoch, self.epoch + 1
        first, self.first = self.first, 0
        self._order = epoch, (indices := self._indices(epoch))
        places = indices if self.sampler is None else range(self.rank, len(indices) * self.world_size, self.world_size)
        base = _mix(self.seed, epoch) << 40
        for start in range(first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            mine = slice(start, start + self.batch_size)
            yield ring.ask(), (base, places[mine]), indices[mine]


class _BatchMaker:
    """What runs in the workers: a request in; out a batch (see `to_send`), files that turned out broken, the slot."""

    def __init__(self, dataset: Any, stage: DeviceStage | None, for_device: bool) -> None:
        self.dataset, self.stage, self._leaves = dataset, stage, leaves(dataset)
        self.left: dict[str, Any] = {'for_device': True} if for_device else {}
        self.reading: Any = [-1, -1]
        self.at, self.slots, self.memory = 1, torch.empty(0, 0), np.empty((0, 0), np.uint8)  # of a worker: see `_calm`

    def __getitems__(self, request: tuple[int, tuple[int, Sequence[int]], list[int]]) -> tuple[Any, Broken, int]:
        number, seeds, indices = request
        slot = None if number < 0 else self.memory[number]
        try:
            batch: Any = to_send(collate(self._samples(*seeds, indices), self.stage, slot, len(indices)), slot)
        except (DecodeError, OSError) as error:
            batch = error  # the loader raises it, without a traceback through the worker
        return batch, self._broken(), number  # all of them: a batch that told of one may never have been taken

    def _samples(self, base: int, places: Sequence[int], indices: list[int]) -> Iterator[dict[str, Any]]:
        plain = hasattr(self.dataset, 'sample') and self._leaves == [self.dataset]  # no wrapper, to look behind
        sample = self.dataset.sample if plain else partial(_sample, self.dataset)
        try:
            for place, index in zip(places, indices, strict=True):
                self.reading[self.at] = index
                yield sample(index, base | place, **self.left)
        except Exception as error:
            if (name := self.name_of(index)) not in f'{error} {getattr(error, "__notes__", "")}':
                error.add_note(f'while reading {name}')
            raise
        self.reading[self.at] = -1

    def name_of(self, index: int) -> str:
        dataset, at = locate(self.dataset, index)
        return dataset.filename(at) if hasattr(dataset, 'filename') else f'sample {at} of {type(dataset).__name__}'

    def _broken(self) -> Broken:
        return {(number, index): reason for number, leaf in enumerate(self._leaves)
                for index, reason in getattr(leaf, 'broken', {}).items()}


def _common_stage(parts: list[Any]) -> DeviceStage:
    """What is left to do with a batch; where parts disagree about that, each does all of its own pipeline itself."""
    pipelines = [part.pipeline for part in parts if isinstance(getattr(part, 'pipeline', None), Pipeline)]
    if len({(pipeline.is_split, repr(pipeline.device_stage)) for pipeline in pipelines}) > 1:
        for pipeline in pipelines:
            pipeline.run_as_written('the data sets of the loader normalise in different ways')
    return pipelines[0].device_stage if pipelines else DeviceStage()


def _end_alike(parts: list[Any]) -> bool:
    """Whether all leave the same steps to the device; a `sample` of a person's own may not know how."""
    return (all(getattr(type(part), 'sample', None) is BaseDataset.sample for part in parts)
            and len({repr(part.pipeline.device_stage.steps) for part in parts}) == 1)


def _sample(dataset: Any, index: int, seed: int, **left: bool) -> dict[str, Any]:
    dataset, index = locate(dataset, index)
    if hasattr(dataset, 'sample'):
        return dataset.sample(index, seed, **left)
    with _seeded_globals(seed):  # of another library, borrowed or a person's own: it draws from the global generators
        return dataset[index]


def collate(items: Any, stage: DeviceStage | None = None, slot: np.ndarray | None = None, count: int = 0) -> Batch:
    """Samples to a batch: `img` to uint8 or float (N, C, H, W), arrays to one array, others as torch does.

    Each image is written where it stays as soon as it is there. `img_metas` is left out; a file's name is to be had of
    `dataset.filename`.

    Args:
        items: dictionaries; `count` of them, if that is not to be seen of them.
        stage: normalises uint8 at once. slot: bytes to write into, if they are enough; `img` is then an array.

    Raises:
        ValueError: images of different sizes or types.
    """
    for number, item in enumerate(items):
        img = _pixels(item['img'])
        if number == 0:
            shape, dtype, bare = img.shape, img.dtype, img is item['img'] and img.dtype == np.uint8  # and (H, W, C)
            size, kind = ((*shape[2:], *shape[:2]), np.dtype(np.float32)) if bare and stage else (shape, dtype)
            room = np.asarray(batch := batch_memory((count or len(items), *size), kind, slot))
            fields: dict[str, list[Any]] = {key: [] for key in item if key not in ('img', 'img_metas')}
        elif img.shape != shape or img.dtype != dtype:
            raise ValueError(f'the images of a batch differ in (height, width, channels) or type: {shape} {dtype} and '
                             f'{img.shape} {img.dtype}; end the pipeline with a step of fixed size (Resize, '
                             'CenterCrop), or batch one by one')
        if bare and stage:
            stage.write(img, room[number])
        else:
            room[number] = img
        for key, values in fields.items():
            values.append(item[key])
    return {'img': batch.swapaxes(1, 3).swapaxes(2, 3) if bare and not stage else batch,
            **{key: np.array(values) if isinstance(values[0], np.ndarray | np.generic) else default_collate(values)
               for key, values in fields.items()}}


def _pixels(img: Any) -> np.ndarray:
    """An image as numpy has it, which knows no bfloat16."""
    return (img.float() if img.dtype is torch.bfloat16 else img).numpy(force=True) if isinstance(img, Tensor) else img


def _free_memory() -> int:
    """Bytes that may be shared; without bound where the system shares memory in another way."""
    return shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else 2**62


def _mix(seed: int, epoch: int) -> int:
    """Another number for every seed and epoch below 2**31."""
    return seed << 31 | epoch


def _calm(worker: int) -> None:
    maker: Any = get_worker_info().dataset  # type: ignore[union-attr]
    # An array: each batch sweeps the caches here, and tensors then cost a tenth of a millisecond.
    maker.memory, maker.at = maker.slots.numpy(), 2 * worker + 1
    maker.reading[2 * worker] = os.getpid()
    cv2.setNumThreads(0)  # workers fill the cores by themselves
    torch.set_num_threads(1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    """What a scheduler sends to all processes is for the parent, which still needs its workers for an iteration."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
