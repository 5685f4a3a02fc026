"""Against mmclassification 0.25, from its own recipes: names, shapes, logits, losses, gradients, first weights."""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from workspace_lib.config import Config
from workspace_lib.models import build_backbone, build_classifier, build_head, build_loss, build_neck, initialize
from workspace_lib.models.init import truncated_normal

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    pytest.importorskip('mmcv')
    mmcls = pytest.importorskip('mmcls')
    import mmcls.models as theirs
    from mmcv.cnn import initialize as their_initialize
    from mmcv.cnn.utils.weight_init import trunc_normal_

RECIPES = Path(mmcls.__file__).parent / '.mim' / 'configs'
FAMILIES = ('resnet', 'resnest', 'resnext', 'lenet', 'wrn', 'fp16', 'seresnet', 'vgg', 'mobilenet_v2', 'csra',
            'convnext', 'vision_transformer')
PATHS = sorted(path for family in FAMILIES for path in (RECIPES / family).glob('*.py'))
PATHS += sorted(path for path in (RECIPES / 'deit').glob('*.py') if 'distilled' not in path.stem)


def recipe(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # a fifth of the recipes are old names of others
        return Config.fromfile(path).model


@contextmanager
def without_values() -> Iterator[None]:
    """Only names and shapes are made, on the meta device; but mmcls reads numbers from a linspace."""
    with torch.device('meta'), patch.object(torch, 'linspace', partial(torch.linspace, device='cpu')):
        yield


def pair(cfg: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and theirs, with the same random weights and running statistics."""
    torch.manual_seed(0)
    ours = build_classifier(cfg)
    with without_values():
        other = theirs.build_classifier(cfg)
    for name, tensor in ours.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(('running_mean', 'pos_embed', 'cls_token', 'gamma')):  # which start as 0, or nearly
            tensor.normal_(std=0.1)
    other.load_state_dict({name: tensor.clone() for name, tensor in ours.state_dict().items()}, assign=True)
    return ours, other


def with_backbone(name: str, head: dict | None = None, **changes: Any) -> dict:
    cfg = recipe(RECIPES / name)
    cfg.backbone.update(changes)
    cfg.head.update(head or {})
    return cfg


@cache
def names_and_shapes(build: Any, model: str) -> tuple[list, list]:
    """Of the state dict, and of the parameters, whose order numbers the optimizer's states in a checkpoint."""
    with without_values():
        network = build(Config.fromstring(model, '.py').model)
    return ([(k, tuple(v.shape)) for k, v in network.state_dict().items()],
            [(k, v.requires_grad) for k, v in network.named_parameters()])


@pytest.mark.parametrize('path', PATHS, ids=[f'{path.parent.name}/{path.stem}' for path in PATHS])
def test_recipe_builds_the_same_state_dict(path: Path) -> None:
    model = Config(dict(model=recipe(path))).pretty_text
    assert names_and_shapes(build_classifier, model) == names_and_shapes(theirs.build_classifier, model)


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
    'fp16': dict(name='fp16/resnet50_b32x8_fp16_imagenet.py'),
    'seresnet': dict(name='seresnet/seresnet50_8xb32_in1k.py'),
    'seresnext': dict(name='seresnet/seresnext50-32x4d_8xb32_in1k.py'),
    'vgg': dict(name='vgg/vgg11_8xb32_in1k.py'),
    'vgg-bn': dict(name='vgg/vgg11bn_8xb32_in1k.py'),
    'mobilenet-v2': dict(name='mobilenet_v2/mobilenet-v2_8xb32_in1k.py'),
    'csra': dict(name='csra/resnet101-csra_1xb16_voc07-448px.py', depth=50, init_cfg=None),
    'convnext': dict(name='convnext/convnext-tiny_32xb128_in1k.py',
                     arch=dict(depths=[1, 2, 2, 1], channels=[24, 48, 96, 192]), head=dict(in_channels=192)),
    'vit-pretraining': dict(name='vision_transformer/vit-base-p16_pt-64xb64_in1k-224.py', arch='deit-tiny', img_size=64,
                            head=dict(in_channels=192)),
    'deit': dict(name='deit/deit-tiny_pt-4xb256_in1k.py', img_size=64),
    'vit': dict(name='vision_transformer/vit-base-p32_ft-64xb64_in1k-384.py', arch='deit-tiny', img_size=96,
                head=dict(in_channels=192)),
}
# One of each family, and where a relative has random numbers or first weights of its own, that too.
TRAINED = ['lenet', 'resnet18', 'resnetv1d', 'resnext', 'resnest', 'wide-resnet', 'fp16', 'seresnet', 'seresnext',
           'vgg', 'mobilenet-v2', 'csra', 'convnext', 'vit-pretraining', 'vit', 'deit']


def batch(name: str, size: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    size = 224 if name.startswith('vgg') else 64 if name.startswith(('vit', 'deit', 'csra', 'convnext')) else size
    shape = (1, 32, 32) if name == 'lenet' else (3, size, size)
    label = torch.randint(-1, 2, (4, 20)) if name == 'csra' else torch.randint(0, 10, (4,))
    number = 1 if name.startswith('vgg') else 4
    return dict(img=torch.randn(number, *shape), gt_label=label[:number])


@pytest.mark.parametrize('name', MODELS)
def test_logits_equal(name: str) -> None:
    ours, other = pair(with_backbone(**MODELS[name]))
    options = dict(return_loss=False, post_process=False, **({} if name == 'csra' else dict(softmax=False)))
    with torch.no_grad():
        a, b = ours.eval()(batch(name)['img'], **options), other.eval()(batch(name)['img'], **options)
    assert ((a - b).norm() / b.norm()).item() <= 1e-5


@pytest.mark.parametrize('name', TRAINED)
def test_one_training_step_equal(name: str) -> None:
    """In float64, where batch statistics of a few values do not magnify rounding; but VGG has 133 million weights."""
    cfg = with_backbone(**MODELS[name])
    if name != 'csra':
        cfg.head.cal_acc = not cfg.get('train_cfg')
    precision = torch.float32 if name == 'vgg' else torch.float64
    ours, other = (model.to(precision).train() for model in pair(cfg))
    ours.train_cfg, other.augments = {}, None  # mixing is the loader's here
    data = batch(name)
    data['img'] = data['img'].to(precision)
    steps = []
    for model in (ours, other):
        torch.manual_seed(2)  # for dropout and stochastic depth
        steps.append(model.train_step(data))
        steps[-1]['loss'].backward()
    a, b = steps
    assert a['loss'].item() == pytest.approx(b['loss'].item(), rel=1e-5)
    assert set(a['log_vars']) == set(b['log_vars']) and a['num_samples'] == b['num_samples']
    for (key, p), q in zip(ours.named_parameters(), other.parameters(), strict=True):
        if precision == torch.float64:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-9, msg=key)
        else:
            assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm(), key


@pytest.mark.parametrize('name', TRAINED)
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


@pytest.mark.parametrize('options', [dict(std=0.02), dict(std=2., a=-2., b=1.), dict(mean=0.5, std=0.1, a=0., b=1.)])
def test_truncated_normal_gives_the_same_numbers(options: dict) -> None:
    """Unless theirs is infinite before it is cut off, which happens once in 17 million."""
    torch.manual_seed(0)
    ours = truncated_normal(torch.empty(100_000), **options)
    torch.manual_seed(0)
    assert torch.equal(ours, trunc_normal_(torch.empty(100_000), **options))


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
    (dict(type='FocalLoss', loss_weight=0.5), 'multi'),
    (dict(type='FocalLoss', gamma=1., alpha=0.5), 'index'),
    (dict(type='AsymmetricLoss'), 'multi'),
    (dict(type='AsymmetricLoss', gamma_pos=1., gamma_neg=2., clip=None), 'soft'),
    (dict(type='AsymmetricLoss', use_sigmoid=False), 'index'),
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


@pytest.mark.parametrize('num_heads', [1, 2, 8])
def test_residual_attention_equal(num_heads: int) -> None:
    cfg = dict(type='CSRAClsHead', num_classes=5, in_channels=16, num_heads=num_heads, lam=0.1)
    ours, other = build_head(cfg), theirs.build_head(cfg)
    other.load_state_dict(ours.state_dict())
    features = (torch.randn(2, 16, 4, 4), )
    torch.testing.assert_close(ours.simple_test(features, post_process=False),
                               other.simple_test(features, post_process=False))


@pytest.mark.parametrize('cfg', [dict(p=3.), dict(p=2.5, eps=1e-3), dict(p=1., clamp=False)])
def test_generalized_mean_equal(cfg: dict) -> None:
    ours, other = (build(dict(type='GeneralizedMeanPooling', **cfg)) for build in (build_neck, theirs.build_neck))
    assert list(ours.state_dict()) == list(other.state_dict())
    features = torch.rand(2, 8, 5, 3)
    torch.testing.assert_close(ours(features), other(features))


VARIANTS = [
    dict(type='VGG', depth=11, out_indices=(0, 2, 4), dilations=(1, 1, 2, 1, 1), with_last_pool=False),
    dict(type='VGG', depth=13, num_stages=3, dilations=(1, 1, 1), out_indices=(2, ), ceil_mode=True,
         norm_cfg=dict(type='BN'), act_cfg=dict(type='LeakyReLU')),
    dict(type='MobileNetV2', widen_factor=0.35, out_indices=(0, 3, 7)),
    dict(type='MobileNetV2', widen_factor=1.4, act_cfg=dict(type='ReLU'), norm_cfg=dict(type='GN', num_groups=2)),
    dict(type='SEResNet', depth=50, se_ratio=8, out_indices=(0, 3), deep_stem=True, avg_down=True),
    dict(type='SEResNeXt', depth=50, groups=16, width_per_group=8),
    dict(type='ConvNeXt', arch=dict(depths=[1, 2], channels=[8, 16]), out_indices=(0, 1), linear_pw_conv=False,
         gap_before_final_norm=False),
    dict(type='ConvNeXt', arch=dict(depths=[1, 1], channels=[8, 16]), out_indices=(1, ), stem_patch_size=2,
         layer_scale_init_value=0., norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
    dict(type='VisionTransformer', arch='deit-tiny', img_size=32, patch_size=8, out_indices=[0, -1]),
    dict(type='VisionTransformer', arch='deit-tiny', img_size=(32, 48), with_cls_token=False, output_cls_token=False),
    dict(type='VisionTransformer', arch='deit-tiny', img_size=32, output_cls_token=False, final_norm=False,
         qkv_bias=False, interpolate_mode='bilinear', norm_cfg=dict(type='LN', eps=1e-3)),
    dict(type='VisionTransformer', arch=dict(embed_dims=24, num_layers=2, num_heads=4, feedforward_channels=32),
         img_size=30, patch_cfg=dict(norm_cfg=dict(type='LN'), padding='same', bias=False),
         layer_cfgs=[dict(num_fcs=3, act_cfg=dict(type='ReLU')), dict(feedforward_channels=40)]),
    dict(type='VisionTransformer', arch=dict(embed_dims=24, num_layers=1, num_heads=4, feedforward_channels=32),
         img_size=40, patch_cfg=dict(padding=2, kernel_size=(8, 6), stride=6)),
]


@pytest.mark.parametrize('cfg', VARIANTS, ids=lambda cfg: cfg['type'])
def test_backbone_variant_equal(cfg: dict) -> None:
    ours, other = build_backbone(cfg), theirs.build_backbone(cfg)
    for name, tensor in ours.state_dict().items():
        if name.endswith(('pos_embed', 'cls_token', 'gamma')):
            tensor.normal_()
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in other.state_dict().items()]
    other.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 62, 46)  # which no stride and no patch divides
    ours.eval()
    other.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), other(images), rtol=1e-4, atol=1e-5)


