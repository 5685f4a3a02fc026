"""Learning rates: equal to mmcv's hooks over every iteration of every schedule in the recipes, and clear errors."""
from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import workspace_lib
from workspace_lib.config import Config
from workspace_lib.hooks import MomentumUpdaterHook
from workspace_lib.schedules import POLICIES, lr_schedule, momentum_schedule

BASE = Path(workspace_lib.__file__).parent / 'configs' / '_base_'
BASE_LRS = (0.1, 0.064)


def sample_schedule(lr_config: dict, base_lr: float, epochs: int, iters_per_epoch: int) -> np.ndarray:
    """The learning rate of each iteration of a run, float64 (epochs * iters_per_epoch,)."""
    schedule = lr_schedule(lr_config, epochs, iters_per_epoch)
    return np.array([schedule(base_lr, i) for i in range(epochs * iters_per_epoch)])


def mmcv_rates(lr_config: dict, epochs: int, iters_per_epoch: int) -> np.ndarray:
    """(iterations, groups): what mmcv's hook leaves in an optimizer before each step of an EpochBasedRunner."""
    hooks = pytest.importorskip('mmcv.runner').HOOKS
    options = copy.deepcopy(lr_config)
    policy = options.pop('policy')
    policy = policy.title() if policy == policy.lower() else policy
    if policy == 'CosineAnnealingCooldown':
        pytest.importorskip('mmcls.core')
    hook = hooks.get(f'{policy}LrUpdaterHook')(**options)
    groups = [dict(lr=lr) for lr in BASE_LRS]
    runner = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups), data_loader=range(iters_per_epoch),
                             max_epochs=epochs, max_iters=epochs * iters_per_epoch, epoch=0, iter=0)
    hook.before_run(runner)
    rates = []
    for runner.epoch in range(epochs):
        hook.before_train_epoch(runner)
        for _ in range(iters_per_epoch):
            hook.before_train_iter(runner)
            rates.append([group['lr'] for group in groups])
            runner.iter += 1
    return np.array(rates)


def assert_equal_rates(lr_config: dict, epochs: int, iters_per_epoch: int) -> None:
    reference = mmcv_rates(lr_config, epochs, iters_per_epoch)
    for column, base_lr in enumerate(BASE_LRS):
        ours = sample_schedule(lr_config, base_lr, epochs, iters_per_epoch)
        np.testing.assert_allclose(ours, reference[:, column], rtol=1e-12, atol=0, err_msg=str(lr_config))


def distinct_schedules() -> list[tuple[dict, int]]:
    """Every (lr_config, max_epochs) of mmclassification's recipes; the one that counts in iterations is left out."""
    mmcls = pytest.importorskip('mmcls')
    found = {}
    for path in (Path(mmcls.__file__).parent / '.mim' / 'configs').glob('[!_]*/*.py'):
        try:
            cfg = Config.fromfile(str(path))
        except FileNotFoundError:  # two recipes name a base that was never shipped
            continue
        if cfg.get('lr_config') and cfg.runner.get('max_epochs'):
            found[repr((cfg.lr_config, cfg.runner.max_epochs))] = cfg.lr_config.to_dict(), cfg.runner.max_epochs
    return list(found.values())


