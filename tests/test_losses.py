"""Losses against the formulas themselves."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from workspace_lib.models import CrossEntropyLoss, LabelSmoothLoss

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
    (lambda: LabelSmoothLoss(1.0), r'label_smooth_val=1.0; it lies in \[0, 1\)'),
    (lambda: LabelSmoothLoss(0.1, mode='classic'), "mode='classic'; known: original"),
    (lambda: LabelSmoothLoss(0.1, num_classes=10)(LOGITS, INDEX), r'num_classes=10 .* there are 3 logits'),
    (lambda: CrossEntropyLoss(use_sigmoid=True)(LOGITS, INDEX), r'\(2, 3\), but has \(2,\)'),
    (lambda: CrossEntropyLoss(reduction='sum')(LOGITS, INDEX, avg_factor=2), 'avg_factor'),
])
def test_misuse_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
