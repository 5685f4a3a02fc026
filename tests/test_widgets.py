"""Widgets are skins: what they draw comes from a function that is tested here without a browser."""
from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workspace_lib.tools import widgets
from workspace_lib.tools.photos import PHOTOGRAPHS, photograph
from workspace_lib.tools.vis_batch import take_batch
from workspace_lib.tools.vis_hooks import Call, Recording


class Brightness(torch.nn.Module):
    """Says how bright what it sees is: class 1, in percent of white."""

    CLASSES = ('dark', 'bright')

    def __init__(self, steps):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.cfg = SimpleNamespace(filename='c.py', data=SimpleNamespace(test=SimpleNamespace(pipeline=steps)))

    def forward(self, img, return_loss):
        assert not return_loss and img.shape == (1, 3, 224, 224)
        bright = float(img.mean()) / 255
        return [np.array([1 - bright, bright], np.float32)]


STEPS = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(256, -1)), dict(type='CenterCrop', crop_size=224),
         dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]


@pytest.fixture(scope='module')
def square(tmp_path_factory):
    """White in the middle, black around it."""
    import cv2

    image = np.zeros((600, 600, 3), np.uint8)
    image[200:400, 200:400] = 255
    path = tmp_path_factory.mktemp('photo') / 'square.png'
    cv2.imwrite(str(path), image)
    return path


def test_the_larger_the_photograph_the_less_of_it_is_seen(square):
    model = Brightness(STEPS)
    shares = [{row[2]: row[3] for row in widgets.seen_at(model, square, size).table.rows}['bright']
              for size in (224, 448, 672)]
    assert shares == pytest.approx([100 / 9, 400 / 9, 100], abs=2)
    assert model.cfg.data.test.pipeline[1]['size'] == (256, -1), 'the config of the model was changed'


@pytest.mark.parametrize('steps, size, message', [(STEPS, 200, 'smaller than the crop of 224'),
                                                  (STEPS[:1] + STEPS[2:], 256, 'no Resize')])
def test_what_cannot_be_shown_is_said(square, steps, size, message):
    with pytest.raises(ValueError, match=message):
        widgets.seen_at(Brightness(steps), square, size)


def test_every_change_of_a_control_draws_anew(monkeypatch):
    pytest.importorskip('ipywidgets')
    names = list(PHOTOGRAPHS)[:2]
    try:
        photograph(names[0])
    except ModuleNotFoundError:
        pytest.skip('needs scikit-image (extra demo)')
    monkeypatch.setattr(widgets, 'seen_at', lambda model, photo, size: SimpleNamespace(
        _repr_mimebundle_=lambda: {'text/html': f'{photo.name} {size}'}))
    menu, slider, picture = widgets.crop_explorer(None, names).children
    shown = [picture.value]
    slider.value = 480
    shown.append(picture.value)
    menu.value = names[1]
    shown.append(picture.value)
    assert shown == [f'{names[0]} 224', f'{names[0]} 480', f'{names[1]} 480']


TRAIN = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=96, scale=(0.5, 1.0)),
         dict(type='RandomFlip', flip_prob=0.5, direction='horizontal')]


def test_the_numbers_of_a_pipeline_are_named_by_step_and_argument():
    assert widgets.pipeline_arguments(TRAIN) == {
        'RandomResizedCrop.size': (1, 'size', 96), 'RandomResizedCrop.scale': (1, 'scale', 0.5),
        'RandomFlip.flip_prob': (2, 'flip_prob', 0.5)}


def test_other_values_reach_the_steps_and_the_config_stays(square):
    plot = widgets.seen_through(TRAIN, square, {'RandomResizedCrop.size': 32, 'RandomFlip.flip_prob': 1.0})
    assert [(row[0], row[1]) for row in plot.table.rows] == [
        ('LoadImageFromFile', '600x600x3'), ('RandomResizedCrop', '32x32x3'), ('RandomFlip', '32x32x3')]
    assert TRAIN[1]['size'] == 96
    with pytest.raises(KeyError, match='no argument .RandomFlip.prob.*RandomFlip.flip_prob'):
        widgets.seen_through(TRAIN, square, {'RandomFlip.prob': 1})


