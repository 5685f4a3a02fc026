"""The few calls that wire the parts together: build, train, test, infer. The command line and the notebooks use these.

In: a ``Config``. Out: a trained model, scores, a prediction, a picture.
"""
from __future__ import annotations

import difflib
import inspect
import logging
import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from . import log_hooks
from .checkpoint import load_checkpoint
from .config import Config, where
from .datasets import ImageNet, Pipeline, build_dataloader, build_dataset
from .device import Precision, describe_device, select_device
from .hooks import IterTimerHook, LrUpdaterHook, OptimizerHook
from .loops import EvalHook
from .loops import single_gpu_test as single_gpu_test
from .models import build_classifier
from .optim import build_optimizer, lr_schedule
from .recipes import load_config as load_config
from .registry import DATASETS, HOOKS, RUNNERS
from .runner import EpochBasedRunner

#: Keys of ``data`` that are not arguments of ``build_dataloader``.
_DATA_SECTIONS = ('train', 'val', 'test', 'train_dataloader', 'val_dataloader', 'test_dataloader')


def init_random_seed(seed: int | None = None) -> int:
    """`seed`, or a fresh one that the log and the checkpoint will name."""
    return int.from_bytes(os.urandom(4), 'little') // 2 if seed is None else seed


def set_random_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch; `deterministic` also chooses the reproducible CUDA kernels (slower)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def init_model(config: str | os.PathLike | Config, checkpoint: str | None = None,
               device: str | torch.device = 'auto', options: dict | None = None) -> Any:
    """Build the classifier of a config and load its weights, ready for inference.

    Args:
        config: a path, the name of a packaged config, or a ``Config``.
        checkpoint: path or ``packaged://`` name; None leaves the weights as they were initialised.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        options: overrides such as ``{'model.backbone.depth': 18}``.

    Returns:
        The model in evaluation mode, with ``.cfg`` and ``.CLASSES``.
    """
    chosen = select_device(device)
    cfg = load_config(config, options)
    model = build_classifier(cfg.model)  # `pretrained` acts in init_weights, which inference never calls
    # Strict: a part that stayed random would predict nonsense without a word.
    meta = (load_checkpoint(model, str(checkpoint), 'cpu', strict=True).get('meta') or {}) if checkpoint else {}
    model.CLASSES = meta.get('CLASSES') or _classes_of(cfg)
    model.cfg = cfg
    return model.to(chosen).eval()


def _classes_of(cfg: Config) -> Sequence[str]:
    """Names for a checkpoint that carries none: those of the config's data set class, else ImageNet's."""
    section = cfg.get('data', {}).get('test', {})
    dataset = DATASETS.get(section.get('type', '')) if section else None
    classes = section.get('classes') or getattr(dataset, 'CLASSES', None)
    if classes and not isinstance(classes, str):
        return classes
    warnings.warn('the checkpoint names no classes; using those of ImageNet', stacklevel=3)
    return ImageNet.CLASSES


def inference_model(model: Any, img: str | os.PathLike | np.ndarray) -> dict[str, Any]:
    """Classify one image with the test pipeline of the model's config.

    Args:
        model: from ``init_model``.
        img: a file, or a uint8 array (H, W, 3) in BGR order as OpenCV reads it.

    Returns:
        ``pred_label`` (int), ``pred_score`` (float), ``pred_class`` (str), ``scores`` (float32, (num_classes,)).
    """
    scores = model(return_loss=False, **prepare_image(model, img))[0]
    label = int(np.argmax(scores))
    return dict(pred_label=label, pred_score=float(scores[label]), pred_class=model.CLASSES[label], scores=scores)


def prepare_image(model: Any, img: str | os.PathLike | np.ndarray) -> dict[str, torch.Tensor]:
    """The batch of one, normalised and on the model's device, that ``model(return_loss=False, **batch)`` takes."""
    steps = list(model.cfg.data.test.pipeline)
    loads = bool(steps) and steps[0]['type'] == 'LoadImageFromFile'
    device = next(model.parameters()).device
    if isinstance(img, np.ndarray):
        return Pipeline(steps[1:] if loads else steps).batch_of_one(dict(img=img), device)
    load = [] if loads else [dict(type='LoadImageFromFile')]
    info = dict(img_prefix=None, img_info=dict(filename=str(img)))
    return Pipeline(load + steps).batch_of_one(info, device)


