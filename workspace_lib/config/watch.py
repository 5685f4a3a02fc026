"""Which line of a Python config set each value: told by its text alone where that only names what it writes out.

Any other is run again from its kept text and its values are watched: what a statement changed was set by that one.

In: a `Loaded` and the tree of its merged bases. Out: the tree of the file's own values.
"""
from __future__ import annotations

import ast
import sys
from contextlib import suppress
from functools import lru_cache
from types import CodeType
from typing import Any

from .lines import PythonLines
from .load import Loaded, run_python
from .node import children, plain
from .placeholders import BaseValues
from .tree import Node, changed

_NOTHING = BaseValues('', '', [], None), Node(('', 0))  # one and the same for each file without placeholders


def python_lines(loaded: Loaded, bases: Node) -> Node:
    # What is inherited is made anew by each load: kept, it would never be found again.
    told, inherited = (_told.__wrapped__, (loaded.base_values, bases)) if loaded.base_values.keys else (_told, _NOTHING)
    lines = told(loaded.filename, loaded.code, *inherited)
    if not lines.plain:
        watched, (code, statements) = PythonLines(loaded.filename, *inherited), _probed(loaded.code)
        with suppress(Exception):  # it ran when it was loaded; if it does not now, what the text tells is the best
            run_python(loaded.filename, code, len(loaded.base_values.keys), __probe__=_Watch(watched, statements).after)
            lines = watched
    return Node(lines.place(1), lines.names)


@lru_cache(maxsize=512)  # it follows from what it is given and nobody changes it, so it neither ages nor leaks
def _told(filename: str, text: str, base_values: BaseValues, bases: Node) -> PythonLines:
    lines = PythonLines(filename, base_values, bases)
    for statement in ast.parse(text).body:
        lines.follow(statement)
    return lines


@lru_cache(maxsize=64)  # a syntax tree is some hundred times larger than its text
def _probed(text: str) -> tuple[CodeType, list[ast.stmt]]:
    """The code with a call of `__probe__(i)` after the i-th of the statements, and these."""
    probes = _Probes()
    return compile(probes.visit(ast.parse(text)), '<config>', 'exec', dont_inherit=True), probes.statements


class _Probes(ast.NodeTransformer):
    def __init__(self) -> None:
        self.statements: list[ast.stmt] = []

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) or _stands_first(node):
            return node
        if not isinstance(node, ast.stmt):
            return self.generic_visit(node)
        call = ast.Call(ast.Name('__probe__', ast.Load()), [ast.Constant(len(self.statements))], [])
        probe = ast.fix_missing_locations(ast.Expr(call))
        self.statements.append(node)
        self.generic_visit(node)
        if isinstance(node, ast.For | ast.With):  # which bind names before their body runs
            node.body.insert(0, probe)
        return [node, probe]


def _stands_first(statement: ast.AST) -> bool:
    """Whether it loses its meaning behind another statement: a docstring, `from __future__ import`."""
    return (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            or isinstance(statement, ast.ImportFrom) and statement.module == '__future__')


class _Watch:
    """Compares the module's names after each statement with what they were before it."""

    def __init__(self, lines: PythonLines, statements: list[ast.stmt]):
        self.lines, self.statements = lines, statements
        self.seen: dict[str, Any] = {}

    def after(self, number: int) -> None:
        frame, self.statement = sys._getframe(1), self.statements[number]
        values = {name: value for name, value in frame.f_globals.items() if not name.startswith('__')}
        followed = self.lines.follow(self.statement) if frame.f_locals is frame.f_globals else []
        before = self.seen | {name: values[name] for name in followed if name in values}
        names = Node(self.lines.place(1), self.lines.names)
        self.lines.names = changed(names, before, values, self.node_for).items
        self.seen = plain(values)

    def node_for(self, key: Any, value: Any, old: Node | None = None) -> Node:
        """On the line of the statement that has the key and the value, or the key, or the value; else on its first."""
        if isinstance(self.statement, ast.Assign) and _sets_item(self.statement.targets[0], key):
            return self.lines.value(self.statement.value).at(self.lines.place(self.statement.lineno), old)
        items = {k: self.node_for(k, item) for k, item in children(value)} or None
        hints = [(key, repr(value)), (key,)] if isinstance(key, str) else [(None, repr(value))]
        lines = _lines_in(self.statement)
        line = next((lines[hint] for hint in hints if hint in lines), self.statement.lineno)
        return Node(self.lines.place(line), items, old=old, replaces=True)


def _sets_item(target: ast.expr, key: Any) -> bool:
    """Whether a target is `something[key]`."""
    return (isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant)
            and target.slice.value == key)


@lru_cache(maxsize=64)
def _lines_in(statement: ast.stmt) -> dict[tuple[Any, ...], int]:
    """First line of each (key, value), (key,) and (None, value) that a statement writes out, blocks in it aside."""
    lines: dict[tuple[Any, ...], int] = {}
    parts = [part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.expr | ast.withitem)]
    for node in (node for part in parts for node in ast.walk(part)):
        pairs: list[tuple[Any, Any]] = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [(getattr(key, 'value', None), value) for key, value in zip(node.keys, node.values, strict=True)]
        elif isinstance(node, ast.Constant):
            pairs = [(None, node), (node.value, node)]
        for key, value in pairs:
            lines.setdefault((key, repr(getattr(value, 'value', None))), value.lineno)
            lines.setdefault((key,), value.lineno)
    return lines
