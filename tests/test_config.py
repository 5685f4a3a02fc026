"""Config: loading, inheritance, overrides, text, and which line set what.

What differs from mmcv 1.x on purpose is tested here under the name that docs/compatibility.md gives.
"""
from __future__ import annotations

import argparse
import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from workspace_lib.config import Config, ConfigDict, Origin, place_text, where
from workspace_lib.tools.annotate import leaves, origins
from workspace_lib.tools.options import DictAction


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(name=text, ...) makes files (`a` is a.py, `a_yaml` is a.yaml) in the current folder; returns its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])  # where mmcv leaves something after an error

    def write(**files: str) -> Path:
        for name, text in files.items():
            stem, _, extension = name.partition('_')
            (tmp_path / f'{stem}.{extension or "py"}').write_text(text)
        return tmp_path
    return write


def load(write, text: str, **files: str) -> Config:
    write(c=text, **files)
    return Config.fromfile('c.py')


# loading

def test_attributes_and_items_at_every_depth(write):
    cfg = load(write, 'model = dict(backbone=dict(depth=50), heads=[dict(n=1)], pair=(dict(m=2), 3))')
    assert cfg.model.backbone.depth == cfg['model']['backbone']['depth'] == 50
    assert cfg.model.heads[0].n == 1 and cfg.model.pair[0].m == 2
    assert len(cfg) == 1 and list(cfg) == ['model'] and 'model' in cfg and cfg.get('nope', 3) == 3


def test_missing_attribute_and_item(write):
    cfg = load(write, 'a = dict(depth=1)')
    with pytest.raises(AttributeError, match="'ConfigDict' object has no attribute 'b'"):
        _ = cfg.b
    with pytest.raises(KeyError, match="^'b'$"):
        cfg.a['b']
    assert not hasattr(cfg.a, 'dept') and 'depth' in dir(cfg.a)


def test_what_a_python_file_keeps(write):
    cfg = load(write, 'import os\nfrom pathlib import Path\n__hidden = 1\n_kept = 2\ndef f(): pass\ng = lambda: 0\n'
                      'class A: pass\na = A()\nsize = 3')
    assert set(cfg) == {'Path', '_kept', 'A', 'a', 'size'}


def test_formats(write):
    write(a_json='{"a": [1, {"b": null}]}', b_yaml='a: !!python/tuple [1, 2]\nb: {c: 1e-3, d: 0.5}', c_yml='a: yes')
    assert Config.fromfile('a.json').to_dict() == {'a': [1, {'b': None}]}
    assert Config.fromfile(Path('b.yaml')).to_dict() == {'a': (1, 2), 'b': {'c': '1e-3', 'd': 0.5}}
    assert Config.fromfile('c.yml').a is True


def test_line_ends_of_windows(write):
    (write() / 'c.py').write_bytes('a = """x\r\ny"""\r\nb = "é"\r\n'.encode())
    cfg = Config.fromfile('c.py')
    assert cfg.a == 'x\ny' and cfg.b == 'é' and '\r' not in cfg.text


def test_filename_and_text(write):
    folder = write(a='x = 1\n', b="_base_ = 'a.py'\n", c="_base_ = ['b.py']\ny = 2\n")
    cfg = Config.fromfile('c.py')
    assert cfg.filename == 'c.py'
    texts = [f'{folder}/{name}.py\n{(folder / f"{name}.py").read_text()}' for name in 'abc']
    assert cfg.text == '\n'.join(texts)
    assert repr(cfg) == "Config (path: c.py): {'x': 1, 'y': 2}"


def test_fromstring():
    cfg = Config.fromstring('a: 1\n', '.yaml')
    assert cfg.a == 1 and cfg.dump() == 'a: 1\n'
    with pytest.raises(OSError, match='Only py/yml/yaml/json type are supported now!'):
        Config.fromstring('a = 1', 'py')
    with pytest.warns(UserWarning, match='the file format may be .py'), pytest.raises(TypeError):
        Config.fromstring('a = dict(b=1)', '.yaml')


def test_fromstring_reads_bases_from_the_current_folder(write):
    write(a='x = 1')
    assert Config.fromstring("_base_ = 'a.py'\ny = 2", '.py').to_dict() == {'x': 1, 'y': 2}


def test_file_errors(write):
    write(c_txt='', l_yaml='[1, 2]', e_yaml='', s='a = 1\nb = (\n')
    with pytest.raises(OSError, match=r'Only py/yml/yaml/json type are supported now!.*c\.txt'):
        Config.fromfile('c.txt')
    with pytest.raises(TypeError, match='holds a mapping, but .*l.yaml holds a list'):
        Config.fromfile('l.yaml')
    with pytest.raises(SyntaxError, match=r'There are syntax errors in config file .*s.py: .*\(s.py, line 2\)'):
        Config.fromfile('s.py')
    assert Config.fromfile('e.yaml').to_dict() == {}
    Path('d.py').mkdir()
    with pytest.raises(FileNotFoundError, match='d.py" does not exist'):
        Config.fromfile('d.py')


def test_missing_file_names_near_files_and_who_asked(write):
    write(schedule='', c="a = 1\n_base_ = ['shedule.py']\n")
    message = r"file \".*shedule.py\" does not exist \(named in `_base_`, .*c.py:2\); did you mean 'schedule.py'"
    with pytest.raises(FileNotFoundError, match=message):
        Config.fromfile('c.py')
    with pytest.raises(FileNotFoundError, match="did you mean 'c.py'"):
        Config.fromfile('cc.py')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        Config.fromfile('no/such/folder/c.py')


@pytest.mark.parametrize(('name', 'text', 'error', 'line'), [
    ('c.py', 'a = 1\nb = a.nope\n', AttributeError, 2),
    ('c.py', 'def f():\n    return 1 / 0\na = f()\n', ZeroDivisionError, 2),
    ('c.json', '{"a": 1,\n"b": ]}', ValueError, 2)])
def test_an_error_inside_a_config_names_file_and_line(write, name, text, error, line):
    (write() / name).write_text(text)
    with pytest.raises(error) as caught:
        Config.fromfile(name)
    assert caught.value.__notes__[-1].endswith(f'{name}:{line}')


def test_a_config_leaves_no_trace(write):
    write(c='import sys\nname = __name__\nfile = __file__\nassert name in sys.modules', bad='1 / 0')
    before, path = set(sys.modules), list(sys.path)
    cfg = Config.fromfile('c.py')
    with pytest.raises(ZeroDivisionError):
        Config.fromfile('bad.py')
    assert set(sys.modules) == before and sys.path == path
    assert cfg.file == str(Path('c.py').absolute()) and not Path('__pycache__').exists()


def test_dataclass_in_a_config(write):
    assert load(write, 'from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n'
                       'class A:\n    x: int = 1\na = A().x').a == 1


def test_deprecation_names_the_file(write):
    with pytest.warns(DeprecationWarning, match=r'c.py will be deprecated in the future. Please use n.py instead. '
                                                'More information can be found at http://x'):
        cfg = load(write, "_deprecation_ = dict(expected='n.py', reference='http://x')\na = 1")
    assert cfg.to_dict() == {'a': 1}


