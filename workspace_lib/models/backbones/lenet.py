"""LeNet-5 (LeCun et al. 1998), with average pooling and tanh as in the paper.

In: (N, 1, 32, 32). Out: a tuple of one tensor: logits (N, num_classes), or features (N, 120, 1, 1).
"""
from __future__ import annotations

from torch import Tensor, nn

from ..builder import BACKBONES
from ..init import BaseModule


@BACKBONES.register_module()
class LeNet5(BaseModule):
    """Three convolutions and, with `num_classes` > 0, two linear layers: then the head is `ClsHead`."""

    def __init__(self, num_classes: int = -1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5), nn.Tanh(),     # (N, 6, 28, 28)
            nn.AvgPool2d(kernel_size=2),                   # (N, 6, 14, 14)
            nn.Conv2d(6, 16, kernel_size=5), nn.Tanh(),    # (N, 16, 10, 10)
            nn.AvgPool2d(kernel_size=2),                   # (N, 16, 5, 5)
            nn.Conv2d(16, 120, kernel_size=5), nn.Tanh())  # (N, 120, 1, 1)
        if num_classes > 0:
            self.classifier = nn.Sequential(nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.features(x)
        if self.num_classes > 0:
            x = self.classifier(x.flatten(1))  # (N, 120) -> (N, num_classes)
        return (x,)
