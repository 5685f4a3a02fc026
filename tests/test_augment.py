"""Augmentation steps: mmclassification's pixels at every strength, its choices from the same numbers, clear errors."""
from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
from one_source import one_source  # noqa: F401
from test_transforms import PHOTOGRAPHS, step

from workspace_lib.config import ConfigDict
from workspace_lib.datasets import ImageStep, Pipeline, geometry

ALWAYS = dict(prob=1.)
STRENGTHS = {
    'AutoContrast': [{}], 'Equalize': [{}], 'Invert': [{}],
    'Posterize': [dict(bits=bits) for bits in (0, 0.4, 1, 4, 7, 7.2, 8)],
    'Solarize': [dict(thr=thr) for thr in (0, 25.6, 128, 256 / 9 * 4, 255, 256)],
    'SolarizeAdd': [dict(magnitude=value) for value in (0., 12.3, 99., 110.)] + [dict(magnitude=80., thr=60)],
    'Brightness': [dict(magnitude=value) for value in (0., 0.13, 0.5, 0.81, 0.9, 2.)],
    'Contrast': [dict(magnitude=value) for value in (0., 0.13, 0.5, 0.81, 0.9, 2.)],
    'ColorTransform': [dict(magnitude=value) for value in (0., 0.13, 0.5, 0.81, 0.9, 2.)],
    'Sharpness': [dict(magnitude=value) for value in (0., 0.13, 0.5, 0.81, 0.9, 2.)],
    'Rotate': [dict(angle=30 / 9 * 8), dict(angle=12.5, interpolation='bicubic', pad_val=(104, 116, 124)),
               dict(angle=90., center=(3., 7.), scale=0.7, interpolation='bilinear')],
    'Shear': [dict(magnitude=0.3, direction=way, interpolation=name) for way in ('horizontal', 'vertical')
              for name in ('bicubic', 'nearest')] + [dict(magnitude=0.11, pad_val=(1, 2, 3))],
    'Translate': [dict(magnitude=0.45, direction=way, interpolation=name) for way in ('horizontal', 'vertical')
                  for name in ('bicubic', 'nearest')] + [dict(magnitude=0.09, pad_val=(1, 2, 3))],
    'Cutout': [dict(shape=1), dict(shape=20.9), dict(shape=(9, 31), pad_val=(1, 2, 3)), dict(shape=900)],
}
CASES = [(name, settings) for name, several in STRENGTHS.items() for settings in several]


def theirs(type: str, img: np.ndarray, seed: int, **settings) -> np.ndarray:
    """The image after mmclassification's step."""
    from mmcls.datasets.builder import PIPELINES
    random.seed(seed)
    return PIPELINES.get(type)(**settings)(dict(img=img.copy()))['img']


@pytest.mark.parametrize(('name', 'settings'), CASES, ids=lambda value: str(value))
def test_pixels_are_those_of_mmclassification(name, settings, one_source):  # noqa: F811
    pytest.importorskip('mmcls.datasets')
    for img in PHOTOGRAPHS:
        for seed in range(4):  # both signs, several places
            got = step(name, **settings, **ALWAYS).transform(img, random.Random(seed))
            np.testing.assert_array_equal(got, theirs(name, img, seed, **settings, **ALWAYS))
            assert got.dtype == np.uint8


@pytest.mark.parametrize('img', [np.zeros((5, 6, 3), np.uint8), np.full((30, 40, 3), 255, np.uint8),
                                 np.tile(np.uint8([10, 0, 255]), (20, 20, 1)), np.arange(12, dtype=np.uint8).reshape(
                                     2, 2, 3)], ids=['black', 'white', 'one colour', 'four pixels'])
@pytest.mark.parametrize('name', ['AutoContrast', 'Equalize', 'Contrast', 'ColorTransform', 'Sharpness'])
def test_images_without_contrast_too(name, img, one_source):  # noqa: F811
    pytest.importorskip('mmcls.datasets')
    settings = {**ALWAYS, **STRENGTHS[name][-1]}
    np.testing.assert_array_equal(step(name, **settings).transform(img, random.Random(0)),
                                  theirs(name, img, 0, **settings))