@pytest.mark.parametrize('key', ['filename', 'text', 'pretty_text'])
def test_reserved_keys(write, key):
    cfg = Config(dict(a={key: 1}))  # nested is free
    for act in (lambda: Config({key: 1}), lambda: load(write, f'{key} = 1'), lambda: cfg.merge_from_dict({key: 1}),
                lambda: setattr(cfg, key, 1), lambda: cfg.__setitem__(key, 1)):
        with pytest.raises(KeyError, match=f'{key} is reserved for config file'):
            act()


def test_constructor_takes_a_dict():
    assert Config().to_dict() == {} and Config(None).filename is None
    with pytest.raises(TypeError, match=r"cfg_dict must be a dict, but got <class 'list'>"):
        Config([1])  # type: ignore[arg-type]


# inheritance

def test_child_over_base(write):
    cfg = load(write, "_base_ = 'b.py'\na = dict(x=2, new=3)\nlist = [9]\nb = dict()\nc = None\nd = (1,)",
               b='a = dict(x=1, y=1)\nlist = [1, 2]\nb = dict(k=1)\nc = 1\nd = [1]\ne = 1')
    assert cfg.to_dict() == dict(a=dict(x=2, y=1, new=3), list=[9], b=dict(k=1), c=None, d=(1,), e=1)
    assert list(cfg) == ['a', 'list', 'b', 'c', 'd', 'e']


def test_bases_of_every_format_and_depth(write):
    write(a_json='{"a": 1}', b_yaml='_base_: a.json\nb: 2', d_yml='d: 4', c="_base_ = ['b.yaml', 'd.yml']\nc = 3")
    assert Config.fromfile('c.py').to_dict() == dict(a=1, b=2, c=3, d=4)
    assert load(write, '_base_ = []\na = 1').to_dict() == {'a': 1}


def test_base_relative_to_the_file_and_absolute(write):
    folder = write(a='a = 1')
    (folder / 'sub').mkdir()
    (folder / 'sub' / 'c.py').write_text("_base_ = '../a.py'")
    (folder / 'sub' / 'd.py').write_text(f"_base_ = '{folder}/a.py'")
    assert Config.fromfile('sub/c.py').a == Config.fromfile('sub/d.py').a == 1


def test_delete_replaces_and_vanishes(write):
    cfg = load(write, "_base_ = 'b.py'\na = dict(_delete_=True, z=1)\nb = dict(_delete_=False, y=2)\n"
                      'c = dict(_delete_=True, k=1)', b='a = dict(x=1)\nb = dict(x=1)\nc = 3')
    assert cfg.to_dict() == dict(a=dict(z=1), b=dict(x=1, y=2), c=dict(k=1))


def test_delete_with_nothing_to_delete_is_removed(write):
    text = 'n = dict(_delete_=True, a=dict(_delete_=True, x=1))\nl = [dict(_delete_=True, y=1)]'
    expected = dict(n=dict(a=dict(x=1)), l=[dict(y=1)])
    assert load(write, text).to_dict() == expected
    assert load(write, "_base_ = 'b.py'\n" + text, b='o = 1').to_dict() == dict(o=1, **expected)


def test_delete_in_a_shared_dict_counts_for_each_use(write):
    cfg = load(write, "_base_ = 'b.py'\nx = dict(_delete_=True, n=1)\na = x\nb = x", b='a = dict(o=1)\nb = dict(o=1)')
    assert cfg.a == cfg.b == cfg.x == dict(n=1)


def test_dict_over_something_else_names_both_lines(write):
    with pytest.raises(TypeError) as caught:
        load(write, "_base_ = 'b.py'\nm = dict(\n    a={'k': 1})", b='\nm = dict(a=1)')
    assert ("a={'k': 1} in child config cannot inherit from base because a is a dict in the child config but is of "
            "type <class 'int'> in base config. You may set `_delete_=True`") in str(caught.value)
    assert '(m.a, set in c.py:3, over b.py:2)' in str(caught.value)
    with pytest.raises(TypeError, match='cannot inherit'):
        load(write, "_base_ = 'b.py'\nm = {'0': dict(a=1)}", b='m = [dict(a=0)]')


def test_duplicate_keys_among_bases_name_the_lines(write):
    with pytest.raises(KeyError, match=r"Duplicate key is not allowed among bases. Duplicate keys: {'a'} "
                                       r'\(a in x.py:1, a in y.py:2; bases of .*c.py'):
        load(write, "_base_ = ['x.py', 'y.py']", x='a = 1', y='\na = 1')


def test_circle_of_bases_names_its_files(write):
    write(a="\n_base_ = 'b.py'", b="_base_ = ['c.py']", c="_base_ = 'a.py'")
    with pytest.raises(RecursionError, match=r'circle: .*a.py:2 -> .*b.py:1 -> .*c.py:1 -> .*a.py$'):
        Config.fromfile('a.py')


@pytest.mark.parametrize('value', ["('a.py', 'b.py')", 'None', '[1]'])
def test_base_of_a_wrong_type(write, value):
    with pytest.raises(TypeError, match=r'`_base_` must be a str or a list of str, not .* \(.*c.py:2\)'):
        load(write, f'a = 1\n_base_ = {value}')


# placeholders

def test_file_variables(write):
    folder = write(b="dir = '{{fileDirname}}'")
    names = '{{ fileBasename }} {{ fileBasenameNoExtension }}{{fileExtname }}'
    cfg = load(write, f"_base_ = './b.py'\na = '{names}'  # {{{{ no }}}}")
    assert cfg.a == 'c.py c.py' and cfg.dir == str(folder)
    raw = Config.fromfile('c.py', use_predefined_variables=False)
    assert raw.a.startswith('{{ fileBasename }}') and raw.dir == str(folder)


def test_base_variables(write):
    cfg = load(write, "_base_ = 'b.py'\na = {{ _base_.a }}\nn = [dict(x={{_base_.d.e}}), ({{_base_.d}},)]\n"
                      'd = dict(e=9)',
               b='a = 1\nd = dict(e=(2, 3))')
    assert cfg.to_dict() == dict(a=1, d=dict(e=9), n=[dict(x=(2, 3)), (dict(e=(2, 3)),)])
    write(y_yaml='_base_: b.py\nx: {{_base_.d.e}}\n', j_json='{"_base_": "b.py", "x": {{ _base_.a }}}')
    assert Config.fromfile('y.yaml').x == (2, 3) and Config.fromfile('j.json').x == 1


def test_base_variable_with_list_index(write):
    assert load(write, "_base_ = 'b.py'\nx = {{_base_.l.1.p}}", b='l = [0, dict(p=7)]').x == 7


def test_base_variable_in_quotes_and_as_key(write):
    cfg = load(write, "_base_ = 'b.py'\nx = '{{_base_.a}}'\ny = {{{_base_.k}}: 1}", b="a = 1\nk = 'kk'")
    assert cfg.to_dict() == dict(a=1, k='kk', x=1, y={'kk': 1})
    write(j_json='{"_base_": "b.py", "x": "{{ _base_.a }}"}')
    assert Config.fromfile('j.json').x == 1


