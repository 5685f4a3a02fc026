"""The recipes that ship with the library, and the keys that are refused."""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from workspace_lib import datasets  # noqa: F401  (registers them)
from workspace_lib.models import build_classifier
from workspace_lib.optim import build_optimizer
from workspace_lib.recipes import CONFIGS, load_config
from workspace_lib.registry import DATASETS
from workspace_lib.schedules import lr_schedule

RECIPES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py')
                 if '_base_' not in path.parts)


def test_there_are_recipes_of_every_family():
    families = {'lenet', 'resnet', 'resnest', 'resnext', 'seresnet', 'vgg', 'mobilenet_v2', 'convnext',
                'vision_transformer', 'efficientnet'}
    assert families <= {recipe.split('/')[0] for recipe in RECIPES}


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_builds(recipe):
    if 'lite0' in recipe and find_spec('timm') is None:
        pytest.skip('needs timm (extra demo)')
    cfg = load_config(recipe)
    model = build_classifier(cfg.model)
    optimizer = build_optimizer(model, cfg.optimizer)
    schedule = lr_schedule(cfg.lr_config, cfg.runner.max_epochs, 10)
    assert 0 < schedule(cfg.optimizer.lr, 0) <= cfg.optimizer.lr
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))
    classes = DATASETS.get(cfg.data.train.type).CLASSES
    assert getattr(model.head, 'num_classes', len(classes)) == len(classes)


def recipes_of_mmcls():
    spec = find_spec('mmcls')
    folder = Path(spec.origin).parent / '.mim' / 'configs' if spec and spec.origin else None
    return [p for p in sorted(folder.rglob('*.py')) if '_base_' not in p.parts] if folder else []


@pytest.mark.filterwarnings("ignore:.*will be deprecated:DeprecationWarning")
def test_no_shipped_recipe_of_mmclassification_is_taken_for_a_misspelling():
    recipes = recipes_of_mmcls()
    if not recipes:
        pytest.skip('needs mmcls (extra lab)')
    loaded = 0
    for recipe in recipes:
        try:
            load_config(recipe)
        except FileNotFoundError:  # two recipes name a base file that upstream renamed
            continue
        loaded += 1
    assert loaded == 280


@pytest.mark.filterwarnings("ignore:.*will be deprecated:DeprecationWarning")
@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_of_the_same_name_has_the_same_model_and_schedule(recipe):
    theirs = {path.parent.name + '/' + path.name: path for path in recipes_of_mmcls()}
    if recipe not in theirs:
        pytest.skip('mmcls is not installed, or has no recipe of this name')
    ours, other = load_config(recipe), load_config(theirs[recipe])
    for key in ('model', 'optimizer', 'optimizer_config', 'lr_config', 'runner'):
        assert ours[key] == other[key], key


@pytest.mark.parametrize('key, meant', [('optimzer', 'optimizer'), ('lr_confg', 'lr_config'),
                                        ('chekpoint_config', 'checkpoint_config'), ('custom_hook', 'custom_hooks')])
def test_a_misspelt_key_is_refused_with_its_line(tmp_path, key, meant):
    (tmp_path / 'c.py').write_text(f'model = None\n{key} = dict(a=1)\n')
    with pytest.raises(KeyError, match=f"'{key}'; did you mean '{meant}'.*c.py:2"):
        load_config(tmp_path / 'c.py')


def test_options_leave_the_callers_config_alone(tmp_path):
    (tmp_path / 'c.py').write_text('model = dict(depth=1)\n')
    mine = load_config(tmp_path / 'c.py')
    assert load_config(mine, {'model.depth': 2}).model.depth == 2
    assert mine.model.depth == 1 and load_config(mine).origin('model.depth').line == 1


def test_a_variable_of_ones_own_is_no_misspelling(tmp_path):
    (tmp_path / 'c.py').write_text('_optimzer = 1\nimg_norm_cfg = dict(a=1)\ntrain_pipeline = []\n')
    assert load_config(tmp_path / 'c.py').img_norm_cfg.a == 1


def test_an_option_that_would_change_nothing_is_refused(tmp_path):
    (tmp_path / 'c.py').write_text('model = dict(depth=1)\n')
    with pytest.raises(KeyError, match="did you mean 'model'"):
        load_config(tmp_path / 'c.py', {'modle.depth': 2})
    assert load_config(tmp_path / 'c.py', {'model.depth': 2, 'bf16': True}).model.depth == 2