def test_position_embeddings_of_another_size_load_alike() -> None:
    def network(build: Any, size: Any) -> Any:
        return build(dict(type='VisionTransformer', arch='deit-tiny', img_size=size))
    saved = network(build_backbone, 64).state_dict()
    saved['pos_embed'].normal_()
    ours, other = network(build_backbone, (96, 160)), network(theirs.build_backbone, (96, 160))
    for model in (ours, other):
        model.load_state_dict(saved)
    assert ours.pos_embed.shape == (1, 1 + 6 * 10, 192)
    torch.testing.assert_close(ours.pos_embed, other.pos_embed)


def lent(part: Any) -> Any:
    """The config with mmcls's own class in place of each name; of a neck perhaps several."""
    return [lent(p) for p in part] if isinstance(part, list) else dict(part, type=theirs.BACKBONES.get(part['type']))


# Recipes whose parts call each other in ways of their own, or return something else than one tensor.
BORROWED = {
    'deit/deit-tiny-distilled_pt-4xb256_in1k.py': 224,       # DeiTClsHead takes two tokens
    'conformer/conformer-tiny-p16_8xb128_in1k.py': 224,      # ConformerHead takes two kinds of features
    'efficientformer/efficientformer-l1_8xb128_in1k.py': 224,  # EfficientFormerClsHead; trains only undistilled
    'hrnet/hrnet-w18_4xb32_in1k.py': 64,                     # HRFuseScales, then pooling: a neck in two parts
    'mobilenet_v3/mobilenet-v3-small_8xb32_in1k.py': 64,     # StackedLinearClsHead
}


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('name', BORROWED)
def test_parts_of_mmcls_work_in_our_classifier(name: str) -> None:
    cfg = recipe(RECIPES / name)
    if 'efficientformer' in name:
        cfg.head.distillation = False
    parts = {part: lent(cfg[part]) for part in ('backbone', 'neck', 'head') if cfg.get(part)}
    torch.manual_seed(0)
    ours, other = build_classifier(dict(type='ImageClassifier', **parts)), theirs.build_classifier(cfg)
    assert list(ours.state_dict()) == list(other.state_dict())
    ours.init_weights()
    other.load_state_dict(ours.state_dict())
    images, other.augments = torch.randn(2, 3, BORROWED[name], BORROWED[name]), None
    for model in (ours.eval(), other):
        model.eval()
    with torch.no_grad():
        a, b = ours(images, return_loss=False), other(images, return_loss=False)
        c, d = ours.extract_feat(images, 'pre_logits'), other.extract_feat(images, 'pre_logits')
    assert all((x == y).all() for x, y in zip(a, b, strict=True)) and len(a) == 2
    assert type(c) is type(d)
    for label in (torch.tensor([1, 2]), torch.full((2, 1000), 1e-3)):
        assert ours.train().train_step(dict(img=images, gt_label=label))['loss'].requires_grad


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
