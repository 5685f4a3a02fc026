"""What recipes ask of the data path, from the command line: mixing, samplers, wrappers, several labels."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from workspace_lib.apis import build_loader, build_training, inference_model, init_model, loader_config
from workspace_lib.config import Config
from workspace_lib.datasets import VOC, KFoldDataset, RepeatDataset, build_dataset
from workspace_lib.models import build_classifier
from workspace_lib.tools.cli import main

CONFIG = '''
model = dict(
    type='ImageClassifier', backbone=dict(type='ResNet', depth=18, base_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=32, topk=(1, ),
              loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=3, mode='original')),
    train_cfg=dict(augments=[dict(type='BatchMixup', alpha=0.8, num_classes=3, prob=0.5),
                             dict(type='BatchCutMix', alpha=1.0, num_classes=3, prob=0.5)]))
norm = dict(type='Normalize', mean=[127., 127., 127.], std=[60., 60., 60.], to_rgb=True)
policies = [dict(type='AutoContrast'), dict(type='Rotate', magnitude_key='angle', magnitude_range=(0, 30)),
            dict(type='Solarize', magnitude_key='thr', magnitude_range=(256, 0))]
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=32), dict(type='RandomFlip'),
    dict(type='RandAugment', policies=policies, num_policies=2, magnitude_level=9, magnitude_std=0.5, total_level=10),
    dict(type='RandomErasing', erase_prob=0.25, mode='rand', fill_std=[57., 57., 58.]),
    norm, dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
    dict(type='Collect', keys=['img', 'gt_label'])]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(32, 32)), norm,
                 dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
data = dict(
    samples_per_gpu=6, workers_per_gpu=0,
    train=dict(type='RepeatDataset', times=2,
               dataset=dict(type='CustomDataset', data_prefix='{root}', pipeline=train_pipeline)),
    val=dict(type='KFoldDataset', fold=0, num_splits=3, seed=1,
             dataset=dict(type='CustomDataset', data_prefix='{root}', pipeline=test_pipeline)),
    test=dict(type='CustomDataset', data_prefix='{root}', pipeline=test_pipeline))
optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='CosineAnnealing', min_lr=0)
runner = dict(type='EpochBasedRunner', max_epochs=2)
checkpoint_config = dict(interval=1)
log_config = dict(interval=2, hooks=[dict(type='TextLoggerHook')])
evaluation = dict(interval=1, metric=['accuracy', 'mAP'], metric_options=dict(topk=(1, )))
sampler = dict(type='RepeatAugSampler', selected_round=0)
'''


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> Path:
    """A config, 18 JPEGs in three classes, and a trained run."""
    root, noise = tmp_path_factory.mktemp('world'), np.random.default_rng(0)
    for number in range(18):
        file = root / 'images' / 'abc'[number % 3] / f'{number:02}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        img = noise.integers(0, 80, (40, 48, 3), np.uint8)
        img[:, :, number % 3] += 150
        cv2.imwrite(str(file), img)
    config = root / 'tiny.py'
    config.write_text(CONFIG.replace('{root}', str(root / 'images')))
    assert main(['train', str(config), '--work-dir', str(root / 'run'), '--seed', '0', '--device', 'cpu']) == 0
    return root


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)['state_dict']


def test_a_mixed_run_resumes_exactly(world, tmp_path):
    assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / 'r'), '--resume-from',
                 str(world / 'run' / 'epoch_1.pth'), '--device', 'cpu']) == 0
    first, again = weights(world / 'run' / 'epoch_2.pth'), weights(tmp_path / 'r' / 'epoch_2.pth')
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


def test_only_the_loader_of_training_mixes_and_samples(world):
    cfg = Config.fromfile(str(world / 'tiny.py'))
    assert loader_config(cfg, 'train')['augments'] == cfg.model.train_cfg.augments
    assert loader_config(cfg, 'train')['sampler_cfg'] == dict(type='RepeatAugSampler', selected_round=0)
    for split in ('val', 'test'):
        assert {'augments', 'sampler_cfg'}.isdisjoint(loader_config(cfg, split))
        dataset = build_dataset(cfg.data[split], dict(test_mode=True))
        assert build_loader(cfg, split, dataset, torch.device('cpu')).augments is None
    train = build_loader(cfg, 'train', build_dataset(cfg.data.train), torch.device('cpu'))
    batch = next(iter(train))
    assert batch['gt_label'].shape == (6, 3) and batch['gt_label'].dtype == torch.float32


def test_a_validation_entry_of_the_workflow_is_not_mixed(world):
    cfg = Config.fromfile(str(world / 'tiny.py'))
    cfg.merge_from_dict(dict(workflow=[('train', 1), ('val', 1)], seed=0))
    train = build_dataset(cfg.data.train)
    _, loaders = build_training(build_classifier(cfg.model), [train, train], cfg, device='cpu')
    assert [next(iter(loader))['gt_label'].dim() for loader in loaders] == [2, 1]


def test_wrappers_of_a_config_are_what_it_says(world):
    cfg = Config.fromfile(str(world / 'tiny.py'))
    assert type(build_dataset(cfg.data.train)) is RepeatDataset
    fold = build_dataset(cfg.data.val, dict(test_mode=True))
    assert type(fold) is KFoldDataset and fold.test_mode and len(fold) == 6


@pytest.mark.parametrize('wrap', [lambda inner: [inner, inner], lambda inner: dict(type='KFoldDataset', dataset=inner),
                                  lambda inner: dict(type='ConcatDataset', datasets=[[inner]])])
def test_one_image_goes_through_the_pipeline_inside_a_wrapper(world, wrap):
    cfg = Config.fromfile(str(world / 'tiny.py'))
    cfg.data.test['classes'] = ['p', 'q', 'r']
    cfg.data.test = wrap(cfg.data.test)
    model = init_model(cfg, device='cpu')
    assert model.CLASSES == ['p', 'q', 'r']
    assert inference_model(model, str(next((world / 'images').rglob('*.jpg'))))['scores'].shape == (3,)


def test_metrics_of_the_other_kind_are_named_and_left_out(world, capsys, tmp_path):
    command = ['test', str(world / 'tiny.py'), str(world / 'run' / 'latest.pth'), '--device', 'cpu', '--metrics']
    out = tmp_path / 'r.json'
    every = ['accuracy', 'precision', 'recall', 'f1_score', 'support', 'mAP', 'CP', 'CR']
    assert main([*command, *every, '--metric-options', 'topk=1', '--out', str(out), '--out-items', 'none']) == 0
    said = capsys.readouterr()
    assert 'metrics left out: mAP, CP, CR, which need a multi-label data set' in said.out + said.err
    assert list(json.loads(out.read_text())) == ['accuracy', 'support', 'precision', 'recall', 'f1_score']
    assert main([*command, 'mAP']) != 0
    assert "metric ['mAP'] is not supported" in capsys.readouterr().err


def test_the_evaluation_of_training_leaves_them_out_too(world):
    log = next((world / 'run').glob('*.log.json')).read_text()
    values = [json.loads(line) for line in log.splitlines() if '"val"' in line]
    assert len(values) == 2 and all('accuracy_top-1' in line and 'mAP' not in line for line in values)


VOC_CONFIG = '''
_base_ = 'tiny.py'
model = dict(head=dict(_delete_=True, type='MultiLabelLinearClsHead', num_classes=20, in_channels=32), train_cfg=None)
split = dict(_delete_=True, type='VOC', data_prefix='{voc}', ann_file='{voc}/ImageSets/Main/all.txt')
data = dict(train=dict(**split, pipeline={{_base_.train_pipeline}}),
            val=dict(**split, pipeline={{_base_.test_pipeline}}),
            test=dict(**split, pipeline={{_base_.test_pipeline}}))
evaluation = dict(_delete_=True, interval=1, metric=['mAP', 'CP', 'OP', 'CR', 'OR', 'CF1', 'OF1'])
sampler = None
'''


def test_voc_trains_and_tests(world, tmp_path, capsys):
    voc, names = tmp_path / 'VOC2007', []
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (voc / name).mkdir(parents=True)
    for number, image in enumerate(sorted((world / 'images').rglob('*.jpg'))):
        names.append(f'{number:06}')
        (voc / 'JPEGImages' / f'{names[-1]}.jpg').write_bytes(image.read_bytes())
        objects = ''.join(f'<object><name>{VOC.CLASSES[kind]}</name><difficult>{int(kind > 15)}</difficult></object>'
                          for kind in (number % 20, number * 7 % 20))
        (voc / 'Annotations' / f'{names[-1]}.xml').write_text(f'<annotation>{objects}</annotation>')
    (voc / 'ImageSets' / 'Main' / 'all.txt').write_text('\n'.join(names))
    config = world / 'voc.py'
    config.write_text(VOC_CONFIG.replace('{voc}', str(voc)))
    run = tmp_path / 'run'
    assert main(['train', str(config), '--work-dir', str(run), '--seed', '0', '--device', 'cpu']) == 0
    assert main(['test', str(config), str(run / 'latest.pth'), '--device', 'cpu', '--metrics', 'mAP', 'CP', 'accuracy',
                 '--out', str(tmp_path / 'r.json')]) == 0
    said, result = capsys.readouterr(), json.loads((tmp_path / 'r.json').read_text())
    assert 'metrics left out: accuracy, which need a data set with one label a sample' in said.out + said.err
    assert list(result)[:2] == ['mAP', 'CP'] and 0 <= result['mAP'] <= 100
    assert f'mAP : {round(result["mAP"], 2)}' in said.out
