"""Names to classes: registering, finding, building, and the errors on the way (mmcv 1.x semantics)."""
from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from workspace_lib.config import Config
from workspace_lib.registry import DATASETS, MODELS, Registry, build_from_cfg


@pytest.fixture
def models() -> Registry:
    """A registry with a class of two arguments and a function."""
    registry = Registry('model', scope='here')

    @registry.register_module()
    class ResNet:
        def __init__(self, depth, stages=4):
            if depth not in (18, 50):
                raise ValueError(f'depth={depth}')
            self.depth, self.stages = depth, stages

    @registry.register_module()
    def doubled(x):
        return 2 * x

    return registry


# registering

def test_decorator_registers_under_the_class_name_and_returns_the_class():
    registry = Registry('r')

    @registry.register_module()
    class A:
        pass

    assert isinstance(A, type) and registry.get('A') is A and len(registry) == 1


@pytest.mark.parametrize('names', [['a', 'b'], ('a', 'b')])
def test_names_replace_the_class_name(names):
    registry = Registry('r')
    cls = type('A', (), {})
    assert registry.register_module(name=names, module=cls) is cls
    assert set(registry.module_dict) == {'a', 'b'}


def test_name_force_and_module_may_be_positional():
    registry = Registry('r')
    first, second = type('A', (), {}), type('B', (), {})
    registry.register_module('n', False, first)
    registry.register_module('n', True, second)
    assert registry.get('n') is second


def test_without_parentheses_it_works_and_warns():
    registry = Registry('r')
    with pytest.warns(DeprecationWarning, match='register_module'):
        @registry.register_module
        class A:
            pass
    assert registry.get('A') is A


def test_a_taken_name_is_an_error_that_says_by_whom(models):
    with pytest.raises(KeyError, match=r'ResNet is already registered in model by .*test_registry\.py:\d+'):
        models.register_module(name='ResNet', module=type('Other', (), {}))


def test_of_several_names_none_is_registered_when_one_is_taken(models):
    with pytest.raises(KeyError, match='already registered'):
        models.register_module(name=['fresh', 'ResNet'], module=type('Other', (), {}))
    assert 'fresh' not in models


def test_a_definition_that_is_run_again_replaces_itself():
    registry = Registry('r')
    cell = 'class A: pass\nregistry.register_module(module=A)'
    for _ in range(2):
        space = dict(registry=registry, __name__='__main__')
        exec(cell, space)
    assert registry.get('A') is space['A']


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(module=3), "module must be a class or a function, but got <class 'int'>"),
    (dict(force=1), 'force must be a boolean'),
    (dict(name=7), 'name must be None, a str or a sequence of str'),
    (dict(name=['a', 7]), 'name must be None, a str or a sequence of str'),
])
def test_wrong_arguments_of_register_module(arguments, message):
    with pytest.raises(TypeError, match=message):
        Registry('r').register_module(**{'module': dict, **arguments})


# scopes

@pytest.fixture
def family() -> tuple[Registry, Registry, Registry]:
    """A root (mmcv) and two children (mmcls, mmdet), each with a class of its own initial."""
    root = Registry('root', scope='mmcv')
    cls, det = Registry('cls', parent=root, scope='mmcls'), Registry('det', parent=root, scope='mmdet')
    for registry, name in ((root, 'R'), (cls, 'C'), (det, 'D')):
        registry.register_module(name=name, module=type(name, (), {}))
    return root, cls, det


def test_a_bare_name_is_looked_up_in_its_own_table_only(family):
    root, cls, _ = family
    assert cls.get('R') is None and root.get('C') is None


@pytest.mark.parametrize('name', ['mmcv.R', 'mmcls.C', 'mmdet.D'])
def test_a_scoped_name_is_found_from_everywhere(family, name):
    assert all(name in registry and registry.get(name).__name__ == name[-1] for registry in family)


def test_an_empty_parent_still_is_a_parent():
    root = Registry('root', scope='mmcv')
    cls, det = Registry('cls', parent=root, scope='mmcls'), Registry('det', parent=root, scope='mmdet')
    det.register_module(name='D', module=dict)
    assert cls.get('mmdet.D') is dict


def test_an_unknown_scope_is_not_found_and_the_error_names_it(family):
    _, cls, _ = family
    assert cls.get('nowhere.C') is None
    with pytest.raises(KeyError, match="nowhere.C is not in the cls registry.*of scope 'nowhere'"):
        cls.build(dict(type='nowhere.C'))


def test_a_registered_name_may_hold_a_dot():
    registry = Registry('r', scope='here')
    registry.register_module(name='timm.resnet18', module=dict)
    assert registry.get('timm.resnet18') is registry.get('here.timm.resnet18') is dict


