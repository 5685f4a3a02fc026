"""Hooks that give the model other weights, or statistics, than the last step left: averages over the training.

In: a runner's model. Out: the weights that it is evaluated and saved with.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .checkpoint import unwrapped
from .dist import all_reduce_sum
from .hooks import CheckpointHook, Hook
from .registry import HOOKS

if TYPE_CHECKING:
    from .runner import EpochBasedRunner


@HOOKS.register_module()
class EMAHook(Hook):
    """Exponential moving averages of the parameters: `average += m * (parameter - average)` after each iteration.

    The model is evaluated, saved, and left at the end of the run with the averages; a checkpoint holds the trained
    weights beside them, so that a resumed run goes on exactly. Running statistics of norms are not averaged.

    Args:
        momentum: m, between 0 and 1; taken to the power of `interval`, as mmcv 1.7.2 does.
        interval: iterations from one update to the next.
        warm_up: at iteration i (from 0) m is at most (1 + i) / (warm_up + i).
        resume_from: a checkpoint to resume, as the config's own `resume_from` does.
    """

    priority = 'ABOVE_NORMAL'  # before what evaluates and saves; behind the optimizer, which is registered first

    def __init__(self, momentum: float = 0.0002, interval: int = 1, warm_up: int = 100,
                 resume_from: str | None = None) -> None:
        if not 0 < momentum < 1 or interval < 1:
            raise ValueError('EMAHook takes a momentum between 0 and 1 and an interval of at least 1, but got '
                             f'{momentum=}, {interval=}')
        self.momentum, self.interval, self.warm_up = momentum ** interval, interval, warm_up
        self.resume_from = resume_from
        self.parameters: dict[str, Tensor] = {}
        self.others: list[Tensor] = []  # the averages; while these are shown, the trained weights
        self.shown = 0  # how many are showing the averages: saving the best happens while evaluating

    def before_run(self, runner: EpochBasedRunner) -> None:
        self._check_order(runner)
        if self.resume_from is not None:
            runner.resume(self.resume_from)
        self.parameters = {name: p.data for name, p in unwrapped(runner.model).named_parameters()}
        self.others = [p.clone() for p in self.parameters.values()]
        trained, runner.trained_weights = runner.trained_weights, None
        if trained is not None:
            for name, weight in self.parameters.items():
                weight.copy_(trained[name])
        elif runner.iter > 0:
            runner.logger.warning('the checkpoint holds no averages: EMAHook begins with its weights')
        runner.shown_weights = self.averages_shown

    def _check_order(self, runner: EpochBasedRunner) -> None:
        earlier = runner.hooks[:runner.hooks.index(self)]
        if any(isinstance(hook, CheckpointHook) and not hook.by_epoch for hook in earlier):
            raise ValueError('EMAHook comes behind the CheckpointHook, which would save the averages of an iteration '
                             'ago; leave out its priority, or set ABOVE_NORMAL')

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if runner.iter % self.interval == 0:
            momentum = min(self.momentum, (1 + runner.iter) / (self.warm_up + runner.iter))
            torch._foreach_mul_(self.others, 1 - momentum)  # one kernel for many tensors
            torch._foreach_add_(self.others, list(self.parameters.values()), alpha=momentum)

    def after_run(self, runner: EpochBasedRunner) -> None:
        self._swap()

    @contextmanager
    def averages_shown(self) -> Iterator[dict[str, Tensor]]:
        """With the averages in the model; yields the trained weights by name."""
        if not self.shown:
            self._swap()
        self.shown += 1
        try:
            yield dict(zip(self.parameters, self.others, strict=True))
        finally:
            self.shown -= 1
            if not self.shown:
                self._swap()

    def _swap(self) -> None:
        for parameter, other in zip(self.parameters.values(), self.others, strict=True):
            parameter[...], other[...] = other.clone(), parameter.clone()


@HOOKS.register_module()
class PreciseBNHook(Hook):
    """Means and variances of BatchNorm as the averages over many batches with the weights of now.

    From Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3.

    Args:
        num_samples: how many, of the training data, over all processes; at most one pass over them.
        interval: epochs from one computation to the next.
    """

    priority = 'ABOVE_NORMAL'  # before what saves and evaluates: so they see it, and a resumed run does not do it again

    def __init__(self, num_samples: int = 8192, interval: int = 1) -> None:
        if num_samples < 1 or interval < 1:
            raise ValueError(f'PreciseBNHook takes positive numbers, but got {num_samples=}, {interval=}')
        self.num_samples, self.interval = num_samples, interval

    def before_run(self, runner: EpochBasedRunner) -> None:
        if not runner.by_epoch:
            raise ValueError(f'PreciseBNHook works at the end of epochs, but {type(runner).__name__} has none; use '
                             'EpochBasedRunner, or drop the hook')

    def after_train_epoch(self, runner: EpochBasedRunner) -> None:
        if self.every_n_epochs(runner, self.interval):
            loader = runner.data_loader
            size = (getattr(loader, 'batch_size', None) or runner.outputs.get('num_samples', 1)) * runner.world_size
            count = min(max(1, self.num_samples // size), len(loader))
            runner.logger.info('statistics of BatchNorm over %d batches', count)
            _average_statistics(runner, islice(loader, count), count)


@torch.no_grad()
def _average_statistics(runner: EpochBasedRunner, batches: Iterator[Any], count: int) -> None:
    norms = [m for m in runner.model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    if not norms:
        runner.logger.warning('PreciseBNHook: the model has no BatchNorm that is trained')
        return
    momenta = [norm.momentum for norm in norms]
    statistics: list[Any] = [stat for norm in norms for stat in (norm.running_mean, norm.running_var)]
    sums = [torch.zeros_like(stat) for stat in statistics]
    for norm in norms:
        norm.momentum = 1.0  # each batch leaves its own statistics
    try:
        for batch in batches:
            with runner.precision.autocast():
                runner.model.train_step(batch, runner.optimizer)
            torch._foreach_add_(sums, statistics, alpha=1 / count)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for total, stat in zip(sums, statistics, strict=True):
        stat.copy_(all_reduce_sum(total) / runner.world_size)


@HOOKS.register_module()
class LookaheadHook(Hook):
    """Draws the weights back to where they were on average (Zhang et al. 2019, arXiv:1907.08610), and statistics too.

    `slow = f * slow + (1 - f) * weight; weight = slow`, with `f = decay * (share of the run that is done) ** 3`, as in
    airbench94 (Jordan 2024, arXiv:2404.00498, section 3.4). Each `interval` iterations, and at the end of each epoch:
    there both are the same, so a checkpoint of it holds all; a run resumed amid an epoch begins with its weights.
    """

    priority = 41  # behind the optimizer and EMAHook, whose before_run puts the trained weights back

    def __init__(self, interval: int = 5, decay: float = 0.95 ** 5) -> None:
        self.interval, self.decay = interval, decay

    def before_run(self, runner: EpochBasedRunner) -> None:
        self.weights = [v for v in unwrapped(runner.model).state_dict().values() if v.is_floating_point()]
        self.slow = [weight.clone() for weight in self.weights]

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if self.every_n_iters(runner, self.interval) or self.end_of_epoch(runner):
            torch._foreach_lerp_(self.slow, self.weights, 1 - self.decay * ((runner.iter + 1) / runner.max_iters) ** 3)
            torch._foreach_copy_(self.weights, self.slow)


@HOOKS.register_module()
class WhitenHook(Hook):
    """Before a run, sets a convolution to whiten a batch of it: its patches come out uncorrelated, each with power 1.

    The filters are the eigenvectors of the patches' second moments, each over the root of its eigenvalue + `eps`, and
    then their negatives: twice as many as a patch has values (Jordan 2024, arXiv:2404.00498, section 3.2, with the eps
    of airbench94.py, which looks at 5,000 images). A resumed run keeps its filters. Costs the batches that the
    workers make ahead; do not use it with `load_from`, whose other layers were trained behind other filters.

    Args:
        layer: name in the model of a convolution that gets the images as they are; it should not be trained.
    """

    priority = 'HIGH'  # before what takes the weights up, such as EMAHook

    def __init__(self, layer: str, eps: float = 5e-4) -> None:
        self.layer, self.eps = layer, eps

    def before_run(self, runner: EpochBasedRunner) -> None:
        if runner.iter == 0:
            weight: Any = unwrapped(runner.model).get_submodule(self.layer).weight
            # (N, C * h * w, positions)
            patches = torch.nn.functional.unfold(next(iter(runner.data_loader))['img'].float(), weight.shape[2:])
            moments = all_reduce_sum((patches @ patches.mT).mean(0) / patches.shape[2]) / runner.world_size
            power, vectors = torch.linalg.eigh(moments)
            filters = (vectors / (power + self.eps).sqrt()).T.flip(0)  # the strongest first
            weight.data.copy_(torch.cat((filters, -filters)).view_as(weight))
