"""What the subcommands do: ``train``, ``test``, ``infer``, ``config``; ordinary functions, so notebooks use them too.

In: config names and paths. Out: a run's folder, a result file, a prediction, text.
"""
from __future__ import annotations

import copy
import json
import logging
import os
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..apis import (
    build_loader,
    build_training,
    check_class_count,
    inference_model,
    init_model,
    init_random_seed,
    multi_gpu_test,
    run_training,
    set_random_seed,
    single_gpu_test,
    training_loader,
    try_metrics,
    workflow_of,
)
from ..checkpoint import read_checkpoint, write_atomically
from ..config import Config, where
from ..datasets import MultiLabelDataset, build_dataset
from ..datasets.wrappers import leaves
from ..device import Precision, describe_device
from ..dist import from_main, get_dist_info, is_main
from ..models import build_classifier
from ..recipes import load_config
from ..resume import damage_of
from ..runner import EpochBasedRunner
from . import launch
from .arguments import checked_output
from .crop_decoding import crop_decoding
from .eval_pictures import show_evaluations
from .gpu_hook import GPUMonitorHook as GPUMonitorHook
from .live import LivePlotHook as LivePlotHook
from .logs import get_root_logger
from .processes import alone_in
from .recovery import memory_explained, newest
from .versions import collect_run, collect_versions, earlier_parts, uncommitted_changes

logger = logging.getLogger(__name__)

#: Arguments of `train` that its config holds once it began.
_IN_CONFIG = ('config', 'work_dir', 'resume_from', 'load_from', 'seed', 'options')
OUT_ITEMS = ('class_scores', 'pred_score', 'pred_label', 'pred_class')


def train(config: str | Config, work_dir: str | None = None, resume_from: str | None = None,
          load_from: str | None = None, validate: bool = True, seed: int | None = None,
          deterministic: bool = False, device: str | None = None, options: dict | None = None,
          launcher: str | None = None, auto_scale_lr: bool = False) -> EpochBasedRunner:
    """Train as a config says, into a folder that holds all that the run was: config, versions, log, checkpoints.

    Args:
        work_dir: default ``work_dirs/<name of the config>``. One with checkpoints is written to only when resuming;
            the same goes for ``checkpoint_config.out_dir``. One that another process trains into is refused.
        resume_from: a checkpoint of this run to go on from, or 'auto': the newest in both folders that is whole, and
            where there is none a new run; `load_from` starts a new run with weights alone.
        validate: evaluate between epochs.
        seed: of initialisation, order and augmentation; default a fresh one, named in the log.
        device: default the config's, else ``auto``.
        options: overrides such as ``{'optimizer.lr': 0.01}``.
        launcher: what started this process as one of several: pytorch, slurm or mpi; None sees torchrun by itself.
        auto_scale_lr: the learning rate grows with the batch, see ``launch.scale_lr``.
    """
    given = dict(locals())  # first of all: the folder tells how the run was started
    cfg = load_config(config, options)
    name = Path(str(cfg.filename)).stem if cfg.filename else 'config'
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    cfg.resume_from = resume_from or cfg.get('resume_from')
    cfg.load_from = load_from or cfg.get('load_from')
    if auto_scale_lr:
        cfg.merge_from_dict({'auto_scale_lr.enable': True})
    chosen = launch.join(launcher, cfg, device or cfg.get('device', 'auto'))
    given['device'] = str(device or cfg.get('device') or chosen.type)
    with alone_in(Path(cfg.work_dir)) if is_main() else nullcontext():
        _find_start(cfg)
        _check_log_level(cfg)
        _set_seed(cfg, seed, deterministic)
        runner, loaders = build_run(cfg, name, validate, chosen)
        if is_main():
            _start_folder(cfg, name, runner.timestamp, given, crop_decoding(training_loader(loaders, cfg).dataset))
        launch.scale_lr(runner, cfg)
        with memory_explained(runner):
            _say_start(runner, training_loader(loaders, cfg), cfg)
            run_training(runner, loaders, cfg)
        _say_how_to_test(cfg, cfg.filename if isinstance(config, Config) else config, loaders[0].dataset)
    return runner


