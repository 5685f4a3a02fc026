"""EfficientFormer's head of two classifiers: mmclassification's scores, and a training that it refuses."""
from __future__ import annotations

import warnings

import pytest
import torch

from workspace_lib.models import build_head

CFG = dict(type='EfficientFormerClsHead', num_classes=4, in_channels=6)


def test_both_classifiers_of_efficientformer_learn_from_the_labels():
    head, features, label = build_head(CFG), torch.randn(3, 6), torch.tensor([0, 3, 1])
    loss = head.forward_train((features,), label)['loss']
    mean = (head.head(features) + head.dist_head(features)) / 2
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(mean, label))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


@pytest.mark.parametrize('distillation', [True, False])
def test_scores_of_efficientformer_equal_mmclassification(distillation):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        theirs = pytest.importorskip('mmcls.models').build_head(dict(CFG, distillation=distillation))
    ours, features = build_head(dict(CFG, distillation=distillation)), torch.randn(3, 6)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours.simple_test((features,), post_process=False),
                               theirs.simple_test((features,), post_process=False))


def test_efficientformer_without_classes_is_an_error():
    with pytest.raises(ValueError, match='num_classes=0'):
        build_head(dict(CFG, num_classes=0))
