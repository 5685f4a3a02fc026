"""Reads a config file and the files that it names in `_base_` into one plain dictionary.

In: a path, or a text under a made-up path. Out: a `Loaded`, which keeps each file's text for later questions.
"""
from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .merge import DELETE_KEY, InheritError, merge, near_names, strip
from .placeholders import BaseValues, BaseVar, substitute

BASE_KEY, DEPRECATION_KEY = '_base_', '_deprecation_'
FORMATS = ('.py', '.json', '.yaml', '.yml')
_module_numbers = itertools.count()


@dataclass(eq=False)
class Loaded:
    """A file as it was read: its `own` values, and its `values`: those merged over its bases'."""

    filename: str
    text: str
    code: str  # the text with its placeholders replaced, line for line
    bases: list[Loaded]
    base_values: BaseValues
    own: dict[Any, Any]
    values: dict[Any, Any]

    def full_text(self) -> str:
        """Each base's path and text, depth first, then this file's."""
        return '\n'.join([*(base.full_text() for base in self.bases), f'{self.filename}\n{self.text}'])


Parents = tuple[tuple[str, str], ...]  # (path, text) of the files that asked for this one, the first one first


def load(filename: str, text: str | None = None, file_vars: bool = True, parents: Parents = ()) -> Loaded:
    """Read `filename`, or `text` in its place, and its bases; `file_vars=False` leaves `{{ fileDirname }}` alone."""
    filename = os.path.abspath(os.path.expanduser(filename))
    _refuse_circle(filename, parents)
    text = _read(filename, parents) if text is None else text
    code, base_vars = substitute(filename, text, file_vars)
    own = _evaluate(filename, code, len(base_vars))
    _warn_if_deprecated(filename, own)
    names = _base_names(filename, text, own)
    folder, parents = os.path.dirname(filename), (*parents, (filename, text))
    bases = [load(os.path.join(folder, name), parents=parents) for name in names]
    base_values = BaseValues(filename, text, base_vars, _join(bases, filename) if bases else None)
    own = base_values.resolve(own) if base_vars else own
    loaded = Loaded(filename, text, code, bases, base_values, own, own)
    if bases:
        loaded.values = _merge(loaded)
    if DELETE_KEY in code:
        loaded.values = strip(loaded.values)
    return loaded


def line_of(text: str, *words: str) -> int:
    """The first line (from 1) that holds the first of `words` that is in `text`; 1 if none is."""
    start = next((text.index(word) for word in words if word in text), 0)
    return text.count('\n', 0, start) + 1


# one file

def _refuse_circle(filename: str, parents: Parents) -> None:
    paths = [path for path, _ in parents]
    if filename in paths:
        circle = [f'{path}:{line_of(text, BASE_KEY)}' for path, text in parents[paths.index(filename):]]
        raise RecursionError(f'`{BASE_KEY}` goes in a circle: ' + ' -> '.join([*circle, filename]))


def _read(filename: str, parents: Parents) -> str:
    try:
        with open(filename, 'rb', buffering=0) as file:  # twice as fast as a text file
            content = file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        message = f'file "{filename}" does not exist{_asked_by(filename, parents)}{_near_files(filename)}'
        raise FileNotFoundError(message) from None
    if not filename.endswith(FORMATS):
        check_format(os.path.splitext(filename)[1], f' Got {filename}{_asked_by(filename, parents)}')
    text = content.decode()
    return text.replace('\r\n', '\n').replace('\r', '\n') if '\r' in text else text


def _asked_by(filename: str, parents: Parents) -> str:
    if not parents:
        return ''
    path, text = parents[-1]
    return f' (named in `{BASE_KEY}`, {path}:{line_of(text, os.path.basename(filename), BASE_KEY)})'


def _near_files(filename: str) -> str:
    """Names like it in its folder or, where that does not exist either, in the nearest one above that does."""
    folder, name = os.path.split(filename)
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    return near_names(name, sorted(os.listdir(folder)))


def check_format(extension: str, detail: str = '') -> None:
    if extension not in FORMATS:
        raise OSError(f'Only py/yml/yaml/json type are supported now!{detail}')


def _evaluate(filename: str, code: str, base_vars: int) -> dict[Any, Any]:
    try:
        if filename.endswith('.py'):
            return run_python(filename, _compile(filename, code), base_vars)
        values = json.loads(code) if filename.endswith('.json') else _load_yaml(code)
    except SyntaxError:
        raise
    except Exception as error:
        error.add_note(f'in config file {_place(error, filename)}')
        raise
    if not isinstance(values, dict | None):
        raise TypeError(f'a config file holds a mapping, but {filename} holds a {type(values).__name__}')
    return values or {}


def _place(error: Exception, filename: str) -> str:
    """The line of the file that was running, or that a parser complains of."""
    line, trace = getattr(error, 'lineno', None), error.__traceback__
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == filename else line
        trace = trace.tb_next
    return f'{filename}:{line}' if line else filename


@lru_cache(maxsize=1024)
def _compile(filename: str, code: str) -> CodeType:
    try:
        return compile(code, filename, 'exec', dont_inherit=True)
    except SyntaxError as error:
        message = f'There are syntax errors in config file {filename}: {error.msg}'
        raise SyntaxError(message, (filename, error.lineno, error.offset, error.text)) from None


def run_python(filename: str, code: CodeType, base_vars: int, **names: Any) -> dict[Any, Any]:
    """Run `code` as a module that stays in no table; returns those of its globals that are configuration."""
    module = ModuleType(f'_config_{next(_module_numbers)}')
    tokens = [f'__base_var_{i}__' for i in range(base_vars)]
    vars(module).update({token: BaseVar(token) for token in tokens}, __file__=filename, **names)
    sys.modules[module.__name__] = module  # dataclasses and the like look their module up
    try:
        exec(code, vars(module))
    finally:
        del sys.modules[module.__name__]
    return {name: value for name, value in vars(module).items()
            if not name.startswith('__') and not isinstance(value, ModuleType | FunctionType)}


def _load_yaml(code: str) -> Any:
    """Safe YAML, plus the `!!python/tuple` that `dump` writes."""
    import yaml
    loader: Any = type('Loader', (getattr(yaml, 'CSafeLoader', yaml.SafeLoader),), {})
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


# its bases

def _base_names(filename: str, text: str, own: dict[Any, Any]) -> list[str]:
    names = own.pop(BASE_KEY, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        place = f'{filename}:{line_of(text, BASE_KEY)}'
        raise TypeError(f'`{BASE_KEY}` must be a str or a list of str, not {names!r} ({place})')
    return names


def _join(bases: list[Loaded], filename: str) -> dict[Any, Any]:
    joined: dict[Any, Any] = {}
    for base in bases:
        duplicates = joined.keys() & base.values.keys()
        if duplicates:
            from .origin import merged_node
            places = [f'{key} in {merged_node(b).item(key)}' for key in duplicates for b in bases if key in b.values]
            raise KeyError(f'Duplicate key is not allowed among bases. Duplicate keys: {duplicates} '
                           f'({", ".join(places)}; bases of {filename})')
        joined.update(base.values)
    return joined


def _merge(loaded: Loaded) -> dict[Any, Any]:
    try:
        return merge(loaded.own, loaded.base_values.values or {})
    except InheritError as error:
        from .origin import bases_node, own_node
        base = bases_node(loaded)
        child = own_node(loaded, base)
        for key in error.path:
            child, base = child.item(key), base.item(key)
        raise TypeError(f'{error} ({".".join(map(str, error.path))}, set in {child}, over {base})') from None