@pytest.mark.parametrize('settings', [
    {}, dict(mode='rand'), dict(mode='rand', fill_color=(103.53, 116.28, 123.675), fill_std=(57.375, 57.12, 58.395)),
    dict(min_area_ratio=0.9, max_area_ratio=1.), dict(aspect_range=0.5, fill_color=7, erase_prob=1.)], ids=str)
def test_random_erasing_paints_what_mmclassification_paints(settings, one_source, monkeypatch):  # noqa: F811
    pytest.importorskip('mmcls.datasets')
    plain = np.random.uniform
    monkeypatch.setattr(np.random, 'uniform', lambda low, high, size=None: plain(low, high) if size is None else
                        np.random.Generator(np.random.PCG64(random.getrandbits(64))).integers(0, 256, size, np.uint8))
    for seed in range(40):
        img = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        before = img.copy()
        np.testing.assert_array_equal(step('RandomErasing', **settings).transform(img, random.Random(seed)),
                                      theirs('RandomErasing', img, seed, **settings))
        np.testing.assert_array_equal(img, before)


def test_random_erasing_covers_its_share_and_no_more():
    img = np.full((100, 150, 3), 9, np.uint8)
    settings = dict(erase_prob=0.5, min_area_ratio=0.1, max_area_ratio=0.2, aspect_range=(0.5, 2.))
    shares = [(step('RandomErasing', **settings).transform(img, random.Random(seed)) == 128).all(2).mean()
              for seed in range(400)]
    hit = [share for share in shares if share]
    assert 0.4 < len(hit) / len(shares) < 0.6
    assert min(hit) > 0.09 and max(hit) < 0.21


def test_random_fill_has_the_mean_and_deviation_asked_for():
    whole = dict(erase_prob=1., min_area_ratio=1., max_area_ratio=1., aspect_range=(1., 1.), mode='rand')
    painter = step('RandomErasing', **whole, fill_color=(100, 120, 140), fill_std=(5, 10, 20))
    filled = painter.transform(np.zeros((300, 300, 3), np.uint8), random.Random(0))
    np.testing.assert_allclose(filled.mean((0, 1)), (99.5, 119.5, 139.5), atol=0.3)
    np.testing.assert_allclose(filled.std((0, 1)), (5, 10, 20), rtol=0.02)


@pytest.mark.parametrize('settings', [dict(brightness=0.4, contrast=0.4, saturation=0.4),
                                      dict(brightness=0., contrast=0.9, saturation=0.1)], ids=str)
def test_color_jitter_is_that_of_mmclassification(settings, one_source):  # noqa: F811
    pytest.importorskip('mmcls.datasets')
    for seed in range(20):
        img = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        np.testing.assert_array_equal(step('ColorJitter', **settings).transform(img, random.Random(seed)),
                                      theirs('ColorJitter', img, seed, **settings))


EIGEN = dict(eigval=[55.4625, 4.794, 1.1475], eigvec=[[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140],
                                                     [-0.5836, -0.6948, 0.4203]])


@pytest.mark.parametrize('settings', [dict(alphastd=0.1), dict(alphastd=25.5, to_rgb=False)], ids=str)
def test_lighting_is_that_of_mmclassification(settings, one_source):  # noqa: F811
    pytest.importorskip('mmcls.datasets')
    for seed in range(8):
        img = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        got = step('Lighting', **EIGEN, **settings).transform(img, random.Random(seed))
        np.testing.assert_allclose(got, theirs('Lighting', img, seed, **EIGEN, **settings), rtol=1e-6, atol=1e-5)
        assert got.dtype == np.float32


def test_lighting_sends_the_pipeline_down_the_float_path(caplog):
    steps = [dict(type='Lighting', **EIGEN), dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])]
    pipeline = Pipeline([*steps, dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])
    assert not pipeline.is_split and 'Lighting' in caplog.text
    first, again, other = (pipeline.item(dict(img=PHOTOGRAPHS[0]), seed)['img'] for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)


