"""A batch as a grid: the images as they were before normalisation, each under its own label."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from figures import assert_nothing_is_cut_off

from workspace_lib import apis
from workspace_lib.datasets import build_dataloader, build_dataset
from workspace_lib.tools import vis_batch
from workspace_lib.tools.cli import main

DIGITS = 'lenet/lenet5_mnist5k.py'


@pytest.fixture(scope='module')
def loader():
    cfg = apis.load_config(DIGITS, {'seed': 0})
    return apis.build_loader(cfg, 'train', build_dataset(cfg.data.train), torch.device('cpu'))


def test_a_batch_is_that_of_a_pass_over_the_loader(loader):
    loader.set_epoch(3)
    expected = list(loader)
    for number in (0, 5, len(loader) - 1):
        batch, names = vis_batch.take_batch(loader, 3, number)
        assert torch.equal(batch['img'], expected[number]['img'])
        assert len(names) == len(batch['img']) and names == loader.files(3, number)


def test_a_batch_that_is_not_there_is_named(loader):
    with pytest.raises(IndexError, match='batch 63 .* 0 to 62'):
        vis_batch.take_batch(loader, 0, 63)


def coloured(**norm):
    """A loader of four images of one colour each, as a data set of arrays would give them."""
    dataset = build_dataset(dict(type='MNIST5k', test_mode=True, pipeline=[
        dict(type='Normalize', **norm), dict(type='ImageToTensor', keys=['img']),
        dict(type='ToTensor', keys=['gt_label']), dict(type='Collect', keys=['img', 'gt_label'])]))
    dataset.data_infos.images = np.zeros((4, 8, 8, 3), np.uint8)
    dataset.data_infos.images[:] = np.array([[200, 100, 50], [0, 0, 0], [255, 255, 255], [10, 20, 30]])[:, None, None]
    dataset.data_infos.labels = np.array([7, 1, 2, 3])
    return build_dataloader(dataset, 4, 0, shuffle=False)


@pytest.mark.parametrize('to_rgb', [True, False])
def test_normalised_images_are_shown_as_they_were(to_rgb):
    loader = coloured(mean=[120., 110., 100.], std=[50., 60., 70.], to_rgb=to_rgb)
    plot = vis_batch.batch_plot(next(iter(loader)), loader)
    shown = [axes.images[0].get_array() for axes in plot.figure.axes if axes.images]
    assert np.allclose(255 * np.array([image[0, 0] for image in shown]),
                       [[50, 100, 200], [0, 0, 0], [255, 255, 255], [30, 20, 10]], atol=0.01)  # RGB of the BGR above


def test_each_image_stands_under_its_label_and_the_table_names_its_file(loader):
    batch, names = vis_batch.take_batch(loader)
    plot = vis_batch.batch_plot(batch, loader, names=names, first=8, count=5)
    labels = batch['gt_label'][8:13].tolist()
    assert [axes.get_title() for axes in plot.figure.axes if axes.images] == [str(label) for label in labels]
    assert plot.table.rows == [(8 + i, loader.dataset.CLASSES[label], name)
                               for i, (label, name) in enumerate(zip(labels, names[8:13], strict=True))]
    assert plot.alt == ('Images 8 to 12 of a batch (64, 1, 32, 32) of float32, their labels: '
                        + ', '.join(map(str, labels)) + '.')
    assert_nothing_is_cut_off(plot)


@pytest.mark.parametrize('label, said', [
    (torch.tensor(2), 'shark'), (torch.tensor([0., 0.7, 0.3]), 'goldfish 70 %\nshark 30 %'),
    (torch.tensor([1., 0., 0.]), 'tench'), (torch.tensor([1, 0, 1]), 'tench\nshark'),
    (torch.tensor([0, 0, 0]), 'none')])
def test_labels_are_told_in_words(label, said):
    assert vis_batch.label_text(label, ('tench, Tinca', 'goldfish', 'shark')) == said


def test_a_batch_without_labels_or_classes_is_drawn_too():
    loader = coloured(mean=[0.] * 3, std=[1.] * 3, to_rgb=False)
    loader.dataset.CLASSES = None
    batch = next(iter(loader))
    assert vis_batch.batch_plot(batch, loader).table.rows[0][:2] == (0, '7')
    assert vis_batch.batch_plot(dict(img=batch['img']), loader).table.rows[0][:2] == (0, '')


def test_past_the_end_is_an_error(loader):
    batch, _ = vis_batch.take_batch(loader)
    with pytest.raises(IndexError, match='64'):
        vis_batch.batch_plot(batch, loader, first=64)


def test_an_epoch_below_0_is_named(loader):
    with pytest.raises(IndexError, match='epoch -1: they are counted from 0'):
        vis_batch.take_batch(loader, -1)


@pytest.mark.parametrize('more, message', [
    (dict(columns=0), '0 columns; at least 1'), (dict(names=['a.png'] * 3), '3 names for 64 images')])
def test_a_grid_that_cannot_be_is_refused(loader, more, message):
    batch, _ = vis_batch.take_batch(loader)
    with pytest.raises(ValueError, match=message):
        vis_batch.batch_plot(batch, loader, **more)


def test_images_of_two_channels_are_refused(loader):
    with pytest.raises(ValueError, match='images of 2 channels cannot be drawn'):
        vis_batch.batch_plot(dict(img=torch.zeros(4, 2, 8, 8)), loader)


@pytest.mark.parametrize('arguments, message', [
    (['--epoch', '-1'], 'error: epoch -1'), (['--batch', '63'], 'error: batch 63'),
    (['--number', '0'], 'error: 0 images')])
def test_the_command_says_what_is_not_there_without_a_class(tmp_path, capsys, arguments, message):
    assert main(['vis_batch', DIGITS, '--out', str(tmp_path / 'batch.png'), *arguments]) == 1
    assert capsys.readouterr().err.startswith(message)


def test_a_batch_of_tests_has_the_labels_of_its_data_set(tmp_path, capsys):
    dataset = build_dataset(apis.load_config(DIGITS).data.test, dict(test_mode=True))
    out = tmp_path / 'batch.png'
    assert main(['vis_batch', DIGITS, '--part', 'test', '--batch', '1', '--number', '5', '--out', str(out)]) == 0
    said = [line.split()[1:2] for line in capsys.readouterr().out.splitlines() if line.split()[:1] and
            line.split()[0].isdigit()]
    size = apis.load_config(DIGITS).data.samples_per_gpu
    labels = dataset.get_gt_labels()[size:size + 5]
    assert said == [[str(dataset.CLASSES[label]).split()[0]] for label in labels]


def test_images_without_annotations_stay_without_labels():
    class Bare:
        dataset = object()

    batch = dict(img=torch.zeros(4, 1, 8, 8))
    assert vis_batch.with_labels(batch, Bare(), 0, 0) is batch


def test_the_command_draws_the_batch_of_an_epoch(tmp_path, capsys, loader):
    out = tmp_path / 'batch.png'
    assert main(['vis_batch', DIGITS, '--epoch', '2', '--batch', '1', '--number', '6', '--seed', '0',
                 '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert out.stat().st_size > 3000
    assert [name for name in loader.files(2, 1)[:6] if name not in said] == []
