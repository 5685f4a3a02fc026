"""Data sets that fetch themselves: once, whole, and with a clear word where there is no network. No test uses one."""
from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import signal
import struct
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workspace_lib.datasets import build_dataset

torchvision = pytest.importorskip('torchvision')
COUNT = 20
REFUSES = 'http://127.0.0.1:1/'  # nothing listens there
PROCESSES = 4
fork = multiprocessing.get_context('fork')


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str, Counter]]:
    """A folder, its address, and how often each file in it was fetched."""
    folder, fetched = tmp_path / 'server', Counter[str]()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched[self.path.lstrip('/')] += 1
            super().do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{running.server_port}/', fetched
        running.shutdown()


def idx(values: np.ndarray) -> bytes:
    return b'\0\0\x08' + bytes([values.ndim]) + struct.pack(f'>{values.ndim}I', *values.shape) + values.tobytes()


def serve_mnist(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    resources = []
    for part in ('train', 't10k'):
        for kind, values in (('images-idx3', np.arange(COUNT * 784, dtype=np.uint32).reshape(COUNT, 28, 28)),
                             ('labels-idx1', np.arange(COUNT) % 10)):
            data = gzip.compress(idx(values.astype(np.uint8)))
            (folder / f'{part}-{kind}-ubyte.gz').write_bytes(data)
            resources.append((f'{part}-{kind}-ubyte.gz', hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(getattr(torchvision.datasets, name), 'mirrors', [address])
    monkeypatch.setattr(getattr(torchvision.datasets, name), 'resources', resources)


def serve_cifar(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    theirs, key = getattr(torchvision.datasets, name), 'fine_labels' if name == 'CIFAR100' else 'labels'
    contents = {}
    for file, _ in theirs.train_list + theirs.test_list:
        contents[file] = pickle.dumps({'data': np.full((4, 3072), 7, np.uint8), key: [0, 1, 2, 3]})
    meta = {theirs.meta['key']: [f'class {number}' for number in range(100)]}
    contents[theirs.meta['filename']] = pickle.dumps(meta)
    with tarfile.open(folder / theirs.filename, 'w:gz') as tar:
        for file, data in contents.items():
            member = tarfile.TarInfo(f'{theirs.base_folder}/{file}')
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    def md5(data: bytes) -> str:
        return hashlib.md5(data).hexdigest()
    monkeypatch.setattr(theirs, 'url', address + theirs.filename)
    monkeypatch.setattr(theirs, 'tgz_md5', md5((folder / theirs.filename).read_bytes()))
    for attribute in ('train_list', 'test_list'):
        monkeypatch.setattr(theirs, attribute, [[file, md5(contents[file])] for file, _ in getattr(theirs, attribute)])
    monkeypatch.setattr(theirs, 'meta', {**theirs.meta, 'md5': md5(contents[theirs.meta['filename']])})
    return theirs.filename


def load(name: str, root: Path, barrier: Any, queue: Any, test_mode: bool) -> None:
    barrier.wait(60)  # all at the same moment
    made = build_dataset(dict(type=name, data_prefix=str(root), pipeline=[], test_mode=test_mode))
    queue.put((len(made), int(made.get_gt_labels().sum()), made.load_image(1).shape))


def requests_of_one(name: str, root: Path, fetched: Counter) -> Counter:
    """What one process asks the server for (torchvision asks twice for each file)."""
    build_dataset(dict(type=name, data_prefix=str(root), pipeline=[]))
    asked = Counter(fetched)
    fetched.clear()
    return asked


def load_together(name: str, root: Path) -> list[Any]:
    barrier, queue = fork.Barrier(PROCESSES), fork.Queue()
    processes = [fork.Process(target=load, args=(name, root, barrier, queue, number % 2 == 1))
                 for number in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(10)
    return found


@pytest.mark.parametrize('name', ['MNIST', 'FashionMNIST'])
def test_processes_that_start_together_fetch_mnist_once(tmp_path, monkeypatch, server, name):
    folder, address, fetched = server
    serve_mnist(folder, address, monkeypatch, name)
    alone = requests_of_one(name, tmp_path / 'alone', fetched)
    assert load_together(name, tmp_path / 'data') == [(COUNT, 90, (28, 28))] * PROCESSES
    assert fetched == alone and len(alone) == 4
    assert not (tmp_path / 'data/.download').exists()


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100'])
def test_processes_that_start_together_fetch_cifar_once(tmp_path, monkeypatch, server, name):
    folder, address, fetched = server
    archive = serve_cifar(folder, address, monkeypatch, name)
    alone = requests_of_one(name, tmp_path / 'alone', fetched)
    train = 4 if name == 'CIFAR100' else 20
    expected = sorted([(train, train // 4 * 6, (32, 32, 3)), (4, 6, (32, 32, 3))] * (PROCESSES // 2))
    assert sorted(load_together(name, tmp_path / 'data')) == expected
    assert fetched == alone and [*alone] == [archive]


def test_a_process_killed_while_it_fetches_leaves_nothing_half(tmp_path, monkeypatch, server):
    folder, address, _ = server
    serve_mnist(folder, address, monkeypatch, 'MNIST')
    root = tmp_path / 'data'

    def fetch_and_die() -> None:
        real = torchvision.datasets.MNIST.download

        def download(self: Any) -> None:
            real(self)
            raw = Path(self.raw_folder, 'train-images-idx3-ubyte')
            raw.write_bytes(raw.read_bytes()[:100])  # as when it is killed while it unpacks
            os.kill(os.getpid(), signal.SIGKILL)
        torchvision.datasets.MNIST.download = download
        build_dataset(dict(type='MNIST', data_prefix=str(root), pipeline=[]))
    process = fork.Process(target=fetch_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(build_dataset(dict(type='MNIST', data_prefix=str(root), pipeline=[]))) == COUNT


def test_files_put_there_by_hand_are_kept(tmp_path, monkeypatch, server):
    folder, address, _ = server
    serve_mnist(folder, address, monkeypatch, 'MNIST')
    raw = tmp_path / 'MNIST/raw'
    raw.mkdir(parents=True)
    mine = idx(np.zeros((3, 28, 28), np.uint8)), idx(np.zeros(3, np.uint8))
    (raw / 't10k-images-idx3-ubyte').write_bytes(mine[0])
    (raw / 't10k-labels-idx1-ubyte').write_bytes(mine[1])
    assert len(build_dataset(dict(type='MNIST', data_prefix=str(tmp_path), pipeline=[]))) == COUNT
    assert len(build_dataset(dict(type='MNIST', data_prefix=str(tmp_path), pipeline=[], test_mode=True))) == 3


@pytest.mark.parametrize('name, file', [('MNIST', 'train-images-idx3-ubyte'), ('CIFAR10', 'cifar-10-python.tar.gz')])
def test_where_nothing_can_be_written_or_fetched_the_error_says_what_goes_where(tmp_path, monkeypatch, name, file):
    (tmp_path / 'file').write_text('')  # a place below a file can be made by nobody, not even by root
    with pytest.raises(FileNotFoundError, match=f'{name}: {file}.* is not in {tmp_path}/file/data, .*put it there'):
        build_dataset(dict(type=name, data_prefix=str(tmp_path / 'file/data'), pipeline=[]))


@pytest.mark.parametrize('name, file', [('MNIST', 'train-images-idx3-ubyte'), ('CIFAR10', 'cifar-10-python.tar.gz')])
def test_offline_the_error_says_what_goes_where_and_leaves_nothing(tmp_path, monkeypatch, name, file):
    theirs = getattr(torchvision.datasets, name)
    monkeypatch.setattr(theirs, *(('mirrors', [REFUSES]) if name == 'MNIST' else ('url', f'{REFUSES}{file}')))
    with pytest.raises(FileNotFoundError, match=(
            f'(?s){name}: {file}.* is not in {tmp_path}, and the download failed .*refused.*; put it there by hand')):
        build_dataset(dict(type=name, data_prefix=str(tmp_path), pipeline=[]))
    assert {path.name for path in tmp_path.iterdir()} <= {'.download.lock'}


def test_files_in_a_folder_that_cannot_be_written_are_read(tmp_path, monkeypatch, server):
    from workspace_lib.datasets import builtin
    folder, address, fetched = server
    serve_cifar(folder, address, monkeypatch, 'CIFAR10')
    requests_of_one('CIFAR10', tmp_path / 'data', fetched)

    def read_only(*args: Any) -> Any:
        raise OSError(30, 'Read-only file system')
    monkeypatch.setattr(builtin, 'open', read_only, raising=False)
    assert len(build_dataset(dict(type='CIFAR10', data_prefix=str(tmp_path / 'data'), pipeline=[]))) == 20
    assert not fetched
