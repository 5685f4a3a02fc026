"""ResNet (arXiv:1512.03385), its v1c and v1d (arXiv:1812.01187), and ResNeXt (arXiv:1611.05431).

In: images (N, 3, H, W). Out: a tuple with the feature maps of the stages in `out_indices`; by default one,
(N, 512 or 2048, H / 32, W / 32).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from ...arguments import PassesOn
from ..builder import BACKBONES
from ..init import KAIMING, InitCfg
from ..layers import BN, Cfg, ConvModule, NamedNorms, build_conv
from .resnet_blocks import BasicBlock, Bottleneck, ResidualBlock, make_downsample
from .staged import StagedBackbone, chosen_stages


@BACKBONES.register_module()
class ResNet(PassesOn, StagedBackbone, NamedNorms):
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

    arch_settings: ClassVar[dict[int, tuple[Any, tuple[int, ...]]]] = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }
    block_options: Cfg = {}  # what a relative tells its blocks beyond the usual; it sets them before super().__init__

    def __init__(self, depth: int, in_channels: int = 3, stem_channels: int = 64, base_channels: int = 64,
                 expansion: int | None = None, num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2),
                 dilations: Sequence[int] = (1, 1, 1, 1), out_indices: Sequence[int] = (3,), style: str = 'pytorch',
                 deep_stem: bool = False, avg_down: bool = False, frozen_stages: int = -1,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN, norm_eval: bool = False, with_cp: bool = False,
                 zero_init_residual: bool = True, init_cfg: InitCfg = KAIMING, drop_path_rate: float = 0.0) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if depth not in self.arch_settings:
            raise ValueError(f'{name} got depth={depth}; known depths: {", ".join(map(str, self.arch_settings))}')
        _check_stages(name, num_stages, strides, dilations)
        self.depth, self.out_indices = depth, chosen_stages(self, out_indices, num_stages)
        self.deep_stem = deep_stem
        self.norm_eval = norm_eval
        self.zero_init_residual = zero_init_residual
        self._make_stem(in_channels, stem_channels, conv_cfg, norm_cfg)

        block, num_blocks = self.arch_settings[depth]
        expansion = expansion or block.expansion
        options = dict(expansion=expansion, style=style, with_cp=with_cp, conv_cfg=conv_cfg, norm_cfg=norm_cfg,
                       drop_path_rate=drop_path_rate, **self.block_options)
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
        self.freeze(frozen_stages)

    def _make_stem(self, in_channels: int, channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg) -> None:
        if self.deep_stem:
            half, cfgs = channels // 2, Cfg(padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            self.stem = nn.Sequential(ConvModule(in_channels, half, 3, stride=2, **cfgs),
                                      ConvModule(half, half, 3, **cfgs), ConvModule(half, channels, 3, **cfgs))
        else:
            self.conv1 = build_conv(conv_cfg, in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.add_norm(1, norm_cfg, channels)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def stem_layers(self) -> list[nn.Module]:
        stem = [self.stem] if self.deep_stem else [self.conv1, self.norm1, self.relu]  # (N, 64, H / 2, W / 2)
        return [*stem, self.maxpool]                                                   # (N, 64, H / 4, W / 4)

    def stage_layers(self) -> list[list[nn.Module]]:
        """ResNet-50's: (N, 256, H / 4, W / 4) ... (N, 2048, H / 32, W / 32)."""
        return [[getattr(self, name)] for name in self.res_layers]

    def init_own(self) -> None:
        for block in self.modules() if self.zero_init_residual else ():
            if isinstance(block, ResidualBlock):
                for parameter in block.norm(block.last_norm).parameters():
                    nn.init.zeros_(parameter)


def _check_stages(name: str, num_stages: int, strides: Sequence[int], dilations: Sequence[int]) -> None:
    if not 1 <= num_stages <= 4:
        raise ValueError(f'{name} got num_stages={num_stages}; it has 1 to 4')
    if not len(strides) == len(dilations) == num_stages:
        raise ValueError(f'{name} has num_stages={num_stages}, but {len(strides)} strides and '
                         f'{len(dilations)} dilations; give one of each per stage')


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

    def __init__(self, depth: int, groups: int = 32, width_per_group: int = 4, base_channels: int = 64,
                 **kwargs: Any) -> None:
        self.block_options = dict(self.block_options, groups=groups, width_per_group=width_per_group,
                                  base_channels=base_channels)
        super().__init__(depth, base_channels=base_channels, **kwargs)