@pytest.mark.filterwarnings('ignore:The config file:DeprecationWarning')
def test_every_schedule_of_the_recipes_equals_mmcv():
    schedules = distinct_schedules()
    assert len(schedules) > 25
    for lr_config, epochs in schedules:
        warmup = 0 if lr_config.get('warmup_by_epoch') else lr_config.get('warmup_iters', 0)
        assert_equal_rates(lr_config, epochs, warmup // epochs + 3)


CONFIGS = [
    dict(policy='fixed'),
    dict(policy='step', step=2), dict(policy='Step', step=[2, 5, 6], gamma=0.3),
    dict(policy='step', step=1, min_lr=0.02),
    dict(policy='exp', gamma=0.9), dict(policy='inv', gamma=0.1, power=0.75),
    dict(policy='poly'), dict(policy='poly', power=0.9, min_lr=1e-4),
    dict(policy='CosineAnnealing', min_lr=0), dict(policy='CosineAnnealing', min_lr_ratio=0.05),
    dict(policy='CosineAnnealingCooldown', min_lr=1e-5, cool_down_time=2, cool_down_ratio=0.3),
    dict(policy='FlatCosineAnnealing', min_lr=1e-5),
    dict(policy='FlatCosineAnnealing', start_percent=0.3, min_lr_ratio=0.1),
    dict(policy='LinearAnnealing', min_lr=1e-3), dict(policy='LinearAnnealing', min_lr_ratio=0.),
    dict(policy='CosineRestart', periods=[3, 20, 60], restart_weights=[1, 0.5, 0.25], min_lr=1e-4),
]
# these count iterations only
CYCLES = [
    dict(policy='Cyclic'), dict(policy='cyclic', target_ratio=(5., 1e-2), cyclic_times=3, step_ratio_up=0.3, gamma=0.7),
    dict(policy='Cyclic', target_ratio=4., anneal_strategy='linear'), dict(policy='Cyclic', target_ratio=(4.,)),
    dict(policy='OneCycle', max_lr=0.2), dict(policy='OneCycle', max_lr=0.2, total_steps=70, anneal_strategy='linear'),
    dict(policy='OneCycle', max_lr=0.2, pct_start=0.25, three_phase=True, div_factor=10, final_div_factor=100),
]
MOMENTA = [
    dict(policy='step', step=[2, 5]), dict(policy='step', step=3, gamma=0.9, min_momentum=0.7),
    dict(policy='CosineAnnealing', min_momentum=0.3), dict(policy='CosineAnnealing', min_momentum_ratio=0.5),
    dict(policy='LinearAnnealing', min_momentum=0.3),
]
MOMENTUM_CYCLES = [
    dict(policy='cyclic', cyclic_times=2, gamma=0.5), dict(policy='Cyclic', target_ratio=(0.5, 0.9)),
    dict(policy='OneCycle'), dict(policy='OneCycle', base_momentum=0.8, max_momentum=0.9, three_phase=True,
                                  anneal_strategy='linear', pct_start=0.2),
]
WARMUPS = [
    {}, dict(warmup='constant', warmup_iters=9, warmup_ratio=0.2), dict(warmup='linear', warmup_iters=10),
    dict(warmup='exp', warmup_iters=11, warmup_ratio=0.01), dict(warmup='linear', warmup_iters=1000),
    dict(warmup='linear', warmup_iters=2, warmup_ratio=1e-3, warmup_by_epoch=True),
]


@pytest.mark.parametrize('by_epoch', [True, False, None])
@pytest.mark.parametrize('policy', CONFIGS, ids=lambda config: config['policy'])
def test_policies_equal_mmcv(policy, by_epoch):
    for warmup in WARMUPS:
        how = {} if by_epoch is None else dict(by_epoch=by_epoch)
        assert_equal_rates({**policy, **warmup, **how}, epochs=8, iters_per_epoch=7)


@pytest.mark.parametrize('policy', CYCLES, ids=str)
def test_cycles_equal_mmcv(policy):
    for warmup in WARMUPS[:3]:
        assert_equal_rates({**policy, **warmup}, epochs=8, iters_per_epoch=8)


@pytest.mark.parametrize('kind', ['momentum', 'betas'])
@pytest.mark.parametrize('policy', [*MOMENTA, *(dict(policy, by_epoch=False) for policy in MOMENTA), *MOMENTUM_CYCLES],
                         ids=str)
def test_momentum_equals_mmcv(policy, kind):
    for warmup in [{}, dict(warmup='constant', warmup_iters=9), dict(warmup='linear', warmup_iters=10),
                   dict(warmup='exp', warmup_iters=11, warmup_ratio=0.8)]:
        config = {**policy, **warmup}
        expected = mmcv_momenta(config, kind)
        np.testing.assert_allclose(our_momenta(config, kind), expected, rtol=1e-12, err_msg=str(config))


def momentum_runner(kind, epochs=8, iters_per_epoch=8):
    groups = [dict(momentum=m) if kind == 'momentum' else dict(betas=(m, 0.999)) for m in (0.9, 0.8)]
    return SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups, defaults={kind: None}), max_epochs=epochs,
                           max_iters=epochs * iters_per_epoch, epoch=0, iter=0, data_loader=range(iters_per_epoch))


def momenta(hook, kind, epochs=8, iters_per_epoch=8):
    runner, found = momentum_runner(kind), []
    hook.before_run(runner)
    for runner.epoch in range(epochs):
        hook.before_train_epoch(runner)
        for _ in range(iters_per_epoch):
            hook.before_train_iter(runner)
            found.append([np.ravel(group[kind])[0] for group in runner.optimizer.param_groups])
            runner.iter += 1
    return np.array(found)


