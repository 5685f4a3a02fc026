"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): a ResNet with the proportions and habits of a vision transformer.

In: images (N, 3, H, W). Out: a tuple of vectors, by default one, (N, channels[-1]): pooled and normalised, so that
no neck is needed; with `gap_before_final_norm=False` feature maps (N, channels[-1], H / 32, W / 32).
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..builder import BACKBONES
from ..init import InitCfg
from ..layers import Cfg, DropPath, LayerNorm2d, build_activation, build_norm, drop_path_rates, recompute
from .staged import StagedBackbone, chosen_arch, chosen_stages

LN2D: Cfg = dict(type='LN2d', eps=1e-6)
GELU: Cfg = dict(type='GELU')


class ConvNeXtBlock(nn.Module):
    """x + gamma * (7x7 convolution of each channel alone, norm, a layer of `mlp_ratio` times the width, back).

    Args:
        linear_pw_conv: compute the 1x1 convolutions as linear layers, on (N, H, W, C). The state dict's shapes differ.
        layer_scale_init_value: of gamma, one factor per channel; 0: without.
        with_cp: see `ResNet`.
    """

    def __init__(self, channels: int, norm_cfg: Cfg = LN2D, act_cfg: Cfg = GELU, mlp_ratio: float = 4.,
                 linear_pw_conv: bool = True, drop_path_rate: float = 0., layer_scale_init_value: float = 1e-6,
                 with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp, self.linear_pw_conv = with_cp, linear_pw_conv
        self.depthwise_conv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = build_norm(norm_cfg, channels)
        hidden = int(mlp_ratio * channels)
        pointwise: Any = nn.Linear if linear_pw_conv else partial(nn.Conv2d, kernel_size=1)
        self.pointwise_conv1 = pointwise(channels, hidden)
        self.act = build_activation(act_cfg)
        self.pointwise_conv2 = pointwise(hidden, channels)
        self.gamma = nn.Parameter(torch.full((channels, ), layer_scale_init_value)) \
            if layer_scale_init_value > 0 else None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> the same
        return recompute(self._run, x, self.with_cp)

    def _run(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise_conv(x))
        if self.linear_pw_conv:
            out = out.permute(0, 2, 3, 1)  # (N, H, W, C)
        out = self.pointwise_conv2(self.act(self.pointwise_conv1(out)))
        if self.linear_pw_conv:
            out = out.permute(0, 3, 1, 2)
        if self.gamma is not None:
            out = out * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(out)


@BACKBONES.register_module()
class ConvNeXt(StagedBackbone):
    """ConvNeXt tiny, small, base, large and xlarge, or one of your own.

    Args:
        arch: its name, or dict(depths=[...], channels=[...]) with a number of blocks and a width for each stage.
        in_channels: of the image. stem_patch_size: size and stride of the first convolution.
        drop_path_rate: stochastic depth of the last block; it grows from 0.
        out_indices: which stages' outputs to return; -1 is the last.
        frozen_stages: leave so many stages as they are.
        gap_before_final_norm: return the normalised mean over all positions instead of normalised feature maps.
        linear_pw_conv, layer_scale_init_value, with_cp: see `ConvNeXtBlock`.
    """

    arch_settings: ClassVar[dict[str, dict[str, list[int]]]] = {
        'tiny': dict(depths=[3, 3, 9, 3], channels=[96, 192, 384, 768]),
        'small': dict(depths=[3, 3, 27, 3], channels=[96, 192, 384, 768]),
        'base': dict(depths=[3, 3, 27, 3], channels=[128, 256, 512, 1024]),
        'large': dict(depths=[3, 3, 27, 3], channels=[192, 384, 768, 1536]),
        'xlarge': dict(depths=[3, 3, 27, 3], channels=[256, 512, 1024, 2048]),
    }

    def __init__(self, arch: str | dict[str, Any] = 'tiny', in_channels: int = 3, stem_patch_size: int = 4,
                 norm_cfg: Cfg = LN2D, act_cfg: Cfg = GELU, linear_pw_conv: bool = True, drop_path_rate: float = 0.,
                 layer_scale_init_value: float = 1e-6, out_indices: int | Sequence[int] = -1, frozen_stages: int = 0,
                 gap_before_final_norm: bool = True, with_cp: bool = False, init_cfg: InitCfg = None) -> None:
        super().__init__(init_cfg)
        sizes = chosen_arch(self, arch, self.arch_settings)
        self.depths, self.channels = sizes['depths'], sizes['channels']
        if len(self.depths) != len(self.channels):
            raise ValueError(f'ConvNeXt got arch={arch}; it takes one depth and one width per stage')
        self.out_indices = chosen_stages(self, out_indices, len(self.depths))
        self.gap_before_final_norm = gap_before_final_norm
        rates = iter(drop_path_rates(drop_path_rate, sum(self.depths)))
        options = Cfg(norm_cfg=norm_cfg, act_cfg=act_cfg, linear_pw_conv=linear_pw_conv, with_cp=with_cp,
                      layer_scale_init_value=layer_scale_init_value)
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, (depth, width) in enumerate(zip(self.depths, self.channels, strict=True)):
            self.downsample_layers.append(
                nn.Sequential(nn.Conv2d(in_channels, width, stem_patch_size, stem_patch_size),
                              build_norm(norm_cfg, width)) if i == 0 else
                nn.Sequential(LayerNorm2d(self.channels[i - 1]), nn.Conv2d(self.channels[i - 1], width, 2, 2)))
            self.stages.append(nn.Sequential(*(ConvNeXtBlock(width, drop_path_rate=next(rates), **options)
                                               for _ in range(depth))))
            if i in self.out_indices:
                self.add_module(f'norm{i}', build_norm(norm_cfg, width))
        self.freeze(frozen_stages)

    def stage_layers(self) -> list[list[nn.Module]]:
        return [list(layers) for layers in zip(self.downsample_layers, self.stages, strict=True)]

    def output(self, stage: int, x: Tensor) -> Tensor:
        norm = getattr(self, f'norm{stage}')
        return norm(x.mean((-2, -1), keepdim=True)).flatten(1) if self.gap_before_final_norm else norm(x)
