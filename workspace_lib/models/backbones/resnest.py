"""ResNeSt (Zhang et al. 2020, arXiv:2004.08955): ResNetV1d whose 3x3 convolutions attend to their own splits.

In: images (N, 3, H, W). Out: a tuple of feature maps, by default one, (N, 2048, H / 32, W / 32).
"""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..builder import BACKBONES
from ..layers import BN, Cfg, NamedNorms, build_conv
from .resnet import ResNetV1d
from .resnet_blocks import Bottleneck


class SplitAttentionConv2d(NamedNorms):
    """A 3x3 convolution into `radix` splits, added up with weights that depend on the image (figure 2).

    Args:
        channels: of the input and of the output.
        groups: ResNeXt's groups, each of which has its own weights.
        radix: number of splits. With 1 this is squeeze-and-excitation.
        reduction_factor: how much narrower the layer is that computes the weights (32 channels at least).
    """

    def __init__(self, channels: int, stride: int = 1, dilation: int = 1, groups: int = 1, radix: int = 2,
                 reduction_factor: int = 4, conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN) -> None:
        super().__init__()
        self.radix, self.groups = radix, groups
        hidden = max(channels * radix // reduction_factor, 32)
        self.conv = build_conv(conv_cfg, channels, channels * radix, 3, stride=stride, padding=dilation,
                               dilation=dilation, groups=groups * radix, bias=False)
        self.add_norm(0, norm_cfg, channels * radix)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, hidden, 1, groups=groups)
        self.add_norm(1, norm_cfg, hidden)
        self.fc2 = nn.Conv2d(hidden, channels * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H / stride, W / stride)
        splits = self.relu(self.norm0(self.conv(x))).unflatten(1, (self.radix, -1))  # (N, radix, C, H, W)
        pooled = F.adaptive_avg_pool2d(splits.sum(dim=1), 1)                         # (N, C, 1, 1)
        scores = self.fc2(self.relu(self.norm1(self.fc1(pooled))))                   # (N, radix * C, 1, 1)
        return (self._weights(scores) * splits).sum(dim=1).contiguous()

    def _weights(self, scores: Tensor) -> Tensor:
        """(N, groups * radix * c, 1, 1) -> (N, radix, groups * c, 1, 1), adding up to 1 over the splits."""
        if self.radix == 1:
            return scores.sigmoid().unsqueeze(1)
        by_group = scores.flatten(1).unflatten(1, (self.groups, self.radix, -1))    # (N, groups, radix, c)
        weights = by_group.transpose(1, 2).softmax(dim=1)                           # (N, radix, groups, c)
        return weights.flatten(2)[..., None, None]


class ResNeStBottleneck(Bottleneck):
    """Bottleneck with split attention, and with a stride that averages where the convolution would skip.

    Args:
        radix, reduction_factor: see `SplitAttentionConv2d`.
        avg_down_stride: 3x3 average pooling behind the convolution takes its stride over.
    """

    def __init__(self, *args: Any, radix: int = 2, reduction_factor: int = 4, avg_down_stride: bool = True,
                 **kwargs: Any) -> None:
        # For _add_conv2, which super().__init__ calls.
        self.split = dict(radix=radix, reduction_factor=reduction_factor)
        self.avg_down_stride = avg_down_stride
        super().__init__(*args, **kwargs)

    def _add_conv2(self, channels: int, stride: int, dilation: int, groups: int, conv_cfg: Cfg | None,
                   norm_cfg: Cfg) -> None:
        self.avg_down_stride = self.avg_down_stride and stride > 1
        self.conv2 = SplitAttentionConv2d(channels, 1 if self.avg_down_stride else stride, dilation, groups,
                                          conv_cfg=conv_cfg, norm_cfg=norm_cfg, **self.split)
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if self.avg_down_stride else nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))  # (N, mid_channels, H, W)
        x = self.avd_layer(self.conv2(x))         # (N, mid_channels, H / stride, W / stride)
        return self.norm3(self.conv3(x))          # (N, out_channels, H / stride, W / stride)


@BACKBONES.register_module()
class ResNeSt(ResNetV1d):
    """ResNeSt 50, 101, 152, 200 and 269; see `ResNet` for the other arguments."""

    arch_settings = {
        50: (ResNeStBottleneck, (3, 4, 6, 3)),
        101: (ResNeStBottleneck, (3, 4, 23, 3)),
        152: (ResNeStBottleneck, (3, 8, 36, 3)),
        200: (ResNeStBottleneck, (3, 24, 36, 3)),
        269: (ResNeStBottleneck, (3, 30, 48, 8)),
    }

    def __init__(self, depth: int, groups: int = 1, width_per_group: int = 4, radix: int = 2, reduction_factor: int = 4,
                 avg_down_stride: bool = True, base_channels: int = 64, **kwargs: Any) -> None:
        self.block_options = dict(groups=groups, width_per_group=width_per_group, base_channels=base_channels,
                                  radix=radix, reduction_factor=reduction_factor, avg_down_stride=avg_down_stride)
        super().__init__(depth, base_channels=base_channels, **kwargs)
