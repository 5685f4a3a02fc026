"""After a training broke off: from which file it can go on, and with which batch where the memory did not do.

In: the folder of a run; a runner and its error. Out: a path; a note on the error.
"""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..resume import damage_of
from ..runner import EpochBasedRunner
from ..safe_load import read_checkpoint

_log = logging.getLogger(__name__)
_GIB = 2**30
_UNITS = {'bytes': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30}


def newest(*folders: str | os.PathLike) -> Path | None:
    """The checkpoint furthest in its run from which that can go on; every byte of it was read. None: there is none.

    Damaged files are passed over, and named in the log.

    Raises:
        FileExistsError: there are whole files alone that lack what resuming needs: a new run would write over them.
    """
    found: list[tuple[tuple[int, int], Path]] = []
    weights_alone = []
    there = (path for folder in folders for path in sorted(Path(folder).glob('*.pth')))
    for path in (path for path in there if not path.is_symlink()):
        try:
            content = read_checkpoint(path, mmap=True)  # of the tensors nothing is read yet
        except (OSError, ValueError) as error:
            _log.warning('passed over: %s', error)
            continue
        meta = content.get('meta') or {}
        if 'optimizer' in content and {'epoch', 'iter'} <= meta.keys():
            found.append(((meta['epoch'] - meta.get('epoch_open', 0), meta['iter']), path))
        else:
            weights_alone.append(path)
    for _, path in sorted(found, reverse=True):
        if not (damage := damage_of(path)):
            return path
        _log.warning('passed over: %s', damage)
    if weights_alone:
        raise FileExistsError(f'{weights_alone[-1]} holds weights, but no optimizer and epoch to resume from, and no '
                              f'other file in {" or ".join(map(str, folders))} does; start another run: '
                              '--work-dir OTHER (and another checkpoint_config.out_dir, if there is one)')
    return None


@contextmanager
def memory_explained(runner: EpochBasedRunner) -> Iterator[None]:
    """Where the GPU's memory does not do, the error says what would."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(out_of_memory(runner, error))
        raise


def out_of_memory(runner: EpochBasedRunner, error: BaseException) -> str:
    """Batch, peak and what would fit."""
    peak, available = memory_of(runner.precision.device)
    asked = re.search(r'Tried to allocate ([\d.]+) (\w+)', str(error))
    needed = peak + (float(asked[1]) * _UNITS.get(asked[2], 0) if asked else 0)
    fixed = fixed_memory(runner.model, runner.optimizer)
    batch = getattr(runner.data_loader, 'batch_size', None) or runner.outputs.get('num_samples', 1)
    fits = what_fits(batch, needed, fixed, available)
    told = (f'out of memory with samples_per_gpu={batch}: at most {peak / _GIB:.2f} GiB were in use, of '
            f'{available / _GIB:.2f} GiB that this process can have; counted are {fixed / _GIB:.2f} GiB for weights, '
            'gradients and optimizer, and the rest as growing with the batch. ')
    smaller = "Half of the memory for activations: bf16=True, or fp16.loss_scale=dynamic"
    if not fits:
        return told + f'So not even one sample fits: a smaller model or image is needed. {smaller}'
    part = max(size for size in range(1, fits + 1) if batch % size == 0)
    windows = batch // part * int(runner.meta.get('cumulative_iters', 1))
    return told + (f'samples_per_gpu={fits} would fit, or less where the step that failed had yet more to ask for. To '
                   f'train as with {batch}: data.samples_per_gpu={part} optimizer_config.cumulative_iters={windows}. '
                   f'{smaller}')


def memory_of(device: torch.device) -> tuple[int, int]:
    """(most bytes that tensors had at a time, bytes that this process can have)."""
    if device.type != 'cuda':
        return 0, 0
    return (torch.cuda.max_memory_allocated(device),
            torch.cuda.memory_reserved(device) + torch.cuda.mem_get_info(device)[0])


def fixed_memory(model: torch.nn.Module, optimizer: Any) -> int:
    """Bytes that do not depend on the batch; of an optimizer before its first step, those that it will have."""
    held = sum(t.nbytes for t in chain(model.parameters(), model.buffers()))
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    state = sum(t.nbytes for one in optimizer.state.values() for t in one.values() if isinstance(t, Tensor))
    group = optimizer.param_groups[0]
    return held + gradients + (state or gradients * (2 if 'betas' in group else bool(group.get('momentum'))))


def what_fits(batch: int, needed: float, fixed: float, available: float) -> int:
    """The largest batch, less than `batch` and rounded down to a multiple of 8 from there on; 0: not even one."""
    each = max(needed - fixed, 1) / batch
    fits = min(max(int((available - fixed) / each), 0), batch - 1)
    return fits - fits % 8 if fits >= 8 else fits
