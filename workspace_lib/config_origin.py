"""Provenance: which file and line set a value of a `Config`, and which it overrode.

Nothing is computed while loading. The first question replays the merge of the kept files, with lines in the place of values.
"""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from .config_load import DELETE_KEY, Loaded, merge
from .config_replay import Node, Place, changed, file_node, same

OVERRIDE, CODE = '<override>', '<code>'


@dataclass(frozen=True)
class Origin:
    """`file` and `line` where the value's key stands; line 0 and '<override>' for merge_from_dict, '<code>' for an assignment.

    `alias`: (file, line) of the lines that the value came through, such as the definition of the variable that is named there,
    or the uses of a variable in whose definition the key stands. `overrides`: what it replaced, newest first.
    """

    file: str
    line: int
    alias: list[Place] = field(default_factory=list)
    overrides: list[Origin] = field(default_factory=list)

    def __str__(self) -> str:
        return place_text((self.file, self.line))


def place_text(place: Place) -> str:
    """'configs/x.py:6', relative to the current folder for files in it."""
    file, line = place
    here = os.getcwd() + os.sep
    file = file[len(here):] if file.startswith(here) else file
    return f'{file}:{line}' if line else file


class History:
    """What a Config was made from: files, then (values before, options) of each merge_from_dict. Never changed, only followed up."""

    def __init__(self, loaded: Loaded | None, values: dict[Any, Any],
                 merges: tuple[tuple[dict[Any, Any], dict[str, Any]], ...] = ()):
        self.loaded, self.values, self.merges = loaded, values, merges
        self._root: Node | None = None

    def followed_by(self, before: dict[Any, Any], options: dict[str, Any], after: dict[Any, Any]) -> History:
        return History(self.loaded, after, (*self.merges, (before, options)))

    def origin(self, path: tuple[Any, ...], value: Any) -> Origin:
        """Origin of the value that stands at `path` now; one that was not there after loading was set in code."""
        node, old = self.root(), None
        loaded: Any = self.values
        for key in path:
            if not _has(loaded, key):
                return Origin(CODE, 0)
            loaded = loaded[key]
            above = node.old if node.replaces else old
            old = above.known_item(key) if above else None
            node = node.item(key)
        origin = _origin(node, old)
        if _is_container(value) and type(value) is type(loaded) or isinstance(value, dict) and isinstance(loaded, dict):
            return origin
        return origin if same(loaded, value) else Origin(CODE, 0, [], [origin, *origin.overrides])

    def root(self) -> Node:
        if self._root is None:
            self._root = self._replay()
        return self._root

    def _replay(self) -> Node:
        node, values = Node((CODE, 0)), {}
        if self.loaded:
            node, values = merged_node(self.loaded), self.loaded.values
        for before, options in self.merges:
            node = changed(node, values, before, _code_node)
            node = merge_nodes(options, Node((OVERRIDE, 0)), before, node)
            values = merge(options, before, allow_list_keys=True)
        return node


def _code_node(key: Any, value: Any, old: Node | None) -> Node:
    return Node((CODE, 0), None, old=old, replaces=True)


def _is_container(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _has(values: Any, key: Any) -> bool:
    if isinstance(values, dict):
        return key in values
    return _is_container(values) and isinstance(key, int) and key < len(values)


def _origin(node: Node, old: Node | None = None) -> Origin:
    overrides = []
    earlier = node.old or old
    while earlier:
        overrides.append(Origin(*earlier.place, list(earlier.alias)))
        earlier = earlier.old
    alias = [place for place in dict.fromkeys(node.alias) if place != node.place]
    return Origin(*node.place, alias, overrides)


def merged_node(loaded: Loaded) -> Node:
    """The tree of a file's values after merging them over its bases'."""
    bases: dict[Any, Node] = {}
    for base in loaded.bases:
        root = merged_node(base)
        bases.update({key: root.item(key) for key in base.values})
    base_node = Node((loaded.filename, 1), bases)
    own = file_node(loaded, base_node)
    return merge_nodes(loaded.own, own, loaded.base_values, base_node) if loaded.bases else own


def merge_nodes(child: dict[Any, Any], child_node: Node, base: Any, base_node: Node) -> Node:
    """As `config_load.merge`, on nodes; the values only say what is a dictionary."""
    is_list = isinstance(base, list)
    items = {key: base_node.item(key) for key in (range(len(base)) if is_list else base)}
    for name, value in child.items():
        key = int(name) if is_list else name
        node = child_node.item(name)
        if key in items:
            node = _over(value, node, base[key], items[key])
        items[key] = node
    return Node(child_node.place, items, child_node.alias, (), base_node)


def _over(value: Any, node: Node, base: Any, base_node: Node) -> Node:
    if isinstance(value, dict) and isinstance(base, dict | list) and not value.get(DELETE_KEY):
        return merge_nodes({k: v for k, v in value.items() if k != DELETE_KEY}, node, base, base_node)
    return Node(node.place, node.items, node.alias, node.via, _oldest_under(node, base_node), replaces=True)


def _oldest_under(node: Node, base: Node) -> Node:
    """What `node` overrode in its own file, over what that overrode in the base."""
    if node.old is None:
        return base
    own = node.old
    return Node(own.place, own.items, own.alias, own.via, _oldest_under(own, base), own.replaces)
