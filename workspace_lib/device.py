"""What the computation runs on: the device that was asked for, and the number format of the forward pass.

In: ``--device`` and the config keys ``fp16``, ``bf16``. Out: a ``torch.device`` and a ``Precision``.
"""
from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

logger = logging.getLogger(__name__)


def select_device(name: str | torch.device = 'auto') -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that exists.

    ``auto`` takes CUDA where there is a GPU and says what it chose; a device that was asked for by name and is
    missing is an error, never a fallback.

    Raises:
        ValueError: the name is not one of these.
        RuntimeError: that device is not on this machine.
    """
    if str(name) == 'auto':
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        logger.info('device: %s (auto)', describe_device(device))
        return device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'device {str(name)!r} is not known; use auto, cpu, cuda or cuda:N') from error
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f'device {str(name)!r} was asked for, but this machine offers '
                           f'{torch.cuda.device_count()} CUDA device(s) to torch {torch.__version__}; '
                           'use --device cpu, or mend the driver or the container first')
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'device {str(name)!r} is not supported; use auto, cpu, cuda or cuda:N')
    return device


def describe_device(device: torch.device) -> str:
    """``cuda:0 (NVIDIA H100)`` or ``cpu (torch threads: 2, cores: 2)``."""
    if device.type == 'cuda':
        return f'{device} ({torch.cuda.get_device_name(device)})'
    return f'cpu (torch threads: {torch.get_num_threads()}, cores: {os.cpu_count()})'


class Precision:
    """Autocast and loss scaling for one run, from ``fp16=dict(loss_scale=512. | 'dynamic')`` or ``bf16=True``.

    ``fp16`` needs loss scaling and a GPU: on a CPU such a recipe runs in float32, and the log says so once.
    """

    def __init__(self, device: torch.device, fp16: dict | bool | None = None, bf16: bool = False) -> None:
        if fp16 and bf16:
            raise ValueError('fp16 and bf16 are both set in the config; keep one of them')
        if fp16 and device.type == 'cpu':
            logger.warning('fp16 needs a GPU: this run on the CPU computes in float32')
            fp16 = None
        self.device = device
        self.dtype = torch.float16 if fp16 else torch.bfloat16 if bf16 else torch.float32
        self.scaler = _build_scaler(device, fp16)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which to run a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.enabled else nullcontext()

    @property
    def enabled(self) -> bool:
        return self.dtype is not torch.float32


def _build_scaler(device: torch.device, fp16: dict | bool | None) -> torch.amp.GradScaler:
    """A scaler that passes everything through unless ``fp16``; a number means a scale that never grows."""
    scale = dict(fp16 if isinstance(fp16, dict) else {}).get('loss_scale', 512.0)
    if scale == 'dynamic':
        return torch.amp.GradScaler(device.type, enabled=bool(fp16))
    if isinstance(scale, dict):
        return torch.amp.GradScaler(device.type, enabled=bool(fp16), **scale)
    # A growth interval beyond any run keeps the scale where the config put it.
    return torch.amp.GradScaler(device.type, init_scale=float(scale), growth_interval=2**31 - 1, enabled=bool(fp16))
