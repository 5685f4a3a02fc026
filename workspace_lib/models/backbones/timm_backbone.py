"""Every network of timm (github.com/huggingface/pytorch-image-models) as a backbone.

In: images (N, in_channels, H, W). Out: a tuple of the last feature map, or with `features_only` of several.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor

from ...model_zoo import nearest
from ..builder import BACKBONES
from ..init import BaseModule, InitCfg
from ..layers import norm_layer


@BACKBONES.register_module()
class TIMMBackbone(BaseModule):
    """A timm model without its classifier.

    Args:
        model_name: as in `timm.list_models()`.
        features_only: return the feature maps of several resolutions.
        pretrained: let timm fetch its weights. checkpoint_path: or load them from this file of timm's.
        in_channels: of the image.
        kwargs: further arguments of the timm model.
    """

    def __init__(self, model_name: str, features_only: bool = False, pretrained: bool = False,
                 checkpoint_path: str = '', in_channels: int = 3, init_cfg: InitCfg = None, **kwargs: Any) -> None:
        if not isinstance(pretrained, bool):
            raise TypeError(f'TIMMBackbone got pretrained={pretrained!r}; it is True or False, '
                            'the path of a file goes into checkpoint_path')
        super().__init__(init_cfg)
        timm = _import_timm(model_name)
        if isinstance(kwargs.get('norm_layer'), str):
            kwargs['norm_layer'] = norm_layer(kwargs['norm_layer'])[0]
        self.timm_model = timm.create_model(model_name, features_only=features_only, pretrained=pretrained,
                                            in_chans=in_channels, checkpoint_path=checkpoint_path, **kwargs)
        if hasattr(self.timm_model, 'reset_classifier'):
            self.timm_model.reset_classifier(0, '')
        self._is_init = bool(pretrained or checkpoint_path)  # init_weights is not to touch what was loaded

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.timm_model(x)
        return tuple(features) if isinstance(features, (list, tuple)) else (features,)


def _import_timm(model_name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("TIMMBackbone needs timm; install it: pip install timm") from error
    if ':' not in model_name and not timm.is_model(model_name):  # 'hf-hub:...' is timm's to resolve
        raise ValueError(f'timm has no model {model_name!r}; nearest: {nearest(model_name, timm.list_models())}')
    return timm
