"""Writes a config's values as text: Python that loads to the same values again, JSON or YAML.

In: a plain dictionary. Out: text, or (line, path of the value on it) pairs for those who annotate it.
"""
from __future__ import annotations

import builtins
import json
import keyword
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

WIDTH = 79
Path = tuple[Any, ...]
Fits = Callable[[str, Any, Path], bool]
_NAN_OR_INF = re.compile(r'\b(nan|inf)\b')


def pretty_text(values: dict[Any, Any]) -> str:
    """`k = v` lines; what fits on a line of 79 stays on it, dictionaries are written `dict(a=1)`."""
    return ''.join(f'{line}\n' for line, _ in pretty_lines(values, lambda line, value, path: len(line) <= WIDTH))


def pretty_lines(values: dict[Any, Any], fits: Fits) -> Iterator[tuple[str, Path | None]]:
    """The lines of `pretty_text`, each with the path of the value that starts on it (None where one ends).

    `fits(line, value, path)` decides whether `value` stays on that one line.
    """
    writer = _Writer(values, fits)
    yield from writer.imports()
    for key, value in values.items():
        if key not in writer.imported:
            yield from writer.entry(f'{_target(key)} = ', value, '', '', (key,))


def _target(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f'top-level key {key!r} is a {type(key).__name__}; Python text needs a str, dump to YAML instead')
    return key if _is_name(key) else f'globals()[{key!r}]'


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)


class _Writer:
    def __init__(self, values: dict[Any, Any], fits: Fits):
        self.fits = fits
        self.imported = {key: value for key, value in values.items() if _is_name(key) and _import_line(key, value)}
        self.names = {id(value): key for key, value in self.imported.items()}

    def imports(self) -> Iterator[tuple[str, Path | None]]:
        for key, value in self.imported.items():
            yield _import_line(key, value), (key,)

    def entry(self, start: str, value: Any, end: str, indent: str, path: Path,
              as_dict: bool = True) -> Iterator[tuple[str, Path | None]]:
        """Lines of `start` + value + `end`; `as_dict` writes dictionaries as `dict(a=1)`, else as `{'a': 1}`."""
        line = indent + start + self.flat(value, path, as_dict) + end
        if not isinstance(value, dict | list | tuple) or not value or self.fits(line, value, path):
            yield line, path
            return
        opening, items, closing = self.parts(value, as_dict)
        yield indent + start + opening, path
        inner = indent + '    '
        deeper = as_dict and not isinstance(value, tuple) and (isinstance(value, dict) or _only_dicts(value))
        scalars = all(not isinstance(item, dict | list | tuple) for _, _, item in items)
        if scalars and not isinstance(value, dict):
            yield from self.filled(items, inner, path)
        else:
            for i, (prefix, key, item) in enumerate(items):
                comma = ',' if i + 1 < len(items) or len(items) == 1 and isinstance(value, tuple) else ''
                yield from self.entry(prefix, item, comma, inner, (*path, key), deeper)
        yield indent + closing + end, None

    def filled(self, items: list[tuple[str, Any, Any]], indent: str, path: Path) -> Iterator[tuple[str, Path | None]]:
        """Several scalars of a list on a line, as long as they fit."""
        line, first = indent, 0
        for i, item, value in items:
            text = self.flat(value, (*path, item), False) + ','
            longer = f'{line} {text}' if line != indent else indent + text
            if line != indent and not self.fits(longer, value, (*path, item)):
                yield line, (*path, first)
                longer, first = indent + text, item
            line = longer
        yield line, (*path, first)

    def parts(self, value: Any, as_dict: bool) -> tuple[str, list[tuple[str, Any, Any]], str]:
        """Opening bracket, (prefix, key, item) of each item, closing bracket."""
        if isinstance(value, dict):
            if as_dict and all(map(_is_name, value)):
                return 'dict(', [(f'{key}=', key, item) for key, item in value.items()], ')'
            opening, closing = ('dict({', '})') if as_dict else ('{', '}')
            return opening, [(f'{_scalar(key)}: ', key, item) for key, item in value.items()], closing
        opening, closing = '[]' if isinstance(value, list) else '()'
        return opening, [('', i, item) for i, item in enumerate(value)], closing

    def flat(self, value: Any, path: Path, as_dict: bool = True) -> str:
        """`value` on one line."""
        if not isinstance(value, dict | list | tuple):
            return self.scalar(value, path)
        opening, items, closing = self.parts(value, as_dict)
        deeper = as_dict and not isinstance(value, tuple) and (isinstance(value, dict) or _only_dicts(value))
        text = ', '.join([prefix + self.flat(item, (*path, key), deeper) for prefix, key, item in items])
        return opening + text + (', ' if isinstance(value, tuple) and len(value) == 1 else '') + closing

    def scalar(self, value: Any, path: Path) -> str:
        if id(value) in self.names:
            return self.names[id(value)]
        text = _scalar(value)
        if text is None:
            raise TypeError(f'{".".join(map(str, path))} = {value!r} cannot be written as text; use a plain value, '
                            'or the name under which it is registered')
        return text


