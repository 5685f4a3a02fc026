"""The pipeline steps that the ImageNet, CIFAR and MNIST recipes use, under mmclassification's names and arguments.

In and out: a `results` dict, as custom steps know it; or, for an image step, `transform(img, rng)` on the bare image.
"""

from __future__ import annotations

import math
import os.path as osp
import random
from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
import torch

from workspace_lib.datasets.decode import BACKENDS, FLAGS, decode
from workspace_lib.registry import PIPELINES

GLOBAL_RNG = cast(random.Random, random)  # the module draws like an instance does, and `random.seed` seeds it
CV2_INTERPOLATION = {'nearest': cv2.INTER_NEAREST, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC,
                     'area': cv2.INTER_AREA, 'lanczos': cv2.INTER_LANCZOS4}
PILLOW_INTERPOLATION = {'nearest': 0, 'lanczos': 1, 'bilinear': 2, 'bicubic': 3, 'box': 4, 'hamming': 5}
BORDERS = {'constant': cv2.BORDER_CONSTANT, 'edge': cv2.BORDER_REPLICATE, 'reflect': cv2.BORDER_REFLECT_101,
           'symmetric': cv2.BORDER_REFLECT}
Size = int | Sequence[int]


class Step:
    """What all steps share: they show their settings."""

    def __repr__(self) -> str:
        shown = (f'{key}={value!r}' for key, value in vars(self).items() if key[0] != '_')
        return f'{type(self).__name__}({", ".join(shown)})'


class ImageStep(Step):
    """A step on the image alone; subclasses write `transform`.

    An image is (H, W, C), or (H, W) for one channel. A step that turns uint8 into float sets `keeps_uint8 = False`.
    """

    keeps_uint8 = True

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        """The new image. `img` is never written into, and every random choice is drawn from `rng`."""
        raise NotImplementedError(f'{type(self).__name__} does not define transform(img, rng)')

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        for key in results.get('img_fields', ['img']):
            results[key] = self.transform(results[key], results.get('rng', GLOBAL_RNG))
            results['img_shape'] = results[key].shape
        return results


@PIPELINES.register_module()
class LoadImageFromFile(Step):
    """Read `img_info.filename`, under `img_prefix` unless that is None; see `decode` for the pixels.

    Args:
        to_float32: give float32, still 0..255. Keeps the pipeline off the fast uint8 path.
        color_type: 'color' (BGR), 'grayscale', 'unchanged', or with `_ignore_orientation`.
        imdecode_backend: None, 'cv2' or 'pillow'.
        file_client_args: only `dict(backend='disk')` is known.
    """

    def __init__(self, to_float32: bool = False, color_type: str = 'color', imdecode_backend: str | None = None,
                 file_client_args: dict[str, Any] | None = None) -> None:
        _known('color_type', color_type, FLAGS)
        _known('imdecode_backend', imdecode_backend, BACKENDS)
        check_file_client(file_client_args)
        self.to_float32, self.color_type, self.imdecode_backend = to_float32, color_type, imdecode_backend

    def read(self, source: Any) -> np.ndarray:
        """Path or bytes to pixels."""
        return decode(source, self.color_type, self.imdecode_backend)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        name = results['img_info']['filename']
        path = image_path(results)
        img = self.read(path)
        img = img.astype(np.float32) if self.to_float32 else img
        channels = 1 if img.ndim == 2 else img.shape[2]
        norm = {'mean': np.zeros(channels, np.float32), 'std': np.ones(channels, np.float32), 'to_rgb': False}
        results.update(filename=path, ori_filename=name, img=img, img_shape=img.shape, ori_shape=img.shape,
                       img_norm_cfg=norm)
        return results


