"""Weights before training: what a config's `init_cfg` means.

In: a module and `dict(type='Kaiming', layer='Conv2d')`, or several. Out: its parameters, filled in place.
"""
from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..arguments import check_known

InitCfg = dict[str, Any] | list[dict[str, Any]] | None


def _by_distribution(name: str) -> Callable[..., Any]:
    def fill(weight: torch.Tensor, distribution: str = 'normal', **options: Any) -> torch.Tensor:
        check_known('distribution', distribution, ('normal', 'uniform'), 'init_cfg')
        return getattr(nn.init, f'{name}_{distribution}_')(weight, **options)
    return fill


def truncated_normal(weight: torch.Tensor, mean: float = 0., std: float = 1., a: float = -2.,
                     b: float = 2.) -> torch.Tensor:
    """Normal within a..b, by inverting its distribution: mmcv's numbers from a seed; newer versions of torch differ.

    One draw in 17 million is exactly -1, whose inverse is infinite. Here it becomes -6 std; in mmcv a weight of -2.
    """
    low, high = (math.erf((bound - mean) / std / math.sqrt(2)) for bound in (a, b))
    with torch.no_grad():
        weight.uniform_(low, high).erfinv_().mul_(std * math.sqrt(2)).add_(mean)
        return weight.clamp_(max(a, mean - 6 * std), min(b, mean + 6 * std))


_xavier, _kaiming = _by_distribution('xavier'), _by_distribution('kaiming')

# type -> (what fills the weight, its defaults)
INITIALIZERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    'Constant': (nn.init.constant_, {}),
    'Xavier': (_xavier, {}),
    'Normal': (nn.init.normal_, {}),
    'TruncNormal': (truncated_normal, {}),
    'Uniform': (nn.init.uniform_, {}),
    'Kaiming': (_kaiming, dict(mode='fan_out', nonlinearity='relu')),
    'Caffe2Xavier': (_kaiming, dict(a=1, mode='fan_in', nonlinearity='leaky_relu', distribution='uniform')),
}
# How the classic convolutional networks start.
KAIMING: InitCfg = [
    dict(type='Kaiming', layer=['Conv2d']),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
]


class BaseModule(nn.Module):
    """A module that knows how its weights begin.

    Args:
        init_cfg: applied to this module by `init_weights`, before the `init_weights` of its children, which
            thereby have the last word; unless it is `Pretrained`, which nothing may overwrite.
    """

    def __init__(self, init_cfg: InitCfg = None) -> None:
        super().__init__()
        self.init_cfg = copy.deepcopy(init_cfg)
        self._is_init = False

    def init_weights(self) -> None:
        """Fill the parameters in place, once; a second call warns and changes nothing."""
        if self._is_init:
            warnings.warn(f'init_weights of {type(self).__name__} ran before; the weights stay', stacklevel=2)
            return
        self._is_init = True
        if self.init_cfg:
            initialize(self, self.init_cfg)
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        for child in self.children():
            init_weights = getattr(child, 'init_weights', None)
            if init_weights and not getattr(child, '_is_init', False):
                init_weights()
        self.init_own()

    def init_own(self) -> None:
        """What a class fills by itself, after its `init_cfg` and its children; not what was loaded."""


class Sequential(BaseModule, nn.Sequential):
    """`nn.Sequential` whose members' `init_weights` are called."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.extend(modules)


def initialize(module: nn.Module, init_cfg: InitCfg) -> None:
    """Apply one rule or several, in order.

    A rule is a `type` of INITIALIZERS (or 'Pretrained') with its options, and perhaps

    - `bias` (default 0), or `bias_prob`, the probability that a sigmoid makes of the bias;
    - `layer`: the classes it applies to, by name or by the name of a direct base (`_BatchNorm`);
    - `override`: a rule, or several, for the submodule called `name`; without a `type`, the same rule.
    """
    for cfg in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        rule = dict(cfg)
        overrides = rule.pop('override', [])
        layers = rule.pop('layer', [])
        _apply(module, rule, [layers] if isinstance(layers, str) else layers)
        for override in [overrides] if isinstance(overrides, dict) else overrides:
            _apply_override(module, dict(override), rule)


def _apply_override(module: nn.Module, override: dict[str, Any], rule: dict[str, Any]) -> None:
    if 'name' not in override:
        raise ValueError(f"init_cfg: an override needs the 'name' of a submodule, but got {override}")
    name = override.pop('name')
    if not hasattr(module, name):
        known = ', '.join(child for child, _ in module.named_children())
        raise ValueError(f'init_cfg overrides {name!r}, but {type(module).__name__} has only {known}')
    if override and 'type' not in override:
        raise ValueError(f"init_cfg: the override of {name!r} needs a 'type' beside {', '.join(override)}")
    _apply(getattr(module, name), override or rule, None)


def _apply(module: nn.Module, rule: dict[str, Any], layers: list[str] | None) -> None:
    """Fill every submodule whose class is listed; `layers=None` means all of them."""
    options = dict(rule)
    kind = options.pop('type')
    if kind == 'Pretrained':
        return load_pretrained(module, **options)
    if kind not in INITIALIZERS:
        raise ValueError(f'init_cfg got type={kind!r}; known: {", ".join(INITIALIZERS)}, Pretrained')
    fill, defaults = INITIALIZERS[kind]
    bias = options.pop('bias', 0.)
    prior = options.pop('bias_prob', None)
    if prior is not None:  # the bias at which sigmoid(bias) == prior
        bias = math.log(prior / (1 - prior))

    def fill_one(child: nn.Module) -> None:
        names = {cls.__name__ for cls in (type(child), *type(child).__bases__)}
        if layers is not None and names.isdisjoint(layers):
            return
        if getattr(child, 'weight', None) is not None:
            fill(child.weight, **{**defaults, **options})
        if getattr(child, 'bias', None) is not None:
            nn.init.constant_(child.bias, bias)  # type: ignore[arg-type]

    module.apply(fill_one)  # children first: so one seed gives the weights that mmcv's initializers give


def load_pretrained(module: nn.Module, checkpoint: str, prefix: str | None = None,
                    map_location: str = 'cpu') -> None:
    """Start from the weights in a file.

    Args:
        checkpoint: a path or a `packaged://` name, as `workspace_lib.checkpoint` understands it.
        prefix: the part of that model to take, such as 'backbone' when `module` is a backbone.
    """
    from workspace_lib.checkpoint import load_checkpoint

    load_checkpoint(module, checkpoint, map_location=map_location, prefix=prefix or '')
