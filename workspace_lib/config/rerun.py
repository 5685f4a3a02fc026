"""For config files with loops, updates and other statements: runs the kept text again and watches the values.

In: its syntax tree and the `PythonLines` to fill. What a statement changed was set by that statement.
"""
from __future__ import annotations

import ast
import sys
from typing import Any

from .lines import PythonLines, assigns_names
from .load import run_python
from .node import children, plain
from .tree import Node, NodeFor, changed, same


def rerun(module: ast.Module, lines: PythonLines) -> None:
    statements: list[ast.stmt] = []
    probed = compile(ast.Module(_probed(module.body, statements), []), lines.loaded.filename, 'exec')
    watch = _Watch(lines, statements)
    try:
        run_python(lines.loaded.filename, probed, len(lines.loaded.base_values.keys), __probe__=watch.after)
    except Exception:  # it ran when it was loaded, but not now: what the text tells is the best there is
        lines.names.clear()
        for statement in module.body:
            lines.follow(statement)


def _probed(block: list[Any], statements: list[ast.stmt]) -> list[Any]:
    """The statements (or except and match clauses) of a block, `__probe__(i)` after the i-th of `statements`."""
    probed = []
    for part in block:
        blocks = {name: list(value) for name, value in ast.iter_fields(part) if _is_block(value)}
        if isinstance(part, ast.For | ast.With):  # which bind names themselves
            header = [_probe(part, statements)]
            blocks['body'] = header + _probed(blocks['body'], statements)
            blocks |= {name: _probed(value, statements) for name, value in blocks.items() if name != 'body'}
        else:
            blocks = {name: _probed(value, statements) for name, value in blocks.items()}
        probed.append(ast.copy_location(type(part)(**{**dict(ast.iter_fields(part)), **blocks}), part))
        if isinstance(part, ast.stmt) and not isinstance(part, ast.ImportFrom) and not _is_docstring(part):
            probed.append(_probe(part, statements))
    return probed


def _is_block(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, ast.stmt | ast.ExceptHandler | ast.match_case) for v in value)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _probe(statement: ast.stmt, statements: list[ast.stmt]) -> ast.stmt:
    statements.append(statement)
    call = ast.parse(f'__probe__({len(statements) - 1})').body[0]
    return ast.fix_missing_locations(ast.copy_location(call, statement))


class _Watch:
    """Compares the module's names after each statement with what they were before it."""

    def __init__(self, lines: PythonLines, statements: list[ast.stmt]):
        self.lines, self.statements = lines, statements
        self.seen: dict[str, Any] = {}

    def after(self, number: int) -> None:
        frame, statement = sys._getframe(1), self.statements[number]
        values = {name: value for name, value in frame.f_globals.items() if not name.startswith('__')}
        at_top = frame.f_locals is frame.f_globals
        followed = self.lines.follow(statement) if at_top and assigns_names(statement) else []
        for name in self.seen.keys() - values.keys():
            self.lines.names.pop(name, None)
        for name in values.keys() - set(followed):
            self.note(name, values[name], statement)
        self.seen = plain(values)

    def note(self, name: str, value: Any, statement: ast.stmt) -> None:
        node = self.lines.names.get(name)
        if node is None or name not in self.seen:
            self.lines.names[name] = self.setter(statement)(name, value, node)
        elif not same(value, self.seen[name]):
            self.lines.names[name] = changed(node, self.seen[name], value, self.setter(statement))

    def setter(self, statement: ast.stmt) -> NodeFor:
        """Makes nodes on the line of the statement that has their key and value, or key, or value; else the first."""
        lines = _lines_in(statement)

        def node_for(key: Any, value: Any, old: Node | None = None) -> Node:
            if isinstance(statement, ast.Assign) and _sets_item(statement.targets[0], key):
                return self.lines.value(statement.value).at(self.lines.place(statement.lineno), old)
            items = {k: node_for(k, item) for k, item in children(value)} or None
            hints = [(key, repr(value)), (key,)] if isinstance(key, str) else [(None, repr(value))]
            line = next((lines[hint] for hint in hints if hint in lines), statement.lineno)
            return Node(self.lines.place(line), items, old=old, replaces=True)
        return node_for


def _sets_item(target: ast.expr, key: Any) -> bool:
    """Whether a target is `something[key]`."""
    return (isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant)
            and target.slice.value == key)


def _lines_in(statement: ast.stmt) -> dict[tuple[Any, ...], int]:
    """First line of each (key, value), (key,) and (None, value) that is written out in a statement."""
    lines: dict[tuple[Any, ...], int] = {}
    for node in ast.walk(statement):
        pairs: list[tuple[Any, Any]] = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [(key.value, value) for key, value in zip(node.keys, node.values, strict=True)
                     if isinstance(key, ast.Constant)]
        elif isinstance(node, ast.Constant):
            lines.setdefault((None, repr(node.value)), node.lineno)
            lines.setdefault((node.value,), node.lineno)
        for key, value in pairs:
            lines.setdefault((key, repr(getattr(value, 'value', None))), value.lineno)
            lines.setdefault((key,), value.lineno)
    return lines
