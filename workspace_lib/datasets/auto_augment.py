"""Random policies: AutoAugment picks one of several short lists of steps, RandAugment picks steps one by one.

In and out: uint8 images (H, W, C) or (H, W). The steps themselves are in `colour` and `geometry`.
"""
from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arguments import check_probability
from ..registry import PIPELINES, build_from_cfg
from .transforms import ImageStep

HPARAMS = {'pad_val': 128}


class Sometimes(ImageStep):
    """A step that happens with probability `prob`; subclasses write `apply`."""

    def __init__(self, prob: float = 0.5) -> None:
        check_probability('prob', prob)
        self.prob = prob

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        """The new image, uint8; `img` is never written into."""
        raise NotImplementedError(f'{type(self).__name__} does not define apply(img, rng)')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        if rng.random() >= self.prob:
            return img
        if img.dtype != np.uint8:
            raise TypeError(f'{type(self).__name__} works on uint8 images, and got {img.dtype}; put it before the '
                            'steps that give float, and load without to_float32')
        return self.apply(img, rng)


class Signed(Sometimes):
    """One with a direction, which is the other one with probability `random_negative_prob`."""

    def __init__(self, *, random_negative_prob: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_probability('random_negative_prob', random_negative_prob)
        self.random_negative_prob = random_negative_prob

    def signed(self, magnitude: float, rng: random.Random) -> float:
        """`magnitude`, or its negative."""
        return -magnitude if rng.random() < self.random_negative_prob else magnitude



@PIPELINES.register_module()
class AutoAugment(ImageStep):
    """One of several policies, each a list of steps that run one after another (arXiv:1805.09501).

    Args:
        policies: lists of step configs, one of which is drawn for each image.
        hparams: settings for those steps that know them and do not set them.

    Raises:
        TypeError, ValueError, KeyError: a policy that is no list of steps on images.
    """

    def __init__(self, policies: Sequence[Sequence[dict[str, Any]]], hparams: Mapping[str, Any] = HPARAMS) -> None:
        if not _is_list(policies) or not policies or not all(_is_list(policy) and policy for policy in policies):
            raise ValueError(f'AutoAugment got policies={policies!r}; it takes a list of lists of steps')
        self.policies = [[_with_hparams(step, hparams) for step in policy] for policy in policies]
        self._policies = [[_build_step(step) for step in policy] for policy in self.policies]

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        for step in rng.choice(self._policies):
            img = step.transform(img, rng)
        return img


@PIPELINES.register_module()
class RandAugment(ImageStep):
    """`num_policies` steps drawn anew for each image, all of about the same strength (arXiv:1909.13719).

    A step with a strength names the argument (`magnitude_key`) and its values at level 0 and at `total_level`
    (`magnitude_range`); in between they are interpolated.

    Args:
        policies: step configs; each draw is independent of the others.
        magnitude_level: of all steps, from 0 to `total_level`.
        magnitude_std: the standard deviation of the level, which stays in 0..total_level; 0 or less: none;
            'inf': the level is uniform in 0..magnitude_level.
        hparams: settings for those steps that know them and do not set them.

    Raises:
        TypeError, ValueError, KeyError: levels or policies that make no sense.
    """

    def __init__(self, policies: Sequence[dict[str, Any]], num_policies: int, magnitude_level: float,
                 magnitude_std: float | str = 0., total_level: float = 30,
                 hparams: Mapping[str, Any] = HPARAMS) -> None:
        _check_levels(num_policies, magnitude_level, magnitude_std, total_level)
        if not _is_list(policies) or not policies:
            raise ValueError(f'RandAugment got policies={policies!r}; it takes a list of steps')
        self.policies = [_with_hparams(policy, hparams) for policy in policies]
        self.num_policies, self.magnitude_level = num_policies, magnitude_level
        self.magnitude_std, self.total_level = magnitude_std, total_level
        self._policies = [_Policy(policy, magnitude_level / total_level) for policy in self.policies]

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        chosen = rng.choices(self._policies, k=self.num_policies)
        for step in [policy.step(self, rng) for policy in chosen]:  # all levels are drawn before the first step
            img = step.transform(img, rng)
        return img

    def level(self, rng: random.Random) -> float:
        """The share of `total_level` that one step gets."""
        level = self.magnitude_level
        if isinstance(self.magnitude_std, str):
            level = rng.uniform(0, level)
        elif self.magnitude_std > 0:
            level = min(self.total_level, max(0, rng.gauss(level, self.magnitude_std)))
        return level / self.total_level


class _Policy:
    """One entry of RandAugment's list, built once to find its mistakes, and anew for each strength."""

    def __init__(self, config: dict[str, Any], share: float) -> None:
        config = copy.copy(config)
        self.key, ends = config.pop('magnitude_key', None), config.pop('magnitude_range', None)
        if self.key is not None and (not _is_list(ends) or len(ends) != 2):
            raise ValueError(f'RandAugment got magnitude_range={ends!r} for the {self.key} of {config["type"]}; it '
                             'takes two numbers, the values at level 0 and at total_level')
        self.ends = ends or (0, 0)
        try:
            self.fixed = _build_step(config, {} if self.key is None else {self.key: self.magnitude(share)})
        except ValueError as error:
            if share > 1:
                raise ValueError(f'{error}; RandAugment\'s magnitude_level is above total_level ({share:.3g} times), '
                                 'which goes beyond magnitude_range') from error
            raise
        self.settings = {key: value for key, value in config.items() if key != 'type'}

    def magnitude(self, share: float) -> float:
        return share * (self.ends[1] - self.ends[0]) + self.ends[0]

    def step(self, augment: RandAugment, rng: random.Random) -> ImageStep:
        if self.key is None:
            return self.fixed
        make: Any = type(self.fixed)  # a constructor costs 2 microseconds, the registry's checks 30
        return make(**self.settings, **{self.key: self.magnitude(augment.level(rng))})


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _with_hparams(config: dict[str, Any], hparams: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the step's config, with those of `hparams` that it knows and does not set."""
    if not isinstance(config, dict) or 'type' not in config:
        raise TypeError(f'a step of a policy is a dict with a type; got {config!r}')
    config, kind = copy.copy(config), config['type']
    target = PIPELINES.get(kind) if isinstance(kind, str) else kind
    known = inspect.signature(target).parameters if target is not None else {}
    for key, value in hparams.items():
        if key in known and config.get(key) is None:
            config[key] = value
    return config


def _build_step(config: dict[str, Any], more: dict[str, Any] | None = None) -> ImageStep:
    step = build_from_cfg(config, PIPELINES, more)
    if not isinstance(step, ImageStep):
        raise TypeError(f'{type(step).__name__} cannot be part of a policy: it takes the whole results dictionary; '
                        'derive it from ImageStep')
    return step


def _check_levels(num_policies: int, magnitude_level: float, magnitude_std: float | str, total_level: float) -> None:
    if not isinstance(num_policies, int) or num_policies < 1:
        raise ValueError(f'RandAugment got num_policies={num_policies!r}; it is a whole number from 1')
    for name, value in (('magnitude_level', magnitude_level), ('total_level', total_level)):
        if not isinstance(value, int | float) or value < 0 or (name == 'total_level' and value == 0):
            raise ValueError(f'RandAugment got {name}={value!r}; levels are numbers from 0 up')
    if magnitude_std != 'inf' and not isinstance(magnitude_std, int | float):
        raise ValueError(f"RandAugment got magnitude_std={magnitude_std!r}; it is a number, or 'inf'")
