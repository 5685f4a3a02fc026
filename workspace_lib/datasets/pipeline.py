"""A config's pipeline, compiled once: image steps for the workers; by the batch on the device what can wait for it.

In: step configs. Out: `Pipeline`: `item` feeds the loader, a call of it runs the steps as they are written.
"""
from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from os import PathLike
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..jpeg_crop import decoder
from ..registry import PIPELINES, build_from_cfg
from .decode import decode_later
from .formatting import Collect, LoadImageFromFile, ToTensor, image_path
from .transforms import GLOBAL_RNG, ImageStep, Normalize, RandomResizedCrop

_log = logging.getLogger(__name__)
_UINT8 = np.dtype(np.uint8)
_OWN_MODULES = (ImageStep.__module__, Collect.__module__)
Source = str | PathLike[str] | bytes | np.ndarray
DRAWS = '_draws'  # the key of what steps have drawn that are left to the device; it does not reach the model


class DeviceStage:
    """What is left of a pipeline for the device: `Normalize` of a whole batch; without one, only a cast.

    Takes uint8 (N, C, H, W), gives float32; a float batch counts as normalised already and stays as it is.
    Before it come `steps` by `random_steps`, if `Pipeline.item` has left them to the device.
    """

    def __init__(self, normalize: Normalize | None = None, steps: Sequence[Any] = ()) -> None:
        self.normalize, self.steps = normalize, steps
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}
        if normalize is not None:
            values = np.arange(256, dtype=np.float32)[:, None]
            self._tables = ((values - normalize.mean) / normalize.std).T.copy()

    def __call__(self, img: Tensor) -> Tensor:
        if img.is_floating_point() or self.normalize is None:
            return img.float()
        self._check(img.shape[1])
        if img.device.type != 'cpu':
            return self._by_formula(img, self.normalize)
        batch = torch.empty(img.shape)
        for source, planes in zip(img.permute(0, 2, 3, 1).numpy(), batch.numpy(), strict=True):
            self.write(source, planes)
        return batch

    def random_steps(self, img: Tensor, draws: Tensor, rng: random.Random) -> Tensor:
        """`steps` on uint8 (N, C, H, W), perhaps in place.

        Args:
            draws: int32 (N, numbers of all steps), as `Pipeline.item` gives them. rng: seeds the noise.
        """
        for step, numbers in zip(self.steps, draws.split([step.draws for step in self.steps], 1), strict=True):
            img = step.on_batch(img, numbers, rng)
        return img

    def _check(self, channels: int) -> None:
        if self.normalize is not None and len(self.normalize.mean) not in (1, channels):
            raise ValueError(f'{self.normalize} got images of {channels} channels')

    def _by_formula(self, img: Tensor, norm: Normalize) -> Tensor:
        if img.device not in self._constants:  # a copy to the device each step would be a sync point
            mean, std = (torch.from_numpy(v).to(img.device).view(-1, 1, 1) for v in (norm.mean, norm.std))
            self._constants[img.device] = mean, std
        mean, std = self._constants[img.device]
        img = img.flip(1) if norm.to_rgb and img.shape[1] == 3 else img  # while it is a quarter of the bytes
        return torch.sub(img, mean).div_(std)

    def write(self, img: np.ndarray, planes: np.ndarray) -> None:
        """One image, uint8 (H, W, C), into `planes`, float32 (C, H, W).

        uint8 has 256 values: looking them up is exact, and on a CPU six times as fast as the formula.
        """
        if self.normalize is None:
            planes[...] = img.transpose(2, 0, 1)
            return
        self._check(len(planes))
        order = slice(None, None, -1) if self.normalize.to_rgb and len(planes) == 3 else slice(None)
        tables = np.broadcast_to(self._tables, (len(planes), 256))
        for channel, table, plane in zip(cv2.split(img)[order], tables, planes, strict=True):
            cv2.LUT(channel, table, plane)

    def __repr__(self) -> str:
        return f'DeviceStage({self.normalize or "cast to float32"})'