@pytest.mark.parametrize(('text', 'error', 'message'), [
    ("_base_ = 'b.py'\nx = 'a {{_base_.a}}'", ValueError, r'{{_base_.a}} in .*c.py:2 is part of a longer string'),
    ("_base_ = 'b.py'\nx = \"a {{_base_.a}}\"", ValueError, 'is part of a longer string'),
    ("_base_ = 'b.py'\n\nx = [{{_base_.dpeth}}]", KeyError,
     "{{_base_.dpeth}} in .*c.py:3: the bases have no 'dpeth' there; did you mean 'depth'?"),
    ('x = {{_base_.a}}', ValueError, '{{_base_.a}} in .*c.py:1 refers to nothing: the file has no `_base_`'),
    ("_base_ = 'b.py'\nx = {{_base_.a}} + 1", TypeError, 'BaseVar'),
    ("_base_ = 'b.py'\nx = 1 if {{_base_.a}} else 2", TypeError, 'it cannot be tested')])
def test_base_variable_that_cannot_be_resolved(write, text, error, message):
    with pytest.raises(error, match=message):
        load(write, text, b='a = 1\ndepth = 2')


# custom imports

@pytest.fixture
def importable(tmp_path, monkeypatch):
    (tmp_path / 'borrowed_module.py').write_text('loaded = True')
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop('borrowed_module', None)


@pytest.mark.parametrize('imports', ["['borrowed_module']", "'borrowed_module'"])
def test_custom_imports(write, importable, imports):
    text = f'custom_imports = dict(imports={imports}, allow_failed_imports=False)'
    write(c=text)
    Config.fromfile('c.py', import_custom_modules=False)
    assert 'borrowed_module' not in sys.modules
    Config.fromstring(text, '.py')
    assert sys.modules['borrowed_module'].loaded


def test_failed_custom_import_names_module_and_line(write):
    with pytest.raises(ImportError, match=r"cannot import 'nope_xyz': .*custom_imports.imports, set in c.py:2"):
        load(write, "\ncustom_imports = dict(imports=['nope_xyz'], allow_failed_imports=False)")
    with pytest.warns(UserWarning, match='nope_xyz failed to import and is ignored.'):
        load(write, "custom_imports = dict(imports=['nope_xyz'], allow_failed_imports=True)")


@pytest.mark.parametrize(('value', 'message'), [
    ('dict(imports=3)', "custom_imports must be a list but got type <class 'int'>"),
    ('dict(imports=[3])', "3 is of type <class 'int'> and cannot be imported"),
    ("['a']", 'custom_imports must be dict'), ('dict(import_=1)', 'custom_imports must be dict')])
def test_custom_imports_of_a_wrong_type(write, value, message):
    with pytest.raises(TypeError, match=message):
        load(write, f'custom_imports = {value}')


# text

def rounds(values: dict) -> Config:
    again = Config.fromstring(Config(values).pretty_text, '.py')
    assert repr(again.to_dict()) == repr(values)
    return again


def test_pretty_text_layout():
    cfg = Config(dict(a=1, m=dict(t='X', n={}), l=[dict(a=1), {}], mixed=[1, dict(a=1)], t=(1,),
                      k={'x-y': 1, 'b': dict(c=1)},
                      long=dict(type='ResNet', depth=50, out_indices=(0, 1, 2, 3), style='pytorch', norm_eval=True)))
    assert cfg.pretty_text == '''\
a = 1
m = dict(t='X', n=dict())
l = [dict(a=1), dict()]
mixed = [1, {'a': 1}]
t = (1, )
k = dict({'x-y': 1, 'b': dict(c=1)})
long = dict(
    type='ResNet',
    depth=50,
    out_indices=(0, 1, 2, 3),
    style='pytorch',
    norm_eval=True
)
'''


def test_pretty_text_parses_back_whatever_the_strings():
    rounds(dict(a="it's", b='line\nline', c='back\\slash \\n', d='"""', e='{{{ fileDirname }} {{_base_.x}}', f='é\t',
                g="'\""))


def test_pretty_text_nan_and_inf():
    cfg = Config.fromstring(Config(dict(a=math.nan, b=[math.inf, -math.inf, (math.nan,)])).pretty_text, '.py')
    assert math.isnan(cfg.a) and cfg.b[:2] == [math.inf, -math.inf] and math.isnan(cfg.b[2][0])


@pytest.mark.parametrize('values', [
    {'x-y': 1, 'class': 2, 'ok': {'class': 1, 'a b': [2]}}, {'a': {1: 2, None: 3, (1, 2): 4}},
    {'a': ('x' * 50, [dict(a=['y' * 50, (1,)])], ()), 'b': [[dict(p=1, q='z' * 80)]] * 3},
    {'a': list(range(100)), 'b': tuple('abcdefghij' * 10), 'c': [-1.5e-7, 1e22, True, None, b'x', 1j]},
    {'a': ('x' * 90,), 'b': [('x' * 90,)], 'c': set(), 'd': {3}, 'e': frozenset({1}), 'f': range(3)}])
def test_pretty_text_parses_back_to_the_same(values):
    rounds(values)


def test_pretty_text_of_numpy_scalars_and_enums():
    np = pytest.importorskip('numpy')
    from enum import IntEnum
    colour = IntEnum('colour', 'RED')
    text = Config(dict(a=np.float64(0.5), b=np.int64(3), c=colour.RED, d=np.str_('s'))).pretty_text
    assert text == "a = 0.5\nb = 3\nc = 1\nd = 's'\n"


def test_pretty_text_of_imported_classes(write):
    cfg = load(write, 'from collections import OrderedDict as OD\nfrom math import sqrt\na = dict(type=OD, of=int)')
    imports = 'from collections import OrderedDict as OD\nfrom math import sqrt\n'
    assert cfg.pretty_text == imports + 'a = dict(type=OD, of=int)\n'
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


def test_pretty_text_of_an_object_names_its_key():
    with pytest.raises(TypeError, match=r'model.steps.1 = <object object .*> cannot be written as text'):
        _ = Config(dict(model=dict(steps=[1, object()]))).pretty_text
    with pytest.raises(TypeError, match='top-level key 1 is no str'):
        _ = Config({1: 2}).pretty_text


@pytest.mark.parametrize('extension', ['.py', '.json', '.yaml', '.yml'])
def test_dump_and_load(tmp_path, extension):
    values = dict(b=dict(x=[1, 2.5, None, True]), a='é', empty={}, none=[])
    file = tmp_path / f'out{extension}'
    assert Config(values).dump(file) is None  # a Path
    assert Config.fromfile(file).to_dict() == values
    Config(values).dump(str(file))
    assert list(Config.fromfile(file)) == list(values)


