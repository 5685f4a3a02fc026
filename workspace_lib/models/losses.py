"""How wrong the logits are.

In: logits (N, C), labels: class indices (N,) or one value per class (N, C). Out: a scalar, or (N,) unreduced.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_known
from .builder import LOSSES

REDUCTIONS = ('none', 'mean', 'sum')


def reduce_loss(loss: Tensor, weight: Tensor | None = None, reduction: str = 'mean',
                avg_factor: float | None = None) -> Tensor:
    """Weight each loss, then take the mean, the sum, or neither ('none').

    Args:
        weight: broadcast against `loss`.
        avg_factor: what the mean divides the sum by, in place of the number of losses.
    """
    if weight is not None:
        loss = loss * weight.float()
    if reduction == 'none':
        return loss
    if reduction == 'sum':
        if avg_factor is not None:
            raise ValueError('avg_factor can not be used with reduction="sum": a sum divides by nothing; '
                             'a head always gives avg_factor, so its loss takes "mean" or "none"')
        return loss.sum()
    return loss.mean() if avg_factor is None else loss.sum() / avg_factor


def cross_entropy(logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """-log softmax(logits)[label] per sample, (N,); for probabilities (N, C) as label, the expected value."""
    if label.dim() < logits.dim():
        return F.cross_entropy(logits, label, weight=class_weight, reduction='none')
    per_class = -label * F.log_softmax(logits, dim=-1)  # (N, C)
    return (per_class if class_weight is None else per_class * class_weight).sum(dim=-1)


def binary_cross_entropy(logits: Tensor, label: Tensor, class_weight: Tensor | None = None,
                         pos_weight: Tensor | None = None) -> Tensor:
    """One yes-or-no question per class, (N, C); label in 0..1."""
    _check_shapes(logits, label)
    label = label if label.is_floating_point() else label.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, label, class_weight, pos_weight=pos_weight, reduction='none')


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """Class indices (N,) or (N, 1) -> (N, C); labels that hold a value per class stay as they are."""
    if label.dim() == 1 or label.shape[1] == 1 < num_classes:
        return F.one_hot(label.flatten().long(), num_classes)
    return label


def per_class(logits: Tensor, label: Tensor) -> Tensor:
    """Labels (N, C) in 0..1, or class indices (N,), as (N, C) of the logits' type."""
    label = one_hot(label, logits.shape[1]).type_as(logits)
    _check_shapes(logits, label)
    return label


def _check_shapes(logits: Tensor, label: Tensor) -> None:
    if label.shape != logits.shape:
        raise ValueError('this loss asks a question per class (use_sigmoid=True): label must have the logits\' shape, '
                         f'{tuple(logits.shape)}, but has {tuple(label.shape)}')


class Loss(nn.Module):
    """What the losses share: a value for each sample, or each class of each, weighted and reduced."""

    def __init__(self, reduction: str, loss_weight: float) -> None:
        super().__init__()
        check_known('reduction', reduction, REDUCTIONS, self)
        self.reduction, self.loss_weight = reduction, loss_weight

    def each(self, cls_score: Tensor, label: Tensor) -> Tensor:
        """(N,) or (N, C), from logits (N, C)."""
        raise NotImplementedError

    def forward(self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None,
                avg_factor: float | None = None, reduction_override: str | None = None) -> Tensor:
        """`weight`: (N,), one factor per sample. `avg_factor`, `reduction_override`: see `reduce_loss`."""
        reduction = reduction_override or self.reduction
        check_known('reduction', reduction, REDUCTIONS, self)
        loss = self.each(cls_score, label)
        if weight is not None and loss.dim() > 1:
            weight = weight.reshape(-1, 1)
        return self.loss_weight * reduce_loss(loss, weight, reduction, avg_factor)


@LOSSES.register_module()
class CrossEntropyLoss(Loss):
    """Cross entropy over classes, or with `use_sigmoid` over each class by itself.

    Args:
        use_sigmoid: labels are (N, C) in 0..1 and every class is a question of its own.
        use_soft: labels are probabilities (N, C). They are recognised without it; configs say it.
        reduction: 'mean', 'sum' or 'none'. loss_weight: a factor on the result.
        class_weight: C factors on the classes. pos_weight: with `use_sigmoid`, C factors on the positives.
    """

    def __init__(self, use_sigmoid: bool = False, use_soft: bool = False, reduction: str = 'mean',
                 loss_weight: float = 1.0, class_weight: Sequence[float] | None = None,
                 pos_weight: Sequence[float] | None = None) -> None:
        super().__init__(reduction, loss_weight)
        if use_sigmoid and use_soft:
            raise ValueError('CrossEntropyLoss got use_sigmoid=True and use_soft=True; choose one')
        self.use_sigmoid, self.use_soft = use_sigmoid, use_soft
        self.class_weight, self.pos_weight = class_weight, pos_weight

    def each(self, cls_score: Tensor, label: Tensor) -> Tensor:
        class_weight = None if self.class_weight is None else cls_score.new_tensor(self.class_weight)
        if not self.use_sigmoid:
            return cross_entropy(cls_score, label, class_weight)
        pos_weight = None if self.pos_weight is None else cls_score.new_tensor(self.pos_weight)
        return binary_cross_entropy(cls_score, label, class_weight, pos_weight)


