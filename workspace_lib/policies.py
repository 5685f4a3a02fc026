"""How a learning rate or a momentum moves over a run: the formulas behind the names that configs use.

In: a policy's arguments. Out: f(base value, progress, total) -> value.
"""
from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from .arguments import check_known

# f(base_lr, progress, total) -> lr, where progress and total count epochs, or iterations with by_epoch=False.
# Formulas and the order of their operations: mmcv 1.7.2, mmcv/runner/hooks/lr_updater.py and momentum_updater.py.
Policy = Callable[[float, int, int], float]


def _fixed() -> Policy:
    return lambda base_lr, progress, total: base_lr


def _step(step: int | Sequence[int], gamma: float = 0.1, min_lr: float | None = None) -> Policy:
    """`gamma` per `step` epochs, or at each of the listed ones; not below `min_lr`."""
    steps: list[int] = list(step) if isinstance(step, Sequence) else [step]
    if not all(isinstance(s, int) and s > 0 for s in steps):
        raise ValueError(f'lr_config.step must be a positive int or a list of them, but got {step!r}')

    def lr(base_lr: float, progress: int, total: int) -> float:
        reached = next((i for i, s in enumerate(steps) if progress < s), len(steps))
        times = progress // step if isinstance(step, int) else reached
        return max(base_lr * gamma ** times, -math.inf if min_lr is None else min_lr)

    return lr


def _exp(gamma: float) -> Policy:
    return lambda base_lr, progress, total: base_lr * gamma ** progress


def _poly(power: float = 1., min_lr: float = 0.) -> Policy:
    return lambda base_lr, progress, total: (base_lr - min_lr) * (1 - progress / total) ** power + min_lr


def _inv(gamma: float, power: float = 1.) -> Policy:
    return lambda base_lr, progress, total: base_lr * (1 + gamma * progress) ** -power


def _cos(start: float, end: float, done: float, weight: float = 1.) -> float:
    return end + 0.5 * weight * (start - end) * (math.cos(math.pi * done) + 1)