POLICIES = [
    dict(type='AutoContrast'), dict(type='Invert'), dict(type='Rotate', magnitude_key='angle', magnitude_range=(0, 30)),
    dict(type='Posterize', magnitude_key='bits', magnitude_range=(4, 0)),
    dict(type='SolarizeAdd', magnitude_key='magnitude', magnitude_range=(0, 110)),
    dict(type='Shear', magnitude_key='magnitude', magnitude_range=(0, 0.3), direction='vertical', pad_val=9),
    dict(type='Cutout', magnitude_key='shape', magnitude_range=(1, 41)),
]


@pytest.mark.parametrize('settings', [
    dict(num_policies=2, magnitude_level=9, total_level=10, magnitude_std=0.5,
         hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic')),
    dict(num_policies=2, magnitude_level=12), dict(num_policies=1, magnitude_level=30, magnitude_std='inf'),
    dict(num_policies=3, magnitude_level=0, magnitude_std=-1),
    dict(num_policies=1, magnitude_level=28, magnitude_std=9)], ids=str)
def test_rand_augment_draws_the_steps_and_strengths_of_mmclassification(settings, one_source):  # noqa: F811
    pytest.importorskip('mmcls.datasets')
    ours = step('RandAugment', policies=POLICIES, **settings)
    for seed in range(60):
        img = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        np.testing.assert_array_equal(ours.transform(img, random.Random(seed)),
                                      theirs('RandAugment', img, seed, policies=POLICIES, **settings))


def test_auto_augment_draws_the_policies_of_mmclassification(one_source):  # noqa: F811
    pytest.importorskip('mmcls.datasets')
    policies = [[dict(type='Posterize', bits=4, prob=0.4), dict(type='Rotate', angle=30., prob=0.6)],
                [dict(type='Solarize', thr=256 / 9 * 4, prob=0.6), dict(type='AutoContrast', prob=0.6)],
                [dict(type='Equalize', prob=0.8)],
                [dict(type='Sharpness', magnitude=0.7, prob=0.4), dict(type='Invert')]]
    ours = step('AutoAugment', policies=policies, hparams=dict(pad_val=15, interpolation='bilinear'))
    for seed in range(60):
        img = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        np.testing.assert_array_equal(
            ours.transform(img, random.Random(seed)),
            theirs('AutoAugment', img, seed, policies=policies, hparams=dict(pad_val=15, interpolation='bilinear')))


def test_hparams_fill_only_what_a_policy_knows_and_leaves_open():
    policies = [dict(type='Rotate', angle=1.), dict(type='Shear', magnitude=.1, pad_val=3), dict(type='Invert')]
    rand = step('RandAugment', policies=policies, num_policies=1, magnitude_level=1,
                hparams=dict(pad_val=15, interpolation='nearest'))
    assert rand.policies == [dict(type='Rotate', angle=1., pad_val=15, interpolation='nearest'),
                             dict(type='Shear', magnitude=.1, pad_val=3, interpolation='nearest'), dict(type='Invert')]
    assert policies[0] == dict(type='Rotate', angle=1.)
    auto = step('AutoAugment', policies=[policies])
    assert auto.policies[0][0]['pad_val'] == 128 and 'interpolation' not in auto.policies[0][0]


def test_steps_of_a_policy_are_built_once_and_not_for_each_image(monkeypatch):
    from workspace_lib.datasets import auto_augment
    rand = step('RandAugment', policies=POLICIES, num_policies=2, magnitude_level=9, magnitude_std=.5)
    monkeypatch.setattr(auto_augment, 'build_from_cfg', None)
    assert rand.transform(PHOTOGRAPHS[0], random.Random(0)).shape == PHOTOGRAPHS[0].shape


def test_augmentation_depends_on_the_seed_alone_and_stays_on_the_fast_path():
    steps = [dict(type='RandAugment', policies=POLICIES, num_policies=2, magnitude_level=9, magnitude_std=.5),
             dict(type='ColorJitter', brightness=.4, contrast=.4, saturation=.4),
             dict(type='RandomErasing', erase_prob=1., mode='rand', fill_std=9.),
             dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])]
    pipeline = Pipeline([*steps, dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])
    assert pipeline.is_split
    state = random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = (pipeline.item(dict(img=PHOTOGRAPHS[0]), seed)['img'] for seed in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other) and first.dtype == np.uint8
    assert state == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize(('name', 'settings'), CASES, ids=lambda value: str(value))