def test_the_viewer_draws_anew_and_says_what_cannot_be_drawn():
    steps = [*TRAIN[:1], dict(type='CenterCrop', crop_size=200)]
    viewer = widgets.pipeline_viewer(steps, ['chelsea.png', 'coffee.png'])
    *controls, picture = viewer.children
    assert [control.description for control in controls] == ['photograph', 'seed', 'CenterCrop.crop_size']
    before = picture.value
    controls[2].value = 100
    assert picture.value != before and '100x100x3' in picture.value
    controls[0].value = 'coffee.png'
    assert '400x600x3' in picture.value


@pytest.fixture(scope='module')
def digits():
    from workspace_lib import apis
    from workspace_lib.datasets import build_dataset

    cfg = apis.load_config('lenet/lenet5_mnist5k.py', {'seed': 0})
    return apis.build_loader(cfg, 'train', build_dataset(cfg.data.train), torch.device('cpu'))


def labels_in(picture):
    return re.search(r'their labels: ([\d, ]+)\.', picture.value)[1].split(', ')


def test_each_slider_of_the_batch_viewer_shows_other_images(digits):
    epoch, batch, page, picture = widgets.batch_viewer(digits, page=16).children
    assert (epoch.max, batch.max, page.max) == (9, 62, 3)
    for control, value, taken, first in ((page, 1, (0, 0), 16), (batch, 5, (0, 5), 16), (epoch, 3, (3, 5), 16)):
        control.value = value
        labels = take_batch(digits, *taken)[0]['gt_label'][first:first + 16]
        assert labels_in(picture) == [str(label) for label in labels.tolist()]


def test_the_last_batch_has_fewer_pages_and_the_viewer_stays_on_one_of_them(digits, monkeypatch):
    _, batch, page, picture = widgets.batch_viewer(digits, page=16).children
    page.value = 3
    calls = []
    draw = widgets.batch_plot
    monkeypatch.setattr(widgets, 'batch_plot', lambda batch, loader, names, first, count: (
        calls.append(first) or draw(batch, loader, names, first, count)))
    batch.value = 62  # 4,000 digits: the last 32
    assert (page.max, page.value) == (1, 1) and len(labels_in(picture)) == 16
    assert calls == [16], 'one batch was drawn several times'
    page.value = 0
    assert calls == [16, 0]


def test_the_hook_viewer_goes_from_the_run_to_an_iteration():
    recording = Recording(['OptimizerHook', 'Net'], [
        Call('before_run', 'OptimizerHook', 0, 0, 0., 0.1), Call('forward', 'Net', 0, 0, 0.2, 0.1),
        Call('after_train_iter', 'OptimizerHook', 0, 0, 0.3, 0.1), Call('forward', 'Net', 0, 1, 0.5, 0.3),
        Call('after_train_iter', 'OptimizerHook', 0, 1, 0.8, 0.1)])
    slider, picture = widgets.hook_viewer(recording).children
    assert slider.max == 2 and 'Time line of the run' in picture.value
    slider.value = 2
    assert 'Time line of iteration 2' in picture.value and '75.00' in picture.value


def test_a_recording_without_an_iteration_cannot_be_viewed():
    with pytest.raises(ValueError, match='the recording has no iteration'):
        widgets.hook_viewer(Recording(['OptimizerHook', 'Net']))


def test_the_live_picture_changes_where_it_was_displayed(monkeypatch):
    displayed = []
    monkeypatch.setattr('IPython.display.display', displayed.append)
    show = widgets.live_picture()
    before = displayed[0].value
    show(SimpleNamespace(_repr_mimebundle_=lambda: {'text/html': 'drawn'}))
    assert (before, displayed[0].value, len(displayed)) == ('', 'drawn', 1)
