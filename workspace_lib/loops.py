"""The test loop, and the hook that runs it between epochs of training.

In: a model and a loader in data-set order. Out: one score vector per image, and the metrics made of them.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from .checkpoint import read_checkpoint
from .datasets.wrappers import leaves
from .device import Precision
from .dist import broadcast_buffers, from_main, gather_to_main, get_dist_info, is_main
from .hooks import Hook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner


def single_gpu_test(model: Any, data_loader: Any, show: bool = False, out_dir: str | Path | None = None,
                    precision: Precision | None = None, progress: bool = True, **show_kwargs: Any) -> list[np.ndarray]:
    """Run `model` over every image of `data_loader`, once and in order.

    Args:
        model: called as ``model(return_loss=False, **batch)``; it comes back in evaluation mode.
        data_loader: a ``Loader`` without shuffling.
        show: open each result in a window.
        out_dir: write each image with its prediction into this folder, under its own path below ``data_prefix``.
        precision: number format of the forward pass; float32 when None.
        show_kwargs: passed to ``model.show_result``.

    Returns:
        Scores, one float32 array of shape (num_classes,) per image: a batch is a list of ``samples_per_gpu`` arrays.
    """
    model.eval()
    precision = precision or Precision(next(model.parameters()).device)
    results: list[np.ndarray] = []
    with tqdm(total=len(data_loader.dataset), unit='img', desc='test', disable=None if progress else True,
              dynamic_ncols=True) as bar, torch.inference_mode():
        for batch in data_loader:
            with precision.autocast():
                result = model(return_loss=False, **batch)
            if show or out_dir:
                _show(model, data_loader.dataset, result, len(results), show, out_dir, show_kwargs)
            results.extend(result)
            bar.update(len(result))
    return results


def multi_gpu_test(model: Any, data_loader: Any, tmpdir: str | None = None, gpu_collect: bool = False,
                   precision: Precision | None = None, progress: bool = True) -> list[Any] | None:
    """`single_gpu_test` dealt out to all ranks: every image once, whatever their number.

    Args:
        data_loader: with this rank's share, every `world_size`-th sample; some may have one more than others.
        tmpdir, gpu_collect: mmcv's ways to gather; the group's own is taken.

    Returns:
        On rank 0 the results of all images in data-set order; elsewhere None.

    Raises:
        ValueError: the loader is not dealt out.
    """
    own = single_gpu_test(model, data_loader, precision=precision, progress=progress and is_main())
    total, (_, ranks) = len(data_loader.dataset), get_dist_info()
    if not total // ranks <= len(own) <= -(-total // ranks):
        raise ValueError(f'the loader gave {len(own)} of {total} samples to one of {ranks} ranks: it takes dist=True')
    parts = [part for part in leaves(data_loader.dataset) if hasattr(part, 'broken')]
    shares = gather_to_main((own, [part.broken for part in parts]))
    if shares is None:
        return None
    for _, broken in shares:  # what is left out of the evaluation: each rank has met its own
        for part, met in zip(parts, broken, strict=True):
            part.broken.update(met)
    return [shares[index % ranks][0][index // ranks] for index in range(total)]


def _show(model: Any, dataset: Any, result: list[np.ndarray], first: int, show: bool,
          out_dir: str | Path | None, show_kwargs: dict) -> None:
    """Draw predictions on the images as they are on disk, not as the pipeline cropped them."""
    for index, scores in enumerate(result, start=first):
        name = _name_below(dataset, index)
        label = int(np.argmax(scores))
        shown = dict(pred_class=model.CLASSES[label], pred_label=label, pred_score=float(scores[label]))
        out_file = Path(out_dir) / (name if name.suffix else f'{name}.png') if out_dir else None
        model.show_result(dataset.load_image(index), shown, show=show,
                          out_file=str(out_file) if out_file else None, **show_kwargs)


def _name_below(dataset: Any, index: int) -> Path:
    """Where a sample's picture goes below the folder of all, and never beside it: `MNIST[7]` lies below no prefix."""
    path = os.path.relpath(dataset.filename(index), dataset.data_prefix or '.')
    return Path(*(part for part in Path(path).parts if part != os.pardir))


