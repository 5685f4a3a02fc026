"""How much faster training copies are read: resized once, and as one raw map, against the originals.

    python benchmarks/bench_packed.py                        # generated photographs
    python benchmarks/bench_packed.py --images DIR           # class folders of images

The data set differs in one key, `data_prefix`. Contestants take turns (A B A B ...); see bench_data.py.
"""
from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bench_data import an_epoch, in_turns, show, train_steps
from bench_prepare import pictures

from workspace_lib.datasets import CustomDataset, build_dataloader
from workspace_lib.tools.prepare.images import Size, shrunk, shrunk_jpeg

SIZES = Size('long', 400), Size('short', 256)


def make_copy(source: Path, target: Path, size: Size) -> None:
    """As `--resize` and `--max-size` do."""
    for path in files_of(source):
        made = target / path.relative_to(source)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(shrunk_jpeg(path.read_bytes(), size, str(path)))


def make_pack(source: Path, target: Path, size: Size) -> None:
    """As `--pack` does."""
    target.mkdir()
    rows, at = [], 0
    with (target / 'pixels.bin').open('wb') as file:
        for path in files_of(source):
            img = shrunk(path.read_bytes(), size, str(path))
            rows.append((str(path.relative_to(source)).encode(), at, *img.shape[:2]))
            at += file.write(img.tobytes())
    kinds = [('name', f'S{max(len(row[0]) for row in rows)}'), ('offset', '<i8'), ('height', '<i4'), ('width', '<i4')]
    np.save(target / 'index.npy', np.array(rows, kinds))


def files_of(folder: Path) -> list[Path]:
    dataset = CustomDataset(str(folder))
    return [Path(dataset.filename(index)) for index in range(len(dataset))]


def cpu_of_one(dataset: Any, count: int) -> Callable[[], float]:
    """Measures microseconds of CPU time an image, from the data set to the crop."""


    def measure() -> float:
        start = time.process_time()
        for index in range(count):
            dataset.sample(index, index)
        return (time.process_time() - start) / count * 1e6
    return measure


def show_gain(figures: dict[str, list[float]]) -> None:
    base = statistics.median(figures['originals'])
    print('over the originals: ' + ', '.join(f'{name} {base / statistics.median(values):.2f}x'
                                             for name, values in figures.items() if name != 'originals'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', help='a folder of class folders of images; generated ones without')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--generated', type=int, default=256, help='how many images to generate')
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True, text=True,
                            cwd=Path(__file__).parent).stdout.strip()
    print(f'{" ".join(sys.argv)}\ncommit {commit}, Python {platform.python_version()}, OpenCV {cv2.__version__}, '
          f'{os.cpu_count()} cores, {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}, '
          f'{args.rounds} rounds')
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.images or f'{temporary}/originals')
        if not args.images:
            for number, data in enumerate(pictures(args.generated)):
                (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
                (folder / str(number % 2) / f'{number}.jpg').write_bytes(data)
        places = {'originals': str(folder)}
        for size in SIZES:
            make_copy(folder, Path(temporary, str(size)), size)
            make_pack(folder, Path(temporary, f'{size}.pack'), size)
            places |= {f'{size}': f'{temporary}/{size}', f'{size}.pack': f'{temporary}/{size}.pack'}
        datasets = {name: CustomDataset(place, train_steps(224)) for name, place in places.items()}
        count = len(datasets['originals'])
        figures = in_turns({name: cpu_of_one(dataset, count) for name, dataset in datasets.items()}, args.rounds)
        show(f'One of {count} images to a training crop of 224 px, uint8', 'CPU us', figures, 'originals')
        show_gain(figures)
        epochs = in_turns({name: an_epoch(build_dataloader(dataset, 64, args.workers, seed=0)._batches, count)
                           for name, dataset in datasets.items()}, args.rounds)
        cpu = {name: [figure[0] * 1e3 for figure in values] for name, values in epochs.items()}
        show(f'Loader, batch 64, {args.workers} workers, uint8 batches as for a GPU', 'CPU us', cpu, 'originals')
        show_gain(cpu)


if __name__ == '__main__':
    main()
