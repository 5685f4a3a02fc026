"""The config explorer: its tables and tree are functions, tested here; the widget only puts them on a page."""
from __future__ import annotations

import re

import pytest

from workspace_lib.config import Config
from workspace_lib.tools.cli import main
from workspace_lib.tools.config_view import (
    ABSENT,
    ConfigTree,
    changes,
    config_explorer,
    explored,
    parse_options,
    search,
)


@pytest.fixture
def cfg(tmp_path) -> Config:
    (tmp_path / 'base.py').write_text("optimizer = dict(type='SGD', lr=0.1)\nmodel = dict(\n    depth=50)\n")
    (tmp_path / 'child.py').write_text("_base_ = './base.py'\noptimizer = dict(lr=0.2)\n"
                                       'steps = [dict(size=1), dict()]\n')
    return Config.fromfile(tmp_path / 'child.py')


def test_an_override_names_what_it_takes_the_place_of(cfg):
    one, = changes(cfg, {'optimizer.lr': 0.3})
    assert (one.key, one.before, one.after) == ('optimizer.lr', '0.2', '0.3')
    assert re.fullmatch(r'.*child\.py:2 \(over .*base\.py:1\)', one.origin)
    assert cfg.optimizer.lr == 0.2


def test_a_new_value_and_a_deleted_one_are_changes(cfg):
    found = {change.key: (change.before, change.after)
             for change in changes(cfg, {'model': dict(_delete_=True, width=2)})}
    assert found == {'model.depth': ('50', ABSENT), 'model.width': (ABSENT, '2')}


def test_the_same_number_of_another_type_is_a_change_and_the_same_value_is_none(cfg):
    assert not changes(cfg, {'model.depth': 50})
    assert [change.after for change in changes(cfg, {'model.depth': 50.0})] == ['50.0']


def test_an_element_of_a_list_is_named_by_its_index(cfg):
    assert [change.key for change in changes(cfg, {'steps.0.size': 2})] == ['steps.0.size']


def test_search_finds_keys_values_and_places(cfg):
    assert [row[0] for row in search(cfg, 'LR').rows] == ['optimizer.lr']
    assert [row[0] for row in search(cfg, 'sgd').rows] == ['optimizer.type']
    assert [row[0] for row in search(cfg, 'base.py:3').rows] == ['model.depth']
    assert len(search(cfg).rows) == 5


def test_the_tree_holds_every_value_with_its_place_and_is_escaped(tmp_path):
    (tmp_path / 'c.py').write_text("a = dict(b=[dict(c='<x>')], empty=dict())\n")
    tree = ConfigTree(Config.fromfile(tmp_path / 'c.py'))
    assert [line.split('  #')[0] for line in str(tree).splitlines()] == [
        'a: dict of 2', '   b: list of 1', '      0: dict of 1', "         c: '<x>'", '   empty: {}']
    page = tree._repr_html_()
    assert '&lt;x&gt;' in page and '<x>' not in page and page.count('<details open') == 1 and page.count('c.py:1') == 2


def test_options_are_read_as_on_the_command_line():
    assert parse_options('a.b=1e-3 c=[1,2] d=None') == {'a.b': 1e-3, 'c': [1, 2], 'd': None}
    assert parse_options('') == {}
    with pytest.raises(ValueError, match="expected KEY=VALUE, got 'nonsense'"):
        parse_options('nonsense')


@pytest.mark.parametrize('options, said', [('optimizer.lr=0.3', '<td style="text-align:left">0.3</td>'),
                                           ('optimizer.lr=0.2', 'changes nothing'),
                                           ('optimizer.lr', 'expected KEY=VALUE'),
                                           ('steps.7.size=1', 'Index 7 exceeds')])
def test_the_page_says_what_an_override_would_do(cfg, options, said):
    assert said in explored(cfg, 'depth', options)


def test_the_explorer_draws_anew_at_every_change(cfg):
    find, override, picture = config_explorer(cfg).children
    assert 'base.py:3' in picture.value
    find.value = 'SGD'
    assert 'base.py:3' not in picture.value and 'optimizer.type' in picture.value
    override.value = 'model.depth=18'
    assert '<td style="text-align:left">18</td>' in picture.value


def test_the_command_line_shows_changes_and_finds_values(cfg, capsys):
    assert main(['config', str(cfg.filename), '--changes', '--cfg-options', 'optimizer.lr=0.3']) == 0
    assert re.search(r'optimizer\.lr +0\.2 +0\.3 +.*child\.py:2', capsys.readouterr().out)
    assert main(['config', str(cfg.filename), '--search', 'depth']) == 0
    assert 'model.depth' in capsys.readouterr().out
