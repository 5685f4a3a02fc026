"""Convolutions, normalisations and activations by the names that configs use, and what many networks need of them.

In: `conv_cfg=None`, `norm_cfg=dict(type='BN', requires_grad=True)`, `act_cfg=dict(type='ReLU')`. Out: torch layers.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .init import KAIMING, initialize

Cfg = dict[str, Any]
BN: Cfg = dict(type='BN', requires_grad=True)
RELU: Cfg = dict(type='ReLU')


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of each position of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # a view: channels_last


CONV_LAYERS: dict[str, type[nn.Module]] = {
    'Conv': nn.Conv2d, 'Conv1d': nn.Conv1d, 'Conv2d': nn.Conv2d, 'Conv3d': nn.Conv3d,
}
# name in a config -> (class, short name that state dicts use: `bn1.weight`)
NORM_LAYERS: dict[str, tuple[type[nn.Module], str]] = {
    'BN': (nn.BatchNorm2d, 'bn'), 'BN1d': (nn.BatchNorm1d, 'bn'), 'BN2d': (nn.BatchNorm2d, 'bn'),
    'BN3d': (nn.BatchNorm3d, 'bn'), 'SyncBN': (nn.SyncBatchNorm, 'bn'), 'GN': (nn.GroupNorm, 'gn'),
    'LN': (nn.LayerNorm, 'ln'), 'LN2d': (LayerNorm2d, 'ln'), 'IN': (nn.InstanceNorm2d, 'in'),
    'IN1d': (nn.InstanceNorm1d, 'in'), 'IN2d': (nn.InstanceNorm2d, 'in'), 'IN3d': (nn.InstanceNorm3d, 'in'),
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    'ReLU': nn.ReLU, 'ReLU6': nn.ReLU6, 'LeakyReLU': nn.LeakyReLU, 'PReLU': nn.PReLU, 'ELU': nn.ELU, 'SiLU': nn.SiLU,
    'HSwish': nn.Hardswish, 'GELU': nn.GELU, 'Sigmoid': nn.Sigmoid, 'Tanh': nn.Tanh,
}


def build_conv(conv_cfg: Cfg | None, *args: Any, **kwargs: Any) -> nn.Module:
    """`nn.Conv2d(*args, **kwargs)`, or the class and further options that `conv_cfg` names."""
    options = dict(conv_cfg or {})
    return _known('conv_cfg', options.pop('type', 'Conv2d'), CONV_LAYERS)(*args, **kwargs, **options)


def build_norm(norm_cfg: Cfg, channels: int) -> nn.Module:
    """The normalisation that `norm_cfg` names, for `channels`; `requires_grad=False` freezes it."""
    options = dict(norm_cfg)
    norm_class = norm_layer(options.pop('type'))[0]
    trainable = options.pop('requires_grad', True)
    if norm_class is nn.GroupNorm:
        options['num_channels'] = channels
        return norm_class(**options).requires_grad_(trainable)
    return norm_class(channels, **options).requires_grad_(trainable)


def build_activation(act_cfg: Cfg | None) -> nn.Module:
    """The activation that `act_cfg` names; None is the identity. A ReLU overwrites its input, which saves memory."""
    if act_cfg is None:
        return nn.Identity()
    options = dict(act_cfg)
    kind = options.pop('type')
    if kind in ('ReLU', 'ReLU6'):
        options.setdefault('inplace', True)
    return _known('act_cfg', kind, ACTIVATIONS)(**options)


def norm_layer(kind: str) -> tuple[type[nn.Module], str]:
    return _known('norm_cfg', kind, NORM_LAYERS)


def _known(section: str, kind: str, table: dict[str, Any]) -> Any:
    if kind not in table:
        raise ValueError(f'{section} got type={kind!r}; known: {", ".join(table)}')
    return table[kind]


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
    """Convolution, normalisation (`norm_cfg=None`: none, and `bias` by default), activation (`act_cfg=None`: none)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0,
                 dilation: int = 1, groups: int = 1, bias: bool | None = None, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = BN, act_cfg: Cfg | None = RELU) -> None:
        super().__init__()
        self.with_norm = norm_cfg is not None
        self.conv = build_conv(conv_cfg, in_channels, out_channels, kernel_size, stride=stride, padding=padding,
                               dilation=dilation, groups=groups, bias=not self.with_norm if bias is None else bias)
        if norm_cfg is not None:
            self.add_norm('', norm_cfg, out_channels)
        self.activate = build_activation(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.activate(self.norm('')(x) if self.with_norm else x)

    def init_weights(self) -> None:
        """Kaiming's, as mmcv does for each that is a network's own child (`MobileNetV2.conv1`)."""
        initialize(self, KAIMING)


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


def recompute(run: Callable[[Tensor], Tensor], x: Tensor, with_cp: bool) -> Tensor:
    """`run(x)`; with `with_cp`, keep only `x` for the way back and run again there: less memory, more time."""
    if with_cp and x.requires_grad:
        return checkpoint(run, x, use_reentrant=False)
    return run(x)


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Stochastic depth that grows from 0 in the first of `depth` blocks to `last` in the last one."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is at least 90 % of `channels` (MobileNetV2's authors' rule)."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest
