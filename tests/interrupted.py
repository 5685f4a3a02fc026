"""A training with all that draws by chance, in a process of its own that can be killed and started again.

In: a folder. Out: checkpoints; and what differs between two of them. Imported once by a server that forks the rest.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch._dynamo  # the optimizers do it at their first step; it takes seconds
from torch import nn

import workspace_lib.tools.commands as commands
from workspace_lib import checkpoint, runner
from workspace_lib.config import Config
from workspace_lib.hooks import Hook
from workspace_lib.registry import BACKBONES, HOOKS
from workspace_lib.resume import damage_of

LENGTH, ITERATIONS = 8, 32  # batches of an epoch, and of the run; the accumulation over 3 divides neither
CONFIG = '''
model = dict(
    type='ImageClassifier', backbone=dict(type='DroppingNet'), neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=8, topk=(1, ),
              loss=dict(type='CrossEntropyLoss', use_soft=True)),
    train_cfg=dict(augments=[dict(type='BatchMixup', alpha=0.2, num_classes=3, prob=0.5),
                             dict(type='BatchCutMix', alpha=1.0, num_classes=3, prob=0.3)]))
norm = dict(mean=[127., 127., 127.], std=[60., 60., 60.], to_rgb=True)
load, collect = dict(type='LoadImageFromFile'), dict(type='Collect', keys=['img', 'gt_label'])
train_pipeline = [
    load, dict(type='RandomResizedCrop', size=16), dict(type='RandomFlip', flip_prob=0.5),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand'), dict(type='Normalize', **norm),
    dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']), collect]
test_pipeline = [load, dict(type='Resize', size=16), dict(type='Normalize', **norm),
                 dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
data = dict(
    samples_per_gpu=4, workers_per_gpu=2, val_dataloader=dict(workers_per_gpu=0),
    train=dict(type='CustomDataset', data_prefix='{root}', pipeline=train_pipeline),
    val=dict(type='CustomDataset', data_prefix='{root}', pipeline=test_pipeline))
optimizer = dict(type='AdamW', lr=0.01)
optimizer_config = dict(cumulative_iters=3, grad_clip=dict(max_norm=1.0))
lr_config = dict(policy='CosineAnnealing', min_lr=0, warmup='linear', warmup_iters=5, warmup_ratio=0.1)
momentum_config = dict(policy='cyclic', target_ratio=(0.85, 1), cyclic_times=1, step_ratio_up=0.4)
checkpoint_config = dict(interval=2, by_epoch=False, max_keep_ckpts=3)
evaluation = dict(interval=1, metric='accuracy', metric_options=dict(topk=(1, )), save_best='auto')
log_config = dict(interval=3, hooks=[dict(type='TextLoggerHook')])
workflow = [('train', 1)]
seed = 5
log_level = 'ERROR'
'''
EPOCHS = CONFIG + '''
runner = dict(type='EpochBasedRunner', max_epochs=4)
custom_hooks = [dict(type='EMAHook', momentum=0.1, warm_up=3), dict(type='PreciseBNHook', num_samples=8)]
'''
ITERS = CONFIG.replace("evaluation = dict(interval=1,", "evaluation = dict(interval=10,") + '''
runner = dict(type='IterBasedRunner', max_iters=32)
custom_hooks = [dict(type='EMAHook', momentum=0.1, warm_up=3)]
'''


@BACKBONES.register_module(force=True)
class DroppingNet(nn.Module):
    """Convolution, BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(0.5)

    def init_weights(self) -> None: ...

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.drop(self.norm(self.conv(x)).relu()),)


def make_data(root: Path, count: int = 30) -> None:
    """PNG files of three classes; the last batch of an epoch is not full."""
    noise = np.random.default_rng(0)
    for number in range(count):
        (root / f'{number % 3}').mkdir(parents=True, exist_ok=True)
        image = noise.integers(0, 128, (20, 20, 3), np.uint8) + np.uint8(60 * (number % 3))
        cv2.imwrite(str(root / f'{number % 3}' / f'{number:02}.png'), image)


