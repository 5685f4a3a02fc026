"""Convolutions and normalisations by the names that configs use, and stochastic depth.

In: `conv_cfg=None`, `norm_cfg=dict(type='BN', requires_grad=True)`. Out: torch layers.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Cfg = dict[str, Any]
BN: Cfg = dict(type='BN', requires_grad=True)

CONV_LAYERS: dict[str, type[nn.Module]] = {
    'Conv': nn.Conv2d, 'Conv1d': nn.Conv1d, 'Conv2d': nn.Conv2d, 'Conv3d': nn.Conv3d,
}
# name in a config -> (class, short name that state dicts use: `bn1.weight`)
NORM_LAYERS: dict[str, tuple[type[nn.Module], str]] = {
    'BN': (nn.BatchNorm2d, 'bn'), 'BN1d': (nn.BatchNorm1d, 'bn'), 'BN2d': (nn.BatchNorm2d, 'bn'),
    'BN3d': (nn.BatchNorm3d, 'bn'), 'SyncBN': (nn.SyncBatchNorm, 'bn'), 'GN': (nn.GroupNorm, 'gn'),
    'LN': (nn.LayerNorm, 'ln'), 'IN': (nn.InstanceNorm2d, 'in'), 'IN1d': (nn.InstanceNorm1d, 'in'),
    'IN2d': (nn.InstanceNorm2d, 'in'), 'IN3d': (nn.InstanceNorm3d, 'in'),
}


def build_conv(conv_cfg: Cfg | None, *args: Any, **kwargs: Any) -> nn.Module:
    """`nn.Conv2d(*args, **kwargs)`, or the class and further options that `conv_cfg` names."""
    options = dict(conv_cfg or {})
    kind = options.pop('type', 'Conv2d')
    if kind not in CONV_LAYERS:
        raise ValueError(f'conv_cfg got type={kind!r}; known: {", ".join(CONV_LAYERS)}')
    return CONV_LAYERS[kind](*args, **kwargs, **options)


def build_norm(norm_cfg: Cfg, channels: int) -> nn.Module:
    """The normalisation that `norm_cfg` names, for `channels`; `requires_grad=False` freezes it."""
    options = dict(norm_cfg)
    norm_class = norm_layer(options.pop('type'))[0]
    trainable = options.pop('requires_grad', True)
    if norm_class is nn.GroupNorm:
        options['num_channels'] = channels
        return norm_class(**options).requires_grad_(trainable)
    return norm_class(channels, **options).requires_grad_(trainable)


def norm_layer(kind: str) -> tuple[type[nn.Module], str]:
    if kind not in NORM_LAYERS:
        raise ValueError(f'norm_cfg got type={kind!r}; known: {", ".join(NORM_LAYERS)}')
    return NORM_LAYERS[kind]


class NamedNorms(nn.Module):
    """Several normalisations in a module: state dicts call them by kind (`bn1`, `gn1`), the code `norm1`."""

    def add_norm(self, number: int | str, norm_cfg: Cfg, channels: int) -> None:
        self._norm_kind = norm_layer(norm_cfg['type'])[1]
        self.add_module(f'{self._norm_kind}{number}', build_norm(norm_cfg, channels))

    def norm(self, number: int | str) -> nn.Module:
        return getattr(self, f'{self._norm_kind}{number}')

    norm0 = property(lambda self: self.norm(0))
    norm1 = property(lambda self: self.norm(1))
    norm2 = property(lambda self: self.norm(2))
    norm3 = property(lambda self: self.norm(3))


class ConvModule(NamedNorms):
    """Convolution, normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1,
                 padding: int = 0, conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN) -> None:
        super().__init__()
        self.conv = build_conv(conv_cfg, in_channels, out_channels, kernel_size, stride=stride,
                               padding=padding, bias=False)
        self.add_norm('', norm_cfg, out_channels)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.norm('')(self.conv(x)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, drop whole residual branches.

    Args:
        drop_prob: how often, decided per sample; branches that stay are scaled by 1 / (1 - drop_prob).
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        per_sample = (len(x),) + (1,) * (x.dim() - 1)  # (N, 1, 1, 1)
        kept = torch.rand(per_sample, dtype=x.dtype, device=x.device) >= self.drop_prob
        return x / (1 - self.drop_prob) * kept
