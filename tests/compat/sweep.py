"""Runs every recipe of mmclassification 0.25 in our loops: load, build, a training step, evaluation, a test step.

In: mmcls with its recipes (make test-compat). Out: a JSON file with a record of each recipe, and a table by family.
"""
from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import itertools
import json
import logging
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
import torch  # noqa: E402
from reduced import image_size, loaded, recipe_names, recipes_folder, reduced  # noqa: E402
from table import by_family  # noqa: E402
from tiny_data import accept_tiny_cifar, make  # noqa: E402

from workspace_lib.apis import build_loader, build_training, run_training, set_random_seed  # noqa: E402
from workspace_lib.datasets import build_dataset  # noqa: E402
from workspace_lib.loops import single_gpu_test  # noqa: E402
from workspace_lib.models import build_classifier  # noqa: E402
from workspace_lib.tools.build_tree import trace_builds  # noqa: E402

#: What mmclassification's own forward pass leaves out: RepVGG's merged blocks do without their SE layers.
IDLE = {'repvgg/deploy/repvgg-D2se_deploy_4xb64-autoaug-lbs-mixup-coslr-200e_in1k': 'se_layer'}
#: Beyond so many parameters only one model at a time: AdamW with averages takes 20 bytes for each.
LARGE = 100_000_000
#: Seconds without any result after which a process is taken for killed (by the kernel, for want of memory).
LOST = 600


class Few:
    """A loader that ends after `count` batches."""

    def __init__(self, loader: Any, count: int = 1) -> None:
        self.loader, self.count, self.dataset = loader, count, loader.dataset

    def __len__(self) -> int:
        return min(self.count, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.count)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)


def check(name: str) -> dict[str, Any]:
    """Everything about one recipe; what goes wrong is in `error`, the last line of it and its place."""
    start = time.perf_counter()
    record: dict[str, Any] = dict(name=name, borrowed=[], notes=[], error=None)
    with warnings.catch_warnings(), trace_builds() as trace:
        warnings.simplefilter('ignore')
        try:
            record['same_dictionary'] = same_dictionary(name)
            cfg, record['notes'] = reduced(name)
            record['size'] = image_size(cfg)
            model = run(cfg, record)
            record['borrowed'] = sorted({build.type for build in trace.records if build.lender})
            if not record['borrowed']:
                record['same_state'] = named_shapes(model) == named_shapes(theirs(loaded(name).model))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            record['error'] = f'{type(error).__name__}: {error} ({place.filename}:{place.lineno})'
    if record['error'] is None:
        wrong = [key for key in ('same_dictionary', 'same_state') if record.get(key) is False]
        record['error'] = f'not as in mmclassification: {", ".join(wrong)}' if wrong else None
    record['seconds'] = round(time.perf_counter() - start, 2)
    return record


def same_dictionary(name: str) -> bool:
    """Whether our loader reads what mmcv's reads, values and types in the same order."""
    import mmcv

    path = str(recipes_folder() / f'{name}.py')
    return repr(loaded(name).to_dict()) == repr(mmcv.Config.fromfile(path)._cfg_dict.to_dict())


def run(cfg: Any, record: dict[str, Any]) -> torch.nn.Module:
    """One iteration of training with all hooks, evaluation on the validation set, one batch of testing."""
    set_random_seed(cfg.seed)
    model = build_classifier(cfg.model)
    record['parameters'] = sum(p.numel() for p in model.parameters())
    with one_at_a_time(record['parameters'] > LARGE):
        model.init_weights()
        dataset = build_dataset(cfg.data.train)
        model.CLASSES = dataset.CLASSES
        runner, loaders = build_training(model, dataset, cfg, validate=True, device='cpu')
        run_training(runner, [Few(loader) for loader in loaders], cfg)
        record['loss'] = float(runner.outputs['loss'])
        idle = {id(p) for name, p in model.named_parameters() if IDLE.get(record['name'], '-') in name}
        if idle:
            record['notes'].append(f"{IDLE[record['name']]} has no gradient, as in mmclassification")
        record['with_gradient'], any_at_all = gradients(runner.optimizer, idle)
        if not math.isfinite(record['loss']) or record['with_gradient'] < 0.5 or not any_at_all:
            raise ValueError(f"loss {record['loss']}, gradients for {record['with_gradient']:.0%} of the parameters")
        runner.optimizer.state.clear()
        dataset = build_dataset(cfg.data.test, dict(test_mode=True))
        scores = single_gpu_test(model, Few(build_loader(cfg, 'test', dataset, torch.device('cpu'))), progress=False)
        if len(scores) != 2 or not all(math.isfinite(value) for value in scores[0]):
            raise ValueError(f'{len(scores)} scores for a batch of 2, the first {scores[:1]}')
    return model


