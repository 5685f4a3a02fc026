"""Hooks: what happens around a training step, each as a class with methods at named points.

The points and priorities are those of mmcv 1.x, so that a hook written for it runs here. A hook reads and changes
the runner; hooks never talk to one another.
"""
from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .dist import all_reduce_sum
from .registry import HOOKS
from .resume import damage_of, put_back_gradients

if TYPE_CHECKING:
    from .runner import EpochBasedRunner

#: Lower runs earlier. The names are mmcv's, so ``priority='ABOVE_NORMAL'`` in a config means what it means there.
PRIORITIES = {'HIGHEST': 0, 'VERY_HIGH': 10, 'HIGH': 30, 'ABOVE_NORMAL': 40, 'NORMAL': 50,
              'BELOW_NORMAL': 60, 'LOW': 70, 'VERY_LOW': 90, 'LOWEST': 100}


class Hook:
    """Override the points you need; ``before_epoch`` and its three siblings serve training and validation alike."""

    priority: int | str = 'NORMAL'
    stages = ('before_run', 'before_train_epoch', 'before_train_iter', 'after_train_iter', 'after_train_epoch',
              'before_val_epoch', 'before_val_iter', 'after_val_iter', 'after_val_epoch', 'after_run')

    def before_run(self, runner: EpochBasedRunner) -> None: ...

    def after_run(self, runner: EpochBasedRunner) -> None: ...

    def before_epoch(self, runner: EpochBasedRunner) -> None: ...

    def after_epoch(self, runner: EpochBasedRunner) -> None: ...

    def before_iter(self, runner: EpochBasedRunner) -> None: ...

    def after_iter(self, runner: EpochBasedRunner) -> None: ...

    def before_train_epoch(self, runner: EpochBasedRunner) -> None:
        self.before_epoch(runner)

    def after_train_epoch(self, runner: EpochBasedRunner) -> None:
        self.after_epoch(runner)

    def before_train_iter(self, runner: EpochBasedRunner) -> None:
        self.before_iter(runner)

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        self.after_iter(runner)

    before_val_epoch = before_train_epoch
    after_val_epoch = after_train_epoch
    before_val_iter = before_train_iter
    after_val_iter = after_train_iter

    def every_n_epochs(self, runner: EpochBasedRunner, n: int) -> bool:
        return n > 0 and (runner.epoch + 1) % n == 0

    def every_n_iters(self, runner: EpochBasedRunner, n: int) -> bool:
        return n > 0 and (runner.iter + 1) % n == 0

    def end_of_epoch(self, runner: EpochBasedRunner) -> bool:
        return runner.inner_iter + 1 == len(runner.data_loader)

    def is_last_epoch(self, runner: EpochBasedRunner) -> bool:
        return runner.epoch + 1 == runner.max_epochs

    def is_last_iter(self, runner: EpochBasedRunner) -> bool:
        return runner.iter + 1 == runner.max_iters


@HOOKS.register_module()
class LrUpdaterHook(Hook):
    """Sets the learning rate of every parameter group before each step, from a schedule that is a pure function.

    Args:
        schedule: ``f(base_lr, iter) -> lr``, see ``workspace_lib.schedules.lr_schedule``.
    """

    priority = 'VERY_HIGH'

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def before_run(self, runner: EpochBasedRunner) -> None:
        for group in runner.optimizer.param_groups:
            group.setdefault('initial_lr', group['lr'])

    def before_train_iter(self, runner: EpochBasedRunner) -> None:
        for group in runner.optimizer.param_groups:
            group['lr'] = self.schedule(group['initial_lr'], runner.iter)


@HOOKS.register_module()
class MomentumUpdaterHook(Hook):
    """Sets the momentum of every parameter group, or the first of its `betas`, before each step.

    Args:
        schedule: ``f(base_momentum, iter) -> momentum``, see ``workspace_lib.schedules.momentum_schedule``.
    """

    priority = 'HIGH'

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def before_run(self, runner: EpochBasedRunner) -> None:
        for group in runner.optimizer.param_groups:
            if 'momentum' not in group and 'betas' not in group:
                raise ValueError(f'momentum_config is set, but {type(runner.optimizer).__name__} has no momentum; drop '
                                 'one of the two from the config')
            group.setdefault('initial_momentum', group['momentum'] if 'momentum' in group else group['betas'][0])

    def before_train_iter(self, runner: EpochBasedRunner) -> None:
        for group in runner.optimizer.param_groups:
            momentum = self.schedule(group['initial_momentum'], runner.iter)
            group.update(dict(momentum=momentum) if 'momentum' in group else dict(betas=(momentum, group['betas'][1])))


@HOOKS.register_module()
class OptimizerHook(Hook):
    """Backward pass and optimizer step.

    Args:
        grad_clip: arguments of ``torch.nn.utils.clip_grad_norm_`` such as ``dict(max_norm=5.)``, or None.
        cumulative_iters: gradients of this many iterations are averaged before one optimizer step; the rest at the
            end of the run makes a step of its own. Several ranks exchange them at that step only.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, grad_clip: dict | None = None, cumulative_iters: int = 1) -> None:
        if cumulative_iters < 1:
            raise ValueError(f'cumulative_iters is {cumulative_iters}; it counts iterations and starts at 1')
        self.grad_clip = grad_clip
        self.cumulative_iters = cumulative_iters

    def before_run(self, runner: EpochBasedRunner) -> None:
        runner.optimizer.zero_grad()
        put_back_gradients(runner.model, runner.gradients or {})

    def before_train_iter(self, runner: EpochBasedRunner) -> None:
        # Of DistributedDataParallel, and read in its forward pass; a module's own way to set it takes 2 us.
        vars(runner.step)['require_backward_grad_sync'] = self._is_due(runner) and not runner.rest

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        scaler, due = runner.precision.scaler, self._is_due(runner)
        self._backward(runner, due)
        if not due or runner.outputs['loss'] is None and not self._share_what_there_is(runner):
            return
        if self.grad_clip is not None:
            scaler.unscale_(runner.optimizer)
            self._clip(runner)
        scaler.step(runner.optimizer)
        scaler.update()
        runner.optimizer.zero_grad()

    def _is_due(self, runner: EpochBasedRunner) -> bool:
        return self.every_n_iters(runner, self.cumulative_iters) or self.is_last_iter(runner)

    def _backward(self, runner: EpochBasedRunner, due: bool) -> None:
        """Of the whole batch: the forward pass of its first part was the iteration's."""
        self._add_gradients(runner)
        for number, part in enumerate(runner.rest, 1):
            runner.step.require_backward_grad_sync = due and number == len(runner.rest)
            runner.forward('train', part)
            runner.log_buffer.merge(runner.outputs['log_vars'], runner.outputs['num_samples'])
            runner.tell('after_part')
            self._add_gradients(runner)

    def _add_gradients(self, runner: EpochBasedRunner) -> None:
        """The loss counts as its part of the batch, and the batch as its part of the window."""
        loss, divisor = runner.outputs['loss'], float(self._window(runner))
        if loss is None:  # of what CheckInvalidLossHook skips
            return
        if runner.rest:
            divisor *= len(runner.data_batch['img']) / runner.outputs['num_samples']
        runner.precision.scaler.scale(loss / divisor if divisor != 1 else loss).backward()

    @staticmethod
    def _share_what_there_is(runner: EpochBasedRunner) -> bool:
        """Average over the ranks what earlier iterations of the window left, as the skipped one would have done."""
        gradients = [p.grad for group in runner.optimizer.param_groups for p in group['params'] if p.grad is not None]
        for gradient in gradients:
            all_reduce_sum(gradient).div_(runner.world_size)
        return bool(gradients)

    def _window(self, runner: EpochBasedRunner) -> int:
        """Iterations that share the coming optimizer step; fewer at the end of a run that they do not divide."""
        full = runner.max_iters - runner.max_iters % self.cumulative_iters
        return self.cumulative_iters if runner.iter < full else runner.max_iters - full

    def _clip(self, runner: EpochBasedRunner) -> None:
        params = [p for group in runner.optimizer.param_groups for p in group['params']]
        norm = torch.nn.utils.clip_grad_norm_(params, **(self.grad_clip or {}))
        runner.log_buffer.update({'grad_norm': norm.detach()}, runner.outputs['num_samples'])


