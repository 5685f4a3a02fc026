"""What a card can do at most: peak arithmetic and memory bandwidth, the roof of a roofline.

In: a device. Out: a `Roof`, from a table of data sheets, or measured by a matrix product and a copy.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: A word of the driver's name: (TFLOP/s of float16 and bfloat16, of float32 as convolutions run it: TF32 where the card
#: has it; GB/s; source). Dense, without sparsity, at boost clocks. The first that matches counts.
CARDS: dict[str, tuple[float, float, float, str]] = {
    'B200': (2250, 1100, 7700, 'NVIDIA DGX B200 data sheet, an eighth'),
    'H200 NVL': (835.5, 417.5, 4800, 'NVIDIA H200 data sheet'),
    'H200': (989.4, 494.7, 4800, 'NVIDIA H200 data sheet'),
    'H100 PCIe': (756.4, 378, 2000, 'NVIDIA H100 data sheet'),
    'H100 NVL': (835.5, 417.5, 3900, 'NVIDIA H100 data sheet'),
    'H100': (989.4, 494.7, 3350, 'NVIDIA H100 data sheet'),
    'A100-SXM4-80GB': (312, 156, 2039, 'NVIDIA A100 data sheet'),
    'A100 80GB PCIe': (312, 156, 1935, 'NVIDIA A100 data sheet'),
    'A100': (312, 156, 1555, 'NVIDIA A100 data sheet'),
    'L40S': (362, 183, 864, 'NVIDIA L40S data sheet'),
    'L4': (121, 60, 300, 'NVIDIA L4 data sheet'),
    'A30': (165, 82, 933, 'NVIDIA A30 data sheet'),
    'A10': (125, 62.5, 600, 'NVIDIA A10 data sheet'),
    'V100': (125, 15.7, 900, 'NVIDIA V100 data sheet'),
    'T4': (65, 8.1, 320, 'NVIDIA T4 data sheet'),
    'RTX 4090': (165.2, 82.6, 1008, 'NVIDIA Ada architecture white paper'),
    'RTX 3090': (71, 35.6, 936, 'NVIDIA GA102 architecture white paper'),
}


@dataclass(frozen=True)
class Roof:
    """Peaks of one device: FLOP/s in the number format of the run, bytes/s of its memory."""

    name: str
    flops: float
    bandwidth: float
    source: str

    @property
    def ridge(self) -> float:
        """FLOP a byte from which on arithmetic, not memory, is the limit."""
        return self.flops / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """FLOP/s at most, of work with this many FLOP a byte."""
        return min(self.flops, intensity * self.bandwidth)


def known_card(name: str, half: bool) -> Roof | None:
    """The roof of a card by the name that its driver gives; None for one that is not in the table."""
    for word, (tensor, single, bandwidth, source) in CARDS.items():
        if word in name and not name[name.index(word) + len(word):][:1].isalnum():
            return Roof(name, (tensor if half else single) * 1e12, bandwidth * 1e9, source)
    return None


def roof_of(device: torch.device, dtype: torch.dtype) -> Roof:
    """The roof of a device for a number format, from the table or measured."""
    known = device.type == 'cuda' and known_card(torch.cuda.get_device_name(device), dtype != torch.float32)
    return known or measured_roof(device, dtype)


def measured_roof(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Roof:
    """The best of repeated products of matrices (1024 x 1024; 8192 x 8192 on a GPU) and copies of 64 MB (1 GB)."""
    size, amount = (8192, 2**30) if device.type == 'cuda' else (1024, 2**26)
    a = torch.randn(size, size, device=device).to(dtype)
    source = torch.zeros(amount, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    flops = 2 * size**3 / _best(lambda: torch.mm(a, a), device, seconds)
    bandwidth = 2 * amount / _best(lambda: target.copy_(source), device, seconds)  # read and written
    threads = torch.get_num_threads()
    on_cpu = f'CPU, {threads} thread{"s" * (threads > 1)}'
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else on_cpu
    return Roof(name, flops, bandwidth, 'measured here: a matrix product and a copy')


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call, of as many as fit into `seconds`, three at least."""
    best, until, calls = float('inf'), time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < until:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU was asked to do; nothing on a CPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
