"""A recipe of mmclassification as it is, but small enough for a step on a CPU: what is made smaller, and what is said.

In: the path of a recipe. Out: its config with small images, batches of two, one iteration; notes on the changes.
"""
from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

from workspace_lib.config import Config
from workspace_lib.recipes import load_config

#: Two of the 282 name a base file that is not in the wheel.
BROKEN = {'mobilenet_v3/mobilenet-v3-small_8xb16_cifar10', 'mobilenet_v3/mobilenet_v3_small_cifar'}
#: Pixels that an architecture takes at least; what has its patches, windows or filters counted in is not listed, and
#: keeps the size of its recipe.
SIZES = dict.fromkeys((
    'CSPDarkNet', 'CSPResNet', 'CSPResNeXt', 'Conformer', 'ConvMixer', 'ConvNeXt', 'DenseNet',
    'DistilledVisionTransformer', 'EfficientNet', 'HRNet', 'MViT', 'MobileNetV2', 'MobileNetV3', 'PoolFormer', 'RegNet',
    'RepVGG', 'Res2Net', 'ResNeSt', 'ResNeXt', 'ResNet', 'ResNetV1c', 'ResNetV1d', 'SEResNeXt', 'SEResNet',
    'ShuffleNetV1', 'ShuffleNetV2', 'VAN', 'VisionTransformer'), 64)


def recipes_folder() -> Path:
    found = importlib.util.find_spec('mmcls')
    assert found is not None and found.origin is not None, 'mmcls is not installed'
    return Path(found.origin).parent / '.mim' / 'configs'


def recipe_names() -> list[str]:
    """`resnet/resnet18_8xb32_in1k` and 279 others."""
    folder = recipes_folder()
    names = (path.relative_to(folder).with_suffix('').as_posix() for path in folder.rglob('*.py'))
    return sorted(name for name in names if not name.startswith('_base_') and name not in BROKEN)


def loaded(name: str) -> Config:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # a fifth of the recipes are old names of others
        return load_config(recipes_folder() / f'{name}.py')


def reduced(name: str) -> tuple[Config, list[str]]:
    """The config for one small step, and what was changed beyond sizes and counts."""
    cfg = loaded(name)
    notes = [*_without_sync(cfg), *_without_pretrained(cfg), *_with_one_size(cfg)]
    size = image_size(cfg)
    if (small := SIZES.get(cfg.model.backbone.type, size)) < size:
        for split in ('train', 'val', 'test'):
            for step in cfg.data[split].pipeline:
                _shrink(step, small / size)
    cfg.data.samples_per_gpu = 2
    cfg.data.workers_per_gpu = 0
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if loader in cfg.data:
            cfg.data[loader].pop('samples_per_gpu', None)
            cfg.data[loader].pop('workers_per_gpu', None)
    length = 'max_iters' if 'max_iters' in cfg.runner else 'max_epochs'
    cfg.runner[length] = 1
    cfg.evaluation = {**cfg.get('evaluation', {}), 'interval': 1}
    cfg.seed = 0
    cfg.work_dir = None
    return cfg, notes


def image_size(cfg: Config) -> int:
    """Pixels of a side of what the test pipeline gives: 32 where it does not say (CIFAR)."""
    sizes = [step.get('crop_size', step.get('size')) for step in cfg.data.test.pipeline
             if step['type'] in ('CenterCrop', 'Resize')]
    last = sizes[-1] if sizes else 32
    return last if isinstance(last, int) else last[0]


def _shrink(step: dict[str, Any], scale: float) -> None:
    for key in ('size', 'crop_size'):
        if key in step and step['type'] in ('Resize', 'RandomResizedCrop', 'CenterCrop', 'RandomCrop'):
            value = step[key]
            step[key] = _scaled(value, scale) if isinstance(value, int) else tuple(_scaled(v, scale) for v in value)


def _scaled(pixels: int, scale: float) -> int:
    return pixels if pixels < 0 else round(pixels * scale)


def _with_one_size(cfg: Config) -> list[str]:
    """RepMLP takes one size; two of its recipes train with another, and fail in mmclassification as they do here."""
    crop = next((step for step in cfg.data.train.pipeline if step['type'] == 'RandomResizedCrop'), {})
    size = cfg.model.backbone.get('img_size')
    if cfg.model.backbone.type != 'RepMLPNet' or crop['size'] == size:
        return []
    note = f'trained with {size} px: at the {crop["size"]} px that it sets its model fails, as in mmclassification'
    crop['size'] = size
    return [note]


def _without_sync(cfg: Config) -> list[str]:
    if (cfg.model.backbone.get('norm_cfg') or {}).get('type') != 'SyncBN':
        return []
    cfg.model.backbone.norm_cfg.type = 'BN'
    return ['BN in place of SyncBN']


def _without_pretrained(cfg: Config) -> list[str]:
    parts = [cfg.model, cfg.model.backbone]
    found = [part for part in parts if 'Pretrained' in str(part.get('init_cfg') or {}) or part.get('pretrained')]
    for part in found:
        part.pop('init_cfg', None)
        part.pop('pretrained', None)
    return ['not from its pretrained weights'] if found or cfg.pop('load_from', None) else []
