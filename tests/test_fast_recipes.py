"""The recipes that reproduce published results: they build, train a few steps, and follow the schedules they name."""
from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from image_folders import image_folders

from workspace_lib.apis import build_training, loader_config, run_training, set_random_seed
from workspace_lib.datasets import build_dataset
from workspace_lib.datasets.ring import AHEAD, SPARE
from workspace_lib.models import build_classifier
from workspace_lib.optim import build_optimizer
from workspace_lib.recipes import CONFIGS, load_config
from workspace_lib.registry import BACKBONES, HOOKS
from workspace_lib.schedules import lr_schedule
from workspace_lib.size_hook import ProgressiveSizeHook
from workspace_lib.weight_hooks import LookaheadHook, WhitenHook

FAST = 'resnet/resnet50_8xb512-fast-16e_in1k.py'
FAST_88 = 'resnet/resnet50_8xb512-fast-88e_in1k.py'
RESNET18 = 'resnet/resnet18_1xb128-cutout-200e_cifar10.py'
AIRBENCH = 'airbench/airbench_1xb1024-10e_cifar10.py'
PUBLISHED = ('resnet/resnet50_8xb32_in1k.py', FAST, FAST_88, RESNET18, AIRBENCH)


@pytest.fixture
def images(tmp_path) -> Path:
    """Two images in each of ten class folders."""
    return image_folders(tmp_path / 'images', '0123456789', 2, 32)


def tiny(recipe: str, images: Path, work_dir: Path, **options: Any) -> Any:
    """The recipe over a few images of this machine; its steps that read a file come first."""
    cfg = load_config(recipe, {'compile': False, 'data.samples_per_gpu': 4, 'data.workers_per_gpu': 0, 'seed': 0,
                               'work_dir': str(work_dir), **options})
    for part in ('train', 'val'):
        steps = [step for step in cfg.data[part].pipeline if step['type'] != 'LoadImageFromFile']
        cfg.data[part] = dict(type='CustomDataset', data_prefix=str(images),
                              pipeline=[dict(type='LoadImageFromFile'), *steps])
    return cfg


def trained(cfg: Any, *hooks: Any) -> Any:
    set_random_seed(0)
    runner, loaders = build_training(build_classifier(cfg.model), build_dataset(cfg.data.train), cfg, device='cpu')
    for hook in hooks:
        runner.register_hook(hook)
    return run_training(runner, loaders, cfg)


@pytest.mark.parametrize('recipe', PUBLISHED)
def test_a_recipe_says_where_it_is_from_what_it_takes_and_whether_it_was_run(recipe):
    text = re.sub(r'\n# ', ' ', (CONFIGS / recipe).read_text())
    for part in ('Source', 'Hardware', 'Expected', 'State'):
        assert f'{part}: ' in text
    assert 'NOT verified' in text


