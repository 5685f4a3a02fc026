"""Batches on their way: out of workers through shared memory that is used over and over, onto a GPU one ahead.

In: how many batches, of how many bytes. Out: memory that a worker writes one into, and tensors over it here.
"""
from __future__ import annotations

import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

Batch = dict[str, Any]
# Beyond those asked of the workers: one that has just come, one in use, one whose copy to a GPU may not be done.
SPARE = 3
AHEAD = 2  # batches asked of each worker before the first of them is needed, as torch has it
_PAGE = 4096
_BY_QUEUE = 2**16  # bytes of a field up to which a pickle is sooner there than shared memory of its own


class _Written(NamedTuple):
    """What a worker says of the tensor in its slot."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Ring:
    """`count` slots of `size` bytes; each is free, asked of a worker, or lent to whoever has a tensor over it.

    The memory has no name in /dev/shm: it goes with the last process that has it.
    """

    def __init__(self, count: int = 0, size: int = 0) -> None:
        self.slots = _shared((count, -(-size // _PAGE) * _PAGE), torch.uint8)
        self._bytes = self.slots.numpy()
        self._asked: set[int] = set()
        self._lent: list[Callable[[], Any]] = [lambda: None] * count

    def recall(self) -> None:
        """What was asked for and has not come will not: no worker is at it any more."""
        self._asked.clear()

    def ask(self) -> int:
        """The number of a slot that nobody uses, from now on asked of a worker; -1 where there is none."""
        free = (at for at, lent in enumerate(self._lent) if at not in self._asked and lent() is None)
        self._asked.add(slot := next(free, -1))
        return slot

    def receive(self, slot: int, batch: Batch) -> Batch:
        """A batch as `hand_over` made it, in tensors; the slot is free again when the last one over it is gone."""
        self._asked.discard(slot)
        return {key: self._tensor(slot, value) for key, value in batch.items()}

    def _tensor(self, slot: int, sent: Any) -> Any:
        if not isinstance(sent, _Written):
            return torch.from_numpy(sent) if isinstance(sent, np.ndarray) else sent
        array = self._bytes[slot]  # a new object, which lives as long as any tensor over it
        self._lent[slot] = weakref.ref(array)
        return torch.from_numpy(array).view(sent.dtype).as_strided(sent.shape, sent.stride)

    def lock_pages(self) -> str:
        """Keep the memory where a GPU can fetch from it by itself; returns why that is not to be had, or ''."""
        cudart, start = torch.cuda.cudart(), self.slots.data_ptr()
        if int(code := cudart.cudaHostRegister(start, self.slots.nbytes, 0)):
            with suppress(RuntimeError):  # CUDA keeps the error for the next kernel, to which it would be put down
                torch.zeros(1, device='cuda')
            return f'cudaHostRegister of {self.slots.nbytes / 2**20:.0f} MiB: {cudart.cudaGetErrorString(code)}'
        weakref.finalize(self._bytes, cudart.cudaHostUnregister, start).atexit = False
        return ''


def batch_memory(shape: tuple[int, ...], dtype: torch.dtype, slot: Tensor | None = None) -> Tensor:
    """Memory for a batch: of `slot` if that is large enough, else fresh; in a worker shared, so that none is copied."""
    size = math.prod(shape) * dtype.itemsize
    if slot is not None and size <= len(slot):
        return slot[:size].view(dtype).view(shape)
    return torch.empty(shape, dtype=dtype) if get_worker_info() is None else _shared(shape, dtype)


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize, device='cpu')
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def hand_over(batch: Batch, slot: Tensor | None) -> Batch:
    """A batch as a worker sends it: the tensor in `slot` by its place, small ones as arrays."""
    def sent(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if slot is not None and value.data_ptr() == slot.data_ptr():
            return _Written(value.dtype, tuple(value.shape), value.stride())
        with suppress(TypeError):  # numpy does not know all types
            return value.numpy() if value.nbytes <= _BY_QUEUE else value
        return value
    return {key: sent(value) for key, value in batch.items()}


def copied_ahead(batches: Iterable[Any], device: torch.device, finish: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """Batches on a GPU, finished there: while one is in use, the next is copied and finished on a stream of its own.

    A batch stays in the memory of the host until its copy is done. The copy of the next batch waits until the device
    has come to the step before this one's, and the third waits here for the first: so a loop that is ahead of its
    device fills neither side's memory. An exception among the batches is raised at its place.
    """
    side, copies, ready = torch.cuda.Stream(device), deque[tuple[Any, Any]](), None
    try:
        for host in chain(batches, [None]):
            if len(copies) > 1:
                copies.popleft()[0].synchronize()
            coming = _sent(host, device, side, copies, finish) if isinstance(host, dict) else None
            if ready is not None:
                yield _in_use(*ready, torch.cuda.current_stream(device))
            if isinstance(host, Exception):
                raise host
            ready = coming
    finally:
        side.synchronize()  # before the slots of what was left behind are free


def _sent(host: Batch, device: torch.device, side: Any, copies: deque[tuple[Any, Any]],
          finish: Callable[[Batch], Batch]) -> tuple[Batch, Any]:
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        pinned = {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in host.items()}
        batch = to_device(pinned, device)
        copied, finished = torch.cuda.Event(blocking=True), torch.cuda.Event()
        copied.record(side)
        copies.append((copied, pinned))
        batch = finish(batch)
        finished.record(side)
    return batch, finished


def _in_use(batch: Batch, finished: Any, stream: Any) -> Batch:
    stream.wait_event(finished)
    for value in batch.values():
        if isinstance(value, Tensor):
            value.record_stream(stream)
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()}


def cores() -> int:
    """CPU cores that this process may use: by its affinity, and by the quota of its container (cgroup v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or no quota
        quota, period = map(int, Path('/sys/fs/cgroup/cpu.max').read_text().split())
        count = min(count, max(quota // period, 1))
    return count


def choose_workers(share: int, batches: int) -> tuple[int, int]:
    """Workers, and batches ahead of each.

    Args:
        share: cores of this rank, of which the loop itself needs one.
        batches: for how many there is shared memory.
    """
    room = max(batches - SPARE, 0)
    workers = min(max(share - 1, 0), room)
    return workers, min(AHEAD, room // workers) if workers else 0