def _find_start(cfg: Config) -> None:
    """The file that the run goes on from, and the folders that it may write to."""
    automatic = cfg.resume_from == 'auto'
    if automatic:
        cfg.resume_from = from_main(_newest(cfg) if is_main() else None)
    _check_exists(cfg.resume_from or cfg.load_from)
    if not automatic:
        _refuse_used_folders(cfg)
        _check_whole(cfg.resume_from)


def _set_seed(cfg: Config, given: int | None, deterministic: bool) -> None:
    """Of all ranks the same, and of a run that goes on the one that it had: order and augmentation are as they were."""
    chosen = given if given is not None else cfg.get('seed')
    if chosen is None and cfg.resume_from:
        chosen = (read_checkpoint(cfg.resume_from, mmap=True).get('meta') or {}).get('seed')
    cfg.seed = from_main(init_random_seed(chosen))
    set_random_seed(cfg.seed, deterministic or bool(cfg.get('deterministic')))


def build_run(cfg: Config, name: str, validate: bool, device: torch.device) -> tuple[EpochBasedRunner, list[Any]]:
    """Model and data sets, the runner and its loaders; the run is stamped with the same time on all ranks."""
    model = build_classifier(cfg.model)
    model.init_weights()
    if rank := get_dist_info()[0]:
        set_random_seed(cfg.seed + rank)  # from the same weights on, each rank drops other units
    datasets = _datasets_of_workflow(cfg)
    check_class_count(model, datasets[0], cfg)
    model.CLASSES = datasets[0].CLASSES
    runner, loaders = build_training(model, datasets, cfg, validate, device, dict(
        seed=cfg.seed, exp_name=name, config=cfg.pretty_text, CLASSES=model.CLASSES))
    show_evaluations(runner)
    runner.timestamp = from_main(runner.timestamp)
    return runner, loaders


def _say_how_to_test(cfg: Config, config: Any, dataset: Any) -> None:
    several_labels = isinstance(leaves(dataset)[0], MultiLabelDataset)
    metrics = (cfg.get('evaluation') or {}).get('metric') or ('mAP' if several_labels else 'accuracy')
    logger.info('done; test it with: workspace test %s %s --metrics %s', config, _folders(cfg)[-1] / 'latest.pth',
                metrics if isinstance(metrics, str) else ' '.join(metrics))


def _say_start(runner: EpochBasedRunner, loader: Any, cfg: Config) -> None:
    """What is trained, where, how long, from where on, and how a batch is made."""
    if cfg.get('resume_from') or cfg.get('load_from'):
        logger.info('%s, from epoch %d, iteration %d on', cfg.get('resume_from') or cfg.get('load_from'),
                    runner.epoch + 1, runner.iter + 1)
    ranks, samples, window = runner.world_size, loader.batch_size, runner.meta['cumulative_iters']
    logger.info('batch: %d process%s x %d samples%s x %d iterations = %d images an optimizer step', ranks,
                'es' * (ranks > 1), samples, f' in {runner.parts} parts' * (runner.parts > 1), window,
                ranks * samples * window)
    parameters = sum(p.numel() for p in runner.model.parameters())
    _, end, unit = runner.progress()
    compiled = ', compiled (the first step of each shape may take minutes)' if cfg.get('compile') else ''
    logger.info('%s on %s, %s%s: %s images, %d iterations an epoch, %d %s; %s parameters; folder %s',
                type(runner.model).__name__, describe_device(runner.precision.device),
                str(runner.precision.dtype).removeprefix('torch.'), compiled, f'{len(loader.dataset):,}', len(loader),
                end, unit, f'{parameters:,}', runner.work_dir)


def _folders(cfg: Config) -> list[Path]:
    """Where checkpoints of the run are: its folder, and last the one that ``checkpoint_config`` names, if any."""
    out_dir = (cfg.get('checkpoint_config') or {}).get('out_dir')
    return [Path(cfg.work_dir), *([Path(out_dir)] if out_dir else [])]


