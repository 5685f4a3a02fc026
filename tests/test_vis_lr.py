"""The drawn learning rate is the one that a training logs."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from figures import assert_nothing_is_cut_off

from workspace_lib.tools.cli import main
from workspace_lib.tools.vis_lr import lr_plot

DIGITS = 'lenet/lenet5_mnist5k.py'


def curve(plot):
    return plot.figure.axes[0].lines[0].get_ydata()


def recipe(tmp_config, lr_config: str, runner: str = "dict(type='EpochBasedRunner', max_epochs=3)") -> str:
    return tmp_config(f"optimizer = dict(type='SGD', lr=0.5)\nlr_config = {lr_config}\nrunner = {runner}\n")


def test_the_curve_is_what_a_training_logs(tmp_path):
    options = {'runner.max_epochs': 2, 'log_config.interval': 1, 'checkpoint_config': None}
    from workspace_lib.tools import commands
    commands.train(DIGITS, str(tmp_path), seed=0, device='cpu', validate=False, options=options)
    lines = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()]
    logged = [line['lr'] for line in lines if line.get('mode') == 'train']
    assert len(logged) == 2 * 63
    np.testing.assert_allclose(curve(lr_plot(DIGITS, options=options)), logged, rtol=1e-12)


def test_steps_and_their_numbers(tmp_config):
    plot = lr_plot(recipe(tmp_config, "dict(policy='step', step=[1, 2])"), iters_per_epoch=4)
    np.testing.assert_allclose(curve(plot), [.5] * 4 + [.05] * 4 + [.005] * 4)
    assert_nothing_is_cut_off(plot)
    assert plot.table.rows == [(1, 0, '0.5', '0.5'), (2, 4, '0.05', '0.05'), (3, 8, '0.005', '0.005')]
    assert (plot.figure.axes[0].get_xlabel(), plot.figure.axes[0].get_ylabel()) == ('epoch', 'learning rate')


def test_a_run_counted_in_iterations(tmp_config):
    config = recipe(tmp_config, "dict(policy='poly', power=1, by_epoch=False)",
                    "dict(type='IterBasedRunner', max_iters=40)")
    plot = lr_plot(config, iters_per_epoch=7)
    np.testing.assert_allclose(curve(plot), .5 * (1 - np.arange(40) / 40))
    assert plot.figure.axes[0].get_xlabel() == 'iteration' and len(plot.table.rows) == 20


def test_a_long_run_that_swings_is_drawn_as_its_envelope(tmp_config):
    config = recipe(tmp_config, "dict(policy='cyclic', target_ratio=(2, 0.1), cyclic_times=300, step_ratio_up=0.5, "
                                "by_epoch=False)", "dict(type='EpochBasedRunner', max_epochs=600)")
    axes = lr_plot(config, iters_per_epoch=50).figure.axes[0]
    high, low = (line.get_ydata() for line in axes.lines[:2])
    assert len(high) == len(low) <= 2000
    assert high.max() == pytest.approx(1.) and low.min() == pytest.approx(.05, rel=.02)
    assert (high >= low).all() and len(axes.collections) == 1


def test_many_epochs_have_no_marker_each(tmp_config):
    axes = lr_plot(recipe(tmp_config, "dict(policy='CosineAnnealing', min_lr=0)",
                          "dict(type='EpochBasedRunner', max_epochs=600)"), iters_per_epoch=2).figure.axes[0]
    assert len(axes.lines[-1].get_xdata()) <= 60


def test_no_schedule_is_a_constant_rate(tmp_config):
    assert set(curve(lr_plot(recipe(tmp_config, 'None'), iters_per_epoch=4))) == {.5}


def test_gpus_share_an_epoch():
    assert len(curve(lr_plot(DIGITS, gpus=4))) == 20 * 16  # 4,000 digits in batches of 4 x 64


def test_an_unknown_policy_is_an_error(tmp_config):
    with pytest.raises(KeyError, match='stp'):
        lr_plot(recipe(tmp_config, "dict(policy='stp', step=[1])"), iters_per_epoch=4)


MOMENTUM = "dict(policy='step', step=[1])\nmomentum_config = dict(policy='step', step=[2], gamma=0.5)"


def test_momentum_has_a_picture_of_its_own_where_it_is_configured(tmp_config):
    text = Path(recipe(tmp_config, MOMENTUM)).read_text()
    plot = lr_plot(tmp_config(text.replace('lr=0.5', 'lr=0.5, momentum=0.8')), iters_per_epoch=2)
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ['learning rate', 'momentum']
    np.testing.assert_allclose(plot.figure.axes[1].lines[0].get_ydata(), [.8, .8, .8, .8, .4, .4])
    assert plot.table.rows[2] == (3, 4, '0.05', '0.05', '0.4', '0.4')


def test_absent_data_say_which_option_stands_in(capsys):
    assert main(['vis_lr', 'resnet/resnet50_8xb32_in1k.py']) == 1
    assert '--iters-per-epoch N' in capsys.readouterr().err


def test_the_command_writes_a_picture_and_prints_numbers(tmp_path, capsys):
    assert main(['vis-lr', DIGITS, '--iters-per-epoch', '10', '--save-path', str(tmp_path / 'lr.png')]) == 0
    assert (tmp_path / 'lr.png').read_bytes()[:4] == b'\x89PNG'
    assert 'first iteration' in capsys.readouterr().out
    assert main(['vis_lr', DIGITS, '--save-path', str(tmp_path / 'lr.txt')]) == 1
