"""Reads a config file and the files it names in `_base_` into one plain dictionary.

In: a path, or a text with a made-up path. Out: a `Loaded`: merged values, and each file's own text and values for `config_origin`.
"""
from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

BASE_KEY, DELETE_KEY, DEPRECATION_KEY = '_base_', '_delete_', '_deprecation_'
FORMATS = ('.py', '.json', '.yaml', '.yml')

_BASE_VAR = re.compile(r'\{\{\s*_base_\.([\w.]+)\s*\}\}')
_FILE_VAR = re.compile(r'\{\{\s*(fileDirname|fileBasenameNoExtension|fileBasename|fileExtname)\s*\}\}')
_JSON_STRING_OR_BASE_VAR = re.compile(r'"(?:[^"\\]|\\.)*"|' + _BASE_VAR.pattern)
_TOKEN = re.compile(r'__base_var_(\d+)__')
_module_numbers = itertools.count()


@dataclass(eq=False)
class Loaded:
    """One file as it was read: `own` values as written, `values` after merging them over those of its `bases`."""

    filename: str
    text: str
    code: str  # text with the placeholders replaced, line for line
    base_vars: list[str]
    own: dict[Any, Any]
    bases: list[Loaded]
    base_values: dict[Any, Any]
    values: dict[Any, Any]

    def full_text(self) -> str:
        """Each base's path and text, depth first, then this file's."""
        return '\n'.join([base.full_text() for base in self.bases] + [f'{self.filename}\n{self.text}'])


class BaseVar:
    """Stands for `{{ _base_.key }}` while a Python file runs, before its bases are known; supports no operation."""

    __slots__ = ('token',)

    def __init__(self, token: str):
        self.token = token

    def __repr__(self) -> str:
        return self.token

    def __bool__(self) -> bool:
        raise TypeError('{{ _base_.key }} is known only after the file has run; it cannot be tested')

    __hash__ = None  # type: ignore[assignment]  # neither a dictionary key nor a set element


def load(filename: str, text: str | None = None, use_predefined_variables: bool = True,
         parents: tuple[tuple[str, str], ...] = ()) -> Loaded:
    """Read `filename` (or `text` in its place) and its bases; `parents` are the (path, text) that asked for it."""
    filename = os.path.abspath(os.path.expanduser(filename))
    _refuse_circle(filename, parents)
    text = _read(filename, parents) if text is None else text
    code, base_vars = substitute(filename, text, use_predefined_variables)
    own = _evaluate(filename, code, base_vars)
    _warn_if_deprecated(filename, own)
    bases = [load(os.path.join(os.path.dirname(filename), name), parents=(*parents, (filename, text)))
             for name in _base_names(filename, text, own)]
    base_values = _join_bases(filename, bases)
    if base_vars:
        own = _Resolver(filename, text, base_vars, base_values if bases else None).resolve(own)
    loaded = Loaded(filename, text, code, base_vars, own, bases, base_values, own)
    if bases or DELETE_KEY in code:
        loaded.values = _merge_file(loaded)
    return loaded


def line_of(text: str, *words: str) -> int:
    """First line (from 1) that holds the first of `words` found in `text`; 1 when none is."""
    found = next((text.index(word) for word in words if word in text), 0)
    return text.count('\n', 0, found) + 1