def config(text: str, data: Path) -> Config:
    return Config.fromstring(text.replace('{root}', str(data)), '.py')


class Told(Hook):
    """Writes a byte after each iteration, for the one who is to kill."""

    priority = 'LOWEST'

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def after_train_iter(self, runner: Any) -> None:
        os.write(self.pipe, b'i')


def train(text: str, data: Path, folder: Path, pause: str | None = None, pipe: Any = None,
          mutation: str | None = None, device: str = 'cpu') -> None:
    """Train, or go on; at `pause`, 'tmp:3:half' or 'tmp:3:whole', wait to be killed within the third file."""
    os.setsid()  # so that it is killed with its workers
    multiprocessing.set_start_method('fork', force=True)
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    torch.set_num_threads(1)
    if mutation:
        mutate(mutation)
    if pause:
        wait_within(*pause.split(':')[1:], pipe)
    cfg = config(text, data)
    if pipe and not pause:
        HOOKS.register_module(name='Told', force=True, module=lambda: Told(pipe.fileno()))
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='Told')]
    commands.train(cfg, str(folder), resume_from='auto', device=device, deterministic=device != 'cpu')


def wait_within(number: str, how: str, pipe: Any) -> None:
    """While the temporary file of the `number`-th checkpoint is half or all written, say so and wait for the end."""
    left, save = [int(number)], torch.save

    def saving(content: Any, file: Any) -> None:
        save(content, file)
        left[0] -= 1
        if left[0] == 0:
            file.flush()
            if how == 'half':
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
            os.write(pipe.fileno(), b't')
            signal.pause()

    torch.save = saving


def mutate(name: str) -> None:
    """The defects that the comparison has to find."""
    if name == 'random state left out':
        runner.restore_random_state = lambda state: None
    elif name == 'saved without a rename':
        checkpoint.write_atomically = lambda path, write: write(path)
    else:
        raise KeyError(name)


def processes() -> Any:
    """A context whose server has imported this module once and forks from there."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['interrupted'])
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))  # for the preload
    forkserver.ensure_running()
    os.environ.pop('PYTHONPATH') if before is None else os.environ.update(PYTHONPATH=before)
    return context


def forking(target: Any, *args: Any) -> None:
    """With workers that are forked, as they are by default, and not from the server."""
    multiprocessing.set_start_method('fork', force=True)
    target(*args)


def run_ranks(target: Any, *args: Any, count: int = 2) -> None:
    """`target(rank, *args)` in so many processes; each must end well."""
    started = [processes().Process(target=forking, args=(target, rank, *args)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * count


def difference(first: Any, second: Any, at: str = '') -> list[str]:
    """Where two checkpoints differ, in anything but the time at which they were written."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [at]
    if isinstance(first, dict) and isinstance(second, dict):
        return [place for key in {**first, **second} if (at, key) != ('.meta', 'time')
                for place in difference(first.get(key), second.get(key), f'{at}.{key}')]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [place for i, (a, b) in pairs for place in difference(a, b, f'{at}[{i}]')]
    return [] if type(first) is type(second) and first == second else [at]


def end_of(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run that is complete."""
    content = torch.load(folder / f'iter_{ITERATIONS}.pth', weights_only=True)
    content['meta'].pop('config')  # names the folder
    return content


def kill(process: Any) -> None:
    """It and its workers, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(30)


def is_over(folder: Path) -> bool:
    return (folder / f'iter_{ITERATIONS}.pth').exists()


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.glob('.iter_*.pth.*.tmp'))


def damaged(folder: Path) -> list[str]:
    return [damage for path in folder.glob('*.pth') if (damage := damage_of(path))]


@HOOKS.register_module(force=True)
class Slow(Hook):
    """Gives the one who watches time to see that a file is there."""

    def after_train_iter(self, runner: Any) -> None:
        time.sleep(0.1)
