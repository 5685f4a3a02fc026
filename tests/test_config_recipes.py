"""All recipes of mmclassification 0.25, where it is installed: same values as with mmcv's loader, every origin true."""
from __future__ import annotations

import hashlib
import importlib.util
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from workspace_lib.config import Config
from workspace_lib.tools.annotate import annotate, leaves, origins

pytestmark = pytest.mark.filterwarnings('ignore:The config file .* will be deprecated:DeprecationWarning')

# SHA-256 of `name=repr(values)` lines of the 280 recipes of mmcls 0.25.0 as mmcv 1.7.2 loads them.
LOADED_BY_MMCV = '7a3fa9e719f16240ff1e011424b33ed0e559c3054d13b663643afb6d9b749ebb'
# The lines whose numbers are computed, so that they hold neither the value nor its index.
COMPUTED = ("pad_val=[round(x) for x in img_norm_cfg['mean'][::-1]],",
            "train_ckpt_nodes=['backbone.layers.{}'.format(i) for i in range(12)])",
            "dict(type='Resize', size=(256 * 256 // 224, -1), backend='pillow'),")
# Their bases are not in the wheel.
BROKEN = {'mobilenet_v3/mobilenet-v3-small_8xb16_cifar10.py', 'mobilenet_v3/mobilenet_v3_small_cifar.py'}


def recipes_folder() -> Path | None:
    found = importlib.util.find_spec('mmcls')  # finds it without importing it
    folder = Path(found.origin).parent / '.mim' / 'configs' if found and found.origin else None
    return folder if folder and folder.is_dir() else None


@pytest.fixture(scope='module')
def folder() -> Path:
    found = recipes_folder()
    if found is None:
        pytest.skip('mmcls 0.25 is not installed: no recipes to compare with')
    return found


@pytest.fixture(scope='module')
def recipes(folder) -> dict[str, Config]:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob('*.py'))
    return {name: Config.fromfile(folder / name)
            for name in names if not name.startswith('_base_') and name not in BROKEN}


def identical(first: Any, second: Any) -> bool:
    """Equal values of equal types, dictionaries of any kind in the same order."""
    if isinstance(first, dict) and isinstance(second, dict):
        return list(first) == list(second) and all(identical(first[key], second[key]) for key in first)
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(identical, first, second))
    return first == second


def test_280_recipes_load(recipes):
    assert len(recipes) == 280


@pytest.mark.parametrize('name', sorted(BROKEN))
def test_a_recipe_without_its_base_says_so(folder, name):
    with pytest.raises(FileNotFoundError, match=r'small_cifar.py" does not exist \(named in `_base_`, .*:[0-9]+\)'):
        Config.fromfile(folder / name)


def test_same_values_as_with_mmcv(recipes):
    if version('mmcls') != '0.25.0':
        pytest.skip(f'the digest is of mmcls 0.25.0, installed is {version("mmcls")}')
    text = ''.join(f'{name}={cfg.to_dict()!r}\n' for name, cfg in recipes.items())
    assert hashlib.sha256(text.encode()).hexdigest() == LOADED_BY_MMCV


@pytest.mark.slow
def test_same_as_mmcv_side_by_side(folder, recipes):
    mmcv = pytest.importorskip('mmcv')
    for name, cfg in recipes.items():
        theirs = mmcv.Config.fromfile(str(folder / name))
        assert identical(cfg.to_dict(), theirs._cfg_dict), name
        assert cfg.text == theirs.text and cfg.filename == theirs.filename, name


def test_pretty_text_parses_back(recipes):
    for name, cfg in recipes.items():
        assert identical(Config.fromstring(cfg.pretty_text, '.py').to_dict(), cfg.to_dict()), name


def test_annotated_text_parses_back(recipes):
    for name in list(recipes)[::20]:
        assert identical(Config.fromstring(annotate(recipes[name]), '.py').to_dict(), recipes[name].to_dict()), name


@cache
def line(file: str, number: int) -> str:
    return Path(file).read_text().split('\n')[number - 1]


def holds_key(text: str, key: str) -> bool:
    return re.search(rf'(?<!\w){re.escape(key)}(?!\w)', text) is not None


def holds_value(text: str, value: Any) -> bool:
    if isinstance(value, str):
        return value in text
    numbers = re.findall(r'[-+]?[\d.]+(?:[eE][-+]?\d+)?', text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return any(float(number) == value for number in numbers if number.strip('.+-'))
    return repr(value).replace(' ', '').replace(',)', ')') in text.replace(' ', '').replace(',)', ')')


def test_the_line_of_every_leaf_holds_its_key_or_value(recipes):
    """A named leaf's line holds its key; an element's line holds its value or is one of COMPUTED."""
    wrong, computed, count = [], 0, 0
    for name, cfg in recipes.items():
        for path, value in leaves(cfg.to_dict()):
            count += 1
            origin = cfg.origin(path)
            text = line(origin.file, origin.line)
            if holds_key(text, path[-1]) if isinstance(path[-1], str) else holds_value(text, value):
                continue
            named = next(key for key in reversed(path) if isinstance(key, str))
            if isinstance(path[-1], int) and holds_key(text, named) and text.strip() in COMPUTED:
                computed += 1
            else:
                wrong.append((name, path, value, str(origin), text))
    assert not wrong, f'{len(wrong)} of {count}: {wrong[:5]}'
    assert count > 60_000 and computed < count / 100


def test_origins_are_those_of_one_question_after_the_other(recipes):
    for name, cfg in list(recipes.items())[::4]:
        found = origins(cfg)
        assert found == {path: cfg.origin(path) for path, _ in leaves(cfg.to_dict())}, name


def test_every_line_on_the_way_holds_the_value_or_a_name(recipes):
    """The further lines of an alias, and what was overridden, hold the key, the value or one of the path's names."""
    wrong = []
    for name, cfg in list(recipes.items())[::4]:
        for path, value in leaves(cfg.to_dict()):
            origin = cfg.origin(path)
            for old in origin.overrides:
                if isinstance(path[-1], str) and not holds_key(line(old.file, old.line), path[-1]):
                    wrong.append((name, path, str(old)))
            names = [key for key in path if isinstance(key, str)]
            for file, number in origin.alias:
                text = line(file, number)
                if not any(holds_key(text, key) for key in names) and '**' not in text and not holds_value(text, value):
                    wrong.append((name, path, f'{file}:{number}'))
    assert not wrong, wrong[:5]
