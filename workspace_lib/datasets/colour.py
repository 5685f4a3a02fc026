"""Steps that change colours: those of AutoAugment and RandAugment, ColorJitter, and AlexNet's Lighting.

In and out: uint8 images in BGR order (Lighting gives float32). Pixels are those of mmcv's OpenCV functions, to the bit;
what depends on a pixel's value alone is one look-up in a table of 256 values. torchvision's kernels give the same for
most (AutoContrast and ColorTransform differ by 1 of 255, Sharpness by up to 10), and are slower but for the simplest.
"""
from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..arguments import check_number
from ..registry import PIPELINES
from .auto_augment import Signed, Sometimes
from .transforms import ImageStep

_VALUES = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # PIL.ImageFilter.SMOOTH


@PIPELINES.register_module()
class Invert(Sometimes):
    """255 - value."""

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return 255 - img


@PIPELINES.register_module()
class Solarize(Sometimes):
    """Invert the values from `thr` (0..256) up."""

    def __init__(self, thr: float, prob: float = 0.5) -> None:
        super().__init__(prob)
        check_number('thr', thr)
        self.thr = thr

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return _mapped(img, np.where(self.thr > _VALUES, _VALUES, 255 - _VALUES))


@PIPELINES.register_module()
class SolarizeAdd(Solarize):
    """Add `magnitude` to the values below `thr`, up to 255."""

    def __init__(self, magnitude: float, thr: float = 128, prob: float = 0.5) -> None:
        super().__init__(thr, prob)
        check_number('magnitude', magnitude)
        self.magnitude = magnitude

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return _mapped(img, np.where(self.thr > _VALUES, np.clip(_VALUES + self.magnitude, 0, 255), _VALUES))


@PIPELINES.register_module()
class Posterize(Sometimes):
    """Keep the first `bits` bits of each value, 0..8; a fraction counts as the next whole number (timm's rule)."""

    def __init__(self, bits: float, prob: float = 0.5) -> None:
        super().__init__(prob)
        if not 0 <= bits <= 8:
            raise ValueError(f'Posterize got bits={bits}; a value has 0 to 8 of them')
        self.bits = math.ceil(bits)

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return _mapped(img, _VALUES >> (8 - self.bits) << (8 - self.bits))


class _ByChannel(Sometimes):
    """A step that maps the values of each channel by what is in it; subclasses write `table`."""

    def table(self, histogram: np.ndarray) -> np.ndarray:
        """256 values in 0..255, from the counts (256,) of a channel."""
        raise NotImplementedError

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        counts = [cv2.calcHist([img], [channel], None, [256], [0, 256])[:, 0].astype(np.int64)
                  for channel in range(1 if img.ndim == 2 else img.shape[2])]
        return cv2.LUT(img, np.stack([self.table(count) for count in counts], -1).astype(np.uint8)[:, None])


@PIPELINES.register_module()
class AutoContrast(_ByChannel):
    """Stretch each channel so that its least value becomes 0 and its greatest 255."""

    def table(self, histogram: np.ndarray) -> np.ndarray:
        low, high = np.flatnonzero(histogram)[[0, -1]]
        scale = 255. / max(high - low, 1)
        return _VALUES if low == high else np.clip(_VALUES * scale + -low * scale, 0, 255)


