"""The pipelines of all recipes of mmclassification 0.25: the tensors that it makes of real photographs, made here."""
from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from one_source import one_source  # noqa: F401

from workspace_lib.config import Config
from workspace_lib.datasets import BatchAugments, Pipeline, build_dataset
from workspace_lib.registry import DATASETS, SAMPLERS

mmcls = pytest.importorskip('mmcls')
RECIPES = [path for path in sorted((Path(mmcls.__file__).parent / '.mim' / 'configs').rglob('*.py'))
           if '_base_' not in path.parts]
# their base file does not exist
BROKEN = {'mobilenet-v3-small_8xb16_cifar10.py', 'mobilenet_v3_small_cifar.py'}


def recipes() -> Iterator[dict]:
    for path in RECIPES:
        if path.name not in BROKEN:
            yield Config.fromfile(str(path)).to_dict()


def pipelines(*splits: str) -> dict[str, list]:
    """The different ones, each under the name of the first recipe that has it."""
    found: dict[str, tuple[str, list]] = {}
    for path in RECIPES:
        if path.name not in BROKEN:
            data = Config.fromfile(str(path)).to_dict()['data']
            for split in splits:
                steps = data[split]['pipeline']
                found.setdefault(repr(steps), (f'{split} {path.stem}', steps))
    return dict(found.values())


with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)  # of recipes under their old names
    TEST, TRAIN = pipelines('val', 'test'), pipelines('train')


def photographs(folder: Path) -> list[str]:
    """Real ones, of several shapes, as JPEG and PNG files."""
    data = pytest.importorskip('skimage.data')
    images = dict(chelsea=data.chelsea(), coffee=data.coffee(), rocket=data.rocket(), astronaut=data.astronaut())
    files = []
    for name, img in images.items():
        files.append(str(folder / f'{name}.{"png" if name == "coffee" else "jpg"}'))
        cv2.imwrite(files[-1], img[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    tall = cv2.rotate(images['coffee'][:300], cv2.ROTATE_90_CLOCKWISE)
    files.append(str(folder / 'tall.jpg'))
    cv2.imwrite(files[-1], tall)
    return files


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> list[str]:
    return photographs(tmp_path_factory.mktemp('photographs'))


def samples(steps: list, files: list[str]) -> list[dict]:
    """What the data sets give to these steps: file names, or the images of CIFAR and MNIST."""
    if steps[0]['type'] == 'LoadImageFromFile':
        return [dict(img_prefix=None, img_info=dict(filename=file), gt_label=np.array(3)) for file in files]
    grey = any(step['type'] == 'Normalize' and len(step['mean']) == 1 for step in steps)
    small = [cv2.resize(cv2.imread(file), (32, 32), interpolation=cv2.INTER_AREA) for file in files]
    return [dict(img=cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)[:28, :28] if grey else img, gt_label=np.array(3))
            for img in small]


def theirs(steps: list, sample: dict) -> torch.Tensor:
    from mmcls.datasets.pipelines import Compose
    img = Compose(steps)(dict(sample))['img']
    return img.float()


def pixel_error(got: torch.Tensor, expected: torch.Tensor, steps: list) -> float:
    """Mean absolute difference, in steps of a pixel's 0..255."""
    std = next(step['std'] for step in steps if step['type'] == 'Normalize')
    assert got.shape == expected.shape
    return float(((got - expected).abs() * torch.tensor(std).view(-1, 1, 1)).mean())


@pytest.mark.parametrize('name', TEST)
def test_test_tensors_are_those_of_mmclassification(name, files):
    steps = TEST[name]
    pipeline = Pipeline(steps)
    assert pipeline.is_split
    for sample in samples(steps, files):
        batch = pipeline.batch_of_one(sample)['img']
        assert batch.dtype == torch.float32
        # the aim is 1; half precision, of one recipe, keeps 11 bits
        limit = 0.1 if any(step['type'] == 'ToHalf' for step in steps) else 1e-4
        assert pixel_error(batch[0], theirs(steps, sample), steps) < limit


@pytest.mark.parametrize('name', TRAIN)
def test_train_tensors_are_those_of_mmclassification_from_the_same_numbers(name, files, one_source):  # noqa: F811
    steps = TRAIN[name]
    pipeline = Pipeline(steps)
    floats = any(step['type'] == 'Lighting' for step in steps)
    assert pipeline.is_split is not floats
    for seed, sample in enumerate(samples(steps, files)):
        random.seed(seed)
        expected = theirs(steps, sample)
        if floats:  # the written form draws from the global generators, seeded by `item`
            random.seed(seed)
            img = pipeline(dict(sample))['img'].float()
        else:
            img = pipeline.device_stage(torch.from_numpy(pipeline.item(sample, seed)['img']).permute(2, 0, 1)[None])[0]
        limit = 0.1 if any(step['type'] == 'ToHalf' for step in steps) else 1e-4
        assert pixel_error(img, expected, steps) < limit


@pytest.mark.filterwarnings('ignore:The config file .* will be deprecated:DeprecationWarning')
def test_data_sets_samplers_and_mixing_of_every_recipe_are_here():
    seen, mixed = {'MNIST', 'CIFAR10', 'CIFAR100'}, 0  # these would be downloaded
    for cfg in recipes():
        for split in ('train', 'val', 'test'):
            section = {key: value for key, value in cfg['data'][split].items() if key != 'pipeline'}
            assert DATASETS.get(section['type']) is not None
            if section['type'] not in seen and repr(section) not in seen:
                seen.add(repr(section))
                with pytest.raises(FileNotFoundError, match='data'):  # all arguments are known, the data are not here
                    build_dataset({**section, 'pipeline': []}, dict(test_mode=split != 'train'))
        if cfg.get('sampler'):
            assert cfg['sampler']['type'] in SAMPLERS
        if augments := (cfg['model'].get('train_cfg') or {}).get('augments'):
            mixed += 1
            assert sum(augment.prob for augment in BatchAugments(augments).augments) == pytest.approx(1)
    assert mixed == 67 and len(seen) > 10


def test_what_was_compared():
    assert len(RECIPES) == 282
    assert len(TEST) > 40 and len(TRAIN) > 30
