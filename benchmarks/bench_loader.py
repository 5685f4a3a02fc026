"""The loader against those of other libraries: the same files, the same crops, batches of 64, two workers.

    python benchmarks/bench_loader.py [--images DIR] [--rounds 5] [--only ours timm] [--quick]

CPU time of all processes of a contestant, an image: what is left of the machine for other work, and what bounds the
rate where workers fill the cores. Everyone runs on the same two cores, in turns (A B A B ...), each in a process of its
own; the anchor has a turn in every round. make_peers.sh installs the peers.
"""
from __future__ import annotations

import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anchor import ANCHOR, anchors
from contestants import CONTESTANTS, Absent, Contestant
from images import files_of, prepare
from side_by_side import Results, arguments, counted, in_turns, name_of, parsed, pin, ratio, tree_cpu

from workspace_lib.datasets import build_dataloader

#: Of whom the CPU time an image, over ours, is to be at least this.
AIMS = {'torchvision PIL float32': 2.2, 'timm': 2.0, 'mmcls': 1.7, 'torchvision v2 float32': 1.7, 'mmpretrain': 1.4,
        'DALI CPU': 1.4, 'FFCV jpg': 1.1}
#: (What a batch is, who is the base among those that make such, how titles call it); one table and panel for each.
KINDS = [('uint8', 'ours', 'uint8 batches'), ('float32', 'ours float32', 'normalised float32 batches')]


def loaders(results: Results, names: list[str], folder: str, batch: int, rounds: int) -> None:
    floor, reason = anchors(files_of(folder))
    base = next(iter(floor))
    if reason:
        results.missing(ANCHOR, f'{reason}; {base} stands in')
    running: dict[str, Any] = {name: lambda call=call: (call(), float('nan')) for name, call in floor.items()}
    for name in names:
        try:
            running[name] = Contestant(name, folder, batch, 2)
        except Absent as absent:
            results.missing(name, str(absent))
    figures = in_turns(running, rounds)
    cpu = {name: [pair[0] for pair in pairs] for name, pairs in figures.items()}
    rates = {name: [pair[1] for pair in pairs] for name, pairs in figures.items()}
    for kind, under, title in KINDS:
        rows = [name for name in running if name not in floor and CONTESTANTS[name][0] == kind]
        if under in rows:
            results.section(f'Loaders, {title}: CPU time', 'CPU ms/image',
                            {name: cpu[name] for name in [*floor, *rows]}, under)
        if rows:
            results.section(f'Loaders, {title}: rate', 'images/s', {name: rates[name] for name in rows},
                            under if under in rows else rows[0])
    for name, bound in AIMS.items():
        over = ratio(cpu, name, 'ours') if {name, 'ours'} <= {*cpu} else None
        results.aim(f'loader, CPU an image: {name} over ours', over, f'>= {bound:g}', 'x',
                    results.content['missing'].get(name, 'left out with --only or --quick'))


def workers(results: Results, folder: str, batch: int, rounds: int) -> None:
    """How the cost grows from one worker to two."""
    running = {f'ours, {counted(count, "worker")}': Contestant('ours', folder, batch, count) for count in (0, 1, 2)}
    figures = in_turns(running, rounds)
    for which, unit in enumerate(('CPU ms/image', 'images/s')):
        results.section(f'Ours with more workers, {unit}', unit,
                        {name: [pair[which] for pair in pairs] for name, pairs in figures.items()}, 'ours, 1 worker')


class Still:
    """A data set whose samples cost nothing: what remains is to make batches of them and to hand those over."""

    def __init__(self, count: int) -> None:
        self.count, self.img = count, np.zeros((224, 224, 3), np.uint8)

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, seed: int | None = None) -> dict[str, Any]:
        return dict(img=self.img, gt_label=np.int64(0))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(img=self.img.transpose(2, 0, 1), gt_label=0)


def transport(results: Results, batch: int, count: int, rounds: int) -> None:
    """From samples in a worker to the batch in the main process, copies included."""
    dataset = Still(count)
    mine = build_dataloader(dataset, batch, 2, device='meta')
    plain = torch.utils.data.DataLoader(dataset, batch, shuffle=True, num_workers=2, persistent_workers=True)
    figures = in_turns({'ours': lambda: _epoch(mine, count), "torch's default collate": lambda: _epoch(plain, count)},
                       rounds)
    results.section('Transport of a uint8 batch from a worker, 2 workers', 'CPU ms/image', figures, 'ours')
    results.aim('transport of a uint8 batch from worker to main, an image', statistics.median(figures['ours']),
                '<= 0.03', 'ms')


def _epoch(loader: Any, count: int) -> float:
    start = tree_cpu()
    for _ in loader:
        pass
    return (tree_cpu() - start) / count * 1e3


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument('--only', nargs='+', choices=[*CONTESTANTS], help='these contestants alone')
    parser.add_argument('--copies', type=int, default=4, help='names for each image, for longer epochs (default 4)')
    args = parsed(parser)
    rounds, generated, names = args.rounds, args.generated, args.only or [*CONTESTANTS]
    if args.quick:
        rounds, generated, names = 1, 8, args.only or ['ours', 'torchvision v2 float32']
    pin(2)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        batch = 4 if args.quick else 64
        folder, what = prepare(args.images, generated, Path(temporary), 1 if args.quick else args.copies)
        results = Results(name_of('loader', args), args.out, rounds, args.toy, images=what, batch=batch,
                          pinned='two cores')
        transport(results, batch, 64 if args.quick else 64 * 64, rounds)
        workers(results, folder, batch, rounds)
        loaders(results, names, folder, batch, rounds)
    print(f'{time.perf_counter() - start:.0f} s')
    results.finish()


if __name__ == '__main__':
    main()