def our_momenta(config, kind):
    return momenta(MomentumUpdaterHook(momentum_schedule(config, 8, 8)), kind)


def mmcv_momenta(config, kind):
    options = dict(config)
    policy = options.pop('policy')
    policy = policy.title() if policy == policy.lower() else policy
    return momenta(pytest.importorskip('mmcv.runner').HOOKS.get(f'{policy}MomentumUpdaterHook')(**options), kind)


def test_an_optimizer_without_momentum_is_named():
    runner = SimpleNamespace(optimizer=SimpleNamespace(param_groups=[dict(lr=1.)]))
    with pytest.raises(ValueError, match='has no momentum'):
        MomentumUpdaterHook(momentum_schedule(dict(policy='step', step=1), 1, 1)).before_run(runner)


@pytest.mark.parametrize(('config', 'error', 'message'), [
    (dict(policy='poly'), KeyError, 'poly is not a momentum policy'),
    (dict(policy='CosineAnnealing', min_lr=0), TypeError, "momentum_config .* has no argument 'min_lr'"),
    (dict(policy='OneCycle', max_momentum=[0.9, 0.8]), ValueError, 'max_momentum of OneCycle is one number'),
    (dict(policy='OneCycle', by_epoch=True), ValueError, 'momentum_config: the policy OneCycle counts iterations'),
])
def test_bad_momentum_configs_are_errors(config, error, message):
    with pytest.raises(error, match=message):
        momentum_schedule(config, 10, 5)


def test_periods_that_end_before_the_run_are_an_error():
    schedule = lr_schedule(dict(policy='CosineRestart', periods=[2, 3], restart_weights=[1, 1], min_lr=0), 10, 5)
    with pytest.raises(ValueError, match='periods end at 5, before the run does, at 10'):
        schedule(0.1, 0)


def test_values_by_hand():
    config = dict(policy='step', step=[1, 2], warmup='linear', warmup_iters=2, warmup_ratio=0.5)
    rates = sample_schedule(config, base_lr=1., epochs=3, iters_per_epoch=2)
    np.testing.assert_allclose(rates, [0.5, 0.75, 0.1, 0.1, 0.01, 0.01])


def test_a_tuple_of_steps_is_a_list():
    assert lr_schedule(dict(policy='step', step=(1, 2)), 3, 1)(1., 2) == pytest.approx(0.01)


def test_warmup_by_epoch_in_a_run_counted_in_iterations():
    config = dict(policy='fixed', warmup='linear', warmup_iters=2, warmup_ratio=0.5, warmup_by_epoch=True)
    schedule = lr_schedule(config, None, iters_per_epoch=3, max_iters=10)
    assert [schedule(1., i) for i in (0, 3, 6)] == [0.5, 0.75, 1.]


def test_a_policy_of_ones_own(monkeypatch):
    monkeypatch.setitem(POLICIES, 'Half', lambda after: lambda lr, progress, total: lr / 2 if progress > after else lr)
    assert sample_schedule(dict(policy='half', after=1), 1., 3, 1).tolist() == [1., 1., 0.5]


def test_a_schedule_has_no_memory():
    schedule = lr_schedule(dict(policy='CosineAnnealing', min_lr=0, warmup='exp', warmup_iters=5), 3, 10)
    forward = [schedule(0.1, i) for i in range(30)]
    assert [schedule(0.1, i) for i in reversed(range(30))] == forward[::-1]


def test_a_run_counted_in_iterations_anneals_by_iteration():
    schedule = lr_schedule(dict(policy='CosineAnnealing', min_lr=0), None, iters_per_epoch=3, max_iters=10)
    assert schedule(1., 5) == pytest.approx(0.5)


def test_by_epoch_in_a_run_counted_in_iterations_rounds_its_epochs_up():
    schedule = lr_schedule(dict(policy='poly', by_epoch=True), None, iters_per_epoch=3, max_iters=10)
    assert [schedule(1., i) for i in (0, 3, 9)] == [1., 0.75, 0.25]


def test_a_cooldown_longer_than_the_run_is_all_of_it():
    config = dict(policy='CosineAnnealingCooldown', min_lr=0.01, cool_down_time=10)
    assert sample_schedule(config, 0.1, 10, 1).tolist() == pytest.approx([0.001] * 10)


