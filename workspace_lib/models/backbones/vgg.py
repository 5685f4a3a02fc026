"""VGG (Simonyan and Zisserman 2014, arXiv:1409.1556), without and with batch normalisation.

In: images (N, 3, H, W). Out: a tuple of feature maps, by default one, (N, 512, H / 32, W / 32); with `num_classes`
by default the scores (N, num_classes) of images of 224 x 224.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from ..builder import BACKBONES
from ..init import KAIMING, InitCfg
from ..layers import RELU, Cfg, ConvModule
from .staged import StagedBackbone, chosen_stages

INIT: InitCfg = [*KAIMING, dict(type='Normal', std=0.01, layer=['Linear'])]  # type: ignore[misc]


class Flatten7x7(nn.Module):
    """(N, 512, 7, 7) -> (N, 25088), with an error for other sizes that says where they come from."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (512, 7, 7):
            raise ValueError(f'the classifier of VGG takes (N, 512, 7, 7), but got {tuple(x.shape)}: give it images of '
                             "224 x 224, or leave num_classes out and take neck=dict(type='GlobalAveragePooling') "
                             "and head=dict(type='LinearClsHead', in_channels=512, ...)")
        return x.flatten(1)


@BACKBONES.register_module()
class VGG(StagedBackbone):
    """VGG 11, 13, 16 and 19.

    Args:
        depth: which one.
        num_classes: with the three dense layers of the paper; then the head is `ClsHead`. -1: without.
        num_stages: 1 to 5. dilations: of each stage.
        out_indices: which stages' outputs to return, from 0; the classifier is one more stage, always returned.
        frozen_stages: leave so many stages as they are. norm_eval: see `ResNet`.
        norm_cfg: None for the paper's networks, dict(type='BN') for those called VGG-16-BN.
        ceil_mode: of the pooling. with_last_pool: pool behind the last stage too.
    """

    arch_settings: ClassVar[dict[int, tuple[int, ...]]] = {  # convolutions per stage
        11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

    def __init__(self, depth: int, num_classes: int = -1, num_stages: int = 5,
                 dilations: Sequence[int] = (1, 1, 1, 1, 1), out_indices: Sequence[int] | None = None,
                 frozen_stages: int = -1, conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None,
                 act_cfg: Cfg = RELU, norm_eval: bool = False, ceil_mode: bool = False, with_last_pool: bool = True,
                 init_cfg: InitCfg = INIT) -> None:
        super().__init__(init_cfg)
        if depth not in self.arch_settings:
            raise ValueError(f'VGG got depth={depth}; known depths: {", ".join(map(str, self.arch_settings))}')
        if not 1 <= num_stages <= 5 or len(dilations) != num_stages:
            raise ValueError(f'VGG got num_stages={num_stages} and {len(dilations)} dilations; '
                             'it has 1 to 5 stages, with a dilation for each')
        self.num_classes, self.norm_eval = num_classes, norm_eval
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # of each stage among the layers
        channels = 3
        for i, dilation in enumerate(dilations):
            out_channels = min(64 * 2 ** i, 512)
            for _ in range(self.arch_settings[depth][i]):
                layers.append(ConvModule(channels, out_channels, 3, padding=dilation, dilation=dilation, bias=True,
                                         conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg))
                channels = out_channels
            if with_last_pool or i < num_stages - 1:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=ceil_mode))
            self.ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        if num_classes > 0:
            self.flatten = Flatten7x7()
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
                nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
                nn.Linear(4096, num_classes))
        last = len(self.stage_layers()) - 1
        self.out_indices = chosen_stages(self, last if out_indices is None else out_indices, last + 1)
        if num_classes > 0 and last not in self.out_indices:
            self.out_indices += (last, )
        self.freeze(frozen_stages)

    def stage_layers(self) -> list[list[nn.Module]]:
        layers = list(self.features)
        stages = [layers[start:end] for start, end in zip([0, *self.ends], self.ends, strict=False)]
        return [*stages, [self.flatten, self.classifier]] if self.num_classes > 0 else stages
