"""Networks: sizes, shapes, modes; ResNet-50 against torchvision, bit for bit."""
from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import workspace_lib
from workspace_lib.config import Config
from workspace_lib.models import BACKBONES, ResNet, build_backbone, build_classifier

BASE_MODELS = Path(workspace_lib.__file__).parent / 'configs' / '_base_' / 'models'
CONFIGS = sorted(str(path.relative_to(BASE_MODELS).with_suffix('')) for path in BASE_MODELS.rglob('*.py'))


def model_config(name: str) -> dict:
    return Config.fromfile(BASE_MODELS / f'{name}.py').model


def build(name: str) -> torch.nn.Module:
    return build_classifier(model_config(name))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_resnet50_has_the_parameters_of_the_paper() -> None:
    with torch.device('meta'):
        assert count(build('resnet50')) == 25_557_032


def test_resnet50_costs_4089_million_multiply_adds() -> None:
    with torch.device('meta'):
        model, image = build('resnet50').eval(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image, return_loss=False, softmax=False, post_process=False)
    assert counter.get_total_flops() == 2 * 4_089_184_256  # a multiply-add is two operations


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
def test_resnet50_equals_torchvision_bit_for_bit(memory_format: torch.memory_format) -> None:
    torchvision = pytest.importorskip('torchvision')
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    ours = build('resnet50').eval()
    names = [f'head.{name}' if name.startswith('fc.') else f'backbone.{name}' for name in theirs.state_dict()]
    assert list(ours.state_dict()) == names
    assert [f'head.{n}' if n.startswith('fc.') else f'backbone.{n}' for n, _ in theirs.named_parameters()] == \
        [name for name, _ in ours.named_parameters()]
    ours.load_state_dict(dict(zip(names, theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 224, 224).to(memory_format=memory_format)
    for model in (theirs, ours):
        model.to(memory_format=memory_format)
    with torch.no_grad():
        logits = ours(images, return_loss=False, softmax=False, post_process=False)
        assert torch.equal(logits, theirs(images))


@pytest.mark.parametrize('name', CONFIGS)
def test_every_base_config_builds(name: str) -> None:
    if name.startswith('efficientnet'):
        pytest.importorskip('timm')
    with torch.device('meta'):
        assert count(build(name)) > 0


def test_lenet5_batch_of_one_keeps_its_axis() -> None:
    scores = build('lenet5').eval()(torch.randn(1, 1, 32, 32), return_loss=False)
    assert [s.shape for s in scores] == [(10,)]


def test_lenet5_without_classes_yields_features() -> None:
    (features,) = build_backbone(dict(type='LeNet5'))(torch.randn(2, 1, 32, 32))
    assert features.shape == (2, 120, 1, 1)


@pytest.mark.parametrize('cfg, last', [
    (dict(type='ResNet', depth=18), (512, 2)),
    (dict(type='ResNet', depth=50, style='caffe'), (2048, 2)),
    (dict(type='ResNet', depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), (2048, 8)),
    (dict(type='ResNet', depth=50, base_channels=128, expansion=2), (2048, 2)),
    (dict(type='ResNet', depth=18, norm_cfg=dict(type='GN', num_groups=8)), (512, 2)),
    (dict(type='ResNetV1c', depth=18), (512, 2)),
    (dict(type='ResNetV1d', depth=50), (2048, 2)),
    (dict(type='ResNet_CIFAR', depth=18), (512, 8)),
    (dict(type='ResNeXt', depth=50), (2048, 2)),
    (dict(type='ResNeSt', depth=50), (2048, 2)),
    (dict(type='ResNeSt', depth=50, radix=1, groups=2, avg_down_stride=False), (2048, 2)),
])
def test_feature_map_shape(cfg: dict, last: tuple[int, int]) -> None:
    with torch.device('meta'):
        (features,) = build_backbone(cfg).eval()(torch.empty(1, 3, 64, 64))
    assert features.shape == (1, last[0], last[1], last[1])


def test_out_indices_give_one_map_per_stage() -> None:
    with torch.device('meta'):
        maps = build_backbone(dict(type='ResNet', depth=18, out_indices=(0, 1, 2, 3)))(torch.empty(1, 3, 224, 224))
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def test_frozen_stages_neither_learn_nor_change_statistics() -> None:
    network = build_backbone(dict(type='ResNet', depth=18, frozen_stages=1)).train()
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert {name.split('.')[0] for name in frozen} == {'conv1', 'bn1', 'layer1'}
    before = {name: b.clone() for name, b in network.named_buffers()}
    network(torch.randn(2, 3, 64, 64))
    changed = {name.split('.')[0] for name, b in network.named_buffers() if not torch.equal(b, before[name])}
    assert changed == {'layer2', 'layer3', 'layer4'}


def test_norm_eval_keeps_running_statistics() -> None:
    network = build_backbone(dict(type='ResNet', depth=18, norm_eval=True)).train()
    network(torch.randn(2, 3, 64, 64))
    assert network.bn1.num_batches_tracked == 0 and network.training


def test_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = build_backbone(dict(type='ResNet', depth=50, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)))
    saving = build_backbone(dict(type='ResNet', depth=50, num_stages=1, strides=(1,), dilations=(1,),
                                 out_indices=(0,), with_cp=True))
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    for network in (plain, saving):
        network(images)[0].square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    from workspace_lib.models.layers import DropPath

    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    kept = out[:, 0, 0] > 0
    assert torch.equal(out, kept[:, None, None] * torch.full_like(out, 4 / 3))
    assert abs(kept.float().mean() - 0.75) < 0.03
    assert torch.equal(DropPath(0.25).eval()(out), out)


def test_resnest_has_stochastic_depth() -> None:
    torch.manual_seed(0)
    network = build_backbone(dict(type='ResNeSt', depth=50, drop_path_rate=0.5, norm_eval=True)).train()
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(network(image)[0], network(image)[0])


def test_switching_mode_returns_the_network() -> None:
    network = build_backbone(dict(type='ResNet', depth=18))
    assert network.eval() is network and network.train() is network


@pytest.mark.parametrize('cfg, message', [
    (dict(depth=55), r'ResNet got depth=55; known depths: 18, 34, 50, 101, 152'),
    (dict(type='ResNeXt', depth=18), r'ResNeXt got depth=18; known depths: 50, 101, 152'),
    (dict(depth=50, style='tensorflow'), "style='tensorflow'"),
    (dict(depth=50, out_indices=(4,)), r'out_indices=\(4,\); its stages are 0 to 3'),
    (dict(depth=50, num_stages=2), 'num_stages=2, but 4 strides'),
    (dict(depth=50, frozen_stages=5), 'frozen_stages=5, but has only 4'),
    (dict(depth=18, expansion=2), 'expansion'),
    (dict(depth=18, norm_cfg=dict(type='BM')), "type='BM'; known: BN"),
    (dict(depth=18, conv_cfg=dict(type='Conf')), "type='Conf'; known: Conv"),
    (dict(type='ResNet_CIFAR', depth=18, deep_stem=True), 'deep_stem'),
])
def test_bad_options_are_named(cfg: dict, message: str) -> None:
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        build_backbone({'type': 'ResNet', **cfg})


@pytest.mark.parametrize('kind', ['ResNet', 'ResNetV1d', 'ResNet_CIFAR', 'ResNeXt', 'ResNeSt'])
def test_misspelt_option_is_named(kind: str) -> None:
    with pytest.raises(TypeError, match=f"{kind} has no argument 'stlye'; did you mean 'style'"):
        build_backbone(dict(type=kind, depth=50, stlye='caffe'))


def test_relative_may_fix_the_depth() -> None:
    class Small(ResNet):
        def __init__(self, width: int = 8, **kwargs: Any) -> None:
            super().__init__(18, base_channels=width, **kwargs)

    assert list(inspect.signature(Small).parameters)[:2] == ['width', 'depth']
    assert Small(width=16, in_channels=1).feat_dim == 128


def test_timm_backbone_feeds_a_pooling_neck() -> None:
    pytest.importorskip('timm')
    model = build('efficientnet-lite0').eval()
    assert model.backbone(torch.randn(1, 3, 64, 64))[0].shape == (1, 1280, 2, 2)
    assert next(iter(model.state_dict())) == 'backbone.timm_model.conv_stem.weight'
    assert model(torch.randn(2, 3, 64, 64), return_loss=False)[1].shape == (1000,)


def test_timm_backbone_names_the_nearest_model() -> None:
    pytest.importorskip('timm')
    with pytest.raises(ValueError, match='tf_efficientnet_lite0'):
        build_backbone(dict(type='TIMMBackbone', model_name='tf_eficientnet_lite0'))


def test_timm_backbone_features_only() -> None:
    pytest.importorskip('timm')
    maps = build_backbone(dict(type='TIMMBackbone', model_name='resnet18', features_only=True, in_channels=1))(
        torch.randn(1, 1, 64, 64))
    assert len(maps) == 5


@pytest.mark.parametrize('name, channels', [('resnet18', 512), ('mobilenet_v3_small', 1024), ('vit_b_16', 768)])
def test_torchvision_backbone_gives_what_the_last_layer_got(name: str, channels: int) -> None:
    pytest.importorskip('torchvision')
    with torch.device('meta'):
        network = build_backbone(dict(type='TorchvisionBackbone', model_name=name)).eval()
        assert network(torch.empty(1, 3, 224, 224))[0].shape == (1, channels) == (1, network.feat_dim)


def test_torchvision_backbone_return_nodes() -> None:
    pytest.importorskip('torchvision')
    network = build_backbone(dict(type='TorchvisionBackbone', model_name='resnet18',
                                  return_nodes=['layer3', 'layer4']))
    assert [x.shape[1] for x in network(torch.randn(1, 3, 64, 64))] == [256, 512]


def test_torchvision_backbone_names_the_nearest_model() -> None:
    pytest.importorskip('torchvision')
    with pytest.raises(ValueError, match='nearest: resnet50'):
        build_backbone(dict(type='TorchvisionBackbone', model_name='resnet_50'))


def test_mmcls_scope_means_these_models() -> None:
    assert BACKBONES.get('mmcls.ResNeSt') is BACKBONES.get('ResNeSt')