@pytest.mark.parametrize('recipe', [RESNET18, AIRBENCH])
def test_a_recipe_for_cifar_trains_a_few_steps(recipe, images, tmp_path):
    small = {'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8, 'model.head.in_channels': 64} \
        if recipe == RESNET18 else {'model.backbone.widths': [8, 16, 16], 'model.head.in_channels': 16}
    runner = trained(tiny(recipe, images, tmp_path / 'run', **small, **{'runner.max_epochs': 1}))
    assert runner.iter == 5 and np.isfinite(runner.outputs['loss'].item())
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


class Sizes:
    """Collects the sides that the backbone sees."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    def before_run(self, runner: Any) -> None:
        runner.model.backbone.register_forward_pre_hook(
            lambda module, args: self.seen.append((runner.epoch, tuple(args[0].shape[2:]))))


def test_the_fast_resnet_trains_from_small_images_to_large_ones(images, tmp_path):
    cfg = tiny(FAST, images, tmp_path / 'run', **{
        'model.backbone.depth': 18, 'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8,
        'model.head.in_channels': 64, 'runner.max_epochs': 3, 'data.train_dataloader.drop_last': True})
    cfg.data.train.pipeline[1].size = 96
    cfg.custom_hooks = [dict(type='ProgressiveSizeHook', start=32, end=96, begin=0, until=2)]
    from workspace_lib.hooks import Hook
    seen = type('Seen', (Sizes, Hook), {})()
    runner = trained(cfg, seen)
    assert [side for epoch, side in seen.seen] == [(32, 32)] * 5 + [(64, 64)] * 5 + [(96, 96)] * 5
    assert not runner.model._forward_pre_hooks  # it leaves with the run
    runner.model.eval()
    assert len(runner.model(torch.randn(2, 3, 96, 96), return_loss=False)) == 2 and seen.seen[-1][1] == (96, 96)


def test_each_size_is_compiled_for_itself(images, tmp_path):
    torch._dynamo.reset()
    sides = []

    def keeps(graph: Any, inputs: Any) -> Any:
        convs = [node for node in graph.graph.nodes if 'conv2d' in str(node.target)]
        sides.extend(node.meta['example_value'].shape[2] for node in convs[:1])
        return graph

    cfg = tiny(FAST, images, tmp_path / 'run', **{
        'model.backbone.depth': 18, 'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8,
        'model.head.in_channels': 64, 'runner.max_epochs': 2})
    cfg.compile = dict(backend=keeps)
    cfg.data.train.pipeline[1].size = 64
    cfg.custom_hooks = [dict(type='ProgressiveSizeHook', start=32, end=64, begin=0, until=1)]
    model = trained(cfg).model
    assert sides == [16, 32]  # behind the first convolution's stride, once each
    assert model._compiled_call_impl is not None


@pytest.mark.parametrize('recipe, sizes', [
    (FAST, {0: 160, 10: 160, 11: 160, 12: 192, 13: 192, 15: 192}),
    (FAST_88, {0: 160, 65: 160, 70: 160, 71: 192, 75: 192, 87: 192})])
def test_sizes_at_a_few_epochs_are_those_of_ffcv(recipe, sizes):
    """Its rule by numpy: np.round(np.interp(epoch, [start_ramp, end_ramp], [160, 192]) / 32) * 32."""
    section = load_config(recipe).custom_hooks[0]
    hook = HOOKS.build(section)
    assert {epoch: hook.size(epoch) for epoch in sizes} == sizes
    for epoch in range(100):
        by_numpy = int(np.round(np.interp(epoch, [section.begin, section.until], [160, 192]) / 32)) * 32
        assert hook.size(epoch) == by_numpy


@pytest.mark.parametrize('wrong', [dict(start=192, end=160), dict(begin=3, until=3), dict(step=0)])
def test_a_size_that_cannot_grow_is_refused(wrong):
    with pytest.raises(ValueError, match='start <= end and begin < until'):
        ProgressiveSizeHook(**{**dict(start=160, end=192, begin=1, until=2), **wrong})


def test_images_that_are_not_square_are_refused_and_not_squashed():
    hook = ProgressiveSizeHook(start=32, end=96, begin=0, until=2)
    model = torch.nn.Identity().train()
    with pytest.raises(ValueError, match='square images, but a batch has 64x96 pixels; crop them'):
        hook._resize(model, (), dict(img=torch.zeros(2, 3, 64, 96)))
    _, batch = hook._resize(model.eval(), (), dict(img=torch.zeros(2, 3, 64, 96)))
    assert batch['img'].shape == (2, 3, 64, 96)  # evaluation's stay as they are


@pytest.mark.parametrize('recipe', [FAST, FAST_88])
def test_a_fast_recipe_names_the_shared_memory_that_its_batches_take(recipe):
    cfg, text, total = load_config(recipe), (CONFIGS / FAST).read_text(), 0
    for split, side, count in (('train', 192, 11.4), ('val', 256, 4.1)):
        settings = loader_config(cfg, split)
        batches = AHEAD * settings['workers_per_gpu'] + SPARE
        needed = 8 * batches * settings['samples_per_gpu'] * side**2 * 3
        total += needed
        assert round(needed / 2**30, 1) == count and f'{count} GiB' in text and f'{batches} ' in text
    assert total < 20 * 2**30 and 'SHM_SIZE' in text and '20gb' in (CONFIGS / recipe).read_text()


@pytest.mark.parametrize('recipe, length, rates', [
    (FAST, 312, {0: 1.7e-4, 1: 0.852, 2: 1.7, 9: 0.85, 15.9968: 0.}),
    (FAST_88, 312, {0: 1.7e-4, 2: 1.7, 45: 0.85}),
    (RESNET18, 390, {0: 0.1, 50: 0.1 * (1 + 0.5**0.5) / 2, 100: 0.05, 199: 6.2e-6}),
    (AIRBENCH, 48, {0: 0.3, 110 / 48: 1.5, 295 / 48: 0.8025, 10: 1.5 * (0.07 + 0.93 / 370)}),
    ('resnet/resnet50_8xb32_in1k.py', 5005, {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 99: 1e-4})])
def test_rates_at_a_few_epochs(recipe, length, rates):
    cfg = load_config(recipe)
    schedule = lr_schedule(cfg.lr_config, cfg.runner.max_epochs, length)
    for epoch, rate in rates.items():
        assert schedule(cfg.optimizer.lr, min(round(epoch * length), cfg.runner.max_epochs * length - 1)) \
            == pytest.approx(rate, rel=0.02, abs=6e-4 if epoch else 1e-6), epoch


def test_norms_of_the_fast_resnet_do_not_decay():
    cfg = load_config(FAST)
    model = build_classifier(cfg.model)
    decay = {id(param): group['weight_decay'] for group in build_optimizer(model, cfg.optimizer).param_groups
             for param in group['params']}
    assert decay[id(model.backbone.bn1.weight)] == decay[id(model.backbone.layer4[2].bn3.bias)] == 0
    assert decay[id(model.backbone.conv1.weight)] == decay[id(model.head.fc.bias)] == 1e-4


def test_airbench_begins_as_the_identity_on_its_first_channels():
    net = BACKBONES.build(dict(type='Airbench')).eval()
    conv = net.layers[2][0]
    img = torch.randn(1, 24, 8, 8)
    torch.testing.assert_close(conv(img)[:, :24], img)
    features, = net(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 256, 1, 1)
    assert sum(param.numel() for param in net.parameters()) == 1_970_232
    kept = {name for name, param in net.named_parameters() if not param.requires_grad}
    assert kept == {'layers.0.weight', *(f'layers.{i}.norm{j}.weight' for i in (2, 3, 4) for j in (1, 2))}


def test_the_six_views_of_airbench_are_weighed_as_its_author_does():
    """infer_mirror_translate of airbench94.py; in training there is one view."""
    net = BACKBONES.build(dict(type='Airbench', widths=[8, 16, 16], test_views=True))
    img = torch.randn(2, 3, 32, 32)
    by_one = (net.layers(img) / 9, )
    for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.reset_running_stats()
    torch.testing.assert_close(net(img), by_one)

    def mirrored(view: torch.Tensor) -> torch.Tensor:
        return 0.5 * net.layers(view) + 0.5 * net.layers(view.flip(-1))

    net.eval()
    around = F.pad(img, (1,) * 4, 'reflect')
    moved = torch.stack([mirrored(around[:, :, 0:32, 0:32]), mirrored(around[:, :, 2:34, 2:34])]).mean(0)
    with torch.no_grad():
        features, = net(img)
    torch.testing.assert_close(features, ((0.5 * mirrored(img) + 0.5 * moved) / 9).detach())
    assert not torch.allclose(features, net.layers(img) / 9)
    # Where gradients are asked for, the maps of its layers are those of the image itself.
    torch.testing.assert_close(net(img)[0], net.layers(img) / 9)


def test_the_flops_of_a_training_step_are_those_of_one_view():
    from workspace_lib.tools.profile import _forward_flops
    cfg, img = load_config(AIRBENCH), torch.zeros(2, 3, 32, 32)
    six_allowed = _forward_flops(cfg, img)
    cfg.model.backbone.test_views = False
    assert six_allowed == _forward_flops(cfg, img) > 0


def whitened(img: torch.Tensor, **options: Any) -> torch.nn.Conv2d:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 2))
    WhitenHook('0', **options).before_run(
        SimpleNamespace(iter=0, model=model, data_loader=[dict(img=img), None], world_size=1))
    return model[0]


def test_patches_of_the_first_batch_come_out_white():
    noise = torch.randn(16, 3, 20, 20, dtype=torch.float64)
    img = F.conv2d(F.pad(noise, (2,) * 4), torch.rand(3, 3, 5, 5, dtype=torch.float64))  # neighbours are alike
    weight = whitened(img, eps=0.).weight.detach().double()
    patches = F.unfold(img, 2)
    assert (torch.cov(patches.transpose(0, 1).flatten(1)) - torch.eye(12)).abs().max() > 0.5
    seen = F.conv2d(img, weight).transpose(0, 1).flatten(1)  # (24, positions)
    moments = seen @ seen.T / seen.shape[1]
    one = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(moments, torch.kron(torch.tensor([[1., -1.], [-1., 1.]]), one), rtol=0, atol=1e-4)


def test_what_a_patch_hardly_holds_is_not_blown_up():
    img = torch.randn(8, 1, 16, 16).expand(-1, 3, -1, -1)  # grey: eight of the twelve directions have no power
    assert whitened(img).weight.flatten(1).norm(dim=1).max() < 1.01 / 5e-4 ** 0.5


def test_the_first_layer_is_set_once_and_stays(images, tmp_path):
    cfg = tiny(AIRBENCH, images, tmp_path / 'run', **{
        'model.backbone.widths': [8, 16, 16], 'model.head.in_channels': 16, 'runner.max_epochs': 2})
    from workspace_lib.hooks import Hook
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def after_train_iter(self: Any, runner: Any) -> None:
        seen.append((runner.data_batch['img'].clone(), runner.model.backbone.layers[0].weight.clone()))

    trained(cfg, type('Seen', (Hook,), dict(after_train_iter=after_train_iter))())
    assert len(seen) == 10
    torch.testing.assert_close(seen[0][1], whitened(seen[0][0]).weight.data)
    assert all(torch.equal(weight, seen[0][1]) for _, weight in seen)
    hook, before = WhitenHook('0'), torch.nn.Conv2d(3, 24, 2)
    weight = before.weight.clone()
    hook.before_run(SimpleNamespace(iter=5, model=torch.nn.Sequential(before)))  # of a run that is resumed
    assert torch.equal(before.weight, weight)


@pytest.mark.parametrize(('workers', 'more'), [(0, []), (1, []), (0, [dict(type='EMAHook')])])
def test_a_resumed_speed_run_equals_the_uninterrupted_one(images, tmp_path, workers, more):
    options = {'model.backbone.widths': [8, 16, 16], 'model.head.in_channels': 16, 'runner.max_epochs': 3,
               'checkpoint_config.interval': 1, 'data.workers_per_gpu': workers,
               'custom_hooks': [*load_config(AIRBENCH).custom_hooks, *more]}
    whole = trained(tiny(AIRBENCH, images, tmp_path / 'whole', **options)).model.state_dict()
    resumed = trained(tiny(AIRBENCH, images, tmp_path / 'rest', **options,
                           resume_from=str(tmp_path / 'whole' / 'epoch_1.pth'))).model.state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_biases_of_norms_move_64_times_as_fast_and_decay_as_the_others():
    cfg = load_config(AIRBENCH)
    model = build_classifier(cfg.model)
    settings = {id(param): group for group in build_optimizer(model, cfg.optimizer).param_groups
                for param in group['params']}
    model.init_weights()
    assert not model.head.fc.bias.any() and model.head.fc.weight.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.1)
    usual, fast = (settings[id(param)] for param in (model.backbone.layers[3].conv1.weight,
                                                     model.backbone.layers[3].norm2.bias))
    assert settings[id(model.backbone.layers[0].bias)] is usual is settings[id(model.head.fc.weight)]
    assert usual['lr'] == 0.3 and fast['lr'] == 64 * 0.3 and settings[id(model.head.fc.bias)]['lr'] == 0
    # airbench94.py, of the sum of the losses of 1024 images: wd / lr, and wd / (64 * lr)
    scale = 1024 * (1 + 1 / (1 - 0.85))
    lr, wd = 11.5 / scale, 0.0153 * 1024 / scale
    assert 5 * usual['lr'] == pytest.approx(1024 * lr, rel=1e-2)
    assert usual['weight_decay'] == pytest.approx(wd / lr / 1024, rel=1e-2)
    assert fast['weight_decay'] == pytest.approx(wd / (64 * lr) / 1024, rel=1e-2)
    schedule = lr_schedule(cfg.lr_config, 10, 48)
    assert schedule(fast['lr'], 110) == pytest.approx(96)  # in proportion


def test_lookahead_draws_the_weights_back_to_their_average():
    """Against the loop of airbench94.py, and at the end of an epoch of 7 iterations too."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    runner: Any = SimpleNamespace(model=model, iter=0, max_iters=14, data_loader=range(7))
    hook = LookaheadHook(interval=3, decay=0.8)
    hook.before_run(runner)
    slow = {name: value.clone() for name, value in model.state_dict().items()}
    for runner.iter in range(14):
        runner.inner_iter = runner.iter % 7
        moved = {name: value + (torch.rand(value.shape) if value.is_floating_point() else 1)
                 for name, value in model.state_dict().items()}
        model.load_state_dict(moved)
        hook.after_train_iter(runner)
        drawn = runner.iter + 1 in (3, 6, 7, 9, 12, 14)
        factor = 0.8 * ((runner.iter + 1) / 14) ** 3
        for name, value in model.state_dict().items():
            if drawn and value.is_floating_point():
                slow[name] = factor * slow[name] + (1 - factor) * moved[name]
            torch.testing.assert_close(value, slow[name] if drawn and value.is_floating_point() else moved[name])
