"""Optimizers with rules per parameter; the schedules of their learning rates stand in `schedules`.

In: a model and `cfg.optimizer`. Out: a torch optimizer.
"""
from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .config import place
from .lamb import Lamb as Lamb
from .registry import OPTIMIZER_BUILDERS, OPTIMIZERS
from .schedules import hint

_log = logging.getLogger(__name__)
_FUSED = ('SGD', 'Adam', 'AdamW')  # what torch computes in one kernel for all parameters, loss scaling included

for _class in vars(torch.optim).values():
    if inspect.isclass(_class) and torch.optim.Optimizer in _class.__mro__[1:] and _class.__name__ not in OPTIMIZERS:
        OPTIMIZERS.register_module(module=_class)


def build_optimizer(model: nn.Module, cfg: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that `cfg` describes, over the parameters of `model`.

    Args:
        cfg: `type` (a class of torch.optim, or a registered one), its arguments, and optionally
            `paramwise_cfg` (see `DefaultOptimizerConstructor`) and `constructor` (the name of another one).
            Where all parameters are on a GPU, SGD, Adam and AdamW are `fused` unless it says `fused` or `foreach`.

    Raises:
        KeyError: unknown `type` or `constructor`.
        TypeError: unknown argument or key of `paramwise_cfg`.
    """
    if not isinstance(cfg, dict):
        raise TypeError(f"optimizer must be a dict such as dict(type='SGD', lr=0.1), but got {cfg!r}")
    optimizer_cfg = cfg.copy()
    if cfg.get('type') in _FUSED and 'foreach' not in cfg and all(param.is_cuda for param in model.parameters()):
        optimizer_cfg.setdefault('fused', True)
    constructor = OPTIMIZER_BUILDERS.build(dict(
        type=optimizer_cfg.pop('constructor', 'DefaultOptimizerConstructor'),
        paramwise_cfg=optimizer_cfg.pop('paramwise_cfg', None),
        optimizer_cfg=optimizer_cfg))
    optimizer = constructor(model)
    optimizer.register_load_state_dict_pre_hook(_keep_kernels)
    return optimizer


def _keep_kernels(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """How a step is computed is a matter of this machine, not of that which saved."""
    own = {key: optimizer.defaults[key] for key in ('fused', 'foreach') if key in optimizer.defaults}
    return {**saved, 'param_groups': [{**group, **own} for group in saved['param_groups']]}


PARAMWISE_KEYS = ('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult',
                  'dcn_offset_lr_mult', 'bypass_duplicate')
CUSTOM_FACTORS = ('lr_mult', 'decay_mult')


@OPTIMIZER_BUILDERS.register_module()
class DefaultOptimizerConstructor:
    """Parameter groups by rule, with the grammar of mmcv 1.x.

    Args:
        optimizer_cfg: `type` and arguments.
        paramwise_cfg: factors on its `lr` and `weight_decay`:
            `custom_keys`: {part of a name: dict(lr_mult, decay_mult)}. The longest that `.name` contains is
            taken (of equal length the first by alphabet), and then no other rule.
            `bias_lr_mult`: of biases, those of norms excepted.
            `norm_decay_mult`: of weight and bias of norms; else `dwconv_decay_mult`: of those of depthwise
            Conv2d; else `bias_decay_mult`: of biases.
            `bypass_duplicate`: skip a parameter that is met a second time; without it that is an error.
            `dcn_offset_lr_mult`: does nothing, as no model here has deformable convolutions.

    Parameters of equal settings share a group, where mmcv makes one of each: the numbers are the same, and a
    step on a GPU starts its kernels once per group. The optimizer loads the states of either layout.
    """

    def __init__(self, optimizer_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.optimizer_cfg = optimizer_cfg
        self.paramwise_cfg = {} if paramwise_cfg is None else paramwise_cfg
        self.base_lr = optimizer_cfg.get('lr')
        self.base_wd = optimizer_cfg.get('weight_decay')
        self._check_keys(self.paramwise_cfg, 'paramwise_cfg', PARAMWISE_KEYS)
        self.custom_keys: dict[str, Any] = self.paramwise_cfg.get('custom_keys', {})
        self._check_keys(self.custom_keys, 'custom_keys', self.custom_keys)
        for key, factors in self.custom_keys.items():
            self._check_keys(factors, f'custom_keys[{key!r}]', CUSTOM_FACTORS)
        self._sorted_keys = sorted(self.custom_keys, key=lambda key: (-len(key), key))

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        model = getattr(model, 'module', model)
        if not self.paramwise_cfg:
            return OPTIMIZERS.build(self.optimizer_cfg, default_args=dict(params=model.parameters()))
        single: list[dict[str, Any]] = []
        self.add_params(single, model)
        groups, order = self._merge(single)
        optimizer = OPTIMIZERS.build(self.optimizer_cfg, default_args=dict(params=groups))
        _load_either_layout(optimizer, order)
        self._report_idle_keys(model)
        return optimizer

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '') -> None:
        """Append one group for each parameter of `module` and its children; made to be overridden."""
        owners: dict[int, str] = {}
        for path, child in _walk(module, prefix):
            for name, param in child.named_parameters(recurse=False):
                full_name = f'{path}.{name}'
                first = owners.setdefault(id(param), full_name)
                if first != full_name:
                    self._meet_again(full_name, first)
                    continue
                settings = self._settings(child, name, full_name) if param.requires_grad else {}
                params.append(dict(params=[param], **settings))

    def _settings(self, module: nn.Module, name: str, full_name: str) -> dict[str, float]:
        for key in self._sorted_keys:
            if key in full_name:
                return self._multiplied(**self.custom_keys[key])
        factor, is_bias = self.paramwise_cfg.get, name == 'bias'
        is_norm = isinstance(module, _BatchNorm | _InstanceNorm | nn.GroupNorm | nn.LayerNorm)
        lr_mult = factor('bias_lr_mult', 1.) if is_bias and not is_norm else 1.
        if is_norm:
            return self._multiplied(lr_mult, factor('norm_decay_mult', 1.))
        if isinstance(module, nn.Conv2d) and module.in_channels == module.groups:
            return self._multiplied(lr_mult, factor('dwconv_decay_mult', 1.))
        return self._multiplied(lr_mult, factor('bias_decay_mult', 1.) if is_bias else 1.)

    def _multiplied(self, lr_mult: float = 1., decay_mult: float = 1.) -> dict[str, float]:
        settings = dict(lr=(self.base_lr, lr_mult), weight_decay=(self.base_wd, decay_mult))
        return {key: base * mult for key, (base, mult) in settings.items() if base is not None}

    def _merge(self, single: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
        """Groups of equal settings, and for each parameter in their order its place among `single`."""
        defaults: dict[str, Any] = {key: value for key, value in self.optimizer_cfg.items()
                                    if key in ('lr', 'weight_decay')}
        merged: dict[str, dict[str, Any]] = {}
        places: dict[str, list[int]] = {}
        counter = itertools.count()
        for group in single:
            settings: dict[str, Any] = {**defaults, **group, 'params': []}
            key = repr(sorted(settings.items()))
            merged.setdefault(key, settings)['params'].extend(group['params'])
            places.setdefault(key, []).extend(next(counter) for _ in group['params'])
        return list(merged.values()), [*itertools.chain(*places.values())]

    def _meet_again(self, name: str, first: str) -> None:
        if not self.paramwise_cfg.get('bypass_duplicate', False):
            raise ValueError(f'parameter {name} is also {first}; set paramwise_cfg.bypass_duplicate=True to '
                             'give it the settings of the latter')
        _log.warning('parameter %s is also %s; it gets the settings of the latter', name, first)

    def _report_idle_keys(self, model: nn.Module) -> None:
        names = [f'.{name}' for name, _ in model.named_parameters(remove_duplicate=False)]
        idle = [key for key in self.custom_keys if not any(key in name for name in names)]
        if idle:
            _log.info('paramwise_cfg.custom_keys that match no parameter: %s', ', '.join(idle))

    def _check_keys(self, cfg: Any, name: str, known: Iterable[str]) -> None:
        if not isinstance(cfg, dict):
            raise TypeError(f'{name} must be a dict, but got {cfg!r}')
        for key in cfg:
            if key in ('dcn_offset_lr_mult', '_delete', '_delete_'):
                _log.warning('%s.%s is ignored%s', name, key, place(cfg, key))
            elif key not in known:
                raise TypeError(f'{name} has no key {key!r}; {hint(key, known)}{place(cfg, key)}')
            base = {'lr_mult': 'lr', 'decay_mult': 'weight_decay'}.get('_'.join(key.split('_')[-2:]))
            if base and self.optimizer_cfg.get(base) is None:
                raise ValueError(f'{key} is a factor on optimizer.{base}, which is not set{place(cfg, key)}')


def _walk(module: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """(path, module), parents first; a module shared by two parents comes twice."""
    yield prefix, module
    for name, child in module.named_children():
        yield from _walk(child, f'{prefix}.{name}' if prefix else name)


def _load_either_layout(optimizer: torch.optim.Optimizer, order: Sequence[int]) -> None:
    """Let `load_state_dict` also accept one group per parameter, in the model's order, as mmcv saves them."""

    def regroup(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any] | None:
        if len(saved['param_groups']) != len(order) or len(optimizer.param_groups) == len(order):
            return None
        singles = [saved['param_groups'][index] for index in order]
        state = {index: saved['state'][group['params'][0]] for index, group in enumerate(singles)
                 if group['params'][0] in saved['state']}
        groups: list[dict[str, Any]] = []
        start = 0
        for group in optimizer.param_groups:
            indices = list(range(start, start := start + len(group['params'])))
            members = [singles[index] for index in indices]
            if any({**member, 'params': 0} != {**members[0], 'params': 0} for member in members):
                raise ValueError('the saved optimizer treats parameters differently that share a group here: '
                                 'it was made with another paramwise_cfg')
            groups.append({**members[0], 'params': indices})
        return {**saved, 'state': state, 'param_groups': groups}

    optimizer.register_load_state_dict_pre_hook(regroup)
