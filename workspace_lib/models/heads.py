"""From features to class scores, and in training to a loss.

In: features (N, in_channels), or a tuple whose last one counts. Out: losses, or scores (N, num_classes).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import PassesOn
from ..metrics import accuracy
from .builder import HEADS, build_loss
from .init import BaseModule, InitCfg, truncated_normal
from .layers import Cfg, build_activation

CROSS_ENTROPY: Cfg = dict(type='CrossEntropyLoss', loss_weight=1.0)
BINARY_CROSS_ENTROPY: Cfg = dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=1.0)
NORMAL: InitCfg = dict(type='Normal', layer='Linear', std=0.01)
TANH: Cfg = dict(type='Tanh')
ZERO: InitCfg = dict(type='Constant', layer='Linear', val=0)
Features = Tensor | tuple[Any, ...]
Scores = Tensor | list[np.ndarray]


@HEADS.register_module()
class ClsHead(PassesOn, BaseModule):
    """The head of a backbone that yields logits itself, such as LeNet5.

    Args:
        loss: config of the loss.
        topk: for the accuracy. cal_acc: compute it in training (not with mixed labels, which have none).
    """

    num_classes_key = 'model.backbone.num_classes'  # where to look when a label does not fit

    def __init__(self, loss: Cfg = CROSS_ENTROPY, topk: int | Sequence[int] = (1,), cal_acc: bool = False,
                 init_cfg: InitCfg = None) -> None:
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
        if self.cal_acc:  # of logits, where one below 0 may well be the highest: so without a threshold
            percent = accuracy(cls_score.detach(), gt_label, self.topk, thrs=-np.inf)
            losses['accuracy'] = {f'top-{k}': value for k, value in zip(self.topk, percent, strict=True)}
        losses['loss'] = self.compute_loss(cls_score, gt_label, avg_factor=len(cls_score), **kwargs)
        return losses

    def simple_test(self, x: Features, softmax: bool = True, post_process: bool = True) -> Scores:
        """Scores of each image.

        Args:
            softmax: probabilities; otherwise logits.
            post_process: as a list of N arrays (num_classes,); otherwise as a tensor (N, num_classes).
        """
        scores = self.logits(x)
        return self.post_process(scores.softmax(dim=1) if softmax else scores, post_process)

    def _set_classes(self, num_classes: int, in_channels: int) -> None:
        if num_classes <= 0:
            raise ValueError(f'{type(self).__name__} got num_classes={num_classes}; it takes 1 or more')
        self.num_classes, self.in_channels = num_classes, in_channels
        self.num_classes_key = 'model.head.num_classes'

    def post_process(self, scores: Tensor, as_list: bool = True) -> Scores:
        exporting = torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
        if exporting or not as_list:  # an exported graph holds tensors only
            return scores
        if torch.compiler.is_compiling():
            torch._dynamo.skip_frame()  # else each image's row becomes an output of the graph
        scores = scores.float() if scores.dtype == torch.bfloat16 else scores  # which numpy does not know
        return list(scores.detach().cpu().numpy())

    def _check_labels(self, gt_label: Tensor, num_classes: int) -> None:
        if gt_label.dim() > 1 and gt_label.shape[1] > 1:
            if self.cal_acc:
                raise ValueError('cal_acc=True needs class indices, but gt_label holds a value per class, '
                                 f'{tuple(gt_label.shape)}: mixed ones have no accuracy (model.head.cal_acc)')
            return
        if gt_label.device.type != 'cpu' or torch.compiler.is_compiling():
            return  # to read a label back from a GPU would stall every step
        for label in (gt_label.min().item(), gt_label.max().item()):
            if not 0 <= label < num_classes:
                raise IndexError(f'gt_label {label} but the head has num_classes={num_classes} '
                                 f'({self.num_classes_key})')


@HEADS.register_module()
class LinearClsHead(ClsHead):
    """One linear layer. `num_classes`: C. `in_channels`: of the features. The others: see `ClsHead`."""

    def __init__(self, num_classes: int, in_channels: int, init_cfg: InitCfg = NORMAL, **kwargs: Any) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        self._set_classes(num_classes, in_channels)
        self.fc = nn.Linear(in_channels, num_classes)

    def logits(self, x: Features) -> Tensor:
        features, name = self.pre_logits(x), type(self).__name__
        if features.dim() != 2:
            raise ValueError(f'{name} takes features (N, {self.in_channels}), but got {tuple(features.shape)}; '
                             "is neck=dict(type='GlobalAveragePooling') missing?")
        if features.shape[1] != self.in_channels:
            raise ValueError(f'{name} has in_channels={self.in_channels}, but backbone and neck give '
                             f'{features.shape[1]}; set model.head.in_channels={features.shape[1]}')
        return self.fc(features)  # (N, num_classes)


@HEADS.register_module()
class VisionTransformerClsHead(ClsHead):
    """One linear layer behind the class token, or with `hidden_dim` (in pre-training) two, and `act_cfg` between them.

    In: a tuple whose last one is [patch tokens, class token (N, in_channels)]. The other arguments: see `ClsHead`.
    """

    def __init__(self, num_classes: int, in_channels: int, hidden_dim: int | None = None, act_cfg: Cfg = TANH,
                 init_cfg: InitCfg = ZERO, **kwargs: Any) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        self._set_classes(num_classes, in_channels)
        self.hidden_dim = hidden_dim
        self.layers: Any = nn.Sequential()
        if hidden_dim is not None:
            self.layers.add_module('pre_logits', nn.Linear(in_channels, hidden_dim))
            self.layers.add_module('act', build_activation(act_cfg))
        self.layers.add_module('head', nn.Linear(hidden_dim or in_channels, num_classes))

    def init_own(self) -> None:
        if self.hidden_dim is not None:
            truncated_normal(self.layers.pre_logits.weight, std=math.sqrt(1 / self.in_channels))  # LeCun's
            nn.init.zeros_(self.layers.pre_logits.bias)

    def pre_logits(self, x: Features) -> Tensor:
        tokens = x[-1] if isinstance(x, tuple) else x
        if isinstance(tokens, Tensor):
            raise ValueError('VisionTransformerClsHead takes [patch tokens, class token], but got a tensor '
                             f'{tuple(tokens.shape)}; is model.backbone.output_cls_token=False?')
        _, cls_token = tokens
        return cls_token if self.hidden_dim is None else self.layers.act(self.layers.pre_logits(cls_token))

    def logits(self, x: Features) -> Tensor:
        return self.layers.head(self.pre_logits(x))  # (N, num_classes)


@HEADS.register_module()
class MultiLabelClsHead(ClsHead):
    """For several classes per image, or mixed labels: `gt_label` is (N, num_classes).

    A label of -1 ('difficult') counts as 1 in training.
    """

    def __init__(self, loss: Cfg = BINARY_CROSS_ENTROPY, init_cfg: InitCfg = None) -> None:
        super().__init__(loss, init_cfg=init_cfg)

    def loss(self, cls_score: Tensor, gt_label: Tensor, **kwargs: Any) -> dict[str, Any]:
        label = gt_label.type_as(cls_score).abs()
        return dict(loss=self.compute_loss(cls_score, label, avg_factor=len(cls_score), **kwargs))

    def simple_test(self, x: Features, sigmoid: bool = True, post_process: bool = True) -> Scores:  # type: ignore[override]
        """As in `ClsHead`, but a probability of its own for each class."""
        scores = self.logits(x)
        return self.post_process(scores.sigmoid() if sigmoid else scores, post_process)


@HEADS.register_module()
class MultiLabelLinearClsHead(MultiLabelClsHead, LinearClsHead):
    """`MultiLabelClsHead` behind one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, loss: Cfg = BINARY_CROSS_ENTROPY,
                 init_cfg: InitCfg = NORMAL) -> None:
        LinearClsHead.__init__(self, num_classes, in_channels, init_cfg, loss=loss)


