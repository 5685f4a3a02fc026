"""Types that are not here: borrowed from mmclassification where it is installed, and a way out where it is not."""
from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from workspace_lib import borrow
from workspace_lib.datasets import Pipeline
from workspace_lib.models import build_classifier
from workspace_lib.registry import DATASETS, HOOKS, MODELS, PIPELINES, Registry
from workspace_lib.tools.build_tree import BuildTree, trace_builds

has_peer = importlib.util.find_spec('mmcls') is not None and importlib.util.find_spec('mmcv') is not None
needs_peer = pytest.mark.skipif(not has_peer, reason='mmcls is not installed: nothing to borrow from')
VAN = dict(type='ImageClassifier', backbone=dict(type='VAN', arch='b0'), neck=dict(type='GlobalAveragePooling'),
           head=dict(type='LinearClsHead', num_classes=3, in_channels=256, loss=dict(type='CrossEntropyLoss')))


@pytest.fixture
def fresh() -> Registry:
    """A table that borrows models, and has borrowed none yet."""
    return Registry('model', scope='here', lender='mmcls.models.builder:MODELS')


@needs_peer
def test_a_borrowed_backbone_trains_and_says_where_it_is_from():
    with trace_builds() as trace:
        model = build_classifier(VAN)
    model.init_weights()
    loss = model.train_step(dict(img=torch.randn(2, 3, 32, 32), gt_label=torch.tensor([0, 2])))['loss']
    loss.backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert [(record.type, record.lender) for record in trace.records][:3] == [
        ('ImageClassifier', None), ('VAN', 'mmcls 0.25.0'), ('GlobalAveragePooling', None)]
    assert 'van.py' in str(BuildTree(trace)) and 'borrowed from mmcls 0.25.0' in str(BuildTree(trace))


@needs_peer
def test_registered_by_names_the_lender_and_the_source():
    lender, source = MODELS.registered_by('VAN')
    assert lender == ('borrowed from mmcls 0.25.0', 0) and source[0].endswith('mmcls/models/backbones/van.py')
    assert MODELS.lender_of('VAN') == 'mmcls 0.25.0' and MODELS.lender_of('ResNet') is None


@needs_peer
def test_the_log_says_it_once(fresh, caplog):
    for _ in range(2):
        fresh.build(dict(type='AlexNet', num_classes=2))
    assert caplog.text.count('AlexNet is borrowed from mmcls 0.25.0') == 1


@needs_peer
def test_ones_own_definition_comes_first(fresh):
    assert fresh.get('VAN').__module__.startswith('mmcls')
    own = fresh.register_module(name='VAN', module=type('VAN', (), {}))
    assert fresh.get('VAN') is own and fresh.lender_of('VAN') is None


@needs_peer
def test_to_ask_whether_a_name_is_there_borrows_nothing(fresh):
    assert 'VAN' not in fresh and not fresh.borrowed and len(fresh) == 0


@needs_peer
def test_a_borrowed_step_runs_in_our_pipeline_reproducibly(monkeypatch):
    monkeypatch.delitem(PIPELINES.module_dict, 'RandomGrayscale')  # as if it were not here
    steps = [dict(type='Resize', size=8), dict(type='RandomGrayscale', gray_prob=0.5),
             dict(type='Normalize', mean=[0.] * 3, std=[1.] * 3), dict(type='ImageToTensor', keys=['img']),
             dict(type='Collect', keys=['img'])]
    pipeline = Pipeline(steps)
    assert PIPELINES.lender_of('RandomGrayscale') == 'mmcls 0.25.0'
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    first, again = (pipeline.item(dict(img=image), seed=3)['img'] for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(again)) and not pipeline.is_split


@needs_peer
@pytest.mark.parametrize(('registry', 'name'), [(HOOKS, 'WandbLoggerHook'), (HOOKS, 'OneCycleLrUpdaterHook'),
                                                (DATASETS, 'KFoldDataset_')])
