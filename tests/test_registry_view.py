"""The registry browser: which entries it finds, with their places and sources; the widget only puts them on a page."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import workspace_lib
from workspace_lib.registry import HOOKS, MODELS, Registry
from workspace_lib.tools.cli import main
from workspace_lib.tools.registry_view import (
    REGISTRIES,
    browsed,
    named,
    registry_browser,
    registry_table,
    source_of,
)

PARTS = Registry('part')


@PARTS.register_module(name=['Leaf', 'Blatt'])
class Leaf:
    """Of a tree; <b>bold</b>."""


@PARTS.register_module()
def bark():
    return 'rough'


def test_a_class_has_one_row_with_all_its_names_and_its_line():
    rows = registry_table(PARTS).rows
    assert [row[:2] for row in rows] == [('Leaf, Blatt', f'{__name__}.Leaf'), ('bark', f'{__name__}.bark')]
    assert all('test_registry_view.py:' in row[2] for row in rows)


def test_search_looks_at_names_classes_and_places_and_ignores_case():
    assert [row[0] for row in registry_table(PARTS, 'BLATT').rows] == ['Leaf, Blatt']
    assert not registry_table(PARTS, 'beech').rows
    assert [row[0] for row in registry_table(named('models'), 'backbones/vgg.py').rows] == ['VGG']


def test_the_imports_that_led_to_a_class_stand_outermost_first():
    code = ('import workspace_lib.tools.registry_view as view\n'
            'print(view.registry_table(view.named("models"), "models/backbones/vgg.py"))')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          cwd=Path(workspace_lib.__file__).parents[1]).stdout
    chain = said.splitlines()[-1].split('  ')[-1].split(' > ')
    files = [place.split(':')[0] for place in chain]
    assert files[-2:] == ['workspace_lib/apis.py', 'workspace_lib/models/__init__.py']


def test_source_is_the_text_of_the_class():
    assert source_of(PARTS, 'Blatt').startswith("@PARTS.register_module(name=['Leaf', 'Blatt'])\nclass Leaf:")
    with pytest.raises(KeyError, match='nearest: Leaf'):
        source_of(PARTS, 'Leav')


def test_what_was_typed_in_without_a_text_says_so():
    parts = Registry('typed')
    exec('class Typed:\n    def f(self): ...', space := {'__name__': 'typed'})
    parts.register_module(module=space['Typed'])
    assert source_of(parts, 'Typed') == '# <string>:2: its source is not to be had'


@pytest.mark.parametrize('name', REGISTRIES)
def test_every_named_table_is_filled(name):
    assert len(registry_table(named(name)).rows) >= 1


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="no registry 'modles'; there are models, datasets"):
        named('modles')


def test_the_page_is_escaped_and_holds_the_source_of_the_choice(monkeypatch):
    monkeypatch.setattr('workspace_lib.tools.registry_view.named', lambda name: PARTS)
    assert 'rough' not in browsed('models') and 'rough' in browsed('models', '', 'bark')
    assert '&lt;b&gt;bold' in browsed('models', '', 'Leaf')


def test_the_browser_follows_its_controls():
    menu, find, chosen, picture = registry_browser().children
    assert 'LinearClsHead' in picture.value and 'EMAHook' not in picture.value
    menu.value = 'hooks'
    assert 'EMAHook' in picture.value and len(chosen.options) > 5
    find.value = 'emahook'
    assert list(chosen.options) == ['', 'EMAHook']
    chosen.value = 'EMAHook'
    assert 'def averages_shown' in picture.value


def test_the_command_line(capsys):
    assert main(['registry', 'hooks', '--search', 'emahook']) == 0
    assert 'workspace_lib.weight_hooks.EMAHook' in capsys.readouterr().out
    assert main(['registry', '--source', 'VGG']) == 0
    assert 'class VGG(' in capsys.readouterr().out
    assert main(['registry', 'modles']) == 1
    assert 'there are models' in capsys.readouterr().err


def test_what_was_filled_is_what_a_config_finds():
    assert named('models') is MODELS and named('hooks') is HOOKS
