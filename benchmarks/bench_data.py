"""How fast images come: one image against hand-written calls, and the loader against those of other libraries.

    python benchmarks/bench_data.py                        # generated photographs
    python benchmarks/bench_data.py --images DIR --rounds 5

Contestants take turns (A B A B ...); a table gives the median and the spread of the rounds. mmclassification and
torchvision take part where they are installed. Status 1 where a config's pipeline costs more than 5 microseconds an
image beyond the same calls written by hand.
"""
from __future__ import annotations

import argparse
import gc
import logging
import math
import multiprocessing
import os
import platform
import random
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
import simplejpeg
import torch

from workspace_lib.datasets import CustomDataset, Pipeline, build_dataloader

MICROSECONDS_BOUND = 5.
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
END = [dict(type='Normalize', mean=MEAN, std=STD, to_rgb=True), dict(type='ImageToTensor', keys=['img']),
       dict(type='ToTensor', keys=['gt_label']), dict(type='Collect', keys=['img', 'gt_label'])]


def train_steps(size: int) -> list[dict[str, Any]]:
    return [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=size), dict(type='RandomFlip'), *END]


def by_hand(path: str, size: int, rng: random.Random, low: float = math.log(3 / 4),
            high: float = math.log(4 / 3)) -> np.ndarray:
    """The calls that someone would write for this one pipeline, without any checks."""
    with open(path, 'rb') as file:
        data = file.read()
    img = simplejpeg.decode_jpeg(data, 'BGR')
    height, width = img.shape[:2]
    top, left, h, w = 0, 0, height, width
    for _ in range(10):
        area, aspect = rng.uniform(0.08, 1.0) * height * width, math.exp(rng.uniform(low, high))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left, h, w = rng.randint(0, height - tall), rng.randint(0, width - wide), tall, wide
            break
    if (h, w) != (size, size):
        img = cv2.resize(img[top:top + h, left:left + w], (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(img, 1) if rng.random() < 0.5 else img


def in_turns(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Each contestant's figures over the rounds, after one that does not count."""
    figures: dict[str, list[Any]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, measure in contestants.items():
            gc.collect()
            figure = measure()
            if number:
                figures[name].append(figure)
    return figures


def per_image(call: Callable[[str], Any], paths: list[str], repeats: int) -> Callable[[], float]:
    """Measures microseconds of CPU time an image."""
    def measure() -> float:
        start = time.process_time()
        for _ in range(repeats):
            for path in paths:
                call(path)
        return (time.process_time() - start) / repeats / len(paths) * 1e6
    return measure


def one_image(paths: list[str], size: int, rounds: int, repeats: int) -> dict[str, list[float]]:
    pipeline, rng = Pipeline(train_steps(size)), random.Random(0)
    infos = {path: dict(img_prefix=None, img_info=dict(filename=path), gt_label=np.array(0)) for path in paths}

    def decode_only(path: str) -> np.ndarray:
        with open(path, 'rb') as file:
            return simplejpeg.decode_jpeg(file.read(), 'BGR')

    return in_turns({
        'read and decode only': per_image(decode_only, paths, repeats),
        'by hand': per_image(lambda path: by_hand(path, size, rng), paths, repeats),
        'pipeline': per_image(lambda path: pipeline.prepare(path, rng), paths, repeats),
        'pipeline, seeded per sample': per_image(lambda path: pipeline.item(infos[path], 1), paths, repeats),
    }, rounds)


def ours(folder: str, batch: int, workers: int) -> Any:
    return build_dataloader(CustomDataset(folder, train_steps(224)), batch, workers, seed=0)


def ours_for_a_gpu(folder: str, batch: int, workers: int) -> Any:
    """What is left to the CPU where a GPU normalises: uint8 batches."""
    dataset = CustomDataset(folder, train_steps(224))
    return build_dataloader(dataset, batch, workers, seed=0, device='meta')._batches  # any device but the CPU


def of_mmcls(folder: str, batch: int, workers: int) -> Any:
    from mmcls.datasets import CustomDataset as Theirs
    from mmcls.datasets import build_dataloader as build
    return build(Theirs(folder, train_steps(224)), batch, workers, dist=False, persistent_workers=workers > 0,
                 pin_memory=False)


def of_torchvision(folder: str, batch: int, workers: int) -> Any:
    from torchvision import datasets, transforms
    steps = transforms.Compose([
        transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    return torch.utils.data.DataLoader(datasets.ImageFolder(folder, steps), batch, shuffle=True, num_workers=workers,
                                       persistent_workers=workers > 0)


def cpu_seconds() -> float:
    """Of this process and its workers, which count in the accounts of this one only when they have ended."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f'/proc/{child.pid}/stat').read_text().rpartition(')')[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return time.process_time() + ticks / os.sysconf('SC_CLK_TCK')


def an_epoch(loader: Any, count: int) -> Callable[[], tuple[float, float]]:
    """Measures CPU milliseconds an image, and images a second of wall time, over one pass."""
    def measure() -> tuple[float, float]:
        start, start_cpu = time.perf_counter(), cpu_seconds()
        for _ in loader:
            pass
        return (cpu_seconds() - start_cpu) / count * 1e3, count / (time.perf_counter() - start)
    return measure


def loaders(folder: str, count: int, batch: int, workers: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    made = {'ours': ours(folder, batch, workers), 'ours, uint8 as for a GPU': ours_for_a_gpu(folder, batch, workers)}
    for name, make in (('mmcls', of_mmcls), ('torchvision PIL', of_torchvision)):
        try:
            made[name] = make(folder, batch, workers)
        except ImportError as error:
            print(f'(without {name}: {error})')
    # the first round, which does not count, starts the workers; they persist
    return in_turns({name: an_epoch(loader, count) for name, loader in made.items()}, rounds)


def show(title: str, unit: str, figures: dict[str, list[float]], base: str) -> None:
    print(f'\n{title}\n{"":30}{unit:>12}{"least":>10}{"most":>10}{"ratio to " + base:>24}')
    for name, values in figures.items():
        median = statistics.median(values)
        ratio = median / statistics.median(figures[base])
        print(f'{name:30}{median:12.2f}{min(values):10.2f}{max(values):10.2f}{ratio:24.3f}')


def generate(folder: Path, count: int) -> None:
    """JPEGs of about 500 x 375 pixels and 110 KB, as ImageNet's are, in two classes."""
    noise = np.random.default_rng(0)
    for number in range(count):
        coarse = noise.integers(0, 256, (24, 32, 3), np.uint8)
        img = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        img = (img + noise.normal(0, 14, img.shape)).clip(0, 255).astype(np.uint8)
        (folder / str(number % 2)).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / str(number % 2) / f'{number}.jpg'), img, [cv2.IMWRITE_JPEG_QUALITY, 90])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', help='a folder of class folders of JPEGs; generated ones without')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--workers', type=int, nargs='*', default=[0, 1, 2])
    parser.add_argument('--generated', type=int, default=256, help='how many images to generate')
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True, text=True,
                            cwd=Path(__file__).parent).stdout.strip()
    print(f'{" ".join(sys.argv)}\ncommit {commit}, Python {platform.python_version()}, torch {torch.__version__}, '
          f'OpenCV {cv2.__version__}, {os.cpu_count()} cores, {platform.processor() or platform.machine()}, '
          f'load {os.getloadavg()[0]:.1f}, {args.rounds} rounds')
    with tempfile.TemporaryDirectory() as temporary:
        tiny = Path(temporary, 'tiny.jpg')
        cv2.imwrite(str(tiny), np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
        figures = one_image([str(tiny)], 8, 40 * args.rounds, 200)
        show('One image of 8 px: what the machinery costs', 'CPU us', figures, 'by hand')
        least = {name: min(values) for name, values in figures.items()}
        cost = least['pipeline'] - least['by hand']
        print(f'over hand-written calls: {cost:+.2f} us, at most {MICROSECONDS_BOUND:g} are meant; with a seed '
              f'of its own for each sample: {least["pipeline, seeded per sample"] - least["by hand"]:+.2f} us '
              '(least of the rounds)')

        folder = args.images or f'{temporary}/images'
        if not args.images:
            Path(folder).mkdir()
            generate(Path(folder), args.generated)
        dataset = CustomDataset(folder)
        paths = [dataset.filename(index) for index in range(min(len(dataset), 128))]
        show('One image to a training crop of 224 px, uint8', 'CPU us', one_image(paths, 224, args.rounds, 1),
             'by hand')
        for workers in args.workers:
            epochs = loaders(folder, len(dataset), args.batch, workers, args.rounds)
            title = f'Loader, {len(dataset)} images, batch {args.batch}, {workers} workers, on the CPU'
            for which, unit in enumerate(('CPU ms/image', 'images/s')):
                show(title, unit, {name: [figure[which] for figure in figures] for name, figures in epochs.items()},
                     'ours')
    return cost > MICROSECONDS_BOUND


if __name__ == '__main__':
    sys.exit(main())