def test_two_children_of_one_scope():
    root = Registry('root')
    Registry('a', parent=root, scope='mmcls')
    with pytest.raises(AssertionError, match='scope mmcls exists in root registry'):
        Registry('b', parent=root, scope='mmcls')


def test_scope_defaults_to_the_package_that_constructs_it():
    space: dict = dict(Registry=Registry, __name__='mmdet.models.builder')
    exec("R = Registry('models')", space)
    assert space['R'].scope == 'mmdet'


def test_build_func_is_inherited():
    root = Registry('root', build_func=lambda cfg, registry: (registry.name, cfg), scope='a')
    assert Registry('child', parent=root, scope='b').build(dict(x=1)) == ('child', dict(x=1))


def test_the_library_answers_to_the_scope_that_configs_use():
    assert MODELS.scope == DATASETS.scope == 'mmcls'


def test_repr():
    registry = Registry('e')
    assert repr(registry) == 'Registry(name=e, items={})' and len(registry) == 0


# building

def test_builds_a_class_a_function_and_a_type_given_as_object(models):
    assert models.build(dict(type='ResNet', depth=18)).depth == 18
    assert models.build(dict(type='here.doubled', x=4)) == 8
    assert build_from_cfg(dict(type=models.get('doubled'), x=5), models) == 10


def test_default_args_fill_in_only_and_the_config_is_left_alone(models):
    cfg = dict(type='ResNet', depth=50)
    built = models.build(cfg, default_args=dict(depth=18, stages=3))
    assert (built.depth, built.stages, cfg) == (50, 3, dict(type='ResNet', depth=50))
    assert models.build({}, default_args=dict(type='doubled', x=1)) == 2


@pytest.mark.parametrize(('cfg', 'default_args', 'error', 'message'), [
    ([], None, TypeError, "cfg must be a dict, but got <class 'list'>"),
    (dict(depth=18), None, KeyError, 'must contain the key "type", but got'),
    (dict(type='ResNet'), [], TypeError, 'default_args must be a dict or None'),
    (dict(type=3), None, TypeError, 'type must be a str, a class or a function'),
    (dict(type='Resnet'), None, KeyError, 'Resnet is not in the model registry; nearest: ResNet'),
    (dict(type='Nothing'), None, KeyError, 'Nothing is not in the model registry.*custom_imports'),
    (dict(type='ResNet', dpeth=18), None, TypeError, "ResNet has no argument 'dpeth'; did you mean 'depth'?"),
    (dict(type='doubled', y=1), None, TypeError, "doubled has no argument 'y'; known: x"),
])
def test_what_cannot_be_built(models, cfg, default_args, error, message):
    with pytest.raises(error, match=message.replace('?', r'\?')):
        build_from_cfg(cfg, models, default_args)


def test_registry_of_another_kind(models):
    with pytest.raises(TypeError, match='registry must be a Registry'):
        build_from_cfg(dict(type='ResNet'), models.module_dict)


def test_a_keyword_is_not_checked_where_any_is_taken():
    registry = Registry('r')
    registry.register_module(name='any', module=lambda **kwargs: kwargs)
    assert registry.build(dict(type='any', x=1)) == dict(x=1)


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


def test_the_constructors_own_exception_arrives_with_a_note_per_level():
    registry = Registry('r')

    @registry.register_module()
    class Inner:
        def __init__(self):
            raise TwoArguments(7, 'broken')

    @registry.register_module()
    class Outer:
        def __init__(self, part):
            self.part = registry.build(part)

    with pytest.raises(TwoArguments) as caught:
        registry.build(dict(type='Outer', part=dict(type='Inner')))
    assert caught.value.code == 7
    assert caught.value.__notes__ == ['while building Inner', 'while building Outer']


@pytest.fixture
def cfg(tmp_config) -> Config:
    return Config.fromfile(tmp_config('''
        model = dict(
            type='ImageClassifier',
            backbone=dict(
                type='Resnet',
                depth=17))
        '''.replace('\n        ', '\n')))


def test_errors_say_where_in_the_config_it_was_set(models, cfg):
    with pytest.raises(KeyError, match=r'model\.backbone\.type, set in .*c\.py:5'):
        models.build(cfg.model.backbone)


def test_an_unknown_keyword_says_where_it_was_set(models, cfg):
    models.register_module(name='Resnet', module=lambda dephts: None)
    with pytest.raises(TypeError, match=r"no argument 'depth'.*model\.backbone\.depth, set in .*c\.py:6"):
        models.build(cfg.model.backbone)


