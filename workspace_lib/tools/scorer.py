"""A classifier as one plain function of tensors, as counters, exporters and gradients want it.

In: images float (N, C, H, W). Out: scores (N, num_classes).
"""
from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


class Scorer(nn.Module):
    """`classifier` from image to scores: the probabilities of a test, or with `logits` what comes before them."""

    def __init__(self, classifier: Any, logits: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.train(classifier.training)
        # softmax for one label an image, sigmoid for several
        takes = inspect.signature(classifier.head.simple_test).parameters
        self.options = {name: not logits for name in ('softmax', 'sigmoid') if name in takes}

    def forward(self, img: Tensor) -> Tensor:
        return self.classifier(img, return_loss=False, post_process=False, **self.options)
