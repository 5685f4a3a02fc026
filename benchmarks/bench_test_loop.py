"""The test loop against mmclassification's: equal images, weights and logits; what a picture costs beside the network.

    python benchmarks/bench_test_loop.py                        # generated photographs
    python benchmarks/bench_test_loop.py --images DIR           # class folders of real ones, or WORKSPACE_SAMPLES=DIR
    python benchmarks/bench_test_loop.py --workers 0 2 --rounds 5

Both loops take turns (A B A B ...) over the default ImageNet test pipeline and a ResNet-18 in float32; a table gives
the medians. Time outside the forward pass is wall time less that spent inside the network; with workers it is what
the network waits for.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bench_data import cpu_seconds, generate
from torch import nn

from workspace_lib.datasets import CustomDataset, build_dataloader
from workspace_lib.loops import single_gpu_test
from workspace_lib.models import build_classifier

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(256, -1)), dict(type='CenterCrop', crop_size=224),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
MODEL = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=1000, in_channels=512))
FIGURES = ('outside', 'outside_cpu', 'end_to_end')


class Clock:
    """Times the forward passes of a backbone, in wall and CPU seconds."""

    def __init__(self, backbone: nn.Module) -> None:
        self.wall = self.cpu = 0.
        inner = backbone.forward

        def timed(img: torch.Tensor) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            features = inner(img)
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu
            return features

        backbone.forward = timed  # type: ignore[method-assign]


def measured(model: Any, run: Callable[[], list[np.ndarray]]) -> Callable[[], tuple[dict[str, float], np.ndarray]]:
    """Milliseconds an image of one pass: outside the network (wall, CPU), and all of it; and the scores."""
    clock = Clock(model.backbone)

    def measure() -> tuple[dict[str, float], np.ndarray]:
        gc.collect()
        clock.wall = clock.cpu = 0.
        wall, cpu = time.perf_counter(), cpu_seconds()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            results = run()
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        scale = 1e3 / len(results)
        return dict(outside=(wall - clock.wall) * scale, outside_cpu=(cpu - clock.cpu) * scale,
                    end_to_end=wall * scale), np.stack(results)

    return measure


def ours(folder: str, weights: dict, batch: int, workers: int) -> Callable[[], Any]:
    model = build_classifier(MODEL)
    model.load_state_dict(weights)
    loader = build_dataloader(CustomDataset(folder, PIPELINE), batch, workers, shuffle=False, round_up=False)
    return measured(model, lambda: single_gpu_test(model, loader))


def theirs(folder: str, weights: dict, batch: int, workers: int) -> Callable[[], Any]:
    import mmcv
    from mmcls.apis import single_gpu_test as test
    from mmcls.datasets import CustomDataset as Dataset
    from mmcls.datasets import build_dataloader as build
    from mmcls.models import build_classifier as build_model
    from mmcls.utils import wrap_non_distributed_model
    model = build_model(MODEL)
    model.load_state_dict(weights)
    loader = build(Dataset(folder, PIPELINE), batch, workers, dist=False, shuffle=False,
                   persistent_workers=workers > 0, pin_memory=False)
    wrapped = wrap_non_distributed_model(model, device='cpu')
    # its default is the stdout at import, which nothing redirects
    mmcv.ProgressBar = functools.partial(mmcv.ProgressBar, file=io.StringIO())
    return measured(model, lambda: test(wrapped, loader))


def compare(folder: str, batch: int, workers: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """The figures of each round, after one that does not count; asserts that the scores are equal."""
    torch.manual_seed(0)
    model = build_classifier(MODEL)
    model.init_weights()
    weights = model.state_dict()
    loops = {'ours': ours(folder, weights, batch, workers), 'mmcls': theirs(folder, weights, batch, workers)}
    figures: dict[str, dict[str, list[float]]] = {name: {key: [] for key in FIGURES} for name in loops}
    for number in range(rounds + 1):
        scores = {}
        for name, measure in loops.items():
            values, scores[name] = measure()
            for key in FIGURES if number else ():
                figures[name][key].append(values[key])
        np.testing.assert_allclose(scores['ours'], scores['mmcls'], rtol=1e-4, atol=1e-7)
    return figures


def show(figures: dict[str, dict[str, list[float]]], workers: int, batch: int) -> dict[str, Any]:
    """Print the medians and return them, with the ratios ours / mmcls."""
    print(f'\n{workers} workers, batch {batch}: ms an image\n{"":34}{"ours":>10}{"mmcls":>10}{"ratio":>10}')
    result: dict[str, Any] = {}
    titles = 'outside the network, wall', 'outside the network, CPU', 'end to end, wall'
    for key, title in zip(FIGURES, titles, strict=True):
        mine, other = (statistics.median(figures[name][key]) for name in ('ours', 'mmcls'))
        ratio = statistics.median(a / b for a, b in zip(figures['ours'][key], figures['mmcls'][key], strict=True))
        print(f'{title:34}{mine:10.2f}{other:10.2f}{ratio:10.3f}')
        result[key] = dict(ours=mine, mmcls=other, ratio=ratio)
    return result


def sample_folder() -> str | None:
    """`imagenet-sample` in WORKSPACE_SAMPLES, or that folder itself."""
    named = os.environ.get('WORKSPACE_SAMPLES')
    if not named:
        return None
    inner = Path(named, 'imagenet-sample')
    return str(inner if inner.is_dir() else named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', default=sample_folder(), help='a folder of class folders; generated ones without')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--workers', type=int, nargs='*', default=[0, 2])
    parser.add_argument('--generated', type=int, default=128, help='how many images to generate')
    parser.add_argument('--out', type=Path, help='the figures as JSON')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True, text=True,
                            cwd=Path(__file__).parent).stdout.strip()
    print(f'{" ".join(sys.argv)}\ncommit {commit}, Python {platform.python_version()}, torch {torch.__version__}, '
          f'OpenCV {cv2.__version__}, {os.cpu_count()} cores, {platform.processor() or platform.machine()}, '
          f'load {os.getloadavg()[0]:.1f}, {args.rounds} rounds, {"real" if args.images else "generated"} images')
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        if not args.images:
            generate(Path(temporary), args.generated)
        for workers in args.workers:
            figures = compare(args.images or temporary, args.batch, workers, args.rounds)
            results[f'{workers} workers'] = show(figures, workers, args.batch)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
