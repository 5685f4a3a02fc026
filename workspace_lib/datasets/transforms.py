"""Image steps of the ImageNet, CIFAR and MNIST recipes, with mmclassification's names, arguments and pixels.

In and out: the bare image for `transform(img, rng)`; the `results` dict of the grammar for a call.
"""
from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
import torch

from ..arguments import PassesOn, check_known, check_probability
from ..registry import PIPELINES

GLOBAL_RNG = cast(random.Random, random)  # the module draws as an instance does, and `random.seed` seeds it
CV2_FILTERS = {'nearest': cv2.INTER_NEAREST, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC,
               'area': cv2.INTER_AREA, 'lanczos': cv2.INTER_LANCZOS4}
PILLOW_FILTERS = {'nearest': 0, 'lanczos': 1, 'bilinear': 2, 'bicubic': 3, 'box': 4, 'hamming': 5}
BORDERS = {'constant': cv2.BORDER_CONSTANT, 'edge': cv2.BORDER_REPLICATE,
           'reflect': cv2.BORDER_REFLECT_101, 'symmetric': cv2.BORDER_REFLECT}
Size = int | Sequence[int]
Box = tuple[int, int, int, int]  # top, left, height, width


class Step:
    """What all steps share: they show their settings."""

    def __repr__(self) -> str:
        shown = (f'{key}={value!r}' for key, value in vars(self).items() if key[0] != '_')
        return f'{type(self).__name__}({", ".join(shown)})'


class ImageStep(PassesOn, Step):
    """A step on the image alone, (H, W, C) or (H, W); subclasses write `transform`.

    One that makes float of uint8 sets `keeps_uint8 = False`. One that a GPU can do for a whole batch has in its own
    class `draws`, how many numbers it draws an image (a subclass says so anew, or is not asked), and two methods:
    `draw(height, width, rng)`: the numbers, with every draw of `transform`, so that the steps after it draw as ever.
    `on_batch(img, numbers, rng)`: uint8 (N, C, H, W) and int32 (N, draws) to the new batch, perhaps in place, on any
    device, without waiting for it.
    """

    keeps_uint8 = True
    draws = 0

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        """The new image. `img` is never written into; every random choice is drawn from `rng`."""
        raise NotImplementedError(f'{type(self).__name__} does not define transform(img, rng)')

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        for key in results.get('img_fields', ['img']):
            results[key] = self.transform(results[key], results.get('rng', GLOBAL_RNG))
            results['img_shape'] = results[key].shape
        return results


