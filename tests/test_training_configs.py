"""From a config to a run: what recipes for iterations, averages, momentum, SyncBN and IPUs ask of the wiring."""
from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import image_folders

from workspace_lib.apis import build_training, loader_config, run_training, set_random_seed
from workspace_lib.config import Config
from workspace_lib.datasets import build_dataset
from workspace_lib.hooks import CheckpointHook, LrUpdaterHook, MomentumUpdaterHook
from workspace_lib.iter_runner import IterBasedRunner
from workspace_lib.loops import EvalHook
from workspace_lib.models import build_classifier

STEPS = [dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3), dict(type='ImageToTensor', keys=['img']),
         dict(type='ToTensor', keys=['gt_label']), dict(type='Collect', keys=['img', 'gt_label'])]
RECIPE = dict(
    model=dict(type='ImageClassifier', backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4),
               neck=dict(type='GlobalAveragePooling'),
               head=dict(type='LinearClsHead', num_classes=2, in_channels=32, loss=dict(type='CrossEntropyLoss'),
                         topk=(1,))),
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9), optimizer_config=dict(grad_clip=None),
    lr_config=dict(policy='CosineAnnealing', min_lr=0), runner=dict(type='IterBasedRunner', max_iters=5),
    evaluation=dict(interval=2, metric='accuracy', metric_options=dict(topk=(1,))), checkpoint_config=dict(interval=2),
    log_config=dict(interval=1, hooks=[dict(type='TextLoggerHook')]),
    custom_hooks=[dict(type='EMAHook', momentum=0.1, priority='ABOVE_NORMAL')], seed=0)


@pytest.fixture
def images(tmp_path) -> Path:
    """Six images in two class folders."""
    return image_folders(tmp_path / 'images', 'ab', 3, 16)


def config(images: Path, **changes) -> Config:
    part = dict(type='CustomDataset', data_prefix=str(images), pipeline=[dict(type='LoadImageFromFile'), *STEPS])
    return Config({**RECIPE, **changes, 'data': dict(samples_per_gpu=2, workers_per_gpu=0, train=part, val=part,
                                                     **changes.get('data', {}))})


def training(cfg: Config, **changes):
    set_random_seed(0)
    return build_training(build_classifier(cfg.model), build_dataset(cfg.data.train), cfg, validate=True, device='cpu',
                          **changes)


def test_a_recipe_of_iterations_evaluates_saves_and_logs_by_iteration(images, tmp_path):
    cfg = config(images, work_dir=str(tmp_path / 'run'))
    runner, loaders = training(cfg)
    assert isinstance(runner, IterBasedRunner)
    by_epoch = {type(hook): hook.by_epoch for hook in runner.hooks if isinstance(hook, CheckpointHook | EvalHook)}
    assert by_epoch == {CheckpointHook: False, EvalHook: False}
    run_training(runner, loaders, cfg)
    assert {path.name for path in (tmp_path / 'run').glob('iter_*.pth')} == {'iter_2.pth', 'iter_4.pth', 'iter_5.pth'}
    lines = [json.loads(line) for line in next((tmp_path / 'run').glob('*.log.json')).read_text().splitlines()][1:]
    assert [line['iter'] for line in lines if line['mode'] == 'train'] == [1, 2, 3, 4, 5]
    assert [line['iter'] for line in lines if line['mode'] == 'val'] == [2, 4]
    rates = [line['lr'] for line in lines if line['mode'] == 'train']
    assert rates == pytest.approx([0.005 * (1 + np.cos(np.pi * i / 5)) for i in range(5)])


def test_a_resumed_recipe_of_iterations_ends_with_the_same_weights(images, tmp_path):
    """Loader, augmentation, dropout, averages and optimizer included: to the bit."""
    run_training(*training(cfg := config(images, work_dir=str(tmp_path / 'whole'))), cfg)
    cfg = config(images, work_dir=str(tmp_path / 'resumed'), resume_from=str(tmp_path / 'whole' / 'iter_2.pth'))
    run_training(*training(cfg), cfg)
    whole, resumed = (torch.load(tmp_path / run / 'iter_5.pth', weights_only=True) for run in ('whole', 'resumed'))
    for part in ('state_dict', 'trained_weights'):
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items()), part


def test_the_evaluated_weights_are_the_averages(images, monkeypatch):
    seen = []
    monkeypatch.setattr('workspace_lib.loops.single_gpu_test', lambda model, *args, **kwargs: seen.append(
        model.head.fc.weight.clone()) or [np.array([1, 0], np.float32)] * 6)
    cfg = config(images)
    runner, loaders = training(cfg)
    run_training(runner, loaders, cfg)
    plain = config(images, custom_hooks=[])
    runner, loaders = training(plain)
    run_training(runner, loaders, plain)
    assert len(seen) == 4 and not torch.equal(seen[0], seen[2])


def test_momentum_follows_its_section(images):
    cfg = config(images, momentum_config=dict(policy='OneCycle'), lr_config=dict(policy='OneCycle', max_lr=0.1))
    runner, _ = training(cfg)
    hooks = {type(hook): hook for hook in runner.hooks}
    assert hooks[MomentumUpdaterHook].schedule(0.9, 0) == pytest.approx(0.95)
    assert hooks[LrUpdaterHook].schedule(0.1, 0) == pytest.approx(0.004)


def test_sync_bn_in_one_process_says_what_to_set(images):
    cfg = config(images)
    cfg.model.backbone.norm_cfg = dict(type='SyncBN')
    with pytest.raises(ValueError, match=r'SyncBN .*several processes.*--cfg-options model.backbone.norm_cfg.type=BN'):
        training(cfg)
    cfg.merge_from_dict({'model.backbone.norm_cfg.type': 'BN'})
    training(cfg)


def test_sync_bn_names_the_line_that_set_it(tmp_config, images):
    text = config(images).pretty_text + "\nmodel['backbone']['norm_cfg'] = dict(\n    type='SyncBN')\n"
    with pytest.raises(ValueError, match=r'norm_cfg.*c\.py:\d+'):
        training(Config.fromfile(tmp_config(text)))


def test_a_model_with_sync_bn_is_tested_in_one_process(images):
    model = build_classifier(dict(config(images).model, backbone=dict(
        RECIPE['model']['backbone'], norm_cfg=dict(type='SyncBN')))).eval()
    assert len(model(torch.randn(2, 3, 16, 16), return_loss=False)) == 2


def test_what_a_recipe_says_to_ipus_is_named_and_left_out(images, caplog):
    cfg = config(images, runner=dict(type='IterBasedRunner', max_iters=5, ipu_model_cfg={}, options_cfg={}),
                 data=dict(train_dataloader=dict(mode='async')))
    with caplog.at_level(logging.WARNING, 'workspace_lib'):
        training(cfg)
    assert 'runner: ipu_model_cfg, options_cfg of IPUs' in caplog.text
    assert 'data.train_dataloader: mode of IPUs' in caplog.text and 'mode' not in loader_config(cfg, 'train')


@pytest.mark.parametrize('data, workers', [({}, None), (dict(workers_per_gpu=0), 0),
                                           (dict(workers_per_gpu=3, train_dataloader=dict(workers_per_gpu=5)), 5)])
def test_a_config_without_workers_leaves_their_number_to_the_loader(data, workers):
    assert loader_config(Config(dict(data=dict(train={}, **data))), 'train')['workers_per_gpu'] == workers
