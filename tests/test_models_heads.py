"""Heads by themselves: losses, scores and features from what a backbone or a neck gives them."""
from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from workspace_lib.models import build_head

torch.manual_seed(0)
VECTOR, MAP, TOKENS = torch.rand(4, 10), torch.rand(4, 10, 5, 3), [torch.rand(4, 7, 7, 10), torch.rand(4, 10)]
INDEX, MULTI = torch.tensor([0, 3, 7, 9]), torch.randint(0, 2, (4, 10))
LINEAR: dict = dict(num_classes=10, in_channels=10)
# config, features, labels, and what makes scores of logits
HEADS: dict[str, tuple[dict, Any, torch.Tensor, str]] = {
    'plain': (dict(type='ClsHead'), VECTOR, INDEX, 'softmax'),
    'linear': (dict(type='LinearClsHead', **LINEAR), VECTOR, INDEX, 'softmax'),
    'multi-label': (dict(type='MultiLabelClsHead'), VECTOR, MULTI, 'sigmoid'),
    'multi-label-linear': (dict(type='MultiLabelLinearClsHead', **LINEAR), VECTOR, MULTI, 'sigmoid'),
    'vit': (dict(type='VisionTransformerClsHead', **LINEAR), TOKENS, INDEX, 'softmax'),
    'vit-hidden': (dict(type='VisionTransformerClsHead', hidden_dim=20, **LINEAR), TOKENS, INDEX, 'softmax'),
    'residual-attention': (dict(type='CSRAClsHead', num_heads=2, lam=0.1, **LINEAR), MAP, MULTI, 'sigmoid'),
}


def forms(name: str) -> list[Any]:
    """A backbone's tuple, whose last member counts; and the bare features, which tokens never are."""
    features = HEADS[name][1]
    return [(features, ), ('ignored', features)] + ([features] if isinstance(features, torch.Tensor) else [])


@pytest.mark.parametrize('name', HEADS)
def test_loss_is_positive_and_reaches_every_weight(name: str) -> None:
    cfg, _, label, _ = HEADS[name]
    head = build_head(cfg)
    losses = [head.forward_train(x, label)['loss'] for x in forms(name)]
    assert losses[0] > 0 and len({loss.item() for loss in losses}) == 1
    if list(head.parameters()):
        losses[0].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize('name', HEADS)
def test_half_the_sample_weight_is_half_the_loss(name: str) -> None:
    cfg, _, label, _ = HEADS[name]
    head, x = build_head(cfg), forms(name)[0]
    half = head.loss(head.logits(x), label.float() if label.dim() > 1 else label, weight=torch.full((4, ), 0.5))['loss']
    torch.testing.assert_close(half, head.forward_train(x, label)['loss'] / 2)


@pytest.mark.parametrize('name', HEADS)
def test_scores_are_a_list_of_arrays_or_a_tensor(name: str) -> None:
    cfg, _, _, activation = HEADS[name]
    head = build_head(cfg).eval()
    for x in forms(name):
        listed = head.simple_test(x, **{activation: True})
        assert [(type(s), s.shape) for s in listed] == [(np.ndarray, (10, ))] * 4
        tensor = head.simple_test(x, post_process=False, **{activation: True})
        logits = head.simple_test(x, post_process=False, **{activation: False})
        assert tensor.shape == (4, 10) and np.array_equal(np.stack(listed), tensor.detach().numpy())
        torch.testing.assert_close(tensor, logits.softmax(1) if activation == 'softmax' else logits.sigmoid())


