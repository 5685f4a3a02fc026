"""Several processes: ``--gpus N`` starts torchrun, and each process that it, Slurm or mpirun started joins the others.

In: the command line, the launcher's environment. Out: the device of this process, or a finished group.
"""
from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import socket
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config, where
from .jobs import STOPPED

if TYPE_CHECKING:
    import torch

    from ..runner import EpochBasedRunner

logger = logging.getLogger(__name__)

#: What torchrun sets, all of it; a single one of these names may be another program's.
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')

#: What ends a group in an orderly way; schedulers send the last.
SIGNALS = 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1'


def add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--gpus', type=int, metavar='N',
                        help='on N GPUs of this machine, a process each; with --device cpu N processes')
    parser.add_argument('--nnodes', default='1', metavar='N',
                        help='machines that run this command together; 1:4 goes on while at least 1 of 4 is there')
    parser.add_argument('--node-rank', type=int, default=0, metavar='I', help='which of them this is, from 0')
    parser.add_argument('--meet-at', default='127.0.0.1:29500', metavar='HOST:PORT',
                        help='where machine 0 listens for the others')
    parser.add_argument('--max-restarts', type=int, metavar='N',
                        help='how often a group that lost a process starts again; needs --resume-from auto')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
                        help='what started this process as one of several; torchrun is seen without')
    # What launchers older than torchrun append.
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)


def joins(args: argparse.Namespace) -> bool:
    """Whether this process is to be one of several that are there already; else `start` may have to start them."""
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.launcher == 'pytorch' and args.gpus:  # which starts them, unless a torchrun did
        return _under_torchrun()
    return args.launcher not in (None, 'none') or _under_torchrun()


def _under_torchrun() -> bool:
    return all(name in os.environ for name in TORCHRUN)


def start(args: argparse.Namespace) -> None:
    """Run this command line in ``--gpus`` processes, to their end.

    Raises:
        ValueError: fewer GPUs than that, or options that cannot go together.
        RuntimeError, SystemExit, KeyboardInterrupt: as `run_group`.
    """
    run_group(_torchrun_words(args), args.words)


def run_group(words: list[str], command: list[str]) -> None:
    """``workspace COMMAND ...`` in several processes, to their end; a signal that comes meanwhile goes to all of them.

    Args:
        words: torchrun's own, which say how many processes and where they meet.

    Raises:
        RuntimeError: a process failed; its own words stand above.
        SystemExit: a signal ended it; `STOPPED` where the processes saved, else 128 + the signal's number.
        KeyboardInterrupt: that signal was SIGINT.
    """
    # Else a machine that comes back waits for an address that torch 2.14 tells the first group alone.
    os.environ.setdefault('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    os.environ.setdefault('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '300')  # seconds: a checkpoint takes its time
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun
    try:
        torchrun([*words, '--signals-to-handle', SIGNALS, '-m', 'workspace_lib.tools.cli', *command])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == STOPPED:
            raise SystemExit(STOPPED) from None
        raise RuntimeError(f'process {rank} ended with status {failure.exitcode}; what it said is above') from error
    except SignalException as error:
        _end_by(error.sigval, _statuses(error))


def _statuses(error: BaseException) -> list[int | None]:
    """How the processes ended that torchrun passed a signal on to: it tells its agent alone, who is on the error's way.

    None at all where it had not started them yet.
    """
    agents = [frame.f_locals['agent'] for frame, _ in traceback.walk_tb(error.__traceback__)
              if 'agent' in frame.f_locals]
    return [handler.proc.poll() for agent in agents[:1] if agent._pcontext
            for handler in agent._pcontext.subprocess_handlers.values()]


def _end_by(number: signal.Signals, statuses: list[int | None]) -> None:
    """End as the processes did; those that had just finished leave nothing to say."""
    if STOPPED in statuses:
        raise SystemExit(STOPPED) from None
    if statuses and not any(status != 0 for status in statuses):
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt from None
    logger.error('ended by %s before anything was saved', number.name)
    raise SystemExit(128 + number) from None


