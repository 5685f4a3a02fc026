"""The few calls that wire the parts together: build, train, test, infer. The command line and the notebooks use these.

In: a ``Config``. Out: a trained model, scores, a prediction, a picture.
"""
from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import iter_runner, log_writers, size_hook, weight_hooks  # noqa: F401  (they register what they define)
from .checkpoint import load_checkpoint, read_checkpoint
from .checks import check_ranks, check_sync_batchnorm
from .config import Config, where
from .datasets import ImageNet, Pipeline, build_dataloader, build_dataset
from .device import Precision, compile_model, is_fast, select_device
from .dist import get_dist_info
from .faults import CheckInvalidLossHook, StopSignalHook
from .hooks import IterTimerHook, LrUpdaterHook, MomentumUpdaterHook, OptimizerHook
from .loader_watch import LoaderWatchHook
from .log_hooks import ProgressBarHook
from .loops import EvalHook, multi_gpu_test, single_gpu_test  # noqa: F401  (also for those who import from here)
from .models import build_classifier
from .optim import build_optimizer
from .randomness import init_random_seed, set_random_seed  # noqa: F401
from .recipes import load_config
from .registry import DATASETS, HOOKS, RUNNERS
from .runner import EpochBasedRunner
from .schedules import lr_schedule, momentum_schedule

#: Keys of ``data`` that are not arguments of ``build_dataloader``.
_DATA_SECTIONS = ('train', 'val', 'test', 'train_dataloader', 'val_dataloader', 'test_dataloader')
#: What a recipe for Graphcore's IPUs says to their runner and their loader.
_OF_IPUS = ('ipu_model_cfg', 'options_cfg', 'mode')


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
    section = _innermost(cfg.get('data', {}).get('test') or {})
    dataset = DATASETS.get(section.get('type', ''))
    classes = section.get('classes') or getattr(dataset, 'CLASSES', None)
    if classes and not isinstance(classes, str):
        return classes
    warnings.warn('the checkpoint names no classes; using those of ImageNet', stacklevel=3)
    return ImageNet.CLASSES


def _innermost(section: Any) -> dict[str, Any]:
    """The config of the (first) data set inside a wrapper, or a list."""
    if isinstance(section, list | tuple):
        return _innermost(section[0])
    inside = section.get('datasets') or section.get('dataset')
    return _innermost(inside) if inside else section


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
    steps = list(_innermost(model.cfg.data.test)['pipeline'])
    loads = bool(steps) and steps[0]['type'] == 'LoadImageFromFile'
    device = next(model.parameters()).device
    if isinstance(img, np.ndarray):
        return Pipeline(steps[1:] if loads else steps).batch_of_one(dict(img=img), device)
    grey = any(step['type'] == 'Normalize' and len(step['mean']) == 1 for step in steps)
    load = [] if loads else [dict(type='LoadImageFromFile', color_type='grayscale' if grey else 'color')]
    info = dict(img_prefix=None, img_info=dict(filename=str(img)))
    return Pipeline(load + steps).batch_of_one(info, device)


def show_result_pyplot(model: Any, img: str | os.PathLike | np.ndarray, result: dict[str, Any],
                       title: str = 'result', show: bool = True, out_file: str | None = None) -> Any:
    """Draw a prediction on its image: in the notebook, in a window, or into `out_file`."""
    return model.show_result(img, result, show=show, win_name=title, out_file=out_file)


def loader_config(cfg: Config, split: str) -> dict[str, Any]:
    """Arguments of ``build_dataloader`` for train, val or test: the shared keys of ``data``, then the split's own."""
    shared = {key: value for key, value in cfg.data.items() if key not in _DATA_SECTIONS}
    fixed: dict[str, Any] = dict(shuffle=False, drop_last=False, round_up=False)
    if split == 'train':
        augments = (cfg.get('model', {}).get('train_cfg') or {}).get('augments')
        fixed = dict(shuffle=True, sampler_cfg=cfg.get('sampler'), augments=augments)
    return {'samples_per_gpu': 1, 'workers_per_gpu': None, **shared, **fixed, 'seed': cfg.get('seed'),
            'dist': get_dist_info()[1] > 1,
            **_without_ipus(cfg.data.get(f'{split}_dataloader', {}), f'data.{split}_dataloader')}


