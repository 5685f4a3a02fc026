"""A config's pipeline, compiled once: image steps for the workers, normalisation for the device, batch by batch.

In: a list of step configs. Out: `Pipeline`, whose `item` feeds the loader and whose call runs the steps as written.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workspace_lib.datasets import transforms
from workspace_lib.datasets.transforms import (
    GLOBAL_RNG,
    Collect,
    ImageStep,
    LoadImageFromFile,
    Normalize,
    ToTensor,
    image_path,
)
from workspace_lib.registry import PIPELINES, build_from_cfg

_log = logging.getLogger(__name__)
Source = str | PathLike[str] | bytes | np.ndarray


class DeviceStage:
    """What is left of a pipeline for the device: channel order, mean and std, for a whole batch.

    Takes uint8 (N, C, H, W) and gives float32 with the same strides; a float batch counts as normalised already.
    """

    def __init__(self, mean: Sequence[float] | np.ndarray | None = None,
                 std: Sequence[float] | np.ndarray | None = None, to_rgb: bool = False) -> None:
        self.mean, self.std, self.to_rgb = mean, std, to_rgb
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, img: Tensor) -> Tensor:
        if img.is_floating_point():
            return img
        if self.mean is None:
            return img.float()
        if self.to_rgb and img.shape[1] == 3:
            img = img.flip(1)  # while it is a quarter of the bytes
        mean, std = self._on(img.device)
        return torch.sub(img, mean).div_(std)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:  # a copy to the device each step would be a sync point
            mean, std = (torch.as_tensor(np.asarray(v, np.float32), device=device) for v in (self.mean, self.std))
            self._constants[device] = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        return self._constants[device]

    def __repr__(self) -> str:
        return f'DeviceStage(mean={self.mean}, std={self.std}, to_rgb={self.to_rgb})'


class Pipeline:
    """The steps of a config, in two forms.

    `pipeline(results)` runs `steps` as they are written, on a `results` dict. `prepare` and `device_stage` do the same
    work faster: uint8 image steps, then `Normalize` moved behind the batch. Where a step does not allow that (float
    before `Normalize`, a step of another's that takes the whole dict), `is_split` is False, the log says why, and
    `item` falls back to the written form, with float images.

    Args:
        steps: step configs, or callables on a `results` dict.
    """

    def __init__(self, steps: Sequence[dict[str, Any] | Callable[..., Any]] = ()) -> None:
        self.steps = [_build(step) for step in steps]
        self.keys: Sequence[str] = ('img', 'gt_label')
        self.device_stage = DeviceStage()
        self._read = LoadImageFromFile().read
        self._transforms: list[Callable[[np.ndarray, random.Random], np.ndarray]] = []
        self._rng = random.Random()
        obstacle = self._split()
        self.is_split = obstacle is None
        if obstacle:
            _log.warning('pipeline runs image by image in float, without the uint8 fast path: %s', obstacle)

    def __call__(self, results: dict[str, Any]) -> Any:
        for step in self.steps:
            results = step(results)
        return results

    def __repr__(self) -> str:
        return 'Pipeline(\n' + ''.join(f'    {step!r},\n' for step in self.steps) + ')'

    def _split(self) -> str | None:
        """Sort the steps into reading, image steps and device stage; says what stands in the way, if anything."""
        rest = list(self.steps)
        if foreign := [step for step in rest if not _is_plain(step)]:
            return f'{type(foreign[0]).__name__} takes the whole results dictionary'
        if rest and isinstance(rest[0], LoadImageFromFile):
            if rest[0].to_float32:
                return 'LoadImageFromFile(to_float32=True) gives float'
            self._read = rest.pop(0).read
        while rest and isinstance(rest[0], ImageStep) and rest[0].keeps_uint8:
            self._transforms.append(rest.pop(0).transform)
        stage = DeviceStage()
        if rest and isinstance(rest[0], Normalize):
            stage = DeviceStage(rest[0].mean, rest[0].std, rest.pop(0).to_rgb)
        for step in rest:
            if isinstance(step, (ImageStep, LoadImageFromFile)) or isinstance(step, ToTensor) and 'img' in step.keys:
                return f'{type(step).__name__} comes where images are float tensors'
            if isinstance(step, Collect):
                self.keys = step.keys
        if extra := set(self.keys) - {'img', 'gt_label'}:
            return f'Collect asks for {", ".join(sorted(extra))}'
        self.device_stage = stage
        return None

    def prepare(self, source: Source, rng: random.Random = GLOBAL_RNG) -> np.ndarray:
        """The workers' share for one image, a file or BGR pixels: uint8 (H, W, C). Only where `is_split`."""
        img = source if isinstance(source, np.ndarray) else self._read(source)
        for transform in self._transforms:
            img = transform(img, rng)
        if img.dtype != np.uint8:
            raise TypeError(f'the pipeline gives {img.dtype} before Normalize; a step that does so on purpose says '
                            'keeps_uint8 = False in its class')
        return img if img.ndim == 3 else img[:, :, None]

    def item(self, info: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """One sample for the loader.

        Args:
            info: what `data_infos` holds: `img_prefix` and `img_info`, or `img`; and `gt_label`.
            seed: of all its random choices; None draws from the global `random` (and numpy's, in borrowed steps).

        Returns:
            The keys of `Collect`: `img` uint8 (H, W, C), or float (C, H, W) where not `is_split`; `gt_label`.
        """
        if not self.is_split:
            with _seeded_globals(seed):
                return self(copy.deepcopy(info))
        rng = GLOBAL_RNG
        if seed is not None:
            rng = self._rng
            rng.seed(seed)
        img = self.prepare(info['img'] if 'img' in info else image_path(info), rng)
        return {key: img if key == 'img' else info[key] for key in self.keys if key == 'img' or key in info}

    def inputs(self, source: Source, device: torch.device | str = 'cpu') -> Tensor:
        """One image, a file or BGR pixels, as the model takes it: float32 (1, C, H, W), normalised."""
        if self.is_split:
            img = torch.from_numpy(np.ascontiguousarray(self.prepare(source).transpose(2, 0, 1)))
            return self.device_stage(img[None].to(device))
        steps, results = self.steps, {'img_prefix': None, 'img_info': {'filename': source}}
        if isinstance(source, np.ndarray):
            steps = [step for step in steps if not isinstance(step, LoadImageFromFile)]
            results = {'img': source, 'img_shape': source.shape, 'ori_shape': source.shape}
        for step in steps:
            results = step(results)
        return torch.as_tensor(results['img'])[None].to(device).float()


def _build(step: Any) -> Callable[..., Any]:
    if isinstance(step, dict):
        return build_from_cfg(step, PIPELINES)
    if callable(step):
        return step
    raise TypeError(f'a pipeline step is a dict with a type, or a callable; got {type(step)}: {step!r}')


def _is_plain(step: Any) -> bool:
    """One of ours, or an `ImageStep` of a user's that leaves the handling of `results` to us."""
    call = getattr(type(step), '__call__', None)
    return getattr(call, '__module__', None) == transforms.__name__


@contextmanager
def _seeded_globals(seed: int | None) -> Iterator[None]:
    """Borrowed steps draw from the global generators: seed those, and leave them afterwards as they were."""
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
