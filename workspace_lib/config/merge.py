"""How a child's values go over its base's, and options over a config: neither side is changed."""
from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from .node import Path, plain

DELETE_KEY = '_delete_'


class InheritError(TypeError):
    """A child's dictionary meets something else in the base; `path` leads to it."""

    def __init__(self, message: str, path: Path):
        super().__init__(message)
        self.path = path


def merge(child: dict[Any, Any], base: Any, allow_list_keys: bool = False, path: Path = ()) -> Any:
    """Dictionaries merge, anything else replaces; so does a dictionary with `_delete_=True`.

    With `allow_list_keys` a key of digits in `child` stands for that element of a list in `base`. A `_delete_` that had
    nothing to delete is still there afterwards.
    """
    if isinstance(base, list):
        return _merge_list(child, base, path)
    merged = base.copy()
    for key, value in child.items():
        merged[key] = _over(value, base[key], allow_list_keys, (*path, key)) if key in base else value
    return merged


def _over(value: Any, base: Any, allow_list_keys: bool, path: Path) -> Any:
    if not isinstance(value, dict):
        return value
    if value.get(DELETE_KEY):
        return without_delete(value)
    if not isinstance(base, dict) and not (allow_list_keys and isinstance(base, list)):
        raise InheritError(
            f'{path[-1]}={value} in child config cannot inherit from base because {path[-1]} is a dict in the '
            f'child config but is of type {type(base)} in base config. You may set `{DELETE_KEY}=True` to ignore '
            f'the base config.', path)
    return merge(without_delete(value), base, allow_list_keys, path)


def _merge_list(child: dict[Any, Any], base: list[Any], path: Path) -> list[Any]:
    merged = list(base)
    for key, value in child.items():
        if not str(key).isdigit():
            raise InheritError(f'{".".join(map(str, path))} is a list of {len(base)}; index it with 0 to '
                               f'{len(base) - 1}, not with {key!r}', (*path, key))
        if int(key) >= len(base):
            raise KeyError(f'Index {key} exceeds the length of list {base}')
        merged[int(key)] = _over(value, base[int(key)], True, (*path, key))
    return merged


def strip(value: Any) -> Any:
    """A copy without the `_delete_` keys that had nothing to delete."""
    if isinstance(value, dict):
        return {key: strip(item) for key, item in without_delete(value).items()}
    return type(value)(map(strip, value)) if type(value) in (list, tuple) else value


def without_delete(value: dict[Any, Any]) -> dict[Any, Any]:
    return {key: item for key, item in value.items() if key != DELETE_KEY} if DELETE_KEY in value else value


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} -> {'a': {'b': 1}}"""
    result: dict[str, Any] = {}
    for full_key, value in options.items():
        *parents, last = full_key.split('.')
        into = result
        for key in parents:
            into = into.setdefault(key, {})
            if not isinstance(into, dict):
                raise TypeError(f'option {full_key!r} needs a dictionary where another option sets {key}={into!r}')
        into[last] = plain(value)
    return result


def near_names(name: Any, known: Iterable[Any], cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` for the known names nearest to `name`, or ''; with a `cutoff` of 1 only equal ones are."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], 3, cutoff)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
