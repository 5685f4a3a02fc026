"""Weights of torchvision and timm under mmcls's names, and back: the same network computes the same with them."""
from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
from torch import nn

from workspace_lib import models
from workspace_lib.checkpoint import load_checkpoint, load_state_dict
from workspace_lib.layouts import convert, detect, families

pytestmark = pytest.mark.filterwarnings('ignore:Unnecessary conv bias:UserWarning')  # mmcls's VGG has it, as it should
GAP = dict(type='GlobalAveragePooling')


def linear(in_channels: int, **options: Any) -> dict[str, Any]:
    return dict(type='LinearClsHead', num_classes=7, in_channels=in_channels, topk=(1,),
                loss=dict(type='CrossEntropyLoss'), **options)


VGG_HEAD = dict(type='ClsHead', topk=(1,), loss=dict(type='CrossEntropyLoss'))
VIT_HEAD = dict(type='VisionTransformerClsHead', num_classes=7, in_channels=192, topk=(1,),
                loss=dict(type='CrossEntropyLoss'))
# layout, name of the model there, our backbone, neck, head, side of the image
CASES = [
    ('torchvision', 'resnet18', dict(type='ResNet', depth=18), GAP, linear(512), 64),
    ('torchvision', 'resnet50', dict(type='ResNet', depth=50), GAP, linear(2048), 64),
    ('torchvision', 'resnext50_32x4d', dict(type='ResNeXt', depth=50, groups=32, width_per_group=4), GAP,
     linear(2048), 64),
    ('timm', 'resnet50', dict(type='ResNet', depth=50), GAP, linear(2048), 64),
    ('timm', 'resnet50c', dict(type='ResNetV1c', depth=50), GAP, linear(2048), 64),
    ('timm', 'resnet50d', dict(type='ResNetV1d', depth=50), GAP, linear(2048), 64),
    ('timm', 'seresnet50', dict(type='SEResNet', depth=50), GAP, linear(2048), 64),
    ('timm', 'resnest50d', dict(type='ResNeSt', depth=50), GAP, linear(2048), 64),
    ('torchvision', 'vgg11', dict(type='VGG', depth=11, num_classes=7), None, VGG_HEAD, 224),
    ('torchvision', 'mobilenet_v2', dict(type='MobileNetV2'), GAP, linear(1280), 64),
    ('timm', 'vgg11_bn', dict(type='VGG', depth=11, num_classes=7, norm_cfg=dict(type='BN')), None, VGG_HEAD, 224),
    ('timm', 'mobilenetv2_100', dict(type='MobileNetV2'), GAP, linear(1280), 64),
    ('torchvision', 'convnext_tiny', dict(type='ConvNeXt', arch='tiny', out_indices=(3,)), None, linear(768), 64),
    ('timm', 'convnext_tiny', dict(type='ConvNeXt', arch='tiny', out_indices=(3,)), None, linear(768), 64),
    ('torchvision', 'vit_tiny', dict(type='VisionTransformer', arch='deit-tiny', img_size=224, patch_size=16), None,
     VIT_HEAD, 224),
    ('timm', 'vit_tiny_patch16_224', dict(type='VisionTransformer', arch='deit-tiny', img_size=224, patch_size=16),
     None, VIT_HEAD, 224),
    ('torchvision', 'densenet121', dict(type='DenseNet', arch='121'), GAP, linear(1024), 64),
]
IDS = [f'{layout}-{name}' for layout, name, *_ in CASES]
# Of these the names and shapes alone.
LARGE = [
    *(('torchvision', f'vgg{depth}', dict(type='VGG', depth=depth, num_classes=7), None, VGG_HEAD)
      for depth in (13, 16, 19)),
    *((layout, f'vgg{depth}_bn', dict(type='VGG', depth=depth, num_classes=7, norm_cfg=dict(type='BN')), None, VGG_HEAD)
      for depth in (13, 16, 19) for layout in ('torchvision', 'timm')),
    ('torchvision', 'resnet152', dict(type='ResNet', depth=152), GAP, linear(2048)),
    ('torchvision', 'wide_resnet50_2', dict(type='ResNet', depth=50, base_channels=128, expansion=2), GAP,
     linear(2048)),
    ('timm', 'resnet152d', dict(type='ResNetV1d', depth=152), GAP, linear(2048)),
    ('timm', 'mobilenetv2_140', dict(type='MobileNetV2', widen_factor=1.4), GAP, linear(1792)),
    ('torchvision', 'densenet201', dict(type='DenseNet', arch='201'), GAP, linear(1920)),
]


