"""Heads with a second classifier, which a teacher was to teach; without one, both learn from the labels.

In: features (N, in_channels), or a tuple whose last one counts. Out: losses, or scores (N, num_classes).
"""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .builder import HEADS
from .heads import NORMAL, ClsHead, Features
from .init import InitCfg


@HEADS.register_module()
class EfficientFormerClsHead(ClsHead):
    """EfficientFormer's (arXiv:2206.01191): the mean of two linear layers, or one with `distillation=False`.

    Args:
        num_classes: C. in_channels: of the features. The others: see `ClsHead`.
    """

    def __init__(self, num_classes: int, in_channels: int, distillation: bool = True, init_cfg: InitCfg = NORMAL,
                 **kwargs: Any) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        self._set_classes(num_classes, in_channels)
        self.dist = distillation
        self.head = nn.Linear(in_channels, num_classes)
        if distillation:
            self.dist_head = nn.Linear(in_channels, num_classes)

    def logits(self, x: Features) -> Tensor:
        features = self.pre_logits(x)
        scores = self.head(features)  # (N, num_classes)
        return (scores + self.dist_head(features)) / 2 if self.dist else scores
