"""Mistakes in a config that would be found after an hour, or never, found before the first batch.

In: a config and what was built from it. Out: nothing, or an error with the place and the way out.
"""
from __future__ import annotations

import torch

from .config import Config, where
from .dist import get_dist_info


def check_sync_batchnorm(model: torch.nn.Module, cfg: Config, device: torch.device) -> None:
    """SyncBN averages over the GPUs of several processes: elsewhere it would fail, or be BN without a word."""
    found = any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    if not found or (device.type == 'cuda' and get_dist_info()[1] > 1):
        return
    parts = [part for part in ('backbone', 'neck', 'head')
             if ((cfg.model.get(part) or {}).get('norm_cfg') or {}).get('type') == 'SyncBN']
    places = ', '.join(where(cfg.model[part].norm_cfg, 'type') for part in parts) or where(cfg, 'model')
    options = ' '.join(f'model.{part}.norm_cfg.type=BN' for part in parts) or 'model.<part>.norm_cfg.type=BN'
    raise ValueError(f'the model has SyncBN ({places}), which needs several processes with a GPU each, but this is one '
                     f'process on {device.type}; train it with BN, of the same names in a checkpoint: '
                     f'--cfg-options {options}')
