"""``workspace get_flops``: multiply-adds, parameters and output shapes, of the whole model and of its parts.

In: a config and the shape of an image. Out: `Cost`, a table.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..models import build_classifier
from ..recipes import load_config
from .arguments import add_config
from .scorer import Scorer
from .table import Table

COUNTED = '''\
MACs: multiply-adds of convolutions, matrix products (linear layers) and attention, of one image, head included.
FLOPs: 2 x MACs, a multiplication and an addition each. What papers and mmclassification call FLOPs are the MACs
(mmclassification adds an operation an element for normalisation, activation and pooling, but none for the last layer).
'''


class Part(NamedTuple):
    """A module: what it costs, and the shape (1, ...) of its last output; () where it is not called itself."""

    name: str
    kind: str
    parameters: int
    macs: int
    output: tuple[int, ...]

    @property
    def megabytes(self) -> float:
        """Of the output in float32: what training keeps of it for the backward pass, for each image of a batch."""
        return 4 * prod(self.output) / 1e6 if self.output else 0.0


@dataclass
class Cost:
    """MACs and parameters of one image of `shape` (C, H, W), and of its modules."""

    shape: tuple[int, ...]
    parameters: int
    macs: int
    parts: list[Part]

    @property
    def table(self) -> Table:
        rows = [(part.name, part.kind, 'x'.join(map(str, part.output[1:])), part.megabytes, part.parameters / 1e6,
                 part.macs / 1e6, 2 * part.macs / 1e6, 100 * part.macs / max(self.macs, 1))
                for part in [*self.parts, Part('whole model', '', self.parameters, self.macs, ())]]
        return Table(('module', 'type', 'output', 'output (MB)', 'parameters (M)', 'MACs (M)', 'FLOPs (M)',
                      'share of MACs (%)'), rows)

    def __str__(self) -> str:
        return (f'image (C, H, W): {self.shape}   MACs: {_scaled(self.macs)}   FLOPs: {_scaled(2 * self.macs)}   '
                f'parameters: {_scaled(self.parameters)}')


def _scaled(number: int) -> str:
    """4089184256 as '4.089 G'."""
    size, unit = next((pair for pair in ((1e9, 'G'), (1e6, 'M')) if number >= pair[0]), (1e3, 'k'))
    return f'{number / size:.3f} {unit}'


def count_flops(model: Any, shape: Sequence[int] = (3, 224, 224), depth: int = 2) -> Cost:
    """What one image costs in a forward pass, by torch.utils.flop_counter; nothing is computed (device 'meta').

    Args:
        model: a classifier; it is moved to the meta device, so its weights are gone afterwards.
        shape: of the image: (C, H, W), (H, W) of 3 channels, or (S,) for a square.
        depth: of the modules that get a row: 1 is backbone, neck and head, 2 their children.

    Raises:
        ValueError: a shape of another length, or one that the model cannot take.
    """
    sizes = {1: (3, *shape, *shape), 2: (3, *shape), 3: tuple(shape)}.get(len(shape))
    if sizes is None or min(sizes) < 1:
        raise ValueError(f'shape {" ".join(map(str, shape))}: give C H W, H W, or one number for a square')
    model = model.to('meta').eval()
    named = {name: module for name, module in model.named_modules() if name}
    counter, flops = FlopCounterMode(display=False), dict.fromkeys(named, 0)
    outputs: dict[str, tuple[int, ...]] = {}
    handles = [handle for name, module in named.items() for handle in _meter(name, module, counter, flops, outputs)]
    try:
        with counter, torch.no_grad():
            Scorer(model)(torch.zeros(1, *sizes, device='meta'))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f'the model does not take an image of (C, H, W) = {sizes}: {error}; give the shape that it '
                         'does: --shape C H W') from error
    finally:
        for handle in handles:
            handle.remove()
    for name in sorted(named, key=lambda name: -name.count('.')):
        if not flops[name]:  # a head is not called itself, only its layers are
            flops[name] = sum(flops[n] for n in named if n.rpartition('.')[0] == name)
    parts = [Part(name, type(module).__name__, _size(module), flops[name] // 2, outputs.get(name, ()))
             for name, module in named.items() if name.count('.') < depth]
    return Cost(sizes, _size(model), counter.get_total_flops() // 2, parts)


def _meter(name: str, module: nn.Module, counter: FlopCounterMode, flops: dict[str, int],
           outputs: dict[str, tuple[int, ...]]) -> list[Any]:
    """Hooks that add to `flops[name]` what is counted between start and end of `module`, and note its output."""
    def start(module: nn.Module, args: Any) -> None:
        flops[name] -= counter.get_total_flops()

    def end(module: nn.Module, args: Any, output: Any) -> None:
        flops[name] += counter.get_total_flops()
        last = output[-1] if isinstance(output, tuple | list) and output else output  # of the feature maps
        outputs[name] = tuple(getattr(last, 'shape', ()))

    return [module.register_forward_pre_hook(start), module.register_forward_hook(end)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def config_cost(config: str | Config, shape: Sequence[int] = (3, 224, 224), depth: int = 2,
                options: dict | None = None) -> Cost:
    """`count_flops` of the model of a config."""
    return count_flops(build_classifier(load_config(config, options).model), shape, depth)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = COUNTED, argparse.RawDescriptionHelpFormatter
    add_config(parser)
    parser.add_argument('--shape', type=int, nargs='+', default=[3, 224, 224], metavar='N',
                        help='of an image: C H W, or H W of 3 channels, or one number for a square (default 3 224 224)')
    parser.add_argument('--depth', type=int, default=2, help='of the modules in the table (default 2)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    cost = config_cost(args.config, args.shape, args.depth, args.cfg_options)
    print(cost.table)
    print(f'\n{cost}\n\n{COUNTED}', end='')
