"""Configs to data sets and loaders, under the names and arguments that OpenMMLab scripts use."""
from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as torch_dist

from ..config.merge import near_names
from ..registry import DATASETS, SAMPLERS, build_from_cfg
from .loader import Loader
from .mixing import BatchAugments
from .wrappers import ConcatDataset

#: Data sets made of others, and the key that holds those.
WRAPPERS = {'ConcatDataset': 'datasets', 'RepeatDataset': 'dataset', 'ClassBalancedDataset': 'dataset',
            'KFoldDataset': 'dataset'}
DATALOADER_OPTIONS = ('prefetch_factor', 'timeout', 'multiprocessing_context', 'in_order')


def build_dataset(cfg: dict[str, Any], default_args: dict[str, Any] | None = None) -> Any:
    """The data set that a config such as `data.train` describes.

    A list means one after another; the data sets inside a wrapper are built first, with the same `default_args`, but
    that the `test_mode` around a `KFoldDataset` means which part of it, not which part of the data set inside.
    """
    if isinstance(cfg, list | tuple):
        return ConcatDataset([build_dataset(part, default_args) for part in cfg])
    inside = WRAPPERS.get(str(cfg.get('type')).rpartition('.')[2], '')
    if inside not in cfg:
        return build_from_cfg(cfg, DATASETS, default_args)
    cfg, defaults = copy.copy(cfg), dict(default_args or {})
    if cfg['type'].endswith('KFoldDataset') and cfg.get('test_mode') is None:
        cfg['test_mode'] = defaults.pop('test_mode', False)
    parts = cfg[inside]
    cfg[inside] = ([build_dataset(part, defaults) for part in parts] if inside == 'datasets'
                   else build_dataset(parts, defaults))
    return build_from_cfg(cfg, DATASETS)


def build_dataloader(dataset: Any, samples_per_gpu: int, workers_per_gpu: int | str | None = None, num_gpus: int = 1,
                     dist: bool = False, shuffle: bool = True, round_up: bool = True, seed: int | None = None,
                     pin_memory: bool = True, persistent_workers: bool = True, drop_last: bool = False,
                     sampler_cfg: dict[str, Any] | None = None, device: torch.device | str = 'cpu',
                     channels_last: bool = False, augments: Any = None, device_steps: bool = True,
                     **kwargs: Any) -> Loader:
    """A `Loader`, from the settings of a config's `data`.

    Args:
        samples_per_gpu, workers_per_gpu: times `num_gpus`, unless `dist`. Workers that are None or 'auto' are chosen by
            cores and shared memory, with how many batches ahead they are, and the log says so.
        dist: this process is one of several of torch.distributed, and takes its share of the samples.
        sampler_cfg: a registered sampler; it gets dataset, num_replicas, rank, shuffle and seed.
        augments: `model.train_cfg.augments`, for the loader of training: batches are mixed.
        kwargs: `DATALOADER_OPTIONS` of torch's DataLoader.
        Others: as `Loader`.

    Raises:
        TypeError: an unknown key; names the nearest.
        ValueError: `in_order=False`.
    """
    for key in set(kwargs) - set(DATALOADER_OPTIONS):
        known = [*build_dataloader.__annotations__, *DATALOADER_OPTIONS]
        raise TypeError(f'the loader has no setting {key!r}{near_names(key, known)}; known: {", ".join(known)}')
    rank, world_size = (torch_dist.get_rank(), torch_dist.get_world_size()) if dist else (0, 1)
    share = 1 if dist else num_gpus
    defaults = {'dataset': dataset, 'num_replicas': world_size, 'rank': rank, 'seed': seed}
    sampler = build_from_cfg({**sampler_cfg, 'shuffle': shuffle}, SAMPLERS, defaults) if sampler_cfg else None
    workers = None if workers_per_gpu in (None, 'auto') else int(workers_per_gpu) * share  # type: ignore[arg-type]
    return Loader(dataset, samples_per_gpu * share, workers, shuffle, seed, round_up,
                  drop_last, sampler, rank, world_size, device, channels_last, pin_memory, persistent_workers,
                  BatchAugments(augments) if augments else None, device_steps, **kwargs)
