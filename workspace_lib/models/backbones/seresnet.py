"""SE-ResNet and SE-ResNeXt (Hu et al. 2018, arXiv:1709.01507): each block weights its channels by what is on the image.

In: images (N, 3, H, W). Out: a tuple of feature maps, by default one, (N, 2048, H / 32, W / 32).
"""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..builder import BACKBONES
from ..layers import ConvModule, make_divisible
from .resnet import ResNet, ResNeXt
from .resnet_blocks import Bottleneck


class SELayer(nn.Module):
    """Squeeze and excitation: the mean over all positions, two small layers, a factor in 0..1 for each channel."""

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = make_divisible(channels // ratio)
        self.conv1 = ConvModule(channels, hidden, 1, norm_cfg=None)
        self.conv2 = ConvModule(hidden, channels, 1, norm_cfg=None, act_cfg=dict(type='Sigmoid'))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> the same
        return x * self.conv2(self.conv1(F.adaptive_avg_pool2d(x, 1)))


class SEBottleneck(Bottleneck):
    """Bottleneck with an `SELayer` at the end of its residual branch. `se_ratio`: by how much it squeezes."""

    def __init__(self, in_channels: int, out_channels: int, se_ratio: int = 16, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, **kwargs)
        self.se_layer = SELayer(out_channels, se_ratio)

    def residual(self, x: Tensor) -> Tensor:
        return self.se_layer(super().residual(x))


@BACKBONES.register_module()
class SEResNet(ResNet):
    """ResNet 50, 101 and 152 of `SEBottleneck`s; see `ResNet` for the other arguments."""

    arch_settings = {depth: (SEBottleneck, ResNet.arch_settings[depth][1]) for depth in (50, 101, 152)}

    def __init__(self, depth: int, se_ratio: int = 16, **kwargs: Any) -> None:
        self.block_options = dict(self.block_options, se_ratio=se_ratio)
        super().__init__(depth, **kwargs)


@BACKBONES.register_module()
class SEResNeXt(SEResNet, ResNeXt):
    """Both: `SEBottleneck`s with grouped 3x3 convolutions."""
