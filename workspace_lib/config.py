"""`Config`: a dictionary read from Python, JSON or YAML files that inherit from each other, which knows where each value came from.

In: a path, a text or a dict. Out: a `Config`; `cfg.model.backbone.depth`, `cfg['model']`, `cfg.origin('model.backbone.depth')`.
"""
from __future__ import annotations

import argparse
import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from .config_load import Loaded, check_format, load, merge, near_names
from .config_origin import CODE, OVERRIDE, History, Origin
from .config_text import dump, dumps, pretty_text

RESERVED_KEYS = ('filename', 'text', 'pretty_text')


class ConfigDict(dict):
    """A dict whose keys are attributes too; dictionaries put into it, also inside lists, become ConfigDicts."""

    __slots__ = ('_born',)
    _born: Any  # (the History of the Config it was loaded by, its path there), or None

    def __init__(self, *args: Any, **kwargs: Any):
        object.__setattr__(self, '_born', None)
        for items in (*[dict(arg) for arg in args if arg], kwargs):
            for key, value in items.items():
                dict.__setitem__(self, key, wrap(value))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            message = f'{type(self).__name__!r} object has no attribute {name!r}'
            raise AttributeError(message, name=name, obj=self) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            raise AttributeError(f'{name!r} is a method of {type(self).__name__}; write cfg[{name!r}] = ... instead')
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}', name=name, obj=self)
        del self[name]

    def __setitem__(self, key: Any, value: Any) -> None:
        dict.__setitem__(self, key, adopt(value))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self if isinstance(key, str))]

    def update(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Like dict.update, but a dictionary over a dictionary updates it instead of replacing it."""
        for key, value in dict(*args, **kwargs).items():
            if isinstance(value, dict) and isinstance(self.get(key), ConfigDict):
                self[key].update(value)
            else:
                self[key] = value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __or__(self, other: Any) -> Any:
        return _united(self, other) if isinstance(other, dict) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return _united(other, self) if isinstance(other, dict) else NotImplemented

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def to_dict(self) -> dict[Any, Any]:
        """Plain dictionaries all the way down, in lists and tuples too."""
        return plain(self)

    def copy(self) -> ConfigDict:
        """A new top level over the same values."""
        return self.__copy__()

    def deepcopy(self) -> ConfigDict:
        return copy.deepcopy(self)

    def __copy__(self) -> ConfigDict:
        other = type(self)()
        dict.update(other, self)
        object.__setattr__(other, '_born', self._born)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> ConfigDict:
        other = memo[id(self)] = type(self)()
        object.__setattr__(other, '_born', self._born)
        for key, value in self.items():
            dict.__setitem__(other, copy.deepcopy(key, memo), copy.deepcopy(value, memo))
        return other

    def __reduce__(self) -> Any:
        return type(self), (), None, None, iter(self.items())


def _united(first: dict[Any, Any], second: dict[Any, Any]) -> ConfigDict:
    united = ConfigDict(first)
    united.update(second)
    return united


def wrap(value: Any, history: Any = None, path: tuple[Any, ...] = ()) -> Any:
    """A copy of `value` with ConfigDicts for dictionaries, each noting `history` and its path; lists and tuples are copied."""
    if isinstance(value, dict):
        node = ConfigDict()
        born = (history, path) if history is not None else getattr(value, '_born', None)
        object.__setattr__(node, '_born', born)
        for key, item in value.items():
            dict.__setitem__(node, key, wrap(item, history, (*path, key)))
        return node
    if type(value) is list or type(value) is tuple:
        return type(value)([wrap(item, history, (*path, i)) for i, item in enumerate(value)])
    return value


def adopt(value: Any) -> Any:
    """`value` itself unless it holds plain dictionaries, else a copy with ConfigDicts."""
    return wrap(value) if _holds_plain_dict(value) else value


def _holds_plain_dict(value: Any) -> bool:
    if isinstance(value, dict):
        return not isinstance(value, ConfigDict)
    return type(value) in (list, tuple) and any(map(_holds_plain_dict, value))


def _mark(value: Any, history: History, path: tuple[Any, ...] = ()) -> None:
    """Note `history` and its present path in each ConfigDict below `value`."""
    if isinstance(value, ConfigDict):
        object.__setattr__(value, '_born', (history, path))
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        _mark(item, history, (*path, key))


def origin_at(node: ConfigDict, history: History, key: str | Sequence[Any]) -> Origin:
    value: Any = node
    path: tuple[Any, ...] = ()
    for part in split_key(node, key):
        value, path = value[part], (*path, part)
        if isinstance(value, ConfigDict):  # moved ones remember where they were; those made in code are in no history
            history, path = value._born or (History(None, {}), ())
    return history.origin(path, value)


def split_key(values: Any, key: str | Sequence[Any]) -> list[Any]:
    """['pipeline', 1, 'size'] for 'pipeline.1.size'; a key of `values` may hold dots itself."""
    parts = key.split('.') if isinstance(key, str) else list(key)
    found: list[Any] = []
    while parts:
        step, parts = _next_key(values, parts, '.'.join(map(str, found)))
        found.append(step)
        values = values[step]
    return found


def _next_key(values: Any, parts: list[Any], path: str) -> tuple[Any, list[Any]]:
    first = parts[0]
    index = int(first) if isinstance(first, int) or str(first).lstrip('-').isdigit() else None
    if isinstance(values, list | tuple) and index is not None and -len(values) <= index < len(values):
        return index % len(values), parts[1:]
    if isinstance(values, dict):
        for key in (first, index):
            if key is not None and key in values:
                return key, parts[1:]
        for end in range(2, len(parts) + 1):
            key = '.'.join(map(str, parts[:end]))
            if key in values:
                return key, parts[end:]
    known = values if isinstance(values, dict) else ()
    raise KeyError(f'no {first!r} in {path or "the config"}{near_names(first, known)}')


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)([plain(item) for item in value])
    return value


class Config:
    """A config file's values, as attributes and as items.

    `cfg.filename` is the path as given, `cfg.text` the texts of the bases (depth first) and of the file itself.
    """

    _cfg_dict: ConfigDict
    _filename: str | None
    _text: str
    _history: History

    def __init__(self, cfg_dict: dict[Any, Any] | None = None, cfg_text: str | None = None,
                 filename: str | os.PathLike[str] | None = None):
        cfg_dict = {} if cfg_dict is None else cfg_dict
        if not isinstance(cfg_dict, dict):
            raise TypeError(f'cfg_dict must be a dict, but got {type(cfg_dict)}')
        _refuse_reserved(cfg_dict)
        if filename is not None:
            filename = os.fspath(filename)
        if not cfg_text and filename:
            with open(filename, encoding='utf-8') as file:
                cfg_text = file.read()
        values = plain(cfg_dict)
        self.__setstate__((values, filename, cfg_text or '', History(None, values)))

    @classmethod
    def fromfile(cls, filename: str | os.PathLike[str], use_predefined_variables: bool = True,
                 import_custom_modules: bool = True) -> Config:
        """Load a .py, .json, .yaml or .yml file with its bases, then import what its `custom_imports` names."""
        filename = os.fspath(filename)
        loaded = load(filename, use_predefined_variables=use_predefined_variables)
        return cls._from_loaded(loaded, filename, import_custom_modules)

    @classmethod
    def fromstring(cls, cfg_str: str, file_format: str) -> Config:
        """Load a text in the format '.py', '.json', '.yaml' or '.yml'; its bases are relative to the current folder."""
        check_format(file_format)
        if file_format != '.py' and 'dict(' in cfg_str:
            warnings.warn('Please check "file_format", the file format may be .py', stacklevel=2)
        filename = f'<string>{file_format}'
        return cls._from_loaded(load(filename, cfg_str), filename, True)

    @classmethod
    def _from_loaded(cls, loaded: Loaded, filename: str, import_custom_modules: bool) -> Config:
        _refuse_reserved(loaded.values)
        cfg = cls.__new__(cls)
        cfg.__setstate__((loaded.values, filename, loaded.full_text(), History(loaded, loaded.values)))
        if import_custom_modules and cfg.get('custom_imports'):
            _import_custom(cfg.custom_imports, where(cfg, 'custom_imports'))
        return cfg

    @property
    def filename(self) -> str | None:
        return self._filename

    @property
    def text(self) -> str:
        return self._text

    @property
    def pretty_text(self) -> str:
        """All values as Python text that loads to the same values."""
        return pretty_text(self.to_dict())

    def dump(self, file: str | os.PathLike[str] | None = None) -> str | None:
        """Write to `file` in the format of its extension; without `file` return the text, in this config's own format."""
        if file is not None:
            return dump(self.to_dict(), file)
        return dumps(self.to_dict(), os.path.splitext(self.filename or '.py')[1] or '.py')

    def to_dict(self) -> dict[Any, Any]:
        return plain(self._cfg_dict)

    def merge_from_dict(self, options: dict[str, Any], allow_list_keys: bool = True) -> None:
        """Merge dotted keys, as in `{'model.backbone.depth': 18, 'data.train.pipeline.1.size': 32}`, like a child config."""
        nested = _nested(options)
        _refuse_reserved(nested)
        before = self.to_dict()
        object.__setattr__(self, '_cfg_dict', merge(nested, self._cfg_dict, allow_list_keys))
        history = self._history.followed_by(before, nested, self.to_dict())
        object.__setattr__(self, '_history', history)
        _mark(self._cfg_dict, history)

    def origin(self, key: str | Sequence[Any]) -> Origin:
        """Where the value of a key such as 'data.train.pipeline.1.size' (or a sequence of keys and indices) was set."""
        return origin_at(self._cfg_dict, self._history, key)

    def __repr__(self) -> str:
        return f'Config (path: {self.filename}): {self._cfg_dict!r}'

    def __len__(self) -> int:
        return len(self._cfg_dict)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cfg_dict)

    def __contains__(self, key: Any) -> bool:
        return key in self._cfg_dict

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *dir(self._cfg_dict)]

    def __getattr__(self, name: str) -> Any:
        if name == '_cfg_dict':  # not there yet, while being copied or unpickled
            raise AttributeError(name)
        return getattr(self._cfg_dict, name)

    def __getitem__(self, name: Any) -> Any:
        return self._cfg_dict[name]

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_reserved([name])
        setattr(self._cfg_dict, name, wrap(value) if isinstance(value, dict) else value)

    def __setitem__(self, name: Any, value: Any) -> None:
        _refuse_reserved([name])
        self._cfg_dict[name] = wrap(value) if isinstance(value, dict) else value

    def __delattr__(self, name: str) -> None:
        delattr(self._cfg_dict, name)

    def __delitem__(self, name: Any) -> None:
        del self._cfg_dict[name]

    def __copy__(self) -> Config:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)  # the same values, as in mmcv
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        other = memo[id(self)] = self.__copy__()
        object.__setattr__(other, '_cfg_dict', copy.deepcopy(self._cfg_dict, memo))
        return other

    def __getstate__(self) -> Any:
        return self.to_dict(), self._filename, self._text, self._history

    def __setstate__(self, state: Any) -> None:
        values, filename, text, history = state
        state = {'_cfg_dict': wrap(values, history), '_filename': filename, '_text': text, '_history': history}
        self.__dict__.update(state)


