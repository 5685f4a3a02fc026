"""Pipeline steps: mmclassification's pixels, its distributions, and the fast form equal to the written one."""
from __future__ import annotations

import logging
import random

import cv2
import numpy as np
import pytest
import torch

from workspace_lib.datasets import ImageStep, Pipeline
from workspace_lib.datasets.pipeline import DeviceStage
from workspace_lib.datasets.transforms import Normalize
from workspace_lib.registry import PIPELINES, build_from_cfg

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
CIFAR = dict(mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], to_rgb=False)
LENET = dict(mean=[33.46], std=[78.87], to_rgb=True)
TO_TENSOR = [dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
             dict(type='Collect', keys=['img', 'gt_label'])]


def photographs() -> list[np.ndarray]:
    """uint8 BGR: noise of awkward sizes, and real photographs where their packages are installed."""
    noise = np.random.default_rng(0)
    images = [cv2.GaussianBlur(noise.integers(0, 256, (h, w, 3), np.uint8), (5, 5), 1)
              for h, w in ((61, 83), (83, 61), (40, 40), (7, 120))]
    try:
        from skimage import data
        images += [data.chelsea()[:, :, ::-1].copy(), data.coffee()[:, :, ::-1].copy()]
    except ImportError:
        pass
    return images


PHOTOGRAPHS = photographs()


def step(type: str, **settings) -> ImageStep:
    return build_from_cfg(dict(type=type, **settings), PIPELINES)


def run(type: str, img: np.ndarray, seed: int = 0, **settings) -> np.ndarray:
    return step(type, **settings).transform(img, random.Random(seed))


DETERMINISTIC = [
    dict(type='Resize', size=32), dict(type='Resize', size=(48, 20)), dict(type='Resize', size=(32, -1)),
    *(dict(type='Resize', size=(40, -1), adaptive_side=side) for side in ('short', 'long', 'height', 'width')),
    *(dict(type='Resize', size=(50, 30), interpolation=name)
      for name in ('nearest', 'bilinear', 'bicubic', 'area', 'lanczos')),
    *(dict(type='Resize', size=(36, -1), interpolation=name, backend='pillow')
      for name in ('nearest', 'bilinear', 'bicubic', 'box', 'lanczos', 'hamming')),
    dict(type='CenterCrop', crop_size=32), dict(type='CenterCrop', crop_size=(25, 44)),
    dict(type='CenterCrop', crop_size=500),
    dict(type='CenterCrop', crop_size=33, efficientnet_style=True),
    dict(type='CenterCrop', crop_size=224, efficientnet_style=True, crop_padding=5, interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=31, efficientnet_style=True, interpolation='bicubic', backend='pillow'),
    dict(type='Pad', size=(90, 130)), dict(type='Pad', size=(90, 130), pad_val=(3, 4, 5)),
    dict(type='Pad', pad_to_square=True, padding_mode='edge'),
    dict(type='Pad', size=(100, 100), padding_mode='reflect'),
    dict(type='Pad', size=(100, 100), padding_mode='symmetric'),
    dict(type='RandomFlip', flip_prob=1.), dict(type='RandomFlip', flip_prob=1., direction='vertical'),
    dict(type='RandomFlip', flip_prob=0.),
    dict(type='RandomGrayscale', gray_prob=1.), dict(type='RandomGrayscale', gray_prob=0.),
]


@pytest.mark.parametrize('cfg', DETERMINISTIC, ids=lambda cfg: ' '.join(map(str, cfg.values())))
def test_pixels_and_keys_are_those_of_mmclassification(cfg):
    theirs = pytest.importorskip('mmcls.datasets.pipelines.compose').Compose([cfg])
    ours = Pipeline([cfg])
    for img in PHOTOGRAPHS:
        expected, got = theirs(dict(img=img, img_shape=img.shape)), ours(dict(img=img, img_shape=img.shape))
        np.testing.assert_array_equal(got['img'], expected['img'])
        assert got.keys() == expected.keys()
        assert got['img_shape'] == got['img'].shape


@pytest.mark.parametrize('cfg', [IMAGENET, CIFAR], ids=['to RGB', 'as it is'])
def test_normalize_equals_mmclassification_within_rounding(cfg):
    theirs = pytest.importorskip('mmcls.datasets.pipelines.transforms').Normalize(**cfg)
    for img in PHOTOGRAPHS:
        got, expected = step('Normalize', **cfg)(dict(img=img)), theirs(dict(img=img))
        assert got['img'].dtype == np.float32
        np.testing.assert_allclose(got['img'], expected['img'], rtol=1e-6, atol=1e-6)
        assert got['img_norm_cfg'].keys() == expected['img_norm_cfg'].keys()