def show_result_pyplot(model: Any, img: str | os.PathLike | np.ndarray, result: dict[str, Any],
                       title: str = 'result', show: bool = True, out_file: str | None = None) -> Any:
    """Draw a prediction on its image: in the notebook, in a window, or into `out_file`."""
    return model.show_result(img, result, show=show, win_name=title, out_file=out_file)


def loader_config(cfg: Config, split: str) -> dict[str, Any]:
    """Arguments of ``build_dataloader`` for train, val or test: the shared keys of ``data``, then the split's own."""
    shared = {key: value for key, value in cfg.data.items() if key not in _DATA_SECTIONS}
    fixed = dict(shuffle=True) if split == 'train' else dict(shuffle=False, drop_last=False, round_up=False)
    return {'samples_per_gpu': 1, 'workers_per_gpu': 0, **shared, **fixed, 'seed': cfg.get('seed'),
            'channels_last': bool(cfg.get('channels_last')), **cfg.data.get(f'{split}_dataloader', {})}


def build_loader(cfg: Config, split: str, dataset: Any, device: torch.device) -> Any:
    """The loader of one split, its batches arriving on `device`.

    Raises:
        TypeError: a key of ``data`` that neither ``build_dataloader`` nor torch's ``DataLoader`` knows.
    """
    arguments = loader_config(cfg, split)
    known = {*inspect.signature(build_dataloader).parameters, *inspect.signature(DataLoader).parameters}
    for key in arguments.keys() - known:
        near = difflib.get_close_matches(key, [*known, *_DATA_SECTIONS], 1)
        raise TypeError(f'data has no key {key!r}{f"; did you mean {near[0]!r}?" if near else ""} '
                        f'({where(cfg.data, key) if key in cfg.data else f"data.{split}_dataloader"})')
    return build_dataloader(dataset, device=device, **arguments)


def train_model(model: Any, dataset: Any, cfg: Config, distributed: bool = False, validate: bool = False,
                timestamp: str | None = None, device: str | torch.device | None = None,
                meta: dict | None = None) -> EpochBasedRunner:
    """Train `model` on `dataset` as `cfg` says: ``build_training``, then ``run_training``.

    Args:
        dataset: one data set, or one for each entry of ``cfg.workflow``.
        validate: evaluate on ``cfg.data.val`` as ``cfg.evaluation`` says.
        timestamp: names the log files.
        device: default ``cfg.device``, else ``auto``.
        meta: goes into log and checkpoints: config text, seed, class names.

    Returns:
        The runner after its last epoch.
    """
    if distributed:
        raise ValueError('distributed training is not part of this version; leave distributed=False')
    runner, loaders = build_training(model, dataset, cfg, validate, device, meta)
    runner.timestamp = timestamp or runner.timestamp
    return run_training(runner, loaders, cfg)


def build_training(model: Any, dataset: Any, cfg: Config, validate: bool = False,
                   device: str | torch.device | None = None,
                   meta: dict | None = None) -> tuple[EpochBasedRunner, list[Any]]:
    """The runner with all its hooks, and a loader for each entry of the workflow; nothing is written yet.

    Every mistake in the config that can be found without training is found here.
    """
    chosen = select_device(device if device is not None else cfg.get('device', 'auto'))
    model = _prepare_model(model, cfg, chosen)
    datasets = dataset if isinstance(dataset, list | tuple) else [dataset]
    loaders = [build_loader(cfg, mode, split, chosen)
               for (mode, _), split in zip(workflow_of(cfg), datasets, strict=True)]
    runner = _build_runner(model, cfg, chosen, meta)
    _register_hooks(runner, cfg, len(loaders[0]))
    if validate:
        _register_evaluation(runner, cfg, chosen)
    return runner, loaders


def run_training(runner: EpochBasedRunner, loaders: list[Any], cfg: Config) -> EpochBasedRunner:
    """Load what ``resume_from`` or ``load_from`` names, and train to the last epoch."""
    _say_start(runner, loaders[0])
    if cfg.get('resume_from'):
        runner.resume(cfg.resume_from)
    elif cfg.get('load_from'):
        runner.load_checkpoint(cfg.load_from)
    runner.run(loaders, workflow_of(cfg))
    return runner


