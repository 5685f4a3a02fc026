"""``workspace rerun DIR``: the training that a folder tells of, once more.

In: the folder of a run. Out: a folder of a new one; a warning for all that is not as it was; whether its weights agree.
"""
from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_checkpoint
from ..config import Config
from ..dist import get_dist_info
from . import commands, jobs, launch
from .versions import collect_versions, sha256, uncommitted_changes

logger = logging.getLogger(__name__)

#: Entries of a report that change no result.
_HARMLESS = ('run', 'earlier', 'jupyterlab', 'system', 'cores')


def rerun(folder: str | os.PathLike, work_dir: str | None = None, device: str | None = None) -> Any:
    """Train once more what `folder` tells of: its config and seed, and the choices of its command line.

    A run that was resumed is repeated from its start; one that began with weights (``load_from``) begins with them.

    Args:
        work_dir: default ``<folder>-rerun``. device: default that of the run.

    Returns:
        The runner after its last epoch.

    Raises:
        FileNotFoundError: no folder of a run.
        ValueError: a run of several processes, and not as many here.
    """
    folder = Path(folder)
    report = _report(folder)
    run, first = report['run'], _first(report)
    _check_processes(folder, first['run']['processes'])
    cfg = Config.fromfile(str(folder / run['config']))
    if int(os.environ.get('RANK', 0)) == 0:
        for line in [*_differences(folder, report), *_parts(report), *_start(folder, run, cfg)]:
            logger.warning('%s', line)
    if _went_on(folder, run, cfg):
        cfg.resume_from = None
    _set_threads(first['run']['threads'])
    arguments = {key: value for key, value in run['arguments'].items() if key in _arguments()}
    arguments |= dict(work_dir=work_dir or f'{folder}-rerun', device=device or arguments.get('device'))
    words = [f'--device={arguments["device"]}', *['--no-validate'] * (not arguments.get('validate', True))]
    with jobs.noted(['workspace', 'train', f'{arguments["work_dir"]}/{run["config"]}', '--work-dir',
                     arguments['work_dir'], *words]):
        runner = commands.train(cfg, **arguments)
    _compare(folder, Path(arguments['work_dir']))
    return runner


def _arguments() -> set[str]:
    """Those of a training that can be given again; what starts its processes is this command's own affair."""
    return set(inspect.signature(commands.train).parameters) - {'launcher'}


def _report(folder: Path) -> dict[str, Any]:
    """What the run left in its `report.json`."""
    file = folder / 'report.json'
    if not file.is_file():
        raise FileNotFoundError(f'{folder} is no folder of a run: it has no report.json')
    report = json.loads(file.read_text())
    if 'run' not in report:
        raise ValueError(f'{file} does not tell how the run was started: it is of an earlier version. Its config is '
                         f'there: workspace train {folder}/NAME.py --work-dir OTHER, with the options that it had')
    if not (folder / report['run']['config']).is_file():
        raise FileNotFoundError(f'{folder} is no folder of a run: it has no {report["run"]["config"]}')
    return report


def _first(report: dict[str, Any]) -> dict[str, Any]:
    """What a run that was resumed had in its first part, which is what a repetition begins as."""
    return [*report.get('earlier', []), report][0]


def _parts(report: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that changed while the run was going on."""
    parts = [*report.get('earlier', []), report]
    counts = [str(count) for count, _ in groupby(part['run']['processes'] for part in parts)]
    if len(counts) > 1:
        yield (f'the run had {counts[0]} processes, then {", then ".join(counts[1:])}; all of it is repeated with '
               f'{counts[0]}')
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [str(value) for value, _ in groupby(part.get(key) for part in parts)]
        if key not in _HARMLESS and len(values) > 1:
            yield f'{key}: {", then ".join(values)} in the parts of the run'


def _check_processes(folder: Path, processes: int) -> None:
    here = int(os.environ.get('WORLD_SIZE', 1))
    if here != processes:
        raise ValueError(f'the run had {processes} processes and here are {here}: the batch would be another. From the '
                         f'command line, workspace rerun {folder} starts as many')


def _differences(folder: Path, report: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that may change the result."""
    now, run = collect_versions(), report['run']
    for key in dict.fromkeys([*report, *now]):
        if key not in _HARMLESS and report.get(key) != now.get(key):
            yield f'{key}: {report.get(key)} then, {now.get(key)} now'
    patch = folder / 'uncommitted.patch'
    if (patch.read_text() if patch.is_file() else '') != uncommitted_changes():
        yield f'the code had other changes than now that are in no commit; those of the run are in {patch}'
    for key in sorted(run['arguments'].keys() - _arguments() - {'launcher'}):
        yield f'the run had {key}={run["arguments"][key]!r}, which this version does not know'
    if run['folder'] != os.getcwd():
        yield f'the run was started in {run["folder"]}, this is {os.getcwd()}: relative paths of its config begin here'


def _went_on(folder: Path, run: dict[str, Any], cfg: Config) -> bool:
    """Whether the run was resumed from a checkpoint of its own folder, which may have been moved since."""
    own = folder.resolve(), Path(run['folder'], cfg.get('work_dir') or '').resolve()
    return bool(cfg.get('resume_from')) and Path(run['folder'], cfg.resume_from).resolve().parent in own


def _start(folder: Path, run: dict[str, Any], cfg: Config) -> Iterator[str]:
    """What to know of the weights that the run began with."""
    if _went_on(folder, run, cfg):
        yield (f'the run was resumed from {cfg.resume_from}; it is repeated from its start, with the config of its '
               "last part (each part's log begins with its own)")
    elif run['weights_sha256'] not in (None, sha256(run['weights'])):
        yield f'{run["weights"]} is not the file that the run began with: its SHA-256 is another, or it is gone'


def _set_threads(count: int) -> None:
    """Sums of a CPU depend on how many threads share them."""
    if count != torch.get_num_threads():
        logger.info('%d threads, as the run had (%d by default here)', count, torch.get_num_threads())
        torch.set_num_threads(count)


def _compare(folder: Path, again: Path) -> None:
    """Say whether the last checkpoint of the run, where both have it, holds the same weights."""
    name = (folder / 'latest.pth').resolve().name
    if get_dist_info()[0] or not (folder / name).is_file() or not (again / name).is_file():
        return
    old, new = (read_checkpoint(part / name)['state_dict'] for part in (folder, again))
    off = {key: float((value.double() - new[key].double()).abs().max()) for key, value in old.items()
           if not torch.equal(value, new[key])}
    if off:
        most = max(off, key=lambda key: off[key])
        logger.warning('%s: %d of %d tensors differ from those of %s, at most by %.3g (%s)', name, len(off), len(old),
                       folder, off[most], most)
    else:
        logger.info('%s: all %d tensors are those of %s, bit by bit', name, len(old), folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', help='the folder of a run: work_dirs/NAME')
    parser.add_argument('--work-dir', help='folder of the new run; default FOLDER-rerun')
    parser.add_argument('--device', help='default that of the run; auto, cpu, cuda or cuda:N')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    processes = _first(_report(Path(args.folder)))['run']['processes']
    if processes == 1 or 'WORLD_SIZE' in os.environ:
        rerun(args.folder, args.work_dir, args.device)
        launch.leave()
        return
    more = [f'--{name}={value}' for name, value in (('work-dir', args.work_dir), ('device', args.device)) if value]
    launch.run_group(['--standalone', '--nproc-per-node', str(processes)], ['rerun', args.folder, *more])
