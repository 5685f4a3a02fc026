"""Provenance: which file and line set a value, and which it overrode.

While loading nothing is computed. The first question replays the merge, with lines in the place of values.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .lines import json_lines, yaml_lines
from .load import Loaded
from .merge import DELETE_KEY, merge, without_delete
from .node import ConfigDict, Path, children
from .placeholders import has_key
from .tree import Node, Place, changed, place_text, same
from .watch import python_lines

OVERRIDE, CODE = '<override>', '<code>'


@dataclass(frozen=True)
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

    def origin(self, path: Path, value: Any, made_in_code: bool = False) -> Origin:
        """Origin of `value`, which stands at `path` now; what was not there after loading was set in code."""
        step = self._step(path)
        if step is None:
            return Origin(CODE, 0)
        node, old, loaded = step
        alias = [place for place in dict.fromkeys(node.alias) if place != node.place]
        origin = Origin(*node.place, alias, _overridden(node.old or old))
        if made_in_code or not _kept(loaded, value):
            return Origin(CODE, 0, [], [origin, *origin.overrides])
        return origin

    def length(self, path: Path) -> int:
        """How many items stood at `path` after loading."""
        step = self._step(path)
        return len(step[2]) if step and isinstance(step[2], dict | list | tuple) else -1

    def in_part(self, path: Path) -> bool:
        """Whether an override changed items of the dictionary at `path`, which stood there before."""
        node = (self._step(path) or [None])[0]
        return node is not None and node.place[0] == OVERRIDE and node.old is not None and not node.replaces

    def _step(self, path: Path) -> tuple[Node, Node | None, Any] | None:
        """Node, overridden node and value at `path` after loading; None if there was nothing."""
        node, old, value = self._root, None, self.values
        for key in path:
            if not has_key(value, key):
                return None
            above = node.old if node.replaces else old
            old = above.known_item(key) if above else None
            node, value = node.item(key), value[key]
        return node, old, value

    @cached_property
    def _root(self) -> Node:
        node = merged_node(self.loaded) if self.loaded else Node((CODE, 0))
        values = self.loaded.values if self.loaded else self.values
        for before, options in self.merges:
            node = changed(node, values, before, _code_node)
            node = merge_nodes(options, Node((OVERRIDE, 0)), before, node)
            values = merge(options, before, allow_list_keys=True)
        return node


def _overridden(node: Node | None) -> list[Origin]:
    return [Origin(*node.place, list(node.alias)), *_overridden(node.old)] if node else []


def _kept(before: Any, now: Any) -> bool:
    """Whether a value is what was loaded; of a dictionary or list the items may have changed, not their number."""
    if isinstance(before, dict) and isinstance(now, dict):
        return True
    if not isinstance(before, list | tuple) or type(before) is not type(now):
        return same(before, now)
    made = [item for item in now if isinstance(item, ConfigDict) and item._born is None]
    return len(before) == len(now) and not made and all(map(_kept, before, now))


def _code_node(key: Any, value: Any, old: Node | None) -> Node:
    return Node((CODE, 0), None, old=old, replaces=True)


def own_node(loaded: Loaded, bases: Node) -> Node:
    """The tree of a file's own values, some of which may be its bases'."""
    if loaded.filename.endswith('.py'):
        return python_lines(loaded, bases)
    return json_lines(loaded, bases) if loaded.filename.endswith('.json') else yaml_lines(loaded, bases)


def bases_node(loaded: Loaded) -> Node:
    """The tree of the values that a file inherits."""
    items: dict[Any, Node] = {}
    for base in loaded.bases:
        root = merged_node(base)
        items.update({key: root.item(key) for key in base.values})
    return Node((loaded.filename, 1), items)


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