def test_no_step_writes_into_its_image_and_grey_images_pass(name, settings):
    img = PHOTOGRAPHS[0].copy()
    for source in (img, cv2.cvtColor(img, cv2.COLOR_BGR2GRAY), img[:, :, :1], img[::2, 3:50]):
        before = source.copy()
        got = step(name, **settings, **ALWAYS).transform(source, random.Random(0))
        assert got.shape[:2] == source.shape[:2] and got.dtype == np.uint8
        np.testing.assert_array_equal(source, before)


@pytest.mark.parametrize('name', ['Invert', 'Equalize', 'Brightness', 'Rotate', 'RandomErasing'])
def test_float_images_are_refused_with_the_way_out(name):
    always = {'RandomErasing': dict(erase_prob=1.), 'Brightness': dict(magnitude=.1, prob=1.),
              'Rotate': dict(angle=3., prob=1.)}.get(name, ALWAYS)
    with pytest.raises(TypeError, match=f'{name} works on uint8 images.*to_float32'):
        step(name, **always).transform(PHOTOGRAPHS[0].astype(np.float32), random.Random(0))


def test_solarize_add_never_wraps_around():
    bright = np.full((4, 4, 3), 120, np.uint8)
    added = step('SolarizeAdd', magnitude=200, prob=1.).transform(bright, random.Random(0))
    assert (added == 255).all()  # an integer magnitude made 120 + 200 = 64 in mmclassification


class Borrowed:
    def __init__(self, magnitude: float = 1.) -> None:
        self.magnitude = magnitude

    def __call__(self, results):
        return results


def rand(**settings):
    return step('RandAugment', **{**dict(policies=POLICIES, num_policies=2, magnitude_level=9), **settings})


