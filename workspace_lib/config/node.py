"""`ConfigDict`, of which a `Config` is made, and the copies between it and plain dictionaries."""
from __future__ import annotations

import copy
from typing import Any

Path = tuple[Any, ...]


class ConfigDict(dict):
    """A dict whose keys are attributes too; a dictionary put into it, also in a list, becomes a ConfigDict."""

    __slots__ = ('_born',)
    _born: Any  # (the History of the Config that it was loaded into, its path there), or None

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
            raise AttributeError(f'{name!r} is a method of {type(self).__name__}; write cfg[{name!r}] = ...')
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        del self[name]

    def __setitem__(self, key: Any, value: Any) -> None:
        dict.__setitem__(self, key, wrap(value) if _holds_plain_dict(value) else value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self if isinstance(key, str))]

    def update(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Like dict.update, but a dictionary over a dictionary updates it instead of replacing it."""
        for key, value in dict(*args, **kwargs).items():
            if isinstance(value, dict) and isinstance(self.get(key), ConfigDict):
                self[key].update(value)
            else:
                self[key] = value

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)
        return self

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def to_dict(self) -> dict[Any, Any]:
        """Plain dictionaries all the way down, in lists and tuples too."""
        return plain(self)

    def copy(self) -> ConfigDict:
        """A new top level over the same values."""
        other = type(self)()
        object.__setattr__(other, '_born', self._born)
        dict.update(other, self)
        return other

    __copy__ = copy

    def deepcopy(self) -> ConfigDict:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> ConfigDict:
        other = memo[id(self)] = self.copy()
        for key, value in self.items():
            dict.__setitem__(other, key, copy.deepcopy(value, memo))
        return other

    def __reduce__(self) -> Any:
        return type(self), (), None, None, iter(self.items())


_set_item, _set_born = dict.__setitem__, ConfigDict.__dict__['_born'].__set__
SCALARS = {str, int, float, bool, type(None)}  # most values by far: they are let through first


def wrap(value: Any, history: Any = None, path: Path = ()) -> Any:
    """A copy with ConfigDicts for dictionaries, born in `history` at `path` unless they were born before."""
    if type(value) in SCALARS:
        return value
    if isinstance(value, dict):
        node = ConfigDict.__new__(ConfigDict)
        born = None if type(value) is dict else getattr(value, '_born', None)
        _set_born(node, born or (history and (history, path)))
        for key, item in value.items():
            _set_item(node, key, item if type(item) in SCALARS else wrap(item, history, (*path, key)))
        return node
    if type(value) is list or type(value) is tuple:
        return type(value)([item if type(item) in SCALARS else wrap(item, history, (*path, i))
                            for i, item in enumerate(value)])
    return value


def plain(value: Any) -> Any:
    """A copy with plain dictionaries for ConfigDicts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)([plain(item) for item in value])
    return value


def mark(value: Any, history: Any, path: Path = ()) -> None:
    """Let every ConfigDict below `value` be born in `history`, where it stands now."""
    if isinstance(value, ConfigDict):
        _set_born(value, (history, path))
    for key, item in children(value):
        mark(item, history, (*path, key))


def children(value: Any) -> Any:
    """(key, item) pairs of a dictionary, (index, item) pairs of a list or tuple, nothing of anything else."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()  # `list | tuple` would be made at each call


def _holds_plain_dict(value: Any) -> bool:
    if isinstance(value, dict):
        return not isinstance(value, ConfigDict)
    return type(value) in (list, tuple) and any(map(_holds_plain_dict, value))