@pytest.mark.parametrize('settings', [
    {}, dict(scale=(0.25, 0.5), ratio=(0.5, 2.)), dict(scale=(2., 3.)), dict(scale=(0.99, 1.), max_attempts=1),
    dict(max_attempts=0)], ids=str)
def test_random_resized_crop_draws_the_boxes_of_mmclassification(settings):
    theirs = pytest.importorskip('mmcls.datasets.pipelines.transforms').RandomResizedCrop(size=32, **settings)
    ours = step('RandomResizedCrop', size=32, **settings)
    for seed in range(300):
        img = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        random.seed(seed)
        ymin, xmin, ymax, xmax = theirs.get_params(img, theirs.scale, theirs.ratio, theirs.max_attempts)
        box = ours.box(*img.shape[:2], random.Random(seed))
        assert box == (ymin, xmin, ymax - ymin + 1, xmax - xmin + 1)


@pytest.mark.parametrize('settings', [{}, dict(min_covered=0.5), dict(scale=(0.9, 1.), max_attempts=1),
                                      dict(max_attempts=0), dict(interpolation='bicubic', backend='pillow')], ids=str)
def test_efficientnet_style_crop_gives_the_pixels_of_mmclassification(settings):
    settings = dict(size=48, efficientnet_style=True, **settings)
    theirs = pytest.importorskip('mmcls.datasets.pipelines.transforms').RandomResizedCrop(**settings)
    ours = step('RandomResizedCrop', **settings)
    for seed in range(100):
        img = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        random.seed(seed)
        expected = theirs(dict(img=img))['img']
        np.testing.assert_array_equal(ours.transform(img, random.Random(seed)), expected)


@pytest.mark.parametrize('settings', [
    dict(size=32, padding=4), dict(size=30, padding=(3, 9)), dict(size=(20, 33), padding=(1, 2, 3, 4)),
    dict(size=90, pad_if_needed=True, padding_mode='symmetric'), dict(size=(100, 50), pad_if_needed=True)], ids=str)
def test_random_crop_gives_the_pixels_of_mmclassification(settings):
    theirs = pytest.importorskip('mmcls.datasets.pipelines.transforms').RandomCrop(**settings)
    ours = step('RandomCrop', **settings)
    for seed in range(40):
        img = PHOTOGRAPHS[seed % 3]
        random.seed(seed)
        expected = theirs(dict(img=img))['img']
        np.testing.assert_array_equal(ours.transform(img, random.Random(seed)), expected)


def test_random_resized_crop_spreads_area_and_aspect_as_the_paper_says():
    draw, rng = step('RandomResizedCrop', size=8), random.Random(1)
    boxes = np.array([draw.box(500, 500, rng) for _ in range(4000)])
    top, left, h, w = boxes.T
    share, aspect = h * w / 500**2, w / h
    assert (top >= 0).all() and (top + h <= 500).all() and (left >= 0).all() and (left + w <= 500).all()
    assert share.min() > 0.078 and share.max() < 1.01 and aspect.min() > 0.74 and aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.02  # log-uniform, so symmetric
    assert 0.45 < share.mean() < 0.55  # uniform over 0.08 .. 1, less the boxes that do not fit


def test_random_flip_flips_as_often_as_it_should():
    img, flip, rng = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), step('RandomFlip', flip_prob=0.3), random.Random(2)
    flips = sum(not np.array_equal(flip.transform(img, rng), img) for _ in range(4000))
    assert abs(flips / 4000 - 0.3) < 0.03


def test_random_flip_in_the_results_says_what_it_did():
    img = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for seed in range(8):
        results = step('RandomFlip')(dict(img=img, rng=random.Random(seed)))
        assert results['flip'] is not np.array_equal(results['img'], img)
        assert results['flip_direction'] == 'horizontal'


@pytest.mark.parametrize('name', ['RandomResizedCrop', 'RandomCrop'])
def test_img_shape_is_the_shape_of_the_image(name):
    img = PHOTOGRAPHS[0]
    assert step(name, size=20)({'img': img, 'img_shape': img.shape})['img_shape'] == (20, 20, 3)


@pytest.mark.parametrize('cfg', [{'type': 'Resize', 'size': [20, -1]}, {'type': 'CenterCrop', 'crop_size': [9, 8]},
                                 {'type': 'RandomCrop', 'size': [20, 30], 'padding': [1, 2]}], ids=str)
def test_sizes_may_be_lists(cfg):
    as_tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
    np.testing.assert_array_equal(run(img=PHOTOGRAPHS[0], **cfg), run(img=PHOTOGRAPHS[0], **as_tuples))


