"""Averages of weights and of BatchNorm's statistics: equal to mmcv's and mmclassification's, exact when resumed."""
from __future__ import annotations

import copy
import logging

import pytest
import torch
from test_runner import Batches, Regression, make_runner
from torch import nn

from workspace_lib.checkpoint import load_checkpoint
from workspace_lib.hooks import CheckpointHook, Hook, OptimizerHook
from workspace_lib.iter_runner import IterBasedRunner
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.weight_hooks import EMAHook, PreciseBNHook

pytestmark = [pytest.mark.filterwarnings('ignore:On January 1, 2023'),
              pytest.mark.filterwarnings('ignore:This overload of add_ is deprecated')]  # mmcv's own


class Mmcv:
    """What mmcv's hooks ask of a runner."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.iter, self.epoch = model, 0, 0


def run_with_averages(batches, epochs=2, **kwargs):
    """Our run; the weights before the first step and after each step, and what an evaluation after each epoch sees."""
    runner, steps, shown = make_runner(max_epochs=epochs), [], []
    recorder, first = Hook(), copy.deepcopy(runner.model)
    recorder.priority = 'LOW'
    recorder.after_train_iter = lambda r: steps.append(copy.deepcopy(r.model.state_dict()))

    def evaluate(r):
        with r.shown_weights():
            shown.append(copy.deepcopy(r.model.state_dict()))

    recorder.after_train_epoch = evaluate
    runner.register_hook(OptimizerHook())
    runner.register_hook(EMAHook(**kwargs))
    runner.register_hook(recorder)
    runner.run([batches], [('train', 1)])
    return first, steps, shown, runner


@pytest.mark.parametrize('options', [dict(momentum=0.1, warm_up=2), dict(momentum=0.3, interval=2, warm_up=1), {}])
def test_averages_equal_mmcv(options):
    mmcv_runner = pytest.importorskip('mmcv.runner')
    model, steps, shown, _ = run_with_averages(Batches(4), **options)
    hook, theirs = mmcv_runner.EMAHook(**options), Mmcv(model)
    hook.before_run(theirs)
    for epoch in range(2):
        hook.before_train_epoch(theirs)
        for step in steps[4 * epoch:4 * epoch + 4]:
            model.load_state_dict(step, strict=False)
            hook.after_train_iter(theirs)
            theirs.iter += 1
        hook.after_train_epoch(theirs)
        for name, tensor in shown[epoch].items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_averages_by_hand():
    first, steps, shown, _ = run_with_averages(Batches(2), epochs=1, momentum=0.5, warm_up=4)
    average = first.fc.weight.detach()
    for i, step in enumerate(steps):
        m = min(0.5, (1 + i) / (4 + i))
        average = average * (1 - m) + m * step['fc.weight']
    torch.testing.assert_close(shown[0]['fc.weight'], average)


def test_training_does_not_see_the_averages_and_the_run_ends_with_them():
    _, steps, shown, runner = run_with_averages(Batches(4), momentum=0.1)
    plain = make_runner()
    plain.register_hook(OptimizerHook())
    plain.run([Batches(4)], [('train', 1)])
    assert torch.equal(steps[-1]['fc.weight'], plain.model.fc.weight)
    assert torch.equal(runner.model.fc.weight, shown[-1]['fc.weight'])


def test_showing_twice_at_once_shows_the_same():
    _, _, _, runner = run_with_averages(Batches(2), epochs=1, momentum=0.1)
    runner.hooks[[type(hook) for hook in runner.hooks].index(EMAHook)].after_run(runner)  # the trained ones again
    trained = runner.model.fc.weight.clone()
    with runner.shown_weights():
        average = runner.model.fc.weight.clone()
        with runner.shown_weights():
            assert torch.equal(runner.model.fc.weight, average)
        assert torch.equal(runner.model.fc.weight, average)
    assert torch.equal(runner.model.fc.weight, trained) and not torch.equal(average, trained)


def epoch_run(folder, resume=None, ema=True, epochs=4):
    runner = make_runner(max_epochs=epochs, seed=1 if resume else 0, work_dir=folder)
    runner.register_hook(OptimizerHook())
    runner.register_hook(CheckpointHook(interval=1))
    if ema:
        runner.register_hook(EMAHook(momentum=0.1, warm_up=3))
    if resume:
        runner.resume(str(resume))
    runner.run([Batches()], [('train', 1)])
    return runner


def iter_run(folder, resume=None):
    torch.manual_seed(1 if resume else 0)
    model = Regression()
    runner = IterBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), max_iters=10,
                             work_dir=folder, logger=logging.getLogger('workspace_lib.test'))
    runner.register_hook(OptimizerHook())
    runner.register_hook(CheckpointHook(interval=5, by_epoch=False))
    runner.register_hook(EMAHook(momentum=0.1, interval=2))
    if resume:
        runner.resume(str(resume))
    runner.run([Batches()], [('train', 1)])
    return runner


@pytest.mark.parametrize('run, name', [(epoch_run, 'epoch_2.pth'), (iter_run, 'iter_5.pth')])
def test_a_resumed_run_has_the_same_weights_and_averages_to_the_bit(tmp_path, run, name):
    run(tmp_path / 'whole')
    run(tmp_path / 'resumed', tmp_path / 'whole' / name)
    ends = [torch.load(tmp_path / folder / 'latest.pth', weights_only=True) for folder in ('whole', 'resumed')]
    for part in ('state_dict', 'trained_weights'):
        for key, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][key]), (part, key)
    assert not torch.equal(ends[0]['state_dict']['fc.weight'], ends[0]['trained_weights']['fc.weight'])


def test_a_checkpoint_holds_the_averages_under_the_models_names(tmp_path):
    runner = epoch_run(tmp_path)
    model = Regression()
    load_checkpoint(model, tmp_path / 'latest.pth', strict=True)
    assert torch.equal(model.fc.weight, runner.model.fc.weight)


def test_a_checkpoint_of_mmcvs_hook_is_loaded_and_resumed(tmp_path):
    """There the trained weights lie beside the averages, as buffers with flat names."""
    epoch_run(tmp_path)
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    trained = saved.pop('trained_weights')
    saved['state_dict'].update({f'ema_{name.replace(".", "_")}': value for name, value in trained.items()})
    torch.save(saved, tmp_path / 'theirs.pth')
    load_checkpoint(Regression(), tmp_path / 'theirs.pth', strict=True)
    resumed = epoch_run(tmp_path / 'resumed', tmp_path / 'theirs.pth')
    end = torch.load(tmp_path / 'epoch_4.pth', weights_only=True)['state_dict']
    assert torch.equal(resumed.model.fc.weight, end['fc.weight'])


def test_resuming_with_or_without_averages_says_what_is_missing(tmp_path, caplog):
    epoch_run(tmp_path / 'with', epochs=1)
    epoch_run(tmp_path / 'with' / 'out', tmp_path / 'with' / 'latest.pth', ema=False)
    assert 'no EMAHook' in caplog.text
    epoch_run(tmp_path / 'without', ema=False, epochs=1)
    epoch_run(tmp_path / 'without' / 'x', tmp_path / 'without' / 'latest.pth')
    assert 'holds no averages' in caplog.text


def test_an_ema_hook_behind_the_saving_is_refused():
    runner = make_runner()
    runner.register_hook(CheckpointHook(interval=3, by_epoch=False))
    runner.register_hook(EMAHook(), priority='LOW')
    with pytest.raises(ValueError, match='ABOVE_NORMAL'):
        runner.run([Batches()], [('train', 1)])


@pytest.mark.parametrize('make', [lambda: EMAHook(momentum=0), lambda: EMAHook(interval=0),
                                  lambda: PreciseBNHook(num_samples=0), lambda: PreciseBNHook(interval=0)])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match='but got'):
        make()


class Normed(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def train_step(self, data, optimizer=None):
        return super().train_step(dict(data, img=self.frozen(self.norm(data['img']))))


def precise(batches, **options):
    model = Normed()
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1), max_epochs=1,
                              logger=logging.getLogger('workspace_lib.test'))
    runner.register_hook(OptimizerHook())
    runner.register_hook(PreciseBNHook(**options))
    runner.run([batches], [('train', 1)])
    return model


@pytest.mark.parametrize('num_samples, count', [(100, 4), (12, 2), (1, 1)])
def test_statistics_are_the_average_over_the_batches(num_samples, count):
    batches = Batches(4)
    model = precise(batches, num_samples=num_samples)
    means = torch.stack([batch['img'].mean(0) for batch in batches[:count]]).mean(0)
    variances = torch.stack([batch['img'].var(0) for batch in batches[:count]]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, means)
    torch.testing.assert_close(model.norm.running_var, variances)
    assert model.norm.momentum == 0.1
    assert model.frozen.running_mean.abs().max() == 0


def test_statistics_equal_mmclassification():
    core = pytest.importorskip('mmcls.core.hook.precise_bn_hook')

    class Sized(Batches):
        batch_size = 5

    batches = Sized(4)
    torch.manual_seed(0)
    ours = precise(batches, num_samples=15)
    theirs = Normed().train()
    theirs.load_state_dict(ours.state_dict())
    core.update_bn_stats(theirs, batches, num_samples=15, logger='silent')
    torch.testing.assert_close(ours.norm.running_mean, theirs.norm.running_mean)
    torch.testing.assert_close(ours.norm.running_var, theirs.norm.running_var)


def test_precise_bn_in_a_run_without_epochs_is_refused():
    runner = IterBasedRunner(Normed(), max_iters=1)
    runner.register_hook(PreciseBNHook())
    with pytest.raises(ValueError, match='EpochBasedRunner'):
        runner.run([Batches()], [('train', 1)])