def test_dump_keeps_what_the_format_can(tmp_path):
    cfg = Config(dict(a=(1, (2,)), b={1: 2}))
    cfg.dump(tmp_path / 'a.yaml')
    assert Config.fromfile(tmp_path / 'a.yaml').to_dict() == cfg.to_dict()
    cfg.dump(tmp_path / 'a.json')
    assert Config.fromfile(tmp_path / 'a.json').to_dict() == dict(a=[1, [2]], b={'1': 2})


def test_dump_without_file_returns_the_format_it_came_from(write):
    write(a_json='{"a": 1}', b='a = 1')
    assert json.loads(Config.fromfile('a.json').dump()) == {'a': 1}
    assert Config.fromfile('b.py').dump() == Config(dict(a=1)).dump() == 'a = 1\n'


def test_failed_dump_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / 'a.py'
    file.write_text('kept')
    with pytest.raises(TypeError):
        Config(dict(a=object())).dump(file)
    with pytest.raises(OSError, match='Only py/yml/yaml/json'):
        Config().dump(tmp_path / 'a.txt')
    assert file.read_text() == 'kept'


def test_yaml_runs_no_code(write):
    yaml = pytest.importorskip('yaml')
    write(c_yaml='a: !!python/object/apply:os.system ["touch hacked"]')
    with pytest.raises(yaml.YAMLError):
        Config.fromfile('c.yaml')
    assert not Path('hacked').exists()


# changing

def test_assigned_dicts_become_attributes():
    cfg = Config(dict(model={}, l=[]))
    cfg.model.neck = dict(type='GAP')
    cfg.l = [dict(a=1)]
    cfg['x'] = dict(y=dict(z=1))
    cfg.model.setdefault('d', {})['e'] = [dict(f=1)]
    assert cfg.model.neck.type == 'GAP' and cfg.l[0].a == 1 and cfg.x.y.z == 1 and cfg.model.d.e[0].f == 1


def test_assigned_config_dicts_and_lists_are_the_same_objects():
    cfg = Config(dict(a=dict(b={}), l=[{}]))
    values = [1, 2]
    cfg.a.c, cfg.a.list, cfg.a.l = cfg.a.b, values, cfg.l
    assert cfg.a.c is cfg.a.b and cfg.a.list is values and cfg.a.l is cfg.l


def test_methods_are_not_overwritten():
    cfg = Config({'items': 1})
    assert callable(cfg.items) and cfg['items'] == 1
    with pytest.raises(AttributeError, match="'items' is a method of ConfigDict; write"):
        cfg.items = 2


def test_update_is_recursive():
    cfg = Config(dict(m=dict(a=1, b=dict(c=2))))
    cfg.update(dict(m=dict(b=dict(d=3))), x=4)
    cfg.m |= dict(b=dict(e=5))
    assert cfg.to_dict() == dict(m=dict(a=1, b=dict(c=2, d=3, e=5)), x=4)


def test_delete_and_pop():
    cfg = Config(dict(a=1, b=2, c=dict(d=1)))
    del cfg.a, cfg['b'], cfg.c.d
    assert cfg.to_dict() == {'c': {}} and cfg.pop('c') == {} and not cfg
    with pytest.raises(AttributeError):
        del cfg.c


def test_pickle_copy_deepcopy(write):
    cfg = load(write, 'a = dict(b=[dict(c=1)])')
    for other in (pickle.loads(pickle.dumps(cfg)), copy.deepcopy(cfg)):
        assert other.to_dict() == cfg.to_dict() and other.filename == 'c.py' and other.text == cfg.text
        assert str(other.origin('a.b.0.c')) == 'c.py:1'
        other.a.b[0].c = 2
        assert cfg.a.b[0].c == 1 and isinstance(other.a.b[0], ConfigDict)
    assert copy.copy(cfg).a is cfg.a
    fresh = load(write, 'a = dict(b=[dict(c=1)])')
    small = len(pickle.dumps(fresh))
    fresh.origin('a.b.0.c')
    assert len(pickle.dumps(fresh)) == small  # what a walk remembers stays here
    node = pickle.loads(pickle.dumps(cfg.a))
    assert node == cfg.a and type(node.b[0]) is ConfigDict
    shallow = cfg.a.copy()
    assert type(shallow) is ConfigDict and shallow.b is cfg.a.b and cfg.a.deepcopy().b is not cfg.a.b


def test_to_dict_is_plain_all_the_way():
    plain = Config(dict(a=[[dict(b=(dict(c=1),))]])).to_dict()
    assert type(plain['a'][0][0]) is dict and type(plain['a'][0][0]['b'][0]) is dict


@pytest.mark.parametrize(('options', 'expected'), [
    ({'m.a': 2}, dict(m=dict(a=2), l=[dict(p=1), 5, dict(q=2)])),
    ({'m.n.o': 2}, dict(m=dict(a=1, n=dict(o=2)), l=[dict(p=1), 5, dict(q=2)])),
    ({'l.0.p': 7, 'l.2': dict(r=3)}, dict(m=dict(a=1), l=[dict(p=7), 5, dict(q=2, r=3)])),
    ({'l.1': 6, 'l.2': 'x'}, dict(m=dict(a=1), l=[dict(p=1), 6, 'x'])),
    ({'l.1': dict(_delete_=True, s=1)}, dict(m=dict(a=1), l=[dict(p=1), dict(s=1), dict(q=2)])),
    ({'l.0': dict(_delete_=True, s=1)}, dict(m=dict(a=1), l=[dict(s=1), 5, dict(q=2)])),
    ({'m._delete_': True, 'm.z': 1}, dict(m=dict(z=1), l=[dict(p=1), 5, dict(q=2)])),
    ({'m': dict(b=dict(_delete_=True, c=1))}, dict(m=dict(a=1, b=dict(c=1)), l=[dict(p=1), 5, dict(q=2)]))])
def test_merge_from_dict(options, expected):
    cfg = Config(dict(m=dict(a=1), l=[dict(p=1), 5, dict(q=2)]))
    asked = copy.deepcopy(options)
    cfg.merge_from_dict(options)
    assert cfg.to_dict() == expected and options == asked
    assert type(cfg.m) is ConfigDict


@pytest.mark.parametrize(('options', 'error', 'message'), [
    ({'l.5.p': 1}, KeyError, 'Index 5 exceeds the length of list'),
    ({'l.-1.p': 1}, TypeError, "l is a list of 1; index it with 0 to 0, not with '-1'"),
    ({'l.name': 1}, TypeError, "not with 'name'"),
    ({'t.0': 1}, TypeError, 'cannot inherit'), ({'a.b': 1}, TypeError, 'cannot inherit'),
    ({'l.1': 1, 'a': 1, 'a.b': 2}, TypeError, "option 'a.b' needs a dictionary where another option sets a=1")])
def test_merge_from_dict_errors_change_nothing(options, error, message):
    cfg = Config(dict(l=[dict(p=1)], t=(1,), a=1))
    before = cfg.to_dict()
    with pytest.raises(error, match=message):
        cfg.merge_from_dict(options)
    assert cfg.to_dict() == before


def test_merge_from_dict_without_list_keys():
    with pytest.raises(TypeError, match='cannot inherit'):
        Config(dict(l=[dict(p=1)])).merge_from_dict({'l.0.p': 2}, allow_list_keys=False)


