"""Two machines train together, and one of them is killed: it comes back, or it does not.

The machines are network namespaces where root may make them, else two agents of torchrun on this one machine.
"""
from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from descent import descendants, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # two minutes on two cores
ROOT = Path(__file__).resolve().parents[1]
CONFIG = f'''
_base_ = '{ROOT}/workspace_lib/configs/lenet/lenet5_mnist5k.py'
data = dict(samples_per_gpu=32)
runner = dict(max_epochs=4)
checkpoint_config = dict(interval=1)
evaluation = dict(interval=4)
'''


class Machine:
    """One of two; `start` runs `workspace train` on it, `kill` leaves none of its processes."""

    def __init__(self, number: int, folder: Path, master: str, namespace: str | None) -> None:
        self.number, self.folder, self.master, self.namespace = number, folder, master, namespace
        self.agent: subprocess.Popen | None = None
        self.starts = 0

    def start(self, nnodes: str, restarts: int = 3) -> None:
        words = ['train', 'slow.py', '--work-dir', 'run', '--seed', '0', '--device', 'cpu', '--gpus', '1',
                 '--nnodes', nnodes, '--node-rank', str(self.number), '--meet-at', self.master,
                 '--max-restarts', str(restarts), '--resume-from', 'auto']
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore',
               'GLOO_SOCKET_IFNAME': 'wire' if self.namespace else 'lo'}
        prefix = ['ip', 'netns', 'exec', self.namespace] if self.namespace else []
        self.starts += 1
        with open(self.folder / f'log{self.number}.{self.starts}', 'wb') as log:
            self.agent = subprocess.Popen([*prefix, sys.executable, '-m', 'workspace_lib.tools.cli', *words],
                                          cwd=self.folder, env=env, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.namespace:
            said = subprocess.run(['ip', 'netns', 'pids', self.namespace], text=True, capture_output=True)
            pids = [int(pid) for pid in said.stdout.split()]
        else:
            pids = descendants(self.agent.pid) if self.agent else []
        kill(pids, self.folder)
        if self.agent:
            self.agent.wait()

    def log(self) -> str:
        return (self.folder / f'log{self.number}.{self.starts}').read_text()


def quiet(*words: str) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[list[Machine]]:
    """Machine 0, which holds the rendezvous, and machine 1, joined by a wire."""
    folder.mkdir()
    (folder / 'slow.py').write_text(CONFIG)
    names = [f'lab{os.getpid()}-{number}' for number in (0, 1)]
    spaces = all(quiet('ip', 'netns', 'add', name) for name in names) and all(
        quiet('ip', *words.split()) for words in (
            f'link add wire netns {names[0]} type veth peer name wire netns {names[1]}',
            *(f'-n {name} {what}' for number, name in enumerate(names) for what in (
                f'addr add 10.99.0.{number + 1}/24 dev wire', 'link set wire up', 'link set lo up'))))
    master = '10.99.0.1:29500' if spaces else f'127.0.0.1:{free_port()}'
    print('\nmachines:', 'network namespaces' if spaces else 'agents on this machine')
    machines = [Machine(number, folder, master, names[number] if spaces else None) for number in (0, 1)]
    try:
        yield machines
    finally:
        for machine in machines:
            machine.kill()
        for name in names:
            quiet('ip', 'netns', 'del', name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def until(there: Path, machine: Machine) -> None:
    while not there.exists():
        assert machine.agent is not None and machine.agent.poll() is None, machine.log()
        time.sleep(0.05)


def ended(machine: Machine) -> None:
    assert machine.agent is not None
    assert machine.agent.wait(180) == 0, machine.log()


def final(folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    """Weights and accuracy at the end of a run."""
    log = max((folder / 'run').glob('*.log'), key=os.path.getmtime).read_text()
    accuracy = float(re.findall(r'Epoch\(val\) \[4]  accuracy_top-1: ([\d.]+)', log)[-1])
    return torch.load(folder / 'run' / 'epoch_4.pth', weights_only=True)['state_dict'], accuracy


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    with two_machines(tmp_path_factory.mktemp('elastic') / 'undisturbed') as machines:
        for machine in machines:  # that meet once, at the master's address
            machine.start('2', restarts=0)
        for machine in machines:
            ended(machine)
        return final(machines[0].folder)


def disturb(machines: list[Machine], nnodes: str) -> None:
    """Both start, and machine 1 dies in the second epoch."""
    for machine in machines:
        machine.start(nnodes)
    until(machines[0].folder / 'run' / 'epoch_1.pth', machines[0])
    time.sleep(0.2)
    machines[1].kill()
    assert not (machines[0].folder / 'run' / 'epoch_4.pth').exists()


def test_a_machine_that_comes_back_ends_with_the_same_weights_to_the_bit(undisturbed, tmp_path):
    with two_machines(tmp_path / 'back') as machines:
        disturb(machines, '2')
        machines[1].start('2')
        for machine in machines:
            ended(machine)
        log = machines[0].log()
        weights, accuracy = final(machines[0].folder)
    assert log.count('2 processes x 32 samples') == 2 and re.search(r'resumed run/epoch_[12].pth: epoch [12]', log)
    print(f'accuracy {accuracy}, undisturbed {undisturbed[1]}')
    assert all(torch.equal(weights[name], value) for name, value in undisturbed[0].items())


def test_without_it_the_rest_keeps_the_batch_and_the_accuracy(undisturbed, tmp_path):
    with two_machines(tmp_path / 'gone') as machines:
        disturb(machines, '1:2')
        ended(machines[0])
        log = machines[0].log()
        weights, accuracy = final(machines[0].folder)
    assert '1 process x 64 samples in 2 parts x 1 iterations = 64 images an optimizer step' in log
    difference = max(float((weights[name] - value).abs().max()) for name, value in undisturbed[0].items())
    print(f'accuracy {accuracy}, undisturbed {undisturbed[1]}; weights differ by {difference:.1e} at most')
    assert abs(accuracy - undisturbed[1]) <= 0.5