@PIPELINES.register_module()
class Equalize(_ByChannel):
    """Give each channel a flat histogram, as Pillow's ImageOps.equalize does."""

    def table(self, histogram: np.ndarray) -> np.ndarray:
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        if step == 0:
            return _VALUES
        before = np.cumsum(histogram) - histogram
        return np.minimum((before + step // 2) // step, 255)


class _Blend(Signed):
    """The image and a plainer version of it, mixed: factor 1 + magnitude, over 1 exaggerates.

    Args:
        magnitude: 0 changes nothing. random_negative_prob: of it being taken as negative.
    """

    def __init__(self, magnitude: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number('magnitude', magnitude)
        self.magnitude = magnitude

    def apply(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return self.blend(img, 1 + self.signed(self.magnitude, rng))

    def blend(self, img: np.ndarray, factor: float) -> np.ndarray:
        raise NotImplementedError


@PIPELINES.register_module()
class Brightness(_Blend):
    """Away from black."""

    def blend(self, img: np.ndarray, factor: float) -> np.ndarray:
        return cv2.LUT(img, _blended(_VALUES, np.zeros(256), factor))


@PIPELINES.register_module()
class Contrast(_Blend):
    """Away from the mean grey of the image, a whole number."""

    def blend(self, img: np.ndarray, factor: float) -> np.ndarray:
        grey = _grey(img)
        return cv2.LUT(img, _blended(_VALUES, np.full(256, round(grey.sum() / grey.size)), factor))


@PIPELINES.register_module()
class ColorTransform(_Blend):
    """Away from the grey version of the image."""

    def blend(self, img: np.ndarray, factor: float) -> np.ndarray:
        if img.ndim == 2 or img.shape[2] == 1:
            return img
        grey = cv2.cvtColor(_grey(img), cv2.COLOR_GRAY2BGR)
        return cv2.addWeighted(img, factor, grey, 1 - factor, 0)


@PIPELINES.register_module()
class Sharpness(_Blend):
    """Away from a slightly blurred version of the image."""

    def blend(self, img: np.ndarray, factor: float) -> np.ndarray:
        return _blended(img, cv2.filter2D(img, -1, _SMOOTH), factor)


@PIPELINES.register_module()
class ColorJitter(ImageStep):
    """Brightness, contrast and saturation, in random order, each of magnitude uniform in +-(0..its setting)."""

    def __init__(self, brightness: float, contrast: float, saturation: float) -> None:
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        most = (Brightness, self.brightness), (Contrast, self.contrast), (ColorTransform, self.saturation)
        steps = [kind(rng.uniform(0, magnitude), prob=1.) for kind, magnitude in most]
        rng.shuffle(steps)
        for step in steps:
            img = step.transform(img, rng)
        return img


@PIPELINES.register_module()
class Lighting(ImageStep):
    """Add to every pixel a colour drawn along the principal components of ImageNet's colours (AlexNet, section 4.1).

    The image becomes float32, which keeps the pipeline off the fast uint8 path.

    Args:
        eigval, eigvec: n variances, and the components (3, n), in RGB order, of values in 0..255.
        alphastd: standard deviation of the n weights.
        to_rgb: turn BGR to RGB first.
    """

    keeps_uint8 = False

    def __init__(self, eigval: Sequence[float], eigvec: Sequence[Sequence[float]], alphastd: float = 0.1,
                 to_rgb: bool = True) -> None:
        self.eigval, self.eigvec = list(eigval), [list(vector) for vector in eigvec]
        self.alphastd, self.to_rgb = alphastd, to_rgb
        if np.shape(self.eigvec) != (3, len(self.eigval)):
            raise ValueError(f'Lighting got {len(eigval)} eigval and eigvec of shape {np.shape(self.eigvec)}; it takes '
                             'n values and vectors (3, n)')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        weights = [rng.gauss(0, self.alphastd) for _ in self.eigval]
        colour = (np.array(self.eigvec) * weights * self.eigval).sum(1)
        img = img[:, :, ::-1] if self.to_rgb else img
        return (img + colour).astype(np.float32)


def _mapped(img: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each value by `table`: 256 values in 0..255 of any type, cut off to uint8."""
    return cv2.LUT(img, table.astype(np.uint8))


def _grey(img: np.ndarray) -> np.ndarray:
    return img if img.ndim == 2 or img.shape[2] == 1 else cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)


def _blended(img: np.ndarray, plain: np.ndarray, factor: float) -> np.ndarray:
    """img * factor + plain * (1 - factor) in float32, cut off (not rounded) to uint8, as Pillow does."""
    mixed = cv2.addWeighted(img.astype(np.float32), factor, plain.astype(np.float32), 1 - factor, 0)
    return np.clip(mixed, 0, 255).astype(np.uint8).reshape(img.shape)