@pytest.mark.parametrize(('config', 'error', 'message'), [
    (dict(step=[3]), KeyError, 'lr_config needs a policy, one of Fixed, Step'),
    (dict(policy='cosine', min_lr=0), KeyError, "cosine is not a learning rate policy; did you mean 'CosineAnnealing'"),
    (dict(policy='cosineannealing', min_lr=0), KeyError, "did you mean 'CosineAnnealing'"),
    (dict(policy='stepp', step=3), KeyError, "did you mean 'Step'"),
    (dict(policy='step', step=3, gama=0.1), TypeError, "has no argument 'gama'; did you mean 'gamma'"),
    (dict(policy='step', step=3, warmup_iter=5), TypeError, "did you mean 'warmup_iters'"),
    (dict(policy='step'), TypeError, "policy 'step' needs the argument 'step'"),
    (dict(policy='step', step=0), ValueError, 'step must be a positive int or a list of them, but got 0'),
    (dict(policy='step', step=[30, 60.5]), ValueError, 'step must be a positive int'),
    (dict(policy='CosineAnnealing'), ValueError, 'needs one of min_lr and min_lr_ratio'),
    (dict(policy='CosineAnnealing', min_lr=0, min_lr_ratio=0.1), ValueError, 'needs one of min_lr and min_lr_ratio'),
    (dict(policy='Cyclic', by_epoch=True), ValueError, 'the policy Cyclic counts iterations, but by_epoch=True'),
    (dict(policy='OneCycle', max_lr=1., anneal_strategy='sin'), ValueError, "='sin'; known: 'cos', 'linear'"),
    (dict(policy='OneCycle', max_lr=[0.1, 0.2]), ValueError, 'max_lr of OneCycle is one number'),
    (dict(policy='CosineRestart', periods=[1, 2], min_lr=0), ValueError, '2 periods, but 1 restart_weights'),
    (dict(policy='fixed', warmup='lin', warmup_iters=5), ValueError, "warmup='lin' is unknown; choose from constant"),
    (dict(policy='fixed', warmup='linear'), ValueError, 'needs warmup_iters > 0'),
    (dict(policy='fixed', warmup='linear', warmup_iters=5, warmup_ratio=0.), ValueError, '0 < warmup_ratio <= 1'),
])
def test_bad_configs_are_errors(config, error, message):
    with pytest.raises(error, match=message):
        lr_schedule(config, 10, 5)


def test_the_length_is_given_once():
    for length in (dict(max_epochs=None), dict(max_epochs=3, max_iters=9)):
        with pytest.raises(ValueError, match='either max_epochs or max_iters'):
            lr_schedule(dict(policy='fixed'), iters_per_epoch=3, **length)


def test_errors_say_where_the_value_was_set(tmp_config):
    cfg = Config.fromfile(tmp_config("lr_config = dict(\n    policy='step', step=[3],\n    gama=0.1)\n"))
    with pytest.raises(TypeError, match=r'lr_config\.gama, set in .*c\.py:3'):
        lr_schedule(cfg.lr_config, 10, 5)


@pytest.mark.parametrize('path', [
    'default_runtime.py', *(f'schedules/{name}.py' for name in (
        'imagenet_bs256', 'imagenet_bs256_coslr', 'imagenet_bs2048_coslr', 'imagenet_bs1024_adamw_swin',
        'cifar10_bs128'))])
def test_shipped_bases_equal_mmclassification(path):
    mmcls = pytest.importorskip('mmcls')
    theirs = Path(mmcls.__file__).parent / '.mim' / 'configs' / '_base_' / path
    assert Config.fromfile(str(BASE / path)).to_dict() == Config.fromfile(str(theirs)).to_dict()


@pytest.mark.parametrize('path', sorted((BASE / 'schedules').glob('*.py')), ids=lambda path: path.stem)
def test_shipped_schedules_start_at_or_below_the_base_rate_and_stay_there(path):
    cfg = Config.fromfile(str(path))
    rates = sample_schedule(cfg.lr_config, cfg.optimizer.lr, cfg.runner.max_epochs, 50)
    assert rates.min() >= 0
    assert rates[-1] < rates.max() <= cfg.optimizer.lr * (1 + 1e-12)
