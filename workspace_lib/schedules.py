"""Schedules of learning rate and momentum as pure functions of the iteration: nothing to save, nothing to restore.

In: `cfg.lr_config` or `cfg.momentum_config`, and the length of the run. Out: f(base value, iter) -> value.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from .config import place
from .policies import BY_ITERATION, MOMENTUM_POLICIES, Policy
from .policies import POLICIES as POLICIES

Schedule = Callable[[float, int], float]


def lr_schedule(lr_config: Mapping[str, Any], max_epochs: int | None, iters_per_epoch: int,
                max_iters: int | None = None) -> Schedule:
    """The learning rate of a whole run as a pure function `f(base_lr, iter) -> lr`, iter counting from 0.

    Args:
        lr_config: `policy`, of `POLICIES` (all in small letters: the first becomes a capital), and its
            arguments; `by_epoch` (default: as the length is given; `Cyclic` and `OneCycle` know only iterations);
            `warmup` ('constant', 'linear', 'exp' or None) with `warmup_iters`, `warmup_ratio` (default 0.1) and
            `warmup_by_epoch` (then `warmup_iters` counts epochs).
        max_epochs, max_iters: the length of the run: one of the two, the other follows.

    Raises:
        KeyError: no policy, or an unknown one.
        TypeError: an unknown or a missing argument.
        ValueError: an impossible value.
    """
    regular, warm = _regular_and_warmup('lr_config', lr_config, max_epochs, iters_per_epoch, max_iters)
    return lambda base_lr, iter: regular(base_lr, iter) * warm(iter)


def momentum_schedule(momentum_config: Mapping[str, Any], max_epochs: int | None, iters_per_epoch: int,
                      max_iters: int | None = None) -> Schedule:
    """The momentum of a whole run, like `lr_schedule`, with the policies of `MOMENTUM_POLICIES`.

    During warm-up it is the regular value divided by what `warmup_ratio` (default 0.9) makes of it: above it.
    """
    regular, warm = _regular_and_warmup('momentum_config', momentum_config, max_epochs, iters_per_epoch, max_iters)
    return lambda base, iter: regular(base, iter) / warm(iter)


def _regular_and_warmup(section: str, cfg: Mapping[str, Any], max_epochs: int | None, iters_per_epoch: int,
                        max_iters: int | None) -> tuple[Schedule, Callable[[int], float]]:
    """The schedule without its warm-up, and the warm-up's factor at each iteration."""
    if (max_epochs is None) == (max_iters is None):
        raise ValueError(f'a run is either max_epochs or max_iters long, but got {max_epochs=}, {max_iters=}')
    options = {'warmup_ratio': 0.1 if section == 'lr_config' else 0.9, **cfg}
    options.pop('policy', None)
    by_epoch = options.pop('by_epoch', None)
    warm = _warmup(section, iters_per_epoch, **{key: options.pop(key) for key in WARMUP_KEYS if key in options})
    name, policy = _policy(section, cfg, options)
    if by_epoch and name in BY_ITERATION:
        raise ValueError(f'{section}: the policy {name} counts iterations, but by_epoch=True{place(cfg, "by_epoch")}')
    if by_epoch is None:
        by_epoch = max_epochs is not None and name not in BY_ITERATION
    epochs = max_epochs if max_epochs is not None else math.ceil((max_iters or 0) / iters_per_epoch)
    total = epochs if by_epoch else max_iters or epochs * iters_per_epoch
    return lambda base, iter: policy(base, iter // iters_per_epoch if by_epoch else iter, total), warm


WARMUP_KEYS = ('warmup', 'warmup_iters', 'warmup_ratio', 'warmup_by_epoch')


def _warmup(section: str, iters_per_epoch: int, warmup: str | None = None, warmup_iters: int = 0,
            warmup_ratio: float = 1., warmup_by_epoch: bool = False) -> Callable[[int], float]:
    if warmup is None:
        return lambda i: 1.
    factors: dict[str, Callable[[float], float]] = dict(
        constant=lambda done: warmup_ratio,
        linear=lambda done: 1 - (1 - done) * (1 - warmup_ratio),
        exp=lambda done: warmup_ratio ** (1 - done))
    if warmup not in factors:
        raise ValueError(f'{section}.warmup={warmup!r} is unknown; choose from {", ".join(factors)}, or None')
    if warmup_iters <= 0 or not 0 < warmup_ratio <= 1:
        raise ValueError(f'{section}.warmup needs warmup_iters > 0 and 0 < warmup_ratio <= 1, but got '
                         f'{warmup_iters=}, {warmup_ratio=}')
    factor = factors[warmup]
    length = warmup_iters * iters_per_epoch if warmup_by_epoch else warmup_iters
    return lambda i: factor(i / length) if i < length else 1.


def _policy(section: str, cfg: Mapping[str, Any], options: dict[str, Any]) -> tuple[str, Policy]:
    kind, policies = ('learning rate', POLICIES) if section == 'lr_config' else ('momentum', MOMENTUM_POLICIES)
    if 'policy' not in cfg:
        raise KeyError(f'{section} needs a policy, one of {", ".join(policies)}{place(cfg)}')
    written = cfg['policy']
    name = written.title() if written == written.lower() else written
    if name not in policies:
        raise KeyError(f'{written} is not a {kind} policy; {hint(name, policies)}{place(cfg, "policy")}')
    parameters = inspect.signature(policies[name]).parameters
    for key in options:
        if key not in parameters:
            raise TypeError(f'{section} with policy {written!r} has no argument {key!r}; '
                            f'{hint(key, [*parameters, "by_epoch", *WARMUP_KEYS])}{place(cfg, key)}')
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise TypeError(f'{section} with policy {written!r} needs the argument {key!r}{place(cfg)}')
    return name, policies[name](**options)


def hint(key: str, known: Iterable[str]) -> str:
    """The nearest of the known names, and all of them."""
    names = {name.lower(): name for name in known}
    beginnings = [name for name in names if name.startswith(key.lower())]
    near = beginnings or get_close_matches(key.lower(), names, n=1, cutoff=0.5)
    return (f'did you mean {names[near[0]]!r}? ' if near else '') + f'Known: {", ".join(names.values())}'