def near_names(name: Any, known: Any) -> str:
    """`; did you mean 'x'?` for the known names nearest to `name`, or ''."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=3)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''


# reading one file

def _refuse_circle(filename: str, parents: tuple[tuple[str, str], ...]) -> None:
    paths = [path for path, _ in parents]
    if filename not in paths:
        return
    start = paths.index(filename)
    steps = [f'{path}:{line_of(text, BASE_KEY)}' for path, text in parents[start:]]
    raise RecursionError(f'`{BASE_KEY}` goes in a circle: ' + ' -> '.join([*steps, filename]))


def _read(filename: str, parents: tuple[tuple[str, str], ...]) -> str:
    asked = ''
    if parents:
        path, text = parents[-1]
        asked = f' (named in `{BASE_KEY}`, {path}:{line_of(text, os.path.basename(filename), BASE_KEY)})'
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'file "{filename}" does not exist{asked}{_near_file(filename)}')
    check_format(os.path.splitext(filename)[1], f': {filename}{asked}')
    with open(filename, encoding='utf-8') as file:
        return file.read()


def _near_file(filename: str) -> str:
    folder, name = os.path.split(filename)
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    return near_names(os.path.join(folder, name), (os.path.join(folder, n) for n in os.listdir(folder)))


def check_format(extension: str, detail: str = '') -> None:
    if extension not in FORMATS:
        raise OSError(f'Only py/yml/yaml/json type are supported now!{detail}')


def substitute(filename: str, text: str, use_predefined_variables: bool = True) -> tuple[str, list[str]]:
    """Replace the `{{ }}` placeholders; returns the text and the keys that its `{{ _base_.key }}` tokens stand for."""
    if '{{' not in text:
        return text, []
    if use_predefined_variables:
        stem, extension = os.path.splitext(os.path.basename(filename))
        known = {'fileDirname': os.path.dirname(filename), 'fileBasename': stem + extension,
                 'fileBasenameNoExtension': stem, 'fileExtname': extension}
        text = _FILE_VAR.sub(lambda match: known[match[1]].replace('\\', '/'), text)
    keys: list[str] = []

    def token(match: re.Match[str]) -> str:
        keys.append(match[1])
        return f'__base_var_{len(keys) - 1}__' + '\n' * match[0].count('\n')  # keeps the line numbers

    def json_token(match: re.Match[str]) -> str:  # JSON has no bare words
        return _BASE_VAR.sub(token, match[0]) if match[0][0] == '"' else f'"{token(match)}"'

    if filename.endswith('.json'):
        return _JSON_STRING_OR_BASE_VAR.sub(json_token, text), keys
    return _BASE_VAR.sub(token, text), keys


def _evaluate(filename: str, code: str, base_vars: list[str]) -> dict[Any, Any]:
    try:
        if filename.endswith('.py'):
            return run_python(filename, compile_python(filename, code), base_vars)
        values = json.loads(code) if filename.endswith('.json') else load_yaml(code)
    except Exception as error:
        if not isinstance(error, SyntaxError):
            error.add_note(f'in config file {_place_of(error, filename)}')
        raise
    if not isinstance(values, dict | None):
        raise TypeError(f'a config file must hold a mapping, but {filename} holds a {type(values).__name__}')
    return values or {}


def _place_of(error: BaseException, filename: str) -> str:
    lines, trace = [], error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == filename:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    line = lines[-1] if lines else getattr(error, 'lineno', None)
    return f'{filename}:{line}' if line else filename


@lru_cache(maxsize=1024)
def compile_python(filename: str, code: str) -> CodeType:
    try:
        return compile(code, filename, 'exec', dont_inherit=True)
    except SyntaxError as error:
        message = f'There are syntax errors in config file {filename}: {error.msg}'
        raise SyntaxError(message, (filename, error.lineno, error.offset, error.text)) from None


def run_python(filename: str, code: CodeType, base_vars: list[str], **names: Any) -> dict[Any, Any]:
    """Run `code` as a module that leaves no trace in `sys.modules`; returns what a config keeps of its globals."""
    module = ModuleType(f'_config_{next(_module_numbers)}')
    module.__file__ = filename
    tokens = (f'__base_var_{i}__' for i in range(len(base_vars)))
    vars(module).update({token: BaseVar(token) for token in tokens}, **names)
    sys.modules[module.__name__] = module  # dataclasses, pickle and the like look their module up
    try:
        exec(code, vars(module))
    finally:
        del sys.modules[module.__name__]
    return kept(vars(module))


def kept(names: dict[str, Any]) -> dict[Any, Any]:
    """Of a module's globals those that are configuration: no `__x`, no modules, no plain functions."""
    return {name: value for name, value in names.items()
            if not name.startswith('__') and not isinstance(value, ModuleType | FunctionType)}


def load_yaml(code: str) -> Any:
    """Safe YAML plus `!!python/tuple`, which `dump` writes."""
    import yaml
    base: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    loader = type('Loader', (base,), {})
    loader.add_constructor('tag:yaml.org,2002:python/tuple',
                           lambda self, node: tuple(self.construct_sequence(node, deep=True)))
    return yaml.load(code, Loader=loader)


def _warn_if_deprecated(filename: str, own: dict[Any, Any]) -> None:
    if DEPRECATION_KEY not in own:
        return
    info = own.pop(DEPRECATION_KEY)
    message = f'The config file {filename} will be deprecated in the future.'
    if 'expected' in info:
        message += f' Please use {info["expected"]} instead.'
    if 'reference' in info:
        message += f' More information can be found at {info["reference"]}'
    warnings.warn(message, DeprecationWarning, stacklevel=4)


# bases

def _base_names(filename: str, text: str, own: dict[Any, Any]) -> list[str]:
    names = own.pop(BASE_KEY, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f'`{BASE_KEY}` must be a str or a list of str, not {names!r} ({filename}:{line_of(text, BASE_KEY)})')
    return names


def _join_bases(filename: str, bases: list[Loaded]) -> dict[Any, Any]:
    joined: dict[Any, Any] = {}
    for base in bases:
        duplicates = joined.keys() & base.values.keys()
        if duplicates:
            key = min(map(str, duplicates))
            where = ' and '.join(b.filename for b in bases if key in b.values)
            raise KeyError(f'Duplicate key is not allowed among bases. Duplicate keys: {duplicates} '
                           f'({key!r} is set by {where}, bases of {filename})')
        joined.update(base.values)
    return joined


