"""Images of a batch mixed with each other, and their labels with them: Mixup and CutMix, on whatever device they are.

In: `model.train_cfg.augments` and a normalised batch. Out: the mixed batch, labels float32 (N, num_classes).
"""
from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_probability
from ..registry import Registry, build_from_cfg

AUGMENTS = Registry('batch augment', scope='mmcls')
Box = tuple[int, int, int, int]  # top, bottom, left, right


@AUGMENTS.register_module()
class Identity:
    """Images as they are, labels as rows (N, num_classes).

    Args:
        num_classes: C. prob: of this augment among those of a list.
    """

    def __init__(self, num_classes: int, prob: float = 1.0) -> None:
        check_probability('prob', prob)
        self.num_classes, self.prob = num_classes, prob

    def __call__(self, img: Tensor, label: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Mix `img` (N, C, H, W), perhaps in place, and `label`, (N,) or rows already."""
        return img, rows(label, self.num_classes)


@AUGMENTS.register_module()
class BatchMixup(Identity):
    """Each image blended with another one, all of a batch by one Beta(alpha, alpha) share (arXiv:1710.09412)."""

    def __init__(self, alpha: float, num_classes: int, prob: float = 1.0) -> None:
        super().__init__(num_classes, prob)
        if alpha <= 0:
            raise ValueError(f'{type(self).__name__} got alpha={alpha}; it is above 0')
        self.alpha = alpha

    def __call__(self, img: Tensor, label: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        label, lam, order = rows(label, self.num_classes), rng.betavariate(self.alpha, self.alpha), shuffled(img, rng)
        return torch.lerp(img[order], img, lam), torch.lerp(label[order], label, lam)


@AUGMENTS.register_module()
class BatchCutMix(BatchMixup):
    """In each image the same rectangle from another one; labels by share of the area (arXiv:1905.04899).

    Args:
        cutmix_minmax: (least, most) share of each side that the rectangle has, in place of alpha's.
        correct_lam: labels by what of the rectangle lies within the image; else by the share that was drawn.
    """

    def __init__(self, alpha: float, num_classes: int, prob: float = 1.0, cutmix_minmax: Sequence[float] | None = None,
                 correct_lam: bool = True) -> None:
        super().__init__(alpha, num_classes, prob)
        if cutmix_minmax is not None and (len(cutmix_minmax) != 2 or not 0 <= cutmix_minmax[0] < cutmix_minmax[1] <= 1):
            raise ValueError(f'BatchCutMix got cutmix_minmax={cutmix_minmax}; it is (least, most), shares of a side')
        self.cutmix_minmax, self.correct_lam = cutmix_minmax, correct_lam

    def box(self, height: int, width: int, lam: float, rng: random.Random) -> Box:
        """The rectangle; with `lam`'s area it may lie partly outside, and is cut off there."""
        if self.cutmix_minmax is not None:
            least, most = self.cutmix_minmax
            if int(min(height, width) * least) == int(min(height, width) * most):
                raise ValueError(f'images of {height} x {width} pixels are too small for a rectangle of '
                                 f'cutmix_minmax={self.cutmix_minmax}')
            h, w = (rng.randrange(int(side * least), int(side * most)) for side in (height, width))
            top, left = rng.randrange(height - h), rng.randrange(width - w)
            return top, top + h, left, left + w
        h, w = (int(side * (1 - lam) ** 0.5) for side in (height, width))
        y, x = rng.randrange(height), rng.randrange(width)
        return max(y - h // 2, 0), min(y + h // 2, height), max(x - w // 2, 0), min(x + w // 2, width)

    def __call__(self, img: Tensor, label: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        label, lam, order = rows(label, self.num_classes), rng.betavariate(self.alpha, self.alpha), shuffled(img, rng)
        height, width = img.shape[-2:]
        top, bottom, left, right = self.box(height, width, lam, rng)
        if self.correct_lam or self.cutmix_minmax is not None:
            lam = 1 - (bottom - top) * (right - left) / (height * width)
        img[:, :, top:bottom, left:right] = img[order, :, top:bottom, left:right]
        return img, torch.lerp(label[order], label, lam)


class BatchAugments:
    """One augment or a list, of which each batch gets one by its `prob`; what the sum lacks of 1 is `Identity`'s.

    Raises:
        ValueError: probabilities over 1, or, with an `Identity` in the list, under it.
        KeyError: an unknown type.
    """

    def __init__(self, augments: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        configs = [augments] if isinstance(augments, dict) else augments
        self.augments: list[Identity] = [build_from_cfg(config, AUGMENTS) for config in configs]
        total = sum(augment.prob for augment in self.augments)
        listed = any(type(augment) is Identity for augment in self.augments)
        if total > 1 + 1e-9 or listed and total < 1 - 1e-9:
            raise ValueError(f'the prob of model.train_cfg.augments add up to {total:g}; they should be '
                             f'{"1, as Identity is one of them" if listed else "at most 1"}')
        if total < 1 - 1e-9:
            self.augments.append(Identity(self.augments[0].num_classes, 1 - total))

    def __call__(self, img: Tensor, label: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        augment = rng.choices(self.augments, [augment.prob for augment in self.augments])[0]
        return augment(img, label, rng)


def rows(label: Tensor, num_classes: int) -> Tensor:
    """Class indices (N,) as float32 rows (N, num_classes); what is rows already only becomes float32."""
    if label.dim() > 1:
        return label.float()
    if label.device.type == 'cpu' and len(label) and not 0 <= int(label.min()) <= int(label.max()) < num_classes:
        raise ValueError(f'a label is outside 0..{num_classes - 1} ({label.min()} to {label.max()} in the batch); set '
                         'num_classes in model.train_cfg.augments')
    row = torch.zeros(len(label), num_classes, device=label.device)  # F.one_hot would wait for it
    return row.scatter_(1, label[:, None], 1.)


def shuffled(img: Tensor, rng: random.Random) -> Tensor:
    """A random order of the batch, on its device, without waiting for it."""
    order = torch.tensor(rng.sample(range(len(img)), len(img)), pin_memory=img.device.type == 'cuda')
    return order.to(img.device, non_blocking=True)
