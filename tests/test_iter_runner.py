"""Training counted in iterations: length, hooks, log, resuming in the middle of a pass."""
from __future__ import annotations

import json
import logging

import pytest
import torch
from test_runner import Batches, Recorder, Regression

from workspace_lib.hooks import CheckpointHook, IterTimerHook, LrUpdaterHook, OptimizerHook
from workspace_lib.iter_runner import IterBasedRunner
from workspace_lib.log_writers import TextLoggerHook
from workspace_lib.loops import EvalHook
from workspace_lib.schedules import lr_schedule


def make_runner(max_iters, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Regression()
    return IterBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), max_iters=max_iters,
                           logger=logging.getLogger('workspace_lib.test'), **kwargs)


def test_it_trains_exactly_max_iters_over_passes_of_their_own():
    runner, batches = make_runner(10), Batches(4)
    runner.register_hook(OptimizerHook())
    runner.run([batches], [('train', 1)])
    torch.manual_seed(0)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in (list(batches) * 3)[:10]:
        optimizer.zero_grad()
        model.train_step(batch)['loss'].backward()
        optimizer.step()
    assert torch.equal(runner.model.fc.weight, model.fc.weight)
    assert (runner.iter, batches.epochs) == (10, [0, 1, 2])


def test_hooks_are_called_by_iteration_and_validation_in_stages():
    runner, calls = make_runner(3), []
    runner.register_hook(Recorder(calls))
    runner.run([Batches(4), Batches(1)], [('train', 2), ('val', 2)])
    step, val_step = ['before_train_iter', 'after_train_iter'], ['before_val_iter', 'after_val_iter']
    val = ['before_val_epoch', *val_step, *val_step, 'after_val_epoch']
    assert calls == ['before_run', *step, *step, *val, *step, *val, 'after_run']


def test_the_schedule_runs_over_the_iterations():
    runner, seen = make_runner(4), []
    runner.register_hook(LrUpdaterHook(lr_schedule(dict(policy='poly'), None, 3, max_iters=4)))
    runner.register_hook(hook := IterTimerHook())
    hook.after_iter = lambda r: seen.append(r.current_lr()[0])
    runner.run([Batches(3)], [('train', 1)])
    assert seen == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize('at', [3, 6, 9])  # in the middle of a pass of 4, of another, and of the third
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path, at):
    def run(folder, resume=None):
        runner = make_runner(11, seed=1 if resume else 0, work_dir=folder)
        runner.register_hook(LrUpdaterHook(lambda base, step: base * 0.9 ** step))
        runner.register_hook(OptimizerHook(cumulative_iters=3))
        runner.register_hook(CheckpointHook(interval=3, by_epoch=False))
        if resume:
            runner.resume(str(resume))
        runner.run([Batches()], [('train', 1)])
        return runner

    whole = run(tmp_path)
    resumed = run(tmp_path / 'other', tmp_path / f'iter_{at}.pth')
    assert torch.equal(whole.model.fc.weight, resumed.model.fc.weight)
    assert (resumed.iter, resumed.epoch) == (11, 2)
    assert (tmp_path / 'latest.pth').resolve().name == 'iter_11.pth'


def test_a_run_that_is_complete_is_not_resumed(tmp_path):
    runner = make_runner(2, work_dir=tmp_path)
    runner.register_hook(CheckpointHook(by_epoch=False))
    runner.run([Batches()], [('train', 1)])
    again = make_runner(2)
    again.resume(str(tmp_path / 'iter_2.pth'))
    with pytest.raises(ValueError, match='2 iters and the run ends at 2.*runner.max_iters'):
        again.run([Batches()], [('train', 1)])


def test_a_missing_length_is_named():
    with pytest.raises(ValueError, match='max_iters'):
        IterBasedRunner(Regression())


def test_evaluation_is_due_by_iteration(monkeypatch):
    seen, runner = [], make_runner(7)
    monkeypatch.setattr(EvalHook, 'evaluate', lambda self, runner, moment: seen.append(moment))
    runner.register_hook(EvalHook(None, interval=3, by_epoch=False))
    runner.run([Batches(2)], [('train', 1)])
    assert seen == ['iter_3', 'iter_6']


def test_the_log_counts_iterations_of_the_run(tmp_path, caplog):
    runner, losses = make_runner(5, work_dir=tmp_path), []
    runner.register_hook(OptimizerHook())
    runner.register_hook(timer := IterTimerHook())
    runner.register_hook(TextLoggerHook(interval=2))
    timer.before_iter = lambda r: None
    timer.after_iter = lambda r: losses.append(r.outputs['log_vars']['loss'].item())
    with caplog.at_level('INFO', 'workspace_lib.test'):
        runner.run([Batches(3)], [('train', 1)])
    lines = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()][1:]
    assert [(line['iter'], line['epoch']) for line in lines] == [(2, 1), (4, 2), (5, 2)]
    means = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [line['loss'] for line in lines] == pytest.approx(means, abs=1e-4)
    assert 'Iter [2/5]' in caplog.text
