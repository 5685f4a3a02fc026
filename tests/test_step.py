"""The training step: nothing in it waits for the device between two lines of log; how it is compiled and computed."""
from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import image_folders
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workspace_lib import apis
from workspace_lib.apis import build_loader, build_training, run_training, single_gpu_test
from workspace_lib.config import Config
from workspace_lib.datasets import Pipeline
from workspace_lib.datasets.loader import Loader
from workspace_lib.device import Precision, compile_model, is_fast
from workspace_lib.faults import CheckInvalidLossHook
from workspace_lib.hooks import Hook
from workspace_lib.models import build_classifier
from workspace_lib.optim import build_optimizer

CPU, CUDA = torch.device('cpu'), torch.device('cuda')
MODEL = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4,
                                                num_stages=1, out_indices=(0,), strides=(1,), dilations=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=4, topk=(1, 5),
              loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=10, mode='original')))
RECIPE = dict(
    model=MODEL, optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4,
                                paramwise_cfg=dict(norm_decay_mult=0.)),
    optimizer_config=dict(grad_clip=dict(max_norm=1.)), lr_config=dict(policy='CosineAnnealing', min_lr=0),
    runner=dict(type='EpochBasedRunner', max_epochs=1), checkpoint_config=None,
    log_config=dict(interval=100, hooks=[dict(type='TextLoggerHook')]),
    custom_hooks=[dict(type='EMAHook', momentum=0.1)], data=dict(samples_per_gpu=4, workers_per_gpu=0))


class Waits(AssertionError):
    """The host would wait for the GPU here."""


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: reading a value, a size that depends on values, a blocking copy."""

    def __init__(self, watching: bool = False) -> None:
        super().__init__()
        self.watching, self.fused = watching, False
        self.marks: list[Any] = []  # events that were recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition('::')[2]
        if name.startswith('_fused_'):  # the one kernel of an optimizer's step, in place; torch has none without values
            self.fused = True
            return None
        if not self.watching:
            return func(*args, **(kwargs or {}))
        if name in ('_local_scalar_dense', 'item', 'nonzero', 'masked_select', '_unique2', 'equal', 'is_nonzero'):
            raise Waits(f'{func} reads a value')
        try:
            out = func(*args, **(kwargs or {}))
        except DataDependentOutputException as error:
            raise Waits(f'{func} reads a value') from error
        if name in ('_to_copy', 'copy_', 'to'):
            devices = {one.device.type for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)}
            blocking = not ((kwargs or {}).get('non_blocking') or name == 'copy_' and len(args) > 2 and args[2])
            if len(devices) > 1 and blocking:
                raise Waits(f'{func} copies from one device to the other, and waits')
        return out


class Batches:
    """The same batch again and again, on the device already; the loader's own copies do not block."""

    def __init__(self, batch: dict[str, Any], count: int) -> None:
        self.batch, self.count, self.batch_size, self.dataset = batch, count, 4, [None] * 4 * count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return iter([self.batch] * self.count)


class Guarded(Hook):
    """Lets nothing wait from the second iteration on; the first sets up the optimizer's state."""

    priority = 'LOWEST'

    def __init__(self, mode: NoWaiting) -> None:
        self.mode, self.steps = mode, 0

    def after_train_iter(self, runner: Any) -> None:
        self.steps += 1
        self.mode.watching = runner.iter + 2 < runner.max_iters  # the last one's line of log may wait


def backward_of_torch_alone(loss: torch.Tensor) -> None:
    """Gradients without values: autograd's engine would ask the driver. That it reads nothing is a test of its own."""
    for parameter in (parameter for parameter in PARAMETERS if parameter.requires_grad):
        parameter.grad = torch.empty_like(parameter)


PARAMETERS: list[torch.Tensor] = []  # of the model that is trained


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors 'on CUDA' that have no values: what reads one fails, with or without a GPU."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (8, 0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'a card that is not there')
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device=None: 0)
    mode = NoWaiting()
    monkeypatch.setattr(torch.cuda, 'Event', lambda: SimpleNamespace(record=mode.marks.append, query=lambda: False))
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device=None: None)
    monkeypatch.setattr(nn.Module, 'to', lambda self, *args, **kwargs: self)  # parameters without values cannot move
    monkeypatch.setattr(torch.Tensor, 'backward', backward_of_torch_alone)
    with FakeTensorMode(allow_non_fake_inputs=False), warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*CUDA is not available.*')
        with mode:
            yield mode


