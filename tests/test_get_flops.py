"""Multiply-adds: formulas on layers small enough to count by hand, and published numbers of known networks."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from workspace_lib.models import ClsHead, ImageClassifier
from workspace_lib.tools.cli import main
from workspace_lib.tools.get_flops import config_cost, count_flops


def classifier(backbone: nn.Module) -> nn.Module:
    model = ImageClassifier.__new__(ImageClassifier)
    nn.Module.__init__(model)
    model.backbone, model.head = backbone, ClsHead()
    model.train_cfg = {}
    return model


def test_a_convolution_costs_one_multiply_add_for_each_weight_and_output_pixel():
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cost = count_flops(classifier(conv), (3, 10, 12))
    assert (cost.macs, cost.parameters) == (3 * 3 * 3 * 8 * 10 * 12, 3 * 3 * 3 * 8)


def test_attention_counts_both_of_its_products():
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(2)  # (N, heads, 16 * 16) -> tokens of width 1 each
            x = x.unsqueeze(-1).expand(-1, -1, -1, 8)  # (N, 3, 256, 8)
            return nn.functional.scaled_dot_product_attention(x, x, x).mean((2, 3))

    assert count_flops(classifier(Attention()), (3, 16, 16)).macs == 2 * 3 * 256 * 256 * 8


def test_resnet50_costs_what_torchvision_publishes():
    from torchvision.models import ResNet50_Weights
    cost = config_cost('resnet/resnet50_8xb32_in1k.py')
    meta = ResNet50_Weights.IMAGENET1K_V1.meta
    assert round(cost.macs / 1e9, 3) == meta['_ops'] and cost.parameters == meta['num_params']


def test_parts_add_up_and_the_head_has_its_share():
    cost = config_cost('resnet/resnet18_8xb32_in1k.py', depth=1)
    parts = {part.name: (part.parameters, part.macs) for part in cost.parts}
    assert list(parts) == ['backbone', 'neck', 'head']
    assert sum(macs for _, macs in parts.values()) == cost.macs
    assert parts['head'] == (513_000, 512_000)


@pytest.mark.parametrize('shape, seen', [((32,), (3, 32, 32)), ((32, 64), (3, 32, 64)), ((3, 32, 64), (3, 32, 64))])
def test_a_shape_may_be_short(shape, seen):
    assert config_cost('resnet/resnet18_8xb16_cifar10.py', shape).shape == seen


def test_a_shape_that_the_model_cannot_take_is_an_error_that_names_the_option(capsys):
    assert main(['get_flops', 'lenet/lenet5_mnist5k.py']) == 1
    assert '--shape C H W' in capsys.readouterr().err


def test_the_command_says_both_terms_under_both_names(capsys):
    for name in ('get_flops', 'get-flops'):
        assert main([name, 'lenet/lenet5_mnist5k.py', '--shape', '1', '32', '32']) == 0
        printed = capsys.readouterr().out
        # 6x1x5x5 x 28x28 + 16x6x5x5 x 10x10 + 120x16x5x5 + 120x84 + 84x10
        assert 'MACs: 416.520 k   FLOPs: 833.040 k   parameters: 61.706 k' in printed


def test_a_backbone_whose_layer_is_used_twice_costs_twice_and_weighs_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x)).mean((2, 3))

    cost = count_flops(classifier(Twice()), (3, 4, 4))
    assert (cost.macs, cost.parameters) == (2 * 9 * 16, 9)
    assert next(part.macs for part in cost.parts if part.name == 'backbone.conv') == 2 * 9 * 16


def test_each_module_tells_its_type_and_what_it_puts_out():
    parts = {part.name: part for part in config_cost('resnet/resnet18_8xb32_in1k.py').parts}
    assert (parts['backbone.layer3'].kind, parts['backbone.layer3'].output) == ('Sequential', (1, 256, 14, 14))
    assert parts['neck'].output == (1, 512) and parts['head.fc'].output == (1, 1000)
    assert parts['head'].output == ()  # nobody calls the head itself
    assert parts['backbone.conv1'].megabytes == 64 * 112 * 112 * 4 / 1e6


def test_the_table_has_a_row_for_each_module_and_the_sum(capsys):
    assert main(['get_flops', 'lenet/lenet5_mnist5k.py', '--shape', '1', '32', '32', '--depth', '1']) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[:4]]
    assert [line[0] for line in lines] == ['module', 'backbone', 'head', 'whole']
    assert lines[1][1:3] == ['LeNet5', '10']