def test_what_cannot_work_alone_is_not_lent(registry, name):
    with pytest.raises(KeyError, match='does not lend it either'):
        registry.build(dict(type=name))


@needs_peer
def test_a_hook_of_mmcv_is_lent():
    assert HOOKS.build(dict(type='EmptyCacheHook')).after_epoch


@needs_peer
def test_the_nearest_name_may_be_the_lenders(fresh):
    with pytest.raises(KeyError, match='nearest: SwinTransformer.*mmcls 0.25.0 does not lend it either'):
        fresh.build(dict(type='SwinTransformr'))


@needs_peer
def test_the_lenders_noise_stays_with_it():
    """Its warnings, the log of every parameter that it initialises, and its hand on everybody's handlers."""
    code = textwrap.dedent(f'''
        import logging, warnings
        logging.basicConfig(level='INFO')
        warnings.simplefilter('always')
        from workspace_lib.models import build_classifier
        model = build_classifier({VAN})
        model.init_weights()
        assert logging.root.handlers[0].level == logging.NOTSET
    ''')
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert [line for line in (ran.stdout + ran.stderr).splitlines() if 'borrowed from' not in line] == []


def test_a_table_without_a_lender_asks_nobody(monkeypatch):
    monkeypatch.setattr(borrow.importlib, 'import_module', lambda name: pytest.fail(f'imports {name}'))
    assert Registry('r').get('VAN') is None


BLOCKED = '''
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmcls', 'mmcv'):
            {how}

sys.meta_path.insert(0, Blocker())
from workspace_lib.models import build_classifier
from workspace_lib.registry import MODELS
cfg = {cfg}
try:
    build_classifier(cfg)
except KeyError as error:
    print(error)
cfg['backbone'] = dict(type='LeNet5', num_classes=3)
print(type(build_classifier(dict(type='ImageClassifier', backbone=cfg['backbone']))).__name__)
'''


@pytest.mark.parametrize(('how', 'said'), [
    ("raise ModuleNotFoundError(f'No module named {name!r}', name=name)", 'pip install mmcv==1.7.2 mmcls==0.25.0'),
    ("raise RuntimeError('numpy is too new')", 'cannot be imported: RuntimeError: numpy is too new')])
def test_without_a_working_mmcls_the_error_says_what_to_do(how, said):
    ran = subprocess.run([sys.executable, '-c', BLOCKED.format(how=how, cfg=VAN)], capture_output=True, text=True,
                         timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert 'VAN is not in the models registry' in ran.stdout and said in ran.stdout
    assert ran.stdout.rstrip().endswith('ImageClassifier')


def test_the_library_imports_no_lender_at_start():
    code = 'import sys, workspace_lib.apis; assert not {"mmcv", "mmcls"} & set(sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], timeout=100).returncode == 0


def test_the_filters_name_their_source():
    """Only the lender's own warnings are silenced."""
    borrow.offer('mmcls.models.builder:MODELS')
    with pytest.warns(UserWarning, match='mine'):
        warnings.warn('mine', stacklevel=1)
    assert logging.root.manager.disable < logging.WARNING


def test_no_name_is_not_borrowed(monkeypatch):
    monkeypatch.setattr(borrow.importlib, 'import_module', lambda name: pytest.fail(f'imports {name}'))
    assert DATASETS.get('') is None


@pytest.mark.parametrize('table, name', [('MODELS', 'ResNet'), ('DATASETS', 'CIFAR10'), ('PIPELINES', 'RandomFlip'),
                                         ('SAMPLERS', 'RepeatAugSampler'), ('HOOKS', 'EMAHook')])
def test_a_name_of_ours_is_ours_whatever_has_been_imported_so_far(table, name):
    code = f'from workspace_lib.registry import {table} as table; print(table.get({name!r}).__module__)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1])
    assert done.stdout.startswith('workspace_lib.'), done.stdout + done.stderr
