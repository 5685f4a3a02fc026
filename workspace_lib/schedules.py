"""Learning rate schedules as pure functions of the iteration: nothing to save, nothing to restore.

In: `cfg.lr_config` and the length of the run. Out: f(base_lr, iter) -> lr.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from .config import where

# f(base_lr, progress, total) -> lr, where progress and total count epochs, or iterations with by_epoch=False.
# Formulas and the order of their operations: mmcv 1.7.2, mmcv/runner/hooks/lr_updater.py.
Policy = Callable[[float, int, int], float]
Schedule = Callable[[float, int], float]


def _fixed() -> Policy:
    return lambda base_lr, progress, total: base_lr


def _step(step: int | Sequence[int], gamma: float = 0.1, min_lr: float | None = None) -> Policy:
    """`gamma` per `step` epochs, or at each of the listed ones; not below `min_lr`."""
    steps: list[int] = list(step) if isinstance(step, Sequence) else [step]
    if not all(isinstance(s, int) and s > 0 for s in steps):
        raise ValueError(f'lr_config.step must be a positive int or a list of them, but got {step!r}')

    def lr(base_lr: float, progress: int, total: int) -> float:
        if isinstance(step, int):
            times = progress // step
        else:
            times = next((i for i, s in enumerate(steps) if progress < s), len(steps))
        return max(base_lr * gamma ** times, -math.inf if min_lr is None else min_lr)

    return lr


def _exp(gamma: float) -> Policy:
    return lambda base_lr, progress, total: base_lr * gamma ** progress


def _poly(power: float = 1., min_lr: float = 0.) -> Policy:
    return lambda base_lr, progress, total: (base_lr - min_lr) * (1 - progress / total) ** power + min_lr


def _inv(gamma: float, power: float = 1.) -> Policy:
    return lambda base_lr, progress, total: base_lr * (1 + gamma * progress) ** -power


def _cosine_annealing(min_lr: float | None = None, min_lr_ratio: float | None = None) -> Policy:
    """Half a cosine from base_lr to `min_lr`, or to base_lr * `min_lr_ratio`."""
    end_of = _end_lr(min_lr, min_lr_ratio)

    def lr(base_lr: float, progress: int, total: int) -> float:
        end = end_of(base_lr)
        return end + 0.5 * (base_lr - end) * (math.cos(math.pi * (progress / total)) + 1)

    return lr


def _cosine_annealing_cooldown(min_lr: float | None = None, min_lr_ratio: float | None = None,
                               cool_down_ratio: float = 0.1, cool_down_time: int = 10) -> Policy:
    """`CosineAnnealing` until `cool_down_time` before the end, then its end times `cool_down_ratio`."""
    anneal, end_of = _cosine_annealing(min_lr, min_lr_ratio), _end_lr(min_lr, min_lr_ratio)

    def lr(base_lr: float, progress: int, total: int) -> float:
        cooling = total - cool_down_time
        if progress > cooling or cooling <= 0:
            return end_of(base_lr) * cool_down_ratio
        return anneal(base_lr, progress, cooling)

    return lr


def _end_lr(min_lr: float | None, min_lr_ratio: float | None) -> Callable[[float], float]:
    if min_lr is not None and min_lr_ratio is None:
        return lambda base_lr: min_lr
    if min_lr_ratio is not None and min_lr is None:
        return lambda base_lr: base_lr * min_lr_ratio
    raise ValueError(f'lr_config needs one of min_lr and min_lr_ratio, but got {min_lr=}, {min_lr_ratio=}')


#: Open to policies of one's own: a function of the policy's arguments that returns a `Policy`.
POLICIES: dict[str, Callable[..., Policy]] = dict(
    Fixed=_fixed, Step=_step, Exp=_exp, Poly=_poly, Inv=_inv, CosineAnnealing=_cosine_annealing,
    CosineAnnealingCooldown=_cosine_annealing_cooldown)


def lr_schedule(lr_config: Mapping[str, Any], max_epochs: int | None, iters_per_epoch: int,
                max_iters: int | None = None) -> Schedule:
    """The learning rate of a whole run as a pure function `f(base_lr, iter) -> lr`, iter counting from 0.

    Args:
        lr_config: `policy`, of `POLICIES` (all in small letters: the first becomes a capital), and its
            arguments; `by_epoch` (default: as the length is given); `warmup` ('constant', 'linear', 'exp' or
            None) with `warmup_iters`, `warmup_ratio` (default 0.1) and `warmup_by_epoch` (then `warmup_iters`
            counts epochs).
        max_epochs, max_iters: the length of the run: one of the two, the other follows.

    Raises:
        KeyError: no policy, or an unknown one.
        TypeError: an unknown or a missing argument.
        ValueError: an impossible value.
    """
    if (max_epochs is None) == (max_iters is None):
        raise ValueError(f'a run is either max_epochs or max_iters long, but got {max_epochs=}, {max_iters=}')
    options = {key: value for key, value in lr_config.items() if key != 'policy'}
    by_epoch = options.pop('by_epoch', max_epochs is not None)
    warm = _warmup(iters_per_epoch, **{key: options.pop(key) for key in WARMUP_KEYS if key in options})
    policy = _policy(lr_config, options)
    epochs = max_epochs if max_epochs is not None else math.ceil((max_iters or 0) / iters_per_epoch)
    total = epochs if by_epoch else max_iters or epochs * iters_per_epoch

    def schedule(base_lr: float, iter: int) -> float:
        progress = iter // iters_per_epoch if by_epoch else iter
        return warm(policy(base_lr, progress, total), iter)

    return schedule


def sample_schedule(lr_config: Mapping[str, Any], base_lr: float, epochs: int,
                    iters_per_epoch: int) -> np.ndarray:
    """The learning rate of each iteration of a run, float64 (epochs * iters_per_epoch,)."""
    schedule = lr_schedule(lr_config, epochs, iters_per_epoch)
    return np.array([schedule(base_lr, i) for i in range(epochs * iters_per_epoch)], dtype=np.float64)


WARMUP_KEYS = ('warmup', 'warmup_iters', 'warmup_ratio', 'warmup_by_epoch')


def _warmup(iters_per_epoch: int, warmup: str | None = None, warmup_iters: int = 0, warmup_ratio: float = 0.1,
            warmup_by_epoch: bool = False) -> Callable[[float, int], float]:
    if warmup is None:
        return lambda lr, i: lr
    factors: dict[str, Callable[[float], float]] = dict(
        constant=lambda done: warmup_ratio,
        linear=lambda done: 1 - (1 - done) * (1 - warmup_ratio),
        exp=lambda done: warmup_ratio ** (1 - done))
    if warmup not in factors:
        raise ValueError(f'lr_config.warmup={warmup!r} is unknown; choose from {", ".join(factors)}, or None')
    if warmup_iters <= 0 or not 0 < warmup_ratio <= 1:
        raise ValueError('lr_config.warmup needs warmup_iters > 0 and 0 < warmup_ratio <= 1, but got '
                         f'{warmup_iters=}, {warmup_ratio=}')
    factor = factors[warmup]
    length = warmup_iters * iters_per_epoch if warmup_by_epoch else warmup_iters
    return lambda lr, i: lr * factor(i / length) if i < length else lr


def _policy(lr_config: Mapping[str, Any], options: dict[str, Any]) -> Policy:
    if 'policy' not in lr_config:
        raise KeyError(f'lr_config needs a policy, one of {", ".join(POLICIES)}{place(lr_config)}')
    written = lr_config['policy']
    name = written.title() if written == written.lower() else written
    if name not in POLICIES:
        raise KeyError(f'{written} is not a learning rate policy; {hint(name, POLICIES)}'
                       f'{place(lr_config, "policy")}')
    parameters = inspect.signature(POLICIES[name]).parameters
    for key in options:
        if key not in parameters:
            raise TypeError(f'lr_config with policy {written!r} has no argument {key!r}; '
                            f'{hint(key, [*parameters, "by_epoch", *WARMUP_KEYS])}{place(lr_config, key)}')
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise TypeError(f'lr_config with policy {written!r} needs the argument {key!r}{place(lr_config)}')
    return POLICIES[name](**options)


def hint(key: str, known: Iterable[str]) -> str:
    """The nearest of the known names, and all of them."""
    names = {name.lower(): name for name in known}
    near = get_close_matches(key.lower(), names, n=1, cutoff=0.5)
    return (f'did you mean {names[near[0]]!r}? ' if near else '') + f'Known: {", ".join(names.values())}'


def place(node: Mapping[str, Any], key: str | None = None) -> str:
    """' (where it was set)', if that is known."""
    found = where(node, key)
    return f' ({found})' if found else ''
