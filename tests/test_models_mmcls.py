"""Against mmclassification 0.25, from its own recipes: names, shapes, logits, losses, gradients, first weights."""
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from workspace_lib.config import Config
from workspace_lib.models import build_backbone, build_classifier, build_loss, initialize

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    pytest.importorskip('mmcv')
    mmcls = pytest.importorskip('mmcls')
    import mmcls.models as theirs
    from mmcv.cnn import initialize as their_initialize

RECIPES = Path(mmcls.__file__).parent / '.mim' / 'configs'
FAMILIES = ('resnet', 'resnest', 'resnext', 'lenet', 'wrn', 'fp16')
PATHS = sorted(path for family in FAMILIES for path in (RECIPES / family).glob('*.py'))


def recipe(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # a fifth of the recipes are old names of others
        return Config.fromfile(path).model


def pair(cfg: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and theirs, with the same random weights and running statistics."""
    torch.manual_seed(0)
    ours, other = build_classifier(cfg), theirs.build_classifier(cfg)
    for name, tensor in ours.state_dict().items():
        if name.endswith('running_mean'):
            tensor.normal_(std=0.1)
        elif name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5)
    other.load_state_dict(ours.state_dict(), strict=True)
    return ours, other


def with_backbone(name: str, **changes: Any) -> dict:
    cfg = recipe(RECIPES / name)
    cfg.backbone.update(changes)
    return cfg


@pytest.mark.parametrize('path', PATHS, ids=[f'{path.parent.name}/{path.stem}' for path in PATHS])
def test_recipe_builds_the_same_state_dict(path: Path) -> None:
    cfg = recipe(path)
    with torch.device('meta'):
        ours, other = build_classifier(cfg), theirs.build_classifier(cfg)
    assert [(k, tuple(v.shape)) for k, v in ours.state_dict().items()] == \
        [(k, tuple(v.shape)) for k, v in other.state_dict().items()]
    # Optimizer states in a checkpoint are numbered in this order.
    assert [(k, v.requires_grad) for k, v in ours.named_parameters()] == \
        [(k, v.requires_grad) for k, v in other.named_parameters()]


MODELS = {
    'lenet': dict(name='lenet/lenet5_mnist.py'),
    'resnet18': dict(name='resnet/resnet18_8xb32_in1k.py'),
    'resnet50': dict(name='resnet/resnet50_8xb32_in1k.py'),
    'resnet50-caffe-dilated': dict(name='resnet/resnet50_8xb32_in1k.py', style='caffe', dilations=(1, 1, 2, 4)),
    'resnet18-gn': dict(name='resnet/resnet18_8xb32_in1k.py', norm_cfg=dict(type='GN', num_groups=8)),
    'resnet-cifar': dict(name='resnet/resnet18_8xb16_cifar10.py'),
    'resnetv1c': dict(name='resnet/resnetv1c50_8xb32_in1k.py'),
    'resnetv1d': dict(name='resnet/resnetv1d50_8xb32_in1k.py'),
    'resnext': dict(name='resnext/resnext50-32x4d_8xb32_in1k.py'),
    'resnest': dict(name='resnest/resnest50_32xb64_in1k.py'),
    'resnest-1s2x': dict(name='resnest/resnest50_32xb64_in1k.py', radix=1, groups=2, avg_down_stride=False),
    'resnest-2s2x': dict(name='resnest/resnest50_32xb64_in1k.py', radix=2, groups=2, width_per_group=40),
    'wide-resnet': dict(name='wrn/wide-resnet50_8xb32_in1k.py'),
}


def batch(name: str, size: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shape, classes = ((1, 32, 32), 10) if name == 'lenet' else ((3, size, size), 10)
    return dict(img=torch.randn(4, *shape), gt_label=torch.randint(0, classes, (4,)))


@pytest.mark.parametrize('name', MODELS)
def test_logits_equal(name: str) -> None:
    ours, other = pair(with_backbone(**MODELS[name]))
    options = dict(return_loss=False, softmax=False, post_process=False)
    with torch.no_grad():
        a, b = ours.eval()(batch(name)['img'], **options), other.eval()(batch(name)['img'], **options)
    assert ((a - b).norm() / b.norm()).item() <= 1e-5


@pytest.mark.parametrize('name', ['lenet', 'resnet18', 'resnetv1d', 'resnext', 'resnest'])
def test_one_training_step_equal(name: str) -> None:
    """In float64, where batch statistics of a few values do not magnify rounding."""
    cfg = with_backbone(**MODELS[name])
    cfg.head.cal_acc = True
    ours, other = (model.double().train() for model in pair(cfg))
    data = batch(name)
    data['img'] = data['img'].double()
    a, b = ours.train_step(data), other.train_step(data)
    assert a['loss'].item() == pytest.approx(b['loss'].item(), rel=1e-5)
    assert set(a['log_vars']) == set(b['log_vars']) and a['num_samples'] == b['num_samples']
    a['loss'].backward()
    b['loss'].backward()
    for (key, p), q in zip(ours.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-9, msg=key)


@pytest.mark.parametrize('name', ['lenet', 'resnet18', 'resnetv1d', 'resnext', 'resnest'])
def test_one_seed_gives_the_same_initial_weights(name: str) -> None:
    ours, other = pair(with_backbone(**MODELS[name]))
    for model in (ours, other):
        torch.manual_seed(7)
        model.init_weights()
    for (key, a), b in zip(ours.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize('cfg', [
    dict(type='Constant', val=3, bias_prob=0.01, layer='Linear'),
    dict(type='Xavier', gain=2, distribution='uniform', layer=['Conv2d', 'Linear']),
    dict(type='Xavier', layer='Conv2d', bias=1),
    dict(type='Normal', std=0.02, layer='Conv2d', override=dict(name='0')),
    dict(type='Uniform', a=-1, b=1, layer='Linear', override=dict(type='Constant', name='0', val=0.5)),
    dict(type='Kaiming', mode='fan_in', distribution='uniform', layer='Conv2d'),
    dict(type='Caffe2Xavier', layer='Conv2d'),
    [dict(type='Normal', layer='Linear'), dict(type='Constant', val=1, layer='_BatchNorm')],
])
def test_init_cfg_equal(cfg: Any) -> None:
    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 4))
    ours, other = fresh(), fresh()
    torch.manual_seed(1)
    initialize(ours, cfg)
    torch.manual_seed(1)
    their_initialize(other, cfg)
    for (key, a), b in zip(ours.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=key)


def test_truncated_normal_has_the_same_distribution() -> None:
    """Not the same numbers: torch draws them in another way than mmcv."""
    cfg = dict(type='TruncNormal', std=2., a=-2., b=1., layer='Linear')
    ours, other = torch.nn.Linear(500, 500), torch.nn.Linear(500, 500)
    initialize(ours, cfg)
    their_initialize(other, cfg)
    steps = torch.linspace(0, 1, 11)
    torch.testing.assert_close(ours.weight.flatten().quantile(steps), other.weight.flatten().quantile(steps),
                               atol=0.03, rtol=0)


LOSSES = [
    (dict(type='CrossEntropyLoss'), 'index'),
    (dict(type='CrossEntropyLoss', loss_weight=0.3, class_weight=[1, 2, 3, 4, 5.]), 'index'),
    (dict(type='CrossEntropyLoss', use_soft=True, class_weight=[1, 2, 3, 4, 5.]), 'soft'),
    (dict(type='CrossEntropyLoss', use_sigmoid=True, class_weight=[1, 2, 3, 4, 5.], pos_weight=[2.] * 5), 'multi'),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1), 'index'),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=5), 'soft'),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='classy_vision'), 'index'),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='multi_label'), 'index'),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='multi_label'), 'multi'),
]
ARGUMENTS: list[dict[str, Any]] = [
    {}, dict(reduction_override='none'), dict(reduction_override='sum'), dict(avg_factor=7),
             dict(weight=torch.tensor([1., 0., 2., 3.])),
             dict(weight=torch.tensor([1, 0, 2, 3]), avg_factor=6), dict(avg_factor=3, reduction_override='none')]


@pytest.mark.parametrize('arguments', ARGUMENTS, ids=lambda kw: '+'.join(kw) or 'plain')
@pytest.mark.parametrize('cfg, kind', LOSSES)
def test_loss_equal(cfg: dict, kind: str, arguments: dict) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, requires_grad=True)
    label = dict(index=torch.tensor([0, 4, 2, 2]), soft=torch.rand(4, 5).softmax(1),
                 multi=torch.randint(0, 2, (4, 5)).float())[kind]
    values = [loss(logits, label, **arguments) for loss in (build_loss(cfg), theirs.build_loss(cfg))]
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), logits)[0] for v in values), rtol=1e-5, atol=1e-7)


def test_multi_label_head_equal() -> None:
    cfg = with_backbone('resnet/resnet18_8xb16_cifar10.py')
    cfg.head = dict(type='MultiLabelLinearClsHead', num_classes=10, in_channels=512)
    ours, other = pair(cfg)
    img, label = batch('resnet18')['img'], torch.randint(-1, 2, (4, 10))
    with torch.no_grad():
        for a, b in zip(ours.eval()(img, return_loss=False), other.eval()(img, return_loss=False), strict=True):
            assert abs(a - b).max() < 1e-5
        assert ours(img, gt_label=label)['loss'].item() == \
            pytest.approx(other(img, gt_label=label)['loss'].item(), rel=1e-5)


def test_timm_backbone_equal() -> None:
    pytest.importorskip('timm')
    cfg = dict(type='TIMMBackbone', model_name='tf_efficientnet_lite0')
    ours, other = build_backbone(cfg), theirs.build_backbone(cfg)
    other.load_state_dict(ours.state_dict(), strict=True)
    ours.eval()
    other.eval()  # theirs returns None
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images)[0], other(images)[0])