# mmcv's names for the same work: how numbers are represented is the runner's `precision`, not another hook's.
HOOKS.register_module(name=['Fp16OptimizerHook', 'GradientCumulativeOptimizerHook', 'DistOptimizerHook',
                            'GradientCumulativeFp16OptimizerHook'], module=OptimizerHook)


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves ``epoch_N.pth`` and the link ``latest.pth`` every `interval` epochs (or ``iter_N.pth``), and at the end.

    Args:
        interval: in epochs, or in iterations with ``by_epoch=False``; -1 saves at the end only.
        max_keep_ckpts: older ones beyond this many are removed, once the newest was read back and is whole, but for
            what ``latest.pth`` and ``best.pth`` point to; -1 keeps all. What a signal to stop left is one of them.
        save_last: save after the last epoch whatever the interval.
        save_optimizer: without it a file is smaller and a run cannot be resumed from it.
        out_dir: another folder than the run's.
    """

    def __init__(self, interval: int = -1, by_epoch: bool = True, save_optimizer: bool = True,
                 out_dir: str | None = None, max_keep_ckpts: int = -1, save_last: bool = True) -> None:
        self.interval, self.by_epoch, self.save_last = interval, by_epoch, save_last
        self.save_optimizer, self.out_dir, self.max_keep_ckpts = save_optimizer, out_dir, max_keep_ckpts
        self.saved: list[str] = []

    def before_run(self, runner: EpochBasedRunner) -> None:
        folder = Path(self.out_dir) if self.out_dir else runner.work_dir
        if folder and runner.rank == 0:
            for left_by_a_kill in folder.glob('.*.pth.*.tmp'):
                left_by_a_kill.unlink(missing_ok=True)
        unit = {'stopped_iter': 1, **({'epoch': runner.iters_per_epoch} if self.by_epoch else {'iter': 1})}
        named = [(path, *path.stem.rpartition('_')[::2]) for path in folder.glob('*_*.pth')] if folder else []
        earlier = sorted((int(number) * unit[kind], str(path)) for path, kind, number in named
                         if kind in unit and number.isdigit())
        self.saved = [path for done, path in earlier if done <= runner.iter]  # of the run that goes on

    def after_train_epoch(self, runner: EpochBasedRunner) -> None:
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.save_last and self.is_last_epoch(runner)):
            self._save(runner, f'epoch_{runner.epoch + 1}.pth')

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        if not self.by_epoch and (self.every_n_iters(runner, self.interval)
                                  or self.save_last and self.is_last_iter(runner)):
            self._save(runner, f'iter_{runner.iter + 1}.pth')

    def _save(self, runner: EpochBasedRunner, name: str) -> None:
        path = runner.save_checkpoint(name, out_dir=self.out_dir, save_optimizer=self.save_optimizer)
        if path is None:  # another rank writes, or nobody can
            return
        runner.logger.info('saved %s', path)
        self.saved.append(str(path))
        if 0 < self.max_keep_ckpts < len(self.saved) and (damage := damage_of(path)):
            runner.logger.error('%s; so the older ones are kept', damage)
            return
        while 0 < self.max_keep_ckpts < len(self.saved):
            oldest = Path(self.saved.pop(0))
            links = [link.resolve() for link in oldest.parent.glob('*.pth') if link.is_symlink()]
            if oldest.resolve() not in links:  # `latest.pth`, `best.pth`
                oldest.unlink(missing_ok=True)


@HOOKS.register_module()
class IterTimerHook(Hook):
    """Measures each iteration in seconds: ``data_time`` waiting for the batch, ``time`` in all."""

    priority = 'LOW'

    def before_epoch(self, runner: EpochBasedRunner) -> None:
        self.start = time.perf_counter()

    def before_iter(self, runner: EpochBasedRunner) -> None:
        runner.log_buffer.update({'data_time': time.perf_counter() - self.start})

    def after_iter(self, runner: EpochBasedRunner) -> None:
        now = time.perf_counter()
        runner.log_buffer.update({'time': now - self.start})
        self.start = now
