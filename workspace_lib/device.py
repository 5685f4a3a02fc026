"""What the computation runs on: the device that was asked for, the number format of the forward pass, the compiler.

In: ``--device`` and the config keys ``fp16``, ``bf16``, ``compile``. Out: a ``torch.device``, a ``Precision``.
"""
from __future__ import annotations

import logging
import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .randomness import state_kept

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
    if not re.fullmatch(r'(cpu|cuda)(:\d+)?', str(name)):
        raise ValueError(f'device {str(name)!r} is not known; use auto, cpu, cuda or cuda:N')
    device = torch.device(name)
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f'device {str(name)!r} was asked for, but this machine offers '
                           f'{torch.cuda.device_count()} CUDA device(s) to torch {torch.__version__}; '
                           'use --device cpu, or mend the driver or the container first')
    return device


def describe_device(device: torch.device) -> str:
    """``cuda:0 (NVIDIA H100)`` or ``cpu (torch threads: 2, cores: 2)``."""
    if device.type == 'cuda':
        return f'{device} ({torch.cuda.get_device_name(device)})'
    return f'cpu (torch threads: {torch.get_num_threads()}, cores: {os.cpu_count()})'


def is_fast(key: Any, device: torch.device) -> bool:
    """A config key of speed; left open (None) it is on where it is known to win: a GPU since NVIDIA's Ampere."""
    return device.type == 'cuda' and torch.cuda.get_device_capability(device) >= (8, 0) if key is None else bool(key)


def compile_model(model: Any, options: dict[str, Any]) -> None:
    """Have `model` computed by ``torch.compile``; from the first failure to compile on without, and the log says why.

    A backward pass is compiled with its forward pass, so that it fails there too, before anything is learnt from the
    batch; of a shape's first pass that failed halfway, behind a graph break, running means and random draws are put
    back. So the run is one without ``compile`` from that step on; but where a shape that ran before is compiled anew,
    as a layer is unfrozen, and fails so, its batch has counted twice in them. What compiles, and fails only when its
    backward pass runs, raises.

    Args:
        options: of ``torch.compile``. ``mode='reduce-overhead'`` is CUDA graphs. ``dynamic`` is False if not given: an
            epoch's smaller last batch is compiled for itself, and does not make all others slower.
    """
    if not isinstance(options, dict):
        raise TypeError(f'compile is {options!r}; it takes True or a dict; compile.mode=NAME makes one '
                        'where the config has no compile')
    model.compile(**{'dynamic': False, **options})
    compiled = model._compiled_call_impl
    graphs = options.get('mode') in ('reduce-overhead', 'max-autotune') or 'triton.cudagraphs' in str(options)
    backward_too = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)  # 9 us a pass
    seen = set[Any]()

    def call(*args: Any, **kwargs: Any) -> Any:
        key = (model.training, *(value.shape for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))
        put_back = (lambda: None) if key in seen else state_kept(model)
        seen.add(key)
        try:
            with backward_too:
                outputs = compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise  # it may pass, and is no reason to compute the rest of a run eagerly
        except Exception as error:
            put_back()
            outputs = model._call_impl(*args, **kwargs)  # a mistake in the model itself is raised here
            model._compiled_call_impl = None
            logger.warning('torch.compile failed, so this run goes on without it: %s: %s', type(error).__name__,
                           ' '.join(str(error).partition('\n\n')[0].split()))
        # What a CUDA graph returns, its next replay overwrites; the log keeps it for longer.
        return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, outputs) if graphs else outputs

    model._compiled_call_impl = call


class Precision:
    """Autocast and loss scaling for one run, from ``fp16=dict(loss_scale=512. | 'dynamic')`` or ``bf16=True``.

    ``bf16=None`` is `is_fast`, unless fp16 is set; an empty ``fp16=dict()`` sets it, as in mmcv. ``fp16`` needs loss
    scaling and a GPU: on a CPU such a recipe runs in float32, and the log says so once.
    """

    def __init__(self, device: torch.device, fp16: dict | bool | None = None, bf16: bool | None = False) -> None:
        half = fp16 not in (None, False)
        bf16 = is_fast(bf16, device) and not (half and bf16 is None)
        if half and bf16:
            raise ValueError('fp16 and bf16 are both set in the config; keep one of them')
        if half and device.type == 'cpu':
            logger.warning('fp16 needs a GPU: this run on the CPU computes in float32')
            half = False
        self.device = device
        self.dtype = torch.float16 if half else torch.bfloat16 if bf16 else torch.float32
        self.scaler = _build_scaler(device, fp16, half)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which to run a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype is not torch.float32 else nullcontext()


def _build_scaler(device: torch.device, fp16: dict | bool | None, half: bool) -> torch.amp.GradScaler:
    """A scaler that passes everything through unless `half`; a number means a scale that never grows."""
    scale = dict(fp16 if isinstance(fp16, dict) else {}).get('loss_scale', 512.0)
    if not isinstance(scale, dict):
        # A growth interval beyond any run keeps the scale where the config put it.
        scale = {} if scale == 'dynamic' else dict(init_scale=float(scale), growth_interval=2**31 - 1)
    return torch.amp.GradScaler(device.type, enabled=half, **scale)