def _torchrun_words(args: argparse.Namespace) -> list[str]:
    _check_gpus(args)
    restarts = args.max_restarts if args.max_restarts is not None else 3 if ':' in args.nnodes else 0
    if restarts and getattr(args, 'resume_from', 'auto') != 'auto':
        raise ValueError('a group that starts again goes on from its last checkpoint: add --resume-from auto '
                         '(or --max-restarts 0)')
    words = ['--nproc-per-node', str(args.gpus), '--max-restarts', str(restarts)]
    if args.nnodes == '1':
        return ['--standalone', *words]
    host, _, port = args.meet_at.rpartition(':')
    if not host or not port.isdigit():
        raise ValueError(f'--meet-at {args.meet_at}: HOST:PORT of machine 0, as in --meet-at 10.0.0.1:29500')
    words += ['--nnodes', args.nnodes]
    if ':' not in args.nnodes and not restarts:
        return [*words, '--node-rank', str(args.node_rank), '--master-addr', host, '--master-port', port]
    return [*words, '--rdzv-backend', 'c10d', '--rdzv-id', 'workspace', '--rdzv-endpoint', args.meet_at,
            '--rdzv-conf', f'is_host={int(args.node_rank == 0)}', '--local-addr', _address_towards(host, int(port))]


def _check_gpus(args: argparse.Namespace) -> None:
    if args.gpus is None or args.gpus < 1:
        raise ValueError(f'--gpus is {args.gpus}; it counts the processes of this machine and starts at 1')
    if str(args.device).startswith('cpu'):
        return
    import torch
    if args.gpus > (there := torch.cuda.device_count()):
        raise ValueError(f'--gpus {args.gpus}, but this machine offers {there} GPU(s) to torch {torch.__version__}; '
                         'as many processes on the CPU: --device cpu')


def _address_towards(host: str, port: int) -> str:
    """This machine's own address on the way to `host`, which the others are told: its name may lead nowhere there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))  # of a datagram: nothing is sent
        except OSError as error:
            raise ValueError(f'--meet-at {host}:{port} cannot be reached from here: {error.strerror}') from error
        return probe.getsockname()[0]


def join(launcher: str | None, cfg: Config, device: str | torch.device) -> torch.device:
    """Become one of the group where a launcher started this process. Returns the device to compute on.

    Args:
        launcher: None: pytorch where torchrun's variables are set, else none.
        cfg: ``dist_params`` go to ``init_dist``.
    """
    from ..device import select_device
    from .launchers import LAUNCHERS, init_dist
    launcher = launcher or ('pytorch' if _under_torchrun() else 'none')
    if launcher != 'none':
        if ':' in str(device):
            raise ValueError(f'--device {device} is one GPU for all processes; each takes its own with --device cuda')
        _speak_as(int(os.environ.get(LAUNCHERS[launcher][0], 0)))
        init_dist(launcher, on_gpu=False if str(device) == 'cpu' else None, **(cfg.get('dist_params') or {}))
    return select_device(device)


def _speak_as(rank: int) -> None:
    """Rank 0 tells of the run; of the others only warnings and errors are heard, and whose they are."""
    if rank == 0:
        return
    ours = logging.getLogger('workspace_lib')
    ours.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for handler in ours.handlers:
        handler.setFormatter(logging.Formatter(f'%(asctime)s - %(levelname)s - rank {rank}: %(message)s'))
        logging.getLogger('py.warnings').addHandler(handler)


def leave() -> None:
    """End the group, after a run that all of it finished."""
    from torch import distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def scale_lr(runner: EpochBasedRunner, cfg: Config) -> None:
    """The linear rule of Goyal et al. 2017, arXiv:1706.02677: lr times (images an optimizer step / those it is for).

    Acts where ``auto_scale_lr=dict(enable=True, base_batch_size=256)`` asks for it; a resumed run has its lr already.

    Raises:
        ValueError: neither the config nor its name (8xb32, b32x8) tells the base.
    """
    if not (cfg.get('auto_scale_lr') or {}).get('enable') or cfg.get('resume_from'):
        return
    base = base_batch_size(cfg)
    batch = runner.meta['batch_size'] * runner.meta['cumulative_iters']
    for group in runner.optimizer.param_groups:
        group['lr'] *= batch / base
    logger.info('lr times %d / %d (images an optimizer step / base_batch_size): %.6g becomes %.6g', batch, base,
                cfg.optimizer.lr, cfg.optimizer.lr * batch / base)


def base_batch_size(cfg: Config) -> int:
    """Images an optimizer step that the config's lr is for."""
    if base := (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        return int(base)
    name = Path(str(cfg.filename)).stem
    found: Any = re.search(r'(?<!\d)(\d+)xb(\d+)|(?<![a-z])b(\d+)x(\d+)', name)
    if not found:
        raise ValueError(f'for which batch is the lr of {name}? Say so in the config: '
                         f'auto_scale_lr=dict(base_batch_size=256) ({where(cfg, "optimizer")})')
    first, second = (int(number) for number in found.groups() if number)
    return first * second
