"""Backbones against torchvision's networks of the same name: with the same weights, the same features and logits."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from workspace_lib.models import build_backbone

torchvision = pytest.importorskip('torchvision')
from torchvision.models.vision_transformer import VisionTransformer  # noqa: E402


def give(ours: nn.Module, tensors: Iterable[torch.Tensor]) -> nn.Module:
    """Theirs in the order of our state dict; shapes differ at most in axes of one."""
    own = ours.state_dict()
    ours.load_state_dict({name: value.reshape(tensor.shape) for (name, tensor), value in
                          zip(own.items(), tensors, strict=True)})
    return ours.eval()


def awake(network: nn.Module) -> nn.Module:
    """Random statistics and scales, so that no layer is the identity or nearly off."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(('running_var', 'layer_scale')):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(('running_mean', 'class_token')):
            tensor.normal_(std=0.1)
    return network.eval()


def same(ours: Any, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vgg_equals_torchvision() -> None:
    theirs = awake(torchvision.models.vgg11_bn(num_classes=5, init_weights=False))
    ours = give(build_backbone(dict(type='VGG', depth=11, num_classes=5, out_indices=(4, 5),
                                    norm_cfg=dict(type='BN'))), theirs.state_dict().values())
    image = torch.randn(1, 3, 224, 224)
    features, logits = ours(image)
    same(features, theirs.features(image))
    same(logits, theirs(image))


@torch.no_grad()
@pytest.mark.parametrize('width', [1.0, 0.5, 1.4])
def test_mobilenet_v2_equals_torchvision(width: float) -> None:
    theirs = awake(torchvision.models.mobilenet_v2(width_mult=width).features)
    ours = give(build_backbone(dict(type='MobileNetV2', widen_factor=width)), theirs.state_dict().values())
    images = torch.randn(2, 3, 62, 46)
    same(ours(images)[0], theirs(images))


@torch.no_grad()
def test_convnext_equals_torchvision() -> None:
    theirs = awake(torchvision.models.convnext_tiny())
    parts = [*theirs.features[0::2], *theirs.features[1::2], theirs.classifier[0]]
    ours = give(build_backbone(dict(type='ConvNeXt', arch='tiny')),
                (tensor for part in parts for tensor in part.state_dict().values()))
    for layer in ours.downsample_layers[1:]:
        assert layer[0].eps == 1e-5  # mmcls's; the authors' and torchvision's is 1e-6, as of all other norms
        layer[0].eps = 1e-6
    images = torch.randn(2, 3, 64, 64)
    pooled = theirs.classifier[:2](theirs.avgpool(theirs.features(images)))  # norm and flattening, without the layer
    same(ours(images)[0], pooled)


@torch.no_grad()
def test_vision_transformer_equals_torchvision() -> None:
    theirs = awake(VisionTransformer(image_size=64, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192,
                                     mlp_dim=768))
    theirs.heads = nn.Identity()
    cls_token, *projection, positions = list(theirs.state_dict().values())[:4]
    ours = give(build_backbone(dict(type='VisionTransformer', arch='deit-tiny', img_size=64)),
                [cls_token, positions, *projection, *list(theirs.state_dict().values())[4:]])
    images = torch.randn(2, 3, 64, 64)
    same(ours(images)[0][1], theirs(images))