class CSRAModule(nn.Module):
    """Class-specific residual attention: a mean over all positions, and `lam` times one that attends to each class.

    `temperature`: how narrowly it attends; 99 means to the highest position alone.
    """

    def __init__(self, num_classes: int, in_channels: int, temperature: int, lam: float) -> None:
        super().__init__()
        self.temperature, self.lam = temperature, lam
        self.head = nn.Conv2d(in_channels, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes)
        norm = self.head.weight.norm(dim=1, keepdim=True).transpose(0, 1)
        scores = (self.head(x) / norm).flatten(2)  # (N, num_classes, H * W)
        attention = (scores * self.temperature).softmax(dim=2)
        peak = scores.amax(dim=2) if self.temperature == 99 else (scores * attention).sum(dim=2)
        return scores.mean(dim=2) + self.lam * peak


@HEADS.register_module()
class CSRAClsHead(MultiLabelClsHead):
    """Residual attention for several classes per image (Zhu and Wu 2021, arXiv:2108.02456), without a neck before it.

    Args:
        num_heads: 1, 2, 4, 6 or 8 `CSRAModule`s, whose logits are added up.
        lam: weight of the attention. loss: see `ClsHead`.
    """

    temperature_settings = {1: (1, ), 2: (1, 99), 4: (1, 2, 4, 99), 6: (1, 2, 3, 4, 5, 99),
                            8: (1, 2, 3, 4, 5, 6, 7, 99)}

    def __init__(self, num_classes: int, in_channels: int, num_heads: int, lam: float,
                 loss: Cfg = BINARY_CROSS_ENTROPY, init_cfg: InitCfg = NORMAL) -> None:
        super().__init__(loss, init_cfg)
        if num_heads not in self.temperature_settings or lam <= 0:
            raise ValueError(f'CSRAClsHead got num_heads={num_heads} and lam={lam}; it has '
                             f'{", ".join(map(str, self.temperature_settings))} heads, and lam above 0')
        self._set_classes(num_classes, in_channels)
        self.csra_heads = nn.ModuleList(CSRAModule(num_classes, in_channels, temperature, lam)
                                        for temperature in self.temperature_settings[num_heads])

    def logits(self, x: Features) -> Tensor:
        features = self.pre_logits(x)
        if features.dim() != 4:
            raise ValueError(f'CSRAClsHead takes feature maps (N, {self.in_channels}, H, W), but got '
                             f'{tuple(features.shape)}; it stands behind a backbone without a neck')
        return torch.stack([head(features) for head in self.csra_heads]).sum(dim=0)

    def simple_test(self, x: Features, sigmoid: bool = False, post_process: bool = True) -> Scores:
        """As in `MultiLabelClsHead`, but logits by default: mmcls's published CF1 and OF1 count those above 0.5."""
        return super().simple_test(x, sigmoid, post_process)


@HEADS.register_module()
class EfficientFormerClsHead(ClsHead):
    """EfficientFormer's (arXiv:2206.01191): the mean of two linear layers, or one with `distillation=False`.

    The second was to learn from a teacher; without one, both learn from the labels.

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
