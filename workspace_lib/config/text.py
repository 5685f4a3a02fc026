"""Writes values as text: Python that loads to the same values, JSON or YAML.

In: plain dictionaries. Out: the text, or its lines with the path of the value on each, for `tools.annotate`.
"""
from __future__ import annotations

import builtins
import json
import keyword
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .load import check_format
from .node import Path, children

WIDTH = 79
Lines = Iterator[tuple[str, 'Path | None']]
Fits = Callable[[str, Any, Path], bool]


def dumps(values: dict[Any, Any], extension: str) -> str:
    """`values` in the format of '.py', '.json', '.yaml' or '.yml'."""
    check_format(extension, f' Got {extension!r}')
    if extension == '.py':
        return pretty_text(values)
    if extension == '.json':
        return json.dumps(values, default=_json_default)
    import yaml
    dumper: Any = type('Dumper', (yaml.SafeDumper,), {'ignore_aliases': lambda self, data: True})
    dumper.add_representer(tuple, lambda self, data: self.represent_sequence('tag:yaml.org,2002:python/tuple', data))
    return yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True)


def _json_default(value: Any) -> Any:
    if isinstance(value, set | frozenset | range):
        return list(value)
    if hasattr(value, 'tolist'):  # numpy
        return value.tolist()
    raise TypeError(f'{value!r} cannot be written as JSON')


def pretty_text(values: dict[Any, Any]) -> str:
    """`key = value` lines. What fits on 79 columns stays on one; dictionaries are written `dict(a=1)`."""
    return ''.join(f'{line}\n' for line, _ in pretty_lines(values, lambda line, value, path: len(line) <= WIDTH))


def pretty_lines(values: dict[Any, Any], fits: Fits) -> Lines:
    """Lines, each with the path of the value that begins on it, None where one ends.

    `fits(line, value, path)` says whether a value stays on that one line.
    """
    writer = _Writer(values, fits)
    for name, (line, _) in writer.imports.items():
        yield line, (name,)
    for key, value in values.items():
        if key not in writer.imports:
            yield from writer.entry(f'{_target(key)} = ', value, '', '', (key,), True)


def _target(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f'top-level key {key!r} is no str, which Python text needs; dump to .yaml instead')
    return key if _is_name(key) else f'globals()[{key!r}]'


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)


class _Parts(NamedTuple):
    opening: str
    items: list[tuple[str, Any, Any]]  # prefix, key or index, value
    closing: str
    as_dict: bool  # whether dictionaries in it are written `dict(a=1)`, or `{'a': 1}`


class _Writer:
    def __init__(self, values: dict[Any, Any], fits: Fits):
        self.fits = fits
        lines = {key: (_import_line(key, value), value) for key, value in values.items()}
        self.imports = {key: pair for key, pair in lines.items() if pair[0]}
        self.names = {id(value): key for key, (_, value) in self.imports.items()}

    def entry(self, start: str, value: Any, end: str, indent: str, path: Path, as_dict: bool) -> Lines:
        line = indent + start + self.flat(value, path, as_dict) + end
        if not isinstance(value, dict | list | tuple) or not value or self.fits(line, value, path):
            yield line, path
            return
        parts = self.parts(value, path, as_dict)
        yield indent + start + parts.opening, path
        if any(isinstance(item, dict | list | tuple) for _, item in children(value)) or isinstance(value, dict):
            for i, (prefix, key, item) in enumerate(parts.items, 1):
                comma = ',' if i < len(parts.items) or isinstance(value, tuple) else ''
                yield from self.entry(prefix, item, comma, indent + '    ', (*path, key), parts.as_dict)
        else:
            yield from self.filled(value, indent + '    ', path)
        yield indent + parts.closing + end, None

    def filled(self, value: Any, indent: str, path: Path) -> Lines:
        """Scalars of a list, as many on a line as fit."""
        line, first = indent, 0
        for i, item in enumerate(value):
            text = self.scalar(item, (*path, i)) + ','
            if line != indent and not self.fits(f'{line} {text}', item, (*path, i)):
                yield line, (*path, first)
                line, first = indent, i
            line += text if line == indent else f' {text}'
        yield line, (*path, first)

    def flat(self, value: Any, path: Path, as_dict: bool) -> str:
        """`value` on one line."""
        if not isinstance(value, dict | list | tuple):
            return self.scalar(value, path)
        parts = self.parts(value, path, as_dict)
        items = [prefix + self.flat(item, (*path, key), parts.as_dict) for prefix, key, item in parts.items]
        comma = ', ' if isinstance(value, tuple) and len(value) == 1 else ''
        return parts.opening + ', '.join(items) + comma + parts.closing

    def parts(self, value: Any, path: Path, as_dict: bool) -> _Parts:
        if not isinstance(value, dict):
            opening, closing = '[]' if isinstance(value, list) else '()'
            as_dict = as_dict and isinstance(value, list) and all(isinstance(item, dict) for item in value)
            return _Parts(opening, [('', i, item) for i, item in enumerate(value)], closing, as_dict)
        if as_dict and all(map(_is_name, value)):
            return _Parts('dict(', [(f'{key}=', key, item) for key, item in value.items()], ')', True)
        opening, closing = ('dict({', '})') if as_dict else ('{', '}')
        items = [(f'{self.flat(key, (*path, key), False)}: ', key, item) for key, item in value.items()]
        return _Parts(opening, items, closing, as_dict)

    def scalar(self, value: Any, path: Path) -> str:
        text = self.names.get(id(value)) or _scalar(value)
        if text is None:
            raise TypeError(f'{".".join(map(str, path))} = {value!r} cannot be written as text; use a plain value, '
                            'such as the name that a class is registered under')
        return text


def _scalar(value: Any) -> str | None:
    """Python source of a plain value, else None. Subclasses (numpy.float64, str enums) become their base type."""
    if isinstance(value, str):
        return re.sub(r'\{(?=\{)', r'\\x7b', str.__repr__(value))  # a reader takes {{ for a placeholder
    if value is None or isinstance(value, bool | bytes | complex | range):
        return repr(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return re.sub(r'nan|inf', r"float('\g<0>')", float.__repr__(value))
    if isinstance(value, set | frozenset):
        items = [_scalar(item) or '' for item in value]
        return f'{type(value).__name__}([{", ".join(sorted(items))}])' if all(items) else None
    if type(value).__module__ == 'numpy' and getattr(value, 'shape', None) == ():
        return _scalar(value.item())
    name = getattr(value, '__name__', None)
    return name if name and getattr(builtins, name, None) is value else None


def _import_line(key: Any, value: Any) -> str:
    """`from module import value as key` for a class or function that an import at top level brings back, else ''."""
    module, name = getattr(value, '__module__', None), getattr(value, '__qualname__', None)
    if not isinstance(module, str) or not _is_name(name) or not _is_name(key):
        return ''
    if getattr(sys.modules.get(module), str(name), None) is not value:
        return ''
    return f'from {module} import {name}' + (f' as {key}' if key != name else '')