def without_memory(layout: str, name: str) -> nn.Module:
    with torch.device('meta'):
        if layout == 'timm':
            return pytest.importorskip('timm').create_model(name, num_classes=7)
        from torchvision.models import VisionTransformer, get_model
        if name == 'vit_tiny':  # which torchvision has no name for
            return VisionTransformer(224, 16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=7)
        return get_model(name, weights=None, num_classes=7)


@functools.lru_cache(1)
def their_model(layout: str, name: str) -> nn.Module:
    """With random weights, statistics and offsets as well: zeros and ones would hide a mix-up."""
    torch.manual_seed(0)
    model = without_memory(layout, name).to_empty(device='cpu')
    for key, value in model.state_dict().items():
        if value.dim() > 1:
            value.normal_(0, value[0].numel() ** -0.5)
        elif value.dim() == 1:
            value.uniform_(0.5, 1.5) if key.endswith(('running_var', 'weight')) else value.normal_(0, 0.1)
        else:
            value.zero_()
    return model.eval()


def in_mmcls(config: dict[str, Any]) -> nn.Module:
    return pytest.importorskip('mmcls.models').build_classifier(config)


def in_ours(config: dict[str, Any]) -> nn.Module:
    for part, registry in (('backbone', models.BACKBONES), ('head', models.HEADS)):
        if config[part]['type'] not in registry:
            pytest.skip(f'{config[part]["type"]} is not a model of this library')
    return models.build_classifier(config)


@pytest.mark.parametrize('build', [in_ours, in_mmcls])
@pytest.mark.parametrize('layout, name, backbone, neck, head, side', [
    pytest.param(*case, marks=pytest.mark.slow if 'vgg' in case[1] else (), id=id) for case, id in
    zip(CASES, IDS, strict=True)])  # half a gigabyte of VGG; its names, shapes and reshaping have tests of their own
def test_the_same_weights_give_the_same_logits(layout, name, backbone, neck, head, side, build, tmp_path):
    config = dict(type='ImageClassifier', backbone=backbone, head=head, **(dict(neck=neck) if neck else {}))
    ours, theirs = build(config).eval(), their_model(layout, name)
    missing, unexpected = ours.load_state_dict(convert(theirs.state_dict(), 'mmcls'), strict=False, assign=True)
    assert (missing, unexpected) == ([], [])
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(image)
        logits = ours.simple_test(image, softmax=False, post_process=False)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert expected.std() > 1e-3, 'logits that are all alike would prove nothing'


@pytest.mark.parametrize('build', [in_ours, in_mmcls])
@pytest.mark.parametrize('layout, name, backbone, neck, head', LARGE, ids=[f'{a}-{b}' for a, b, *_ in LARGE])
def test_deeper_and_wider_ones_have_the_same_names_and_shapes(layout, name, backbone, neck, head, build):
    config = dict(type='ImageClassifier', backbone=backbone, head=head, **(dict(neck=neck) if neck else {}))
    with torch.device('meta'):
        ours = build(config).state_dict()
    weights = without_memory(layout, name).state_dict()
    converted = convert(weights, 'mmcls')
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
    assert {k: v.shape for k, v in convert(converted, layout).items()} == {k: v.shape for k, v in weights.items()}


@pytest.mark.parametrize('layout, name', [case[:2] for case in CASES], ids=IDS)
def test_there_and_back_changes_no_bit(layout, name):
    shapes = {k: v.shape for k, v in without_memory(layout, name).state_dict().items()}
    weights = {k: torch.randint(256, shape, dtype=torch.uint8) for k, shape in shapes.items()}
    back = convert(convert(weights, 'mmcls'), layout)
    assert back.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in back.items())


