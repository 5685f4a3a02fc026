"""ImageClassifier, heads, neck and weights at the start."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workspace_lib.models import ImageClassifier, build_classifier, build_head, build_neck, initialize
from workspace_lib.models.init import BaseModule

HEAD = dict(type='LinearClsHead', num_classes=10, in_channels=512)


def resnet18(head: dict | None = None, **kwargs: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return build_classifier(dict(
        type='ImageClassifier', backbone=dict(type='ResNet_CIFAR', depth=18, num_stages=4),
        neck=dict(type='GlobalAveragePooling'), head={**HEAD, **(head or {})}, **kwargs))


def lenet(**head: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return build_classifier(dict(type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=10),
                                 head=dict(type='ClsHead', **head)))


DIGITS = dict(img=torch.randn(4, 1, 32, 32), gt_label=torch.tensor([0, 1, 2, 3]))


def test_forward_takes_a_batch_either_way() -> None:
    model = lenet()
    assert set(model(**DIGITS)) == {'loss'}
    scores = model(return_loss=False, **DIGITS)
    assert len(scores) == 4 and all(isinstance(s, np.ndarray) and s.shape == (10,) for s in scores)
    assert np.allclose([s.sum() for s in scores], 1)


def test_train_step_keeps_its_numbers_on_the_device() -> None:
    out = lenet(topk=(1, 5), cal_acc=True).train_step(DIGITS)
    assert out['num_samples'] == 4 and out['loss'].requires_grad
    assert set(out['log_vars']) == {'loss', 'top-1', 'top-5'}
    assert all(isinstance(v, torch.Tensor) and not v.requires_grad for v in out['log_vars'].values())


def test_losses_add_up_by_name() -> None:
    one = torch.tensor(1., requires_grad=True)
    loss, log_vars = ImageClassifier.parse_losses(
        dict(loss_a=torch.stack([one, one * 3]), loss_b=[one, one * 2], accuracy={'top-1': one * 50}))
    assert loss.item() == 5 and loss.requires_grad
    assert {k: v.item() for k, v in log_vars.items()} == {'loss_a': 2, 'loss_b': 3, 'top-1': 50, 'loss': 5}


@pytest.mark.parametrize('losses, error', [(dict(loss=3.0), TypeError), (dict(acc=torch.tensor(1.)), ValueError)])
def test_losses_of_another_kind_are_refused(losses: dict, error: type[Exception]) -> None:
    with pytest.raises(error, match='the head returned'):
        ImageClassifier.parse_losses(losses)


@pytest.mark.parametrize('stage, shape', [('backbone', (2, 512, 4, 4)), ('neck', (2, 512)), ('pre_logits', (2, 512))])
def test_extract_feat_stops_where_told(stage: str, shape: tuple) -> None:
    features = resnet18().eval().extract_feat(torch.randn(2, 3, 32, 32), stage)
    assert isinstance(features, torch.Tensor) == (stage == 'pre_logits')
    assert (features if stage == 'pre_logits' else features[0]).shape == shape


def test_features_of_a_transformer_are_tokens() -> None:
    model = build_classifier(dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch='deit-tiny', img_size=32, out_indices=[-2, -1]),
        head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=192, hidden_dim=30)))
    images = torch.randn(2, 3, 32, 32)
    for stage in ('backbone', 'neck'):
        features = model.extract_feat(images, stage)
        assert [[tuple(token.shape) for token in tokens] for tokens in features] == [[(2, 192, 2, 2), (2, 192)]] * 2
    assert model.extract_feat(images, 'pre_logits').shape == (2, 30)
    assert len(model.eval()(images, return_loss=False)) == 2


def test_extract_feats_takes_one_batch_after_another() -> None:
    model = resnet18().eval()
    batches = [torch.randn(n, 3, 32, 32) for n in (1, 2)]
    for features, images in zip(model.extract_feats(batches, 'pre_logits'), batches, strict=True):
        assert torch.equal(features, model.extract_feat(images, 'pre_logits'))
        assert torch.equal(features, model.forward_dummy(images))


def test_extract_feat_refuses_another_stage() -> None:
    with pytest.raises(ValueError, match="stage='head'; known: backbone, neck, pre_logits"):
        lenet().extract_feat(DIGITS['img'], 'head')


def test_bytes_are_not_images_yet() -> None:
    with pytest.raises(TypeError, match=r'torch\.uint8'):
        lenet()(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), return_loss=False)


def test_a_list_of_one_batch_is_that_batch() -> None:
    model = lenet()
    assert np.array_equal(model([DIGITS['img']], return_loss=False), model(DIGITS['img'], return_loss=False))
    with pytest.raises(NotImplementedError, match='test-time augmentation'):
        model([DIGITS['img']] * 2, return_loss=False)


def test_bf16_scores_come_back_as_numpy() -> None:
    with torch.autocast('cpu', torch.bfloat16):
        scores = lenet()(DIGITS['img'], return_loss=False, softmax=False)
    assert scores[0].dtype == np.float32


def test_model_exports_to_a_graph_of_tensors() -> None:
    model = lenet().eval()
    graph = torch.export.export(model, (DIGITS['img'],), dict(return_loss=False)).module()
    with torch.no_grad():
        np.testing.assert_allclose(graph(DIGITS['img'], return_loss=False), model(DIGITS['img'], return_loss=False),
                                   rtol=1e-5)


def test_mixing_that_did_not_happen_is_an_error() -> None:
    model = resnet18(train_cfg=dict(augments=dict(type='BatchMixup', alpha=0.2, num_classes=10, prob=1.)))
    batch = dict(img=torch.randn(2, 3, 32, 32), gt_label=torch.tensor([1, 2]))
    with pytest.raises(NotImplementedError, match='train_cfg.augments'):
        model(**batch)
    assert 'loss' in model(batch['img'], gt_label=torch.full((2, 10), 0.1))  # mixed labels: the loader did it
    assert 'loss' in model.eval()(**batch)


def test_label_out_of_range_says_which_setting() -> None:
    with pytest.raises(IndexError, match=r'gt_label 10 but the head has num_classes=10 \(model\.head\.num_classes\)'):
        resnet18()(torch.randn(2, 3, 32, 32), gt_label=torch.tensor([3, 10]))
    with pytest.raises(IndexError, match=r'gt_label -1 .*model\.backbone\.num_classes'):
        lenet()(DIGITS['img'], gt_label=torch.tensor([0, 1, 2, -1]))


def test_channel_mismatch_names_both_numbers() -> None:
    with pytest.raises(ValueError, match='in_channels=2048, but backbone and neck give 512'):
        resnet18(dict(in_channels=2048))(torch.randn(2, 3, 32, 32), return_loss=False)


def test_missing_neck_is_suspected() -> None:
    with pytest.raises(ValueError, match='GlobalAveragePooling'):
        build_head(HEAD).simple_test((torch.randn(2, 512, 7, 7),))


@pytest.mark.parametrize('cfg, message', [
    ({**HEAD, 'num_classes': 0}, 'LinearClsHead got num_classes=0'),
    (dict(type='ClsHead', topk=(0, 5)), r'topk=\(0, 5\)'),
    (dict(type='GlobalAveragePooling', dim=4), 'dim=4; known: 1, 2, 3'),
])
def test_bad_options_are_named(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_head(cfg)


def test_accuracy_counts_the_highest_logit_even_below_zero() -> None:
    head = build_head(dict(type='ClsHead', cal_acc=True))
    losses = head.loss(torch.tensor([[-3., -1., -2.], [-1., -2., -3.]]), torch.tensor([1, 1]))
    assert losses['accuracy']['top-1'].item() == 50


def test_topk_may_be_a_list() -> None:
    assert build_head(dict(type='ClsHead', topk=[1, 5])).topk == (1, 5)


def test_mixed_labels_have_no_accuracy() -> None:
    with pytest.raises(ValueError, match='cal_acc'):
        build_head(dict(type='ClsHead', cal_acc=True)).loss(torch.randn(2, 3), torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize('dim', [1, 2, 3])
def test_global_average_pooling_is_the_mean(dim: int) -> None:
    x = torch.randn(2, 5, *(3,) * dim)
    neck = build_neck(dict(type='GlobalAveragePooling', dim=dim))
    torch.testing.assert_close(neck(x), x.flatten(2).mean(-1))
    assert [y.shape for y in neck((x, x[:1]))] == [(2, 5), (1, 5)]


def test_first_weights_follow_the_config() -> None:
    model = resnet18()
    model.init_weights()
    block = model.backbone.layer1[0]
    assert block.bn1.weight.eq(1).all() and block.bn2.weight.eq(0).all()  # a block starts as the identity
    assert block.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05) and model.head.fc.bias.eq(0).all()


def test_init_weights_runs_once() -> None:
    backbone = resnet18().backbone
    backbone.init_weights()
    trained = nn.init.ones_(backbone.layer1[0].bn2.weight)
    with pytest.warns(UserWarning, match='init_weights of ResNet_CIFAR ran before'):
        backbone.init_weights()
    assert trained.eq(1).all()


def test_pretrained_model_keeps_what_it_loaded(tmp_path: Path) -> None:
    source = resnet18()
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'source.pth')
    model = resnet18(pretrained=str(tmp_path / 'source.pth'))
    with torch.no_grad():
        model.head.fc.weight.zero_()
    model.init_weights()
    ours, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pretrained_backbone_takes_its_part_only(tmp_path: Path) -> None:
    source = resnet18()
    nn.init.normal_(source.backbone.layer1[0].bn2.weight)  # what zero_init_residual would wipe out
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'source.pth')
    model = build_classifier(dict(
        type='ImageClassifier', neck=dict(type='GlobalAveragePooling'), head=HEAD,
        backbone=dict(type='ResNet_CIFAR', depth=18, init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'source.pth'), prefix='backbone'))))
    model.init_weights()
    ours, theirs = model.backbone.state_dict(), source.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(model.head.fc.weight, source.head.fc.weight)


@pytest.mark.parametrize('cfg, message', [
    (dict(type='Kaimin', layer='Linear'), "type='Kaimin'; known: Constant"),
    (dict(type='Kaiming', layer='Linear', distribution='beta'), "distribution='beta'"),
    (dict(type='Constant', val=1, override=dict(name='fc')), "overrides 'fc', but Sequential has only 0"),
    (dict(type='Constant', val=1, override=dict(type='Normal')), "needs the 'name'"),
    (dict(type='Constant', val=1, override=dict(name='0', std=1)), "needs a 'type' beside std"),
])
def test_bad_init_cfg_is_named(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initialize(nn.Sequential(nn.Linear(2, 2)), cfg)


def test_children_have_the_last_word() -> None:
    class Outer(BaseModule):
        def __init__(self) -> None:
            super().__init__(dict(type='Constant', val=1, layer='Linear'))
            self.inner = Inner()
            self.own = nn.Linear(2, 2)

    class Inner(BaseModule):
        def __init__(self) -> None:
            super().__init__(dict(type='Constant', val=2, layer='Linear'))
            self.fc = nn.Linear(2, 2)

    outer = Outer()
    outer.init_weights()
    assert outer.own.weight.eq(1).all() and outer.inner.fc.weight.eq(2).all()


def test_result_is_drawn_and_written(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    image = np.zeros((120, 200, 3), np.uint8)
    image[..., 0] = 255  # blue, in BGR
    out = tmp_path / 'new' / 'drawn.png'
    drawn = lenet().show_result(image, dict(pred_class='digit', pred_score=0.5), out_file=out)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert tuple(drawn[-1, -1]) == (255, 0, 0) and (drawn != image).any()
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(out))[..., ::-1], drawn)
    assert lenet().show_result(str(out), {}).shape == image.shape


def test_small_grey_image_is_enlarged_to_write_on() -> None:
    pytest.importorskip('matplotlib')
    assert lenet().show_result(np.zeros((28, 28), np.uint8), dict(pred_label=7)).shape == (224, 224, 3)