# DictAction

def parse(*arguments: str) -> dict:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--o', nargs='+', action=DictAction)
    return parser.parse_args(['--o', *arguments]).o


@pytest.mark.parametrize(('text', 'value'), [
    ('1', 1), ('-1.5', -1.5), ('1e-3', 0.001), ('inf', math.inf), ('1_000', 1000), ('TRUE', True), ('false', False),
    ('None', None), ('none', 'none'), ('0x10', '0x10'), ('dict(a=1)', 'dict(a=1)'), ('', ''), ('a b', 'ab'),
    ('"a"', 'a'), ('a=b', 'a=b'), ('1,2', [1, 2]), ('a,', ['a']), (',a', ['', 'a']), ('[1, 2]', [1, 2]), ('(1)', (1,)),
    ('()', ()), ('[]', []), ('[[]]', [[]]), ('[(1,2),[a,b],c]', [(1, 2), ['a', 'b'], 'c']), ("['a','b']", ['a', 'b']),
    ('(1,2),3', [(1, 2), 3]), ('a(b', 'a(b'), ('http://a/b,c', ['http://a/b', 'c'])])
def test_dict_action_values(text, value):
    assert parse(f'k={text}') == {'k': value}


def test_dict_action_lists_side_by_side():
    assert parse('k=[1],[2]') == {'k': [[1], [2]]}
    assert parse('k=(1)(2)') == {'k': '(1)(2)'}


def test_dict_action_errors_name_the_argument():
    for bad, message in (('abc', "expected KEY=VALUE, got 'abc'"), ('k=[1,2', r"Imbalanced brackets exist in \[1,2")):
        with pytest.raises(argparse.ArgumentError, match=f'--o: {message}'):
            parse(bad)


def test_dict_action_repeated_flag_replaces():
    parser = argparse.ArgumentParser()
    parser.add_argument('--o', nargs='+', action=DictAction)
    assert parser.parse_args(['--o', 'a=1', '--o', 'b=2']).o == {'b': 2}


# beside mmcv, where it is installed

BASE = '''
a = dict(x=1, y=[1], z=dict(k=(1, {'z': 2})))
l = [dict(p=1), 5]
t = (1, [2])
d = {'x-y': dict(a=1), 3: 4}
'''


@pytest.mark.parametrize('child', [
    'a = dict(x=2, z=dict(_delete_=True, n=1))', 'a = None\nl = []', 'a = dict(z=dict(k=dict(_delete_=True, m=1)))',
    'import os as _os\nfor i in range(3): l = [dict(p=i)]\n_n = 1', "d = {3: 5}\nf = '{{fileBasename}}'",
    'u = dict(t={{_base_.t}}, v=[{{ _base_.a.z.k }}])', 'a = 1', 't = dict(a=1)', "l = {'0': dict(p=2)}", 'b = _os',
    'a = dict(z=dict(k=dict(m=1)))', 'a = {{_base_.a.nope}}', 'a = (', 'filename = 1'])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # mmcv's temporary files
def test_same_as_mmcv(write, child):
    mmcv = pytest.importorskip('mmcv')
    write(b=BASE, c="_base_ = ['./b.py']\n" + child)
    try:
        theirs = mmcv.Config.fromfile('c.py')
    except Exception as error:
        with pytest.raises(type(error)):
            Config.fromfile('c.py')
        return
    ours = Config.fromfile('c.py')
    assert repr(ours.to_dict()) == repr(theirs._cfg_dict.to_dict()).replace('ConfigDict', '')
    assert ours.text == theirs.text


@pytest.mark.parametrize('options', [
    {'a.x': 5}, {'l.0.p': 5}, {'l.0': dict(q=1)}, {'new.x.y': [1, dict(z=2)]}, {'a': dict(_delete_=True, n=1)},
    {'t': None}, {'l': {'0': dict(p=9)}}, {'l.7.p': 1}, {'t.0.p': 1}, {'a.x.y': 1}, {'a.z.k': 1, 'a.z.m': (1,)},
    {'a': 1, 'a.b': 2}])
def test_merge_from_dict_same_as_mmcv(write, options):
    mmcv = pytest.importorskip('mmcv')
    write(b=BASE)
    ours, theirs = Config.fromfile('b.py'), mmcv.Config.fromfile('b.py')
    try:
        theirs.merge_from_dict(copy.deepcopy(options))
    except Exception as error:
        with pytest.raises(type(error)):
            ours.merge_from_dict(options)
    else:
        ours.merge_from_dict(options)
        assert repr(ours.to_dict()) == repr(theirs._cfg_dict.to_dict())


# origins

def lines(cfg: Config, key: object) -> str:
    """'a.py:1 via b.py:2 over c.py:3'"""
    origin = cfg.origin(key)  # type: ignore[arg-type]
    via = ' via ' + ' '.join(map(place_text, origin.alias)) if origin.alias else ''
    return str(origin) + via + (' over ' + ' '.join(map(str, origin.overrides)) if origin.overrides else '')


def test_origin_of_keys_items_and_overrides(write):
    cfg = load(write, "_base_ = 'b.py'\noptimizer = dict(\n    lr=0.1)\nstep = [\n    30,\n    60]",
               b='\noptimizer = dict(type="SGD",\n    lr=0.5)\nstep = [1]')
    assert lines(cfg, 'optimizer.lr') == 'c.py:3 over b.py:3'
    assert lines(cfg, 'optimizer.type') == 'b.py:2'
    assert lines(cfg, 'optimizer') == 'c.py:2 over b.py:2'
    assert lines(cfg, 'step') == 'c.py:4 over b.py:4'
    assert lines(cfg, 'step.1') == lines(cfg, ['step', 1]) == 'c.py:6'
    assert lines(cfg, 'step.0') == 'c.py:5 over b.py:4'
    assert cfg.origin('optimizer.lr').file == str(Path('c.py').absolute())


def test_origin_through_three_files(write):
    cfg = load(write, "_base_ = 'b.py'\na = dict(x=3)", b="_base_ = 'd.py'\na = dict(x=2)", d='a = dict(x=1)')
    assert lines(cfg, 'a.x') == 'c.py:2 over b.py:2 d.py:1'
    cfg = load(write, "_base_ = 'b.py'\na = dict(_delete_=True, y=3)", b='a = dict(y=2, x=2)')
    assert lines(cfg, 'a.y') == 'c.py:2 over b.py:1' and lines(cfg, 'a') == 'c.py:2 over b.py:1'


def test_origin_of_an_alias_gives_use_and_definition(write):
    cfg = load(write, 'norm = dict(\n    mean=[1, 2])\npipeline = [\n    dict(type="N",\n         **norm)]\n'
                      'kind = "X"\ndata = dict(\n    type=kind,\n    pipeline=pipeline)')
    assert lines(cfg, 'data.pipeline') == 'c.py:9 via c.py:3'
    assert lines(cfg, 'data.type') == 'c.py:8 via c.py:6'
    assert lines(cfg, 'data.pipeline.0.type') == 'c.py:4 via c.py:9'
    assert lines(cfg, 'data.pipeline.0.mean') == 'c.py:2 via c.py:5 c.py:9'
    assert lines(cfg, 'pipeline.0.mean.1') == 'c.py:2 via c.py:5'