@pytest.mark.parametrize('torchvision, timm', [
    ('vgg11_bn', 'vgg11_bn'), ('mobilenet_v2', 'mobilenetv2_100'), ('convnext_tiny', 'convnext_tiny'),
    ('vit_b_32', 'vit_base_patch32_224'), ('resnext50_32x4d', 'resnext50_32x4d'), ('densenet121', 'densenet121')])
def test_between_torchvision_and_timm(torchvision, timm):
    one, other = (without_memory(layout, name).state_dict() for layout, name in
                  (('torchvision', torchvision), ('timm', timm)))
    for weights, to, expected in ((one, 'timm', other), (other, 'torchvision', one)):
        assert {k: v.shape for k, v in convert(weights, to).items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize('family', families())
def test_no_two_tensors_get_one_name(family):
    for column in range(3):
        names = [row[column] for row in families()[family] if row[column] != '-']
        assert len(set(names)) == len(names)


def test_released_files_of_torchvision_with_older_names():
    old = ['features.denseblock4.denselayer16.norm.1.weight', 'features.denseblock4.denselayer16.conv.2.weight']
    assert list(convert(dict.fromkeys(old), 'mmcls')) == ['backbone.stages.3.block.15.norm1.weight',
                                                          'backbone.stages.3.block.15.conv2.weight']
    old = [f'encoder.layers.encoder_layer_11.mlp.linear_{i}.bias' for i in (1, 2)]
    assert list(convert(dict.fromkeys(old), 'mmcls')) == ['backbone.layers.11.ffn.layers.0.0.bias',
                                                          'backbone.layers.11.ffn.layers.1.bias']


def test_what_a_network_has_beside_its_family_keeps_its_name():
    weights = {**their_model('torchvision', 'resnet18').state_dict(), 'extra.scale': torch.ones(1)}
    assert detect(weights) == ('ResNet', 'torchvision')
    assert 'extra.scale' in convert(weights, 'mmcls') and 'backbone.conv1.weight' in convert(weights, 'mmcls')


def test_names_of_two_libraries_in_one_file():
    weights = {**their_model('torchvision', 'resnet18').state_dict(), 'head.fc.weight': torch.ones(1)}
    with pytest.raises(ValueError, match=r'fc.weight would become head.fc.weight, which is there already'):
        convert(weights, 'mmcls')


def test_names_of_nobody():
    assert detect(['a.weight', 'b.weight']) is None and detect([]) is None
    with pytest.raises(ValueError, match='names are those of no family known here; known: ResNet, '):
        convert({'a.weight': torch.ones(1)}, 'mmcls')


def test_a_network_that_the_other_library_does_not_have():
    with pytest.raises(ValueError, match=r'torchvision has no name for backbone.stem.0.conv.weight of ResNetV1c'):
        convert({'backbone.stem.0.conv.weight': torch.ones(1)}, 'torchvision')


# loading

RESNET = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), neck=GAP, head=linear(512))


@pytest.fixture
def resnet() -> nn.Module:
    return their_model('torchvision', 'resnet18')


def same(model: nn.Module, resnet: nn.Module, part: str = '') -> bool:
    theirs = {k.removeprefix(part): v for k, v in convert(resnet.state_dict(), 'mmcls').items() if k.startswith(part)}
    return model.state_dict().keys() == theirs.keys() and all(
        torch.equal(v, theirs[k]) for k, v in model.state_dict().items())


def ours_of(resnet: nn.Module) -> dict[str, Any]:
    return convert(resnet.state_dict(), 'mmcls')


