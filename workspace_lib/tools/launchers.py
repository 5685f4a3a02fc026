"""How processes meet that torchrun, Slurm or Open MPI started: mmcv's ``init_dist``.

In: the launcher's environment. Out: one group of processes, each with a GPU of its own.
"""
from __future__ import annotations

import logging
import os
import re
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

logger = logging.getLogger(__name__)

#: launcher -> the variables in which it tells each process its rank, the number of them, and its rank on its machine.
LAUNCHERS = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def init_dist(launcher: str, backend: str = 'nccl', port: int | None = None, on_gpu: bool | None = None,
              timeout: float = 300, silence: float = 1800, **kwargs: Any) -> None:
    """Meet the other processes that `launcher` started; from here on they are one group, each with a GPU of its own.

    Args:
        launcher: pytorch (torchrun), slurm or mpi. With none, and where they have met, nothing is done.
        backend: nccl; without GPUs it is gloo, and the log says so.
        port: where rank 0 listens, unless MASTER_PORT says; default 29500, with Slurm one that the job's number gives.
        on_gpu: default: where there is one.
        timeout: seconds to wait for the others.
        silence: seconds after which, later on, a rank that says nothing more is taken for lost; it has to be longer
            than an evaluation on rank 0. One whose process ended is missed at once.
        kwargs: further arguments of ``torch.distributed.init_process_group``.

    Raises:
        ValueError: another launcher, or it left no word in the environment.
        RuntimeError: no GPU for this process, or the others did not come.
    """
    if launcher == 'none' or distributed.is_initialized():
        return
    rank, world_size, local_rank = _read_environment(launcher, port)
    if torch.cuda.is_available() if on_gpu is None else on_gpu:
        _take_gpu(local_rank, launcher)
    elif backend == 'nccl':
        backend = 'gloo'
        logger.info('backend: gloo, as nccl is for GPUs')
    place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    logger.info('rank %d of %d meets the others at %s', rank, world_size, place)
    try:
        store, *_ = next(rendezvous('env://', timeout=timedelta(seconds=timeout)))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size,
                                       timeout=timedelta(seconds=silence), **kwargs)
    except RuntimeError as error:
        raise RuntimeError(f'rank {rank} of {world_size} did not meet the others at {place} (MASTER_ADDR:MASTER_PORT) '
                           f'within {timeout:g} s: {str(error).strip().splitlines()[0]}\n  Does every machine run the '
                           'command, with a NODE_RANK of its own? Does that name lead to the first machine, and is the '
                           'port open and free there?') from error


def _read_environment(launcher: str, port: int | None) -> tuple[int, int, int]:
    """Rank, world size, local rank; those and MASTER_ADDR, MASTER_PORT stand in torchrun's variables afterwards."""
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher {launcher!r} is not known; use none, {", ".join(LAUNCHERS)}')
    env = os.environ
    if launcher == 'slurm' and 'SLURM_NODELIST' in env:
        env.setdefault('MASTER_ADDR', first_host(env['SLURM_NODELIST']))
        # The same for all processes of a job, and another for the next job on the machine.
        port = port or 15000 + int(env.get('SLURM_JOB_ID', 0)) % 15000
    env.setdefault('MASTER_PORT', str(port or 29500))
    if missing := [name for name in (*LAUNCHERS[launcher], 'MASTER_ADDR') if name not in env]:
        raise ValueError(f'launcher {launcher}: {", ".join(missing)} not set, so this process was not started by it; '
                         'start with: workspace train CONFIG --gpus N, scripts/dist_train.sh or scripts/slurm_train.sh')
    numbers = [int(env[name]) for name in LAUNCHERS[launcher]]
    env.update(zip(LAUNCHERS['pytorch'], map(str, numbers), strict=True))
    return numbers[0], numbers[1], numbers[2]


def first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts: ``gpu-[007-009,12],login`` begins with ``gpu-007``."""
    return re.sub(r'\[(\w+)[^]]*]', r'\1', nodes).split(',')[0]


def _take_gpu(local_rank: int, launcher: str) -> None:
    """The GPU of this process, which ``cuda`` then means; Slurm may show each task its own alone."""
    count = torch.cuda.device_count()
    local_rank = 0 if launcher == 'slurm' and count == 1 else local_rank
    if local_rank >= count:
        raise RuntimeError(f'process {local_rank} (from 0) of this machine has no GPU: there are {count}; start no '
                           'more processes than GPUs')
    torch.cuda.set_device(local_rank)