@LOSSES.register_module()
class LabelSmoothLoss(Loss):
    """Cross entropy against labels that are less than certain (Szegedy et al. 2015, arXiv:1512.00567).

    Args:
        label_smooth_val: epsilon, in [0, 1).
        num_classes: K; default the number of logits.
        mode: what takes the place of the one-hot label y:
            'original':       (1 - epsilon) * y + epsilon / K
            'classy_vision':  (y + epsilon / K) / (1 + epsilon)
            'multi_label':    1 - epsilon where y > 0, epsilon elsewhere, and a sigmoid per class
        reduction, loss_weight: as in `CrossEntropyLoss`.
    """

    def __init__(self, label_smooth_val: float, num_classes: int | None = None, mode: str = 'original',
                 reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(reduction, loss_weight)
        if not isinstance(label_smooth_val, (int, float)) or not 0 <= label_smooth_val < 1:
            raise ValueError(f'LabelSmoothLoss got label_smooth_val={label_smooth_val!r}; it lies in [0, 1)')
        if mode not in ('original', 'classy_vision', 'multi_label'):
            raise ValueError(f'LabelSmoothLoss got mode={mode!r}; known: original, classy_vision, multi_label')
        self.label_smooth_val, self.num_classes, self.mode = label_smooth_val, num_classes, mode

    def smooth_label(self, label: Tensor, num_classes: int) -> Tensor:
        """(N,), (N, 1) or (N, K) -> (N, K) float."""
        label = one_hot(label, num_classes)
        eps = self.label_smooth_val
        if self.mode == 'multi_label':
            return torch.where(label > 0, 1 - eps, eps)
        if self.mode == 'classy_vision':
            eps = eps / (1 + eps)
        return label.float() * (1 - eps) + eps / num_classes

    def each(self, cls_score: Tensor, label: Tensor) -> Tensor:
        num_classes = cls_score.shape[1]
        if self.num_classes not in (None, num_classes):
            raise ValueError(f'LabelSmoothLoss has num_classes={self.num_classes} (model.head.loss.num_classes), '
                             f'but there are {num_classes} logits (model.head.num_classes)')
        compare = binary_cross_entropy if self.mode == 'multi_label' else cross_entropy
        return compare(cls_score, self.smooth_label(label, num_classes))


@LOSSES.register_module()
class FocalLoss(Loss):
    """Sigmoid cross entropy that counts less what is already right (Lin et al. 2017, arXiv:1708.02002).

    Args:
        gamma: how much less, (1 - p) ** gamma. alpha: weight of the positives; the negatives have 1 - alpha.
        reduction, loss_weight: as in `CrossEntropyLoss`.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, reduction: str = 'mean',
                 loss_weight: float = 1.0) -> None:
        super().__init__(reduction, loss_weight)
        self.gamma, self.alpha = gamma, alpha

    def each(self, cls_score: Tensor, label: Tensor) -> Tensor:
        label = per_class(cls_score, label)
        probability = cls_score.sigmoid()
        wrong = (1 - probability) * label + probability * (1 - label)
        factor = (self.alpha * label + (1 - self.alpha) * (1 - label)) * wrong.pow(self.gamma)
        return binary_cross_entropy(cls_score, label) * factor


@LOSSES.register_module()
class AsymmetricLoss(Loss):
    """Focal loss with a gamma of their own for positives and negatives (Ridnik et al. 2021, arXiv:2009.14119).

    Args:
        gamma_pos, gamma_neg: see `FocalLoss`. clip: negatives less probable than this do not count; None: all do.
        use_sigmoid: a probability of its own for each class; False: a softmax over them.
        eps: the least probability that the logarithm is taken of.
        reduction, loss_weight: as in `CrossEntropyLoss`.
    """

    def __init__(self, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float | None = 0.05,
                 reduction: str = 'mean', loss_weight: float = 1.0, use_sigmoid: bool = True,
                 eps: float = 1e-8) -> None:
        super().__init__(reduction, loss_weight)
        self.gamma_pos, self.gamma_neg, self.clip = gamma_pos, gamma_neg, clip or 0.
        self.use_sigmoid, self.eps = use_sigmoid, eps

    def each(self, cls_score: Tensor, label: Tensor) -> Tensor:
        label = per_class(cls_score, label)
        probability = cls_score.sigmoid() if self.use_sigmoid else cls_score.softmax(dim=-1)
        right = (1 - probability + self.clip).clamp(max=1) * (1 - label) + probability * label
        factor = (1 - right).pow(self.gamma_pos * label + self.gamma_neg * (1 - label))
        return -right.clamp(min=self.eps).log() * factor