@PIPELINES.register_module()
class RandomResizedCrop(ImageStep):
    """Cut a box of random area and aspect ratio and resize it to `size` (Szegedy et al. 2015, section 6).

    Args:
        size: (height, width), or one number for both.
        scale, ratio: ranges of the box's share of the area, and of its width / height.
        max_attempts: boxes drawn before a central one is taken.
        efficientnet_style: draw height first, as TensorFlow's `sample_distorted_bounding_box` does.
        min_covered: least share of the area; crop_padding: the central crop's border; both for efficientnet_style.
        interpolation, backend: as `Resize`.
    """

    def __init__(self, size: Size, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3),
                 max_attempts: int = 10, efficientnet_style: bool = False, min_covered: float = 0.1,
                 crop_padding: int = 32, interpolation: str = 'bilinear', backend: str = 'cv2') -> None:
        if scale[0] > scale[1] or ratio[0] > ratio[1]:
            raise ValueError(f'RandomResizedCrop got scale={scale}, ratio={ratio}; both are (min, max)')
        if efficientnet_style and not isinstance(size, int):
            raise ValueError(f'RandomResizedCrop got size={size}; efficientnet_style takes one number')
        if min(min_covered, max_attempts, crop_padding) < 0:
            raise ValueError('RandomResizedCrop: min_covered, max_attempts and crop_padding must be >= 0')
        _check_interpolation(interpolation, backend)
        self.size, self.scale, self.ratio, self.max_attempts = _pair(size), scale, ratio, max_attempts
        self.efficientnet_style, self.min_covered, self.crop_padding = efficientnet_style, min_covered, crop_padding
        self.interpolation, self.backend = interpolation, backend
        self._log_ratio = math.log(ratio[0]), math.log(ratio[1])

    def box(self, height: int, width: int, rng: random.Random) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width)."""
        area, (low, high) = height * width, self._log_ratio
        for _ in range(self.max_attempts):
            target = rng.uniform(*self.scale) * area
            aspect = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = rng.randint(0, height - h)
                return top, rng.randint(0, width - w), h, w
        narrow, wide = min(self.ratio), max(self.ratio)
        w = width if width / height <= wide else round(height * wide)
        h = height if width / height >= narrow else round(width / narrow)
        return (height - h) // 2, (width - w) // 2, h, w

    def efficientnet_box(self, height: int, width: int, rng: random.Random) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) as EfficientNet's training does."""
        area = height * width
        least, most = self.scale[0] * area, self.scale[1] * area
        for _ in range(self.max_attempts):
            aspect = rng.uniform(*self.ratio)
            tallest = round(math.sqrt(most / aspect))
            if tallest * aspect > width:
                tallest = int((width + 0.5 - 1e-7) / aspect)
                tallest -= tallest * aspect > width
            tallest = min(tallest, height)
            lowest = min(tallest, round(math.sqrt(least / aspect)))
            h = round(rng.uniform(lowest, tallest))
            w = round(h * aspect)
            if least <= h * w <= most and w <= width and h <= height and h * w >= self.min_covered * area:
                top = rng.randint(0, height - h)
                return top, rng.randint(0, width - w), h, w
        side = self.size[0] / (self.size[0] + self.crop_padding) * min(height, width)
        return _central(height, width, side, side)

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        draw = self.efficientnet_box if self.efficientnet_style else self.box
        top, left, h, w = draw(img.shape[0], img.shape[1], rng)
        return _resize(img[top:top + h, left:left + w], self.size, self.interpolation, self.backend)


