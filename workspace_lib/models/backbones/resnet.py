"""ResNet (arXiv:1512.03385), its v1c and v1d (arXiv:1812.01187), and ResNeXt (arXiv:1611.05431).

In: images (N, 3, H, W). Out: a tuple with the feature maps of the stages in `out_indices`; by default one,
(N, 512 or 2048, H / 32, W / 32).
"""
from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..builder import BACKBONES
from ..init import BaseModule, InitCfg
from ..layers import BN, Cfg, ConvModule, DropPath, NamedNorms, build_conv, build_norm

INIT: InitCfg = [
    dict(type='Kaiming', layer=['Conv2d']),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
]


class ResidualBlock(NamedNorms):
    """relu(residual(x) + shortcut(x)): what the two kinds of block share."""

    expansion: ClassVar[int]  # out_channels / mid_channels, unless the network says otherwise
    with_cp: bool
    downsample: nn.Module | None
    drop_path: nn.Module
    relu: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        # (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)
        if self.with_cp and x.requires_grad:  # keep only x, and compute the rest again on the way back
            return self.relu(checkpoint(self._add_shortcut, x, use_reentrant=False))
        return self.relu(self._add_shortcut(x))

    def _add_shortcut(self, x: Tensor) -> Tensor:
        out = self.drop_path(self.residual(x))
        out += x if self.downsample is None else self.downsample(x)
        return out

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.Module:
        raise NotImplementedError


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions: ResNet-18 and 34. `style` means nothing here; it is Bottleneck's."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, expansion: int = 1, stride: int = 1, dilation: int = 1,
                 downsample: nn.Module | None = None, style: str = 'pytorch', with_cp: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        if expansion != 1:
            raise ValueError(f'BasicBlock (ResNet-18 and 34) has expansion 1, but got {expansion}')
        self.with_cp = with_cp
        self.conv1 = build_conv(conv_cfg, in_channels, out_channels, 3, stride=stride, padding=dilation,
                                dilation=dilation, bias=False)
        self.add_norm(1, norm_cfg, out_channels)
        self.conv2 = build_conv(conv_cfg, out_channels, out_channels, 3, padding=1, bias=False)
        self.add_norm(2, norm_cfg, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = DropPath(drop_path_rate)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))

    @property
    def last_norm(self) -> nn.Module:
        return self.norm2


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions, the middle one on fewer channels: ResNet-50 and deeper, and ResNeXt.

    Args:
        out_channels: of the block; its middle has `out_channels / expansion`.
        style: which convolution has the stride: 'pytorch' the 3x3, 'caffe' the first 1x1.
        groups, width_per_group, base_channels: ResNeXt's. The first stage's middle, `base_channels` wide in a
            ResNet, has `groups * width_per_group` channels instead, and the later stages' in proportion.
    """

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, expansion: int = 4, stride: int = 1, dilation: int = 1,
                 downsample: nn.Module | None = None, style: str = 'pytorch', with_cp: bool = False,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN, drop_path_rate: float = 0.0,
                 groups: int = 1, width_per_group: int = 4, base_channels: int = 64) -> None:
        super().__init__()
        if style not in ('pytorch', 'caffe'):
            raise ValueError(f"Bottleneck got style={style!r}; it is 'pytorch' or 'caffe'")
        self.with_cp = with_cp
        channels = out_channels // expansion
        if groups > 1:
            channels = groups * width_per_group * channels // base_channels
        stride1, stride2 = (1, stride) if style == 'pytorch' else (stride, 1)
        self.conv1 = build_conv(conv_cfg, in_channels, channels, 1, stride=stride1, bias=False)
        self.add_norm(1, norm_cfg, channels)
        self._add_conv2(channels, stride2, dilation, groups, conv_cfg, norm_cfg)
        self.conv3 = build_conv(conv_cfg, channels, out_channels, 1, bias=False)
        self.add_norm(3, norm_cfg, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = DropPath(drop_path_rate)

    def _add_conv2(self, channels: int, stride: int, dilation: int, groups: int,
                   conv_cfg: Cfg | None, norm_cfg: Cfg) -> None:
        self.conv2 = build_conv(conv_cfg, channels, channels, 3, stride=stride, padding=dilation, dilation=dilation,
                                groups=groups, bias=False)
        self.add_norm(2, norm_cfg, channels)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))  # (N, channels, H, W)
        x = self.relu(self.norm2(self.conv2(x)))  # (N, channels, H / stride, W / stride)
        return self.norm3(self.conv3(x))          # (N, out_channels, H / stride, W / stride)

    @property
    def last_norm(self) -> nn.Module:
        return self.norm3


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


@BACKBONES.register_module()
class ResNet(BaseModule, NamedNorms):
    """ResNet 18, 34, 50, 101 and 152.

    Args:
        depth: which one.
        in_channels: of the image. stem_channels: behind the stem. base_channels: of the first stage's middle.
        expansion: a block's outer over its middle channels; default the block's own, 1 or 4.
        num_stages: 1 to 4. strides, dilations: of each stage.
        out_indices: which stages' feature maps to return, from 0.
        style: 'pytorch' or 'caffe', see `Bottleneck`.
        deep_stem: three 3x3 convolutions in place of the 7x7 (v1c and v1d).
        avg_down: average pooling in the shortcuts (v1d).
        frozen_stages: leave the stem (0) and the stages up to this one (from 1) as they are; -1: train all.
        norm_eval: in training too, normalise by the running statistics, and leave them alone.
        with_cp: recompute activations on the way back: less memory, about a third more time.
        zero_init_residual: start every block as the identity (arXiv:1706.02677, section 5.1).
        drop_path_rate: stochastic depth, the same for every block.
    """

    arch_settings: ClassVar[dict[int, tuple[type[ResidualBlock], tuple[int, ...]]]] = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }

    def __init__(self, depth: int, in_channels: int = 3, stem_channels: int = 64, base_channels: int = 64,
                 expansion: int | None = None, num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2),
                 dilations: Sequence[int] = (1, 1, 1, 1), out_indices: Sequence[int] = (3,), style: str = 'pytorch',
                 deep_stem: bool = False, avg_down: bool = False, frozen_stages: int = -1,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN, norm_eval: bool = False, with_cp: bool = False,
                 zero_init_residual: bool = True, init_cfg: InitCfg = INIT, drop_path_rate: float = 0.0) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if depth not in self.arch_settings:
            known = ', '.join(map(str, self.arch_settings))
            raise ValueError(f'{name} got depth={depth}; known depths: {known}')
        _check_stages(name, num_stages, strides, dilations, out_indices, frozen_stages)
        self.depth = depth
        self.out_indices = tuple(out_indices)
        self.deep_stem = deep_stem
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.zero_init_residual = zero_init_residual
        self._make_stem(in_channels, stem_channels, conv_cfg, norm_cfg)

        block, num_blocks = self.arch_settings[depth]
        expansion = expansion or block.expansion
        options = dict(expansion=expansion, style=style, with_cp=with_cp, conv_cfg=conv_cfg, norm_cfg=norm_cfg,
                       drop_path_rate=drop_path_rate, **self.block_options(base_channels))
        channels, out_channels = stem_channels, base_channels * expansion
        for i in range(num_stages):
            downsample = make_downsample(channels, out_channels, strides[i], avg_down, conv_cfg, norm_cfg)
            options['dilation'] = dilations[i]
            blocks = [block(channels, out_channels, stride=strides[i], downsample=downsample, **options)]
            blocks += [block(out_channels, out_channels, **options) for _ in range(1, num_blocks[i])]
            self.add_module(f'layer{i + 1}', nn.Sequential(*blocks))
            channels, out_channels = out_channels, out_channels * 2  # half the resolution, twice the channels
        self.res_layers = [f'layer{i + 1}' for i in range(num_stages)]
        self.feat_dim = channels
        self._freeze_stages()

    def block_options(self, base_channels: int) -> Cfg:
        """What a relative of ResNet tells its blocks beyond the usual."""
        return {}

    def _make_stem(self, in_channels: int, channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> None:
        if self.deep_stem:
            half, cfg = channels // 2, (conv_cfg, norm_cfg)
            self.stem = nn.Sequential(ConvModule(in_channels, half, 3, 2, 1, *cfg),
                                      ConvModule(half, half, 3, 1, 1, *cfg),
                                      ConvModule(half, channels, 3, 1, 1, *cfg))
        else:
            self.conv1 = build_conv(conv_cfg, in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.add_norm(1, norm_cfg, channels)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))  # (N, 64, H / 2, W / 2)
        x = self.maxpool(x)                                                           # (N, 64, H / 4, W / 4)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)  # ResNet-50: (N, 256, H / 4, W / 4) ... (N, 2048, H / 32, W / 32)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def init_weights(self) -> None:
        started = self._is_init
        super().init_weights()
        if started or self.is_pretrained or not self.zero_init_residual:
            return
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                for parameter in block.last_norm.parameters():
                    nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.stem] if self.deep_stem else [self.conv1, self.norm1]
        frozen += [getattr(self, name) for name in self.res_layers[:self.frozen_stages]]
        for module in frozen:
            module.eval().requires_grad_(False)

    def __init_subclass__(cls) -> None:
        """What a relative passes on as **kwargs shows in its signature, so that a misspelt key is noticed."""
        parent = next(base for base in cls.__mro__[1:] if issubclass(base, ResNet))
        own, above = inspect.signature(cls.__init__).parameters, inspect.signature(parent).parameters
        named = [p for p in list(own.values())[1:] if p.kind is not p.VAR_KEYWORD]
        if len(named) < len(own) - 1:
            named += [p.replace(kind=p.KEYWORD_ONLY) for name, p in above.items() if name not in own]
        cls.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]


def _check_stages(name: str, num_stages: int, strides: Sequence[int], dilations: Sequence[int],
                  out_indices: Sequence[int], frozen_stages: int) -> None:
    if not 1 <= num_stages <= 4:
        raise ValueError(f'{name} got num_stages={num_stages}; it has 1 to 4')
    if not len(strides) == len(dilations) == num_stages:
        raise ValueError(f'{name} has num_stages={num_stages}, but {len(strides)} strides and '
                         f'{len(dilations)} dilations; give one of each per stage')
    if not out_indices or not set(out_indices) <= set(range(num_stages)):
        raise ValueError(f'{name} got out_indices={tuple(out_indices)}; its stages are 0 to {num_stages - 1}')
    if frozen_stages > num_stages:
        raise ValueError(f'{name} got frozen_stages={frozen_stages}, but has only {num_stages} stages')


@BACKBONES.register_module()
class ResNetV1c(ResNet):
    """ResNet with three 3x3 convolutions in the stem."""

    def __init__(self, depth: int, **kwargs: Any) -> None:
        super().__init__(depth, deep_stem=True, avg_down=False, **kwargs)


@BACKBONES.register_module()
class ResNetV1d(ResNet):
    """ResNetV1c with average pooling in the shortcuts."""

    def __init__(self, depth: int, **kwargs: Any) -> None:
        super().__init__(depth, deep_stem=True, avg_down=True, **kwargs)


@BACKBONES.register_module()
class ResNet_CIFAR(ResNet):
    """ResNet for images of 32x32: a 3x3 stem without stride, and no pooling behind it."""

    def _make_stem(self, in_channels: int, channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> None:
        if self.deep_stem:
            raise ValueError('ResNet_CIFAR has a stem of its own; leave deep_stem=False')
        self.conv1 = build_conv(conv_cfg, in_channels, channels, 3, padding=1, bias=False)
        self.add_norm(1, norm_cfg, channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()


@BACKBONES.register_module()
class ResNeXt(ResNet):
    """ResNet with grouped 3x3 convolutions: '32x4d' is 32 groups, each 4 wide in the first stage."""

    arch_settings = {depth: ResNet.arch_settings[depth] for depth in (50, 101, 152)}

    def __init__(self, depth: int, groups: int = 32, width_per_group: int = 4, **kwargs: Any) -> None:
        # For block_options, which super().__init__ calls.
        self.groups, self.width_per_group = groups, width_per_group
        super().__init__(depth, **kwargs)

    def block_options(self, base_channels: int) -> Cfg:
        return dict(groups=self.groups, width_per_group=self.width_per_group, base_channels=base_channels)
