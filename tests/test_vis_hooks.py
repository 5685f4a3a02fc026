"""The time line of hooks: in their order, each call at its stage, and the run as if nobody had watched."""
from __future__ import annotations

import copy
import functools

import pytest
import torch
from figures import assert_nothing_is_cut_off
from torch.utils.data import Subset

from workspace_lib import apis
from workspace_lib.datasets import build_dataset
from workspace_lib.hooks import Hook
from workspace_lib.models import build_classifier
from workspace_lib.tools import vis_hooks
from workspace_lib.tools.cli import main

DIGITS = 'lenet/lenet5_mnist5k.py'
EPOCHS, ITERS = 2, 3


@pytest.fixture(scope='module')
def recording():
    return vis_hooks.short_run(DIGITS, epochs=EPOCHS, iters=ITERS, device='cpu')


@pytest.fixture
def training():
    """A runner over three batches of digits and its loaders, each time from the same weights."""
    cfg = apis.load_config(DIGITS, {'seed': 0, 'runner.max_epochs': EPOCHS, 'log_level': 'ERROR'})
    cfg.checkpoint_config = cfg.log_config = None

    def made():
        torch.manual_seed(0)
        part = Subset(build_dataset(cfg.data.train), range(ITERS * cfg.data.samples_per_gpu))
        return apis.build_training(build_classifier(cfg.model), part, copy.deepcopy(cfg), device='cpu')
    return made


def test_hooks_stand_in_the_order_in_which_they_are_called(recording):
    own = [name for name in recording.names if name in (
        'LrUpdaterHook', 'OptimizerHook', 'CheckpointHook', 'IterTimerHook', 'EvalHook', 'TextLoggerHook')]
    assert own == ['LrUpdaterHook', 'OptimizerHook', 'CheckpointHook', 'IterTimerHook', 'EvalHook', 'TextLoggerHook']
    for stage in Hook.stages:
        called = [call.hook for call in recording.calls if call.stage == stage and (call.epoch, call.iter) in (
            (0, 0), (0, ITERS), (EPOCHS, EPOCHS * ITERS))]
        assert called == [name for name in recording.names if name in called], stage


def test_every_call_is_there_as_often_as_the_run_has_that_stage(recording):
    def count(stage, hook):
        return sum(call.stage == stage and call.hook == hook for call in recording.calls)

    assert count('before_run', 'TextLoggerHook') == 1
    assert count('after_train_epoch', 'CheckpointHook') == EPOCHS
    assert count('before_train_iter', 'LrUpdaterHook') == count('after_train_iter', 'OptimizerHook') == EPOCHS * ITERS
    assert count(vis_hooks.FORWARD, 'ImageClassifier') == EPOCHS * ITERS
    assert count('before_train_iter', 'CheckpointHook') == 0, 'a hook that does nothing there was counted'


def test_calls_follow_one_another_and_the_forward_pass_lies_between_the_hooks(recording):
    ends = [call.start + call.seconds for call in recording.calls]
    assert all(before <= after.start for before, after in zip(ends, recording.calls[1:], strict=False))
    second = [call.stage for call in recording.calls if call.iter == 1]
    assert second.index('before_train_iter') < second.index(vis_hooks.FORWARD) < second.index('after_train_iter')


def test_a_run_that_is_watched_ends_with_the_same_weights_and_its_hooks_as_they_were(training):
    plain, loaders = training()
    plain.run(loaders, [('train', 1)])
    watched, loaders = training()
    with vis_hooks.recorded_hooks(watched) as recording:
        watched.run(loaders, [('train', 1)])
    seen = len(recording.calls)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(),
                                                 watched.model.state_dict().values(), strict=True))
    watched.call_hook('before_run')
    assert seen == len(recording.calls) and not any('before_run' in vars(hook) for hook in watched.hooks)


def test_what_a_hook_raises_is_raised_and_its_call_recorded(training):
    class Broken(Hook):
        def after_train_iter(self, runner):
            raise ArithmeticError('on purpose')

    runner, loaders = training()
    runner.register_hook(Broken())
    with pytest.raises(ArithmeticError, match='on purpose'), vis_hooks.recorded_hooks(runner) as recording:
        runner.run(loaders, [('train', 1)])
    assert recording.calls[-1].hook == 'Broken' and 'after_train_iter' not in vars(runner.hooks[-1])