def _linear(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


def _annealing(curve: Callable[[float, float, float], float], min_lr: float | None = None,
               min_lr_ratio: float | None = None) -> Policy:
    """Along `curve` from base_lr to `min_lr`, or to base_lr * `min_lr_ratio`."""
    end_of = _end_lr(min_lr, min_lr_ratio)
    return lambda base_lr, progress, total: curve(base_lr, end_of(base_lr), progress / total)


_cosine_annealing, _linear_annealing = partial(_annealing, _cos), partial(_annealing, _linear)


def _flat_cosine_annealing(start_percent: float = 0.75, min_lr: float | None = None,
                           min_lr_ratio: float | None = None) -> Policy:
    """base_lr for the first `start_percent` (0..1) of the run, then `CosineAnnealing` over the rest."""
    anneal = _cosine_annealing(min_lr, min_lr_ratio)

    def lr(base_lr: float, progress: int, total: int) -> float:
        start = round(total * start_percent)
        return base_lr if progress < start else anneal(base_lr, progress - start, total - start)

    return lr


def _cosine_restart(periods: Sequence[int], restart_weights: Sequence[float] = (1,), min_lr: float | None = None,
                    min_lr_ratio: float | None = None) -> Policy:
    """One cosine for each of the `periods`, which begin at base_lr times their `restart_weights`."""
    if len(periods) != len(restart_weights):
        raise ValueError(f'lr_config has {len(periods)} periods, but {len(restart_weights)} restart_weights')
    ends, end_of = list(accumulate(periods)), _end_lr(min_lr, min_lr_ratio)

    def lr(base_lr: float, progress: int, total: int) -> float:
        period = bisect_right(ends, progress)
        if total > ends[-1] or period == len(ends):
            raise ValueError(f'lr_config.periods end at {ends[-1]}, before the run does, at {total}')
        done = (progress - ends[period] + periods[period]) / periods[period]
        return _cos(base_lr, end_of(base_lr), done, restart_weights[period])

    return lr


def _curve(anneal_strategy: str) -> Callable[[float, float, float], float]:
    curves = dict(cos=_cos, linear=_linear)
    check_known('anneal_strategy', anneal_strategy, curves)
    return curves[anneal_strategy]


def _cyclic(target_ratio: float | Sequence[float], cyclic_times: int = 1, step_ratio_up: float = 0.4,
            anneal_strategy: str = 'cos', gamma: float = 1.) -> Policy:
    """`cyclic_times` cycles: from the base value to `target_ratio[0]` times it, and on to `target_ratio[1]` times.

    `step_ratio_up` is the first part's share of a cycle; each cycle swings `gamma` times as far as the one before.
    """
    first, *rest = target_ratio if isinstance(target_ratio, Sequence) else [target_ratio]
    last, curve = (rest or [first / 1e5])[0], _curve(anneal_strategy)

    def value(base: float, progress: int, total: int) -> float:
        length = total // cyclic_times
        cycle, now = divmod(progress, length)
        up, scale = int(step_ratio_up * length), gamma ** cycle
        peak = base * (1 - scale + first * scale)
        return curve(base, peak, now / up) if now < up else curve(peak, base * last, (now - up) / (length - up))

    return value


def _phases(values: Sequence[float], pct_start: float, three_phase: bool, curve: Callable[..., float],
            progress: int, total: int) -> float:
    """Where `progress` is on the way through `values`, the first of which ends at `pct_start` of `total`."""
    ends = [pct_start * total - 1, *([2 * pct_start * total - 2] if three_phase else []), total - 1]
    phase = min(bisect_left(ends, progress), len(ends) - 1)
    start = ends[phase - 1] if phase else 0.
    return curve(values[phase], values[phase + 1], (progress - start) / (ends[phase] - start))


def _check_single(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float):
            raise ValueError(f'{name} of OneCycle is one number for all parameter groups, but got {value!r}')


def _one_cycle(max_lr: float, total_steps: int | None = None, pct_start: float = 0.3, anneal_strategy: str = 'cos',
               div_factor: float = 25, final_div_factor: float = 1e4, three_phase: bool = False) -> Policy:
    """Up from `max_lr / div_factor` to `max_lr`, and down to `max_lr / div_factor / final_div_factor`.

    With `three_phase` down to the first value in as many steps as it went up, and then on to the last.
    """
    _check_single(max_lr=max_lr)
    curve, low = _curve(anneal_strategy), max_lr / div_factor
    values = [low, low * div_factor, *([low] if three_phase else []), low * (1 / final_div_factor)]

    def lr(base_lr: float, progress: int, total: int) -> float:
        if total_steps is not None and total_steps < total:
            raise ValueError(f'lr_config.total_steps is {total_steps}, but the run has {total} iterations')
        return _phases(values, pct_start, three_phase, curve, progress, total_steps or total)

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


def _renamed(policy: Callable[..., Policy]) -> Callable[..., Policy]:
    """A policy of the learning rate for momentum, whose limits have other names."""
    def momentum(min_momentum: float | None = None, min_momentum_ratio: float | None = None) -> Policy:
        return policy(min_lr=min_momentum, min_lr_ratio=min_momentum_ratio)

    return momentum


def _step_momentum(step: int | Sequence[int], gamma: float = 0.5, min_momentum: float | None = None) -> Policy:
    return _step(step, gamma, min_momentum)


def _one_cycle_momentum(base_momentum: float = 0.85, max_momentum: float = 0.95, pct_start: float = 0.3,
                        anneal_strategy: str = 'cos', three_phase: bool = False) -> Policy:
    """Against the learning rate of `OneCycle`: down from `max_momentum` to `base_momentum`, and up again."""
    _check_single(base_momentum=base_momentum, max_momentum=max_momentum)
    values, curve = [max_momentum, base_momentum, *[max_momentum] * (1 + three_phase)], _curve(anneal_strategy)
    return lambda base, progress, total: _phases(values, pct_start, three_phase, curve, progress, total)


#: Open to policies of one's own: a function of the policy's arguments that returns a `Policy`.
POLICIES: dict[str, Callable[..., Policy]] = dict(
    Fixed=_fixed, Step=_step, Exp=_exp, Poly=_poly, Inv=_inv, CosineAnnealing=_cosine_annealing,
    CosineAnnealingCooldown=_cosine_annealing_cooldown, FlatCosineAnnealing=_flat_cosine_annealing,
    LinearAnnealing=_linear_annealing, CosineRestart=_cosine_restart,
    Cyclic=partial(_cyclic, target_ratio=(10, 1e-4)), OneCycle=_one_cycle)
MOMENTUM_POLICIES: dict[str, Callable[..., Policy]] = dict(
    Step=_step_momentum, CosineAnnealing=_renamed(_cosine_annealing), LinearAnnealing=_renamed(_linear_annealing),
    Cyclic=partial(_cyclic, target_ratio=(0.85 / 0.95, 1.)), OneCycle=_one_cycle_momentum)
BY_ITERATION = ('Cyclic', 'OneCycle')
