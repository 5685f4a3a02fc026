"""The whole resolved config and, beside each value, the file and line that set it.

In: a `Config`. Out: Python text that loads to the same values, with comments like `# a.py:3 via a.py:9 (over b.py:2)`.
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from ..config import Config, Origin, place_text
from ..config.node import SCALARS, Path, children
from ..config.origin import History, Spot
from ..config.text import WIDTH, pretty_lines


def annotate(cfg: Config) -> str:
    """`cfg.pretty_text` in lines whose values all come from the same place, which stands behind them."""
    found = origins(cfg)

    @cache
    def comment(path: Path) -> str:
        return origin_text(found[path])

    def fits(line: str, value: Any, path: Path) -> bool:
        if not list(children(value)):  # an element of a list, to follow the one before it on the line
            return len(line) <= WIDTH and comment(path) == comment((*path[:-1], path[-1] - 1))
        return len(line) <= WIDTH and len({comment(leaf) for leaf, _ in leaves(value, path)}) == 1

    values = cfg.to_dict()
    lines = list(pretty_lines(values, fits))
    column = min(max((len(line) for line, _ in lines), default=0), WIDTH) + 2
    annotated = []
    for line, path in lines:
        if path is None or line.endswith(('(', '[', '{')):  # of a container the items are annotated
            annotated.append(line)
        else:
            leaf, _ = next(leaves(_at(values, path), path))
            annotated.append(f'{line:{column - 2}}  # {comment(leaf)}')
    return '\n'.join([*annotated, ''])


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, value) of everything below `value` that has no items itself."""
    items = list(children(value))
    if not items:
        yield path, value
    for key, item in items:
        yield from leaves(item, (*path, key))


def _at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


def origin_text(origin: Origin) -> str:
    """`a.py:3 via a.py:9 (over b.py:2)`."""
    text = str(origin)
    if origin.alias:
        text += ' via ' + ', '.join(map(place_text, origin.alias))
    if origin.overrides:
        text += f' (over {", ".join(map(str, origin.overrides))})'
    return text


def origins(cfg: Config) -> dict[Path, Origin]:
    """The origin of every value without items, as `cfg.origin` says of each, in one walk: in half the time."""
    found: dict[Path, Origin] = {}
    _add_origins(Spot(cfg._cfg_dict, History.step(*cfg._cfg_dict._born)), (), found)
    return found


def _add_origins(spot: Spot, path: Path, found: dict[Path, Origin]) -> None:
    before = len(found)
    for key, value in children(spot.value):
        if type(value) in SCALARS:
            found[(*path, key)] = spot.item(key).origin()
        else:
            _add_origins(spot.item(key), (*path, key), found)
    if len(found) == before:  # nothing below it
        found[path] = spot.origin()