def test_origin_through_a_base_variable(write):
    cfg = load(write, "_base_ = 'b.py'\nx = dict(\n    p={{_base_.policies}},\n    q='{{ _base_.policies.0.n }}')",
               b='\npolicies = [\n    dict(n=1)]')
    assert lines(cfg, 'x.p') == 'c.py:3 via b.py:2'
    assert lines(cfg, 'x.p.0.n') == 'b.py:3 via c.py:3'
    assert lines(cfg, 'x.q') == 'c.py:4 via b.py:3'


def test_origin_of_expressions(write):
    cfg = load(write, 'a = [dict(\n    x=1)]\nb = a + [dict(y=2)]\nc, d = 1, [2,\n  3]\ne = f = {"g": d,\n  **a[0]}\n'
                      'h = [dict(\n    i=j) for j in range(2)]\nk = d[::-1]\nl = dict(a[0], m=1)\nn: int = 5\n'
                      'o = [*d,\n  6]')
    assert lines(cfg, 'b.0.x') == 'c.py:2 via c.py:3' and lines(cfg, 'b.1.y') == 'c.py:3'
    assert lines(cfg, 'c') == 'c.py:4' and lines(cfg, 'd.1') == 'c.py:5'
    assert lines(cfg, 'f.g') == 'c.py:6 via c.py:4' and lines(cfg, 'e.x') == 'c.py:2 via c.py:7'
    assert lines(cfg, 'h.1.i') == 'c.py:9'
    assert lines(cfg, 'k.0') == 'c.py:5 via c.py:10'
    assert lines(cfg, 'l.x') == 'c.py:2 via c.py:11' and lines(cfg, 'l.m') == 'c.py:11'
    assert lines(cfg, 'n') == 'c.py:12' and lines(cfg, 'o.2') == 'c.py:14'


@pytest.mark.parametrize(('statement', 'key', 'expected'), [
    ('a["x"] = 5', 'a.x', 'c.py:3 over c.py:1'), ('a.update(x=5,\n    z=6)', 'a.z', 'c.py:4'),
    ('a.update(\n    x=5)', 'a.x', 'c.py:4 over c.py:1'),
    ('for p in l:\n    p["n"] = 9', 'l.1.n', 'c.py:4 over c.py:2'), ('for p in l:\n    p["n"] = 9', 'p', 'c.py:3'),
    ('l += [dict(\n    m=1)]', 'l.2.m', 'c.py:4'), ('l.append(3)', 'l.0.n', 'c.py:2'),
    ('l.insert(0, 7)', 'l.0', 'c.py:3 over c.py:2'), ('del a["x"]', 'a.y', 'c.py:1'),
    ('y = a.pop("x")', 'y', 'c.py:3'), ('if True:\n    a = dict(\n        x=3)', 'a.x', 'c.py:5 over c.py:1'),
    ('def f():\n    a["x"] = 8\nf()', 'a.x', 'c.py:4 over c.py:1'),
    ('b = dict(\n    k=1)\na["x"] = b', 'a.x.k', 'c.py:4 via c.py:5'),
    ('try:\n    1 / 0\nexcept ZeroDivisionError:\n    a["x"] = 7', 'a.x', 'c.py:6 over c.py:1'),
    ('b = a\nb["x"] = 2', 'a.x', 'c.py:4 over c.py:1'),
    ('b = [i for i in range(3) if print("", end="") is None]', 'b.1', 'c.py:3'),
    ('with open(__file__) as f: n = len(f.read())', 'n', 'c.py:3'), ('a = a | dict(z=1)', 'a.z', 'c.py:3'),
    ('a["k"] = dict(\n    u=1,\n    v=dict(u=2))', 'a.k.v.u', 'c.py:5')])
def test_origin_in_files_that_do_more_than_assign(write, statement, key, expected):
    cfg = load(write, 'a = dict(x=1, y=2)\nl = [dict(n=1), dict(n=2)]\n' + statement)
    cfg.pop('f', 0)
    assert lines(cfg, key) == expected


def test_origin_where_the_file_would_not_run_again(write):
    cfg = load(write, 'from pathlib import Path\nPath("once").touch(exist_ok=False)\na = dict(\n    x=1)')
    assert lines(cfg, 'a.x') == 'c.py:4'


def test_origin_after_the_file_has_changed(write):
    cfg = load(write, 'a = 1\nb = 2')
    write(c='b = 3')
    assert lines(cfg, 'b') == 'c.py:2'
    Path('c.py').unlink()
    assert lines(cfg, 'a') == 'c.py:1'


def test_origin_in_yaml_and_json(write):
    write(y_yaml='a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\nanchor: &k\n  e: 3\nuse: *k\nmerged:\n  <<: *k\n  f: 4',
          j_json='{"a": {\n  "b": [1,\n    {"\\u0063": "}"}]},\n "d": null}')
    cfg = Config.fromfile('y.yaml')
    assert [lines(cfg, k) for k in ('a', 'a.b', 'a.c.0', 'a.c.1.d')] == ['y.yaml:1', 'y.yaml:2', 'y.yaml:4', 'y.yaml:5']
    assert lines(cfg, 'use') == 'y.yaml:8 via y.yaml:6' and lines(cfg, 'use.e') == 'y.yaml:7 via y.yaml:8'
    assert lines(cfg, 'merged.e') == 'y.yaml:7' and lines(cfg, 'merged.f') == 'y.yaml:11'
    cfg = Config.fromfile('j.json')
    assert [lines(cfg, k) for k in ('a.b.0', 'a.b.1.c', 'd')] == ['j.json:2', 'j.json:3', 'j.json:4']


def test_origin_in_json_knows_its_escapes_and_words(write):
    write(j_json='{"a\\/b": [true,\n null, -1.5e3],\n "é\\n\\"\\\\": {"}": false}\n}')
    cfg = Config.fromfile('j.json')
    assert cfg.to_dict() == {'a/b': [True, None, -1500.0], 'é\n"\\': {'}': False}}
    assert [lines(cfg, ('a/b', i)) for i in range(3)] == ['j.json:1', 'j.json:2', 'j.json:2']
    assert lines(cfg, ('é\n"\\', '}')) == 'j.json:3'


def always_run(monkeypatch) -> None:
    """Let no origin come from a file's text alone, nor from what was read before: every file is run and watched."""
    from workspace_lib.config import watch

    def told(*args):
        lines = watch._told.__wrapped__(*args)
        lines.plain = False
        return lines
    told.__wrapped__ = watch._told.__wrapped__
    monkeypatch.setattr(watch, '_told', told)
    monkeypatch.setattr(watch, '_probed', watch._probed.__wrapped__)


