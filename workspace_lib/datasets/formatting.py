"""The first and last steps of a pipeline: file to pixels, pixels to tensors, what is kept of `results`."""
from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..arguments import check_known
from ..registry import PIPELINES
from .decode import BACKENDS, FLAGS, decode
from .transforms import Step


@PIPELINES.register_module()
class LoadImageFromFile(Step):
    """Read `img_info.filename`, below `img_prefix` unless that is None; see `decode` for the pixels.

    A sample that has its `img` already, as those of a pack, keeps it.

    Args:
        to_float32: give float32, still 0..255; keeps the pipeline off the fast uint8 path.
        color_type: 'color' (BGR), 'grayscale', 'unchanged', or with `_ignore_orientation`.
        file_client_args: only `dict(backend='disk')` is known.
        imdecode_backend: None, 'cv2' or 'pillow'.
    """

    def __init__(self, to_float32: bool = False, color_type: str = 'color',
                 file_client_args: dict[str, Any] | None = None, imdecode_backend: str | None = None) -> None:
        check_known('color_type', color_type, FLAGS)
        check_known('imdecode_backend', imdecode_backend, BACKENDS)
        check_file_client(file_client_args)
        self.to_float32, self.color_type, self.imdecode_backend = to_float32, color_type, imdecode_backend

    def read(self, source: Any) -> np.ndarray:
        return decode(source, self.color_type, self.imdecode_backend)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        path = image_path(results)
        img = results['img'] if 'img' in results else self.read(path)
        img = img.astype(np.float32) if self.to_float32 else img
        channels = 1 if img.ndim == 2 else img.shape[2]
        norm = {'mean': np.zeros(channels, np.float32), 'std': np.ones(channels, np.float32), 'to_rgb': False}
        return {**results, 'filename': path, 'ori_filename': results['img_info']['filename'], 'img': img,
                'img_shape': img.shape, 'ori_shape': img.shape, 'img_norm_cfg': norm}


class _Convert(Step):
    """A step that makes something else of the values under `keys`; subclasses write `convert`."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def convert(self, value: Any) -> torch.Tensor | np.ndarray:
        raise NotImplementedError(f'{type(self).__name__} does not define convert(value)')

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**results, **{key: self.convert(results[key]) for key in self.keys}}


@PIPELINES.register_module()
class ImageToTensor(_Convert):
    """Arrays (H, W, C) or (H, W) under `keys` to tensors (C, H, W)."""

    def convert(self, value: np.ndarray) -> torch.Tensor:
        img = value[:, :, None] if value.ndim == 2 else value
        return torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)))


@PIPELINES.register_module()
class ToTensor(_Convert):
    """Arrays, numbers and sequences under `keys` to tensors; a number becomes a tensor of one element."""

    def convert(self, value: Any) -> torch.Tensor:
        return torch.as_tensor([value] if isinstance(value, (int, float)) else value)


@PIPELINES.register_module()
class ToHalf(_Convert):
    """Arrays or tensors under `keys` to float16; the loader gives float32 all the same, and leaves that to autocast."""

    def convert(self, value: Any) -> torch.Tensor | np.ndarray:
        return value.half() if isinstance(value, torch.Tensor) else value.astype(np.float16)


@PIPELINES.register_module()
class Collect(Step):
    """Keep `keys`, and in the dict `img_metas` those of `meta_keys` that are there."""

    def __init__(self, keys: Sequence[str], meta_keys: Sequence[str] = (
            'filename', 'ori_filename', 'ori_shape', 'img_shape', 'flip', 'flip_direction',
            'img_norm_cfg')) -> None:
        self.keys, self.meta_keys = keys, meta_keys

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        metas = {key: results[key] for key in self.meta_keys if key in results}
        return {'img_metas': metas, **{key: results[key] for key in self.keys}}


def image_path(results: dict[str, Any]) -> str:
    """The file that a sample's `img_prefix` and `img_info` name."""
    prefix, name = results.get('img_prefix'), results['img_info']['filename']
    return name if prefix is None else osp.join(prefix, name)


def check_file_client(args: dict[str, Any] | None) -> None:
    """mmcv reads from other storage too; here that is refused, not ignored."""
    if args and args.get('backend', 'disk') != 'disk':
        raise ValueError(f'got file_client_args={args}; known: dict(backend="disk"). Mount the storage instead')