@pytest.mark.parametrize('names, said', [
    (lambda r: r.state_dict(), 'names of torchvision (ResNet) were turned into those of mmcls'),
    (lambda r: {f'module.{k}': v for k, v in r.state_dict().items()}, 'names of torchvision (ResNet)'),
    (lambda r: {f'model.net.{k}': v for k, v in r.state_dict().items()}, 'names of torchvision (ResNet)'),
    (lambda r: {f'model.{k}': v for k, v in ours_of(r).items()}, 'the prefix that all names share was taken off'),
    (lambda r: {f'a.{k}': v for k, v in ours_of(r).items()} | {'b.x': torch.ones(1)}, "only what is under 'a.' was"),
])
def test_other_names_load_and_the_log_says_so(names, said, resnet, tmp_path, caplog):
    torch.save(names(resnet), tmp_path / 'c.pth')
    model = models.build_classifier(RESNET)
    with caplog.at_level(logging.INFO, 'here'):
        load_checkpoint(model, tmp_path / 'c.pth', strict=True, logger=logging.getLogger('here'))
    assert same(model, resnet)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f'{tmp_path}/c.pth: {said}')


@pytest.mark.parametrize('names', [ours_of, lambda r: {k: v for k, v in ours_of(r).items() if k[:4] != 'head'},
                                   lambda r: {k: v for k, v in r.state_dict().items() if k[:2] != 'fc'}])
@pytest.mark.parametrize('prefix', ['backbone', ''])
def test_a_backbone_takes_its_part(names, prefix, resnet, tmp_path):
    torch.save(names(resnet), tmp_path / 'c.pth')
    model = models.build_backbone(RESNET['backbone'])
    load_checkpoint(model, tmp_path / 'c.pth', prefix=prefix, strict=True)
    assert same(model, resnet, 'backbone.')


def test_a_classifier_takes_a_backbone_and_says_what_is_missing(resnet, tmp_path, caplog):
    torch.save({k: v for k, v in resnet.state_dict().items() if k[:2] != 'fc'}, tmp_path / 'c.pth')
    model = models.build_classifier(RESNET)
    load_checkpoint(model, tmp_path / 'c.pth')
    assert same(model.backbone, resnet, 'backbone.')
    assert '2 missing: head.fc.weight, head.fc.bias' in caplog.text


def test_all_names_of_a_network_without_classifier_may_begin_alike(tmp_path):
    weights = {k: v for k, v in their_model('torchvision', 'densenet121').state_dict().items() if k[:4] == 'feat'}
    torch.save(weights, tmp_path / 'c.pth')
    names = convert(weights, 'mmcls')
    assert {name.partition('.')[0] for name in names} == {'backbone'}

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64))

    model = Backbone()
    load_checkpoint(model, tmp_path / 'c.pth')
    assert torch.equal(model.stem[0].weight, weights['features.conv0.weight'])


def test_the_names_of_a_torchvision_model_inside_ours(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / 'c.pth')
    model = models.build_backbone(dict(type='TorchvisionBackbone', model_name='resnet18'))
    load_checkpoint(model, tmp_path / 'c.pth')
    assert torch.equal(model.model.layer4[1].bn2.weight, resnet.layer4[1].bn2.weight)


def test_the_second_copies_of_mmcvs_ema_hook_are_nothing_to_report(resnet, tmp_path, caplog):
    weights = convert(resnet.state_dict(), 'mmcls')
    torch.save({**weights, **{f'ema_{k.replace(".", "_")}': v for k, v in weights.items()}}, tmp_path / 'c.pth')
    model = models.build_classifier(RESNET)
    load_checkpoint(model, tmp_path / 'c.pth', strict=True)
    assert same(model, resnet) and caplog.messages == []


def test_another_network_is_named(resnet, tmp_path):
    lenet = models.build_backbone(dict(type='LeNet5', num_classes=10))
    with pytest.raises(RuntimeError, match=r'(?s)another model.*names are those of torchvision \(ResNet\).*'
                                           'workspace convert FILE OUT --to mmcls'):
        load_state_dict(lenet, resnet.state_dict())
    file = tmp_path / 'resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
    torch.save(convert(resnet.state_dict(), 'mmcls'), file)
    with pytest.raises(RuntimeError, match=r'(?s)names are those of mmcls .ResNet..*published with the config '
                                           'resnet/resnet18_8xb32_in1k.py of mmclassification'):
        load_checkpoint(lenet, file)