def test_a_constructors_exception_says_where_its_config_is(models, cfg):
    cfg.model.backbone.type = 'ResNet'
    with pytest.raises(ValueError, match='depth=17') as caught:
        models.build(cfg.model.backbone)
    assert 'model.backbone, set in' in caught.value.__notes__[0]


# which import registered it

@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `pets`: its line 2 imports .models, whose line 1 imports .cat; there Cat is in line 4."""
    files = {
        '__init__.py': '"""Pets."""\nfrom .models import cat\n',
        'models/__init__.py': 'from . import cat\n',
        'models/cat.py': ('from workspace_lib.registry import Registry\n'
                          "PETS = Registry('pet')\n\n"
                          '@PETS.register_module()\n'
                          'class Cat:\n    pass\n'),
        'late.py': 'import pets\n\ndef bring():\n    from pets.models import cat\n    return cat\n',
    }
    for name, text in files.items():
        file = tmp_path / 'pets' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / 'pets'
    for name in [n for n in sys.modules if n.split('.')[0] == 'pets']:
        del sys.modules[name]


def test_registered_by_names_every_import_on_the_way(package):
    pets = importlib.import_module('pets')
    chain = pets.models.cat.PETS.registered_by('Cat')
    assert [(file, line) for file, line in chain if str(package) in file] == [
        (str(package / '__init__.py'), 2), (str(package / 'models/__init__.py'), 1),
        (str(package / 'models/cat.py'), 4)]


def test_registered_by_sees_an_import_inside_a_function(package):
    (package / '__init__.py').write_text('')
    cat = importlib.import_module('pets.late').bring()
    assert (str(package / 'late.py'), 4) in cat.PETS.registered_by('Cat')


def test_registered_by_ends_where_the_class_is_written():
    import argparse
    registry = Registry('r')
    registry.register_module(module=argparse.ArgumentParser)
    file, line = registry.registered_by('ArgumentParser')[-1]
    assert file == argparse.__file__
    assert 'class ArgumentParser' in Path(file).read_text().splitlines()[line - 1]


def test_registered_by_an_unknown_name(models):
    with pytest.raises(KeyError, match='Resnet is not in the model registry; nearest: ResNet'):
        models.registered_by('Resnet')


# beside the original

STATEMENTS = [
    "R.get('A')", "R.get('s.A')", "'A' in R", "'B' in R", "R.get('B')", 'len(R)', 'R.name', 'R.scope',
    'repr(R)', "R.build(dict(type='A', x=3)).x", "R.build(dict(type='s.A', x=3)).x",
    'R.build(dict(type=A), dict(x=4)).x', "R.build(dict(type='A', x=1), default_args=dict(x=2)).x",
    "R.build(dict(type='f', x=2))", "R.build(dict(type='ZZ'))", 'R.build([])',
    "R.build(dict(type='A'), default_args=3)", 'R.build(dict(type=3))', 'R.build(dict(x=1))',
    'build_from_cfg(dict(type=A), 3)', 'R.register_module(module=3)', 'R.register_module(force=1)',
    'R.register_module(name=3)', "R.register_module(name='A', module=f)",
    "R.register_module(name=['f', 'g'], module=A, force=True) is A and sorted(R.module_dict)",
    "R.register_module('h', False, f) and sorted(R.module_dict)",
    "Registry('c', parent=R, scope='t').parent is R",
    "[Registry('c', parent=R, scope='t') for _ in range(2)]",
    "Registry('c', parent=R, scope='t').get('s.A')", "Registry('c', parent=R, scope='t').get('A')",
]
SETTING = '''
R = Registry('model', scope='s')
@R.register_module()
class A:
    def __init__(self, x=0):
        self.x = x
@R.register_module()
def f(x):
    return 10 * x
'''


def outcome(registry_class, build, statement: str) -> str:
    space = dict(Registry=registry_class, build_from_cfg=build, __name__='somewhere')
    exec(SETTING, space)
    try:
        return repr(eval(statement, space)).split(' at 0x')[0]
    except Exception as error:
        # the first words: what follows them here (nearest names, the place, the way out) is more than there
        return f'{type(error).__name__}: {" ".join(str(error).split()[:2])}'


@pytest.mark.parametrize('statement', STATEMENTS)
def test_the_same_outcome_as_in_mmcv(statement):
    mmcv_utils = pytest.importorskip('mmcv.utils')
    ours = outcome(Registry, build_from_cfg, statement)
    assert ours == outcome(mmcv_utils.Registry, mmcv_utils.build_from_cfg, statement)
