"""Losses against the formulas themselves."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from workspace_lib.models import AsymmetricLoss, CrossEntropyLoss, FocalLoss, LabelSmoothLoss, build_loss

LOGITS = torch.tensor([[2., 0., -1.], [0., 1., 0.]])
INDEX = torch.tensor([0, 2])
SOFT = torch.tensor([[0.7, 0.3, 0.], [0., 0., 1.]])


def test_cross_entropy_of_even_logits_is_log_of_classes() -> None:
    assert CrossEntropyLoss()(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))


def test_index_and_one_hot_labels_agree() -> None:
    one_hot = F.one_hot(INDEX)
    torch.testing.assert_close(CrossEntropyLoss()(LOGITS, INDEX), CrossEntropyLoss(use_soft=True)(LOGITS, one_hot))


def test_soft_label_is_the_mean_of_its_classes() -> None:
    loss = CrossEntropyLoss(use_soft=True, reduction='none')
    mixed = 0.7 * loss(LOGITS, torch.tensor([0, 2])) + 0.3 * loss(LOGITS, torch.tensor([1, 2]))
    torch.testing.assert_close(loss(LOGITS, SOFT), mixed)


def test_soft_labels_need_no_option() -> None:
    assert torch.equal(CrossEntropyLoss()(LOGITS, SOFT), CrossEntropyLoss(use_soft=True)(LOGITS, SOFT))


def test_use_soft_takes_indices_too() -> None:
    assert torch.equal(CrossEntropyLoss(use_soft=True)(LOGITS, INDEX), CrossEntropyLoss()(LOGITS, INDEX))


def test_class_weight_scales_the_samples_of_a_class() -> None:
    plain = CrossEntropyLoss(reduction='none')(LOGITS, INDEX)
    weighted = CrossEntropyLoss(reduction='none', class_weight=[1, 1, 5.])(LOGITS, INDEX)
    torch.testing.assert_close(weighted, plain * torch.tensor([1., 5.]))


def test_loss_weight_scales_everything() -> None:
    torch.testing.assert_close(CrossEntropyLoss(loss_weight=0.5)(LOGITS, INDEX) * 2, CrossEntropyLoss()(LOGITS, INDEX))


def test_sigmoid_asks_every_class() -> None:
    label = torch.tensor([[1, 0, 1], [0, 0, 0]])
    probability = LOGITS.sigmoid()
    by_hand = -torch.where(label == 1, probability.log(), (1 - probability).log())
    torch.testing.assert_close(CrossEntropyLoss(use_sigmoid=True, reduction='none')(LOGITS, label), by_hand)


def test_pos_weight_scales_the_positives() -> None:
    loss = CrossEntropyLoss(use_sigmoid=True, reduction='none', pos_weight=[3., 3, 3])
    plain = CrossEntropyLoss(use_sigmoid=True, reduction='none')
    ones = torch.ones_like(LOGITS)
    torch.testing.assert_close(loss(LOGITS, ones), 3 * plain(LOGITS, ones))
    assert torch.equal(loss(LOGITS, 0 * ones), plain(LOGITS, 0 * ones))


def test_sample_weight_and_avg_factor() -> None:
    each = CrossEntropyLoss(reduction='none')(LOGITS, INDEX)
    loss = CrossEntropyLoss()(LOGITS, INDEX, weight=torch.tensor([0, 1]), avg_factor=4)
    torch.testing.assert_close(loss, each[1] / 4)


@pytest.mark.parametrize('mode, on, off', [
    ('original', 0.9 + 0.1 / 3, 0.1 / 3),
    ('classy_vision', (1 + 0.1 / 3) / 1.1, 0.1 / 3 / 1.1),
    ('multi_label', 0.9, 0.1),
])
def test_smoothed_label(mode: str, on: float, off: float) -> None:
    smooth = LabelSmoothLoss(0.1, mode=mode).smooth_label(INDEX, 3)
    torch.testing.assert_close(smooth, torch.tensor([[on, off, off], [off, off, on]]))


def test_original_mode_is_torch_label_smoothing() -> None:
    torch.testing.assert_close(LabelSmoothLoss(0.1)(LOGITS, INDEX), F.cross_entropy(LOGITS, INDEX, label_smoothing=0.1))


def test_label_smoothing_heeds_its_weight_and_reduction() -> None:
    each = LabelSmoothLoss(0.1, reduction='none')(LOGITS, INDEX)
    torch.testing.assert_close(LabelSmoothLoss(0.1, loss_weight=0.5, reduction='sum')(LOGITS, INDEX), each.sum() / 2)


def test_label_smoothing_without_num_classes_serves_any_width() -> None:
    loss = LabelSmoothLoss(0.1)
    assert loss(torch.zeros(1, 3), torch.tensor([0])) < loss(torch.zeros(1, 9), torch.tensor([0]))


@pytest.mark.parametrize('make, message', [
    (lambda: CrossEntropyLoss(use_sigmoid=True, use_soft=True), 'choose one'),
    (lambda: CrossEntropyLoss(reduction='avg'), "reduction='avg'"),
    (lambda: LabelSmoothLoss(0.1, reduction='avg'), "reduction='avg'"),
    (lambda: LabelSmoothLoss('0.1'), r"label_smooth_val='0.1'; it lies in"),
    (lambda: FocalLoss(reduction='avg'), "FocalLoss got reduction='avg'"),
    (lambda: AsymmetricLoss()(LOGITS, SOFT[:, :2]), r'\(2, 3\), but has \(2, 2\)'),
    (lambda: LabelSmoothLoss(1.0), r'label_smooth_val=1.0; it lies in \[0, 1\)'),
    (lambda: LabelSmoothLoss(0.1, mode='classic'), "mode='classic'; known: original"),
    (lambda: LabelSmoothLoss(0.1, num_classes=10)(LOGITS, INDEX), r'num_classes=10 .* there are 3 logits'),
    (lambda: CrossEntropyLoss(use_sigmoid=True)(LOGITS, INDEX), r'\(2, 3\), but has \(2,\)'),
    (lambda: CrossEntropyLoss(reduction='sum')(LOGITS, INDEX, avg_factor=2), 'avg_factor'),
])
def test_misuse_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Values that other implementations give (mmclassification's, timm's and ClassyVision's), by kind of loss.
STEEP, STEEP_INDEX = torch.tensor([[-1000., 1000.], [100., -100.]]), torch.tensor([0, 1])
BINARY = torch.tensor([[-200., 100.], [500., -1000.], [300., -300.]]), torch.tensor([[1., 0.], [0., 1.], [1., 0.]])
THREE = torch.tensor([[5., -5., 0.], [5., -5., 0.]])
THREE_MULTI = torch.tensor([[1., 0., 1.], [0., 1., 0.]])
CE, FOCAL, ASYMMETRIC = (dict(type=f'{kind}Loss') for kind in ('CrossEntropy', 'Focal', 'Asymmetric'))
SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1)
OF_CLASSES = dict(class_weight=[0.3, 0.7])
SIGMOID = dict(CE, use_sigmoid=True)
SINGLE = dict(ASYMMETRIC, gamma_pos=0., gamma_neg=0., clip=None, use_sigmoid=False)
SINGLE_HOT = torch.tensor([[1., 0., 0.], [0., 1., 0.]])
KNOWN = [
    ('index', CE, STEEP, STEEP_INDEX, None, 1100.),
    ('index, weighted', CE, STEEP, STEEP_INDEX, [0.6, 0.4], 640.),
    ('index, classes', dict(CE, **OF_CLASSES), STEEP, STEEP_INDEX, None, 370.),
    ('index, classes, weighted', dict(CE, **OF_CLASSES), STEEP, STEEP_INDEX, [0.6, 0.4], 208.),
    ('sigmoid', SIGMOID, *BINARY, None, 300.),
    ('sigmoid, weighted', SIGMOID, *BINARY, [0.6, 0.4, 0.5], 130.),
    ('sigmoid, classes', dict(SIGMOID, class_weight=[0.1, 0.9]), *BINARY, None, 176.667),
    ('sigmoid, classes, weighted', dict(SIGMOID, class_weight=[0.1, 0.9]), *BINARY, [0.6, 0.4, 0.5], 74.333),
    ('sigmoid, positives', dict(SIGMOID, pos_weight=[0.1, 0.2]), *BINARY, None, 136.6667),
    ('soft', dict(CE, use_soft=True), STEEP, torch.eye(2), None, 1100.),
    ('soft, weighted', dict(CE, use_soft=True), STEEP, torch.eye(2), [0.6, 0.4], 640.),
    ('soft, classes', dict(CE, use_soft=True, **OF_CLASSES), STEEP, torch.eye(2), None, 370.),
    ('soft, classes, weighted', dict(CE, use_soft=True, **OF_CLASSES), STEEP, torch.eye(2), [0.6, 0.4], 208.),
    ('smooth', dict(SMOOTH, mode='original'), torch.tensor([[1., -1.]]), torch.tensor([0]), None, 0.2269),
    ('smooth, classy', dict(SMOOTH, mode='classy_vision'), torch.tensor([[1., -1.]]), torch.tensor([0]), None, 0.2178),
    ('focal', FOCAL, THREE, THREE_MULTI, None, 0.8522),
    ('focal, weighted', FOCAL, THREE, THREE_MULTI, [0.5, 0.5], 0.8522 / 2),
    ('focal, index', FOCAL, THREE, torch.tensor([0, 1]), None, 0.86664125),
    ('focal, index, weighted', FOCAL, THREE, torch.tensor([0, 1]), [0.5, 0.5], 0.86664125 / 2),
    ('asymmetric', dict(ASYMMETRIC, gamma_pos=1.), THREE, THREE_MULTI, None, 3.80845 / 3),
    ('asymmetric, weighted', dict(ASYMMETRIC, gamma_pos=1.), THREE, THREE_MULTI, [0.5, 0.5], 3.80845 / 6),
    ('asymmetric, all', dict(ASYMMETRIC, gamma_pos=1., clip=None), THREE, THREE_MULTI, None, 5.1186 / 3),
    ('asymmetric, softmax', SINGLE, THREE, torch.tensor([0, 1]), None, 2.5045),
    ('asymmetric, softmax, weighted', SINGLE, THREE, torch.tensor([0, 1]), [0.5, 0.5], 2.5045 / 2),
    ('asymmetric, softmax, soft', SINGLE, THREE, SINGLE_HOT, None, 2.5045),
    ('asymmetric, softmax, soft, weighted', SINGLE, THREE, SINGLE_HOT, [0.5, 0.5], 2.5045 / 2),
]


@pytest.mark.parametrize('cfg, logits, label, weight, value', [case[1:] for case in KNOWN],
                         ids=[case[0] for case in KNOWN])
def test_known_value(cfg: dict, logits: torch.Tensor, label: torch.Tensor, weight: list | None, value: float) -> None:
    loss = build_loss(cfg)(logits, label, weight=None if weight is None else torch.tensor(weight))
    assert loss.item() == pytest.approx(value, rel=2e-4)  # they are known to four digits


def test_smoothing_per_class_is_a_binary_cross_entropy() -> None:
    logits, label = torch.tensor([[1., -1., 1.]]), torch.tensor([[1, 0, 1]])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[0.9, 0.1, 0.9]]))
    torch.testing.assert_close(LabelSmoothLoss(0.1, mode='multi_label')(logits, label), expected)


def test_smoothing_mixed_labels_mixes_smoothed_ones() -> None:
    loss, logits = LabelSmoothLoss(0.1, num_classes=3), torch.tensor([[1., -1., 0.]])
    one, other = torch.tensor([[1., 0., 0.]]), torch.tensor([[0., 0., 1.]])
    mixed = 0.6 * loss(logits, one) + 0.4 * loss(logits, other)
    torch.testing.assert_close(loss(logits, 0.6 * one + 0.4 * other), mixed)


def test_half_the_sample_weight_halves_a_smoothed_loss() -> None:
    logits = torch.tensor([[1., -1.], [1., -1.]])
    whole, half = (LabelSmoothLoss(0.1)(logits, torch.tensor([0, 1]), weight=w) for w in (None, torch.full((2, ), 0.5)))
    torch.testing.assert_close(half, whole / 2)


def test_focal_loss_without_focus_is_half_the_sigmoid_loss() -> None:
    label = torch.tensor([[1., 0., 1.], [0., 0., 0.]])
    torch.testing.assert_close(FocalLoss(gamma=0., alpha=0.5)(LOGITS, label),
                               CrossEntropyLoss(use_sigmoid=True)(LOGITS, label) / 2)


def test_asymmetric_loss_without_gammas_and_clip_is_the_sigmoid_loss() -> None:
    label = torch.tensor([[1., 0., 1.], [0., 0., 0.]])
    torch.testing.assert_close(AsymmetricLoss(gamma_neg=0., clip=None)(LOGITS, label),
                               CrossEntropyLoss(use_sigmoid=True)(LOGITS, label))


def test_a_column_of_labels_for_one_class_is_no_index() -> None:
    logits, label = torch.tensor([[2.], [-1.]]), torch.tensor([[0.], [1.]])
    torch.testing.assert_close(FocalLoss(gamma=0., alpha=0.5)(logits, label),
                               F.binary_cross_entropy_with_logits(logits, label) / 2)


def test_asymmetric_loss_leaves_out_easy_negatives() -> None:
    assert AsymmetricLoss(clip=0.05)(torch.tensor([[-4.]]), torch.tensor([[0.]])) == 0  # p = 0.018
    assert AsymmetricLoss(clip=None)(torch.tensor([[-4.]]), torch.tensor([[0.]])) > 0