def trained_without_values(cfg: Config, mode: NoWaiting, monkeypatch: Any, steps: int = 30,
                           more: tuple[Hook, ...] = ()) -> Any:
    """A training of `steps` iterations as `train_model` wires it, up to where its last line of log is read."""
    batch = dict(img=torch.empty(4, 3, 16, 16, device=CUDA), gt_label=torch.empty(4, dtype=torch.long, device=CUDA))
    monkeypatch.setattr(apis, 'build_loader', lambda *args, **kwargs: Batches(batch, steps))
    with torch.device(CUDA):
        model = build_classifier(cfg.model)
    PARAMETERS[:] = model.parameters()
    runner, loaders = build_training(model, [None], cfg, device='cuda')
    guard = Guarded(mode)
    for hook in (*more, guard):
        runner.register_hook(hook)
    with contextlib.suppress(DataDependentOutputException):  # the log at the end, of values that there are not
        run_training(runner, loaders, cfg)
    assert runner.iter == steps - 1 and guard.steps == steps - 1
    return runner


@pytest.mark.parametrize('changes', [{}, dict(optimizer=dict(type='AdamW', lr=1e-3)), dict(
    optimizer_config=dict(grad_clip=dict(max_norm=1.), cumulative_iters=2))], ids=['SGD', 'AdamW', 'window'])
def test_no_step_between_two_lines_of_log_waits_for_the_gpu(fake_gpu, monkeypatch, changes):
    """All standard hooks, clipping, averages and the look at the losses, over 28 iterations."""
    runner = trained_without_values(Config({**RECIPE, **changes}), fake_gpu, monkeypatch)
    assert {'OptimizerHook', 'EMAHook', 'CheckInvalidLossHook', 'StopSignalHook', 'TextLoggerHook', 'IterTimerHook',
            'LoaderWatchHook', 'LrUpdaterHook'} <= {type(hook).__name__ for hook in runner.hooks}
    look = next(hook for hook in runner.hooks if isinstance(hook, CheckInvalidLossHook))
    assert fake_gpu.fused
    assert look.every == 10 and len(fake_gpu.marks) == 2  # two looks have set out, at iterations 10 and 20


class Reads(Hook):
    def after_train_iter(self, runner: Any) -> None:
        runner.outputs['loss'].item()


class Copies(Hook):
    def after_train_iter(self, runner: Any) -> None:
        runner.outputs['loss'].detach().to('cpu')


class Lists(Hook):
    def after_train_iter(self, runner: Any) -> None:
        torch.stack([runner.outputs['loss']]).tolist()


class Counts(Hook):
    def after_train_iter(self, runner: Any) -> None:
        runner.data_batch['img'][runner.data_batch['gt_label'] > 3]


@pytest.mark.parametrize('hook', [Reads, Copies, Lists, Counts])
def test_a_hook_that_waits_is_found(fake_gpu, monkeypatch, hook):
    class Later(hook):
        def after_train_iter(self, runner: Any) -> None:
            if runner.iter > 5:
                super().after_train_iter(runner)

    with pytest.raises((Waits, torch._subclasses.fake_tensor.DynamicOutputShapeException)):
        trained_without_values(Config(RECIPE), fake_gpu, monkeypatch, more=(Later(),))


def test_random_steps_on_the_gpu_wait_for_nothing(monkeypatch, fake_gpu):
    """A batch as it has come from the workers, with all that the loader does to it, twice flipped and thrice erased."""
    monkeypatch.setattr(torch, 'Generator', lambda device=None, plain=torch.Generator: plain())
    erasing = dict(type='RandomErasing', erase_prob=1.)
    pipeline = Pipeline([
        dict(type='RandomFlip'), erasing, dict(erasing, mode='rand'), dict(erasing, mode='rand', fill_std=9.),
        dict(type='RandomFlip', direction='vertical'), dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])])
    monkeypatch.setattr(Loader, '__init__', lambda self: None)
    loader = Loader()
    loader.device_stage, loader.augments, loader.seed = pipeline.device_stage, None, 0
    loader.memory_format, loader._requests = torch.channels_last, SimpleNamespace(world_size=1, rank=0)
    for number in range(3):
        fake_gpu.watching = number > 0  # the first copies the constants
        batch = dict(img=torch.empty(4, 16, 16, 3, dtype=torch.uint8, device=CUDA).permute(0, 3, 1, 2),
                     gt_label=torch.empty(4, device=CUDA), _draws=torch.empty(4, 14, dtype=torch.int32, device=CUDA))
        made = loader._finished(batch, 0, number)
        assert made.keys() == {'img', 'gt_label'} and made['img'].device.type == 'cuda'
        assert made['img'].is_contiguous(memory_format=torch.channels_last) and made['img'].dtype == torch.float32


