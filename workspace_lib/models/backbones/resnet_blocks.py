"""What ResNet and its relatives are made of: two kinds of block, and the shortcut where the shape changes.

In: feature maps (N, in_channels, H, W). Out: (N, out_channels, H / stride, W / stride).
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...arguments import check_known
from ..layers import BN, Cfg, DropPath, NamedNorms, build_conv, build_norm, recompute


class ResidualBlock(NamedNorms):
    """relu(residual(x) + shortcut(x)): what the two kinds of block share."""

    expansion: ClassVar[int]  # out_channels / mid_channels, unless the network says otherwise
    last_norm: ClassVar[int]  # the number of the norm that the residual ends with

    downsample: nn.Module | None  # set last: state dicts have it behind the convolutions

    def __init__(self, with_cp: bool = False, drop_path_rate: float = 0.) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        # (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)
        return self.relu(recompute(self._add_shortcut, x, self.with_cp))

    def _add_shortcut(self, x: Tensor) -> Tensor:
        out = self.drop_path(self.residual(x))
        out += x if self.downsample is None else self.downsample(x)
        return out

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions: ResNet-18 and 34. `style` means nothing here; it is Bottleneck's."""

    expansion, last_norm = 1, 2

    def __init__(self, in_channels: int, out_channels: int, expansion: int = 1, stride: int = 1, dilation: int = 1,
                 downsample: nn.Module | None = None, style: str = 'pytorch', conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg = BN, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if expansion != 1:
            raise ValueError(f'BasicBlock (ResNet-18 and 34) has expansion 1, but got {expansion}')
        self.conv1 = build_conv(conv_cfg, in_channels, out_channels, 3, stride=stride, padding=dilation,
                                dilation=dilation, bias=False)
        self.add_norm(1, norm_cfg, out_channels)
        self.conv2 = build_conv(conv_cfg, out_channels, out_channels, 3, padding=1, bias=False)
        self.add_norm(2, norm_cfg, out_channels)
        self.downsample = downsample

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions, the middle one on fewer channels: ResNet-50 and deeper, and ResNeXt.

    Args:
        out_channels: of the block; its middle has `out_channels / expansion`.
        style: which convolution has the stride: 'pytorch' the 3x3, 'caffe' the first 1x1.
        groups, width_per_group, base_channels: ResNeXt's. The first stage's middle, `base_channels` wide in a
            ResNet, has `groups * width_per_group` channels instead, and the later stages' in proportion.
    """

    expansion, last_norm = 4, 3

    def __init__(self, in_channels: int, out_channels: int, expansion: int = 4, stride: int = 1, dilation: int = 1,
                 downsample: nn.Module | None = None, style: str = 'pytorch', conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg = BN, groups: int = 1, width_per_group: int = 4, base_channels: int = 64,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_known('style', style, ('pytorch', 'caffe'), self)
        if out_channels % expansion:
            raise ValueError(f'Bottleneck got out_channels={out_channels}, which expansion={expansion} does not divide')
        channels = out_channels // expansion
        if groups > 1:
            channels = groups * width_per_group * channels // base_channels
        stride1, stride2 = (1, stride) if style == 'pytorch' else (stride, 1)
        self.conv1 = build_conv(conv_cfg, in_channels, channels, 1, stride=stride1, bias=False)
        self.add_norm(1, norm_cfg, channels)
        self._add_conv2(channels, stride2, dilation, groups, conv_cfg, norm_cfg)
        self.conv3 = build_conv(conv_cfg, channels, out_channels, 1, bias=False)
        self.add_norm(3, norm_cfg, out_channels)
        self.downsample = downsample

    def _add_conv2(self, channels: int, stride: int, dilation: int, groups: int,
                   conv_cfg: Cfg | None, norm_cfg: Cfg) -> None:
        self.conv2 = build_conv(conv_cfg, channels, channels, 3, stride=stride, padding=dilation, dilation=dilation,
                                groups=groups, bias=False)
        self.add_norm(2, norm_cfg, channels)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))  # (N, channels, H, W)
        x = self.relu(self.norm2(self.conv2(x)))  # (N, channels, H / stride, W / stride)
        return self.norm3(self.conv3(x))          # (N, out_channels, H / stride, W / stride)


def make_downsample(in_channels: int, out_channels: int, stride: int, avg_down: bool, conv_cfg: Cfg | None,
                    norm_cfg: Cfg) -> nn.Module | None:
    """The shortcut of a stage's first block, where the shape changes: a 1x1 convolution. Elsewhere None."""
    if stride == 1 and in_channels == out_channels:
        return None
    layers: list[nn.Module] = []
    if avg_down and stride != 1:  # v1d: average over what a strided 1x1 convolution skips
        layers.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
        stride = 1
    layers.append(build_conv(conv_cfg, in_channels, out_channels, 1, stride=stride, bias=False))
    layers.append(build_norm(norm_cfg, out_channels))
    return nn.Sequential(*layers)
