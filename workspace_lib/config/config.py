"""`Config`: values read from Python, JSON or YAML files that inherit from each other."""
from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from . import text
from .load import Loaded, check_format, load
from .merge import DELETE_KEY, merge, near_names, nested
from .node import ConfigDict, children, mark, plain, wrap
from .origin import CODE, OVERRIDE, History, Origin, Spot
from .placeholders import has_key

RESERVED_KEYS = ('filename', 'text', 'pretty_text')


class Config:
    """A config's values as attributes and as items, and what can be asked of them.

    `cfg.filename`: the path as given; `cfg.text`: the texts of its bases, depth first, and its own.
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
        filename = os.fspath(filename) if filename is not None else None
        if not cfg_text and filename:
            cfg_text = Path(filename).read_text(encoding='utf-8')
        self.__setstate__((cfg_dict, filename, cfg_text or '', History(None, plain(cfg_dict))))

    @classmethod
    def fromfile(cls, filename: str | os.PathLike[str], use_predefined_variables: bool = True,
                 import_custom_modules: bool = True) -> Config:
        """Load a .py, .json, .yaml or .yml file with its bases, then import what its `custom_imports` name."""
        filename = os.fspath(filename)
        loaded = load(filename, file_vars=use_predefined_variables)
        return cls._from_loaded(loaded, filename, import_custom_modules)

    @classmethod
    def fromstring(cls, cfg_str: str, file_format: str) -> Config:
        """Load a text in format '.py', '.json', '.yaml' or '.yml'; its bases are relative to the current folder."""
        check_format(file_format)
        if file_format != '.py' and 'dict(' in cfg_str:
            warnings.warn('Please check "file_format", the file format may be .py', stacklevel=2)
        filename = f'<string>{file_format}'
        return cls._from_loaded(load(filename, cfg_str), filename)

    @classmethod
    def _from_loaded(cls, loaded: Loaded, filename: str, import_custom_modules: bool = True) -> Config:
        cfg = cls.__new__(cls)
        cfg.__setstate__((loaded.values, filename, loaded.full_text(), History(loaded, loaded.values)))
        if import_custom_modules and cfg.get('custom_imports'):
            _import_custom(cfg)
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
        return text.pretty_text(self.to_dict())

    def dump(self, file: str | os.PathLike[str] | None = None) -> str | None:
        """Write to `file` in the format of its extension; without it return the text, in this config's own format."""
        name = file if file is not None else self._filename or 'config.py'
        written = text.dumps(self.to_dict(), os.path.splitext(name)[1])
        if file is None:
            return written
        Path(file).write_text(written, encoding='utf-8')
        return None

    def to_dict(self) -> dict[Any, Any]:
        return plain(self._cfg_dict)

    def merge_from_dict(self, options: dict[str, Any], allow_list_keys: bool = True) -> None:
        """Merge dotted keys, such as `{'optimizer.lr': 0.1, 'data.train.pipeline.1.size': 32}`, as a child would."""
        by_level = nested(options)
        _refuse_reserved(by_level)
        before = self.to_dict()
        merged = merge(by_level, self._cfg_dict, allow_list_keys)
        _drop_deletes(merged)
        history = History(self._history.loaded, plain(merged), (*self._history.merges, (before, by_level)))
        mark(merged, history)
        self.__dict__.update(_cfg_dict=merged, _history=history)

    def origin(self, key: str | Sequence[Any]) -> Origin:
        """Where the value of 'data.train.pipeline.1.size' (or of a sequence of keys and indices) was set."""
        parts, done = key.split('.') if isinstance(key, str) else list(key), 0
        spot = Spot(self._cfg_dict, History.step(*self._cfg_dict._born))
        while done < len(parts):
            name, length = _next_key(spot.value, parts[done:])
            if not length:
                near = near_names(parts[done], spot.value if isinstance(spot.value, dict) else ())
                raise KeyError(f'no {parts[done]!r} in {".".join(map(str, parts[:done])) or "the config"}{near}')
            spot, done = spot.item(name), done + length
        return spot.origin()

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
        if name == '_cfg_dict':  # while being copied or unpickled
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
        other.__dict__.update(self.__dict__)  # over the same values, as in mmcv
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        other = memo[id(self)] = self.__copy__()
        other.__dict__['_cfg_dict'] = copy.deepcopy(self._cfg_dict, memo)
        return other

    def __getstate__(self) -> Any:
        return self.to_dict(), self._filename, self._text, self._history

    def __setstate__(self, state: Any) -> None:
        values, filename, cfg_text, history = state
        _refuse_reserved(values)
        self.__dict__.update(_cfg_dict=wrap(values, history), _filename=filename, _text=cfg_text, _history=history)


def where(node: Any, key: Any = None) -> str:
    """Where `node[key]`, or `node` itself, was set: 'model.backbone.depth, set in configs/x.py:6'.

    `node` is a `Config`, or a `ConfigDict` out of one or a copy of it; '' for any other dictionary.
    """
    node = node._cfg_dict if isinstance(node, Config) else node
    if not isinstance(node, ConfigDict) or node._born is None:
        return ''
    history, path = node._born
    value = node.get(key, node)
    path = path if value is node else (*path, key)
    if not path:
        return ''
    step = history.step(path)
    origin = Spot(value, step).origin()
    if isinstance(value, dict) and step and step[0].old and step[0].place[0] == OVERRIDE and not step[0].replaces:
        first = next((old for old in origin.overrides if old.file != OVERRIDE), origin)
        return f'{".".join(map(str, path))}, set in {first}, in part by an override'
    place = {CODE: 'in code', OVERRIDE: 'by an override'}.get(origin.file, f'in {origin}')
    return f'{".".join(map(str, path))}, set {place}'


def place(node: Any, key: Any = None) -> str:
    """What `where` says as the end of a message: ' (model.backbone.depth, set in configs/x.py:6)', or ''."""
    found = where(node, key)
    return f' ({found})' if found else ''


def _next_key(values: Any, parts: list[Any]) -> tuple[Any, int]:
    """The key of `values` that `parts` begin with, and how many of them it takes as it may hold dots; 0 for none."""
    for length in range(1, len(parts) + 1):
        name = '.'.join(map(str, parts[:length]))
        for key in (parts[0] if length == 1 else name, name, int(name) if name.isdigit() else name):
            if has_key(values, key):
                return key, length
    return None, 0


def _drop_deletes(value: Any) -> None:
    if isinstance(value, dict):
        value.pop(DELETE_KEY, None)
    for _, item in children(value):
        _drop_deletes(item)


def _refuse_reserved(keys: Any) -> None:
    for key in keys:
        if key in RESERVED_KEYS:
            raise KeyError(f'{key} is reserved for config file')


def _import_custom(cfg: Config) -> None:
    wanted, known = cfg.custom_imports, {'imports', 'allow_failed_imports'}
    if not isinstance(wanted, dict) or not known.issuperset(wanted):
        raise TypeError('custom_imports must be dict(imports=[...], allow_failed_imports=False), '
                        f'but got {wanted!r} ({where(cfg, "custom_imports")})')
    names = wanted.get('imports') or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list):
        raise TypeError(f'custom_imports must be a list but got type {type(names)} ({where(wanted, "imports")})')
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f'{name} is of type {type(name)} and cannot be imported ({where(wanted, "imports")})')
        try:
            import_module(name)
        except ImportError as error:
            if not wanted.get('allow_failed_imports'):
                raise ImportError(f'cannot import {name!r}: {error} ({where(wanted, "imports")})') from error
            warnings.warn(f'{name} failed to import and is ignored.', UserWarning, stacklevel=4)