@pytest.mark.parametrize('moment', ['as soon as its copy has come', 'before a checkpoint'])
def test_a_loss_on_its_way_from_the_gpu_is_looked_at(monkeypatch, moment):
    come = [False]
    monkeypatch.setattr(torch.cuda, 'Event', lambda: SimpleNamespace(record=lambda on: None, query=lambda: come[0]))
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: None)
    hook, runner = CheckInvalidLossHook(), SimpleNamespace(
        precision=SimpleNamespace(device=CUDA), model=nn.Linear(1, 1), iters_per_epoch=100, iter=19, data_loader=None)
    hook.before_run(runner)
    for first, values in ((0, [1., math.inf, 1.]), (10, [1.])):
        hook.pending = [(first + number, torch.tensor(value)) for number, value in enumerate(values)]
        hook._look_without_waiting(runner)  # the copies are under way: nothing is said yet
    assert len(hook.sent) == 2
    hook.pending = [(19, torch.tensor(2.))]
    come[0] = moment != 'before a checkpoint'
    with pytest.raises(FloatingPointError, match='the loss is inf in iteration 2, batch 2 of epoch 1'):
        (hook._look_without_waiting if come[0] else hook.before_save)(runner)


def test_the_backward_pass_and_the_optimizer_read_no_value():
    model = build_classifier(MODEL).train()
    optimizer = build_optimizer(model, RECIPE['optimizer'])
    loss = model.train_step(dict(img=torch.randn(4, 3, 16, 16), gt_label=torch.arange(4)))['loss']
    with NoWaiting(watching=True):
        loss.backward()
        optimizer.step()
        with pytest.raises(Waits):
            loss.item()


@pytest.fixture
def images(tmp_path) -> Path:
    """Forty images in ten class folders."""
    return image_folders(tmp_path / 'images', '0123456789', 4, 16)


def with_images(images: Path, **changes: Any) -> Config:
    steps = [dict(type='LoadImageFromFile'), dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3),
             dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
             dict(type='Collect', keys=['img', 'gt_label'])]
    part = dict(type='CustomDataset', data_prefix=str(images), pipeline=steps)
    return Config({**RECIPE, 'seed': 0, **changes, 'data': {**RECIPE['data'], 'train': part, 'val': part,
                                                            **changes.get('data', {})}})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('changes', [{}, dict(fp16=dict(loss_scale='dynamic')), dict(compile=True)],
                         ids=['bf16', 'fp16', 'compile'])
def test_on_a_gpu_torch_sees_no_call_that_waits(images, changes):
    """The same with the driver's own word: from the third iteration to the one before the last, over two looks."""
    class Error(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner: Any) -> None:
            last = runner.iter + 2 >= runner.max_iters
            torch.cuda.set_sync_debug_mode('error' if runner.iter >= 2 and not last else 'default')

    cfg = with_images(images, runner=dict(type='EpochBasedRunner', max_epochs=3), log_config=None,
                      data=dict(workers_per_gpu=2), **changes)
    runner, loaders = build_training(build_classifier(cfg.model), apis.build_dataset(cfg.data.train), cfg,
                                     device='cuda')
    runner.register_hook(Error())
    try:
        run_training(runner, loaders, cfg)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert runner.iter == 30


# torch.compile

def small() -> nn.Module:
    torch.manual_seed(0)
    return build_classifier(MODEL).train()


def stepped(model: Any, size: int = 4) -> float:
    torch.manual_seed(1)
    outputs = model.train_step(dict(img=torch.randn(size, 3, 16, 16), gt_label=torch.arange(size)))
    outputs['loss'].backward()
    return outputs['loss'].item()


