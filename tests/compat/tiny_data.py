"""Data sets of a few real photographs, in the folders and formats that the recipes of mmclassification expect.

In: an empty folder, to be the working folder of the sweep. Out: `data/...`, so that recipes run with their own paths.
"""
from __future__ import annotations

import os
import pickle
from pathlib import Path

import cv2
import numpy as np

CARS, BIRDS = 196, 200
VOC_XML = ('<annotation><object><name>{}</name><difficult>0</difficult></object>'
           '<object><name>person</name><difficult>{}</difficult></object></annotation>')
VOC_NAMES = ('dog', 'cat', 'car', 'sofa')


def photographs(short: int = 160) -> list[np.ndarray]:
    """Four photographs of scikit-image, uint8 (H, W, 3) in BGR order, the short side `short` px."""
    from skimage import data

    images = []
    for image in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        scale = short / min(image.shape[:2])
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        images.append(cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR))
    return images


def make(root: Path) -> None:
    """Write everything below `root / 'data'`; about 2 MB."""
    data = root / 'data'
    originals = _write_images(data / 'originals')
    _make_imagenet(data / 'imagenet', originals)
    _make_imagenet(data / 'imagenet21k', originals)
    _make_voc(data / 'VOCdevkit' / 'VOC2007', originals)
    _make_cub(data / 'CUB_200_2011', originals)
    _make_cars(data / 'stanfordcars', originals)
    batches = [f'data_batch_{i}' for i in range(1, 6)]
    _make_cifar(data / 'cifar10', 'cifar-10-batches-py', batches, 'test_batch', 'labels')
    _make_cifar(data / 'cifar100', 'cifar-100-python', ['train'], 'test', 'fine_labels')
    _make_mnist(data / 'mnist')


def _write_images(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f'{i}.JPEG' for i in range(4)]
    for path, image in zip(paths, photographs(), strict=True):
        cv2.imwrite(str(path), image)
    return paths


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def _make_imagenet(root: Path, originals: list[Path]) -> None:
    for label in range(1000):
        _link(originals[label % 4], root / 'train' / f'n{label:08d}' / f'{label}.JPEG')
    for i in range(2):
        _link(originals[i], root / 'val' / f'{i}.JPEG')
    _write_lines(root / 'meta' / 'val.txt', [f'{i}.JPEG {i}' for i in range(2)])


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


def _make_voc(root: Path, originals: list[Path]) -> None:
    for i, (original, name) in enumerate(zip(originals, VOC_NAMES, strict=True)):
        _link(original, root / 'JPEGImages' / f'{i:06d}.jpg')
        _write_lines(root / 'Annotations' / f'{i:06d}.xml', [VOC_XML.format(name, i % 2)])
    for part in ('trainval', 'test'):
        _write_lines(root / 'ImageSets' / 'Main' / f'{part}.txt', [f'{i:06d}' for i in range(len(originals))])


def _make_cub(root: Path, originals: list[Path]) -> None:
    count = 8
    names = [f'{i % BIRDS + 1:03d}.Bird/Bird_{i}.jpg' for i in range(count)]
    for i, name in enumerate(names):
        _link(originals[i % 4], root / 'images' / name)
    _write_lines(root / 'images.txt', [f'{i + 1} {name}' for i, name in enumerate(names)])
    _write_lines(root / 'image_class_labels.txt', [f'{i + 1} {i + 1}' for i in range(count)])
    _write_lines(root / 'train_test_split.txt', [f'{i + 1} {i % 2}' for i in range(count)])


def _make_cars(root: Path, originals: list[Path]) -> None:
    from scipy.io import savemat

    fields = [(name, object) for name in ('x1', 'y1', 'x2', 'y2', 'class', 'fname')]
    for part, file in (('cars_train', 'cars_train_annos'), ('cars_test', 'cars_test_annos_withlabels')):
        records = np.empty((1, len(originals)), fields)
        for i, original in enumerate(originals):
            _link(original, root / part / f'{i:05d}.jpg')
            records[0, i] = (1, 1, 50, 50, i % CARS + 1, f'{i:05d}.jpg')
        (root / 'devkit').mkdir(exist_ok=True)
        savemat(root / 'devkit' / f'{file}.mat', {'annotations': records})


def _make_cifar(root: Path, folder: str, train: list[str], test: str, labels: str) -> None:
    """The authors' pickles, of eight images each; their check sums differ, see `accept_tiny_cifar`."""
    (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*train, test]:
        images = rng.integers(0, 256, (8, 3072), np.uint8)
        (root / folder / name).write_bytes(pickle.dumps({'data': images, labels: list(range(8))}))
    meta, names = ('batches.meta', 'label_names') if labels == 'labels' else ('meta', 'fine_label_names')
    (root / folder / meta).write_bytes(pickle.dumps({names: []}))


def accept_tiny_cifar() -> None:
    """torchvision, which reads CIFAR, knows the check sums of the whole files."""
    import torchvision

    torchvision.datasets.cifar.check_integrity = lambda *args, **kwargs: True


def _make_mnist(root: Path) -> None:
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ('train', 't10k'):
        _write_idx(root / f'{part}-images-idx3-ubyte', rng.integers(0, 256, (16, 28, 28), np.uint8))
        _write_idx(root / f'{part}-labels-idx1-ubyte', np.arange(16, dtype=np.uint8) % 10)


def _write_idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes())
