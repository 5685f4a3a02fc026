"""Finds the line behind each value of one config file, from the text that was loaded (the file may have changed since).

In: a `Loaded` and the `Node` of its merged bases. Out: a tree of `Node`s shaped like the file's values.
"""
from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from .config_load import BaseVar, Loaded, run_python

Place = tuple[str, int]
NodeFor = Callable[[Any, Any, 'Node | None'], 'Node']
_TOKEN = re.compile(r'__base_var_(\d+)__')
# Calls that change nothing but make a value; anything else makes the file run again, line by line.
_PURE = {'dict', 'list', 'tuple', 'set', 'str', 'int', 'float', 'bool', 'range', 'len', 'min', 'max', 'sum', 'round',
         'abs', 'sorted', 'copy', 'deepcopy', 'zip', 'enumerate', 'format', 'join', 'items', 'keys', 'values', 'get', 'split',
         'replace', 'lower', 'upper', 'getenv', 'dirname', 'basename', 'abspath'}
_SAME_VALUE = {'list', 'tuple', 'copy', 'deepcopy'}


class Node:
    """Where one value was set, and its items. A value without known items answers for all of them itself."""

    __slots__ = ('alias', 'items', 'old', 'place', 'replaces', 'via')

    def __init__(self, place: Place, items: Any = None, alias: tuple[Place, ...] = (), via: tuple[Place, ...] = (),
                 old: Node | None = None, replaces: bool = False):
        self.place = place
        self.items = items  # {key or index: Node}, an Each, or None: not known
        self.alias = alias  # further places that the value came through, such as its variable's definition
        self.via = via  # places to add to the alias of each item
        self.old = old  # what this took the place of
        self.replaces = replaces  # as a whole: the items of `old` are overridden too

    def item(self, key: Any) -> Node:
        found = self.items.get(key) if self.items is not None else None
        if found is None:
            return Node(self.place, None, self.alias)
        return found.through(self.via) if self.via else found

    def known_item(self, key: Any) -> Node | None:
        return self.item(key) if self.items is not None and key in self.items else None

    def through(self, places: tuple[Place, ...]) -> Node:
        return Node(self.place, self.items, self.alias + places, self.via + places, self.old, self.replaces)

    def used_at(self, place: Place) -> Node:
        """The value under another name: set at `place`, defined here."""
        return Node(place, self.items, (self.place, *self.alias), (*self.via, place))

    def at(self, place: Place, old: Node | None = None) -> Node:
        return Node(place, self.items, self.alias, self.via, old, replaces=True)

    def elements(self) -> list[Node] | None:
        """The items of a list, or None where they are not all known."""
        if not isinstance(self.items, dict) or list(self.items) != list(range(len(self.items))):
            return None
        return [self.item(i) for i in range(len(self.items))]


class Each:
    """Items that all come from one expression, as in a comprehension."""

    def __init__(self, node: Node):
        self.node = node

    def get(self, key: Any) -> Node:
        return self.node

    def __contains__(self, key: Any) -> bool:
        return True


def file_node(loaded: Loaded, bases: Node) -> Node:
    """The tree of the file's own values."""
    start = (loaded.filename, 1)
    if loaded.filename.endswith('.py'):
        return Node(start, dict(PythonLines(loaded, bases).names))
    lines = JsonLines(loaded, bases) if loaded.filename.endswith('.json') else YamlLines(loaded, bases)
    return lines.read().at(start)


class _Lines:
    def __init__(self, loaded: Loaded, bases: Node):
        self.loaded, self.bases = loaded, bases

    def place(self, line: int) -> Place:
        return self.loaded.filename, line

    def scalar(self, text: Any, line: int) -> Node:
        """A value without items, or the base's value where a placeholder stands."""
        match = _TOKEN.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[1]) >= len(self.loaded.base_vars):
            return Node(self.place(line))
        value, node = self.loaded.base_values, self.bases
        for part in self.loaded.base_vars[int(match[1])].split('.'):
            key = int(part) if isinstance(value, list | tuple) else part
            value, node = value[key], node.item(key)
        return node.used_at(self.place(line))