@pytest.mark.parametrize(('make', 'error', 'text'), [
    (lambda: rand(num_policies=1.5), ValueError, 'num_policies=1.5'),
    (lambda: rand(num_policies=-1), ValueError, 'num_policies=-1'),
    (lambda: rand(magnitude_level=None), ValueError, 'magnitude_level=None'),
    (lambda: rand(magnitude_level=-1), ValueError, 'magnitude_level=-1'),
    (lambda: rand(total_level=None), ValueError, 'total_level=None'),
    (lambda: rand(total_level=-30), ValueError, 'total_level=-30'),
    (lambda: rand(magnitude_std=None), ValueError, 'magnitude_std=None'),
    (lambda: rand(magnitude_std='unknown'), ValueError, "or 'inf'"),
    (lambda: rand(policies=[]), ValueError, 'a list of steps'),
    (lambda: rand(magnitude_level=40), ValueError, r'magnitude_level is above total_level \(1\.33 times\)'),
    (lambda: rand(policies=['Invert']), TypeError, "dict with a type; got 'Invert'"),
    (lambda: rand(policies=[dict(magnitude=1)]), TypeError, 'dict with a type'),
    (lambda: rand(policies=[dict(type='Invrt')]), KeyError, 'nearest: Invert'),
    (lambda: rand(policies=[dict(type='Rotate', magnitude_key='angle')]), ValueError, 'magnitude_range=None'),
    (lambda: rand(policies=[dict(type='Rotate', magnitude_key='angel', magnitude_range=(0, 1))]), TypeError, "'angle'"),
    (lambda: rand(policies=[dict(type=Borrowed)]), TypeError, 'derive it from ImageStep'),
    (lambda: step('AutoAugment', policies=[]), ValueError, 'list of lists'),
    (lambda: step('AutoAugment', policies=[[]]), ValueError, 'list of lists'),
    (lambda: step('AutoAugment', policies=[dict(type='Invert')]), ValueError, 'list of lists'),
    (lambda: step('AutoAugment', policies=[[dict(type='Wrong')]]), KeyError, 'Wrong is not in the pipeline registry'),
    (lambda: step('AutoAugment', policies=[[dict(bits=4)]]), TypeError, 'dict with a type'),
    *((lambda name=name, cfg=cfg: step(name, **cfg, prob=100), ValueError, 'prob=100')
      for name, (cfg, *_) in STRENGTHS.items()),
    *((lambda name=name: step(name, **STRENGTHS[name][0], random_negative_prob=100), ValueError, '=100')
      for name in ('Shear', 'Translate', 'Rotate', 'Contrast', 'ColorTransform', 'Brightness', 'Sharpness')),
    *((lambda name=name: step(name, **STRENGTHS[name][0], pad_val=(0, 0)), ValueError, 'three channels')
      for name in ('Rotate', 'Cutout')),
    (lambda: step('Shear', magnitude=.1, direction='diagonal'), ValueError, "'horizontal', 'vertical'"),
    (lambda: step('Translate', magnitude=.1, direction='diagonal'), ValueError, "'horizontal', 'vertical'"),
    (lambda: step('Shear', magnitude=.1, interpolation='cubic'), ValueError, "'bicubic'"),
    (lambda: step('Rotate', angle=1., center=(0,)), ValueError, r'center=\(0,\)'),
    (lambda: step('Posterize', bits=10), ValueError, 'bits=10'),
    (lambda: step('RandomErasing', erase_prob=2.), ValueError, 'erase_prob=2'),
    (lambda: step('RandomErasing', min_area_ratio=.5, max_area_ratio=.1), ValueError, 'the least first'),
    (lambda: step('RandomErasing', aspect_range=(2., 1.)), ValueError, 'least, most'),
    (lambda: step('RandomErasing', aspect_range=(-1., 1.)), ValueError, 'above 0'),
    (lambda: step('RandomErasing', mode='unknown'), ValueError, "'const', 'rand'"),
    (lambda: step('RandomErasing', fill_color=(1, 2)), ValueError, 'fill_color'),
    (lambda: step('RandomErasing', fill_std=(1, 2)), ValueError, 'fill_std'),
    *((lambda name=name, key=key: step(name, **{**STRENGTHS[name][-1], key: None}), TypeError, f'{key}=None; it is a')
      for name, key in (('Shear', 'magnitude'), ('Translate', 'magnitude'), ('Rotate', 'angle'), ('Rotate', 'scale'),
                        ('Solarize', 'thr'), ('SolarizeAdd', 'magnitude'), ('SolarizeAdd', 'thr'),
                        ('Contrast', 'magnitude'), ('ColorTransform', 'magnitude'), ('Brightness', 'magnitude'),
                        ('Sharpness', 'magnitude'))),
    (lambda: step('Lighting', eigval=[1, 2], eigvec=EIGEN['eigvec']), ValueError, r'vectors \(3, n\)'),
])
def test_settings_that_make_no_sense_are_named(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_policy_of_ones_own_is_an_image_step():
    class Half(ImageStep):
        def __init__(self, by: float) -> None:
            self.by = by

        def transform(self, img, rng):
            return (img * self.by).astype(np.uint8)

    policy = ConfigDict(type=Half, magnitude_key='by', magnitude_range=(1., 0.))
    halved = rand(policies=[policy], num_policies=1, magnitude_level=15).transform(PHOTOGRAPHS[0], random.Random(0))
    np.testing.assert_array_equal(halved, PHOTOGRAPHS[0] // 2)
    assert geometry.three(7, 'x') == (7, 7, 7)


@pytest.mark.parametrize('kind', ['Shear', 'Translate', 'Rotate', 'Contrast'])
def test_a_misspelt_setting_of_the_base_class_is_named(kind):
    with pytest.raises(TypeError, match=f"{kind} has no argument 'random_negativ_prob'; did you mean 'random_negative"):
        step(kind, **{**STRENGTHS[kind][-1], 'random_negativ_prob': 0.})
