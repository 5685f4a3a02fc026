"""Every classification network of torchvision as a backbone.

In: images (N, 3, H, W). Out: a tuple: pooled features (N, feat_dim), or the nodes that were asked for.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...model_zoo import nearest
from ..builder import BACKBONES
from ..init import BaseModule, InitCfg


@BACKBONES.register_module()
class TorchvisionBackbone(BaseModule):
    """A torchvision model without its last linear layer, so that `LinearClsHead` follows without a neck.

    Args:
        model_name: as in `torchvision.models.list_models()`.
        weights: such as 'IMAGENET1K_V2', which torchvision fetches; None: random.
        return_nodes: instead of pooled features, the outputs of these layers, such as ['layer3', 'layer4'].
        kwargs: further arguments of the torchvision model.
    """

    def __init__(self, model_name: str, weights: str | None = None, return_nodes: Sequence[str] | None = None,
                 init_cfg: InitCfg = None, **kwargs: Any) -> None:
        from torchvision import models

        super().__init__(init_cfg)
        known = models.list_models(module=models)
        if model_name not in known:
            raise ValueError(f'torchvision has no classifier {model_name!r}; nearest: {nearest(model_name, known)}')
        self.model = models.get_model(model_name, weights=weights, **kwargs)
        self._is_init = weights is not None  # init_weights is not to touch what was loaded
        if return_nodes:
            from torchvision.models.feature_extraction import create_feature_extractor

            self.model = create_feature_extractor(self.model, list(return_nodes))
        else:
            self.feat_dim = _drop_classifier(self.model)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.model(x)
        return tuple(features.values()) if isinstance(features, dict) else (features,)


def _drop_classifier(model: nn.Module) -> int:
    """Replace the last linear layer, whatever its name, by the identity; returns how many features it got."""
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if not linear:
        raise ValueError(f'{type(model).__name__} has no linear layer at its end; '
                         'name the output you want with return_nodes=[...]')
    name, layer = linear.popitem()
    model.set_submodule(name, nn.Identity())
    return layer.in_features
