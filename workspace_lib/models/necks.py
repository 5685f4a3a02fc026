"""Between backbone and head: from feature maps to one vector per image."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_known
from .builder import NECKS

Features = Tensor | tuple[Tensor, ...]
_POOLS: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


@NECKS.register_module()
class GlobalAveragePooling(nn.Module):
    """Mean over all positions: (N, C, H, W) -> (N, C), for one tensor or for each of a tuple.

    Args:
        dim: number of axes behind the channels: 1 for (N, C, L), 2 for images, 3 for volumes.
    """

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        check_known('dim', dim, _POOLS, self)
        self.gap = _POOLS[dim](1)

    def forward(self, inputs: Features) -> Features:
        return _for_each(self, lambda x: self.gap(x).flatten(1), inputs)


@NECKS.register_module()
class GeneralizedMeanPooling(nn.Module):
    """mean(x ** p) ** (1 / p) over all positions, with p learned: (N, C, H, W) -> (N, C) (arXiv:1711.02512).

    Args:
        p: at the start; 1 is the mean, and the larger, the nearer to the maximum.
        eps: the least value that features are raised to, unless `clamp=False`.
    """

    def __init__(self, p: float = 3., eps: float = 1e-6, clamp: bool = True) -> None:
        super().__init__()
        if p < 1:
            raise ValueError(f'GeneralizedMeanPooling got p={p}; it is 1 or more')
        self.p = nn.Parameter(torch.ones(1) * p)
        self.eps, self.clamp = eps, clamp

    def forward(self, inputs: Features) -> Features:
        return _for_each(self, self._pool, inputs)

    def _pool(self, x: Tensor) -> Tensor:
        x = x.clamp(min=self.eps) if self.clamp else x
        return x.pow(self.p).mean((-2, -1)).pow(1 / self.p)


def _for_each(neck: nn.Module, pool: Callable[[Tensor], Tensor], inputs: Features) -> Features:
    if isinstance(inputs, tuple):
        return tuple(pool(x) for x in inputs)
    if isinstance(inputs, Tensor):
        return pool(inputs)
    raise TypeError(f'{type(neck).__name__} takes a tensor or a tuple of tensors, but got {type(inputs).__name__}')