def workflow_of(cfg: Config) -> list[tuple[str, int]]:
    """``cfg.workflow``; plain training where the config has none."""
    return cfg.get('workflow') or [('train', 1)]


def _prepare_model(model: Any, cfg: Config, device: torch.device) -> Any:
    torch.backends.cudnn.benchmark = bool(cfg.get('cudnn_benchmark', torch.backends.cudnn.benchmark))
    model = model.to(device)
    if cfg.get('channels_last'):
        model = model.to(memory_format=torch.channels_last)
    if cfg.get('compile'):
        model.compile(**(cfg.compile if isinstance(cfg.compile, dict) else {}))
    return model


def _build_runner(model: Any, cfg: Config, device: torch.device, meta: dict | None) -> EpochBasedRunner:
    section = cfg.get('runner') or dict(type='EpochBasedRunner', max_epochs=cfg.get('total_epochs'))
    return RUNNERS.build(section, default_args=dict(
        model=model, optimizer=build_optimizer(model, cfg.optimizer), work_dir=cfg.get('work_dir'),
        logger=logging.getLogger('workspace_lib'), meta=meta,
        precision=Precision(device, cfg.get('fp16'), bool(cfg.get('bf16')))))


def _register_hooks(runner: EpochBasedRunner, cfg: Config, iters_per_epoch: int) -> None:
    schedule = lr_schedule(cfg.lr_config, runner.max_epochs, iters_per_epoch) if cfg.get('lr_config') else None
    if schedule is not None:
        runner.register_hook(LrUpdaterHook(schedule))
    optimizer_config = cfg.get('optimizer_config') or {}
    runner.register_hook(HOOKS.build(optimizer_config, default_args=dict(type='OptimizerHook'))
                         if optimizer_config else OptimizerHook())
    if cfg.get('checkpoint_config'):
        runner.register_hook(HOOKS.build(cfg.checkpoint_config, default_args=dict(type='CheckpointHook')))
    runner.register_hook(IterTimerHook())
    runner.register_hook(log_hooks.ProgressBarHook())
    for section in cfg.get('custom_hooks') or []:
        runner.register_hook(section)
    log_config = cfg.get('log_config') or {}
    for section in log_config.get('hooks', []):
        runner.register_hook(HOOKS.build(section, default_args=dict(interval=log_config.get('interval', 10))))


def _register_evaluation(runner: EpochBasedRunner, cfg: Config, device: torch.device) -> None:
    dataset = build_dataset(cfg.data.val, dict(test_mode=True))
    check_class_count(runner.model, dataset, cfg)
    loader = build_loader(cfg, 'val', dataset, device)
    runner.register_hook(EvalHook(loader, **{'by_epoch': True, **(cfg.get('evaluation') or {})}))


def check_class_count(model: Any, dataset: Any, cfg: Config) -> None:
    """A head that is too small would fail in the loss; one that is too large trains, and wastes a week."""
    head = getattr(model, 'head', None)
    outputs, classes = getattr(head, 'num_classes', None), dataset.CLASSES
    if outputs is None or classes is None or outputs == len(classes):
        return
    place = where(cfg.model.head, 'num_classes') if 'num_classes' in cfg.model.get('head', {}) else 'model.head'
    raise ValueError(f'the head has num_classes={outputs} ({place}), but {type(dataset).__name__} has '
                     f'{len(classes)} classes; set model.head.num_classes={len(classes)}')


def _say_start(runner: EpochBasedRunner, loader: Any) -> None:
    parameters = sum(p.numel() for p in runner.model.parameters())
    runner.logger.info('%s on %s, %s: %s images, %d iterations an epoch, %d epochs; %s parameters; folder %s',
                       type(runner.model).__name__, describe_device(runner.precision.device),
                       str(runner.precision.dtype).removeprefix('torch.'), f'{len(loader.dataset):,}', len(loader),
                       runner.max_epochs, f'{parameters:,}', runner.work_dir)