@PIPELINES.register_module()
class RandomResizedCrop(ImageStep):
    """Cut a box of random area and aspect ratio and resize it to `size` (Szegedy et al. 2015, section 6).

    Args:
        size: (height, width), or one number for both.
        scale, ratio: ranges of the box's share of the area, and of its width / height.
        max_attempts: boxes drawn before a central one is taken.
        efficientnet_style: draw the height first, as TensorFlow's sample_distorted_bounding_box does.
        min_covered, crop_padding: for it, the least share of the area, and the border of the central box.
        interpolation, backend: as `Resize`.
    """

    def __init__(self, size: Size, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3),
                 max_attempts: int = 10, efficientnet_style: bool = False, min_covered: float = 0.1,
                 crop_padding: int = 32, interpolation: str = 'bilinear', backend: str = 'cv2') -> None:
        if scale[0] > scale[1] or ratio[0] > ratio[1]:
            raise ValueError(f'RandomResizedCrop got scale={scale}, ratio={ratio}; both are (min, max)')
        if min(min_covered, max_attempts, crop_padding) < 0:
            raise ValueError('RandomResizedCrop takes no negative min_covered, max_attempts, crop_padding')
        check_filter(interpolation, backend)
        self.size = one_size(size) if efficientnet_style else pair(size)
        self.scale, self.ratio, self.max_attempts = scale, ratio, max_attempts
        self.efficientnet_style, self.min_covered = efficientnet_style, min_covered
        self.crop_padding, self.interpolation, self.backend = crop_padding, interpolation, backend
        self._log_ratio = math.log(ratio[0]), math.log(ratio[1])

    def box(self, height: int, width: int, rng: random.Random) -> Box:
        area, (low, high), (least, most) = height * width, self._log_ratio, self.scale
        for _ in range(self.max_attempts):
            target = rng.uniform(least, most) * area
            aspect = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = rng.randint(0, height - h)
                return top, rng.randint(0, width - w), h, w
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w

    def efficientnet_box(self, height: int, width: int, rng: random.Random) -> Box:
        area = height * width
        least, most = self.scale[0] * area, self.scale[1] * area
        for _ in range(self.max_attempts):
            aspect = rng.uniform(*self.ratio)
            tallest = round(math.sqrt(most / aspect))
            if tallest * aspect > width:
                tallest = int((width + 0.5 - 1e-7) / aspect)
                tallest -= tallest * aspect > width
            tallest = min(tallest, height)
            h = round(rng.uniform(min(tallest, round(math.sqrt(least / aspect))), tallest))
            w = round(h * aspect)
            if w <= width and h <= height and max(least, self.min_covered * area) <= h * w <= most:
                top = rng.randint(0, height - h)
                return top, rng.randint(0, width - w), h, w
        side = self.size[0] / (self.size[0] + self.crop_padding) * min(height, width)
        return central(height, width, side, side)

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        draw = self.efficientnet_box if self.efficientnet_style else self.box
        top, left, h, w = draw(img.shape[0], img.shape[1], rng)
        return resize(img[top:top + h, left:left + w], self.size, self.interpolation, self.backend)