class Pipeline:
    """The steps of a config, in two forms that give the same images.

    A call runs `steps` as they are written, on a `results` dict. `prepare` and `device_stage` do it faster:
    uint8 steps on the bare image, then `Normalize` moved behind the batch. Where a step does not allow that
    (float before `Normalize`, or a borrowed step that takes the whole dict), `is_split` is False, the log says
    why, and `item` falls back to the written form.

    Args:
        steps: step configs, or callables on a `results` dict.
    """

    def __init__(self, steps: Sequence[dict[str, Any] | Callable[..., Any]] = ()) -> None:
        self.steps: list[Any] = [_build(step) for step in steps]
        self.keys: Sequence[str] = ('img', 'gt_label')
        self.device_stage = DeviceStage()
        self._read: Callable[[Any], Any] = LoadImageFromFile().read
        self._transforms: list[Callable[[np.ndarray, random.Random], np.ndarray]] = []
        self._rng = random.Random()
        obstacle = self._split()
        self.is_split = True
        if obstacle:
            self.run_as_written(obstacle)

    def run_as_written(self, reason: str) -> None:
        """From now on `item` takes the written form, step by step; the log says why."""
        _log.warning('a pipeline runs image by image in float, off the uint8 path: %s', reason)
        self.is_split, self.device_stage = False, DeviceStage()

    def __call__(self, results: dict[str, Any]) -> Any:
        for step in self.steps:
            results = step(results)
        return results

    def __repr__(self) -> str:
        return 'Pipeline(\n' + ''.join(f'    {step!r},\n' for step in self.steps) + ')'

    def _split(self) -> str | None:
        """Sort the steps into reading, image steps and device stage; returns the obstacle, if there is one."""
        rest = list(self.steps)
        for step in rest:
            if getattr(type(step).__call__, '__module__', None) not in _OWN_MODULES:
                return f'{getattr(step, "__name__", type(step).__name__)} takes the whole results dictionary'
        if rest and isinstance(rest[0], LoadImageFromFile):
            if rest[0].to_float32:
                return 'LoadImageFromFile(to_float32=True) gives float'
            self._read = decode_later if _needs_a_box(rest) else rest[0].read
            del rest[0]
        while rest and isinstance(rest[0], ImageStep) and rest[0].keeps_uint8:
            self._transforms.append(rest.pop(0).transform)
        before = reversed(self.steps[:len(self.steps) - len(rest)])
        late = list(takewhile(lambda step: vars(type(step)).get('draws'), before))[::-1]
        normalize = rest.pop(0) if rest and isinstance(rest[0], Normalize) else None
        for step in rest:
            if isinstance(step, (ImageStep, LoadImageFromFile)):
                return f'{type(step).__name__} comes where images are float'
            if isinstance(step, ToTensor) and 'img' in step.keys:
                return 'ToTensor leaves img as (H, W, C); ImageToTensor makes it (C, H, W)'
            if isinstance(step, Collect):
                self.keys = step.keys
        if extra := set(self.keys) - {'img', 'gt_label'}:
            return f'Collect asks for {", ".join(sorted(extra))}'
        self.device_stage = DeviceStage(normalize, late)
        return None

    def prepare(self, source: Source, rng: random.Random = GLOBAL_RNG, late: int = 0) -> np.ndarray:
        """The workers' share, where `is_split`: a file or BGR pixels to uint8 (H, W, C); the last `late` steps wait."""
        img = source if isinstance(source, np.ndarray) else self._read(source)
        for transform in self._transforms[:len(self._transforms) - late]:
            img = transform(img, rng)
        if img.dtype != _UINT8:
            raise TypeError(f'the pipeline gives {img.dtype} before Normalize; a step that means to do so sets '
                            'keeps_uint8 = False in its class')
        return img if img.ndim == 3 else img[:, :, None]

    def item(self, info: dict[str, Any], seed: int | None = None, for_device: bool = False) -> dict[str, Any]:
        """One sample for the loader.

        Args:
            info: as in `data_infos`: `img_prefix` and `img_info`, or `img`; and `gt_label`.
            seed: of all its random choices; None draws from the global `random` (and borrowed steps from
                wherever they do).
            for_device: leave the steps of the device stage undone; only what they draw is drawn, each in its turn.

        Returns:
            The keys of `Collect`: `img` uint8 (H, W, C), or float (C, H, W) where not `is_split`; `gt_label`.
            And, of steps that are left to the device, `DRAWS`: int32 (numbers of all steps,).
        """
        if not self.is_split:
            with _seeded_globals(seed):
                return self(copy.deepcopy(info))
        rng = GLOBAL_RNG
        if seed is not None:
            rng = self._rng
            rng.seed(seed)
        late = self.device_stage.steps if for_device else ()
        img = self.prepare(info['img'] if 'img' in info else image_path(info), rng, len(late))
        item = {key: img if key == 'img' else info[key] for key in self.keys if key == 'img' or key in info}
        if late:
            item[DRAWS] = np.array([n for step in late for n in step.draw(img.shape[0], img.shape[1], rng)], np.int32)
        return item

    def batch_of_one(self, info: dict[str, Any], device: torch.device | str = 'cpu') -> dict[str, Tensor]:
        """What the model takes for one image (`info` as for `item`): `img` float32 (1, C, H, W)."""
        img = torch.as_tensor(self.item(info)['img'])
        img = img.permute(2, 0, 1).contiguous() if self.is_split else img
        return {'img': self.device_stage(img[None].to(device))}


def _needs_a_box(steps: list[Any]) -> bool:
    """Whether of a file only a box is needed, and can be had. Classes derived from these two may need more."""
    known = [*map(type, steps[:2])] == [LoadImageFromFile, RandomResizedCrop]
    return known and (steps[0].color_type, steps[0].imdecode_backend) == ('color', None) and decoder() is not None


def _build(step: Any) -> Any:
    if isinstance(step, dict):
        return build_from_cfg(step, PIPELINES)
    if callable(step):
        return step
    raise TypeError(f'a pipeline step is a dict with a type, or a callable; got {type(step)}: {step!r}')


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