def _refuse_reserved(keys: Any) -> None:
    for key in keys:
        if key in RESERVED_KEYS:
            raise KeyError(f'{key} is reserved for config file')


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} -> {'a': {'b': 1}}"""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        *parents, last = key.split('.')
        into = nested
        for i, part in enumerate(parents):
            into = into.setdefault(part, {})
            if not isinstance(into, dict):
                raise TypeError(f'option {key!r} goes through {".".join(parents[:i + 1])!r}, which another option '
                                f'sets to {into!r}')
        into[last] = plain(value)
    return nested


def _import_custom(custom_imports: Any, place: str) -> None:
    if not isinstance(custom_imports, dict):
        raise TypeError(f'custom_imports must be a dict(imports=[...], allow_failed_imports=False), '
                        f'but got {custom_imports!r} ({place})')
    unknown = custom_imports.keys() - {'imports', 'allow_failed_imports'}
    if unknown:
        raise TypeError(f'custom_imports got {min(unknown)!r}; it takes imports and allow_failed_imports ({place})')
    names = custom_imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list):
        raise TypeError(f'custom_imports must be a list but got type {type(names)} ({place})')
    for name in names:
        _import_one(name, custom_imports.get('allow_failed_imports', False), place)


def _import_one(name: Any, allow_failure: bool, place: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f'{name} is of type {type(name)} and cannot be imported ({place})')
    try:
        import_module(name)
    except ImportError as error:
        if not allow_failure:
            raise ImportError(f'cannot import {name!r} named in custom_imports ({place}): {error}') from error
        warnings.warn(f'{name} failed to import and is ignored.', UserWarning, stacklevel=5)


class DictAction(argparse.Action):
    """argparse action for `--cfg-options KEY=VALUE ...` with numbers, booleans, None, `[lists]` and `(tuples)`."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: str | Sequence[Any] | None, option_string: str | None = None) -> None:
        options = {}
        for pair in values or []:
            key, equals, value = pair.partition('=')
            if not equals:
                raise argparse.ArgumentError(self, f'expected KEY=VALUE, got {pair!r}')
            try:
                options[key] = self._parse_iterable(value)
            except AssertionError as error:
                raise argparse.ArgumentError(self, f'{error} ({pair!r})') from None
        setattr(namespace, self.dest, options)

    @staticmethod
    def _parse_int_float_bool(text: str) -> Any:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
        return {'true': True, 'false': False}.get(text.lower(), None if text == 'None' else text)

    @staticmethod
    def _parse_iterable(text: str) -> Any:
        """'1,a' -> [1, 'a'], '(1,[2,x])' -> (1, [2, 'x']), '1e-3' -> 0.001; spaces vanish, quotes around are dropped."""
        text = text.strip('\'"').replace(' ', '')
        parts = _split_commas(text)
        if _in_brackets(text):
            items = [DictAction._parse_iterable(part) for part in _split_commas(text[1:-1])]
            return tuple(items) if text[0] == '(' else items
        if len(parts) == 1 and not text.endswith(','):
            return DictAction._parse_int_float_bool(text)
        return [DictAction._parse_iterable(part) for part in parts]