@PIPELINES.register_module()
class Resize(ImageStep):
    """Resize to `size`: (height, width), one number for both, or (n, -1): n for `adaptive_side`, ratio kept.

    Args:
        interpolation: 'nearest', 'bilinear', 'bicubic', 'lanczos', 'area' (cv2), 'box', 'hamming' (pillow).
        adaptive_side: 'short', 'long', 'height' or 'width'.
        backend: 'pillow' is antialiased and takes uint8 only; 'cv2' is neither.
    """

    def __init__(self, size: Size, interpolation: str = 'bilinear', adaptive_side: str = 'short',
                 backend: str = 'cv2') -> None:
        check_known('adaptive_side', adaptive_side, ('short', 'long', 'height', 'width'))
        check_filter(interpolation, backend)
        self.size, self.interpolation = pair(size), interpolation
        self.adaptive_side, self.backend = adaptive_side, backend
        if self.size[0] <= 0 or self.size[1] <= 0 and self.size[1] != -1:
            raise ValueError(f'Resize got size={size}; known: n, (height, width), (n, -1)')

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of that size gets."""
        n, other = self.size
        side = {'short': min, 'long': max}.get(self.adaptive_side)
        by_width = self.adaptive_side == 'width' if side is None else width == side(height, width)
        if other != -1:
            return n, other
        return (int(n * height / width), n) if by_width else (n, int(n * width / height))

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return resize(img, self.target(img.shape[0], img.shape[1]), self.interpolation, self.backend)


@PIPELINES.register_module()
class CenterCrop(ImageStep):
    """Cut the centre, (height, width) or one number for both; a side that is shorter stays as it is.

    With `efficientnet_style`: crop_size / (crop_size + crop_padding) of the short side, then resized.
    """

    def __init__(self, crop_size: Size, efficientnet_style: bool = False, crop_padding: int = 32,
                 interpolation: str = 'bilinear', backend: str = 'cv2') -> None:
        check_filter(interpolation, backend)
        self.crop_size = one_size(crop_size) if efficientnet_style else pair(crop_size)
        self.efficientnet_style, self.crop_padding = efficientnet_style, crop_padding
        self.interpolation, self.backend = interpolation, backend
        if min(self.crop_size) <= 0 or crop_padding < 0:
            raise ValueError(f'CenterCrop got crop_size={crop_size}, crop_padding={crop_padding}')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        (h, w), (height, width) = self.crop_size, img.shape[:2]
        side = h / (h + self.crop_padding) * min(height, width)
        top, left, rows, columns = central(height, width, *((side, side) if self.efficientnet_style else (h, w)))
        img = img[top:top + rows, left:left + columns]
        return resize(img, self.crop_size, self.interpolation, self.backend) if self.efficientnet_style else img


@PIPELINES.register_module()
class RandomCrop(ImageStep):
    """Cut a box of `size`, (height, width) or one number for both, at a random place, after padding.

    Args:
        padding: on all sides, (left/right, top/bottom), or (left, top, right, bottom).
        pad_if_needed: pad a side that is shorter than `size` by the difference, at both ends.
        pad_val, padding_mode: as `Pad`.
    """

    def __init__(self, size: Size, padding: Size | None = None, pad_if_needed: bool = False,
                 pad_val: float | Sequence[float] = 0, padding_mode: str = 'constant') -> None:
        check_known('padding_mode', padding_mode, BORDERS)
        self.size, self.padding, self.pad_if_needed = pair(size), padding, pad_if_needed
        self.pad_val, self.padding_mode = pad_val, padding_mode
        sides = (padding or 0,) * 4 if isinstance(padding, int | None) else tuple(padding)
        self._sides = sides * 2 if len(sides) == 2 else sides
        if len(self._sides) != 4:
            raise ValueError(f'RandomCrop got padding={padding}; known: 1, 2 or 4 numbers')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        img, (h, w) = pad(img, self._sides, self.pad_val, self.padding_mode), self.size
        if self.pad_if_needed:
            more_h, more_w = max(h - img.shape[0], 0), max(w - img.shape[1], 0)
            img = pad(img, (more_w, more_h, more_w, more_h), self.pad_val, self.padding_mode)
        height, width = img.shape[:2]
        if height < h or width < w:
            raise ValueError(f'RandomCrop got an image of {height} x {width}, smaller than size={self.size}; '
                             'set pad_if_needed=True, or resize before')
        if (height, width) == (h, w):
            return img
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        return img[top:top + h, left:left + w]


@PIPELINES.register_module()
class RandomFlip(ImageStep):
    """Mirror with probability `flip_prob`; `direction` is 'horizontal' or 'vertical'."""

    draws = 1

    def __init__(self, flip_prob: float = 0.5, direction: str = 'horizontal') -> None:
        check_known('direction', direction, ('horizontal', 'vertical'))
        check_probability('flip_prob', flip_prob)
        self.flip_prob, self.direction = flip_prob, direction
        self._axis = int(direction == 'horizontal')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return cv2.flip(img, self._axis) if rng.random() < self.flip_prob else img

    def draw(self, height: int, width: int, rng: random.Random) -> Sequence[int]:
        return rng.random() < self.flip_prob,

    def on_batch(self, img: torch.Tensor, numbers: torch.Tensor, rng: random.Random) -> torch.Tensor:
        return torch.where(numbers[:, :, None, None] != 0, img.flip(2 + self._axis), img)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        flip = results.get('rng', GLOBAL_RNG).random() < self.flip_prob
        results.update(flip=flip, flip_direction=self.direction)
        for key in results.get('img_fields', ['img']) if flip else ():
            results[key] = cv2.flip(results[key], self._axis)
        return results


@PIPELINES.register_module()
class Pad(ImageStep):
    """Pad at the right and the bottom to `size`, (height, width) or one number, or to a square.

    `pad_val` is one number for all channels or one for each; `padding_mode` is 'constant', 'edge' (repeat the
    border), 'reflect' (mirror without the border) or 'symmetric' (mirror with it).
    """

    def __init__(self, size: Size | None = None, pad_to_square: bool = False,
                 pad_val: float | Sequence[float] = 0, padding_mode: str = 'constant') -> None:
        if (size is None) is not pad_to_square:
            raise ValueError(f'Pad takes either size or pad_to_square; got {size} and {pad_to_square}')
        check_known('padding_mode', padding_mode, BORDERS)
        self.size = None if size is None else pair(size)
        self.pad_to_square, self.pad_val, self.padding_mode = pad_to_square, pad_val, padding_mode

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        height, width = img.shape[:2]
        h, w = self.size or (max(height, width),) * 2
        return pad(img, (0, 0, max(w - width, 0), max(h - height, 0)), self.pad_val, self.padding_mode)


@PIPELINES.register_module()
class RandomGrayscale(ImageStep):
    """Make the image grey with probability `gray_prob`, keeping its channels; weights as for RGB order."""

    def __init__(self, gray_prob: float = 0.1) -> None:
        check_probability('gray_prob', gray_prob)
        self.gray_prob = gray_prob

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        if rng.random() >= self.gray_prob or img.ndim == 2 or img.shape[2] == 1:
            return img
        return cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@PIPELINES.register_module()
class Normalize(ImageStep):
    """(img - mean) / std in float32, after BGR -> RGB if `to_rgb`; both are in 0..255, a number a channel."""

    keeps_uint8 = False

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> None:
        self.mean, self.std, self.to_rgb = np.array(mean, np.float32), np.array(std, np.float32), to_rgb
        if self.mean.shape != self.std.shape or not self.std.all():
            raise ValueError(f'Normalize got mean={mean}, std={std}; both have one number a channel, and no '
                             'std is 0')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        channels = img[:, :, None] if img.ndim == 2 else img
        if self.to_rgb and channels.shape[2] == 3:
            channels = channels[:, :, ::-1]
        return ((channels.astype(np.float32) - self.mean) / self.std).reshape(img.shape)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results['img_norm_cfg'] = {'mean': self.mean, 'std': self.std, 'to_rgb': self.to_rgb}
        return super().__call__(results)


def check_filter(interpolation: str, backend: str) -> None:
    check_known('backend', backend, ('cv2', 'pillow'))
    check_known('interpolation', interpolation, CV2_FILTERS if backend == 'cv2' else PILLOW_FILTERS)


def pair(size: Size) -> tuple[int, int]:
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2:
        raise ValueError(f'got size={size}; known: one number, or (height, width)')
    return sizes


def one_size(size: Size) -> tuple[int, int]:
    if not isinstance(size, int):
        raise ValueError(f'got size={size}; with efficientnet_style it is one number')
    return size, size


def central(height: int, width: int, h: float, w: float) -> Box:
    top, left = max(0, round((height - h) / 2)), max(0, round((width - w) / 2))
    return top, left, int(min(height, top + h)) - top, int(min(width, left + w)) - left


def resize(img: np.ndarray, size: tuple[int, int], interpolation: str, backend: str) -> np.ndarray:
    """`img` at `size` (height, width), itself if it has that size already."""
    if img.shape[:2] == size:
        return img
    if backend == 'cv2':
        return cv2.resize(img, (size[1], size[0]), None, 0, 0, CV2_FILTERS[interpolation])
    from PIL import Image
    if img.dtype != np.uint8:
        raise ValueError(f'backend="pillow" resizes uint8 only, and the image is {img.dtype}; use '
                         'backend="cv2", or load without to_float32')
    # Pillow need not know that the order is BGR, but it wants (H, W) for one channel
    image = Image.fromarray(img[:, :, 0] if img.shape[2:] == (1,) else img)
    return np.array(image.resize(size[::-1], Image.Resampling(PILLOW_FILTERS[interpolation])))


def pad(img: np.ndarray, sides: Sequence[int], value: float | Sequence[float], mode: str) -> np.ndarray:
    """`img` with borders of `sides` (left, top, right, bottom)."""
    if not any(sides):
        return img
    left, top, right, bottom = sides
    # OpenCV takes a single number for the first channel alone
    fill = [value] * 4 if isinstance(value, (int, float)) else value
    return cv2.copyMakeBorder(img, top, bottom, left, right, BORDERS[mode], value=fill)
