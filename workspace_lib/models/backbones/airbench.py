"""The small network of airbench94 (Jordan 2024, arXiv:2404.00498, section 3.1) for CIFAR-10 in seconds.

In: (N, 3, 32, 32). Out: a tuple of one tensor, features (N, widths[-1], 1, 1).
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, is_grad_enabled, nn

from ..builder import BACKBONES
from ..init import BaseModule


@BACKBONES.register_module()
class Airbench(BaseModule):
    """A 2x2 convolution, three groups of two 3x3 convolutions that halve the sides, and the largest of each channel.

    Each convolution of a group begins as the identity on its first channels. Not trained are the weights of BatchNorm,
    which are 1, and those of the 2x2 convolution: these are `WhitenHook`'s to set, and else stay random.

    Args:
        widths: channels of the groups. scale: on the features, which keeps the first logits small.
        momentum: of BatchNorm: the share of the newest batch.
        test_views: outside training, where no gradients are taken, the mean features of six views, at six times the
            cost: the image, and moved by a pixel towards two corners (half as much each), all three also mirrored.
            Behind a linear head that is the mean of the logits, airbench94's test-time augmentation (section 3.5).
    """

    def __init__(self, widths: Sequence[int] = (64, 256, 256), scale: float = 1 / 9, momentum: float = 0.4,
                 test_views: bool = False) -> None:
        super().__init__()
        self.scale, self.momentum, self.test_views = scale, momentum, test_views
        groups = [self._group(inputs, outputs) for inputs, outputs in pairwise((24, *widths))]
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 2), nn.GELU(), *groups, nn.AdaptiveMaxPool2d(1))
        self.layers[0].weight.requires_grad_(False)

    def _group(self, inputs: int, outputs: int) -> nn.Sequential:
        convs = [nn.Conv2d(channels, outputs, 3, padding=1, bias=False) for channels in (inputs, outputs)]
        norms = [nn.BatchNorm2d(outputs, momentum=self.momentum) for _ in convs]
        for conv, norm in zip(convs, norms, strict=True):
            nn.init.dirac_(conv.weight.data[:conv.in_channels])
            norm.weight.requires_grad_(False)
        return nn.Sequential(OrderedDict(conv1=convs[0], pool=nn.MaxPool2d(2), norm1=norms[0], act1=nn.GELU(),
                                         conv2=convs[1], norm2=norms[1], act2=nn.GELU()))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.training or is_grad_enabled() or not self.test_views:
            return (self.layers(x) * self.scale,)
        around = nn.functional.pad(x, (1, 1, 1, 1), 'reflect')
        views = (x, 1 / 4), (around[:, :, :-2, :-2], 1 / 8), (around[:, :, 2:, 2:], 1 / 8)
        return (self.scale * sum(share * (self.layers(view) + self.layers(view.flip(-1))) for view, share in views),)
