"""Who am I among the processes of this run; what is summed, gathered and told among them.

One process, not launched as a group, is rank 0 of 1, and nothing here then communicates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def get_dist_info() -> tuple[int, int]:
    """(rank, world size) of this process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return get_dist_info()[0] == 0


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place, and returned; every rank must call it with the same shape and dtype."""
    if get_dist_info()[1] > 1:
        distributed.all_reduce(tensor)
    return tensor


def all_gather(value: Any) -> list[Any]:
    """Every rank's `value`, anything that can be pickled, in the order of ranks; every rank must call it."""
    rank, world_size = get_dist_info()
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    distributed.all_gather_object(values, value)
    return values


def gather_to_main(value: Any) -> list[Any] | None:
    """On rank 0 what `all_gather` gives, elsewhere None: for what is large."""
    rank, world_size = get_dist_info()
    if world_size == 1:
        return [value]
    values: list[Any] | None = [None] * world_size if rank == 0 else None
    distributed.gather_object(value, values)
    return values


def from_main(value: Any) -> Any:
    """Rank 0's `value`, on every rank; every rank must call it."""
    return all_gather(value if is_main() else None)[0]


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Give every rank the buffers of rank 0, such as the running statistics of BatchNorm."""
    if get_dist_info()[1] > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