class _Resolver:
    """Puts the bases' values in the place of the `{{ _base_.key }}` tokens of one file."""

    def __init__(self, filename: str, text: str, keys: list[str], base_values: dict[Any, Any] | None):
        self.filename, self.text, self.keys, self.base_values = filename, text, keys, base_values

    def resolve(self, value: Any) -> Any:
        if isinstance(value, BaseVar):
            return self.base_value(value.token)
        if isinstance(value, str):
            return self.resolve_str(value)
        if isinstance(value, dict):
            return {self.key(k): self.resolve(v) for k, v in value.items()}
        return type(value)(map(self.resolve, value)) if type(value) in (list, tuple) else value

    def resolve_str(self, value: str) -> Any:
        match = _TOKEN.search(value)
        if match is None:
            return value
        if match[0] == value:
            return self.base_value(value)
        raise ValueError(f'{self.place(match[0])} is part of a longer string; a placeholder must be the whole value')

    def key(self, key: Any) -> Any:
        match = _TOKEN.search(key) if isinstance(key, str) else None
        if match:
            raise ValueError(f'{self.place(match[0])} is part of a key; a placeholder must be the whole value')
        return key

    def base_value(self, token: str) -> Any:
        value = self.base_values
        if value is None:
            raise ValueError(f'{self.place(token)} has nothing to refer to: the file has no `{BASE_KEY}`')
        for part in self.keys[int(_TOKEN.fullmatch(token)[1])].split('.'):  # type: ignore[index]
            value = self.step(value, part, token)
        return value

    def step(self, value: Any, part: str, token: str) -> Any:
        if isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            return value[int(part)]
        if isinstance(value, dict) and part in value:
            return value[part]
        known = value if isinstance(value, dict) else ()
        raise KeyError(f'{self.place(token)}: the bases have no {part!r}{near_names(part, known)}')

    def place(self, token: str) -> str:
        number = int(_TOKEN.fullmatch(token)[1])  # type: ignore[index]
        matches = list(_BASE_VAR.finditer(self.text))
        line = self.text.count('\n', 0, matches[number].start()) + 1
        return f'{matches[number][0]} in {self.filename}:{line}'


# merging

def _merge_file(loaded: Loaded) -> dict[Any, Any]:
    try:
        return merge(loaded.own, loaded.base_values)
    except TypeError as error:
        error.add_note(f'in config file {loaded.filename}')
        raise


def merge(child: dict[Any, Any], base: Any, allow_list_keys: bool = False, path: str = '') -> Any:
    """`child` over `base`, neither changed: dictionaries merge, anything else replaces, `_delete_=True` replaces a dictionary.

    With `allow_list_keys` a key of digits in `child` sets that element of a list in `base`.
    """
    if isinstance(base, list):
        return _merge_list(child, base, path)
    merged = base.copy()
    for key, value in child.items():
        merged[key] = _merge_value(value, base[key], allow_list_keys, f'{path}{key}') if key in base else strip(value)
    return merged


def _merge_value(value: Any, base: Any, allow_list_keys: bool, path: str) -> Any:
    if not isinstance(value, dict) or value.get(DELETE_KEY):
        return strip(value)
    if not isinstance(base, (dict, list) if allow_list_keys else dict):
        key = path.rpartition('.')[2]
        raise TypeError(
            f'{key}={value} in child config cannot inherit from base because {key} is a dict in the child config '
            f'but is of type {type(base)} in base config. You may set `{DELETE_KEY}=True` to ignore the base config. '
            f'(key {path})')
    value = {k: v for k, v in value.items() if k != DELETE_KEY}
    return merge(value, base, allow_list_keys, f'{path}.')


def _merge_list(child: dict[Any, Any], base: list[Any], path: str) -> list[Any]:
    merged = list(base)
    for key, value in child.items():
        if not str(key).isdigit():
            raise TypeError(f'{path}{key}: {path[:-1]} is a list of {len(base)} elements; '
                            f'index it with 0 to {len(base) - 1}, not {key!r}')
        if int(key) >= len(base):
            raise KeyError(f'Index {key} exceeds the length of list {base} ({path[:-1]})')
        over = base[int(key)] if isinstance(base[int(key)], dict | list) else {}  # a scalar's place takes anything
        merged[int(key)] = _merge_value(value, over, True, f'{path}{key}')
    return merged


def strip(value: Any) -> Any:
    """`value` without the `_delete_` keys in it, copied only where it holds dictionaries."""
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k != DELETE_KEY}
    return type(value)(map(strip, value)) if type(value) in (list, tuple) else value