@PIPELINES.register_module()
class Resize(ImageStep):
    """Resize to `size`: (height, width), one number for both, or (n, -1): n for the `adaptive_side`, ratio kept.

    Args:
        interpolation: 'nearest', 'bilinear', 'bicubic', 'lanczos'; also 'area' (cv2), 'box', 'hamming' (pillow).
        adaptive_side: 'short', 'long', 'height' or 'width'.
        backend: 'cv2' (not antialiased but for 'area') or 'pillow' (antialiased, uint8 only).
    """

    def __init__(self, size: Size, interpolation: str = 'bilinear', adaptive_side: str = 'short',
                 backend: str = 'cv2') -> None:
        _known('adaptive_side', adaptive_side, ('short', 'long', 'height', 'width'))
        _check_interpolation(interpolation, backend)
        self.size, self.interpolation = _pair(size), interpolation
        self.adaptive_side, self.backend = adaptive_side, backend
        if self.size[0] <= 0 or self.size[1] <= 0 and self.size[1] != -1:
            raise ValueError(f'Resize got size={size}; known: n, (height, width) or (n, -1)')

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of that size gets."""
        n, other = self.size
        if other != -1:
            return n, other
        side = self.adaptive_side
        by_width = side == 'width' or side == 'short' and width < height or side == 'long' and width > height
        if n == (width if by_width else height):
            return height, width
        return (int(n * height / width), n) if by_width else (n, int(n * width / height))

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        size = self.target(img.shape[0], img.shape[1])
        if self.size[1] == -1 and size == img.shape[:2]:
            return img
        return _resize(img, size, self.interpolation, self.backend)


@PIPELINES.register_module()
class CenterCrop(ImageStep):
    """Cut the centre: (height, width) or one number; an image that is smaller stays as it is.

    With `efficientnet_style` the centre is size / (size + crop_padding) of the short side, resized to `crop_size`.
    """

    def __init__(self, crop_size: Size, efficientnet_style: bool = False, crop_padding: int = 32,
                 interpolation: str = 'bilinear', backend: str = 'cv2') -> None:
        if efficientnet_style and not isinstance(crop_size, int):
            raise ValueError(f'CenterCrop got crop_size={crop_size}; efficientnet_style takes one number')
        _check_interpolation(interpolation, backend)
        self.crop_size, self.efficientnet_style, self.crop_padding = _pair(crop_size), efficientnet_style, crop_padding
        self.interpolation, self.backend = interpolation, backend
        if min(self.crop_size) <= 0 or crop_padding < 0:
            raise ValueError(f'CenterCrop got crop_size={crop_size}, crop_padding={crop_padding}')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        height, width = img.shape[:2]
        h, w = self.crop_size
        if not self.efficientnet_style:
            top, left, h, w = _central(height, width, h, w)
            return img[top:top + h, left:left + w]
        side = h / (h + self.crop_padding) * min(height, width)
        top, left, h, w = _central(height, width, side, side)
        return _resize(img[top:top + h, left:left + w], self.crop_size, self.interpolation, self.backend)


@PIPELINES.register_module()
class RandomCrop(ImageStep):
    """Cut a box of `size` at a random place, after padding.

    Args:
        size: (height, width), or one number for both.
        padding: on all sides, (left/right, top/bottom), or (left, top, right, bottom).
        pad_if_needed: pad a side that is shorter than `size` by the difference, at both ends.
        pad_val: one number for all channels, or one for each. padding_mode: as `Pad`.
    """

    def __init__(self, size: Size, padding: Size | None = None, pad_if_needed: bool = False,
                 pad_val: float | Sequence[float] = 0, padding_mode: str = 'constant') -> None:
        _known('padding_mode', padding_mode, BORDERS)
        self.size, self.padding, self.pad_if_needed = _pair(size), padding, pad_if_needed
        self.pad_val, self.padding_mode = pad_val, padding_mode
        self._borders = None if padding is None else _borders(padding)

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        if self._borders is not None:
            img = _pad(img, self._borders, self.pad_val, self.padding_mode)
        (height, width), (h, w) = img.shape[:2], self.size
        if self.pad_if_needed and (height < h or width < w):
            more_h, more_w = max(h - height, 0), max(w - width, 0)
            img = _pad(img, (more_w, more_h, more_w, more_h), self.pad_val, self.padding_mode)
            height, width = img.shape[:2]
        if height < h or width < w:
            raise ValueError(f'RandomCrop got an image of {height} x {width}, smaller than size={self.size}; '
                             'set pad_if_needed=True or resize before')
        if (height, width) == (h, w):
            return img
        top = rng.randint(0, height - h)
        left = rng.randint(0, width - w)
        return img[top:top + h, left:left + w]


@PIPELINES.register_module()
class RandomFlip(ImageStep):
    """Mirror with probability `flip_prob`; `direction` is 'horizontal' or 'vertical'."""

    def __init__(self, flip_prob: float = 0.5, direction: str = 'horizontal') -> None:
        _known('direction', direction, ('horizontal', 'vertical'))
        _check_probability('flip_prob', flip_prob)
        self.flip_prob, self.direction = flip_prob, direction
        self._axis = int(direction == 'horizontal')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        return cv2.flip(img, self._axis) if rng.random() < self.flip_prob else img

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        flip = results.get('rng', GLOBAL_RNG).random() < self.flip_prob
        results.update(flip=flip, flip_direction=self.direction)
        for key in results.get('img_fields', ['img']) if flip else ():
            results[key] = cv2.flip(results[key], self._axis)
        return results


@PIPELINES.register_module()
class Pad(ImageStep):
    """Pad at the right and the bottom to `size` (height, width), or to a square.

    `pad_val` is one number for all channels or one for each; `padding_mode` is 'constant', 'edge' (repeat the border),
    'reflect' (mirror without the border) or 'symmetric' (with it).
    """

    def __init__(self, size: Size | None = None, pad_to_square: bool = False,
                 pad_val: float | Sequence[float] = 0, padding_mode: str = 'constant') -> None:
        if (size is None) is not pad_to_square:
            raise ValueError(f'Pad takes one of size and pad_to_square; got {size} and {pad_to_square}')
        _known('padding_mode', padding_mode, BORDERS)
        self.size = None if size is None else _pair(size)
        self.pad_to_square, self.pad_val, self.padding_mode = pad_to_square, pad_val, padding_mode

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        height, width = img.shape[:2]
        h, w = self.size or (max(height, width),) * 2
        return _pad(img, (0, 0, max(w - width, 0), max(h - height, 0)), self.pad_val, self.padding_mode)


@PIPELINES.register_module()
class RandomGrayscale(ImageStep):
    """Make the image grey with probability `gray_prob`, keeping its channels; weights as for RGB order."""

    def __init__(self, gray_prob: float = 0.1) -> None:
        _check_probability('gray_prob', gray_prob)
        self.gray_prob = gray_prob

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        if rng.random() >= self.gray_prob or img.ndim == 2 or img.shape[2] == 1:
            return img
        return cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@PIPELINES.register_module()
class Normalize(ImageStep):
    """(img - mean) / std in float32, after BGR -> RGB if `to_rgb`; `mean` and `std` are in 0..255, a number a channel."""

    keeps_uint8 = False

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> None:
        self.mean, self.std, self.to_rgb = np.array(mean, np.float32), np.array(std, np.float32), to_rgb
        if len(self.mean) != len(self.std) or not self.std.all():
            raise ValueError(f'Normalize got mean={mean}, std={std}; it needs as many of each, and no std of 0')

    def transform(self, img: np.ndarray, rng: random.Random) -> np.ndarray:
        flat = img.ndim == 2
        channels = img[..., None] if flat else img
        if self.to_rgb and channels.shape[2] == 3:
            channels = channels[:, :, ::-1]
        normal = (channels.astype(np.float32) - self.mean) / self.std
        return normal[..., 0] if flat else normal

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results['img_norm_cfg'] = {'mean': self.mean, 'std': self.std, 'to_rgb': self.to_rgb}
        return super().__call__(results)


@PIPELINES.register_module()
class ImageToTensor(Step):
    """(H, W, C) or (H, W) arrays under `keys` to tensors (C, H, W)."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        for key in self.keys:
            img = results[key]
            img = img[..., None] if img.ndim == 2 else img
            results[key] = torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)))
        return results


