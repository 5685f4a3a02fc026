"""Several processes that wait for work, for a notebook: one gloo group on this machine, started once.

In: functions that can be imported, with their arguments. Out: what each rank returned.
"""
from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any


class Ranks:
    """`count` processes with the variables that torchrun would set; `close`, or the end of a `with`, ends them.

    To start takes seconds, since each imports torch; a call takes milliseconds. What they print is not shown.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f'{count} ranks; a group has at least 1')
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        self._lines: list[Any] = []
        self._said = tempfile.TemporaryFile('w+')  # noqa: SIM115 - open as long as they write
        self._ended = False
        self.processes: list[subprocess.Popen] = []
        for rank in range(count):
            ours, theirs = Pipe()
            env = {**os.environ, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count),
                   'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
            # In a session of its own: an interrupt of the notebook goes to the whole group of its kernel.
            self.processes.append(subprocess.Popen(
                [sys.executable, '-m', __name__, str(theirs.fileno())], env=env, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said, start_new_session=True))
            theirs.close()
            self._lines.append(ours)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call `function` on every rank with the same arguments; what each returned, in the order of ranks.

        Raises:
            ValueError: the function was typed into a session, from which a new process cannot import it.
            RuntimeError: a rank raised, or died; the group is ended, since the others may be waiting for that one, as
                after an interrupt of this call. Or it has ended before.
            Exception: what pickle says of arguments that it cannot send; the group stays.
        """
        return self.run_each(function, [args] * len(self._lines), **kwargs)

    def run_each(self, function: Callable[..., Any], arguments: Sequence[tuple], **kwargs: Any) -> list[Any]:
        """The same with arguments of its own for each rank; ValueError if they are of another number."""
        if self._ended:
            raise RuntimeError('these ranks have ended (interrupted, failed or closed); start new ones: '
                               f'ranks = Ranks({len(self.processes)})')
        if getattr(function, '__module__', None) == '__main__':
            raise ValueError(f'{function.__qualname__} was typed into this session, and another process imports what '
                             'it runs: write it into a module')
        if len(arguments) != len(self._lines):
            raise ValueError(f'arguments for {len(arguments)} ranks; there are {len(self._lines)}')
        calls = [pickle.dumps((function, args, kwargs)) for args in arguments]
        try:
            return self._answers(calls)
        except BaseException:  # an answer that is still under way would be taken for that of the next call
            self.close()
            raise

    def _answers(self, calls: list[bytes]) -> list[Any]:
        for line, call in zip(self._lines, calls, strict=True):
            with suppress(ConnectionError):  # of a rank that died, which is told when its answer is read
                line.send_bytes(call)
        answers: dict[int, Any] = {}
        while len(answers) < len(self._lines):
            for line in wait([line for rank, line in enumerate(self._lines) if rank not in answers]):
                rank = self._lines.index(line)
                answers[rank] = self._answer(rank)
        return [answers[rank] for rank in range(len(self._lines))]

    def _answer(self, rank: int) -> Any:
        try:
            value, error = pickle.loads(self._lines[rank].recv_bytes())
        except (EOFError, ConnectionError):
            self._said.seek(0)
            error = f'its process ended with status {self.processes[rank].wait()}; {self._said.read()[-2000:]}'
        if error:
            raise RuntimeError(f'rank {rank} of {len(self.processes)}: {error}')
        return value

    def close(self) -> None:
        self._ended = True
        for process in self.processes:
            process.kill()
            process.wait()
        for line in self._lines:
            line.close()
        self._said.close()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _serve(line: Connection) -> None:
    """Join the group; then answer each function with (value, None) or (None, traceback), until nobody asks."""
    import torch

    from .launchers import init_dist
    torch.set_num_threads(1)
    init_dist('pytorch', on_gpu=False)
    while True:
        try:
            function, args, kwargs = pickle.loads(line.recv_bytes())
        except EOFError:
            return
        try:
            answer = pickle.dumps((function(*args, **kwargs), None))
        except Exception:
            answer = pickle.dumps((None, traceback.format_exc()))
        line.send_bytes(answer)


# --- what a notebook runs in them ---------------------------------------------------------------------


def shared_gradients(model: Any, batch: dict[str, Any], wrapper: Any = None) -> dict[str, Any]:
    """The gradient of each parameter after a backward pass over this rank's `batch`, averaged over the ranks.

    Args:
        wrapper: a class such as mmcv's `MMDistributedDataParallel`, whose `train_step` is called; default what the
            runner does.
    """
    from ..runner import EpochBasedRunner
    if wrapper is not None:
        wrapped = wrapper(model)  # which has to live until the backward pass is over: the averaging ends with it
        loss = wrapped.train_step(batch, None)['loss']
    else:
        runner = EpochBasedRunner(model, max_epochs=1)
        runner.share_gradients()
        runner.forward('train', batch)
        loss = runner.outputs['loss']
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def train_briefly(config: Any, iters: int, options: dict | None = None) -> dict[str, Any]:
    """Train for some iterations on the CPU, on this rank of however many there are; nothing is written.

    Returns:
        `losses`: of each iteration, on this rank; `state`: the state dict at the end; `batch`: images an optimizer
        step, over all ranks and accumulated iterations.
    """
    from .. import apis
    from ..datasets import build_dataset
    from ..hooks import Hook
    from ..models import build_classifier

    losses: list[float] = []

    class Note(Hook):
        def after_train_iter(self, runner: Any) -> None:
            losses.append(float(runner.outputs['loss'].detach()))

    cfg = apis.load_config(config, {'seed': 0, **(options or {})})
    cfg.merge_from_dict({'runner': dict(_delete_=True, type='IterBasedRunner', max_iters=iters), 'work_dir': None,
                         'checkpoint_config': None, 'data.workers_per_gpu': 0})
    apis.set_random_seed(cfg.seed)
    model = build_classifier(cfg.model)
    model.init_weights()
    dataset = build_dataset(cfg.data.train)
    runner, loaders = apis.build_training(model, dataset, cfg, device='cpu')
    runner.register_hook(Note())
    apis.run_training(runner, loaders, cfg)
    return dict(losses=losses, state=model.state_dict(),
                batch=runner.meta['batch_size'] * runner.meta['cumulative_iters'])


if __name__ == '__main__':
    _serve(Connection(int(sys.argv[1])))
