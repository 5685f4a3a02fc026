"""Provenance: which file and line set a value, and which it overrode.

While loading nothing is computed. The first question replays the merge, with lines in the place of values.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .lines import json_lines, yaml_lines
from .load import Loaded
from .merge import DELETE_KEY, merge, without_delete
from .node import SCALARS, ConfigDict, Path, children
from .placeholders import has_key
from .tree import Node, Place, changed, place_text, same
from .watch import python_lines

Step = tuple[Node, 'Node | None', Any]  # node, overridden node and value of something after loading
OVERRIDE, CODE = '<override>', '<code>'


@dataclass(slots=True)
class Origin:
    """The `file` and `line` with a value's key; '<override>' (merge_from_dict) and '<code>' have line 0.

    `alias`: places that the value came through, the definition of the variable that the line names, or the uses
    of the variable in whose definition the line stands. `overrides`: what it took the place of, newest first.
    """

    file: str
    line: int
    alias: list[Place] = field(default_factory=list)
    overrides: list[Origin] = field(default_factory=list)

    def __str__(self) -> str:
        return place_text((self.file, self.line))


class History:
    """What a Config was made of: files, then (values before, options) of each merge_from_dict."""

    def __init__(self, loaded: Loaded | None, values: dict[Any, Any], merges: tuple[Any, ...] = ()):
        self.loaded, self.values, self.merges = loaded, values, merges
        self._steps: dict[Path, Step | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), '_steps': {}}

    def step(self, path: Path) -> Step | None:
        """What stood at `path` after loading; None if nothing did."""
        if path not in self._steps:
            self._steps[path] = below(self.step(path[:-1]), path[-1]) if path else (self._root(), None, self.values)
        return self._steps[path]

    def _root(self) -> Node:
        node = merged_node(self.loaded) if self.loaded else Node((CODE, 0))
        values = self.loaded.values if self.loaded else self.values
        for before, options in self.merges:
            node = changed(node, values, before, _code_node)
            node = merge_nodes(options, Node((OVERRIDE, 0)), before, node)
            values = merge(options, before, allow_list_keys=True)
        return node


def below(step: Step | None, key: Any) -> Step | None:
    """What stood at `key` of what `step` tells of; None if nothing did."""
    if step is None or not has_key(step[2], key):
        return None
    node, old, value = step
    above = node.old if node.replaces else old
    return node.item(key), above.known_item(key) if above else None, value[key]


class Spot(NamedTuple):
    """A value as it stands now, and what stood there after loading; what did not was made in code."""

    value: Any
    step: Step | None
    made_in_code: bool = False

    def item(self, key: Any) -> Spot:
        value = self.value[key]
        if isinstance(value, ConfigDict) and value._born:
            return Spot(value, History.step(*value._born))
        step = below(self.step, key)
        made_in_code = type(value) not in SCALARS and (isinstance(value, ConfigDict) or (
            isinstance(value, (list, tuple)) and step is not None and len([*children(step[2])]) != len(value)))
        return Spot(value, step, self.made_in_code or made_in_code)

    def origin(self) -> Origin:
        if self.step is None:
            return Origin(CODE, 0)
        node, old, loaded = self.step
        alias = [place for place in dict.fromkeys(node.alias) if place != node.place] if node.alias else []
        origin = Origin(*node.place, alias, _overridden(node.old or old))
        if self.made_in_code or loaded is not self.value and not _kept(loaded, self.value):
            return Origin(CODE, 0, [], [origin, *origin.overrides])
        return origin


def _overridden(node: Node | None) -> list[Origin]:
    return [Origin(*node.place, list(node.alias)), *_overridden(node.old)] if node else []


def _kept(before: Any, now: Any) -> bool:
    """Whether a value is what was loaded; of a dictionary or list the items may have changed, not their number."""
    if not isinstance(before, list | tuple) or type(before) is not type(now):
        return isinstance(before, dict) and isinstance(now, dict) or same(before, now)
    made = [item for item in now if isinstance(item, ConfigDict) and item._born is None]
    return len(before) == len(now) and not made and all(map(_kept, before, now))


def _code_node(key: Any, value: Any, old: Node | None) -> Node:
    return Node((CODE, 0), None, old=old, replaces=True)


def own_node(loaded: Loaded, bases: Node) -> Node:
    """The tree of a file's own values, some of which may be its bases'."""
    readers = {'py': python_lines, 'json': json_lines}
    return readers.get(loaded.filename.rpartition('.')[2], yaml_lines)(loaded, bases)


def bases_node(loaded: Loaded) -> Node:
    """The tree of the values that a file inherits."""
    roots = [(base.values, merged_node(base)) for base in loaded.bases]
    return Node((loaded.filename, 1), {key: root.item(key) for values, root in roots for key in values})


def merged_node(loaded: Loaded) -> Node:
    """The tree of a file's values merged over its bases'."""
    bases = bases_node(loaded)
    return merge_nodes(loaded.own, own_node(loaded, bases), loaded.base_values.values or {}, bases)


def merge_nodes(child: dict[Any, Any], child_node: Node, base: Any, base_node: Node) -> Node:
    """`merge.merge` on nodes; the values tell only what is a dictionary."""
    items = {key: base_node.item(key) for key, _ in children(base)}
    for name, value in child.items():
        key = int(name) if isinstance(base, list) else name
        node = child_node.item(name)
        if key not in items:
            items[key] = node
        elif isinstance(value, dict) and isinstance(base[key], dict | list) and not value.get(DELETE_KEY):
            items[key] = merge_nodes(without_delete(value), node, base[key], items[key])
        else:
            items[key] = node.over(items[key])
    return Node(child_node.place, items, child_node.alias, (), base_node)
