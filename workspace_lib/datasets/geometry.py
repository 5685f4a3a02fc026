"""Steps that move or erase pixels: rotation, shear and translation by OpenCV, Cutout and RandomErasing.

In and out: uint8 images (H, W, C) or (H, W). Pixels are those of mmcv's functions, to the bit; torchvision's kernels
round their places differently (up to 59 of 255 at an edge, bilinear), and take ten times as long.
"""
from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from ..arguments import check_known, check_number, check_probability
from ..registry import PIPELINES
from .auto_augment import Signed, Sometimes
from .transforms import CV2_FILTERS, Box

Colour = float | Sequence[float]  # one number for all channels, or one for each, in the image's order


class _Warp(Signed):
    """What the three affine steps share; subclasses write `matrix`.

    Args:
        pad_val: what comes in from outside. prob: of doing anything.
        random_negative_prob: of the other direction.
        interpolation: 'nearest', 'bilinear', 'bicubic', 'area' or 'lanczos'.
    """

    def __init__(self, *, pad_val: Colour = 128, interpolation: str = 'nearest', **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_known('interpolation', interpolation, CV2_FILTERS)
        self.pad_val, self.interpolation = three(pad_val, 'pad_val'), interpolation

    def matrix(self, height: int, width: int, rng: random.Random) -> np.ndarray:
        """(2, 3), from places in the image to places in the new one."""
        raise NotImplementedError

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        height, width = img.shape[:2]
        return cv2.warpAffine(img, self.matrix(height, width, rng), (width, height),
                              flags=CV2_FILTERS[self.interpolation], borderValue=self.pad_val)


class _Shift(_Warp):
    """What Shear and Translate share. `magnitude`: how far. direction: 'horizontal' or 'vertical'."""

    def __init__(self, magnitude: float, *, direction: str = 'horizontal', **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_known('direction', direction, ('horizontal', 'vertical'))
        check_number('magnitude', magnitude)
        self.magnitude, self.direction = magnitude, direction


@PIPELINES.register_module()
class Shear(_Shift):
    """Move each row (or, 'vertical', column) by `magnitude` times its number."""

    def __init__(self, magnitude: float, *, interpolation: str = 'bicubic', **kwargs: Any) -> None:
        super().__init__(magnitude, interpolation=interpolation, **kwargs)

    def matrix(self, height: int, width: int, rng: random.Random) -> np.ndarray:
        by, flat = self.signed(self.magnitude, rng), self.direction == 'horizontal'
        return np.array([[1, by, 0], [0, 1, 0]] if flat else [[1, 0, 0], [by, 1, 0]], np.float32)


@PIPELINES.register_module()
class Translate(_Shift):
    """Move the image by `magnitude` times its width (or, 'vertical', height)."""

    def matrix(self, height: int, width: int, rng: random.Random) -> np.ndarray:
        by, flat = self.signed(self.magnitude, rng), self.direction == 'horizontal'
        return np.array([[1, 0, by * width if flat else 0], [0, 1, 0 if flat else by * height]], np.float32)


@PIPELINES.register_module()
class Rotate(_Warp):
    """Turn the image clockwise by `angle` degrees about `center` (x, y), default its middle, and scale it."""

    def __init__(self, angle: float, center: Sequence[float] | None = None, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if center is not None and len(center) != 2:
            raise ValueError(f'Rotate got center={center}; it takes (x, y)')
        check_number('angle', angle)
        check_number('scale', scale)
        self.angle, self.center, self.scale = angle, center, scale

    def matrix(self, height: int, width: int, rng: random.Random) -> np.ndarray:
        center = self.center or ((width - 1) * 0.5, (height - 1) * 0.5)
        return cv2.getRotationMatrix2D(tuple(center), -self.signed(self.angle, rng), self.scale)


@PIPELINES.register_module()
class Cutout(Sometimes):
    """Paint a rectangle of `shape`, (height, width) or one number, in `pad_val`; at the edges it may be cut off."""

    def __init__(self, shape: float | Sequence[float], pad_val: Colour = 128, prob: float = 0.5) -> None:
        super().__init__(prob)
        height, width = (shape, shape) if isinstance(shape, int | float) else shape
        self.shape, self.pad_val = (int(height), int(width)), three(pad_val, 'pad_val')

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        (h, w), (height, width) = self.shape, img.shape[:2]
        y, x = rng.uniform(height, 1), rng.uniform(width, 1)  # mmcv's np.random.uniform(height) is that too
        top, left = int(max(0, y - h / 2)), int(max(0, x - w / 2))
        return _painted(img, top, left, np.tile(np.array(self.pad_val).astype(np.uint8), (h, w, 1)))


@PIPELINES.register_module()
class RandomErasing(Sometimes):
    """Paint over a random rectangle with probability `erase_prob` (arXiv:1708.04896).

    Args:
        min_area_ratio, max_area_ratio: the rectangle's share of the image.
        aspect_range: of height / width; x alone stands for (x, 1 / x). Its logarithm is uniform.
        mode: 'const' paints `fill_color`; 'rand' paints each value at random: normal around `fill_color` with
            standard deviation `fill_std`, or without that uniform in 0..255.
    """

    draws = 4

    def __init__(self, erase_prob: float = 0.5, min_area_ratio: float = 0.02, max_area_ratio: float = 0.4,
                 aspect_range: float | Sequence[float] = (3 / 10, 10 / 3), mode: str = 'const',
                 fill_color: Colour = (128, 128, 128), fill_std: Colour | None = None) -> None:
        check_probability('erase_prob', erase_prob)
        check_known('mode', mode, ('const', 'rand'))
        if not 0 <= min_area_ratio <= max_area_ratio <= 1:
            raise ValueError(f'RandomErasing got areas from {min_area_ratio} to {max_area_ratio}; both are shares of '
                             'the image, the least first')
        if isinstance(aspect_range, int | float):
            aspect_range = sorted((aspect_range, 1 / aspect_range))
        if len(aspect_range) != 2 or not 0 < aspect_range[0] <= aspect_range[1]:
            raise ValueError(f'RandomErasing got aspect_range={aspect_range}; it takes (least, most), above 0')
        self.erase_prob = self.prob = erase_prob
        self.min_area_ratio, self.max_area_ratio, self.aspect_range = min_area_ratio, max_area_ratio, aspect_range
        self.mode, self.fill_color = mode, three(fill_color, 'fill_color')
        self.fill_std = None if fill_std is None else three(fill_std, 'fill_std')
        self._log_aspect = np.log(np.array(aspect_range, np.float32)).tolist()

    def box(self, height: int, width: int, rng: random.Random) -> Box:
        aspect = np.exp(rng.uniform(*self._log_aspect))
        area = height * width * rng.uniform(self.min_area_ratio, self.max_area_ratio)
        h = min(round(np.sqrt(area * aspect)), height)
        w = min(round(np.sqrt(area / aspect)), width)
        top, left = (rng.randrange(room) if room else 0 for room in (height - h, width - w))
        return top, left, h, w

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        top, left, h, w = self.box(img.shape[0], img.shape[1], rng)
        return _painted(img, top, left, self._patch(h, w, rng))

    def _patch(self, h: int, w: int, rng: random.Random) -> np.ndarray:
        """uint8 (h, w, 3)."""
        if self.mode == 'const':
            return np.tile(np.array(self.fill_color).astype(np.uint8), (h, w, 1))
        noise = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))  # 10 microseconds once
        if self.fill_std is None:
            return noise.integers(0, 256, (h, w, 3), np.uint8)
        std, mean = np.array(self.fill_std, np.float32), np.array(self.fill_color, np.float32)
        return np.clip(noise.standard_normal((h, w, 3), np.float32) * std + mean, 0, 255).astype(np.uint8)

    def draw(self, height: int, width: int, rng: random.Random) -> Box:
        if rng.random() >= self.prob:
            return 0, 0, 0, 0
        box = self.box(height, width, rng)
        rng.getrandbits(64 if self.mode == 'rand' else 0)  # the seed of the image's own noise
        return box

    def on_batch(self, img: torch.Tensor, numbers: torch.Tensor, rng: random.Random) -> torch.Tensor:
        """Noise is drawn for all pixels, though few take it: for the sizes of the boxes the host would have to wait."""
        top, left, h, w = numbers.unsqueeze(2).unbind(1)  # each (N, 1)
        rows, columns = (torch.arange(side, device=img.device) for side in img.shape[2:])
        inside = ((top <= rows) & (rows < top + h))[:, :, None] & ((left <= columns) & (columns < left + w))[:, None]
        generator = torch.Generator(img.device).manual_seed(rng.getrandbits(63))
        for channel, plane in enumerate(img.unbind(1)):  # with noise of all three, three times the memory
            if self.mode == 'const':
                plane.masked_fill_(inside, np.array(self.fill_color[channel]).astype(np.uint8).item())
            else:
                plane.copy_(torch.where(inside, self._noise(plane, channel, generator), plane))
        return img

    def _noise(self, plane: torch.Tensor, channel: int, generator: torch.Generator) -> torch.Tensor:
        """That of `_patch` for one channel of a batch: uint8 (N, H, W)."""
        noise = torch.empty(plane.shape, device=plane.device)
        if self.fill_std is None:
            noise.random_(256, generator=generator)
        else:
            noise.normal_(self.fill_color[channel], self.fill_std[channel], generator=generator).clamp_(0, 255)
        return noise.to(torch.uint8)


def three(colour: Colour, name: str) -> tuple[Any, ...]:
    """A number for each of three channels."""
    values = (colour,) * 3 if isinstance(colour, int | float) else tuple(colour)
    if len(values) != 3:
        raise ValueError(f'got {name}={colour}; it takes one number, or one for each of three channels')
    return values


def _painted(img: np.ndarray, top: int, left: int, patch: np.ndarray) -> np.ndarray:
    """A copy with `patch` (h, w, 3) at its place, as far as it fits."""
    img = img.copy()
    place = img[top:top + len(patch), left:left + patch.shape[1]]
    place[...] = patch[:len(place), :place.shape[1], :1 if img.ndim == 2 else img.shape[2]].reshape(place.shape)
    return img
