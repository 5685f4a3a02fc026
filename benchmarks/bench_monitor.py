"""What watching the GPU costs a training: the loop with the default hooks, with and without GPUMonitorHook.

    python benchmarks/bench_monitor.py [--pairs 9] [--out FILE.json]

NVML is replayed from tests/nvml, so that this runs without a GPU: a real driver's calls take longer, but wait outside
Python's lock. Processor time of all threads, so that the sampling thread counts and other work on the machine does
not; interleaved pairs, medians. The sampling thread runs at 1 Hz as in a training, and at 100 Hz
so that its share, too small to see at 1 Hz, can be read. Budget of all hooks together: 50 microseconds a step, and 2 %
of a ResNet-18 step at 64 px.
"""
from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_train_loop import Null, ours, pairs, plain, resnet18

from workspace_lib.gpu import Card
from workspace_lib.gpu_hook import GPUMonitorHook
from workspace_lib.hooks import Hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
from nvml_replay import Replay  # noqa: E402

LOOKS = 1000


def one_look() -> float:
    """Seconds that the thread computes for a sample."""
    card = Card(Replay(), 'gpu0')
    return cpu(lambda: [card.read() for _ in range(LOOKS)]) / LOOKS


def cpu(run: Callable[[], object]) -> float:
    """Processor seconds of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--pairs', type=int, default=9)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, null = resnet18(), Null()
    images = [dict(img=torch.randn(16, 3, 64, 64), gt_label=torch.randint(0, 10, (16,))) for _ in range(4)] * 3
    empty: list[dict] = [{}] * 5000

    def added(make: Callable[[], list[Hook]]) -> float:
        found = pairs(lambda: cpu(lambda: ours(null, empty, make())), lambda: cpu(lambda: ours(null, empty)),
                      args.pairs)
        return statistics.median((a - b) / len(empty) * 1e6 for a, b in found)

    def watching() -> list[Hook]:
        return [GPUMonitorHook(nvml=Replay())]

    all_hooks = pairs(lambda: cpu(lambda: ours(null, empty, watching())), lambda: cpu(lambda: plain(null, empty)),
                      args.pairs)
    real = pairs(lambda: cpu(lambda: ours(model, images, watching())), lambda: cpu(lambda: plain(model, images)),
                 args.pairs)
    same = pairs(lambda: cpu(lambda: plain(model, images)), lambda: cpu(lambda: plain(model, images)), args.pairs)
    result = {
        'hook_at_1_hz_adds_microseconds_a_step': added(watching),
        'hook_at_100_hz_adds_microseconds_a_step': added(lambda: [GPUMonitorHook(0.01, Replay())]),
        'hook_without_gpu_adds_microseconds_a_step': added(lambda: [GPUMonitorHook()]),
        'same_loop_twice_microseconds_a_step': added(list),
        'all_hooks_microseconds_a_step': statistics.median((a - b) / len(empty) * 1e6 for a, b in all_hooks),
        'all_hooks_resnet18_64px_ratio': statistics.median(a / b for a, b in real),
        'resnet18_64px_ratio_a_a': statistics.median(a / b for a, b in same),
        'one_look_microseconds': statistics.median(one_look() for _ in range(args.pairs)) * 1e6,
        'pairs': args.pairs, 'torch': torch.__version__, 'machine': platform.processor() or platform.machine(),
    }
    for name, value in result.items():
        print(f'{name:44} {value:.4f}' if isinstance(value, float) else f'{name:44} {value}')
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