def _without_ipus(section: dict[str, Any], name: str) -> dict[str, Any]:
    if ignored := [key for key in _OF_IPUS if key in section]:
        logging.getLogger('workspace_lib').warning('%s: %s of IPUs is ignored', name, ', '.join(ignored))
    return {key: value for key, value in section.items() if key not in _OF_IPUS}


def build_loader(cfg: Config, split: str, dataset: Any, device: torch.device, **changes: Any) -> Any:
    """The loader of one split, its batches arriving on `device`; of several ranks each takes its share.

    Shared memory for its workers is reserved here, so that a run that lacks it for validation does not begin.

    On a GPU batches of val have twice the samples of training's, unless ``data.val_dataloader`` says how many, or
    shared memory does not hold so many.

    Args:
        changes: arguments of ``build_dataloader`` that are other than in the config.

    Raises:
        TypeError, ValueError: what ``build_dataloader`` says, with the place of ``data`` in the config.
        RuntimeError: shared memory is too small for what workers prepare.
    """
    settings = {'channels_last': is_fast(cfg.get('channels_last'), device), **loader_config(cfg, split), **changes}
    samples, said = settings['samples_per_gpu'], {**cfg.data.get('val_dataloader', {}), **changes}
    if twice := split == 'val' and device.type == 'cuda' and 'samples_per_gpu' not in said:
        settings['samples_per_gpu'] *= 2  # what fits with its gradients fits twice without
    try:
        loader = build_dataloader(dataset, device=device, **settings)
    except (TypeError, ValueError) as error:
        error.add_note(f'while building the {split} loader ({where(cfg, "data")})')
        raise
    if twice and (why := loader.shortage()):
        logging.getLogger('workspace_lib').info('batches of val are not twice those of training: %s', why)
        return build_loader(cfg, split, dataset, device, **changes, samples_per_gpu=samples)
    loader.prepare()
    return loader


def train_model(model: Any, dataset: Any, cfg: Config, distributed: bool = False, validate: bool = False,
                timestamp: str | None = None, device: str | torch.device | None = None,
                meta: dict | None = None) -> EpochBasedRunner:
    """Train `model` on `dataset` as `cfg` says: ``build_training``, then ``run_training``.

    Args:
        dataset: one data set, or one for each entry of ``cfg.workflow``.
        distributed: this process is one of several, after ``tools.launchers.init_dist``.
        validate: evaluate on ``cfg.data.val`` as ``cfg.evaluation`` says.
        timestamp: names the log files.
        device: default ``cfg.device``, else ``auto``.
        meta: goes into log and checkpoints: config text, seed, class names.

    Returns:
        The runner after its last epoch.
    """
    if distributed and get_dist_info()[1] == 1:
        raise ValueError('distributed=True, but this is one process: in each of several, call '
                         'workspace_lib.tools.launchers.init_dist first')
    runner, loaders = build_training(model, dataset, cfg, validate, device, meta)
    runner.timestamp = timestamp or runner.timestamp
    return run_training(runner, loaders, cfg)


def build_training(model: Any, dataset: Any, cfg: Config, validate: bool = False,
                   device: str | torch.device | None = None,
                   meta: dict | None = None) -> tuple[EpochBasedRunner, list[Any]]:
    """The runner with all its hooks, at its first or resumed epoch, and a loader for each entry of the workflow.

    Nothing is written yet: a mistake in the config is found here rather than after an epoch.
    """
    chosen = select_device(device if device is not None else cfg.get('device', 'auto'))
    check_sync_batchnorm(model, cfg, chosen)
    model = _prepare_model(model, cfg, chosen)
    datasets = dataset if isinstance(dataset, list | tuple) else [dataset]
    samples, whole = _batch_of(cfg)
    loaders = [build_loader(cfg, mode, split, chosen, **dict(samples_per_gpu=samples) if mode == 'train' else {})
               for (mode, _), split in zip(workflow_of(cfg), datasets, strict=True)]
    runner = _build_runner(model, cfg, chosen, meta)
    _register_hooks(runner, cfg, len(loaders[0]))
    _deal(runner, cfg, samples, whole)
    if validate:
        _register_evaluation(runner, cfg, chosen)
    if cfg.get('resume_from'):
        runner.resume(cfg.resume_from)
    elif cfg.get('load_from'):
        runner.load_checkpoint(cfg.load_from)
    runner.check_workflow(loaders, workflow_of(cfg))
    check_ranks(runner, training_loader(loaders, cfg))
    return runner, loaders


