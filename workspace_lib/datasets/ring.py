"""Batches on their way: out of workers through shared memory that is used over and over, onto a GPU one ahead.

In: how many batches, of how many bytes. Out: memory that a worker writes one into, and tensors over it here.
"""
from __future__ import annotations

import math
import os
import shutil
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

Batch = dict[str, Any]
# Beyond those asked of the workers: one that has just come, one in use, one whose copy to a GPU may not be done.
SPARE = 3
AHEAD = 2  # batches asked of each worker before the first of them is needed, as torch has it


class Ring:
    """`count` slots of `size` bytes; each is free, asked of a worker, or lent to whoever has a tensor over it.

    The memory has no name in /dev/shm: it goes with the last process that has it.
    """

    def __init__(self, count: int = 0, size: int = 0) -> None:
        self.slots = _shared((count, -(-size // 64) * 64), torch.uint8)  # each aligned for all number formats
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

    def receive(self, slot: int, sent: Batch) -> Batch:
        """A batch of `to_send` in tensors; the slot is free again when the last one over it is gone.

        Arrays of what is no number, such as text and dates, stay arrays.
        """
        self._asked.discard(slot)
        return {key: self._tensor(slot, *value) if type(value) is tuple else value for key, value in sent.items()}

    def _tensor(self, slot: int, data: bytes | None, dtype: str, shape: Any, strides: Any) -> Tensor:
        array = np.ndarray(shape, dtype, self._bytes[slot] if data is None else bytearray(data), 0, strides)
        if data is None:
            self._lent[slot] = weakref.ref(array)  # which lives as long as any tensor over it
        return torch.from_numpy(array)

    def lock_pages(self, device: torch.device) -> str:
        """Keep the memory where a GPU can fetch from it by itself; returns why that is not to be had, or ''."""
        cudart, start = torch.cuda.cudart(), self.slots.data_ptr()
        with torch.cuda.device(device):  # or CUDA would take memory of the first GPU
            code = cudart.cudaHostRegister(start, self.slots.nbytes, 0)
        if int(code):
            with suppress(RuntimeError):  # CUDA keeps the error for the next kernel, to which it would be put down
                torch.zeros(1, device=device)
            return f'cudaHostRegister of {self.slots.nbytes / 2**20:.0f} MiB: {cudart.cudaGetErrorString(code)}'
        weakref.finalize(self._bytes, cudart.cudaHostUnregister, start).atexit = False
        return ''


def batch_memory(shape: tuple[int, ...], dtype: np.dtype, slot: np.ndarray | None = None) -> Any:
    """Memory for a batch: an array over `slot` if that is large enough, else a tensor, in a worker of shared memory."""
    size = math.prod(shape) * dtype.itemsize
    if slot is not None and size <= len(slot):
        return slot[:size].view(dtype).reshape(shape)
    empty = torch.empty if get_worker_info() is None else _shared
    return empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    try:
        storage = torch.UntypedStorage._new_shared(size := math.prod(shape) * dtype.itemsize, device='cpu')
    except RuntimeError as error:  # since the loader looked, others have taken it
        error.add_note(f'shared memory is full: {way_out(size)}')
        raise
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def way_out(size: int) -> str:
    """What to do without so many bytes; names enough for those of all ranks here, another loader, and what is there."""
    at = Path('/dev/shm')
    needed = 2 * size * int(os.environ.get('LOCAL_WORLD_SIZE', 1)) + (shutil.disk_usage(at).used if at.is_dir() else 0)
    enough = max(8, -(-needed // 2**30))
    return (f'give the container more (SHM_SIZE={enough}gb in .env, or docker run --shm-size={enough}g), or set '
            'data.workers_per_gpu=0, or a smaller data.samples_per_gpu')


def to_send(batch: Batch, slot: np.ndarray | None) -> Batch:
    """A batch as a worker sends it; with a slot, arrays of numbers as (bytes, dtype, shape, strides), without the bytes
    of images that are in it: multiprocessing takes several times as long to pickle anything but plain types.
    """
    sent = {key: value for key, value in batch.items() if isinstance(value, np.ndarray) and value.dtype.kind in 'biufc'}
    return batch | {key: torch.from_numpy(value) if slot is None else
                    (None if key == 'img' else value.tobytes(), value.dtype.str, value.shape, value.strides)
                    for key, value in sent.items()}


def copied_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Batches on a GPU: while one is in use, the next is copied on a stream of its own; anything else as it is.

    A batch stays in the host's memory until its copy is done. The copy begins when the device has come to the step that
    comes before the one in use, and the second batch after it waits here for its end: so a loop that is ahead of its
    device fills the memory of neither.
    """
    side, copies, ready = torch.cuda.Stream(device), deque[tuple[Any, Batch]](), None
    try:
        for host in chain(batches, [None]):
            stream = torch.cuda.current_stream(device)
            stream.wait_stream(side)  # for the batch that is given out now
            if len(copies) > 1:
                copies.popleft()[0].synchronize()
            coming = host
            if isinstance(host, dict):
                side.wait_stream(stream)
                with torch.cuda.stream(side):
                    host = {key: value.pin_memory() if isinstance(value, Tensor) else value
                            for key, value in host.items()}
                    coming = to_device(host, device)
                copies.append((side.record_event(torch.cuda.Event(blocking=True)), host))
                for value in coming.values():
                    if isinstance(value, Tensor):
                        value.record_stream(stream)
            if ready is not None:
                yield ready
            ready = coming
    finally:
        side.synchronize()  # before the slots of what was left behind are free


def to_device(batch: Batch, device: torch.device | str) -> Batch:
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