def test_one_pad_value_is_for_all_channels():
    padded = run('Pad', np.zeros((2, 2, 3), np.uint8), size=(3, 3), pad_val=128)
    assert (padded[2] == 128).all() and (padded[:2, 2] == 128).all()


def test_padding_mode_holds_for_padding_too():
    img = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    cropped = run('RandomCrop', img, size=5, padding=1, padding_mode='edge')
    np.testing.assert_array_equal(cropped[0], [1, 1, 2, 3, 3])


@pytest.mark.parametrize('shape', [(40, 30), (40, 30, 1)], ids=['(H, W)', '(H, W, 1)'])
@pytest.mark.parametrize('cfg', [cfg for cfg in DETERMINISTIC if cfg.get('pad_val', 0) == 0],
                         ids=lambda cfg: ' '.join(map(str, cfg.values())))
def test_one_channel_stays_one_channel(cfg, shape):
    img = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    made = step(**cfg).transform(img, random.Random(0))
    assert made.ndim == 2 or made.shape[2] == 1


@pytest.mark.parametrize('type, settings', [
    ('Resize', dict(size=8, interpolation='cubic')), ('Resize', dict(size=8, interpolation='area', backend='pillow')),
    ('Resize', dict(size=(8, 8, 3))), ('Resize', dict(size=(-1, 8))), ('Resize', dict(size=8, backend='opencv')),
    ('Resize', dict(size=(8, -1), adaptive_side='shorter')), ('CenterCrop', dict(crop_size=0)),
    ('CenterCrop', dict(crop_size=(8, 8), efficientnet_style=True)), ('RandomFlip', dict(flip_prob=2)),
    ('RandomFlip', dict(direction='diagonal')), ('RandomResizedCrop', dict(size=8, scale=(1, 0.1))),
    ('RandomResizedCrop', dict(size=8, min_covered=-1)), ('RandomCrop', dict(size=8, padding=(1, 2, 3))),
    ('RandomCrop', dict(size=8, padding_mode='wrap')), ('Pad', {}), ('Pad', dict(size=8, pad_to_square=True)),
    ('Normalize', dict(mean=[1, 2, 3], std=[1])), ('Normalize', dict(mean=[1], std=[0])),
    ('LoadImageFromFile', dict(color_type='bgr')),
    ('LoadImageFromFile', dict(file_client_args=dict(backend='petrel')))], ids=str)
def test_wrong_settings_are_refused(type, settings):
    with pytest.raises(ValueError, match='got|takes|both'):
        step(type, **settings)


def test_random_crop_of_too_small_an_image_says_so():
    with pytest.raises(ValueError, match=r'40 x 40, smaller than size=\(64, 64\); set pad_if_needed'):
        run('RandomCrop', PHOTOGRAPHS[2], size=64)


def test_steps_show_their_settings():
    assert repr(step('RandomFlip')) == "RandomFlip(flip_prob=0.5, direction='horizontal')"


def test_the_dict_form_draws_from_the_global_random():
    img, crop = PHOTOGRAPHS[0], step('RandomResizedCrop', size=20)
    random.seed(5)
    np.testing.assert_array_equal(crop(dict(img=img))['img'], crop.transform(img, random.Random(5)))


# the two forms of a pipeline

PIPELINE_CASES = {
    'ImageNet train': [dict(type='RandomResizedCrop', size=64), dict(type='RandomFlip'),
                       dict(type='Normalize', **IMAGENET), *TO_TENSOR],
    'ImageNet test': [dict(type='Resize', size=(72, -1)), dict(type='CenterCrop', crop_size=40),
                      dict(type='Normalize', **IMAGENET), *TO_TENSOR],
    'Lite0': [dict(type='Resize', size=(72, -1), interpolation='bicubic', backend='pillow'),
              dict(type='CenterCrop', crop_size=64), dict(type='Normalize', mean=[127.] * 3, std=[128.] * 3),
              *TO_TENSOR],
    'CIFAR train': [dict(type='RandomCrop', size=32, padding=4, pad_if_needed=True), dict(type='RandomFlip'),
                    dict(type='Normalize', **CIFAR), *TO_TENSOR],
    'one mean for all channels': [dict(type='Resize', size=24), dict(type='Normalize', mean=[100.], std=[50.]),
                                  *TO_TENSOR],
    'no Normalize': [dict(type='RandomResizedCrop', size=16), *TO_TENSOR],
}


def info(img: np.ndarray) -> dict:
    return dict(img=img, gt_label=np.array(3))


def written(pipeline: Pipeline, img: np.ndarray, seed: int) -> torch.Tensor:
    return pipeline(dict(info(img), rng=random.Random(seed)))['img'].float()