@HOOKS.register_module()
class EvalHook(Hook):
    """Tests the model every `interval` epochs (or iterations), publishes the metrics, and keeps the best checkpoint.

    Args:
        dataloader: a ``Loader`` without shuffling.
        interval: in epochs, or in iterations with ``by_epoch=False``.
        start: the first epoch (from 1) to evaluate after; from there on every `interval`.
        save_best: name of a metric, or ``'auto'`` for the first one: its best checkpoint is kept as
            ``best_<metric>_epoch_N.pth``, to which ``best.pth`` points.
        rule: ``'greater'`` or ``'less'`` is better.
        broadcast_bn_buffer: every rank evaluates with the running statistics of rank 0, which a checkpoint holds.
        tmpdir, gpu_collect: as for `multi_gpu_test`.
        eval_kwargs: passed to ``dataset.evaluate``: ``metric``, ``metric_options``.
    """

    priority = 'LOW'

    def __init__(self, dataloader: Any, interval: int = 1, by_epoch: bool = True, start: int | None = None,
                 save_best: str | None = None, rule: str = 'greater', broadcast_bn_buffer: bool = True,
                 tmpdir: str | None = None, gpu_collect: bool = False, **eval_kwargs: Any) -> None:
        if rule not in ('greater', 'less'):
            raise ValueError(f"evaluation.rule is {rule!r}; it is 'greater' or 'less'")
        if interval < 1:
            raise ValueError(f'evaluation.interval is {interval}; it starts at 1 (--no-validate trains without)')
        self.dataloader, self.eval_kwargs = dataloader, eval_kwargs
        self.interval, self.by_epoch, self.start = interval, by_epoch, start or 0
        self.save_best, self.rule, self.broadcast_bn_buffer = save_best, rule, broadcast_bn_buffer
        self.best: float | None = None
        self.best_file: Path | None = None

    def before_run(self, runner: EpochBasedRunner) -> None:
        if runner.iter == 0 or runner.work_dir is None or self.save_best is None:
            return
        for path in sorted(runner.work_dir.glob('best_*.pth')):  # of the run that goes on
            try:
                meta = read_checkpoint(path, mmap=True).get('meta') or {}
            except ValueError as error:
                runner.logger.warning('not taken for the best: %s', error)
                continue
            if meta.get('iter', 0) <= runner.iter and 'best_score' in meta and self._is_better(meta['best_score']):
                self.best, self.best_file = meta['best_score'], path
        self.best, self.best_file = from_main((self.best, self.best_file))

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if not self.by_epoch and self._is_due(runner.iter + 1):
            self.evaluate(runner, f'iter_{runner.iter + 1}')

    def after_train_epoch(self, runner: EpochBasedRunner) -> None:
        if self.by_epoch and self._is_due(runner.epoch + 1):
            self.evaluate(runner, f'epoch_{runner.epoch + 1}')

    def _is_due(self, done: int) -> bool:
        """After `start`, then every `interval`; without it at the multiples of `interval` (mmcv 1.7.2)."""
        return done >= self.start and (done - self.start) % self.interval == 0

    def evaluate(self, runner: EpochBasedRunner, moment: str) -> None:
        """Test, publish, and leave the model in training mode as it was found."""
        if self.broadcast_bn_buffer:
            broadcast_buffers(runner.model)
        with runner.shown_weights():
            results = multi_gpu_test(runner.model, self.dataloader, precision=runner.precision, progress=False)
        runner.model.train()
        metrics = from_main(None if results is None else self.dataloader.dataset.evaluate(
            results, logger=runner.logger, **self.eval_kwargs))
        iteration = len(self.dataloader) if runner.by_epoch else runner.iter + 1
        runner.publish(dict(mode='val', epoch=runner.epoch + 1, iter=iteration, **metrics),
                       self.dataloader.dataset, results)
        if self.save_best is not None:
            self._keep_best(runner, metrics, moment)

    def _is_better(self, value: float) -> bool:
        return self.best is None or (value > self.best if self.rule == 'greater' else value < self.best)

    def _keep_best(self, runner: EpochBasedRunner, metrics: dict[str, Any], moment: str) -> None:
        key = next(iter(metrics)) if self.save_best == 'auto' else str(self.save_best)
        if key not in metrics:
            raise KeyError(f'evaluation.save_best is {key!r}, but the evaluation gave {", ".join(metrics)}')
        value = float(metrics[key])
        if not self._is_better(value):
            return
        earlier, name = self.best_file, f'best_{key}_{moment}.pth'
        path = from_main(runner.save_checkpoint(name, link='best.pth', meta=dict(best_score=value)))
        if path is None:  # the next one that is better than the file that there is
            return
        if earlier and earlier.name != name:
            earlier.unlink(missing_ok=True)
        self.best, self.best_file = value, path
        runner.logger.info('best %s so far: %.4f, kept as %s', key, value, path)


HOOKS.register_module(name='DistEvalHook', module=EvalHook)
