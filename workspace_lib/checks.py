"""Mistakes in a config that would be found after an hour, or never, found before the first batch.

In: a config and what was built from it. Out: nothing, or an error with the place and the way out.
"""
from __future__ import annotations

from typing import Any

import torch

from .config import Config, where
from .dist import all_gather, get_dist_info
from .hooks import OptimizerHook


def check_sync_batchnorm(model: torch.nn.Module, cfg: Config, device: torch.device) -> None:
    """SyncBN averages over the GPUs of several processes: elsewhere it would fail, or be BN without a word."""
    found = any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    if not found or (device.type == 'cuda' and get_dist_info()[1] > 1):
        return
    parts = [part for part in ('backbone', 'neck', 'head')
             if ((cfg.model.get(part) or {}).get('norm_cfg') or {}).get('type') == 'SyncBN']
    places = ', '.join(where(cfg.model[part].norm_cfg, 'type') for part in parts) or where(cfg, 'model')
    options = ' '.join(f'model.{part}.norm_cfg.type=BN' for part in parts) or 'model.<part>.norm_cfg.type=BN'
    here = 'this is one process' if get_dist_info()[1] == 1 else f'these are {get_dist_info()[1]} processes'
    raise ValueError(f'the model has SyncBN ({places}), which needs several processes with a GPU each, but {here} on '
                     f'{device.type}; train it with BN, of the same names in a checkpoint: --cfg-options {options}')


def check_ranks(runner: Any, loader: Any) -> None:
    """Ranks with different numbers of samples train on other data than they say; of batches, they wait for ever."""
    sizes = all_gather((len(loader.dataset), len(loader)))
    if len(set(sizes)) > 1:
        told = ', '.join(f'rank {rank} {samples} and {batches}' for rank, (samples, batches) in enumerate(sizes))
        raise ValueError(f'the ranks have different numbers of samples and batches to train on: {told}; do all '
                         'machines see the same data set, and does data.train_dataloader leave round_up=True?')
    if runner.parts > 1 and not any(isinstance(hook, OptimizerHook) for hook in runner.hooks):
        raise ValueError('the run was begun with more processes, and only OptimizerHook takes a batch part by part')
