"""What grows with the data set, and what an import costs: memory and start from 10^3 to 10^6 annotation lines.

    python benchmarks/bench_scale.py [--rounds 5] [--quick]

Each measurement is a process of its own. Start: from the call that reads the annotation to the first batch, imports
not counted. Memory of a worker: resident, pages that it shares with others included. Import: CPU time, so that a busy
neighbour does not count, with compiled modules at hand, as everywhere after the first time.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from images import files_of, prepare, train_steps
from side_by_side import ROOT, Results, arguments, in_turns, parsed, ratio, tree

IMPORTS = {'torch': 'torch', 'workspace_lib.apis': 'workspace_lib.apis'}
HEAVY = ('torchvision', 'timm', 'matplotlib.pyplot')


def write_annotation(path: Path, folder: str, lines: int) -> None:
    """Lines of ImageNet's length that all name images which are there."""
    names = [str(Path(file).relative_to(folder)) for file in files_of(folder)]
    with path.open('w') as file:
        file.writelines(f'{names[number % len(names)]} {number % 1000}\n' for number in range(lines))


def child(folder: str, annotation: str, workers: int) -> None:
    """Prints the seconds to the first batch, and what a worker and all processes hold in memory then."""
    import logging

    from workspace_lib.datasets import CustomDataset, build_dataloader
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    dataset = CustomDataset(folder, train_steps(), classes=[str(number) for number in range(1000)], ann_file=annotation)
    batches = iter(build_dataloader(dataset, 8, workers, device='cpu'))  # torch's 'meta' would import torch._dynamo
    next(batches)
    seconds = time.perf_counter() - start
    pids = tree(os.getpid())
    print(json.dumps(dict(seconds=seconds, worker=max(memory(pid, 'Rss') for pid in pids[1:]) / 1e6,
                          everyone=sum(memory(pid, 'Pss') for pid in pids) / 1e6)), flush=True)
    os._exit(0)  # without waiting for an epoch of a million


def memory(pid: int, kind: str) -> int:
    """Bytes: 'Rss' of a process, or 'Pss', in which shared pages count once."""
    found = re.search(rf'^{kind}: +(\d+) kB', Path(f'/proc/{pid}/smaps_rollup').read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def annotations(results: Results, folder: str, temporary: Path, sizes: list[int], rounds: int) -> None:
    def measure(size: int) -> dict[str, float]:
        path = temporary / f'{size}.txt'
        if not path.exists():
            write_annotation(path, folder, size)
        return json.loads(_run([__file__, '--child', folder, str(path)]))

    figures = in_turns({f'{size:,} lines': lambda size=size: measure(size) for size in sizes}, rounds)
    least, most = f'{sizes[0]:,} lines', f'{sizes[-1]:,} lines'
    tables = [('seconds', 'Start to the first batch, 2 workers', 's'), ('worker', 'Memory of a worker', 'MB'),
              ('everyone', 'Memory of all three processes, shared pages once', 'MB')]
    for key, title, unit in tables:
        results.section(title, unit, {name: [run[key] for run in runs] for name, runs in figures.items()}, least)
    millions = (sizes[-1] - sizes[0]) / 1e6
    grown = max(run['worker'] for run in figures[most]) - min(run['worker'] for run in figures[least])
    results.aim('memory of a worker, for a million annotation lines', grown / millions, '<= 200', 'MB')
    results.aim(f'start with {most}', max(run['seconds'] for run in figures[most]), '<= 2', 's')


def imports(results: Results, rounds: int) -> None:
    code = 'import time; t = time.process_time(); import {}; print(time.process_time() - t)'
    figures = in_turns({name: lambda module=module: float(_run(['-c', code.format(module)]))
                        for name, module in IMPORTS.items()}, rounds)
    results.section('Import in a fresh process', 'CPU s', figures, 'torch')
    over = ratio(figures, 'workspace_lib.apis', 'torch')
    results.aim('import of workspace_lib.apis over import torch', over, '<= 1.15', 'x')
    code = f'import sys, workspace_lib.apis; print(sum(name in sys.modules for name in {HEAVY}))'
    results.aim(f'of {", ".join(HEAVY)} it imports', float(_run(['-c', code])), '<= 0')


def _run(words: list[str]) -> str:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}
    done = subprocess.run([sys.executable, '-W', 'ignore', *words], capture_output=True, text=True, cwd=ROOT,
                          env=environment)
    if done.returncode:
        raise SystemExit(f'{" ".join(words)} ended with {done.returncode}:\n{done.stderr}')
    return done.stdout.splitlines()[-1]


def main() -> None:
    args = parsed(arguments(__doc__))
    rounds = 1 if args.quick else args.rounds
    sizes = [100, 1000] if args.quick else [10**3, 10**4, 10**5, 10**6]
    with tempfile.TemporaryDirectory() as name:
        folder, what = prepare(args.images, 8 if args.quick else min(args.generated, 64), Path(name))
        results = Results('scale', args.out, rounds, args.toy, images=what)
        imports(results, rounds if args.quick else 3 * rounds)
        annotations(results, folder, Path(name), sizes, rounds)
    results.finish()


if __name__ == '__main__':
    child(*sys.argv[2:], workers=2) if sys.argv[1:2] == ['--child'] else main()
