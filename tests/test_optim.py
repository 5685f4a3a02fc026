"""Optimizers: parameter for parameter the settings of mmcv's constructor, in fewer groups, and clear errors."""
from __future__ import annotations

import copy
import itertools
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from workspace_lib.config import Config
from workspace_lib.optim import DefaultOptimizerConstructor, build_optimizer
from workspace_lib.registry import OPTIMIZER_BUILDERS, OPTIMIZERS

SGD = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
EVERY_RULE = dict(
    bias_lr_mult=2., bias_decay_mult=0.5, norm_decay_mult=0., dwconv_decay_mult=0.25,
    custom_keys={'.cls_token': dict(decay_mult=0.), 'head': dict(lr_mult=10), 'head.fc1': dict(lr_mult=3)})


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


class Toy(nn.Module):
    """A parameter at the top, a depthwise convolution, each kind of norm, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 8))
        self.body = nn.ModuleDict(dict(
            conv=nn.Conv2d(3, 8, 3), depthwise=nn.Conv2d(8, 8, 3, groups=8), bn=nn.BatchNorm2d(8),
            inst=nn.InstanceNorm2d(8, affine=True), group=nn.GroupNorm(2, 8), frozen=nn.Conv2d(8, 8, 1)))
        self.norm = nn.LayerNorm(8)
        self.head = Head()
        self.body['frozen'].requires_grad_(False)

    def forward(self, x):
        for layer in self.body.values():
            x = layer(x)
        return self.head(self.norm(x.mean((2, 3)) + self.cls_token))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict]:
    names = {id(param): name for name, param in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        rest = {key: value for key, value in group.items() if key != 'params'}
        found.update({names[id(param)]: rest for param in group['params']})
    assert len(found) == sum(len(group['params']) for group in optimizer.param_groups)
    return found


def mmcv_optimizer(model, cfg):
    return pytest.importorskip('mmcv.runner').build_optimizer(model, copy.deepcopy(cfg))


def train(model, optimizer, steps=3):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()
    assert all(param.isfinite().all() for param in model.parameters())


RULES = [dict(combination) for size in (1, 2, 6) for combination in itertools.combinations(
    {**EVERY_RULE, 'bypass_duplicate': True}.items(), size)]


@pytest.mark.parametrize('paramwise', [None, {}, *RULES, EVERY_RULE], ids=lambda rule: '+'.join(rule or ['none']))
def test_settings_equal_mmcv(paramwise):
    model, cfg = Toy(), dict(SGD, paramwise_cfg=paramwise)
    assert settings(build_optimizer(model, cfg), model) == settings(mmcv_optimizer(model, cfg), model)


def recipe(path: str) -> Config:
    mmcls = pytest.importorskip('mmcls')
    return Config.fromfile(str(Path(mmcls.__file__).parent / '.mim' / 'configs' / path))


@pytest.mark.parametrize('path', [
    'swin_transformer/swin-tiny_16xb64_in1k.py', 'resnest/resnest50_32xb64_in1k.py',
    'csra/resnet101-csra_1xb16_voc07-448px.py', 'shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py',
    'mobilenet_v3/mobilenet-v3-small_8xb32_in1k.py',
    'twins/twins-pcpvt-small_8xb128_in1k.py', 'vision_transformer/vit-base-p32_pt-64xb64_in1k-224.py',
])
def test_settings_of_a_recipe_equal_mmcv(path):
    cfg = recipe(path)
    build = pytest.importorskip('mmcls.models').build_classifier
    model = build(pytest.importorskip('mmcv').ConfigDict(cfg.model.to_dict()))
    reference = settings(mmcv_optimizer(model, cfg.optimizer.to_dict()), model)
    optimizer = build_optimizer(model, cfg.optimizer)
    assert settings(optimizer, model) == reference
    assert len(optimizer.param_groups) <= 3


@pytest.mark.parametrize('kind', ['SGD', 'AdamW'])
def test_weights_after_training_equal_mmcv(kind):
    ours = Toy()
    theirs = copy.deepcopy(ours)
    cfg = dict(type=kind, lr=1e-3, weight_decay=0.05, paramwise_cfg=EVERY_RULE)
    train(ours, build_optimizer(ours, cfg))
    train(theirs, mmcv_optimizer(theirs, cfg))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_parameters_of_equal_settings_share_a_group():
    optimizer = build_optimizer(Toy(), dict(SGD, paramwise_cfg=dict(norm_decay_mult=0.)))
    assert [group['weight_decay'] for group in optimizer.param_groups] == [1e-4, 0.]


def test_resumes_from_one_group_per_parameter():
    cfg = dict(type='AdamW', lr=1e-3, weight_decay=0.05, paramwise_cfg=EVERY_RULE)
    theirs = Toy()
    mmcv_like = mmcv_optimizer(theirs, cfg)
    train(theirs, mmcv_like)
    ours = copy.deepcopy(theirs)
    optimizer = build_optimizer(ours, cfg)
    optimizer.load_state_dict(copy.deepcopy(mmcv_like.state_dict()))
    train(theirs, mmcv_like)
    train(ours, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_resumes_from_its_own_groups():
    cfg = dict(SGD, lr=1e-3, paramwise_cfg=EVERY_RULE)
    model = Toy()
    optimizer = build_optimizer(model, cfg)
    train(model, optimizer)
    other = copy.deepcopy(model)
    resumed = build_optimizer(other, cfg)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    train(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_resuming_under_other_rules_is_an_error():
    model = Toy()
    saved = mmcv_optimizer(model, dict(SGD, paramwise_cfg=dict(bias_lr_mult=2.))).state_dict()
    optimizer = build_optimizer(model, dict(SGD, paramwise_cfg=dict(norm_decay_mult=0.)))
    with pytest.raises(ValueError, match='another paramwise_cfg'):
        optimizer.load_state_dict(saved)


def test_every_optimizer_of_torch_is_registered():
    for name in ('SGD', 'Adam', 'AdamW', 'RMSprop', 'Adagrad', 'RAdam', 'NAdam', 'LBFGS'):
        assert OPTIMIZERS.get(name) is getattr(torch.optim, name)
    assert 'Optimizer' not in OPTIMIZERS


def test_the_config_is_left_as_it_is():
    cfg = dict(SGD, paramwise_cfg=copy.deepcopy(EVERY_RULE))
    before = copy.deepcopy(cfg)
    build_optimizer(Toy(), cfg)
    assert cfg == before


def test_a_wrapped_model_gives_names_without_the_wrapper():
    model = Toy()
    optimizer = build_optimizer(nn.DataParallel(model), dict(SGD, paramwise_cfg=dict(custom_keys={
        '.cls_token': dict(lr_mult=0.)})))
    assert settings(optimizer, model)['cls_token']['lr'] == 0.


def test_the_longest_custom_key_counts_then_the_alphabet():
    model = Toy()
    keys = {'head': dict(lr_mult=2), 'ad.fc1': dict(lr_mult=4), 'd.fc1.': dict(lr_mult=3)}
    found = settings(build_optimizer(model, dict(SGD, paramwise_cfg=dict(custom_keys=keys))), model)
    assert found['head.fc1.weight']['lr'] == 0.1 * 4
    assert found['head.fc2.weight']['lr'] == 0.1 * 2


def test_tied_weights_need_bypass_duplicate(caplog):
    with pytest.raises(ValueError, match='b.weight is also a.weight; set paramwise_cfg.bypass_duplicate=True'):
        build_optimizer(Tied(), dict(SGD, paramwise_cfg=dict(norm_decay_mult=0.)))
    optimizer = build_optimizer(Tied(), dict(SGD, paramwise_cfg=dict(bypass_duplicate=True)))
    assert sum(len(group['params']) for group in optimizer.param_groups) == 3
    assert 'b.weight is also a.weight' in caplog.text


def test_a_constructor_of_ones_own():
    class LayerDecay(DefaultOptimizerConstructor):
        def add_params(self, params, module, prefix='', is_dcn_module=None):
            params.extend(dict(params=[param], lr=self.base_lr / 2 ** ('head' not in name))
                          for name, param in module.named_parameters())

    OPTIMIZER_BUILDERS.register_module(module=LayerDecay, force=True)
    model = Toy()
    optimizer = build_optimizer(model, dict(SGD, constructor='LayerDecay', paramwise_cfg=dict(bias_lr_mult=1.)))
    assert [group['lr'] for group in optimizer.param_groups] == [0.05, 0.1]


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(KeyError, match='AdamWW is not in the optimizer registry; nearest: .*AdamW'):
        build_optimizer(Toy(), dict(type='AdamWW', lr=0.1))


def test_unknown_argument_names_the_nearest():
    with pytest.raises(TypeError, match="SGD has no argument 'momentun'; did you mean 'momentum'"):
        build_optimizer(Toy(), dict(type='SGD', lr=0.1, momentun=0.9))


@pytest.mark.parametrize(('paramwise', 'message'), [
    (dict(norm_decay_mul=0.), "no key 'norm_decay_mul'; did you mean 'norm_decay_mult'"),
    (dict(custom_keys={'head': dict(lr_mul=1)}), r"custom_keys\['head'\] has no key 'lr_mul'; did you mean 'lr_mult'"),
    (dict(custom_keys={'head': 0.1}), r"custom_keys\['head'\] must be a dict, but got 0.1"),
    (dict(custom_keys=['head']), r"custom_keys must be a dict, but got \['head'\]"),
    (['norm'], r"paramwise_cfg must be a dict, but got \['norm'\]"),
])
def test_misspelt_rules_are_errors(paramwise, message):
    with pytest.raises(TypeError, match=message):
        build_optimizer(Toy(), dict(SGD, paramwise_cfg=paramwise))


@pytest.mark.parametrize(('paramwise', 'message'), [
    (dict(bias_lr_mult=2.), 'bias_lr_mult is a factor on optimizer.lr, which is not set'),
    (dict(norm_decay_mult=0.), 'norm_decay_mult is a factor on optimizer.weight_decay, which is not set'),
    (dict(custom_keys={'head': dict(decay_mult=0.)}), 'decay_mult is a factor on optimizer.weight_decay'),
])
def test_a_factor_on_what_is_not_set_is_an_error(paramwise, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(Toy(), dict(type='AdamW', paramwise_cfg=paramwise))


def test_rules_without_lr_keep_the_optimizers_own_default():
    optimizer = build_optimizer(Toy(), dict(type='AdamW', weight_decay=0.05, paramwise_cfg=dict(norm_decay_mult=0.)))
    assert {group['lr'] for group in optimizer.param_groups} == {1e-3}


def test_a_leftover_delete_is_ignored_with_a_warning(caplog):
    build_optimizer(Toy(), dict(SGD, paramwise_cfg=dict(_delete=True, norm_decay_mult=0.)))
    assert 'paramwise_cfg._delete is ignored' in caplog.text


def test_dcn_offset_lr_mult_is_ignored_with_a_warning(caplog):
    build_optimizer(Toy(), dict(SGD, paramwise_cfg=dict(dcn_offset_lr_mult=0.1)))
    assert 'dcn_offset_lr_mult is ignored' in caplog.text


def test_custom_keys_that_match_nothing_are_reported(caplog):
    caplog.set_level(logging.INFO, 'workspace_lib.optim')
    build_optimizer(Toy(), dict(SGD, paramwise_cfg=dict(custom_keys={'.nope': dict(lr_mult=1)})))
    assert 'match no parameter: .nope' in caplog.text


def test_errors_say_where_the_value_was_set(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text("optimizer = dict(\n    type='SGD', lr=0.1,\n    paramwise_cfg=dict(norm_decay=0.))\n")
    with pytest.raises(TypeError, match=r'optimizer\.paramwise_cfg\.norm_decay, set in .*c\.py:3'):
        build_optimizer(Toy(), Config.fromfile(str(path)).optimizer)


LAMBS = [{}, dict(bias_correction=False), dict(grad_averaging=False, trust_clip=True), dict(max_grad_norm=1e-3),
         dict(weight_decay=0., always_adapt=True), dict(weight_decay=0.02, betas=(0.8, 0.99), eps=1e-4, lr=5e-3)]


@pytest.mark.parametrize('options', LAMBS, ids=str)
def test_lamb_equals_mmclassification(options):
    theirs = pytest.importorskip('mmcls.core.optimizers.lamb').Lamb
    torch.manual_seed(0)
    ours, other = nn.Sequential(nn.LayerNorm(8), Head()).double(), nn.Sequential(nn.LayerNorm(8), Head()).double()
    other.load_state_dict(ours.state_dict())
    cfg = dict(lr=1e-2, weight_decay=0.01) | options

    def groups(model):  # no decay, and so no scaling, for the norm
        return [dict(params=model[0].parameters(), weight_decay=0.), dict(params=model[1].parameters())]

    optimizers = OPTIMIZERS.get('Lamb')(groups(ours), **cfg), theirs(groups(other), **cfg)
    for model, optimizer in zip((ours, other), optimizers, strict=True):
        for step in range(5):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(4, 8, dtype=torch.float64)).pow(2).sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # their norm of all gradients is float32


def test_lamb_without_a_limit_takes_gradients_as_they_are():
    after = []
    for limit in (None, 1e9):
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.tensor([1e3, 2e3, 3e3])
        OPTIMIZERS.get('Lamb')([p], max_grad_norm=limit).step()
        after.append((p.tolist(), p.grad.tolist()))
    assert after[0] == after[1] and after[0][1] == [1e3, 2e3, 3e3]


def test_lamb_resumes_to_the_bit():
    def steps(model, optimizer, numbers):
        for number in numbers:
            torch.manual_seed(number)
            optimizer.zero_grad()
            model(torch.randn(4, 3, 6, 6)).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = Toy()
    optimizer = build_optimizer(whole, dict(type='Lamb', lr=0.01))
    steps(whole, optimizer, [1, 2])
    part, saved = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    steps(whole, optimizer, [3, 4])
    resumed = build_optimizer(part, dict(type='Lamb', lr=0.01))
    resumed.load_state_dict(saved)
    steps(part, resumed, [3, 4])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_rmsprop_takes_the_options_of_the_recipes():
    options = dict(lr=0.064, alpha=0.9, momentum=0.9, eps=0.0316, weight_decay=1e-5)
    optimizer = build_optimizer(Toy(), dict(type='RMSprop', **options))
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert {key: optimizer.param_groups[0][key] for key in options} == options