def _newest(cfg: Config) -> str | None:
    """Said in any case: a run that quietly began again would be found out a week later."""
    folders = _folders(cfg)
    found = newest(*folders)
    logger.warning('--resume-from auto: %s', f'going on from {found}' if found else
                   f'no checkpoint in {" or ".join(map(str, folders))} to go on from: a new run')
    return str(found) if found else None


def _refuse_used_folders(cfg: Config) -> None:
    """A run's folder may be gone on with from its own `out_dir` too: the best stay in the folder. Not the reverse."""
    own, *outside = _folders(cfg)
    source = Path(cfg.resume_from).resolve().parent if cfg.resume_from else None
    for folder, allowed, other in ((own, [own, *outside], '--work-dir OTHER'),
                                   *((out, [out], '--cfg-options checkpoint_config.out_dir=OTHER') for out in outside)):
        found = sorted(folder.glob('*.pth')) if folder.is_dir() else []
        if found and source not in [place.resolve() for place in allowed]:
            raise FileExistsError(f'{folder} already holds a run ({found[-1].name}). Go on with it: --resume-from '
                                  f'{folder / "latest.pth"}; or start another one: {other}')


def _check_whole(checkpoint: str | None) -> None:
    """Torch itself would take other bytes amid a tensor. Files older than torch 1.6 have no check sums."""
    if not checkpoint or '://' in checkpoint:
        return
    damage = None
    if is_main():
        with open(checkpoint, 'rb') as file:
            is_archive = file.read(2) == b'PK'
        damage = damage_of(checkpoint) if is_archive else None
    if damage := from_main(damage):
        raise ValueError(f'{damage}; go on from an earlier file, or from the newest whole one: --resume-from auto')


def _check_exists(checkpoint: str | None) -> None:
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'checkpoint {checkpoint} does not exist')


def _check_log_level(cfg: Config) -> None:
    level = cfg.get('log_level', 'INFO')
    if level not in logging.getLevelNamesMapping():
        raise ValueError(f'log_level is {level!r}; known: DEBUG, INFO, WARNING, ERROR ({where(cfg, "log_level")})')


def _datasets_of_workflow(cfg: Config) -> list[Any]:
    """The training set, and for a ``val`` entry the validation set seen through the training pipeline (as mmcls)."""
    datasets = []
    for mode, _ in workflow_of(cfg):
        section = cfg.data.train
        if mode == 'val':
            section = copy.deepcopy(cfg.data.val)
            section.pipeline = cfg.data.train.pipeline
        datasets.append(build_dataset(section))
    return datasets


def _start_folder(cfg: Config, name: str, stamp: str, given: dict[str, Any], crops: str) -> None:
    """All that `rerun` needs: the config with seed and overrides, the other arguments of `train`, what ran them."""
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    get_root_logger(folder / f'{stamp}.log', cfg.get('log_level', 'INFO'))
    cfg.dump(str(folder / f'{name}.py'))
    versions = collect_versions()
    arguments = {key: value for key, value in given.items() if key not in _IN_CONFIG}
    run = {**collect_run(f'{name}.py', arguments, cfg.resume_from or cfg.load_from), 'crop_decoding': crops}
    write_whole(folder / 'report.json', json.dumps({**versions, 'run': run, **earlier_parts(folder, cfg.resume_from)},
                                                    indent=2) + '\n')
    if patch := uncommitted_changes():
        write_whole(folder / 'uncommitted.patch', patch)
    else:  # a run that is resumed may have left one
        (folder / 'uncommitted.patch').unlink(missing_ok=True)
    logger.info('seed %d; %s', cfg.seed, ', '.join(f'{key} {value}' for key, value in versions.items() if value))
    if crops:
        logger.info('%s', crops)


