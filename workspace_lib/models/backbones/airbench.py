"""The small network of airbench94 (Jordan 2024, arXiv:2404.00498, section 3.1) for CIFAR-10 in seconds.

In: (N, 3, 32, 32). Out: a tuple of one tensor, features (N, widths[-1], 1, 1).
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ..builder import BACKBONES
from ..init import BaseModule


@BACKBONES.register_module()
class Airbench(BaseModule):
    """A 2x2 convolution, three groups of two 3x3 convolutions that halve the sides, and the largest of each channel.

    Each convolution of a group begins as the identity on its first channels. Other than the paper's: the 2x2
    convolution is trained like the others, not set to whiten the data; BatchNorm has weights.

    Args:
        widths: channels of the groups. scale: on the features, which keeps the first logits small.
        momentum: of BatchNorm: the share of the newest batch.
    """

    def __init__(self, widths: Sequence[int] = (64, 256, 256), scale: float = 1 / 9, momentum: float = 0.4) -> None:
        super().__init__()
        self.scale, self.momentum = scale, momentum
        groups = [self._group(inputs, outputs) for inputs, outputs in pairwise((24, *widths))]
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 2), nn.GELU(), *groups, nn.AdaptiveMaxPool2d(1))

    def _group(self, inputs: int, outputs: int) -> nn.Sequential:
        convs = [nn.Conv2d(channels, outputs, 3, padding=1, bias=False) for channels in (inputs, outputs)]
        for conv in convs:
            nn.init.dirac_(conv.weight.data[:conv.in_channels])
        norms = [nn.BatchNorm2d(outputs, momentum=self.momentum) for _ in convs]
        return nn.Sequential(convs[0], nn.MaxPool2d(2), norms[0], nn.GELU(), convs[1], norms[1], nn.GELU())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layers(x) * self.scale,)