def _batch_of(cfg: Config) -> tuple[int, int]:
    """Samples that an iteration takes on each rank, and on all of them.

    A resumed run keeps its batch: of fewer ranks each takes more of it, part after part (`_deal`).
    """
    samples, ranks = loader_config(cfg, 'train')['samples_per_gpu'], get_dist_info()[1]
    meta = (read_checkpoint(cfg.resume_from, mmap=True).get('meta') or {}) if cfg.get('resume_from') else {}
    whole = meta.get('batch_size') if meta.get('samples_per_gpu') == samples else None
    whole = whole or samples * ranks
    return samples if whole == samples * ranks else max(1, round(whole / ranks)), whole


def _deal(runner: EpochBasedRunner, cfg: Config, samples: int, whole: int) -> None:
    """How the ranks share a batch: kept for a resumed run, and its gradients shared."""
    at_once = loader_config(cfg, 'train')['samples_per_gpu']
    window = next((hook.cumulative_iters for hook in runner.hooks if isinstance(hook, OptimizerHook)), 1)
    runner.parts = -(-samples // at_once)
    runner.meta.update(world_size=runner.world_size, samples_per_gpu=at_once, batch_size=whole, cumulative_iters=window)
    if runner.world_size * samples != whole:
        runner.logger.warning('%d processes cannot share the batch of %d that this run was begun with: it goes on with '
                              '%d', runner.world_size, whole, runner.world_size * samples)
    if runner.world_size > 1:
        runner.share_gradients(**{name: bool(cfg.get(name)) for name in (
            'find_unused_parameters', 'static_graph', 'gradient_as_bucket_view')})


def run_training(runner: EpochBasedRunner, loaders: list[Any], cfg: Config) -> EpochBasedRunner:
    """Train to the last epoch."""
    runner.run(loaders, workflow_of(cfg))
    return runner


def training_loader(loaders: list[Any], cfg: Config) -> Any:
    """That of the workflow's first stage of training."""
    return next(loader for (mode, _), loader in zip(workflow_of(cfg), loaders, strict=True) if mode == 'train')


def workflow_of(cfg: Config) -> list[tuple[str, int]]:
    """``cfg.workflow``; plain training where the config has none."""
    return cfg.get('workflow') or [('train', 1)]


def _prepare_model(model: Any, cfg: Config, device: torch.device) -> Any:
    searched = is_fast(cfg.get('cudnn_benchmark'), device) and not torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark = searched
    model = model.to(device)
    if is_fast(cfg.get('channels_last'), device):
        model = model.to(memory_format=torch.channels_last)
    if cfg.get('compile'):
        compile_model(model, {} if isinstance(cfg.compile, int) else cfg.compile)
    return model


def _build_runner(model: Any, cfg: Config, device: torch.device, meta: dict | None) -> EpochBasedRunner:
    section = cfg.get('runner') or dict(type='EpochBasedRunner', max_epochs=cfg.get('total_epochs'))
    return RUNNERS.build(_without_ipus(section, 'runner'), default_args=dict(
        model=model, optimizer=build_optimizer(model, cfg.optimizer), work_dir=cfg.get('work_dir'),
        logger=logging.getLogger('workspace_lib'), meta=meta,
        precision=Precision(device, cfg.get('fp16'), cfg.get('bf16'))))


def _register_hooks(runner: EpochBasedRunner, cfg: Config, iters_per_epoch: int) -> None:
    length = (runner.max_epochs, iters_per_epoch) if runner.by_epoch else (None, iters_per_epoch, runner.max_iters)
    if cfg.get('lr_config'):
        runner.register_hook(LrUpdaterHook(lr_schedule(cfg.lr_config, *length)))
    if cfg.get('momentum_config'):
        runner.register_hook(MomentumUpdaterHook(momentum_schedule(cfg.momentum_config, *length)))
    runner.register_hook(HOOKS.build(cfg.get('optimizer_config') or {}, default_args=dict(type='OptimizerHook')))
    if cfg.get('checkpoint_config'):
        runner.register_hook(HOOKS.build(cfg.checkpoint_config, default_args=dict(
            type='CheckpointHook', by_epoch=runner.by_epoch)))
    runner.register_hook(IterTimerHook())
    runner.register_hook(LoaderWatchHook())
    runner.register_hook(ProgressBarHook())
    custom = cfg.get('custom_hooks') or []
    if not isinstance(custom, list | tuple):
        raise TypeError(f'custom_hooks is a list of dicts, but got {custom!r} ({where(cfg, "custom_hooks")})')
    for section in custom:
        runner.register_hook(section)
    for standard in (CheckInvalidLossHook, StopSignalHook):
        if not any(isinstance(hook, standard) for hook in runner.hooks):
            runner.register_hook(standard())
    log_config = cfg.get('log_config') or {}
    for section in log_config.get('hooks', []):
        runner.register_hook(HOOKS.build(section, default_args=dict(interval=log_config.get('interval', 10))))


def _register_evaluation(runner: EpochBasedRunner, cfg: Config, device: torch.device) -> None:
    dataset = build_dataset(cfg.data.val, dict(test_mode=True))
    check_class_count(runner.model, dataset, cfg)
    loader = build_loader(cfg, 'val', dataset, device)
    hook = EvalHook(loader, **{'by_epoch': runner.by_epoch, **(cfg.get('evaluation') or {})})
    try:
        metrics = try_metrics(dataset, **hook.eval_kwargs)
    except (TypeError, ValueError) as error:
        error.add_note(f'in evaluation ({where(cfg, "evaluation")})')
        raise
    if hook.save_best not in (None, 'auto', *metrics):
        raise ValueError(f'evaluation.save_best is {hook.save_best!r}, but the evaluation gives {", ".join(metrics)} '
                         f'({where(cfg, "evaluation")})')
    runner.register_hook(hook)


def try_metrics(dataset: Any, metric: Any = None, metric_options: dict | None = None,
                **others: Any) -> dict[str, Any]:
    """Evaluate one made-up score (of each part): a misspelt metric is found now instead of after an hour of testing."""
    if others:
        known = ('interval', 'by_epoch', 'start', 'save_best', 'rule', 'metric', 'metric_options')
        raise TypeError(f'unknown key {", ".join(others)}; known: {", ".join(known)}')
    if dataset.CLASSES is None or not len(dataset):
        return {}
    scores = np.full(len(dataset.CLASSES), 1 / len(dataset.CLASSES), np.float32)
    lasts = [end - 1 for end in getattr(dataset, 'cumulative_sizes', [1])]
    return dataset.evaluate([scores] * len(lasts), metric, metric_options, indices=lasts)


def check_class_count(model: Any, dataset: Any, cfg: Config) -> None:
    """A head that is too small would fail in the loss; one that is too large trains, and wastes a week."""
    # LeNet-5 and VGG classify in the backbone, under a head without weights.
    part = next((name for name in ('head', 'backbone')
                 if isinstance(getattr(getattr(model, name, None), 'num_classes', None), int)), None)
    if part is None or dataset.CLASSES is None:
        return
    outputs, classes = getattr(model, part).num_classes, len(dataset.CLASSES)
    if 0 < outputs != classes:
        raise ValueError(f'the {part} has num_classes={outputs} ({where(cfg.model.get(part), "num_classes")}), but '
                         f'{type(dataset).__name__} has {classes} classes; set model.{part}.num_classes={classes}')
