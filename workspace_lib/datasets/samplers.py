"""Orders of an epoch's samples other than a plain shuffle. In: a data set, rank and world size. Out: indices."""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from ..dist import get_dist_info
from ..registry import SAMPLERS


@SAMPLERS.register_module()
class RepeatAugSampler(Sampler):
    """Each sample `num_repeats` times in a row, dealt out to the ranks (arXiv:1901.09335; order as in DeiT).

    An epoch ends after about as many samples as the data set has, so it sees a part of it, each several times. The
    loader augments each repetition by itself.

    Args:
        num_replicas, rank: default those of torch.distributed.
        selected_round: the epoch's length is the data set's, rounded down to a multiple of this, by
            `selected_ratio` (0: `num_replicas`); with 0 it is not rounded.
        seed: the order depends on seed + epoch.
    """

    def __init__(self, dataset: Any, num_replicas: int | None = None, rank: int | None = None, shuffle: bool = True,
                 num_repeats: int = 3, selected_round: int = 256, selected_ratio: float = 0,
                 seed: int | None = 0) -> None:
        here = get_dist_info()
        self.rank = here[0] if rank is None else rank
        self.num_replicas = here[1] if num_replicas is None else num_replicas
        self.dataset, self.shuffle, self.num_repeats = dataset, shuffle, num_repeats
        self.seed, self.epoch = seed or 0, 0
        ratio, length = selected_ratio or self.num_replicas, len(dataset)
        selected = length // selected_round * selected_round // ratio if selected_round else math.ceil(length / ratio)
        self.num_selected_samples = min(int(selected), -(-length * num_repeats // self.num_replicas))
        if not self.num_selected_samples:
            raise ValueError(f'RepeatAugSampler: {length} samples, rounded down to a multiple of {selected_round}, '
                             f'leave none for {self.num_replicas} ranks; set sampler.selected_round=0')

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(len(self.dataset))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.epoch + self.seed))
        total = -(-len(order) * self.num_repeats // self.num_replicas) * self.num_replicas
        repeated = order.repeat_interleave(self.num_repeats)
        repeated = torch.cat([repeated, repeated[:total - len(repeated)]])
        return iter(repeated[self.rank::self.num_replicas][:self.num_selected_samples].tolist())

    def __len__(self) -> int:
        return self.num_selected_samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
