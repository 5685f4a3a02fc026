"""One image on one core: the training pipeline against libjpeg-turbo in C and hand-written calls; resized copies; what
a worker saves where the device flips and erases.

    python benchmarks/bench_image.py [--images DIR] [--rounds 9] [--quick]

CPU time, pinned, contestants in turns (A B A B ...), files from the page cache, reading included.
"""
from __future__ import annotations

import logging
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from anchor import ANCHOR, anchors
from images import files_of, prepare, train_steps
from side_by_side import Results, arguments, in_turns, name_of, parsed, pin, ratio

from workspace_lib.datasets import CustomDataset, Pipeline
from workspace_lib.tools.prepare.images import Size, shrunk, shrunk_jpeg


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


def decode_only(path: str) -> np.ndarray:
    with open(path, 'rb') as file:
        return simplejpeg.decode_jpeg(file.read(), 'BGR')


def per_image(call: Callable[[Any], Any], items: list[Any], repeats: int = 1) -> Callable[[], float]:
    """Measures CPU milliseconds an image."""
    def measure() -> float:
        start = time.process_time()
        for _ in range(repeats):
            for item in items:
                call(item)
        return (time.process_time() - start) / repeats / len(items) * 1e3
    return measure


def machinery(results: Results, folder: Path, rounds: int, repeats: int) -> None:
    """What a config costs over calls by hand: on 8 px, decoding hides nothing."""
    path = str(folder / 'tiny.jpg')
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    pipeline, rng = Pipeline(train_steps(8)), random.Random(0)
    info = dict(img_prefix=None, img_info=dict(filename=path), gt_label=np.array(0))
    figures = in_turns({
        'by hand': per_image(lambda path: by_hand(path, 8, rng), [path], repeats),
        'ours: pipeline': per_image(lambda path: pipeline.prepare(path, rng), [path], repeats),
        'ours: pipeline, seeded for each sample': per_image(lambda info: pipeline.item(info, 1), [info], repeats),
    }, rounds)
    figures = {name: [value * 1e3 for value in values] for name, values in figures.items()}
    results.section('One image of 8 px', 'CPU us/image', figures, 'by hand')
    cost = statistics.median(a - b for a, b in zip(figures['ours: pipeline'], figures['by hand'], strict=True))
    results.aim('config-driven pipeline over hand-written calls, 8 px JPEG (neither is seeded for the sample)', cost,
                '<= 5', 'us/image')


def one_image(results: Results, paths: list[str], rounds: int) -> None:
    pipeline, rng, by_hands = Pipeline(train_steps()), random.Random(0), random.Random(0)  # which draw the same boxes
    floor, reason = anchors(paths)
    base = next(iter(floor))
    if reason:
        results.missing(ANCHOR, f'{reason}; {base} stands in')
    infos = [(dict(img_prefix=None, img_info=dict(filename=path), gt_label=np.array(0)), seed)
             for seed, path in enumerate(paths)]
    figures = in_turns({
        **floor, 'read and decode, simplejpeg': per_image(decode_only, paths),
        'by hand': per_image(lambda path: by_hand(path, 224, by_hands), paths),
        'ours: pipeline': per_image(lambda path: pipeline.prepare(path, rng), paths),
        'ours: pipeline, seeded for each sample': per_image(lambda info: pipeline.item(*info), infos),
    }, rounds)
    results.section('One image to a training crop of 224 px, uint8', 'CPU ms/image', figures, base)
    over = ratio(figures, base, 'ours: pipeline')
    results.aim('one image, training pipeline, uint8: rate over full decode in C', over, '>= 0.85', 'x')


