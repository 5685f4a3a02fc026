"""Pictures of real samples on their way through a pipeline: the right ones, named, in every mode."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
from figures import assert_nothing_is_cut_off

from workspace_lib.datasets import Pipeline, build_dataset
from workspace_lib.tools import plots
from workspace_lib.tools.cli import main
from workspace_lib.tools.vis_pipeline import pipeline_plots, sample_plot

DIGITS = 'lenet/lenet5_mnist5k.py'
STEPS = ['as stored', 'Resize', 'RandomCrop', 'Normalize', 'ImageToTensor']


def drawn(**kwargs):
    return [plot for _, plot in pipeline_plots(DIGITS, number=1, **kwargs)][0]


@pytest.mark.parametrize('mode, steps', [('pipeline', STEPS), ('original', STEPS[:1]), ('transformed', STEPS[-1:]),
                                         ('concat', [STEPS[0], STEPS[-1]])])
def test_each_mode_shows_its_steps_and_names_them_below(mode, steps):
    plot = drawn(mode=mode)
    assert [row[0] for row in plot.table.rows] == steps
    labels = [axes.get_xlabel().split('\n') for axes in plot.figure.axes]
    assert [label[0] for label in labels] == steps
    assert all(label[1:] == [shape, dtype + ' (stretched)' * (dtype != 'uint8')]
               for label, (_, shape, dtype) in zip(labels, plot.table.rows, strict=True))


def test_the_class_is_named_above_at_11_points_or_more():
    plot = drawn()
    assert plot.figure._suptitle.get_text() == 'MNIST5k[0]\n0 - zero'
    assert min(axes.xaxis.label.get_fontsize() for axes in plot.figure.axes) >= 11


@pytest.mark.parametrize('steps', [0, 1, 5])
def test_nothing_is_cut_off_however_many_steps(tmp_path, steps):
    cv2.imwrite(str(tmp_path / 'a_photograph_with_a_long_name.png'), np.zeros((90, 120, 3), np.uint8))
    (tmp_path / 'list.txt').write_text('a_photograph_with_a_long_name.png 0\n')
    dataset = build_dataset(dict(
        type='CustomDataset', data_prefix=str(tmp_path), ann_file=str(tmp_path / 'list.txt'),
        classes=['jaguar, panther, Panthera onca, Felis onca'],
        pipeline=[dict(type='LoadImageFromFile')] + [dict(type='Resize', size=(60 + i, 60 + i)) for i in range(steps)]))
    assert_nothing_is_cut_off(sample_plot(dataset, 0))


def test_samples_are_spread_over_the_data_set():
    names = [name for name, _ in pipeline_plots(DIGITS, 'test', number=4)]
    assert [name.split('_')[0] for name in names] == ['000000', '000250', '000500', '000750']


def test_the_same_seed_draws_the_same_crop():
    def pixels(seed):
        return drawn(seed=seed).figure.axes[2].images[0].get_array()

    assert np.array_equal(pixels(3), pixels(3))
    assert not all(np.array_equal(pixels(3), pixels(seed)) for seed in (4, 5, 6))


def test_a_step_that_writes_into_its_image_is_shown_and_leaves_the_earlier_picture():
    def darken(results):
        results['img'][:] = 7
        return results

    pipeline = Pipeline([dict(type='Resize', size=(4, 4)), darken])
    shown = plots.changes(pipeline, dict(img=np.full((8, 8, 3), 90, np.uint8)))
    assert [int(img.max()) for _, img in shown] == [90, 7]


@pytest.mark.parametrize('change, said', [(dict(mode='sideways'), 'sideways'), (dict(number=0), 'number')])
def test_impossible_requests_are_errors(change, said):
    with pytest.raises(ValueError, match=said):
        list(pipeline_plots(DIGITS, **change))


def test_the_command_writes_a_picture_of_each_sample(tmp_path, capsys):
    assert main(['vis_pipeline', DIGITS, '--number', '2', '--output-dir', str(tmp_path / 'new' / 'folder')]) == 0
    pictures = sorted((tmp_path / 'new' / 'folder').iterdir())
    assert [p.name for p in pictures] == ['000000_MNIST5k[0]_pipeline.png', '002000_MNIST5k[2000]_pipeline.png']
    assert all(cv2.imread(str(p)) is not None for p in pictures)
    assert 'RandomCrop' in capsys.readouterr().out
