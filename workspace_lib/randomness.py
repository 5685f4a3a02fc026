"""Seeds, and where the generators stand: what is needed for a run to be repeated, or to go on exactly.

In: a seed, or a saved state. Out: the global generators of Python, numpy and torch, set.
"""
from __future__ import annotations

import os
import random
from functools import partial
from typing import Any

import numpy as np
import torch


def init_random_seed(seed: int | None = None) -> int:
    """`seed`, or a fresh one that the log and the checkpoint will name."""
    if seed is None:
        return int.from_bytes(os.urandom(4), 'little') // 2
    if not 0 <= seed < 2**31:
        raise ValueError(f'seed {seed} is out of range; take one from 0 to 2147483647')
    return seed


def set_random_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch; `deterministic` also chooses the reproducible CUDA kernels (slower)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def random_state() -> dict[str, Any]:
    """Where the global generators of Python, numpy and torch stand: what dropout will draw next."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return dict(python=random.getstate(), numpy=(name, np.asarray(keys).tolist(), *rest), torch=torch.get_rng_state(),
                cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def set_random_state(state: dict[str, Any]) -> None:
    """Go on drawing from there; the GPUs only where there are as many as there were."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state['numpy']))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state['cuda']])


def state_kept(model: torch.nn.Module) -> partial[None]:
    """What undoes a forward pass of training: its buffers (running means) and the generators stand as they do now."""
    return partial(_put_back, [(buffer, buffer.clone()) for buffer in model.buffers()], random_state())


def _put_back(kept: list[tuple[torch.Tensor, torch.Tensor]], drawn: dict[str, Any]) -> None:
    for buffer, value in kept:
        buffer.copy_(value)
    set_random_state(drawn)
