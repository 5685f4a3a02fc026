"""`Node`: where one value was set; a tree of them has the shape of the values it tells of."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .node import children

Place = tuple[str, int]  # file, line from 1


@dataclass(slots=True, eq=False)
class Node:
    """Where a value was set, and its items; without known items it answers for all of them itself."""

    place: Place
    items: Any = None  # {key or index: Node}, an Each, or None: not known
    alias: tuple[Place, ...] = ()  # further places the value came through, such as its variable's definition
    via: tuple[Place, ...] = ()  # places to add to the alias of each item
    old: Node | None = None  # what this took the place of
    replaces: bool = False  # whether as a whole: the items of `old` are overridden too

    def __str__(self) -> str:
        return place_text(self.place)

    def item(self, key: Any) -> Node:
        found = self.items.get(key) if self.items is not None else None
        if found is None:
            return Node(self.place, None, self.alias)
        return found.through(self.via) if self.via else found

    def known_item(self, key: Any) -> Node | None:
        return self.item(key) if self.items is not None and key in self.items else None

    def elements(self) -> list[Node] | None:
        """The items of a list; None where they are not all known."""
        if not isinstance(self.items, dict) or list(self.items) != list(range(len(self.items))):
            return None
        return [self.item(i) for i in self.items]

    def through(self, places: tuple[Place, ...]) -> Node:
        return Node(self.place, self.items, self.alias + places, self.via + places, self.old, self.replaces)

    def used_at(self, place: Place) -> Node:
        """The same value where its name stands: set at `place`, defined here."""
        return Node(place, self.items, (self.place, *self.alias), (*self.via, place))

    def at(self, place: Place, old: Node | None = None) -> Node:
        """The same value as set by a key or a name at `place`."""
        return Node(place, self.items, self.alias, self.via, old, replaces=True)

    def over(self, old: Node) -> Node:
        """The same value in the place of `old`, which whatever it replaced before had replaced first."""
        earlier = self.old.over(old) if self.old else old
        return Node(self.place, self.items, self.alias, self.via, earlier, replaces=True)


@dataclass
class Each:
    """Items that all come from one expression, as in a comprehension."""

    node: Node

    def get(self, key: Any) -> Node:
        return self.node

    def __contains__(self, key: Any) -> bool:
        return True


def place_text(place: Place) -> str:
    """'configs/x.py:6', relative to the current folder for files in it; without a line just the text."""
    file, line = place
    if f'{os.sep}ipykernel_' in file:  # a temporary name, another one in each kernel
        return f'notebook cell:{line}'
    here = os.getcwd() + os.sep
    file = file[len(here):] if file.startswith(here) else file
    return f'{file}:{line}' if line else file


NodeFor = Callable[[Any, Any, 'Node | None'], Node]


def changed(node: Node, before: Any, after: Any, node_for: NodeFor, key: Any = None) -> Node:
    """`node`, with nodes made by `node_for(key, value, old node)` where `after` differs from `before`."""
    if same(before, after):
        return node
    alike = isinstance(before, dict) and isinstance(after, dict)
    if not alike and not (isinstance(before, list | tuple) and type(before) is type(after)):
        return node_for(key, after, node)
    known = dict(children(before))
    items = {k: changed(node.item(k), known[k], item, node_for, k) if k in known else node_for(k, item, None)
             for k, item in children(after)}
    return Node(node.place, items, node.alias, (), node.old, node.replaces)


def same(first: Any, second: Any) -> bool:
    """Equal in value and type, NaN to NaN too; things without a plain equality by identity."""
    if first is second:
        return True
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    try:
        return bool(first == second) or (first != first and second != second)
    except Exception:  # arrays and the like
        return False