def origins_one_by_one(cfg: Config) -> dict:
    """What `origins` says by definition: from the root down to each leaf anew. Only for what no code has changed."""
    root = cfg._history._root()

    def origin(path) -> Origin:
        node, old = root, None
        for key in path:
            above = node.old if node.replaces else old
            node, old = node.item(key), above.known_item(key) if above else None
        overrides, over = [], node.old or old
        while over:
            overrides, over = [*overrides, Origin(*over.place, list(over.alias))], over.old
        alias = [place for i, place in enumerate(node.alias) if place != node.place and place not in node.alias[:i]]
        return Origin(*node.place, alias, overrides)
    return {path: origin(path) for path, _ in leaves(cfg.to_dict())}


FAMILY = dict(
    d="""norm = dict(
    mean=[1, 2.5], to_rgb=True)
pipeline = [dict(type='Load'), dict(type='Crop', size=(-1, 256 * 2)), dict(
    type='Norm', **norm)]
data = dict(train=dict(pipeline=pipeline), test=dict(pipeline=pipeline[1:]))
kept = dict(a=1, b=dict(c=[dict(e=5)]))""",
    s="""lr = 0.1
lr = 0.2
optimizer = dict(type='SGD', lr=lr, groups=dict({'bn.*': dict(decay=0.)}))
a, (b, c) = 1, [[2, 3], dict(k=3)]
first = second = dict(x=[*b, 4] if a else [])""",
    m="""_base_ = ['d.py', 's.py']
kept = dict(_delete_=True, b=2, later=dict(x=[{{_base_.optimizer.lr}}]))
optimizer = dict(lr=0.3, groups={'bn.*': dict(decay=-1)})
data = dict(train=dict(pipeline={{_base_.data.test.pipeline}}))
mean = [round(x) for x in [1.2, 2.7]]""",
    c="""_base_ = 'm.py'
custom_imports = dict(imports=['json'], allow_failed_imports=False)
extra = {{_base_.pipeline}}
kept = dict(b=3,
            later=dict(y='{{ fileBasename }}'))""")
OPTIONS = {'data.train.pipeline.0.type': 'Other', 'optimizer': dict(_delete_=True, type='Adam', lr=1),
           'kept.later.x': [dict(new=1), 2], 'brand.new': dict(x=())}


def plain_and_changed() -> tuple[Config, Config]:
    cfg, changed = Config.fromfile('c.py'), Config.fromfile('c.py')
    changed.merge_from_dict(OPTIONS)
    changed.merge_from_dict({'data.train.pipeline.1.mean': 5, 'kept.b': 4})
    return cfg, changed


def test_every_origin_is_that_of_a_run_and_of_a_walk_from_the_root(write, monkeypatch):
    from workspace_lib.config import watch
    write(**FAMILY)
    watch._told.cache_clear()
    for _ in range(2):  # the second time from what was read before
        cfg, changed = plain_and_changed()
        quick = [origins(cfg), origins(changed)]
        assert quick == [origins_one_by_one(cfg), origins_one_by_one(changed)]
        assert quick == [{path: one.origin(path) for path in found}
                         for one, found in zip((cfg, changed), quick, strict=True)]
    assert watch._told.cache_info().hits and len(quick[0]) > 30 and quick[0] != quick[1]
    always_run(monkeypatch)
    assert [origins(cfg) for cfg in plain_and_changed()] == quick


@pytest.mark.parametrize('statement', [
    'y = {a.setdefault("n", 2): 1}', 'y = dict(**a.setdefault("n", dict(z=3)))', 'y = [*"ab", a.setdefault("n", 2)]',
    'y = [*a.setdefault("n", [2])]', 'y = -a.setdefault("n", 2)', 'y = (x := a.setdefault("n", 2)) + 1',
    'y = 1 if a.update(x=3) else 2', 'y = [a.update(x=i) for i in range(2)]', 'y = l[a.setdefault("n", 1)]',
    'y: a.update(x=2) = 1', 'y, a["x"] = 1, 2', 'y = f"{a.setdefault(1, 2)}"', 'y = {2: dict(z=a.setdefault("n", 2))}',
    'y = dict([("k", a.setdefault("n", 2))])', 'y = [a.setdefault("n", 2)] + [1]', 'l[0] = 3', 'del l[0]',
    'y = 1 < a.setdefault("n", 2)', 'y = a.setdefault("n", 1) and 2', 'y = (lambda: a.update(x=9))()',
    'dict = a.update\ny = dict(x=9)', 'dict = exec\ny = dict("a[1] = 9")', 'y = [0 for a["x"] in [5]]',
    'y = [x for x in [a.setdefault("n", 2)]]', 'y = [x for x in [1] if a.setdefault("n", 2)]', 'y = l[a.pop("x")]',
    'y = {a.setdefault("n", x): 1 for x in [2]}', 'y = [*(a.update(x=i) for i in range(2))]',
    'y = [round("a[1] = 9") for round in [exec]]', 'round = exec\ny = [round("a[1] = 9") for x in [1]]',
    'y = [round(a.setdefault("n", x)) for x in [2]]', 'y = round(2, ndigits=a.setdefault("n", 2))',
    'y = [x for (x, a["x"]) in [(1, 2)]]', 'y = round(a.pop("x"))', 'y = l.copy()[a.setdefault("n", 1)]'])
def test_what_a_statement_does_by_the_way_is_seen(write, monkeypatch, statement):
    text = 'a = dict(x=1, d=dict(z=1), l=[1, 2])\nl = [dict(n=1), dict(n=2)]\n' + statement
    quick = origins(load(write, text))
    always_run(monkeypatch)
    assert quick == origins(load(write, text))


def test_a_file_that_only_computes_from_what_it_writes_out_is_not_run_again(write, monkeypatch):
    from workspace_lib.config import watch
    monkeypatch.setattr(watch, 'run_python', lambda *args, **names: pytest.fail('run again'))
    cfg = load(write, b='policies = [dict(type="Invert")]', text="""_base_ = 'b.py'
norm = dict(mean=[1.2, 2.7], std=[1 / 3, -2])
fill = dict(policies={{_base_.policies}}, mean=[round(x) for x in norm['mean'][::-1]],
            std=norm['std'][::-1])""")
    assert cfg.fill.mean == [3, 1] and lines(cfg, 'fill.mean.1') == 'c.py:3'
    assert lines(cfg, 'fill.std.0') == 'c.py:2 via c.py:4' and lines(cfg, 'fill.policies.0.type') == 'b.py:1 via c.py:3'


def test_origins_are_those_of_the_values_as_they_stand(write):
    cfg = load(write, 'a = dict(x=1, y=2)\nl = [1, dict(n=1)]\nt = (1, 2)\ne = []')
    cfg.a.x, cfg.z, cfg.t, cfg.a.new = 5, dict(k=[dict(q=1)]), (1,), dict(m=1)
    cfg.l.insert(0, dict(n=0))
    cfg.moved = cfg.a
    found = origins(cfg)
    assert found.keys() == dict(leaves(cfg.to_dict())).keys() and ('e',) in found
    assert found == {path: cfg.origin(path) for path in found}
    assert found['a', 'x'].file == found['z', 'k', 0, 'q'].file == '<code>' and found['moved', 'y'].line == 1