def refuses(graph: Any, inputs: Any) -> Any:
    raise RuntimeError('no compiler to be found\n\nand more')


def test_what_cannot_be_compiled_runs_without_and_the_log_says_why_once(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('workspace_lib'), 'propagate', True)
    torch._dynamo.reset()
    model, plain = small(), small()
    compile_model(model, dict(backend=refuses))
    assert stepped(model) == stepped(plain) and stepped(model) == stepped(plain)
    said = [record.getMessage() for record in caplog.records if 'torch.compile' in record.getMessage()]
    assert len(said) == 1 and 'goes on without it' in said[0] and 'no compiler to be found' in said[0]
    assert 'and more' not in said[0]
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(model.parameters(), plain.parameters(),
                                                                        strict=True))


def test_a_mistake_of_the_model_is_not_taken_for_one_of_the_compiler():
    torch._dynamo.reset()
    model = small()
    compile_model(model, dict(backend='eager'))
    with pytest.raises(RuntimeError, match='expected input.* to have 3 channels'):
        model.train_step(dict(img=torch.randn(4, 5, 16, 16), gt_label=torch.arange(4)))
    assert model._compiled_call_impl is not None


def test_a_smaller_last_batch_is_compiled_for_itself():
    torch._dynamo.reset()
    seen = []

    def keeps(graph: Any, inputs: Any) -> Any:
        seen.append(next(one.shape[0] for one in inputs
                         if isinstance(one, torch.Tensor) and one.shape[1:] == (3, 16, 16)))
        return graph

    model = small()
    compile_model(model, dict(backend=keeps))
    for size in (4, 3, 4, 3):
        stepped(model, size)
    assert seen == [4, 3] and all(type(size) is int for size in seen)  # no size that stands for any


