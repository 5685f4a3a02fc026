"""All benchmarks that need no GPU, one after the other, and the README of their results.

    python benchmarks/run.py [--images DIR] [--out DIR] [--only image loader] [--quick]

A benchmark that fails is named at the end, and the others run all the same.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Results, arguments, parsed, write_readme

HERE = Path(__file__).parent
#: Those that write results by themselves, the most important first.
OURS = ('image', 'loader', 'scale', 'config', 'test_loop')
#: Those that write one flat JSON file: (words of the full run, of the quick one, aims by key).
FLAT: dict[str, tuple[list[str], list[str], dict[str, tuple[str, str]]]] = {
    'train_loop': (['--pairs', '9'], ['--pairs', '1'], {
        'ResNet-18, 64 px, ratio, processor: and TensorBoard, monitor': ('<= 1.02', 'x'),
        'null model, microseconds a step, processor: default hooks': ('<= 50', 'us/step')}),
}
#: What has a report of its own on the terminal.
OTHERS = {'prepare': (['--size', '0.3', '--rounds', '2'], ['--size', '0.005', '--rounds', '1'])}
MINUTES = 6  # for one benchmark; all together take about 12


def run(name: str, words: list[str]) -> bool:
    """Whether it ended well; its output goes to the terminal."""
    start = time.perf_counter()
    print(f'\n== {name}', flush=True)
    try:
        code = subprocess.run([sys.executable, '-W', 'ignore', str(HERE / f'bench_{name}.py'), *words], cwd=ROOT,
                              timeout=60 * MINUTES).returncode
    except subprocess.TimeoutExpired:
        code = f'no end in {MINUTES} minutes'
    print(f'== {name}: {time.perf_counter() - start:.0f} s' + (f', FAILED ({code})' if code else ''), flush=True)
    return not code


def run_flat(name: str, words: list[str], aims: dict[str, tuple[str, str]],
             args: argparse.Namespace) -> bool:
    """The same for a benchmark that writes numbers by name; they become results with aims."""
    raw = args.out / f'.{name}.numbers'
    args.out.mkdir(parents=True, exist_ok=True)
    if not run(name, [*words, '--out', str(raw)]):
        return False
    numbers: dict[str, Any] = json.loads(raw.read_text())
    raw.unlink()
    results = Results(name, args.out, int(numbers.get('pairs', 1)), args.toy)
    for key, value in numbers.items():
        if isinstance(value, float) and key not in aims:
            results.section(key.replace('_', ' '), '', {'ours': [value]}, 'ours')
    for key, (bound, unit) in aims.items():
        what = f'{name}: {key.replace("_", " ")}'
        results.aim(what, numbers.get(key), bound, unit, f'bench_{name}.py gives no {key}')
    return True


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument('--only', nargs='+', choices=[*OURS, *FLAT, *OTHERS], help='these benchmarks alone')
    args = parsed(parser)
    chosen = args.only or [*OURS, *FLAT, *OTHERS]
    words = ['--out', str(args.out), *(['--images', args.images] if args.images else []),
             *(['--quick'] if args.quick else [])]  # each has a number of rounds of its own
    failed = [name for name in OURS if name in chosen and not run(name, words)]
    failed += [name for name, (full, quick, aims) in FLAT.items()
               if name in chosen and not run_flat(name, quick if args.quick else full, aims, args)]
    failed += [name for name, (full, quick) in OTHERS.items()
               if name in chosen and not run(name, quick if args.quick else full)]
    print(f'\nall of it: {write_readme(args.out)}')
    if failed:
        raise SystemExit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