def test(config: str | Config, checkpoint: str, metrics: list[str] | None = None, metric_options: dict | None = None,
         out: str | None = None, out_items: list[str] | None = None, show: bool = False, show_dir: str | None = None,
         device: str = 'auto', options: dict | None = None, show_options: dict | None = None,
         launcher: str | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint on the config's test set.

    Args:
        metrics: accuracy, precision, recall, f1_score, support; of a data set with several labels an image mAP, CP, CR,
            CF1, OP, OR, OF1.
        metric_options: such as ``dict(topk=(1, 5), average_mode='none')``.
        out: .json, .yaml or .pkl; holds the metrics unrounded and the `out_items`.
        out_items: of class_scores, pred_score, pred_label, pred_class; default all, ``['none']`` for none.
        show_dir: folder for the images with their predictions; `show_options` go to the model's ``show_result``.
        launcher: as for `train`; each process then tests its share, and rank 0 writes.

    Returns:
        The metrics, in percent except ``support``; nothing on ranks other than 0.
    """
    if not (metrics or out or show or show_dir):
        raise ValueError('nothing to do: give --metrics, --out, --show or --show-dir')
    write = _writer(out) if out else None
    cfg = load_config(config, options)
    chosen = launch.join(launcher, cfg, device)
    several = get_dist_info()[1] > 1
    if several and (show or show_dir):
        raise ValueError('--show and --show-dir draw in one process; leave them out, or --gpus')
    dataset = build_dataset(cfg.data.test, dict(test_mode=True))
    model = init_model(cfg, checkpoint, chosen)
    check_class_count(model, dataset, cfg)
    loader = build_loader(cfg, 'test', dataset, chosen)
    if metrics:
        try_metrics(dataset, metrics, metric_options)
    precision = Precision(chosen, cfg.get('fp16'), bool(cfg.get('bf16')))
    results = multi_gpu_test(model, loader, precision=precision) if several else \
        single_gpu_test(model, loader, show, show_dir, precision, **(show_options or {}))
    if results is None:  # rank 0 has them all
        return {}
    values = dict(dataset.evaluate(results, metrics, metric_options, logger=logger)) if metrics else {}
    if write:
        write({**values, **_predictions(results, model.CLASSES, out_items or ['all'])})
        logger.info('wrote %s', out)
    return values


def _predictions(results: list[np.ndarray], classes: Any, items: list[str]) -> dict[str, Any]:
    scores = np.vstack(results)
    labels = scores.argmax(axis=1)
    every = dict(class_scores=scores, pred_score=scores.max(axis=1), pred_label=labels,
                 pred_class=[classes[label] for label in labels])
    wanted = OUT_ITEMS if 'all' in items else items
    return {name: every[name] for name in OUT_ITEMS if name in wanted}


def _writer(out: str) -> Any:
    """The function that writes `out`, found before an hour of testing rather than after it."""
    path = checked_output(out, ('.json', '.yaml', '.yml', '.pkl', '.pickle'), '--out')
    if path.suffix == '.json':
        return lambda result: write_whole(path, json.dumps(_plain(result)))
    if path.suffix in ('.pkl', '.pickle'):
        return lambda result: write_whole(path, pickle.dumps(result))
    return lambda result: write_whole(path, yaml.safe_dump(_plain(result), sort_keys=False))


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """A file that is never half there, as checkpoints are written."""
    data = content.encode() if isinstance(content, str) else content
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))


def _plain(value: Any) -> Any:
    """Arrays and numpy numbers as lists and numbers, for JSON and YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, 'tolist') else value


def infer(image: str, config: str | Config, checkpoint: str, device: str = 'auto', topk: int = 5,
          out_file: str | None = None, options: dict | None = None) -> list[tuple[str, float]]:
    """Classify one image; the `topk` class names with their scores, and a picture in `out_file` if given."""
    if not Path(image).is_file():
        raise FileNotFoundError(f'image {image} does not exist')
    model = init_model(config, checkpoint, device, options)
    result = inference_model(model, image)
    if out_file:
        model.show_result(image, result, out_file=out_file)
        logger.info('wrote %s', out_file)
    best = np.argsort(-result['scores'], kind='stable')[:topk]
    return [(model.CLASSES[label], float(result['scores'][label])) for label in best]