def test_a_lack_of_memory_is_raised_and_the_model_stays_compiled():
    torch._dynamo.reset()
    model, short = small(), [True]

    def runs_out_once(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            if short and short.pop():
                raise torch.OutOfMemoryError('CUDA out of memory')
            return graph(*args)
        return run

    compile_model(model, dict(backend=runs_out_once))
    with pytest.raises(torch.OutOfMemoryError):
        stepped(model)
    assert model._compiled_call_impl is not None
    assert stepped(model) == stepped(small()) and not short


@pytest.mark.parametrize('options', [dict(mode='reduce-overhead'), dict(options={'triton.cudagraphs': True})])
def test_what_a_cuda_graph_returns_is_copied_before_its_next_replay(options):
    torch._dynamo.reset()
    model, kept = small(), torch.zeros(())
    compile_model(model, options)
    monkey = model._compiled_call_impl
    cells = dict(zip(monkey.__code__.co_freevars, monkey.__closure__, strict=True))
    cells['compiled'].cell_contents = lambda **batch: dict(loss=kept, accuracy={'top-1': kept})
    first = model(img=None)
    kept.fill_(7.)
    assert first['loss'] == 0 and first['accuracy']['top-1'] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_a_c_compiler_a_training_goes_on(tmp_path):
    """Inductor itself, in a process of its own: its caches must not know the graph."""
    code = ('import logging, torch\nlogging.basicConfig()\nfrom test_step import small, stepped, compile_model\n'
            'model, plain = small(), small()\ncompile_model(model, {})\nassert stepped(model) == stepped(plain)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent,
                          env={**os.environ, 'CXX': str(tmp_path / 'no-compiler'),
                               'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count('torch.compile failed, so this run goes on without it') == 1


def test_the_rows_of_an_evaluation_are_no_outputs_of_its_graph():
    torch._dynamo.reset()
    outputs = []

    def counts(graph: Any, inputs: Any) -> Any:
        outputs.append(len(graph(*inputs)))
        return graph

    model = small().eval()
    compile_model(model, dict(backend=counts))
    with torch.inference_mode():
        scores = model(torch.randn(6, 3, 16, 16), return_loss=False)
    assert len(scores) == 6 and isinstance(scores[0], np.ndarray) and max(outputs) == 1


# defaults

@pytest.mark.parametrize('kind, capability, fast', [('cpu', (0, 0), False), ('cuda', (7, 5), False),
                                                    ('cuda', (8, 0), True), ('cuda', (9, 0), True)])
def test_a_key_that_is_left_open_is_on_from_ampere_on(monkeypatch, kind, capability, fast):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    device = torch.device(kind)
    assert is_fast(None, device) is fast
    assert is_fast(True, device) and not is_fast(False, device)


@pytest.mark.filterwarnings('ignore:.*CUDA is not available')
def test_fp16_of_a_recipe_is_not_overruled_by_the_default(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    assert Precision(CUDA, None, None).dtype is torch.bfloat16
    assert Precision(CUDA, dict(loss_scale=512.), None).dtype is torch.float16
    assert Precision(CUDA, None, False).dtype is Precision(CPU, None, None).dtype is torch.float32
    with pytest.raises(ValueError, match='keep one'):
        Precision(CUDA, dict(loss_scale=512.), True)


def test_cudnn_searches_where_a_gpu_is_and_never_in_a_deterministic_run(monkeypatch, images):
    monkeypatch.setattr(apis, 'is_fast', lambda key, device: key is not False)
    for deterministic, key, searches in ((False, None, True), (True, None, False), (False, False, False)):
        monkeypatch.setattr(torch.backends.cudnn, 'deterministic', deterministic)
        monkeypatch.setattr(torch.backends.cudnn, 'benchmark', not searches)
        apis._prepare_model(build_classifier(MODEL), Config(dict(cudnn_benchmark=key)), CPU)
        assert torch.backends.cudnn.benchmark is searches


@pytest.mark.parametrize('cfg, fused', [
    (dict(type='SGD', lr=0.1), True), (dict(type='AdamW', lr=0.1, paramwise_cfg=dict(bias_lr_mult=2.)), True),
    (dict(type='SGD', lr=0.1, fused=False), False), (dict(type='SGD', lr=0.1, foreach=True), None),
    (dict(type='RMSprop', lr=0.1), None), (dict(type='Lamb', lr=0.1), None)])
def test_optimizers_on_a_gpu_are_fused_where_torch_has_it(cfg, fused):
    with FakeTensorMode(), torch.device(CUDA):
        optimizer = build_optimizer(nn.Linear(2, 2), cfg)
    assert [group.get('fused') for group in optimizer.param_groups] == [fused] * len(optimizer.param_groups)
    assert not any(group.get('fused') for group in build_optimizer(nn.Linear(2, 2), cfg).param_groups)


@pytest.mark.parametrize('then, now', [(True, None), (None, True), (None, False)])
def test_a_resumed_optimizer_computes_as_this_machine_does(then, now):
    """A fused one told by a checkpoint that it is not would step with gradients that are still scaled."""
    model = nn.Linear(2, 2)
    saved = build_optimizer(model, dict(type='AdamW', lr=0.1, fused=then))
    model(torch.ones(1, 2)).sum().backward()
    saved.step()
    resumed = build_optimizer(model, dict(type='AdamW', lr=0.2, fused=now))
    resumed.load_state_dict(saved.state_dict())
    assert resumed.param_groups[0]['fused'] is now and resumed.param_groups[0]['lr'] == 0.1
    resumed.step()
    assert resumed.state[model.weight]['step'] == 2


@pytest.mark.parametrize('kind, split, own, samples', [
    ('cpu', 'val', {}, 4), ('cuda', 'val', {}, 8), ('cuda', 'train', {}, 4), ('cuda', 'test', {}, 4),
    ('cuda', 'val', dict(samples_per_gpu=3), 3)])
def test_validation_on_a_gpu_takes_twice_the_batch_of_training(monkeypatch, images, kind, split, own, samples):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    seen = {}
    monkeypatch.setattr(apis, 'build_dataloader', lambda dataset, **settings: (
        seen.update(settings) or SimpleNamespace(shortage=str, prepare=str)))
    build_loader(with_images(images, data={f'{split}_dataloader': own}), split, [None], torch.device(kind))
    assert seen['samples_per_gpu'] == samples and seen['channels_last'] is (kind == 'cuda')


def test_an_evaluation_records_nothing(images):
    modes = []
    model = small()
    model.register_forward_hook(lambda *args: modes.append(torch.is_inference_mode_enabled()))
    cfg = with_images(images)
    results = single_gpu_test(model, build_loader(cfg, 'val', apis.build_dataset(cfg.data.val), CPU), progress=False)
    assert len(results) == 40 and modes == [True] * 10
    assert math.isfinite(stepped(model.train()))  # and what it left behind can be trained on
