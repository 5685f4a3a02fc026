"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381): blocks that widen, convolve each channel alone, and narrow.

In: images (N, 3, H, W). Out: a tuple of feature maps, by default one, (N, 1280, H / 32, W / 32).
"""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..builder import BACKBONES
from ..init import KAIMING, InitCfg
from ..layers import BN, Cfg, ConvModule, make_divisible, recompute
from .staged import StagedBackbone, chosen_stages

RELU6: Cfg = dict(type='ReLU6')


class InvertedResidual(nn.Module):
    """1x1 convolution to `expand_ratio` times the channels, 3x3 within each channel, 1x1 without activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand_ratio: int,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN, act_cfg: Cfg = RELU6, with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.use_res_connect = stride == 1 and in_channels == out_channels
        hidden = in_channels * expand_ratio
        cfgs: Cfg = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        layers = [] if expand_ratio == 1 else [ConvModule(in_channels, hidden, 1, act_cfg=act_cfg, **cfgs)]
        layers += [ConvModule(hidden, hidden, 3, stride, padding=1, groups=hidden, act_cfg=act_cfg, **cfgs),
                   ConvModule(hidden, out_channels, 1, act_cfg=None, **cfgs)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)
        return recompute(self._run, x, self.with_cp)

    def _run(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


@BACKBONES.register_module()
class MobileNetV2(StagedBackbone):
    """Seven stages of `InvertedResidual`s and, as stage 7, a 1x1 convolution.

    Args:
        widen_factor: of all widths, rounded to multiples of 8.
        out_indices: which stages' feature maps to return, 0 to 7.
        frozen_stages: leave the stem (0) and so many stages as they are; -1: train all.
        norm_eval, with_cp: see `ResNet`.
    """

    arch_settings = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),  # expansion, channels, blocks, stride
                     (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, widen_factor: float = 1., out_indices: Sequence[int] = (7, ), frozen_stages: int = -1,
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg = BN, act_cfg: Cfg = RELU6, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: InitCfg = KAIMING) -> None:
        super().__init__(init_cfg)
        self.norm_eval = norm_eval
        self.out_indices = chosen_stages(self, out_indices, 8)
        cfgs: Cfg = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        channels = make_divisible(32 * widen_factor)
        self.conv1 = ConvModule(3, channels, 3, stride=2, padding=1, **cfgs)
        for i, (expand_ratio, width, num_blocks, stride) in enumerate(self.arch_settings):
            blocks = []
            for block in range(num_blocks):
                blocks.append(InvertedResidual(channels, make_divisible(width * widen_factor),
                                               stride if block == 0 else 1, expand_ratio, with_cp=with_cp, **cfgs))
                channels = make_divisible(width * widen_factor)
            self.add_module(f'layer{i + 1}', nn.Sequential(*blocks))
        self.conv2 = ConvModule(channels, int(1280 * max(widen_factor, 1.)), 1, **cfgs)
        self.freeze(frozen_stages)

    def stem_layers(self) -> list[nn.Module]:
        return [self.conv1]

    def stage_layers(self) -> list[list[nn.Module]]:
        return [*([getattr(self, f'layer{i}')] for i in range(1, 8)), [self.conv2]]