class JsonLines(_Lines):
    def read(self) -> Node:
        code = self.loaded.code
        self.line, self.end = 1, 0
        self.tokens = re.finditer(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', code)
        return self.value(self.next())

    def next(self) -> str:
        match = next(self.tokens)
        self.line += self.loaded.code.count('\n', self.end, match.start())
        self.end = match.start()
        return match[0]

    def value(self, token: str) -> Node:
        if token not in '{[':
            return self.scalar(token.strip('"'), self.line)
        place, items = self.place(self.line), {}
        while (first := self.next()) not in '}]':
            if first == ',':
                continue
            line = self.line
            key: Any = len(items)
            if token == '{':
                key = json.loads(first)
                self.next()  # the colon
                first = self.next()
            items[key] = self.value(first).at(self.place(line))
        return Node(place, items)


class YamlLines(_Lines):
    def read(self) -> Node:
        import yaml
        node = yaml.compose(self.loaded.code, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
        return self.node(node) if node is not None else Node(self.place(1), {})

    def node(self, node: Any) -> Node:
        line = node.start_mark.line + 1
        if node.id == 'scalar':
            return self.scalar(node.value, line)
        if node.id == 'sequence':
            return Node(self.place(line), {i: self.node(item) for i, item in enumerate(node.value)})
        return Node(self.place(line), dict(self.entries(node)))

    def entries(self, mapping: Any) -> Iterator[tuple[Any, Node]]:
        import yaml
        merged = [value for key, value in mapping.value if key.tag.endswith(':merge')]
        for value in merged:  # <<: *anchor, or a list of them of which the first wins
            for parent in reversed(value.value if value.id == 'sequence' else [value]):
                yield from self.entries(parent)
        for key, value in mapping.value:
            if not key.tag.endswith(':merge'):
                name = yaml.SafeLoader('').construct_object(key, deep=True)
                line = key.start_mark.line + 1
                node, defined = self.node(value), value.start_mark.line + 1
                if value.id != 'scalar' and defined < line:  # an alias
                    node = node.used_at(self.place(line))
                yield name, node.at(self.place(line))


@lru_cache(maxsize=64)
def _parse(code: str) -> ast.Module:
    return ast.parse(code)


class PythonLines(_Lines):
    """Follows assignments without running them; a file that does more is run again with a probe after each statement."""

    def __init__(self, loaded: Loaded, bases: Node):
        super().__init__(loaded, bases)
        self.names: dict[str, Node] = {}
        module = _parse(loaded.code)
        if all(map(_is_plain, module.body)):
            for statement in module.body:
                self.follow(statement)
        else:
            self.run(module)

    def follow(self, statement: ast.stmt) -> list[str]:
        """Note what a statement assigns; returns the names."""
        before = set(self.names)
        if isinstance(statement, ast.Assign):
            value = self.value(statement.value)
            names = [self.assign(target, value) for target in statement.targets]
            return [name for group in names for name in group]
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            return self.assign(statement.target, self.value(statement.value))
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                self.names[alias.asname or alias.name.partition('.')[0]] = Node(self.place(statement.lineno))
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            self.names[statement.name] = Node(self.place(statement.lineno))
        return list(set(self.names) - before)

    def assign(self, target: ast.expr, value: Node) -> list[str]:
        if isinstance(target, ast.Name):
            self.names[target.id] = value.at(self.place(target.lineno), self.names.get(target.id))
            return [target.id]
        if not isinstance(target, ast.Tuple | ast.List):
            return []
        elements = value.elements()
        if elements is None or len(elements) != len(target.elts):
            elements = [Node(self.place(target.lineno))] * len(target.elts)
        return [name for part, node in zip(target.elts, elements, strict=True) for name in self.assign(part, node)]

    # expressions

    def value(self, expression: ast.expr) -> Node:
        build = getattr(self, f'value_{type(expression).__name__}', None)
        node = build(expression) if build else None
        return node or Node(self.place(expression.lineno))

    def value_Constant(self, constant: ast.Constant) -> Node:
        return self.scalar(constant.value, constant.lineno)

    def value_Name(self, name: ast.Name) -> Node:
        if name.id in self.names:
            return self.names[name.id].used_at(self.place(name.lineno))
        return self.scalar(name.id, name.lineno)

    def value_Dict(self, display: ast.Dict) -> Node:
        items: dict[Any, Node] = {}
        for key, value in zip(display.keys, display.values, strict=True):
            if key is None:
                self.spread(value, items)
            elif isinstance(key, ast.Constant):
                items[key.value] = self.value(value).at(self.place(key.lineno))
        return Node(self.place(display.lineno), items)

    def value_Call(self, call: ast.Call) -> Node | None:
        name, receiver = _called(call)
        sources = [receiver] if receiver and not call.args else call.args
        if name in _SAME_VALUE and len(sources) == 1 and sources[0] is not None:
            return self.value(sources[0])
        if name != 'dict' or receiver:
            return None
        items: dict[Any, Node] = {}
        for argument in call.args:
            self.spread(argument, items)
        for keyword in call.keywords:
            if keyword.arg is None:
                self.spread(keyword.value, items)
            else:
                items[keyword.arg] = self.value(keyword.value).at(self.place(keyword.lineno))
        return Node(self.place(call.lineno), items)

    def spread(self, expression: ast.expr, items: dict[Any, Node]) -> None:
        """`**expression` in a dictionary."""
        node = self.value(expression)
        items.update({key: node.item(key) for key in node.items} if isinstance(node.items, dict) else {})

    def value_List(self, display: ast.List | ast.Tuple) -> Node:
        items: list[Node] = []
        for element in display.elts:
            if not isinstance(element, ast.Starred):
                items.append(self.value(element))
                continue
            spread = self.value(element.value).elements()
            if spread is None:  # what follows has an unknown index
                break
            items += spread
        return Node(self.place(display.lineno), dict(enumerate(items)))

    value_Tuple = value_List

    def value_BinOp(self, operation: ast.BinOp) -> Node | None:
        left, right = self.value(operation.left), self.value(operation.right)
        if isinstance(operation.op, ast.Add):
            first, second = left.elements(), right.elements()
            items = None if first is None else dict(enumerate(first + (second or [])))
            return Node(self.place(operation.lineno), items)
        if isinstance(operation.op, ast.BitOr) and isinstance(left.items, dict) and isinstance(right.items, dict):
            union = {key: left.item(key) for key in left.items} | {key: right.item(key) for key in right.items}
            return Node(self.place(operation.lineno), union)
        return None

    def value_Subscript(self, subscript: ast.Subscript) -> Node | None:
        try:
            key = ast.literal_eval(subscript.slice)
        except (ValueError, TypeError):
            return None
        node = self.value(subscript.value)
        elements = node.elements()
        if elements is not None and isinstance(key, int) and -len(elements) <= key < len(elements):
            key %= len(elements)
        found = node.known_item(key)
        return found.used_at(self.place(subscript.lineno)) if found else None

    def value_ListComp(self, comprehension: Any) -> Node:
        return self.each(comprehension, comprehension.elt)

    value_GeneratorExp = value_SetComp = value_ListComp

    def value_DictComp(self, comprehension: ast.DictComp) -> Node:
        return self.each(comprehension, comprehension.value)

    def each(self, comprehension: Any, element: ast.expr) -> Node:
        own = {n.id for g in comprehension.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        outer = self.names
        self.names = {name: node for name, node in outer.items() if name not in own}
        node = self.value(element)
        self.names = outer
        return Node(self.place(comprehension.lineno), Each(node))

    # files that do more than assign

    def run(self, module: ast.Module) -> None:
        """Run the file again; after each statement what changed was set by that statement."""
        probed, statements = _with_probes(module)
        probe = _Probe(self, statements)
        try:
            run_python(self.loaded.filename, compile(probed, self.loaded.filename, 'exec'), self.loaded.base_vars,
                       __probe__=probe.after)
        except Exception:  # loaded once, but not again: the lines found so far are true, the rest has none
            return


def _is_plain(statement: ast.stmt) -> bool:
    """Whether following the text is enough: an assignment to names of something that has no side effect."""
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Pass):
        return True
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    pure = all(_called(node)[0] in _PURE for node in ast.walk(statement) if isinstance(node, ast.Call))
    walrus = any(isinstance(node, ast.NamedExpr) for node in ast.walk(statement))
    return pure and not walrus and all(isinstance(t, ast.Name | ast.Tuple | ast.List) for t in targets)


def _called(call: ast.Call) -> tuple[str, ast.expr | None]:
    """The called name and, for a method, its object."""
    if isinstance(call.func, ast.Name):
        return call.func.id, None
    if isinstance(call.func, ast.Attribute):
        return call.func.attr, call.func.value
    return '', None


def _with_probes(module: ast.Module) -> tuple[ast.Module, list[ast.stmt]]:
    """A copy of the module that calls `__probe__(i)` after statement i, and the statements."""
    statements: list[ast.stmt] = []

    def probe(statement: ast.stmt) -> ast.stmt:
        statements.append(statement)
        call = ast.parse(f'__probe__({len(statements) - 1})').body[0]
        return ast.fix_missing_locations(ast.copy_location(call, statement))

    def probe_block(block: list[ast.stmt]) -> list[ast.stmt]:
        probed = []
        for statement in block:
            probed.append(probe_inside(statement))
            if not isinstance(statement, ast.ImportFrom) and not _is_docstring(statement):  # these must stay first
                probed.append(probe(statement))
        return probed

    def probe_inside(statement: Any) -> Any:
        blocks = {name: value for name, value in ast.iter_fields(statement)
                  if isinstance(value, list) and value and isinstance(value[0], ast.stmt | ast.ExceptHandler | ast.match_case)}
        if not blocks:
            return statement
        fields = dict(ast.iter_fields(statement))
        for name, block in blocks.items():
            fields[name] = probe_block(block) if isinstance(block[0], ast.stmt) else [probe_inside(b) for b in block]
        if isinstance(statement, ast.For | ast.With):  # which bind names of their own
            fields['body'].insert(0, probe(statement))
        return ast.copy_location(type(statement)(**fields), statement)

    return ast.Module(probe_block(module.body), module.type_ignores), statements


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class _Probe:
    """Compares the module's names after each statement with what they were before it."""

    def __init__(self, lines: PythonLines, statements: list[ast.stmt]):
        self.lines, self.statements = lines, statements
        self.seen: dict[str, Any] = {}

    def after(self, number: int) -> None:
        frame = sys._getframe(1)
        statement = self.statements[number]
        names = {name: value for name, value in frame.f_globals.items() if not name.startswith('__')}
        in_function = frame.f_locals is not frame.f_globals
        followed = self.lines.follow(statement) if _assigns_names(statement) and not in_function else []
        for name in self.seen.keys() - names.keys():
            self.lines.names.pop(name, None)
        for name in names.keys() - set(followed):
            self.note(name, names[name], statement)
        self.seen = {name: snapshot(value) for name, value in names.items()}

    def note(self, name: str, value: Any, statement: ast.stmt) -> None:
        node = self.lines.names.get(name)
        if node is not None and name in self.seen and same(value, self.seen[name]):
            return
        node_for = self.setter(statement)
        known = node is not None and name in self.seen
        self.lines.names[name] = changed(node, self.seen[name], value, node_for) if known else node_for(name, value, node)

    def setter(self, statement: ast.stmt) -> NodeFor:
        """Nodes for values that a statement changed: at the line in it that has their key and value, or key, or value."""
        lines = _lines_in(statement)

        def node_for(key: Any, value: Any, old: Node | None = None) -> Node:
            items = None
            if isinstance(value, dict | list | tuple):
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                items = {k: node_for(k, item) for k, item in pairs}
            hints = [(key, repr(value)), key] if isinstance(key, str) else [(None, repr(value))]
            line = next((lines[hint] for hint in hints if hint in lines), statement.lineno)
            return Node(self.lines.place(line), items, old=old, replaces=True)
        return node_for


def _lines_in(statement: ast.stmt) -> dict[Any, int]:
    """First line of each (key, value), key and (None, value) that is written out in a statement."""
    lines: dict[Any, int] = {}
    for node in ast.walk(statement):
        pairs: list[Any] = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value, node)]
        elif isinstance(node, ast.Dict):
            pairs = [(key.value, value, key) for key, value in zip(node.keys, node.values, strict=True)
                     if isinstance(key, ast.Constant)]
        elif isinstance(node, ast.Constant):
            lines.setdefault((None, repr(node.value)), node.lineno)
            lines.setdefault(node.value, node.lineno)
        for key, value, place in pairs:
            lines.setdefault((key, repr(getattr(value, 'value', None))), place.lineno)
            lines.setdefault(key, place.lineno)
    return lines


def _assigns_names(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return all(isinstance(target, ast.Name | ast.Tuple | ast.List) for target in targets)


def changed(node: Node, before: Any, after: Any, node_for: NodeFor, key: Any = None) -> Node:
    """`node` with new nodes, made by `node_for(key, value, old node)`, where `after` differs from `before`."""
    if same(before, after):
        return node
    if isinstance(before, dict) and isinstance(after, dict):
        pairs, known = list(after.items()), before
    elif isinstance(before, list | tuple) and type(before) is type(after):
        pairs, known = list(enumerate(after)), dict(enumerate(before))
    else:
        return node_for(key, after, node)
    items = {k: changed(node.item(k), known[k], item, node_for, k) if k in known else node_for(k, item, None)
             for k, item in pairs}
    return Node(node.place, items, node.alias, (), node.old, node.replaces)


def snapshot(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return type(value)([snapshot(item) for item in value]) if type(value) in (list, tuple) else value


def same(first: Any, second: Any) -> bool:
    """Equal in value and type, NaN to NaN included; objects without a plain equality by identity."""
    if first is second:
        return True
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if type(first) is not type(second) or isinstance(first, BaseVar):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    try:
        return bool(first == second) or repr(first) == repr(second) == 'nan'
    except Exception:
        return False
