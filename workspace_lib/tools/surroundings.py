"""Where this process runs: in the lab's container or beside one, as whom, with which mounts, shared memory and GPU.

In: a `Host` of ``doctor``, the checkout. Out: a `Place`, and a table that says what the other lanes would change.
"""
from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .doctor import Facts, Host
from .doctor.host import Space
from .doctor.render import LANES
from .table import Table

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mount:
    """A path, the mount that holds it, its file system, and whether that takes writes."""

    path: str
    point: str
    kind: str
    writable: bool

    def __str__(self) -> str:
        below = '' if self.path == self.point else f' in {self.point}'
        return f'{self.path}{below} ({self.kind}, {"writable" if self.writable else "read-only"})'


@dataclass(frozen=True)
class Place:
    """What decides how a training behaves here and is no part of its code; lanes as ``doctor`` names them."""

    lane: str
    uid: int
    python: str
    checkout: Mount | None  #: None where the system has no list of mounts
    dataset: Mount | None
    shm: Space | None
    gpu: str

    @property
    def in_container(self) -> bool:
        return self.lane != 'local'

    @property
    def table(self) -> Table:
        return Table(('what', 'here', 'in the container', 'without one'), [
            ('lane', LANES[self.lane], 'make up', 'make up ENGINE=local'),
            ('user', f'uid {self.uid}', 'your uid on the host, never root', 'you'),
            ('Python', self.python, "/opt/venv, over the base image's torch", '.venv of the checkout'),
            ('checkout', _told(self.checkout), '/workspace, writable', 'where you cloned it'),
            ('data set', _told(self.dataset), '/dataset, read-only', 'DATASET_DIR of .env, or datasets/'),
            ('/dev/shm', f'{self.shm.total / 2**30:.1f} GiB' if self.shm else 'none', 'SHM_SIZE of .env, 8 GiB',
             "as a rule half of the machine's memory"),
            ('GPU', self.gpu, "every GPU in the GPU lane, none in the CPU's", 'what the driver has')])


def surroundings(host: Host | None = None, root: str | os.PathLike = CHECKOUT, python: str = sys.prefix) -> Place:
    """Look around. The images of the lab say which lane they are of (LAB_DEVICE); without that it is the local one.

    Args:
        host: this machine, or one that a test plays.
    """
    host = host or Host()
    facts = Facts(host, os.path.abspath(root))
    lane = host.environ.get('LAB_DEVICE') or 'local'
    data = facts.dataset if lane == 'local' else '/dataset'
    return Place(lane, host.uid, python, mount_of(host, facts.root), mount_of(host, data), host.space('/dev/shm'),
                 _gpu(facts))


def mount_of(host: Host, path: str) -> Mount | None:
    """The mount below which a path lies, by /proc/mounts; of several on one point the last, which hides the others."""
    rows = [line.split() for line in (host.read('/proc/mounts') or '').splitlines()]
    above = [row for row in rows if len(row) > 3 and f'{path}/'.startswith(f'{row[1].rstrip("/")}/')]
    if not above:
        return None
    _, point, kind, options = max(reversed(above), key=lambda row: len(row[1]))[:4]
    return Mount(path, point, kind, 'rw' in options.split(','))


def _told(mount: Mount | None) -> str:
    return str(mount or 'not told')


def _gpu(facts: Facts) -> str:
    if names := [gpu.name for gpu in facts.driver.gpus]:
        return ', '.join(names)
    return 'on the bus, but no driver answers here' if facts.gpu_on_bus else 'none'