def _only_dicts(items: Any) -> bool:
    return all(isinstance(item, dict) for item in items)


def _scalar(value: Any) -> Any:
    """Python source of a plain value, None if it has none. Subclasses (numpy.float64, str enums) become their base type."""
    if isinstance(value, str):
        return str.__repr__(value).replace('{{', '\\x7b{')  # or a reader would take it for a placeholder
    if value is None or value is ... or isinstance(value, bool | bytes | range | slice):
        return 'Ellipsis' if value is ... else repr(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float | complex):
        base = float if isinstance(value, float) else complex
        return _NAN_OR_INF.sub(r"float('\1')", base.__repr__(value)) if base is float else repr(complex(value))
    if isinstance(value, set | frozenset):
        return _set(value)
    if type(value).__module__ == 'numpy' and hasattr(value, 'item') and getattr(value, 'ndim', 1) == 0:
        return _scalar(value.item())
    name = getattr(value, '__name__', '')
    return name if isinstance(value, type) and getattr(builtins, name, None) is value else None


def _set(value: set[Any] | frozenset[Any]) -> str | None:
    items = [_scalar(item) for item in value]
    if None in items:
        return None
    text = '{' + ', '.join(sorted(items)) + '}' if items else ''
    return text if items and isinstance(value, set) else f'{type(value).__name__}({text})'


def _import_line(key: str, value: Any) -> str:
    """`from m import value as key` for a class or builtin function that an import at top level brings back, else ''."""
    module, name = getattr(value, '__module__', None), getattr(value, '__qualname__', None)
    if not isinstance(module, str) or not isinstance(name, str) or not _is_name(name):
        return ''
    if getattr(sys.modules.get(module), name, None) is not value:
        return ''
    return f'from {module} import {name}' + (f' as {key}' if key != name else '')


# files

def dumps(values: dict[Any, Any], extension: str) -> str:
    """`values` in the format of `extension` (.py, .json, .yaml, .yml)."""
    if extension == '.py':
        return pretty_text(values)
    if extension == '.json':
        return json.dumps(values, default=_json_default)
    if extension not in ('.yaml', '.yml'):
        raise OSError(f'Only py/yml/yaml/json type are supported now! Cannot dump to {extension!r}')
    import yaml
    dumper = type('Dumper', (yaml.SafeDumper,), {'ignore_aliases': lambda self, data: True})
    dumper.add_representer(tuple, lambda self, data: self.represent_sequence('tag:yaml.org,2002:python/tuple', data))
    return yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True)


def _json_default(value: Any) -> Any:
    if isinstance(value, set | frozenset | range):
        return list(value)
    if hasattr(value, 'tolist'):  # numpy
        return value.tolist()
    raise TypeError(f'{value!r} cannot be written as JSON')


def dump(values: dict[Any, Any], file: str | os.PathLike[str]) -> None:
    text = dumps(values, os.path.splitext(file)[1])  # before opening: a failure leaves an old file as it was
    with open(file, 'w', encoding='utf-8') as stream:
        stream.write(text)