def test_what_is_kept_of_a_file_is_neither_old_nor_shared(write):
    cfg = load(write, 'k = 1\na = dict(x=k)')
    first = cfg.origin('a.x')
    first.alias.clear()
    first.overrides.append(first)
    assert lines(cfg, 'a.x') == lines(load(write, 'k = 1\na = dict(x=k)'), 'a.x') == 'c.py:2 via c.py:1'
    assert lines(load(write, 'k = 1\n\na = dict(x=k)'), 'a.x') == 'c.py:3 via c.py:1'
    assert lines(cfg, 'a.x') == lines(pickle.loads(pickle.dumps(cfg)), 'a.x') == 'c.py:2 via c.py:1'


def test_origin_of_what_is_imported_or_defined(write):
    cfg = load(write, 'from __future__ import annotations\nfrom collections import OrderedDict\n\nclass A:\n    x = 1')
    assert lines(cfg, 'OrderedDict') == 'c.py:2' and lines(cfg, 'A') == 'c.py:4'


def test_origin_of_options(write):
    cfg = load(write, 'a = dict(x=1, y=2)\nl = [dict(n=1), dict(n=2)]')
    cfg.merge_from_dict({'a.x': 5, 'l.1.n': 6, 'new.z': 7})
    assert lines(cfg, 'a.x') == '<override> over c.py:1' and lines(cfg, 'a.y') == 'c.py:1'
    assert lines(cfg, 'l.1.n') == '<override> over c.py:2' and lines(cfg, 'l.0.n') == 'c.py:2'
    assert lines(cfg, 'new.z') == '<override>' and cfg.origin('new').line == 0
    cfg.merge_from_dict({'a.x': 6})
    assert lines(cfg, 'a.x') == '<override> over <override> c.py:1'


def test_origin_of_values_set_in_code(write):
    cfg = load(write, 'a = dict(x=1, y=2)\nl = [1, dict(n=1)]\nt = (1, 2)')
    cfg.a.x, cfg.z, cfg.t, cfg.a.new = 5, dict(k=1), (1,), dict(m=1)
    cfg.l.insert(0, dict(n=0))
    assert lines(cfg, 'a.x') == '<code> over c.py:1' and lines(cfg, 'a') == 'c.py:1'
    assert {lines(cfg, key) for key in ('z', 'z.k', 'a.new.m', 'l.0.n', 'l.0')} == {'<code>', '<code> over c.py:2'}
    assert lines(cfg, 't').startswith('<code>') and lines(cfg, 't.0').startswith('<code>')
    assert lines(cfg, 'l.2.n') == 'c.py:2'  # moved, but it is still the value of that line
    cfg.merge_from_dict({'a.y': 3})
    assert lines(cfg, 'a.x') == '<code> over c.py:1' and lines(cfg, 'a.y') == '<override> over c.py:1'


def test_origin_of_a_value_moved_from_another_config(write):
    write(b='\n\nmodel = dict(n=1)')
    cfg = load(write, 'a = 1')
    cfg.model = Config.fromfile('b.py').model
    assert lines(cfg, 'model.n') == 'b.py:3'
    assert lines(Config(dict(m=cfg.model)), 'm.n') == 'b.py:3'


def test_origin_of_keys_with_dots_and_unknown_keys(write):
    cfg = load(write, "a = {'.b.c': dict(d=1),\n 3: 4}\nlr = 1")
    assert lines(cfg, 'a..b.c.d') == 'c.py:1' and lines(cfg, 'a.3') == lines(cfg, ('a', 3)) == 'c.py:2'
    assert lines(load(write, "a = {'3': 4}"), ('a', 3)) == 'c.py:1'
    cfg = load(write, "a = {'.b.c': dict(d=1),\n 3: 4}\nlr = 1")
    with pytest.raises(KeyError, match="no 'lrr' in the config; did you mean 'lr'?"):
        cfg.origin('lrr')
    with pytest.raises(KeyError, match="no 'x' in a"):
        cfg.origin('a.x')


def test_where_a_dictionary_was_set_and_that_an_override_changed_it(write):
    cfg = load(write, 'a = dict(\n    b=dict(c=1),\n    d=dict(e=1))')
    cfg.merge_from_dict({'a.b.c': 2})
    cfg.merge_from_dict({'a.b.f': 3, 'a.d': dict(_delete_=True, g=1)})
    assert where(cfg.a.b) == where(cfg.a, 'b') == 'a.b, set in c.py:2, in part by an override'
    assert where(cfg.a.b, 'c') == 'a.b.c, set by an override' and where(cfg.a.d) == 'a.d, set by an override'


def test_where(write):
    cfg = load(write, 'model = dict(\n    backbone=dict(\n        depth=50))\nl = [dict(n=1)]')
    cfg.merge_from_dict({'l.0.m': 1})
    cfg.l[0].k = 1
    assert where(cfg.model.backbone, 'depth') == 'model.backbone.depth, set in c.py:3'
    assert where(cfg.model.backbone) == where(cfg.model.backbone, 'nope') == 'model.backbone, set in c.py:2'
    assert where(copy.deepcopy(cfg.model.backbone), 'depth').endswith('c.py:3')
    assert where(cfg.l[0].copy(), 'n') == 'l.0.n, set in c.py:4'
    assert where(cfg.l[0], 'm') == 'l.0.m, set by an override' and where(cfg.l[0], 'k') == 'l.0.k, set in code'
    assert where({}, 'a') == where(ConfigDict(a=1), 'a') == where(None) == ''
    assert where(cfg, 'model') == 'model, set in c.py:1'


def test_loading_computes_no_origins(write, monkeypatch):
    import workspace_lib.config.origin as origin
    monkeypatch.setattr(origin, 'merged_node', lambda *a: pytest.fail('computed'))
    load(write, 'a = 1')


def test_import_is_light():
    code = 'import sys, workspace_lib.config; print({"torch", "numpy", "yaml"} & set(sys.modules))'
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.stdout == 'set()\n', done


# annotated text

def test_annotated_text_names_every_origin(write):
    from workspace_lib.tools.annotate import annotate
    cfg = load(write, "_base_ = 'b.py'\nkind = 'X'\na = dict(\n    type=kind,\n    x=2)\nl = [1,\n     2]\ne = dict()",
               b='a = dict(x=1, y=(1, 2))')
    cfg.z = 1
    text = annotate(cfg)
    assert text.splitlines() == [
        'a = dict(',
        '    x=2,       # c.py:5 (over b.py:1)',
        '    y=(1, 2),  # b.py:1',
        "    type='X'   # c.py:4 via c.py:2",
        ')',
        "kind = 'X'     # c.py:2",
        'l = [',
        '    1,         # c.py:6',
        '    2,         # c.py:7',
        ']',
        'e = dict()     # c.py:8',
        'z = 1          # <code>']
    assert Config.fromstring(text, '.py').to_dict() == cfg.to_dict()
    assert annotate(Config()) == ''


