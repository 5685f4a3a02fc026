"""Backbones in stages and the Vision Transformer: shapes, frozen stages, recomputing, first weights."""
from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from workspace_lib.models import build_backbone, build_classifier
from workspace_lib.models import layers as layers_module
from workspace_lib.models.backbones.mobilenet_v2 import InvertedResidual
from workspace_lib.models.backbones.resnet_blocks import BasicBlock, Bottleneck, make_downsample
from workspace_lib.models.backbones.seresnet import SEBottleneck, SELayer, SEResNeXt
from workspace_lib.models.init import truncated_normal
from workspace_lib.models.layers import BN, ConvModule, LayerNorm2d, drop_path_rates, make_divisible

ALL = (0, 1, 2, 3)
BLOCK = torch.randn(1, 64, 8, 8)
RESNET50 = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
VGG_MAPS = [(64, 112), (128, 56), (256, 28), (512, 14), (512, 7)]
MOBILENET = [(16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7), (320, 7), (1280, 7)]
TINY_VIT = dict(type='VisionTransformer', arch='deit-tiny')

# Outputs for an image of 224 x 224: (channels, side), or (channels, ) of a vector.
SHAPES: list[tuple[dict, list[tuple[int, ...]]]] = [
    (dict(type='ResNet', depth=18, out_indices=ALL), [(64, 56), (128, 28), (256, 14), (512, 7)]),
    (dict(type='ResNet', depth=50, out_indices=ALL), RESNET50),
    (dict(type='ResNet', depth=50, out_indices=ALL, drop_path_rate=0.5), RESNET50),
    (dict(type='ResNet', depth=50, out_indices=ALL, with_cp=True), RESNET50),
    (dict(type='ResNet', depth=50, out_indices=(0, 1, 2)), RESNET50[:3]),
    (dict(type='ResNet', depth=50, out_indices=-1), RESNET50[3:]),
    (dict(type='ResNet', depth=50, base_channels=32, out_indices=ALL), [(c // 2, s) for c, s in RESNET50]),
    (dict(type='ResNetV1c', depth=50, out_indices=ALL), RESNET50),
    (dict(type='ResNetV1d', depth=50, out_indices=ALL), RESNET50),
    (dict(type='ResNet_CIFAR', depth=50, out_indices=ALL), [(256, 224), (512, 112), (1024, 56), (2048, 28)]),
    (dict(type='ResNeXt', depth=50, out_indices=ALL), RESNET50),
    (dict(type='ResNeSt', depth=50, out_indices=ALL), RESNET50),
    (dict(type='SEResNet', depth=50, out_indices=ALL), RESNET50),
    (dict(type='SEResNet', depth=50, out_indices=(0, 1, 2), with_cp=True), RESNET50[:3]),
    (dict(type='SEResNeXt', depth=50, out_indices=ALL), RESNET50),
    (dict(type='SEResNeXt', depth=50, groups=32, width_per_group=8), RESNET50[3:]),
    (dict(type='VGG', depth=11, out_indices=(0, 1, 2, 3, 4)), VGG_MAPS),
    (dict(type='VGG', depth=11, norm_cfg=BN, out_indices=(0, 1, 2, 3, 4)), VGG_MAPS),
    (dict(type='VGG', depth=11, num_classes=10, out_indices=(0, 1, 2, 3, 4, 5)), [*VGG_MAPS, (10, )]),
    (dict(type='VGG', depth=11, num_classes=10, norm_cfg=BN, out_indices=(0, 4)), [VGG_MAPS[0], VGG_MAPS[4], (10, )]),
    (dict(type='VGG', depth=13, out_indices=(0, 1, 2)), VGG_MAPS[:3]),
    (dict(type='VGG', depth=16), VGG_MAPS[4:]),
    (dict(type='VGG', depth=19, num_classes=10), [(10, )]),
    (dict(type='VGG', depth=16, num_stages=3, dilations=(1, 1, 2)), VGG_MAPS[2:3]),
    (dict(type='VGG', depth=11, with_last_pool=False), [(512, 14)]),
    (dict(type='MobileNetV2', out_indices=range(8)), MOBILENET),
    (dict(type='MobileNetV2'), MOBILENET[7:]),
    (dict(type='MobileNetV2', out_indices=(0, 2, 4)), MOBILENET[0:5:2]),
    (dict(type='MobileNetV2', widen_factor=0.5, out_indices=range(7)),
     [(8, 112), (16, 56), (16, 28), (32, 14), (48, 14), (80, 7), (160, 7)]),
    (dict(type='MobileNetV2', widen_factor=2.0), [(2560, 7)]),
    (dict(type='MobileNetV2', act_cfg=dict(type='ReLU'), out_indices=range(7)), MOBILENET[:7]),
    (dict(type='MobileNetV2', norm_cfg=dict(type='GN', num_groups=2), out_indices=range(7)), MOBILENET[:7]),
    (dict(type='MobileNetV2', with_cp=True, out_indices=range(7)), MOBILENET[:7]),
    (dict(type='ConvNeXt', arch='tiny', out_indices=-1), [(768, )]),
    (dict(type='ConvNeXt', arch='small', out_indices=ALL), [(96, ), (192, ), (384, ), (768, )]),
    (dict(type='ConvNeXt', arch=dict(depths=[2, 3, 4, 5, 6], channels=[16, 32, 64, 128, 256]), out_indices=range(5)),
     [(16, ), (32, ), (64, ), (128, ), (256, )]),
    (dict(type='ConvNeXt', arch='small', out_indices=ALL, gap_before_final_norm=False),
     [(96, 56), (192, 28), (384, 14), (768, 7)]),
    (dict(type='ConvNeXt', arch='tiny', out_indices=(0, -1)), [(96, ), (768, )]),
    (dict(type='ConvNeXt', arch='tiny', with_cp=True), [(768, )]),
    (TINY_VIT, [(192, 14), (192, )]),
    (dict(TINY_VIT, out_indices=[-3, -2, -1]), [(192, 14), (192, )] * 3),
    (dict(TINY_VIT, output_cls_token=False), [(192, 14)]),
    (dict(TINY_VIT, with_cls_token=False, output_cls_token=False), [(192, 14)]),
    (dict(TINY_VIT, patch_size=32, img_size=384), [(192, 7), (192, )]),
    (dict(TINY_VIT, patch_size=16, patch_cfg=dict(norm_cfg=dict(type='LN'))), [(192, 14), (192, )]),
]


def flat(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else [t for part in outputs for t in flat(part)]


@pytest.mark.parametrize('cfg, shapes', SHAPES, ids=[str(i) + cfg['type'] for i, (cfg, _) in enumerate(SHAPES)])
def test_shapes_of_the_outputs(cfg: dict, shapes: list[tuple[int, ...]]) -> None:
    with torch.device('meta'):
        outputs = build_backbone(cfg).train()(torch.empty(2, 3, 224, 224))
    assert isinstance(outputs, tuple)
    assert [tuple(t.shape) for t in flat(outputs)] == [(2, s[0], *s[1:] * 2) for s in shapes]


@pytest.mark.parametrize('height, width, patches', [(224, 224, (14, 14)), (256, 256, (16, 16)), (256, 309, (16, 20))])
def test_a_transformer_takes_images_of_any_size(height: int, width: int, patches: tuple) -> None:
    with torch.device('meta'):
        ((tokens, cls_token), ) = build_backbone(TINY_VIT)(torch.empty(3, 3, height, width))
    assert tokens.shape == (3, 192, *patches) and cls_token.shape == (3, 192)


@pytest.mark.parametrize('arch, parameters', [
    ('deit-tiny', 5_717_416), ('deit-small', 22_050_664), ('base', 86_567_656), ('large', 304_326_632)])
def test_vision_transformers_have_the_parameters_of_the_papers(arch: str, parameters: int) -> None:
    """With a classifier of 1000 classes; DeiT table 1 and ViT table 1."""
    with torch.device('meta'):
        network = build_backbone(dict(type='VisionTransformer', arch=arch))
    counted = sum(p.numel() for p in network.parameters()) + (network.embed_dims + 1) * 1000
    assert counted == parameters


@pytest.mark.parametrize('name', ['s', 'small', 'b', 'base', 'l', 'large', 'deit-t', 'deit-tiny', 'deit-s',
                                  'deit-small', 'deit-b', 'deit-base', 'Base'])
def test_every_name_of_a_transformer_builds(name: str) -> None:
    with torch.device('meta'):
        assert build_backbone(dict(type='VisionTransformer', arch=name)).num_layers in (8, 12, 24)


@pytest.mark.parametrize('arch, millions', [('tiny', 29), ('small', 50), ('base', 89), ('large', 198), ('xlarge', 350)])
def test_convnexts_are_as_large_as_in_the_paper(arch: str, millions: int) -> None:
    with torch.device('meta'):
        network = build_backbone(dict(type='ConvNeXt', arch=arch))
    counted = sum(p.numel() for p in network.parameters()) + (network.channels[-1] + 1) * 1000
    assert round(counted / 1e6) == millions


FROZEN = [
    (dict(type='ResNet', depth=50, frozen_stages=1), ('conv1', 'bn1', 'layer1')),
    (dict(type='ResNet_CIFAR', depth=50, frozen_stages=1), ('conv1', 'bn1', 'layer1')),
    (dict(type='ResNetV1c', depth=50, frozen_stages=1), ('stem', 'layer1')),
    (dict(type='ResNetV1d', depth=50, frozen_stages=1), ('stem', 'layer1')),
    (dict(type='SEResNet', depth=50, frozen_stages=1), ('conv1', 'bn1', 'layer1')),
    (dict(type='VGG', depth=11, norm_cfg=BN, frozen_stages=2), ('features.0', 'features.2')),
    (dict(type='MobileNetV2', frozen_stages=0), ('conv1', )),
    (dict(type='MobileNetV2', frozen_stages=2), ('conv1', 'layer1', 'layer2')),
    (dict(type='MobileNetV2', frozen_stages=8), ('conv1', 'conv2', *(f'layer{i}' for i in range(1, 8)))),
    (dict(type='ConvNeXt', norm_cfg=BN, frozen_stages=2),
     ('downsample_layers.0', 'stages.0', 'downsample_layers.1', 'stages.1')),
]


@pytest.mark.parametrize('cfg, frozen', FROZEN, ids=[cfg['type'] for cfg, _ in FROZEN])
def test_frozen_stages_keep_weights_and_statistics(cfg: dict, frozen: tuple[str, ...]) -> None:
    """From the start, before an optimizer is built, and again in every switch to training."""
    with torch.device('meta'):
        network = build_backbone(cfg)
    inside = tuple(f'{name}.' for name in frozen)
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in network.named_parameters() if not name.startswith(inside)}
    network.train()
    norms = {f'{name}.': m.training for name, m in network.named_modules() if isinstance(m, _BatchNorm)}
    assert norms == {name: not name.startswith(inside) for name in norms} and norms


@pytest.mark.parametrize('cfg', [dict(type='ResNet', depth=50), dict(type='SEResNet', depth=50), dict(
    type='VGG', depth=11, norm_cfg=BN), dict(type='MobileNetV2')], ids=lambda cfg: cfg['type'])
def test_norm_eval_keeps_every_norm_in_evaluation(cfg: dict) -> None:
    with torch.device('meta'):
        plain, kept = build_backbone(cfg).train(), build_backbone(dict(cfg, norm_eval=True)).train()
    assert all(m.training for m in plain.modules())
    norms = [m for m in kept.modules() if isinstance(m, _BatchNorm)]
    assert norms and not any(m.training for m in norms) and kept.training


@pytest.mark.parametrize('cfg', [
    dict(type='MobileNetV2', widen_factor=0.35),
    dict(type='ConvNeXt', arch=dict(depths=[2, 1], channels=[8, 16]), layer_scale_init_value=1.),
    dict(type='SEResNet', depth=50, num_stages=1, strides=(1, ), dilations=(1, ), out_indices=(0, )),
], ids=lambda cfg: cfg['type'])
def test_recomputing_gives_the_same_gradients(cfg: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kept = layers_module.checkpoint
    monkeypatch.setattr(layers_module, 'checkpoint', lambda run, *a, **kw: calls.append(run) or kept(run, *a, **kw))
    plain, saving = build_backbone(cfg), build_backbone(dict(cfg, with_cp=True))
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    for network in (plain, saving):
        assert not calls
        network(images)[0].square().mean().backward()
    assert calls  # in the second network
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize('zero', [True, False])
def test_residual_branches_start_at_zero_if_asked(zero: bool) -> None:
    network = build_backbone(dict(type='SEResNet', depth=50, zero_init_residual=zero))
    network.init_weights()
    blocks = [m for m in network.modules() if isinstance(m, SEBottleneck)]
    assert len(blocks) == 16 and all(block.norm3.weight.eq(0 if zero else 1).all() for block in blocks)


def test_first_weights_of_a_transformer() -> None:
    network = build_backbone(dict(TINY_VIT, init_cfg=dict(type='Constant', layer='Conv2d', val=0.5)))
    assert network.pos_embed.eq(0).all()
    network.init_weights()
    assert network.patch_embed.projection.weight.eq(0.5).all()
    assert network.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    for layer in network.layers:
        assert layer.ffn.layers[0][0].bias.abs().max() < 1e-5  # torch's own would be 0.07
    trained = nn.init.ones_(network.pos_embed)
    with pytest.warns(UserWarning, match='ran before'):
        network.init_weights()
    assert trained.eq(1).all()


def test_truncated_normal_has_no_outliers() -> None:
    """A draw of exactly -1, which inverts to minus infinity, is 6 deviations away at most, not 100."""
    class Lowest(torch.Tensor):
        def uniform_(self, low: float, high: float) -> torch.Tensor:
            return self.fill_(-1.)

    weight = truncated_normal(torch.zeros(3).as_subclass(Lowest), std=0.02)
    torch.testing.assert_close(weight.as_subclass(torch.Tensor), torch.full((3, ), -0.12))


def test_stochastic_depth_grows() -> None:
    network = build_backbone(dict(TINY_VIT, drop_path_rate=0.1))
    for i, layer in enumerate(network.layers):
        rate = pytest.approx(0.1 * i / 11)
        assert layer.attn.out_drop.drop_prob == rate and layer.ffn.dropout_layer.drop_prob == rate
    assert drop_path_rates(0.3, 1) == [0.0]


def test_a_transformer_of_ones_own() -> None:
    network = build_backbone(dict(type='VisionTransformer', arch=dict(
        embed_dims=128, num_layers=24, num_heads=16, feedforward_channels=1024)))
    assert network.embed_dims == 128 and network.num_layers == len(network.layers) == 24
    assert all(layer.attn.num_heads == 16 and layer.ffn.feedforward_channels == 1024 for layer in network.layers)


def test_options_of_single_layers() -> None:
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    network = build_backbone(dict(type='VisionTransformer', arch=arch, layer_cfgs=[
        dict(attn_drop_rate=0.5), dict(num_fcs=3, feedforward_channels=8, act_cfg=dict(type='ReLU'))])).eval()
    assert network.layers[0].attn.attn_drop == 0.5 and network.layers[1].ffn.layers[1][0].weight.shape == (8, 8)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(network(image)[0][1], network(image)[0][1])
    network.train()
    assert not torch.equal(network(image)[0][1], network(image)[0][1])  # dropout of the attention


def test_position_embeddings_are_resized_on_loading(caplog: pytest.LogCaptureFixture) -> None:
    saved = build_backbone(dict(TINY_VIT, img_size=64)).state_dict()
    saved['pos_embed'].normal_()
    before = saved['pos_embed'].clone()
    model = build_classifier(dict(type='ImageClassifier', backbone=dict(TINY_VIT, img_size=(96, 160)), head=dict(
        type='VisionTransformerClsHead', num_classes=2, in_channels=192)))
    with caplog.at_level(logging.INFO, 'workspace_lib'):
        model.load_state_dict({f'backbone.{k}': v for k, v in saved.items()}, strict=False)
    assert 'backbone.pos_embed: resized from 4 x 4 patches to 6 x 10' in caplog.text
    loaded = model.backbone.pos_embed
    assert loaded.shape == (1, 1 + 6 * 10, 192) and torch.equal(loaded[:, 0], before[:, 0])
    grid = before[:, 1:].reshape(1, 4, 4, 192).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 10), mode='bicubic', align_corners=False)
    torch.testing.assert_close(loaded[:, 1:].transpose(1, 2).reshape(1, 192, 6, 10), expected)
    assert torch.equal(saved['pos_embed'], before)  # the caller's stays as it is


def test_a_copied_or_pickled_transformer_resizes_too() -> None:
    network = build_backbone(dict(TINY_VIT, img_size=64))
    saved = network.state_dict()
    saved['pos_embed'].normal_()
    for other in (copy.deepcopy(build_backbone(dict(TINY_VIT, img_size=96))),
                  pickle.loads(pickle.dumps(build_backbone(dict(TINY_VIT, img_size=96))))):
        other.load_state_dict(saved)
        assert other.pos_embed.shape[1] == 1 + 6 * 6 and other.pos_embed.abs().sum() > 0


def test_position_embeddings_that_are_no_square_are_an_error() -> None:
    saved = build_backbone(dict(TINY_VIT, img_size=(32, 64))).state_dict()
    with pytest.raises(RuntimeError, match=r'size mismatch for pos_embed: .*\[1, 9, 192\].*\[1, 17, 192\]'):
        build_backbone(dict(TINY_VIT, img_size=64)).load_state_dict(saved)


def test_layer_norm_of_feature_maps_is_that_of_their_channels() -> None:
    norm, x = LayerNorm2d(5), torch.randn(2, 5, 4, 3)
    nn.init.normal_(norm.weight)
    expected = F.layer_norm(x.movedim(1, -1), (5, ), norm.weight, norm.bias).movedim(-1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_squeeze_and_excitation_scales_channels() -> None:
    layer, x = SELayer(64, ratio=16), torch.randn(2, 64, 5, 5)
    factors = layer(x) / x
    assert layer.conv1.conv.out_channels == 8  # 4, rounded to a multiple of 8
    torch.testing.assert_close(factors, factors[..., :1, :1].expand_as(x))
    assert ((factors > 0) & (factors < 1)).all()


def test_squeeze_and_excitation_ends_the_residual_branch() -> None:
    block, x = SEBottleneck(64, 64).eval(), BLOCK
    expected = (block.se_layer(Bottleneck.residual(block, x)) + x).relu()
    torch.testing.assert_close(block(x), expected)
    assert not torch.allclose(block(x), (Bottleneck.residual(block, x) + x).relu())


def test_stochastic_depth_holds_for_squeeze_and_excitation_too() -> None:
    torch.manual_seed(0)
    network = build_backbone(dict(type='SEResNet', depth=50, drop_path_rate=0.5, norm_eval=True)).train()
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(network(image)[0], network(image)[0])


@pytest.mark.parametrize('channels, divisor, expected', [(4, 8, 8), (13, 4, 12), (32 * 0.35, 8, 16), (90, 100, 100),
                                                         (24 * 1.4, 8, 32), (12, 8, 16), (19, 8, 24)])
def test_channels_are_rounded_and_lose_a_tenth_at_most(channels: float, divisor: int, expected: int) -> None:
    assert make_divisible(channels, divisor) == expected


@pytest.mark.parametrize('block, channels, side', [
    (BasicBlock(64, 64), 64, 8),
    (BasicBlock(64, 128, stride=2, downsample=make_downsample(64, 128, 2, False, None, BN)), 128, 4),
    (BasicBlock(64, 128, stride=2, downsample=make_downsample(64, 128, 2, True, None, BN)), 128, 4),
    (Bottleneck(64, 64), 64, 8),
    (Bottleneck(64, 64, expansion=2), 64, 8),
    (Bottleneck(64, 128, stride=2, style='caffe', downsample=make_downsample(64, 128, 2, False, None, BN)), 128, 4),
    (Bottleneck(64, 64, base_channels=16, groups=32, width_per_group=4), 64, 8),
    (SEBottleneck(64, 64, base_channels=16, groups=32, width_per_group=4), 64, 8),
    (InvertedResidual(64, 64, stride=1, expand_ratio=6), 64, 8),
    (InvertedResidual(64, 24, stride=2, expand_ratio=6), 24, 4),
    (ConvModule(64, 32, 3, stride=2, padding=1, groups=2), 32, 4),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else '')
def test_block_shapes(block: nn.Module, channels: int, side: int) -> None:
    assert block(BLOCK).shape == (1, channels, side, side)


def test_strides_and_widths_within_blocks() -> None:
    for style, strides in (('pytorch', (1, 2)), ('caffe', (2, 1))):
        block = Bottleneck(64, 64, stride=2, style=style)
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides
    grouped = SEBottleneck(64, 256, groups=32, width_per_group=4)
    assert (grouped.conv2.groups, grouped.conv2.out_channels) == (32, 128)
    assert Bottleneck(64, 256, groups=1).conv2.out_channels == 64
    assert [len(InvertedResidual(16, 16, 1, ratio).conv) for ratio in (1, 6)] == [2, 3]
    assert InvertedResidual(16, 16, 1, 6).use_res_connect and not InvertedResidual(16, 24, 1, 6).use_res_connect


@pytest.mark.parametrize('cfg, message', [
    (dict(type='VGG', depth=18), 'VGG got depth=18; known depths: 11, 13, 16, 19'),
    (dict(type='VGG', depth=11, num_stages=0), 'num_stages=0 and 5 dilations; it has 1 to 5 stages'),
    (dict(type='VGG', depth=11, num_stages=6), 'num_stages=6'),
    (dict(type='VGG', depth=11, num_stages=3, dilations=(1, 1)), 'num_stages=3 and 2 dilations'),
    (dict(type='VGG', depth=11, out_indices=(5, )), r'VGG got out_indices=\(5,\); its stages are 0 to 4'),
    (dict(type='MobileNetV2', frozen_stages=9), 'MobileNetV2 got frozen_stages=9, but has only 8 stages'),
    (dict(type='MobileNetV2', out_indices=[8]), r'out_indices=\(8,\); its stages are 0 to 7'),
    (dict(type='MobileNetV2', act_cfg=dict(type='Relu')), "act_cfg got type='Relu'; known: ReLU, ReLU6"),
    (dict(type='SEResNet', depth=20), 'SEResNet got depth=20; known depths: 50, 101, 152'),
    (dict(type='SEResNet', depth=50, num_stages=0), 'num_stages=0; it has 1 to 4'),
    (dict(type='SEResNet', depth=50, num_stages=5), 'num_stages=5; it has 1 to 4'),
    (dict(type='SEResNet', depth=50, num_stages=3, strides=(1, ), dilations=(1, 1)), '1 strides and 2 dilations'),
    (dict(type='SEResNet', depth=50, style='tensorflow'), "style='tensorflow'"),
    (dict(type='SEResNeXt', depth=18), 'SEResNeXt got depth=18; known depths: 50, 101, 152'),
    (dict(type='ResNet', depth=50, expansion=3, base_channels=64, style='x'), "style='x'"),
    (dict(type='ConvNeXt', arch='unknown'), "ConvNeXt got arch='unknown'; known: tiny, small, base, large, xlarge"),
    (dict(type='ConvNeXt', arch=dict(channels=[2, 3, 4, 5])), 'it lacks depths'),
    (dict(type='ConvNeXt', arch=dict(depths=[2, 3, 4], channels=[2, 3, 4, 5])), 'one depth and one width per stage'),
    (dict(type='ConvNeXt', frozen_stages=5), 'ConvNeXt got frozen_stages=5, but has only 4'),
    (dict(TINY_VIT, arch='unknown'), "VisionTransformer got arch='unknown'; known: s, small, b, base"),
    (dict(TINY_VIT, arch=dict(num_layers=24, num_heads=16, feedforward_channels=4096)), 'it lacks embed_dims'),
    (dict(TINY_VIT, out_indices={1: 1}), r'out_indices=\{1: 1\}; its stages are 0 to 11'),
    (dict(TINY_VIT, out_indices=[0, 13]), r'out_indices=\(0, 13\)'),
    (dict(TINY_VIT, with_cls_token=False), 'with_cls_token=False'),
    (dict(TINY_VIT, patch_cfg=dict(padding='valid')), "padding='valid'"),
])
def test_bad_options_of_a_backbone_are_named(cfg: dict, message: str) -> None:
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        build_backbone(cfg)


def test_an_expansion_that_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match='out_channels=64, which expansion=3 does not divide'):
        Bottleneck(64, 64, expansion=3)


def test_classifier_of_vgg_says_which_images_it_takes() -> None:
    with torch.device('meta'), pytest.raises(ValueError, match='images of 224 x 224, or leave num_classes out'):
        build_backbone(dict(type='VGG', depth=11, num_classes=10))(torch.empty(1, 3, 64, 64))


@pytest.mark.parametrize('kind', ['SEResNet', 'SEResNeXt', 'VGG', 'MobileNetV2', 'ConvNeXt', 'VisionTransformer'])
def test_misspelt_option_of_a_backbone_is_named(kind: str) -> None:
    with pytest.raises(TypeError, match=f"{kind} has no argument 'norm_cgf'; did you mean 'norm_cfg'"):
        build_backbone(dict(type=kind, norm_cgf=BN))


def test_a_relative_of_two_networks_has_the_options_of_both() -> None:
    with torch.device('meta'):
        network = build_backbone(dict(type='SEResNeXt', depth=50, groups=16, width_per_group=8, se_ratio=8))
    assert network.layer1[0].conv2.groups == 16 and network.layer1[0].se_layer.conv1.conv.out_channels == 32


def test_a_neck_may_have_several_parts() -> None:
    parts = [dict(type='GeneralizedMeanPooling'), dict(type=Started)]
    model = build_classifier(dict(type='ImageClassifier', backbone=dict(type='MobileNetV2'), neck=parts, head=dict(
        type='LinearClsHead', num_classes=3, in_channels=1280)))
    assert {'neck.0.p', 'neck.1.weight'} <= set(model.state_dict())
    model.init_weights()
    assert model.neck[1].weight == 7
    assert len(model.eval()(torch.randn(2, 3, 32, 32), return_loss=False)) == 2


class Started(nn.Module):
    """A part with first weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def init_weights(self) -> None:
        nn.init.constant_(self.weight, 7)

    def forward(self, x: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return x


def test_seresnext_heeds_its_squeeze_ratio():
    with torch.device('meta'):
        block = SEResNeXt(depth=50, se_ratio=8).layer1[0]
    assert block.se_layer.conv1.conv.out_channels == 256 // 8
