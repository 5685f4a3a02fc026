"""What the train loop costs over the same steps written by hand: interleaved pairs, medians, one thread.

    python benchmarks/bench_train_loop.py [--pairs 9] [--out FILE.json]

Two models: ResNet-18 at 64 px (ratio of times), and a null model (microseconds a step with the default hooks). A/A
repeats the plain loop against itself: the noise that the ratio has to be read with.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from workspace_lib.faults import CheckInvalidLossHook, StopSignalHook
from workspace_lib.hooks import CheckpointHook, Hook, IterTimerHook, LrUpdaterHook, OptimizerHook
from workspace_lib.log_hooks import ProgressBarHook, TextLoggerHook
from workspace_lib.models import build_classifier
from workspace_lib.optim import lr_schedule
from workspace_lib.runner import EpochBasedRunner


class Null(nn.Module):
    """One parameter: everything that is measured is the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def train_step(self, data: dict, optimizer: object = None) -> dict:
        loss = self.weight * 1.0
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=1)


def resnet18() -> nn.Module:
    return build_classifier(dict(
        type='ImageClassifier', backbone=dict(type='ResNet', depth=18), neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=512, topk=(1,),
                  loss=dict(type='CrossEntropyLoss'))))


def plain(model: nn.Module, batches: list[dict]) -> float:
    """The bare loop, its zero_grad after the step as in the hook. Returns seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    optimizer.zero_grad()
    start = time.perf_counter()
    for batch in batches:
        model.train_step(batch)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def ours(model: nn.Module, batches: list[dict], more: Sequence[Hook] = ()) -> float:
    """One epoch of the runner with the default hooks, and `more`. Returns seconds."""
    with tempfile.TemporaryDirectory() as folder:
        runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
                                  work_dir=folder, max_epochs=1, logger=logging.getLogger('bench'))
        runner.register_hook(LrUpdaterHook(lr_schedule(dict(policy='CosineAnnealing', min_lr=0), 1, len(batches))))
        runner.register_hook(OptimizerHook())
        runner.register_hook(CheckpointHook(interval=2, save_last=False))
        runner.register_hook(IterTimerHook())
        runner.register_hook(ProgressBarHook())
        runner.register_hook(TextLoggerHook(interval=100))
        for hook in (CheckInvalidLossHook(), StopSignalHook(), *more):
            runner.register_hook(hook)
        with contextlib.redirect_stderr(io.StringIO()):
            start = time.perf_counter()
            runner.run([batches], [('train', 1)])
            return time.perf_counter() - start


def pairs(first: Callable[[], float], second: Callable[[], float], count: int) -> list[tuple[float, float]]:
    first(), second()
    return [(first(), second()) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--pairs', type=int, default=9)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, null = resnet18(), Null()
    images = [dict(img=torch.randn(16, 3, 64, 64), gt_label=torch.randint(0, 10, (16,))) for _ in range(4)] * 3
    empty: list[dict] = [{}] * 2000
    real = pairs(lambda: ours(model, images), lambda: plain(model, images), args.pairs)
    same = pairs(lambda: plain(model, images), lambda: plain(model, images), args.pairs)
    cost = pairs(lambda: ours(null, empty), lambda: plain(null, empty), args.pairs)
    result = {
        'resnet18_64px_ratio': statistics.median(a / b for a, b in real),
        'resnet18_64px_ratio_a_a': statistics.median(a / b for a, b in same),
        'null_model_microseconds_a_step': statistics.median((a - b) / len(empty) * 1e6 for a, b in cost),
        'pairs': args.pairs, 'torch': torch.__version__, 'machine': platform.processor() or platform.machine(),
    }
    for name, value in result.items():
        print(f'{name:34} {value:.4f}' if isinstance(value, float) else f'{name:34} {value}')
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
