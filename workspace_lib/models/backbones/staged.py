"""What the convolutional backbones share: they run in stages, return some stages' outputs, and may freeze the first.

In: images (N, C, H, W). Out: a tuple with the output of each stage in `out_indices`.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..init import BaseModule


class StagedBackbone(BaseModule):
    """A stem, then stages. A network says which layers those are, and ends its constructor with `freeze`."""

    out_indices: tuple[int, ...]
    frozen_stages = -1
    norm_eval = False  # in training too, normalise by the running statistics, and leave them alone

    def stem_layers(self) -> list[nn.Module]:
        return []

    def stage_layers(self) -> list[list[nn.Module]]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for layer in self.stem_layers():
            x = layer(x)
        outs = []
        for i, layers in enumerate(self.stage_layers()):
            for layer in layers:
                x = layer(x)
            if i in self.out_indices:
                outs.append(self.output(i, x))
        return tuple(outs)

    def output(self, stage: int, x: Tensor) -> Tensor:
        """What is returned of the stage's feature map."""
        return x

    def freeze(self, frozen_stages: int) -> None:
        """Leave the stem (from 0) and so many stages as they are: weights and statistics. -1: train all."""
        num_stages = len(self.stage_layers())
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'{type(self).__name__} got frozen_stages={frozen_stages}, '
                             f'but has only {num_stages} stages')
        self.frozen_stages = frozen_stages
        if frozen_stages >= 0:
            for layer in chain(self.stem_layers(), *self.stage_layers()[:frozen_stages]):
                layer.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> StagedBackbone:
        super().train(mode)
        self.freeze(self.frozen_stages)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def chosen_stages(backbone: nn.Module, out_indices: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """`out_indices` from 0, where a config may count from the end: (-1, ) is the last of `num_stages`."""
    listed = (out_indices, ) if isinstance(out_indices, int) else out_indices
    if isinstance(listed, Sequence) and listed and all(-num_stages <= i < num_stages for i in listed):
        return tuple(i % num_stages for i in listed)
    shown = tuple(listed) if isinstance(listed, Sequence) else listed
    raise ValueError(f'{type(backbone).__name__} got out_indices={shown}; its stages are 0 to {num_stages - 1}')


def chosen_arch(backbone: nn.Module, arch: str | dict[str, Any], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One of the `known` by its name, or a dict with the same keys as they."""
    name, keys = type(backbone).__name__, list(next(iter(known.values())))
    if isinstance(arch, str):
        if arch.lower() not in known:
            raise ValueError(f'{name} got arch={arch!r}; known: {", ".join(known)}, or a dict of {", ".join(keys)}')
        return known[arch.lower()]
    if lacking := [key for key in keys if key not in arch]:
        raise ValueError(f'{name} got arch={arch}; it lacks {", ".join(lacking)}')
    return arch
