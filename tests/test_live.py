"""The curves of a run: from its log afterwards, and the same ones drawn while it trains."""
from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from figures import assert_nothing_is_cut_off
from torch.utils.data import Subset

from workspace_lib import apis
from workspace_lib.datasets import build_dataset
from workspace_lib.models import build_classifier
from workspace_lib.tools import live
from workspace_lib.tools.plots import read_log


def entries(done):
    """The first `done` entries of a run of two epochs of 10 iterations."""
    found = []
    for epoch in (1, 2):
        found += [dict(mode='train', epoch=epoch, iter=iteration, lr=0.1 / epoch, loss=2.0 / epoch - iteration / 100)
                  for iteration in (5, 10)]
        found.append({'mode': 'val', 'epoch': epoch, 'iter': 4, 'accuracy_top-1': 40.0 * epoch})
    return found[:done]


def panels(plot):
    return {axes.get_ylabel(): axes.lines[0].get_xydata().tolist() for axes in plot.figure.axes if axes.lines}


def test_loss_rate_and_accuracy_each_have_a_panel():
    plot = live.training_plot(entries(6))
    assert panels(plot) == {
        'loss': [[0.5, 1.95], [1, 1.9], [1.5, 0.95], [2, 0.9]],
        'lr': [[0.5, 0.1], [1, 0.1], [1.5, 0.05], [2, 0.05]], 'accuracy_top-1 (%)': [[1, 40], [2, 80]]}
    assert_nothing_is_cut_off(plot)


def test_a_run_that_has_not_been_evaluated_has_two_panels():
    assert list(panels(live.training_plot(entries(2)))) == ['loss', 'lr']


def test_within_the_first_epoch_the_place_is_told_by_its_length():
    assert panels(live.training_plot(entries(1), iters_per_epoch=10))['loss'] == [[0.5, 1.95]]


def test_an_empty_log_has_no_curves():
    with pytest.raises(ValueError, match='no entry'):
        live.training_plot([])


@pytest.fixture
def training(tmp_path):
    """A runner over four batches of digits that logs every second, and its loaders."""
    cfg = apis.load_config('lenet/lenet5_mnist5k.py', {
        'seed': 0, 'runner.max_epochs': 2, 'log_config.interval': 2, 'work_dir': str(tmp_path)})
    cfg.checkpoint_config = None
    part = Subset(build_dataset(cfg.data.train), range(4 * cfg.data.samples_per_gpu))
    return apis.build_training(build_classifier(cfg.model), part, cfg, validate=True, device='cpu')


def test_while_it_trains_the_curves_grow_and_end_as_those_of_the_log(training, tmp_path):
    runner, loaders = training
    shown = []
    runner.register_hook(live.LivePlotHook(show=shown.append, interval=2, seconds=0))
    runner.run(loaders, [('train', 1)])
    assert [len(panels(plot)['loss']) for plot in shown] == [1, 2, 2, 3, 4, 4, 4]  # at each entry, and at the end
    assert panels(shown[0])['loss'][0][0] == 0.5
    ours, theirs = panels(shown[-1]), panels(live.training_plot(read_log(tmp_path)))
    assert ours.keys() == theirs.keys() == {'loss', 'lr', 'accuracy_top-1 (%)'}
    for key in ours:
        assert torch.allclose(torch.tensor(ours[key]), torch.tensor(theirs[key]), atol=1e-4)  # the file is rounded


def test_it_is_drawn_no_more_often_than_asked_for(training):
    runner, loaders = training
    shown = []
    runner.register_hook(live.LivePlotHook(show=shown.append, interval=1, seconds=1000))
    runner.run(loaders, [('train', 1)])
    assert len(shown) == 2  # the first entry, and the end


def test_what_was_drawn_before_the_run_failed_stays(training):
    runner, loaders = training
    shown = []
    runner.register_hook(live.LivePlotHook(show=shown.append, interval=1, seconds=0))
    runner.model.train_step = lambda *args: {} if runner.iter == 2 else type(runner.model).train_step(
        runner.model, *args)
    with pytest.raises(KeyError):
        runner.run(loaders, [('train', 1)])
    assert len(panels(shown[-1])['loss']) == 2


@pytest.mark.parametrize('lr', [{'backbone': 0.1}, None])
def test_of_a_log_whose_rate_is_no_number_the_loss_is_drawn(lr):
    log = [{**entry, 'lr': lr} for entry in entries(3)]
    assert panels(live.training_plot(log)).keys() == {'loss', 'accuracy_top-1 (%)'}


def test_a_log_that_cannot_be_drawn_is_said_once_and_ends_no_training(training, caplog):
    runner, loaders = training
    shown = []
    runner.register_hook(hook := live.LivePlotHook(show=shown.append, interval=2, seconds=0))
    hook._entry = lambda runner, n: dict(mode='train', epoch=1, iter=1, lr={'backbone': 0.1}, d_real=1.)
    runner.run(loaders[:1], [('train', 1)])
    said = [record.message for record in caplog.records if 'LivePlotHook' in record.message]
    assert said == ['LivePlotHook draws nothing: the log has no number to draw: neither loss nor lr, but '
                    'mode, epoch, iter, lr, d_real']
    assert runner.iter == 8 and not [plot for plot in shown if 'loss' in plot.alt]


def test_it_loads_no_matplotlib_before_it_draws():
    code = 'import sys; import workspace_lib.tools.live; print("matplotlib" in sys.modules)'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert said.stdout == 'False\n', said.stderr


def test_commands_bring_it_in():
    code = ('import workspace_lib.tools.commands; from workspace_lib.registry import HOOKS; '
            'print(HOOKS.get("LivePlotHook").__module__)')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert said.stdout == 'workspace_lib.tools.live\n', said.stderr


def test_a_config_can_name_it_and_a_notebook_sees_it(monkeypatch, training):
    from workspace_lib.registry import HOOKS

    pytest.importorskip('ipywidgets')
    displayed = []
    monkeypatch.setattr('IPython.display.display', displayed.append)
    runner, loaders = training
    runner.register_hook(dict(type='LivePlotHook', interval=2))
    assert HOOKS.get('LivePlotHook') is live.LivePlotHook
    runner.run(loaders, [('train', 1)])
    assert len(displayed) == 1 and 'alt="' in displayed[0].value and displayed[0].value.startswith('<img')