class Scores(torch.nn.Module):
    """A head as a network of its own, for tracing."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.head.simple_test((list(tensors) if len(tensors) > 1 else tensors[0], ))


@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning', 'ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('name', HEADS)
def test_a_traced_graph_holds_tensors_only(name: str) -> None:
    cfg, features = HEADS[name][:2]
    inputs = tuple(features) if isinstance(features, list) else (features, )
    network = Scores(build_head(cfg).eval())
    assert torch.jit.trace(network, inputs)(*inputs).shape == (4, 10)
    with patch('torch.onnx.is_in_onnx_export', return_value=True):
        assert network(*inputs).shape == (4, 10)


@pytest.mark.parametrize('name, shape', [
    ('plain', (4, 10)), ('linear', (4, 10)), ('multi-label', (4, 10)), ('multi-label-linear', (4, 10)),
    ('vit', (4, 10)), ('vit-hidden', (4, 20)), ('residual-attention', (4, 10, 5, 3))])
def test_features_for_the_last_layer(name: str, shape: tuple) -> None:
    head, features = build_head(HEADS[name][0]), HEADS[name][1]
    before_logits = head.pre_logits(forms(name)[0])
    assert before_logits.shape == shape
    if name != 'vit-hidden':
        assert torch.equal(before_logits, features[1] if isinstance(features, list) else features)


def test_accuracy_is_counted_if_asked() -> None:
    assert 'accuracy' in build_head(dict(type='ClsHead', cal_acc=True)).forward_train(VECTOR, INDEX)
    assert 'accuracy' not in build_head(dict(type='ClsHead')).forward_train(VECTOR, INDEX)


def test_first_weights_of_linear_heads() -> None:
    for name in ('linear', 'multi-label-linear'):
        head = build_head(HEADS[name][0])
        head.init_weights()
        assert 0 < head.fc.weight.abs().max() < 0.1 and head.fc.bias.eq(0).all()


def test_first_weights_of_the_head_of_a_transformer() -> None:
    head = build_head(dict(type='VisionTransformerClsHead', num_classes=3, in_channels=400, hidden_dim=300))
    head.init_weights()
    assert list(head.state_dict()) == ['layers.pre_logits.weight', 'layers.pre_logits.bias',
                                       'layers.head.weight', 'layers.head.bias']
    assert head.layers.head.weight.eq(0).all()  # every class as likely, until the backbone has something to say
    assert head.layers.pre_logits.weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    trained = torch.nn.init.ones_(head.layers.pre_logits.weight)
    with pytest.warns(UserWarning, match='ran before'):
        head.init_weights()
    assert trained.eq(1).all()


def test_the_head_of_a_transformer_without_hidden_layer_has_one_layer() -> None:
    assert list(build_head(HEADS['vit'][0]).state_dict()) == ['layers.head.weight', 'layers.head.bias']


def test_residual_attention_at_its_ends() -> None:
    """Without attention the mean of cosine-like scores; with temperature 99 their maximum besides."""
    head = build_head(dict(type='CSRAClsHead', num_classes=3, in_channels=10, num_heads=2, lam=0.5))
    soft, hard = head.csra_heads
    weight = hard.head.weight.flatten(1)
    scores = torch.einsum('ck,nkhw->nchw', weight / weight.norm(dim=1, keepdim=True), MAP).flatten(2)
    torch.testing.assert_close(hard(MAP), scores.mean(2) + 0.5 * scores.amax(2))
    assert (soft(MAP).shape == (4, 3)) and list(head.state_dict()) == [f'csra_heads.{i}.head.weight' for i in (0, 1)]


def test_residual_attention_gives_logits_unless_asked() -> None:
    head = build_head(HEADS['residual-attention'][0])
    logits = head.simple_test(MAP, post_process=False)
    assert torch.equal(logits, head.logits(MAP))
    torch.testing.assert_close(head.simple_test(MAP, sigmoid=True, post_process=False), logits.sigmoid())


@pytest.mark.parametrize('cfg, message', [
    (dict(type='VisionTransformerClsHead', num_classes=-1, in_channels=10), 'VisionTransformerClsHead got num_class'),
    (dict(type='CSRAClsHead', num_heads=3, lam=0.1, **LINEAR), r'num_heads=3 and lam=0\.1; it has 1, 2, 4, 6, 8'),
    (dict(type='CSRAClsHead', num_heads=1, lam=0, **LINEAR), 'lam=0;'),
    (dict(type='CSRAClsHead', num_heads=1, lam=1, num_classes=0, in_channels=3), 'CSRAClsHead got num_classes=0'),
])
def test_bad_options_of_a_head_are_named(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_head(cfg)


@pytest.mark.parametrize('name, features, message', [
    ('vit', (MAP, ), 'output_cls_token=False'),
    ('residual-attention', (VECTOR, ), 'without a neck'),
    ('linear', (MAP, ), 'GlobalAveragePooling'),
])
def test_features_of_the_wrong_kind_are_named(name: str, features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_head(HEADS[name][0]).simple_test(features)


@pytest.mark.parametrize('name, where', [('plain', 'backbone'), ('linear', 'head'), ('vit', 'head')])
def test_a_label_that_does_not_fit_names_the_setting(name: str, where: str) -> None:
    with pytest.raises(IndexError, match=rf'gt_label 10 .*model\.{where}\.num_classes'):
        build_head(HEADS[name][0]).forward_train(forms(name)[0], torch.tensor([0, 1, 2, 10]))
