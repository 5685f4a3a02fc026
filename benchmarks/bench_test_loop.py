"""The test loop against mmclassification's: equal images, weights and logits; what a picture costs beside the network.

    python benchmarks/bench_test_loop.py [--images DIR] [--rounds 3] [--quick]

Both loops take turns (A B A B ...) over the default ImageNet test pipeline and a ResNet-18 in float32; a table gives
the medians. Time outside the forward pass is wall time less that spent inside the network; with workers it is what
the network waits for.
"""
from __future__ import annotations

import contextlib
import functools
import gc
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from images import prepare
from side_by_side import Results, arguments, name_of, parsed, tree_cpu
from torch import nn

from workspace_lib.datasets import CustomDataset, build_dataloader
from workspace_lib.loops import single_gpu_test
from workspace_lib.models import build_classifier

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(256, -1)), dict(type='CenterCrop', crop_size=224),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
MODEL = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=1000, in_channels=512))
FIGURES = {'outside': 'outside the network, wall', 'outside_cpu': 'outside the network, CPU',
           'end_to_end': 'end to end, wall'}


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
        wall, cpu = time.perf_counter(), tree_cpu()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            results = run()
        wall, cpu = time.perf_counter() - wall, tree_cpu() - cpu
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


def add(results: Results, figures: dict[str, dict[str, list[float]]], workers: int) -> None:
    for key, title in FIGURES.items():
        runs = {name: found[key] for name, found in figures.items()}
        results.section(f'Test loop, {workers} workers: {title}', 'ms/image', runs, 'mmcls')


def main() -> None:
    args = parsed(arguments(__doc__, rounds=3))
    rounds, generated, batch = (1, 8, 4) if args.quick else (args.rounds, args.generated, 32)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, what = prepare(args.images, generated, Path(temporary), most=min(generated, 64))
        results = Results(name_of('test_loop', args), args.out, rounds, args.toy, images=what, batch=batch)
        try:
            for workers in (0, 2):
                add(results, compare(folder, batch, workers, rounds), workers)
        except ImportError as error:
            results.missing('mmcls', str(error))
    results.finish()


if __name__ == '__main__':
    main()