@PIPELINES.register_module()
class ToTensor(Step):
    """Arrays, numbers and sequences under `keys` to tensors."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        for key in self.keys:
            value = results[key]
            results[key] = torch.tensor([value]) if isinstance(value, (int, float)) else torch.as_tensor(value)
        return results


@PIPELINES.register_module()
class Collect(Step):
    """Keep `keys`; what is there of `meta_keys` goes into the dict `img_metas`."""

    def __init__(self, keys: Sequence[str], meta_keys: Sequence[str] = (
            'filename', 'ori_filename', 'ori_shape', 'img_shape', 'flip', 'flip_direction', 'img_norm_cfg')) -> None:
        self.keys, self.meta_keys = keys, meta_keys

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        metas = {key: results[key] for key in self.meta_keys if key in results}
        return {'img_metas': metas, **{key: results[key] for key in self.keys}}


def image_path(results: dict[str, Any]) -> str:
    """The file that a sample's `img_prefix` and `img_info` name."""
    prefix, name = results.get('img_prefix'), results['img_info']['filename']
    return name if prefix is None else osp.join(prefix, name)


def check_file_client(args: dict[str, Any] | None) -> None:
    """mmcv reads from other storage too; here it is refused, not ignored."""
    if args and args.get('backend', 'disk') != 'disk':
        raise ValueError(f'file_client_args={args}: only the backend "disk" is known; mount the storage as a folder')


def _known(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f'got {name}={value!r}; known: {", ".join(map(repr, known))}')


def _check_interpolation(interpolation: str, backend: str) -> None:
    _known('backend', backend, ('cv2', 'pillow'))
    _known('interpolation', interpolation, CV2_INTERPOLATION if backend == 'cv2' else PILLOW_INTERPOLATION)


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f'got {name}={value}; a probability is between 0 and 1')


def _pair(size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f'got size={size}; known: one number, or (height, width)')
    return pair


def _borders(padding: Size) -> tuple[int, ...]:
    sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    sides = sides * 2 if len(sides) == 2 else sides
    if len(sides) != 4:
        raise ValueError(f'got padding={padding}; known: n, (left/right, top/bottom), (left, top, right, bottom)')
    return sides


def _central(height: int, width: int, h: float, w: float) -> tuple[int, int, int, int]:
    top, left = max(0, round((height - h) / 2)), max(0, round((width - w) / 2))
    return top, left, int(min(height, top + h)) - top, int(min(width, left + w)) - left


def _resize(img: np.ndarray, size: tuple[int, int], interpolation: str, backend: str) -> np.ndarray:
    if backend == 'cv2':
        return cv2.resize(img, size[::-1], interpolation=CV2_INTERPOLATION[interpolation])
    from PIL import Image
    if img.dtype != np.uint8:
        raise ValueError(f'got an image of {img.dtype} with backend="pillow", which resizes uint8 only; '
                         'use backend="cv2", or load without to_float32')
    # the channels keep their order: Pillow need not know that it is BGR
    image = Image.fromarray(img[:, :, 0] if img.shape[2:] == (1,) else img)
    return np.array(image.resize(size[::-1], Image.Resampling(PILLOW_INTERPOLATION[interpolation])))


def _pad(img: np.ndarray, borders: tuple[int, ...], value: float | Sequence[float], mode: str) -> np.ndarray:
    left, top, right, bottom = borders
    # OpenCV takes one number for the first channel alone, so each channel gets its own
    fill = [value] * 4 if isinstance(value, (int, float)) else value
    return cv2.copyMakeBorder(img, top, bottom, left, right, BORDERS[mode], value=fill)