def test_the_table_of_the_order_names_priorities_and_stages(training):
    runner, _ = training()
    runner.register_hook(Hook(), priority=33)
    rows = {row[0]: row[1:] for row in vis_hooks.order_plot(runner).table.rows}
    assert rows['LrUpdaterHook'] == ('VERY_HIGH (10)', 'before_run, before_train_iter')
    assert rows['Hook'] == ('33', '')


def test_the_picture_of_the_order_has_a_number_where_a_hook_acts(training):
    runner, _ = training()
    plot = vis_hooks.order_plot(runner)
    axes = plot.figure.axes[0]
    hooks = [tick.get_text() for tick in axes.get_yticklabels()]
    stages = [tick.get_text() for tick in axes.get_xticklabels()]
    cells = {(hooks[int(y)], stages[int(x)]): text.get_text()
             for text in axes.texts for x, y in [text.get_position()]}
    assert cells['LrUpdaterHook', 'before_train_iter'] == '1' and ('OptimizerHook', 'after_train_epoch') not in cells
    assert cells['CheckInvalidLossHook', 'after_train_iter'] == '1'
    assert cells['OptimizerHook', 'after_train_iter'] == '2'
    assert_nothing_is_cut_off(plot)


@pytest.mark.parametrize('iteration, least', [(None, EPOCHS * ITERS), (2, 1)])
def test_the_time_line_shows_the_run_or_one_iteration(recording, iteration, least):
    plot = vis_hooks.timeline_plot(recording, iteration)
    shown = {row[0]: row for row in plot.table.rows}
    assert shown['OptimizerHook'][1] >= least
    assert (shown['LrUpdaterHook'][1] == 1) == (iteration == 2)
    assert 0 < sum(row[-1] for row in plot.table.rows) <= 100.01
    assert_nothing_is_cut_off(plot)


def test_its_words_do_not_change_from_run_to_run(recording):
    assert vis_hooks.timeline_plot(recording, 2).alt == (
        'Time line of iteration 2: what each hook and the model take, bar beside bar in the order of their calls.')


def test_an_iteration_that_was_not_recorded_is_named():
    with pytest.raises(ValueError, match='iteration 9 .* 1 to 6'):
        vis_hooks.timeline_plot(vis_hooks.short_run(DIGITS, EPOCHS, ITERS, device='cpu'), 9)


def test_the_command_prints_the_order_and_writes_the_picture(tmp_path, capsys):
    out = tmp_path / 'hooks.png'
    assert main(['vis_hooks', DIGITS, '--epochs', '1', '--iters', '2', '--device', 'cpu', '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert 'ABOVE_NORMAL (40)' in said and 'longest (ms)' in said and out.stat().st_size > 5000
    assert [*tmp_path.iterdir()] == [out], 'the short run left something'


def test_a_run_that_counts_iterations_is_cut_as_short_and_its_config_stays():
    cfg = apis.load_config(DIGITS)
    cfg.runner = dict(type='IterBasedRunner', max_iters=1000)
    recording = vis_hooks.short_run(cfg, EPOCHS, ITERS, device='cpu')
    assert [call.iter for call in recording.calls if call.stage == vis_hooks.FORWARD] == [*range(EPOCHS * ITERS)]
    assert cfg.runner.max_iters == 1000 and cfg.evaluation.interval == 1


@pytest.mark.parametrize('change', [dict(epochs=0), dict(iters=0)])
def test_a_run_of_nothing_is_refused(change):
    with pytest.raises(ValueError, match='at least 1'):
        vis_hooks.short_run(DIGITS, **{**dict(epochs=1, iters=1), **change})


def test_recordings_can_be_nested_and_what_was_set_before_is_put_back(training):
    runner, loaders = training()
    own = runner.forward = functools.partial(type(runner).forward, runner)
    with vis_hooks.recorded_hooks(runner) as outer:
        with vis_hooks.recorded_hooks(runner) as inner:
            pass
        runner.run(loaders, [('train', 1)])
    assert not inner.calls
    assert sum(call.stage == vis_hooks.FORWARD for call in outer.calls) >= EPOCHS * ITERS
    assert runner.forward is own and not any(stage in vars(hook) for hook in runner.hooks for stage in Hook.stages)


def test_both_of_two_recordings_see_a_run(training):
    runner, loaders = training()
    with vis_hooks.recorded_hooks(runner) as outer, vis_hooks.recorded_hooks(runner) as inner:
        runner.run(loaders, [('train', 1)])
    assert [(call.stage, call.hook) for call in outer.calls] == [(call.stage, call.hook) for call in inner.calls] != []
    assert 'forward' not in vars(runner)
