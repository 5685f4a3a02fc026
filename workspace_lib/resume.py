"""What a run needs to go on exactly, beside weights and optimizer; and whether a file is what was written.

In: a model, a file. Out: gradients amid an accumulation, and the random states of all ranks.
"""
from __future__ import annotations

import logging
import os
import zipfile
from typing import Any

import torch
from torch import nn

from .checkpoint import unwrapped
from .dist import all_gather, all_reduce_sum, get_dist_info
from .randomness import random_state, set_random_state

_log = logging.getLogger('workspace_lib')


def damage_of(path: str | os.PathLike) -> str | None:
    """What is wrong with a file that torch wrote, in words; None when every byte agrees with its check sum."""
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not look at the sums
            part = file.testzip()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return f'{path} is damaged: {error}'
    return f'{path} is damaged: {part} in it is not what was written' if part else None


def state_of_ranks(model: nn.Module) -> dict[str, Any]:
    """`random`, the random state of each rank, and amid an accumulation `gradients`; all ranks must call it.

    Each rank has gradients of its own then. Their mean is stored: what all ranks together would have averaged.
    """
    world_size = get_dist_info()[1]
    gradients = {name: p.grad for name, p in unwrapped(model).named_parameters() if p.grad is not None}
    if world_size > 1:
        gradients = {name: all_reduce_sum(grad.clone()) / world_size for name, grad in gradients.items()}
    return {'random': all_gather(random_state()), **({'gradients': gradients} if gradients else {})}


def restore_random_state(states: Any) -> None:
    """This rank's; one that there was not keeps the generators of its own seed, and says so."""
    rank, world_size = get_dist_info()
    states = states if isinstance(states, list) else [states]
    if len(states) != world_size:
        _log.warning('the checkpoint is of %d processes, these are %d: the run goes on, but not exactly as it would '
                     'have', len(states), world_size)
    if rank < len(states):
        set_random_state(states[rank])


def put_back_gradients(model: nn.Module, gradients: dict[str, torch.Tensor]) -> None:
    for name, parameter in unwrapped(model).named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)