def gradients(optimizer: torch.optim.Optimizer, idle: set[int]) -> tuple[float, bool]:
    """From what a step left in the optimizer: the share of parameters that had a gradient, and if one was not zero.

    A head that begins with zeros, as DeiT's, gives those before it gradients of zero. Those in `idle` have none.
    """
    if used := [p for p in optimizer.state if id(p) in idle]:
        raise ValueError(f'{len(used)} parameters that are never used have a gradient')
    states = [[value for value in state.values() if isinstance(value, torch.Tensor) and value.numel() > 1]
              for state in optimizer.state.values()]
    if not all(bool(value.isfinite().all()) for state in states for value in state):
        raise ValueError('a gradient is not finite')
    total = sum(len(group['params']) for group in optimizer.param_groups) - len(idle)
    return sum(map(bool, states)) / total, any(bool(value.any()) for state in states for value in state)


def named_shapes(model: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def theirs(cfg: Any) -> torch.nn.Module:
    """mmclassification's model, without memory where its constructor looks at no values but those of `linspace`."""
    from mmcls.models import build_classifier as build

    linspace = functools.partial(torch.linspace, device='cpu')  # the rates of stochastic depth
    try:
        with mock.patch('torch.linspace', linspace), torch.device('meta'):
            return build(cfg)
    except Exception:  # .item() of a meta tensor, numpy() of one
        return build(cfg)


@contextlib.contextmanager
def one_at_a_time(large: bool) -> Iterator[None]:
    if not large:
        yield
        return
    with open('large.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(root: str) -> None:
    """A worker process: quiet, one thread, in the folder with the data."""
    os.chdir(root)
    torch.set_num_threads(1)
    accept_tiny_cifar()
    logging.disable(logging.CRITICAL)


def sweep(names: list[str], jobs: int) -> list[dict[str, Any]]:
    """A record for each name, in the order of the names. A config that is another's, an old name, is run once."""
    first: dict[str, str] = {}
    same = {name: first.setdefault(repr(loaded(name).to_dict()), name) for name in names}
    records: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as root:
        make(Path(root))
        with context.Pool(jobs, prepare, (root,), maxtasksperchild=20) as pool:
            results = pool.imap_unordered(check, first.values())
            while len(records) < len(first):
                record = results.next(timeout=LOST)
                records[record['name']] = record
                done, seconds = f'{len(records):3}/{len(first)}', record['seconds']
                print(f'{done} {record["name"]}: {status(record)}, {seconds} s', flush=True)
    return [{**records[same[name]], 'name': name, 'same_as': same[name]} for name in names]


def status(record: dict[str, Any]) -> str:
    if record['error']:
        return f'FAILED {record["error"][:300]}'
    return f'borrowed {", ".join(record["borrowed"])}' if record['borrowed'] else 'native'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compat.json'))
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--only', default='', help='recipes whose name contains this')
    args = parser.parse_args()
    start = time.perf_counter()
    names = [name for name in recipe_names() if args.only in name]
    records = sweep(names, args.jobs)
    versions = {name: version(name) for name in ('mmcls', 'mmcv', 'torch', 'numpy')}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    content = dict(versions=versions, python=platform.python_version(), recipes=records)
    args.out.write_text(json.dumps(content, indent=1))
    print(by_family({r['name']: status(r) for r in records}))
    print(f'{time.perf_counter() - start:.0f} s with {args.jobs} processes; {args.out}')
    return int(any(record['error'] for record in records))


if __name__ == '__main__':
    sys.exit(main())
