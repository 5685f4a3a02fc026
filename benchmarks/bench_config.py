"""Time to load mmclassification's 280 recipes and to print them: ours, mmcv's Config and, where installed, mmengine's.

    python benchmarks/bench_config.py [--rounds 7] [--quick]

cold: each measurement is one pass over all recipes in a fresh process (imports not counted), interleaved A B C A B C.
warm: passes interleaved in one process. pretty_text: interleaved recipe by recipe. Medians with the range over rounds.
CPU time of one core, so that a busy neighbour on the machine does not count.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from side_by_side import ROOT, Results, arguments, parsed, ratio

os.environ['OMP_NUM_THREADS'] = '1'
QUICK = 'BENCH_CONFIG_QUICK'
PEERS = ROOT / '.venv-bench' / 'bin' / 'python'
LOADERS = {'ours': 'workspace_lib', 'ours, every origin': 'workspace_lib', 'mmcv': 'mmcv', 'mmengine': 'mmengine'}


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None or package == 'mmengine' and PEERS.exists()


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
    from workspace_lib.tools.annotate import origins
    return lambda file: origins(Config.fromfile(file))


def one_pass(load: Callable[[str], object], files: list[str]) -> list[float]:
    """CPU milliseconds of each file."""
    times = []
    for file in files:
        start = time.process_time_ns()
        load(file)
        times.append((time.process_time_ns() - start) / 1e6)
    return times


def cold_pass(name: str) -> list[float]:
    python = str(PEERS) if name == 'mmengine' and importlib.util.find_spec(name) is None else sys.executable
    command = [python, '-W', 'ignore', __file__, '--cold', name]
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


def totals(times: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Milliseconds of each pass."""
    return {name: [sum(one) for one in passes] for name, passes in times.items()}


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument('--cold', help=argparse.SUPPRESS)
    args = parsed(parser)
    warnings.simplefilter('ignore')
    files = recipes()[::20 if os.environ.get(QUICK) or args.quick else 1]
    if args.cold:
        print(json.dumps(one_pass(loader(args.cold), files)))
        return
    if args.quick:
        os.environ[QUICK] = '1'  # for the processes of the cold passes
    rounds = 1 if args.quick else args.rounds
    results = Results('config', args.out, rounds, args.toy, recipes=len(files))
    names = [name for name, package in LOADERS.items() if installed(package)]
    for name in LOADERS.keys() - {*names}:
        results.missing(name, 'not installed')
    cold = totals(rounds_of(names, rounds, cold_pass))
    results.section(f'{len(files)} recipes, each pass in a fresh process', 'CPU ms', cold, 'ours')
    for name, bound in ('mmcv', '<= 0.3333'), ('mmengine', '<= 0.05'):
        for mine, what in ('ours', 'with origins at hand'), ('ours, every origin', 'and every origin computed'):
            over = ratio(cold, mine, name) if name in cold else None
            results.aim(f'all recipes loaded {what}, over {name}', over, bound, 'x', f'{name} is not installed here')
    here = [name for name in names if name != 'mmengine']  # that one may be in .venv-bench
    loaders = {name: loader(name) for name in here}
    warm = totals(rounds_of(here, rounds, lambda name: one_pass(loaders[name], files)))
    results.section(f'{len(files)} recipes, again in one process', 'CPU ms', warm, 'ours')
    pretty = totals(pretty_times(files[::10], max(2, rounds // 2)))
    results.section(f'pretty_text of {len(files[::10])} recipes', 'CPU ms', pretty, 'ours')
    over = ratio(pretty, 'ours', 'mmcv') if 'mmcv' in pretty else None
    results.aim('pretty_text over mmcv', over, '<= 0.05', 'x', 'mmcv is not installed here')
    results.finish()


if __name__ == '__main__':
    main()
