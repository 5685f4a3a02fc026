"""Configs to data sets and loaders, under the names and arguments that OpenMMLab scripts use."""
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist

from ..config.merge import near_names
from ..registry import DATASETS, SAMPLERS, build_from_cfg
from .loader import Loader

DATALOADER_OPTIONS = ('prefetch_factor', 'timeout', 'multiprocessing_context', 'in_order')


def build_dataset(cfg: dict[str, Any], default_args: dict[str, Any] | None = None) -> Any:
    """The data set that a config such as `data.train` describes."""
    return build_from_cfg(cfg, DATASETS, default_args)


def build_dataloader(dataset: Any, samples_per_gpu: int, workers_per_gpu: int, num_gpus: int = 1,
                     dist: bool = False, shuffle: bool = True, round_up: bool = True, seed: int | None = None,
                     pin_memory: bool = True, persistent_workers: bool = True, drop_last: bool = False,
                     sampler_cfg: dict[str, Any] | None = None, device: torch.device | str = 'cpu',
                     channels_last: bool = False, **kwargs: Any) -> Loader:
    """A `Loader`, from the settings of a config's `data`.

    Args:
        samples_per_gpu, workers_per_gpu: times `num_gpus`, unless `dist`.
        dist: this process is one of several of torch.distributed, and takes its share of the samples.
        sampler_cfg: a registered sampler; it gets dataset, num_replicas, rank, shuffle and seed.
        kwargs: `DATALOADER_OPTIONS` of torch's DataLoader.
        Others: as `Loader`.

    Raises:
        TypeError: an unknown key; names the nearest.
    """
    for key in set(kwargs) - set(DATALOADER_OPTIONS):
        known = [*build_dataloader.__annotations__, *DATALOADER_OPTIONS]
        raise TypeError(f'the loader has no setting {key!r}{near_names(key, known)}; known: {", ".join(known)}')
    rank, world_size = (torch_dist.get_rank(), torch_dist.get_world_size()) if dist else (0, 1)
    share = 1 if dist else num_gpus
    sampler = None
    if sampler_cfg:
        defaults = {'dataset': dataset, 'num_replicas': world_size, 'rank': rank, 'seed': seed}
        sampler = build_from_cfg({**sampler_cfg, 'shuffle': shuffle}, SAMPLERS, defaults)
    return Loader(dataset, samples_per_gpu * share, workers_per_gpu * share, shuffle, seed, round_up,
                  drop_last, sampler, rank, world_size, device, channels_last, pin_memory, persistent_workers,
                  **kwargs)
