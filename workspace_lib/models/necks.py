"""Between backbone and head: from feature maps to one vector per image."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .builder import NECKS

_POOLS: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


@NECKS.register_module()
class GlobalAveragePooling(nn.Module):
    """Mean over all positions: (N, C, H, W) -> (N, C), for one tensor or for each of a tuple.

    Args:
        dim: number of axes behind the channels: 1 for (N, C, L), 2 for images, 3 for volumes.
    """

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        if dim not in _POOLS:
            raise ValueError(f'GlobalAveragePooling got dim={dim}; known: 1, 2, 3')
        self.gap = _POOLS[dim](1)

    def forward(self, inputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(inputs, tuple):
            return tuple(self.gap(x).flatten(1) for x in inputs)
        if isinstance(inputs, Tensor):
            return self.gap(inputs).flatten(1)
        raise TypeError('GlobalAveragePooling takes a tensor or a tuple of tensors, '
                        f'but got {type(inputs).__name__}')
