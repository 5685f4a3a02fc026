"""The smallest native recipe of each family beside mmclassification: pipeline, logits, a training step."""
from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reduced import SIZES, image_size, loaded
from table import committed
from tiny_data import photographs

from workspace_lib.datasets import Pipeline
from workspace_lib.models import build_classifier

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]
NATIVE = [name for name, status in (committed() or dict(recipes={}))['recipes'].items() if status == 'native']
FAMILIES = sorted({name.partition('/')[0] for name in NATIVE})


def smallest(family: str) -> Any:
    """The config of the recipe with the fewest parameters."""
    def size(cfg: Any) -> int:
        with torch.device('meta'):
            return sum(p.numel() for p in build_classifier(copy.deepcopy(cfg.model)).parameters())

    configs = [loaded(name) for name in NATIVE if name.startswith(f'{family}/')]
    for cfg in configs:
        for part in (cfg.model, cfg.model.backbone):
            for key in ('pretrained', 'init_cfg') if 'Pretrained' in str(part.get('init_cfg')) else ('pretrained',):
                part.pop(key, None)
        cfg.model.pop('train_cfg', None)  # images are mixed by the loader here, by the model there
    return min(configs, key=size)


def pair(cfg: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and theirs with the same weights, and statistics of norms that are not those of the start."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from mmcls.models import build_classifier as build
    torch.manual_seed(0)
    ours = build_classifier(copy.deepcopy(cfg.model))
    for name, tensor in ours.state_dict().items():
        if name.endswith('running_mean'):
            tensor.normal_(std=0.1)
        elif name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5)
    theirs = build(copy.deepcopy(cfg.model))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def batch(cfg: Any) -> dict[str, torch.Tensor]:
    """Two photographs as the recipe normalises them, and labels of the kind that its head takes."""
    size = min(SIZES.get(cfg.model.backbone.type, image_size(cfg)), image_size(cfg))
    norm = next(step for step in cfg.data.test.pipeline if step['type'] == 'Normalize')
    images = np.stack([cv2.resize(image, (size, size)) for image in photographs()[:2]]).astype(np.float64)
    images = (images if len(norm['mean']) == 3 else images.mean(3, keepdims=True)) - np.array(norm['mean'])
    img = torch.from_numpy(images / np.array(norm['std'])).permute(0, 3, 1, 2).float().contiguous()
    count = next(part.num_classes for part in (cfg.model.get('head'), cfg.model.backbone) if 'num_classes' in part)
    label = torch.tensor([1, count - 1])
    if cfg.model.head.type.startswith('MultiLabel') or cfg.model.head.type == 'CSRAClsHead':
        label = torch.nn.functional.one_hot(label, count)
    return dict(img=img, gt_label=label)


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_the_same(family: str) -> None:
    cfg = smallest(family)
    ours, theirs = (model.eval() for model in pair(cfg))
    with torch.no_grad():
        scores = [np.stack(model(batch(cfg)['img'], return_loss=False)) for model in (ours, theirs)]
        heads = [model.head.simple_test(model.extract_feat(batch(cfg)['img']), post_process=False, **{
            'sigmoid' if 'MultiLabel' in cfg.model.head.type or 'CSRA' in cfg.model.head.type else 'softmax': False})
            for model in (ours, theirs)]
    assert ((heads[0] - heads[1]).norm() / heads[1].norm()).item() <= 1e-5
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_training_step_is_the_same(family: str) -> None:
    """In float64, where statistics of a few values do not magnify rounding; with the same seed for what is dropped."""
    cfg = smallest(family)
    data = batch(cfg)
    data['img'] = data['img'].double()
    models = [model.double().train() for model in pair(cfg)]
    losses = []
    for model in models:
        torch.manual_seed(5)
        losses.append(model.train_step({key: value.clone() for key, value in data.items()}, None)['loss'])
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    ours, theirs = ({name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in models)
    assert ours.keys() == theirs.keys()
    floor = 1e-9 * float(torch.cat([grad.flatten() for grad in theirs.values()]).norm())  # a bias before BN has none
    far = [name for name, grad in theirs.items() if (ours[name] - grad).norm() > 1e-5 * grad.norm() + floor]
    assert far == []


@pytest.mark.parametrize('family', FAMILIES)
def test_the_test_pipeline_gives_the_same_tensor(family: str, tmp_path: Path) -> None:
    from mmcls.datasets.pipelines import Compose

    steps = smallest(family).data.test.pipeline
    norm = next(step for step in steps if step['type'] == 'Normalize')
    for i, image in enumerate(photographs(300)):
        path = tmp_path / f'{i}.png'
        cv2.imwrite(str(path), image)
        loads = steps[0]['type'] == 'LoadImageFromFile'
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if len(norm['mean']) == 1 else image
        info = dict(img_prefix=str(tmp_path), img_info=dict(filename=path.name)) if loads else dict(img=grey)
        if not loads and len(steps) and not any(step['type'] == 'Resize' for step in steps):
            info = dict(img=cv2.resize(grey, (32, 32)))  # CIFAR's images come in their size
        info['gt_label'] = np.array(0, np.int64)
        ours = Pipeline(copy.deepcopy(steps)).batch_of_one(copy.deepcopy(info))['img'][0].float()
        theirs = Compose(copy.deepcopy(steps))(copy.deepcopy(info))['img'].float()
        assert ours.shape == theirs.shape
        levels = (ours - theirs).abs() * torch.tensor(norm['std']).view(-1, 1, 1)
        assert levels.mean().item() <= 1