def copies(results: Results, folder: str, temporary: Path, rounds: int) -> None:
    """Training copies, made as `--resize` and `--pack` do, against the originals: one key, `data_prefix`, differs."""
    places = {'ours: originals': folder}
    for size in (Size('long', 400), Size('short', 256)):
        _make_copy(Path(folder), temporary / str(size), size)
        _make_pack(Path(folder), temporary / f'{size}.pack', size)
        places |= {f'ours: {size}': f'{temporary}/{size}', f'ours: {size}, packed': f'{temporary}/{size}.pack'}
    datasets = {name: CustomDataset(place, train_steps()) for name, place in places.items()}
    figures = in_turns({name: per_image(lambda index, dataset=dataset: dataset.sample(index, index),
                                        list(range(len(dataset)))) for name, dataset in datasets.items()}, rounds)
    results.section('One image to a training crop of 224 px, from training copies', 'CPU ms/image', figures,
                    'ours: originals')
    for size, bound in (Size('short', 256), '>= 2.5'), (Size('long', 400), '>= 2'):
        results.aim(f'copies resized once ({size.side} side {size.pixels}): rate over originals',
                    ratio(figures, 'ours: originals', f'ours: {size}'), bound, 'x')


ERASING = dict(type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3,
               fill_color=(103.53, 116.28, 123.675), fill_std=(57.375, 57.12, 58.395))


def random_steps(results: Results, recipe: str, more: list[dict], paths: list[str], rounds: int) -> None:
    """The last random steps in the worker, and left to the device, with the same choices; then by the batch, here."""
    steps = train_steps()
    whole, last = Pipeline([*steps[:3], *more, *steps[3:]]), Pipeline([*steps[2:3], *more])
    infos = [dict(img_prefix=None, img_info=dict(filename=path), gt_label=np.array(0)) for path in paths]
    crops = [dict(img=Pipeline(steps[:2]).item(info, 0)['img'], gt_label=np.array(0)) for info in infos]

    def measured(pipeline: Pipeline, infos: list[Any], for_device: bool, repeats: int = 1) -> Callable[[], float]:
        return per_image(lambda sample: pipeline.item(sample[1], sample[0], for_device), [*enumerate(infos)], repeats)

    sent = [last.item(info, seed, for_device=True) for seed, info in enumerate(crops[:64])]
    batch = torch.from_numpy(np.stack([item['img'] for item in sent])).permute(0, 3, 1, 2)
    draws = torch.from_numpy(np.stack([item['_draws'] for item in sent]))
    at_once = per_image(lambda batch: last.device_stage.random_steps(batch, draws, random.Random(0)), [batch])
    figures = in_turns({
        'whole, in the worker': measured(whole, infos, False),
        'whole, left to the device': measured(whole, infos, True),
        'these steps, in the worker': measured(last, crops, False, 5),
        'these steps, left to the device': measured(last, crops, True, 5),
        'these steps by the batch, on this CPU': lambda: at_once() / len(batch)}, rounds)
    results.section(f'The last random steps of the recipe of {recipe}', 'CPU ms/image', figures, 'whole, in the worker')


def _make_copy(source: Path, target: Path, size: Size) -> None:
    for path in map(Path, files_of(source)):
        made = target / path.relative_to(source)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(shrunk_jpeg(path.read_bytes(), size, str(path)))


def _make_pack(source: Path, target: Path, size: Size) -> None:
    target.mkdir()
    rows, at = [], 0
    with (target / 'pixels.bin').open('wb') as file:
        for path in map(Path, files_of(source)):
            img = shrunk(path.read_bytes(), size, str(path))
            rows.append((str(path.relative_to(source)).encode(), at, *img.shape[:2]))
            at += file.write(img.tobytes())
    kinds = [('name', f'S{max(len(row[0]) for row in rows)}'), ('offset', '<i8'), ('height', '<i4'), ('width', '<i4')]
    np.save(target / 'index.npy', np.array(rows, kinds))


def main() -> None:
    args = parsed(arguments(__doc__, rounds=9))
    rounds, generated = (1, 8) if args.quick else (args.rounds, args.generated)
    pin()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        folder, what = prepare(args.images, generated, temporary)
        results = Results(name_of('image', args), args.out, rounds, args.toy, images=what, pinned='one core')
        paths = files_of(folder)[:8 if args.quick else 200]
        machinery(results, temporary, 2 if args.quick else 4 * rounds, 50 if args.quick else 400)
        one_image(results, paths, rounds)
        copies(results, folder, temporary, rounds)
        random_steps(results, 'ResNet', [], paths, rounds)
        random_steps(results, 'Swin, but for its RandAugment', [ERASING], paths, rounds)
    results.finish()


if __name__ == '__main__':
    main()
