"""The range test of the learning rate: on a loss whose best rate is known, and on real digits."""
from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from figures import assert_nothing_is_cut_off

from workspace_lib.recipes import load_config
from workspace_lib.registry import MODELS
from workspace_lib.tools.cli import main
from workspace_lib.tools.lr_find import lr_range_plot, lr_range_test, smoothed, suggested

DIGITS = 'lenet/lenet5_mnist5k.py'


class Bowl(torch.nn.Module):
    """Loss w ** 2 + 1 whatever the batch: plain gradient descent diverges above a rate of 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def init_weights(self):
        torch.nn.init.constant_(self.weight, 1.0)

    def train_step(self, batch, optimizer=None):
        loss = self.weight ** 2 + 1
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(batch['img']))


class Noting(Bowl):
    """What its step is computed in, noted; a gradient of 200."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 3)

    def train_step(self, batch, optimizer=None):
        self.seen.append((torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu'),
                          self.conv.weight.is_contiguous(memory_format=torch.channels_last),
                          self._compiled_call_impl is not None, self.weight.item()))
        loss = 100 * self.weight ** 2 + 0 * self.conv.weight.sum()
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(batch['img']))


@pytest.fixture
def bowl():
    MODELS.register_module(name='Bowl', module=Bowl, force=True)
    cfg = load_config(DIGITS, {'data.workers_per_gpu': 0})
    cfg.optimizer = dict(type='SGD', lr=0.1)
    cfg.model = dict(type='Bowl')
    yield cfg
    del MODELS.module_dict['Bowl']


def test_the_rates_are_the_ones_that_were_used_and_the_loss_is_lost_above_the_limit(bowl):
    rates, losses = lr_range_test(bowl, 1e-3, 1e3, iters=61, device='cpu')
    assert len(rates) == len(losses) < 61, 'it went on after the loss was lost'
    np.testing.assert_allclose(rates[:3], [1e-3, 10 ** -2.9, 10 ** -2.8])
    weight = 1.0
    for rate, loss in zip(rates, losses, strict=True):  # the same by hand
        assert loss == pytest.approx(weight ** 2 + 1, rel=1e-3)  # float32, blown up
        weight -= rate * 2 * weight
    assert losses[-1] > 4 * losses.min() and rates[-1] > 1


def test_groups_keep_their_ratio(bowl, monkeypatch):
    seen = []
    bowl.optimizer.paramwise_cfg = dict(custom_keys={'weight': dict(lr_mult=0.1)})
    step = torch.optim.SGD.step

    def noted(self, *args, **kwargs):
        seen.append(self.param_groups[0]['lr'])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, 'step', noted)
    rates, _ = lr_range_test(bowl, 1e-3, 1e-2, iters=3, device='cpu')
    np.testing.assert_allclose(seen, 0.1 * rates)


def test_a_step_is_one_of_training_as_the_config_has_it(bowl):
    Noting.seen.clear()
    MODELS.register_module(name='Noting', module=Noting, force=True)
    bowl.model, bowl.optimizer_config = dict(type='Noting'), dict(grad_clip=dict(max_norm=1.))
    bowl.bf16 = bowl.channels_last = True
    bowl.compile = dict(backend='eager')
    try:
        rates, _ = lr_range_test(bowl, 1e-3, 1e-2, iters=3, device='cpu')
    finally:
        del MODELS.module_dict['Noting']
    assert [one[:3] for one in Noting.seen] == [(torch.bfloat16, True, True)] * 3
    assert Noting.seen[1][3] == pytest.approx(1 - rates[0])  # the gradient is clipped to 1


def test_the_momentum_stays_while_the_rate_moves(bowl):
    plain, bowl.momentum_config = lr_range_test(bowl, 1e-3, 1e-1, iters=6, device='cpu'), dict(policy='OneCycle')
    bowl.optimizer = dict(type='SGD', lr=0.1, momentum=0.9)
    with_policy = lr_range_test(bowl, 1e-3, 1e-1, iters=6, device='cpu')
    bowl.momentum_config = None
    np.testing.assert_array_equal(with_policy[1], lr_range_test(bowl, 1e-3, 1e-1, iters=6, device='cpu')[1])
    assert not np.array_equal(with_policy[1], plain[1])


def test_more_steps_than_batches_begin_another_pass(bowl):
    rates, _ = lr_range_test(bowl, 1e-6, 1e-5, iters=70, device='cpu')
    assert len(rates) == 70  # 4,000 digits are 63 batches


def test_the_average_is_that_of_adam_and_a_constant_stays():
    np.testing.assert_allclose(smoothed(np.full(5, 2.0)), 2.0)
    np.testing.assert_allclose(smoothed(np.array([1.0, 0.0])), [1.0, 0.09 / 0.19])


def test_the_suggestion_is_a_tenth_of_the_best_and_nan_is_no_best():
    rates, losses = np.geomspace(1e-4, 1, 9), np.array([5, 5, 4, 3, 2, 1, 1, 30, np.nan])
    assert suggested(rates, losses) == pytest.approx(rates[6] / 10)


@pytest.mark.parametrize('low, high, iters', [(0, 1, 5), (1, 1, 5), (1e-3, 1, 1)])
def test_no_range_is_refused(low, high, iters):
    with pytest.raises(ValueError, match='no range'):
        lr_range_test(DIGITS, low, high, iters)


def test_the_picture_has_the_numbers_and_nothing_is_cut_off():
    rates = np.geomspace(1e-4, 1, 30)
    plot = lr_range_plot(rates, np.linspace(3, 1, 30), 'x.py')
    assert_nothing_is_cut_off(plot)
    assert len(plot.table.rows) == 12 and 'begin with about 0.1' in plot.alt
    assert plot.figure.axes[0].get_xscale() == 'log'


def test_on_digits_it_suggests_a_rate_that_trains(tmp_path, capsys):
    picture = tmp_path / 'lr.png'
    assert main(['lr_find', DIGITS, '--iters', '60', '--low', '1e-3', '--save-path', str(picture), '--device', 'cpu',
                 '--cfg-options', 'data.workers_per_gpu=0']) == 0
    said = capsys.readouterr().out
    assert picture.stat().st_size > 5000 and 'begin with about' in said
    assert 1e-3 < float(said.split('begin with about ')[1].split('.\n')[0]) < 0.5
