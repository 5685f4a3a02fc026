"""Time to load mmclassification's 280 recipes and to print them: ours, mmcv's Config and, where installed, mmengine's.

    python benchmarks/bench_config.py [--rounds 5] [--out FILE.json]

cold: each measurement is one pass over all recipes in a fresh process (imports not counted), interleaved A B C A B C.
warm: passes interleaved in one process. pretty_text: interleaved recipe by recipe. Medians with the range over rounds.
CPU time of one core, so that a busy neighbour on the machine does not count. Status 1 where loading takes more than a
third of mmcv's time, or pretty_text more than a twentieth.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BOUNDS = {'cold': 1 / 3, 'warm': 1 / 3, 'pretty_text': 1 / 20}  # of mmcv's time
LOADERS = {'ours': 'workspace_lib', 'ours, every origin': 'workspace_lib', 'mmcv': 'mmcv', 'mmengine': 'mmengine'}


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def recipes() -> list[str]:
    found = importlib.util.find_spec('mmcls')
    if found is None or found.origin is None:
        sys.exit('mmcls 0.25.0 is not installed; its recipes are what is loaded (the `lab` extra brings it)')
    folder = Path(found.origin).parent / '.mim' / 'configs'
    files = sorted(path for path in folder.rglob('*.py') if '_base_' not in path.relative_to(folder).parts)
    return [str(file) for file in files if 'small_cifar' not in file.name and 'small_8xb16_cifar' not in file.name]


def loader(name: str) -> Callable[[str], object]:
    """Loads one file; 'every origin' also computes the file and line of every value."""
    if name == 'mmcv':
        from mmcv import Config as MmcvConfig
        return MmcvConfig.fromfile
    if name == 'mmengine':
        from mmengine import Config as MmengineConfig
        return MmengineConfig.fromfile
    from workspace_lib.config import Config
    if name == 'ours':
        return Config.fromfile
    from workspace_lib.tools.annotate import leaves

    def load_with_origins(file: str) -> Config:
        cfg = Config.fromfile(file)
        for path, _ in leaves(cfg.to_dict()):
            cfg.origin(path)
        return cfg
    return load_with_origins


def one_pass(load: Callable[[str], object], files: list[str]) -> list[float]:
    """CPU milliseconds of each file."""
    times = []
    for file in files:
        start = time.process_time_ns()
        load(file)
        times.append((time.process_time_ns() - start) / 1e6)
    return times


def cold_pass(name: str) -> list[float]:
    command = [sys.executable, '-W', 'ignore', __file__, '--cold', name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rounds_of(names: list[str], rounds: int, measure: Callable[[str], list[float]]) -> dict[str, list[list[float]]]:
    """Interleaved: every round measures each of `names` once."""
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(measure(name))
    return times


def pretty_times(files: list[str], rounds: int) -> dict[str, list[list[float]]]:
    names = [name for name in ('ours', 'mmcv') if installed(LOADERS[name])]
    configs = {name: [loader(name)(file) for file in files] for name in names}
    times: dict[str, list[list[float]]] = {name: [[] for _ in range(rounds)] for name in names}
    for r in range(rounds):
        for i in range(len(files)):
            for name in names:
                start = time.process_time_ns()
                _ = configs[name][i].pretty_text  # type: ignore[attr-defined]
                times[name][r].append((time.process_time_ns() - start) / 1e6)
    return times


def summary(times: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    """Per name: milliseconds of a pass (median and range over rounds), of the median file, and ours as a part of it."""
    table = {}
    for name, passes in times.items():
        totals = [sum(one) for one in passes]
        per_file = [statistics.median(values) for values in zip(*passes, strict=True)]
        ours = [sum(one) for one in times['ours']]
        ratios = [a / b for a, b in zip(ours, totals, strict=True)]
        ours_per_file = [statistics.median(values) for values in zip(*times['ours'], strict=True)]
        worst = max(a / b for a, b in zip(ours_per_file, per_file, strict=True))
        table[name] = {'total_ms': statistics.median(totals), 'min_ms': min(totals), 'max_ms': max(totals),
                       'file_ms': statistics.median(per_file), 'ours_over_this': statistics.median(ratios),
                       'ours_over_this_worst_file': worst}
    return table


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    print(f'\n{title}\n{"":22}{"total ms":>10}{"range":>18}{"median file":>13}{"ours/this":>11}{"worst file":>12}')
    for name, row in table.items():
        spread = f'{row["min_ms"]:.0f} .. {row["max_ms"]:.0f}'
        print(f'{name:22}{row["total_ms"]:10.0f}{spread:>18}{row["file_ms"]:13.3f}{row["ours_over_this"]:11.3f}'
              f'{row["ours_over_this_worst_file"]:12.3f}')


def versions() -> dict[str, str]:
    found = {'python': platform.python_version(), 'machine': platform.machine(), 'cores': str(os.cpu_count())}
    for package in ('mmcv', 'mmcls', 'mmengine', 'yapf'):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = 'not installed'
    git = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    return {**found, 'commit': git.stdout.strip()}


def missed(tables: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """What took too much of mmcv's time; nothing where mmcv is not installed."""
    shares = {title: table['mmcv']['ours_over_this'] for title, table in tables.items() if 'mmcv' in table}
    return [f"{title}: {share:.3f} of mmcv's time, at most {BOUNDS[title]:.3f} is meant"
            for title, share in shares.items() if share > BOUNDS[title]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', help='write the tables as JSON')
    parser.add_argument('--cold', help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    files = recipes()
    if args.cold:
        print(json.dumps(one_pass(loader(args.cold), files)))
        return 0
    names = [name for name, package in LOADERS.items() if installed(package)]
    print(f'{len(files)} recipes, {args.rounds} rounds;', ', '.join(f'{k} {v}' for k, v in versions().items()))
    tables = {'cold': summary(rounds_of(names, args.rounds, cold_pass))}
    show('cold: one pass in a fresh process', tables['cold'])
    loaders = {name: loader(name) for name in names}
    warm = rounds_of([n for n in names if n != 'mmengine'], args.rounds, lambda name: one_pass(loaders[name], files))
    tables['warm'] = summary(warm)
    show('warm: repeated in one process', tables['warm'])
    tables['pretty_text'] = summary(pretty_times(files[::10], max(2, args.rounds // 2)))
    show(f'pretty_text of {len(files[::10])} recipes', tables['pretty_text'])
    if args.out:
        Path(args.out).write_text(json.dumps({'versions': versions(), 'rounds': args.rounds, **tables}, indent=1))
    found = missed(tables)
    print('\n' + ('\n'.join(found) or 'within the bounds'))
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
