"""Mistakes in a config that would be found after an hour, or never, found before the first batch.

In: a config and what was built from it. Out: nothing, or an error with the place and the way out.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .config import Config, where
from .dist import get_dist_info


def try_metrics(dataset: Any, metric: Any = None, metric_options: dict | None = None,
                **others: Any) -> dict[str, Any]:
    """Evaluate one made-up score (of each part): a misspelt metric is found now instead of after an hour of testing."""
    if others:
        known = ('interval', 'by_epoch', 'start', 'save_best', 'rule', 'metric', 'metric_options')
        raise TypeError(f'unknown key {", ".join(others)}; known: {", ".join(known)}')
    if dataset.CLASSES is None or not len(dataset):
        return {}
    scores = np.full(len(dataset.CLASSES), 1 / len(dataset.CLASSES), np.float32)
    lasts = [end - 1 for end in getattr(dataset, 'cumulative_sizes', [1])]
    return dataset.evaluate([scores] * len(lasts), metric, metric_options, indices=lasts)


def check_class_count(model: Any, dataset: Any, cfg: Config) -> None:
    """A head that is too small would fail in the loss; one that is too large trains, and wastes a week."""
    # LeNet-5 and VGG classify in the backbone, under a head without weights.
    part = next((name for name in ('head', 'backbone')
                 if isinstance(getattr(getattr(model, name, None), 'num_classes', None), int)), None)
    if part is None or dataset.CLASSES is None:
        return
    outputs, classes = getattr(model, part).num_classes, len(dataset.CLASSES)
    if 0 < outputs != classes:
        raise ValueError(f'the {part} has num_classes={outputs} ({where(cfg.model.get(part), "num_classes")}), but '
                         f'{type(dataset).__name__} has {classes} classes; set model.{part}.num_classes={classes}')


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
