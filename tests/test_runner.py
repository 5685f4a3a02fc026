"""The loop, its hooks and their order, on models small enough to compute by hand."""
from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from workspace_lib.hooks import CheckpointHook, Hook, IterTimerHook, LrUpdaterHook, OptimizerHook
from workspace_lib.log_writers import TextLoggerHook
from workspace_lib.registry import HOOKS
from workspace_lib.runner import EpochBasedRunner, LogBuffer


class Regression(nn.Module):
    """Mean squared error of a linear map: `train_step` as the classifiers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1)

    def train_step(self, data, optimizer=None):
        loss = ((self.fc(data['img']) - data['gt_label']) ** 2).mean()
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(data['img']))

    val_step = train_step


class Batches(list):
    """A loader: a list of batches that remembers which epochs were asked for."""

    def __init__(self, n: int = 4, size: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(dict(img=torch.randn(size, 3, generator=generator),
                              gt_label=torch.randn(size, 1, generator=generator)) for _ in range(n))
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def make_runner(max_epochs=2, lr=0.1, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Regression()
    return EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
                            max_epochs=max_epochs, logger=logging.getLogger('workspace_lib.test'), **kwargs)


class Recorder(Hook):
    def __init__(self, calls, name='', priority='NORMAL'):
        self.calls, self.name, self.priority = calls, name, priority

    def __getattribute__(self, attribute):
        if attribute in Hook.stages:
            return lambda runner: self.calls.append((self.name, attribute) if self.name else attribute)
        return super().__getattribute__(attribute)


def test_every_point_is_called_in_order():
    runner, calls = make_runner(max_epochs=1), []
    runner.register_hook(Recorder(calls))
    runner.run([Batches(2), Batches(1)], [('train', 1), ('val', 1)])
    step, val_step = ['before_train_iter', 'after_train_iter'], ['before_val_iter', 'after_val_iter']
    assert calls == ['before_run', 'before_train_epoch', *step, *step, 'after_train_epoch',
                     'before_val_epoch', *val_step, 'after_val_epoch', 'after_run']


def test_priority_orders_hooks_and_equals_keep_their_order():
    runner, calls = make_runner(max_epochs=1), []
    for name, priority in [('c', 'LOW'), ('a', 'VERY_HIGH'), ('b1', 50), ('b2', 'NORMAL')]:
        runner.register_hook(Recorder(calls, name), priority=priority)
    runner.call_hook('before_run')
    assert [name for name, _ in calls] == ['a', 'b1', 'b2', 'c']


def test_unknown_priority_names_the_known_ones():
    with pytest.raises(ValueError, match='VERY_HIGH'):
        make_runner().register_hook(OptimizerHook(), priority='FIRST')


@pytest.mark.filterwarnings('ignore:On January 1, 2023')
def test_a_hook_of_mmcvs_own_class_runs():
    mmcv_runner = pytest.importorskip('mmcv.runner')
    seen = []

    class Mine(mmcv_runner.Hook):
        def after_train_iter(self, runner):
            if self.every_n_iters(runner, 2) or self.end_of_epoch(runner):
                seen.append(runner.iter)

        def before_val_epoch(self, runner):
            pytest.fail('there is no validation')

    runner = make_runner(max_epochs=1)
    runner.register_hook(Mine(), priority='VERY_LOW')
    runner.register_hook(mmcv_runner.ClosureHook('after_run', lambda runner: seen.append('end')))
    runner.run([Batches(3)], [('train', 1)])
    assert seen == [1, 2, 'end']


def test_a_hook_with_mmcvs_methods_runs_from_a_config():
    seen = []

    @HOOKS.register_module(force=True)
    class SeenHook(Hook):
        def __init__(self, tag):
            self.tag = tag

        def after_train_iter(self, runner):
            if self.every_n_iters(runner, 3):
                seen.append((self.tag, runner.epoch, runner.inner_iter, runner.iter))

    runner = make_runner()
    runner.register_hook(dict(type='SeenHook', tag='x', priority='LOW'))
    runner.run([Batches(4)], [('train', 1)])
    assert seen == [('x', 0, 2, 2), ('x', 1, 1, 5)]


def test_training_equals_the_loop_written_by_hand():
    runner, batches = make_runner(), Batches()
    runner.register_hook(OptimizerHook())
    runner.run([batches], [('train', 1)])
    torch.manual_seed(0)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in list(batches) * 2:
        optimizer.zero_grad()
        model.train_step(batch)['loss'].backward()
        optimizer.step()
    assert torch.equal(runner.model.fc.weight, model.fc.weight)
    assert batches.epochs == [0, 1]


def test_accumulated_gradients_equal_one_large_batch():
    small = Batches(6, size=5)
    large = [dict(img=torch.cat([b['img'] for b in small[i:i + 2]]),
                  gt_label=torch.cat([b['gt_label'] for b in small[i:i + 2]])) for i in (0, 2, 4)]
    accumulated, plain = make_runner(max_epochs=1), make_runner(max_epochs=1)
    accumulated.register_hook(OptimizerHook(cumulative_iters=2))
    plain.register_hook(OptimizerHook())
    accumulated.run([small], [('train', 1)])
    plain.run([large], [('train', 1)])
    torch.testing.assert_close(accumulated.model.fc.weight, plain.model.fc.weight)


def test_the_remainder_of_accumulation_is_a_step_of_its_own_mean():
    batches = Batches(3)
    runner = make_runner(max_epochs=1)
    runner.register_hook(OptimizerHook(cumulative_iters=2))
    runner.run([batches], [('train', 1)])
    torch.manual_seed(0)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for group in ([batches[0], batches[1]], [batches[2]]):
        optimizer.zero_grad()
        sum(model.train_step(batch)['loss'] / len(group) for batch in group).backward()
        optimizer.step()
    torch.testing.assert_close(runner.model.fc.weight, model.fc.weight)


def test_gradient_clipping_bounds_the_step():
    runner, batches = make_runner(max_epochs=1, lr=1.0), Batches(1)
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.register_hook(OptimizerHook(grad_clip=dict(max_norm=1e-3)))
    runner.run([batches], [('train', 1)])
    moved = torch.cat([(p - b).flatten() for p, b in zip(runner.model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)
    assert runner.log_buffer.average(1)['grad_norm'] > 1e-3


def test_lr_follows_the_schedule_for_each_group():
    runner, seen = make_runner(max_epochs=1), []
    runner.register_hook(LrUpdaterHook(lambda base, step: base * (step + 1)))
    hook = Hook()
    hook.after_train_iter = lambda r: seen.append(r.current_lr()[0])
    runner.register_hook(hook)
    runner.run([Batches(3)], [('train', 1)])
    assert seen == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize('start, interval, at', [(None, 2, [2, 4, 6]), (3, 2, [3, 5]), (0, 3, [3, 6])])
def test_evaluation_starts_and_repeats_as_in_mmcv(monkeypatch, start, interval, at):
    from workspace_lib.loops import EvalHook
    seen = []
    monkeypatch.setattr(EvalHook, 'evaluate', lambda self, runner, moment: seen.append(runner.epoch + 1))
    runner = make_runner(max_epochs=6)
    runner.register_hook(EvalHook(None, interval=interval, start=start))
    runner.run([Batches(1)], [('train', 1)])
    assert seen == at


@pytest.mark.parametrize('workflow, said', [([('train', 1), ('val', 1)], 'loaders'), ([('val', 1)], 'never trains'),
                                            ([('trian', 1)], 'trian')])
def test_a_wrong_workflow_is_named(workflow, said):
    with pytest.raises(ValueError, match=said):
        make_runner().run([Batches()], workflow)


def test_a_missing_length_of_training_is_named():
    with pytest.raises(ValueError, match='max_epochs'):
        EpochBasedRunner(Regression())


def test_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    def run(folder, epochs, resume=None):
        runner = make_runner(max_epochs=epochs, seed=1 if resume else 0, work_dir=folder)
        runner.register_hook(LrUpdaterHook(lambda base, step: base * 0.9 ** step))
        runner.register_hook(OptimizerHook())
        runner.register_hook(CheckpointHook(interval=1))
        if resume:
            runner.resume(str(resume))
        runner.run([Batches()], [('train', 1)])
        return runner

    whole = run(tmp_path / 'whole', 4)
    run(tmp_path / 'parts', 2)
    resumed = run(tmp_path / 'parts', 4, tmp_path / 'parts' / 'latest.pth')
    assert torch.equal(whole.model.fc.weight, resumed.model.fc.weight)
    assert (resumed.epoch, resumed.iter) == (4, 16)


def test_resuming_from_mere_weights_says_what_to_do(tmp_path):
    runner = make_runner()
    torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='--load-from'):
        runner.resume(str(tmp_path / 'weights.pth'))


def test_checkpoints_link_the_latest_and_keep_the_newest(tmp_path):
    runner = make_runner(max_epochs=4, work_dir=tmp_path)
    runner.register_hook(OptimizerHook())
    runner.register_hook(CheckpointHook(interval=1, max_keep_ckpts=2))
    runner.run([Batches()], [('train', 1)])
    assert sorted(p.name for p in tmp_path.glob('epoch_*.pth')) == ['epoch_3.pth', 'epoch_4.pth']
    assert (tmp_path / 'latest.pth').resolve().name == 'epoch_4.pth'
    meta = torch.load(tmp_path / 'latest.pth', weights_only=True)['meta']
    assert (meta['epoch'], meta['iter']) == (4, 16)


def test_the_last_epoch_is_saved_whatever_the_interval(tmp_path):
    runner = make_runner(max_epochs=3, work_dir=tmp_path)
    runner.register_hook(OptimizerHook())
    runner.register_hook(CheckpointHook(interval=2))
    runner.run([Batches()], [('train', 1)])
    assert sorted(p.name for p in tmp_path.glob('epoch_*.pth')) == ['epoch_2.pth', 'epoch_3.pth']


def test_a_checkpoint_in_mid_epoch_counts_whole_epochs_only(tmp_path):
    runner = make_runner(max_epochs=2, work_dir=tmp_path)
    runner.register_hook(OptimizerHook())
    runner.register_hook(CheckpointHook(interval=6, by_epoch=False))
    runner.run([Batches(4)], [('train', 1)])
    meta = torch.load(tmp_path / 'iter_6.pth', weights_only=True)['meta']
    assert (meta['epoch'], meta['iter']) == (1, 6)
    meta = torch.load(tmp_path / 'iter_8.pth', weights_only=True)['meta']
    assert (meta['epoch'], meta['iter']) == (2, 8)


def test_log_buffer_weights_by_samples_and_looks_back_n():
    buffer = LogBuffer()
    buffer.update({'loss': torch.tensor(100.0)}, 7)
    buffer.update({'loss': torch.tensor(1.0)}, 3)
    buffer.update({'loss': torch.tensor(2.0)}, 1)
    buffer.update({'time': 0.5})
    buffer.update({'top-1': torch.tensor([50.0])}, 1)  # accuracies come with shape (1,)
    buffer.update({'top-1': torch.tensor([100.0])}, 1)
    assert buffer.average(2) == {'loss': pytest.approx(1.25), 'time': 0.5, 'top-1': 75.0}


def test_text_log_writes_json_lines_with_the_averages_since_the_last(tmp_path):
    runner = make_runner(max_epochs=1, work_dir=tmp_path, meta=dict(seed=3))
    runner.register_hook(OptimizerHook())
    runner.register_hook(IterTimerHook())
    runner.register_hook(TextLoggerHook(interval=2))
    losses = []
    recorder = Hook()
    recorder.after_train_iter = lambda r: losses.append(r.outputs['log_vars']['loss'].item())
    runner.register_hook(recorder)
    batches = Batches(5)
    batches[-1] = {key: value[:3] for key, value in batches[-1].items()}
    runner.run([batches], [('train', 1)])
    lines = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()]
    assert lines[0] == {'seed': 3}
    assert [line['iter'] for line in lines[1:]] == [2, 4, 5]
    means = [sum(losses[0:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [line['loss'] for line in lines[1:]] == pytest.approx(means, abs=1e-4)
    assert all(line['data_time'] >= 0 for line in lines[1:])
    last = lines[-1]
    assert last['images_per_second'] * last['time'] == pytest.approx(3, rel=0.1)  # the short last batch counts as such


def test_tensorboard_writes_scalars(tmp_path):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    from workspace_lib.log_writers import TensorboardLoggerHook
    runner = make_runner(max_epochs=1, work_dir=tmp_path)
    runner.register_hook(OptimizerHook())
    runner.register_hook(TensorboardLoggerHook(interval=2))
    runner.run([Batches(4)], [('train', 1)])
    runner.publish(dict(mode='val', epoch=1, iter=4, accuracy=50.0))
    log = events.EventAccumulator(str(tmp_path / 'tf_logs')).Reload()
    assert [event.step for event in log.Scalars('train/loss')] == [2, 4]


def test_a_loggers_interval_starts_at_one():
    with pytest.raises(ValueError, match='interval=0'):
        TextLoggerHook(interval=0)