def fast(pipeline: Pipeline, img: np.ndarray, seed: int, stage: DeviceStage | None = None) -> torch.Tensor:
    item = pipeline.item(info(img), seed)
    assert item['img'].dtype == np.uint8
    batch = torch.from_numpy(item['img'].copy()).permute(2, 0, 1)[None]
    return (stage or pipeline.device_stage)(batch)[0]


@pytest.mark.parametrize('name', PIPELINE_CASES)
def test_the_fast_form_equals_the_written_form(name):
    pipeline = Pipeline(PIPELINE_CASES[name])
    assert pipeline.is_split
    for seed, img in enumerate(PHOTOGRAPHS):
        torch.testing.assert_close(fast(pipeline, img, seed), written(pipeline, img, seed), rtol=0, atol=0)


@pytest.mark.parametrize('shape', [(28, 28), (28, 28, 1)], ids=['(H, W)', '(H, W, 1)'])
def test_the_fast_form_equals_the_written_form_for_grey_digits(shape):
    img = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    pipeline = Pipeline([dict(type='Resize', size=32), dict(type='Normalize', **LENET), *TO_TENSOR])
    made = fast(pipeline, img, 0)
    assert made.shape == (1, 32, 32)
    torch.testing.assert_close(made, written(pipeline, img, 0), rtol=0, atol=0)


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('cfg', [IMAGENET, CIFAR, LENET, dict(mean=[100.], std=[50.])], ids=str)
def test_the_formula_of_the_device_equals_the_table_of_the_cpu(cfg, device):
    if device == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    channels = len(cfg['mean']) if cfg is LENET else 3
    batch = torch.randint(0, 256, (4, 9, 7, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    normalize = Normalize(**cfg)
    stage = DeviceStage(normalize)
    made = stage._by_formula(batch.to(device), normalize)
    torch.testing.assert_close(made.cpu(), stage(batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', PIPELINE_CASES)
def test_the_written_form_equals_mmclassification(name):
    theirs = pytest.importorskip('mmcls.datasets.pipelines.compose').Compose
    steps = [{**cfg, 'flip_prob': 1.} if cfg['type'] == 'RandomFlip' else cfg for cfg in PIPELINE_CASES[name]]
    for seed, img in enumerate(PHOTOGRAPHS):
        random.seed(seed)
        expected = theirs(steps)(info(img))['img'] if name != 'no Normalize' else None
        random.seed(seed)
        made = Pipeline(steps)(info(img))
        if expected is not None:
            torch.testing.assert_close(made['img'], expected, rtol=1e-6, atol=1e-6)
        assert made['gt_label'].dtype == torch.int64 and made['img_metas']['img_shape'] == (*made['img'].shape[1:], 3)


def test_float_counts_as_normalised():
    batch = torch.randn(2, 3, 4, 4)
    assert DeviceStage(Normalize(**IMAGENET))(batch) is batch


def test_a_number_of_channels_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match='1 channels'):
        DeviceStage(Normalize(**IMAGENET))(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


class AddOne:
    """A borrowed step: it knows the results dictionary only, and draws from numpy's global generator."""

    def __call__(self, results):
        results['img'] = results['img'] + np.random.randint(1, 3)
        return results


class Darken(ImageStep):
    """A user's own step, written as ours are."""

    def transform(self, img, rng):
        return img // 2


class Whiten(Darken):
    def transform(self, img, rng):
        return img / 255


class HonestWhiten(Whiten):
    keeps_uint8 = False


OBSTACLES = {
    'a borrowed step': ([AddOne(), dict(type='Normalize', **IMAGENET)], 'AddOne takes the whole results dictionary'),
    'a function': ([lambda results: results], '<lambda> takes the whole'),
    'float pixels': ([dict(type='LoadImageFromFile', to_float32=True)], 'to_float32=True'),
    'a step that makes float': ([HonestWhiten()], 'HonestWhiten comes where images are float'),
    'a step after Normalize': ([dict(type='Normalize', **IMAGENET), dict(type='RandomFlip')], 'RandomFlip comes'),
    'other keys': ([dict(type='Collect', keys=['img', 'weight'])], 'Collect asks for weight'),
    '(H, W, C) tensors': ([dict(type='ToTensor', keys=['img'])], 'ToTensor leaves img'),
}


@pytest.mark.parametrize('name', OBSTACLES)
def test_what_cannot_be_split_runs_as_written_and_the_log_says_why(name, caplog):
    steps, reason = OBSTACLES[name]
    with caplog.at_level(logging.WARNING):
        pipeline = Pipeline(steps)
    assert not pipeline.is_split
    assert reason in caplog.text


def test_a_borrowed_step_runs_and_is_seeded_and_leaves_the_generators_alone():
    pipeline = Pipeline([AddOne(), dict(type='RandomResizedCrop', size=16), dict(type='Normalize', **IMAGENET),
                         *TO_TENSOR])
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, again, other = (pipeline.item(info(PHOTOGRAPHS[0]), seed)['img'] for seed in (1, 1, 2))
    assert first.shape == (3, 16, 16) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert pipeline.device_stage(first[None]) is not None


def test_a_users_image_step_stays_on_the_fast_path():
    pipeline = Pipeline([Darken(), dict(type='Normalize', **IMAGENET), *TO_TENSOR])
    assert pipeline.is_split
    torch.testing.assert_close(fast(pipeline, PHOTOGRAPHS[0], 0), written(pipeline, PHOTOGRAPHS[0], 0))


def test_an_image_step_that_makes_float_unasked_is_an_error():
    with pytest.raises(TypeError, match='float64 before Normalize; .*keeps_uint8 = False'):
        Pipeline([Whiten(), dict(type='Normalize', **IMAGENET)]).item(info(PHOTOGRAPHS[0]))


def test_no_step_writes_into_its_input():
    for cfgs in PIPELINE_CASES.values():
        img = PHOTOGRAPHS[0].copy()
        Pipeline(cfgs).item(info(img), 1)
        np.testing.assert_array_equal(img, PHOTOGRAPHS[0])


def test_a_sample_depends_on_its_seed_alone():
    pipeline = Pipeline(PIPELINE_CASES['ImageNet train'])
    random.seed(1)
    first = pipeline.item(info(PHOTOGRAPHS[1]), 77)['img']
    random.seed(2)
    np.testing.assert_array_equal(pipeline.item(info(PHOTOGRAPHS[1]), 77)['img'], first)
    assert not np.array_equal(pipeline.item(info(PHOTOGRAPHS[1]), 78)['img'], first)


def test_only_collected_keys_are_in_an_item():
    assert Pipeline([dict(type='Collect', keys=['img'])]).item(info(PHOTOGRAPHS[0])).keys() == {'img'}


@pytest.mark.parametrize('extra', [[], [AddOne()]], ids=['fast', 'as written'])
def test_batch_of_one_is_ready_for_the_model(tmp_path, extra):
    file = tmp_path / 'a.png'
    cv2.imwrite(str(file), PHOTOGRAPHS[0])
    steps = [dict(type='LoadImageFromFile'), *extra, dict(type='Resize', size=20), dict(type='Normalize', **IMAGENET),
             dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]
    batch = Pipeline(steps).batch_of_one(dict(img_prefix=str(tmp_path), img_info=dict(filename='a.png')))
    assert batch.keys() == {'img'}
    assert (batch['img'].shape, batch['img'].dtype) == ((1, 3, 20, 20), torch.float32)


def test_load_image_from_file_sets_the_keys_of_mmclassification(tmp_path):
    theirs = pytest.importorskip('mmcls.datasets.pipelines.loading').LoadImageFromFile
    cv2.imwrite(str(tmp_path / 'a.jpg'), PHOTOGRAPHS[0])
    for prefix, name in ((str(tmp_path), 'a.jpg'), (None, str(tmp_path / 'a.jpg'))):
        for settings in ({}, dict(to_float32=True), dict(color_type='grayscale')):
            sample = dict(img_prefix=prefix, img_info=dict(filename=name))
            expected, got = theirs(**settings)(dict(sample)), step('LoadImageFromFile', **settings)(dict(sample))
            assert got.keys() == expected.keys()
            for key in ('filename', 'ori_filename', 'img_shape', 'ori_shape'):
                assert got[key] == expected[key]
            np.testing.assert_array_equal(got['img'], expected['img'])
            assert got['img'].dtype == expected['img'].dtype
            assert got['img_norm_cfg']['mean'].tolist() == expected['img_norm_cfg']['mean'].tolist()


def test_to_tensor_takes_what_mmclassification_takes():
    theirs = pytest.importorskip('mmcls.datasets.pipelines.formatting').ToTensor(keys=['x'])
    for value in (3, 0.5, [1, 2], np.array(4), np.array([1., 2.]), torch.tensor([1])):
        expected, got = theirs(dict(x=value))['x'], step('ToTensor', keys=['x'])(dict(x=value))['x']
        assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_a_step_that_is_none_of_both_is_refused():
    with pytest.raises(TypeError, match="a dict with a type, or a callable; got .*'Resize'"):
        Pipeline(['Resize'])
