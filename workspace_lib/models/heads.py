"""From features to class scores, and in training to a loss.

In: features (N, in_channels), or a tuple whose last one counts. Out: losses, or scores (N, num_classes).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workspace_lib.metrics import accuracy

from .builder import HEADS, build_loss
from .init import BaseModule, InitCfg

CROSS_ENTROPY: dict[str, Any] = dict(type='CrossEntropyLoss', loss_weight=1.0)
NORMAL: InitCfg = dict(type='Normal', layer='Linear', std=0.01)
Features = Tensor | tuple[Tensor, ...]


@HEADS.register_module()
class ClsHead(BaseModule):
    """The head of a backbone that yields logits itself, such as LeNet5.

    Args:
        loss: config of the loss.
        topk: for the accuracy. cal_acc: compute it in training (not with mixed labels, which have none).
    """

    num_classes_key = 'model.backbone.num_classes'  # where to look when a label does not fit

    def __init__(self, loss: dict[str, Any] = CROSS_ENTROPY, topk: int | Sequence[int] = (1,),
                 cal_acc: bool = False, init_cfg: InitCfg = None) -> None:
        super().__init__(init_cfg)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if min(self.topk) <= 0:
            raise ValueError(f'{type(self).__name__} got topk={topk}; top-k starts at 1')
        self.compute_loss = build_loss(loss)
        self.cal_acc = cal_acc

    def pre_logits(self, x: Features) -> Tensor:
        """What the last layer gets; here there is none, so these are the logits."""
        return x[-1] if isinstance(x, tuple) else x

    def logits(self, x: Features) -> Tensor:
        return self.pre_logits(x)  # (N, num_classes)

    def forward_train(self, x: Features, gt_label: Tensor, **kwargs: Any) -> dict[str, Any]:
        """`dict(loss=scalar)`, and `accuracy={'top-1': percent}` if asked for."""
        return self.loss(self.logits(x), gt_label, **kwargs)

    def loss(self, cls_score: Tensor, gt_label: Tensor, **kwargs: Any) -> dict[str, Any]:
        self._check_labels(gt_label, cls_score.shape[1])
        losses: dict[str, Any] = {}
        if self.cal_acc:
            # Logits, not probabilities: one below 0 may well be the highest, so no threshold.
            percent = accuracy(cls_score.detach(), gt_label, self.topk, thrs=-np.inf)
            losses['accuracy'] = {f'top-{k}': value for k, value in zip(self.topk, percent, strict=True)}
        losses['loss'] = self.compute_loss(cls_score, gt_label, avg_factor=len(cls_score), **kwargs)
        return losses

    def simple_test(self, x: Features, softmax: bool = True,
                    post_process: bool = True) -> Tensor | list[np.ndarray]:
        """Scores of each image.

        Args:
            softmax: probabilities; otherwise logits.
            post_process: as a list of N arrays (num_classes,); otherwise as a tensor (N, num_classes).
        """
        scores = self.logits(x)
        if softmax:
            scores = scores.softmax(dim=1)
        return self.post_process(scores) if post_process else scores

    def post_process(self, scores: Tensor) -> Tensor | list[np.ndarray]:
        if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            return scores  # a graph holds tensors only
        if scores.dtype == torch.bfloat16:  # numpy has no such type
            scores = scores.float()
        return list(scores.detach().cpu().numpy())

    def _check_labels(self, gt_label: Tensor, num_classes: int) -> None:
        if gt_label.dim() > 1 and gt_label.shape[1] > 1:
            if self.cal_acc:
                raise ValueError('cal_acc=True needs class indices, but gt_label holds one value per class '
                                 f'{tuple(gt_label.shape)}: mixed ones have no accuracy (model.head.cal_acc)')
            return
        if gt_label.device.type != 'cpu' or torch.compiler.is_compiling():
            return  # reading a label back from a GPU would stall every step
        for label in (gt_label.min().item(), gt_label.max().item()):
            if not 0 <= label < num_classes:
                raise IndexError(f'gt_label {label} but the head has num_classes={num_classes} '
                                 f'({self.num_classes_key})')


@HEADS.register_module()
class LinearClsHead(ClsHead):
    """One linear layer.

    Args:
        num_classes: C. in_channels: of the features.
        loss, topk, cal_acc: see `ClsHead`.
    """

    num_classes_key = 'model.head.num_classes'

    def __init__(self, num_classes: int, in_channels: int, init_cfg: InitCfg = NORMAL,
                 loss: dict[str, Any] = CROSS_ENTROPY, topk: int | Sequence[int] = (1,),
                 cal_acc: bool = False) -> None:
        super().__init__(loss, topk, cal_acc, init_cfg)
        if num_classes <= 0:
            raise ValueError(f'{type(self).__name__} got num_classes={num_classes}; it takes 1 or more')
        self.num_classes, self.in_channels = num_classes, in_channels
        self.fc = nn.Linear(in_channels, num_classes)

    def logits(self, x: Features) -> Tensor:
        features = self.pre_logits(x)  # (N, in_channels)
        if features.dim() != 2 or features.shape[1] != self.in_channels:
            raise ValueError(self._mismatch(features))
        return self.fc(features)

    def _mismatch(self, features: Tensor) -> str:
        name, shape = type(self).__name__, tuple(features.shape)
        if features.dim() != 2:
            return (f'{name} takes features (N, {self.in_channels}), but got {shape}; '
                    "is neck=dict(type='GlobalAveragePooling') missing?")
        return (f'{name} has in_channels={self.in_channels}, but backbone and neck give {shape[1]}; '
                f'set model.head.in_channels={shape[1]}')