def _split_commas(text: str) -> list[str]:
    """Split at the commas outside brackets; a trailing comma adds nothing."""
    if text.count('(') != text.count(')') or text.count('[') != text.count(']'):
        raise AssertionError(f'Imbalanced brackets exist in {text}')
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in '([') - (char in ')]')
        if char == ',' and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]] if text[start:] else parts


def _in_brackets(text: str) -> bool:
    """Whether the first bracket closes at the very end: true of '[1,2]', not of '[1],[2]'."""
    if text[:1] + text[-1:] not in ('()', '[]'):
        return False
    depth = 0
    for i, char in enumerate(text):
        depth += (char in '([') - (char in ')]')
        if depth == 0:
            return i == len(text) - 1
    return False


def where(node: Any, key: Any = None) -> str:
    """Where `node[key]` (without `key`, `node`) was set: 'model.backbone.depth, set in configs/x.py:6'.

    Works on a `ConfigDict` taken from a `Config`, also on its copies; '' for any other dictionary.
    """
    node = node._cfg_dict if isinstance(node, Config) else node
    if not isinstance(node, ConfigDict) or node._born is None:
        return ''
    history, path = node._born
    value: Any = node
    if key is not None and key in node:
        path, value = (*path, key), node[key]
    if not path:
        return ''
    origin = history.origin(path, value)
    set_by = {CODE: 'in code', OVERRIDE: 'by an override'}.get(origin.file, f'in {origin}')
    return f'{".".join(map(str, path))}, set {set_by}'
