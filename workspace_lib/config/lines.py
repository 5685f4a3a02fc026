"""Reads from the text of one config file which line set each of its values, without running it.

In: a `Loaded` and the tree of its merged bases. Out: the tree of the file's own values.
"""
from __future__ import annotations

import ast
from typing import Any

from .load import Loaded
from .placeholders import BaseValues, token_number
from .tree import Each, Node, Place

_SAME_VALUE = {'list', 'tuple', 'copy', 'deepcopy'}
_HARMLESS = {'dict', 'round'}  # functions that change nothing, unless a file means others by these names


def json_lines(loaded: Loaded, bases: Node) -> Node:
    """JSON is an expression of Python, but for an escape: `true` and the like are names that stand for themselves."""
    expression = ast.parse('(' + loaded.code.replace('\\/', '/') + '\n)', mode='eval')
    return PythonLines(loaded.filename, loaded.base_values, bases).value(expression.body)


def yaml_lines(loaded: Loaded, bases: Node) -> Node:
    """YAML as an expression of Python, in which what has an anchor is a variable, and `<<: *anchor` is `**variable`."""
    import yaml
    root = yaml.compose(loaded.code, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    lines, construct = PythonLines(loaded.filename, loaded.base_values, bases), yaml.SafeLoader('').construct_object

    def expression(node: Any) -> ast.expr:
        line = node.start_mark.line + 1
        if node.id == 'scalar':
            return ast.Constant(node.value, lineno=line)
        if node.id == 'sequence':
            return ast.List([expression(item) for item in node.value], lineno=line)
        merged = [value for key, value in node.value if key.tag.endswith(':merge')]  # one, or a list: its first wins
        above = [expression(one) for value in merged
                 for one in reversed(value.value if value.id == 'sequence' else [value])]
        own = [(ast.Constant(construct(key, deep=True), lineno=key.start_mark.line + 1), item(key, value))
               for key, value in node.value if not key.tag.endswith(':merge')]
        return ast.Dict([*[None] * len(above), *(key for key, _ in own)], [*above, *(value for _, value in own)],
                        lineno=line)

    def item(key: Any, value: Any) -> ast.expr:
        if value.start_mark.index > key.start_mark.index:
            return expression(value)
        anchor = f'&{value.start_mark.index}'
        lines.names[anchor] = lines.value(expression(value))
        return ast.Name(anchor, lineno=key.start_mark.line + 1)

    return lines.value(expression(root)) if root else Node(lines.place(1), {})


class PythonLines:
    """Follows what assignments give to names, as far as their text tells it.

    `plain`: whether all was assigned to names and changes nothing else, so that running it could tell no more.
    """

    def __init__(self, filename: str, base_values: BaseValues, bases: Node):
        self.filename, self.base_values, self.bases = filename, base_values, bases
        self.names: dict[str, Node] = {}
        self.plain = True

    def place(self, line: int) -> Place:
        return self.filename, line

    def scalar(self, text: Any, line: int) -> Node:
        """A value without items or, where a placeholder stands, the base's value."""
        number = token_number(text) if self.base_values.keys else None
        if number is None or number >= len(self.base_values.keys):
            return Node(self.place(line))
        node = self.bases
        for key in self.base_values.find(number)[0]:
            node = node.item(key)
        return node.used_at(self.place(line))

    def follow(self, statement: ast.stmt) -> list[str]:
        """Note what a statement assigns to names, and return these."""
        self.plain &= isinstance(statement, ast.Assign) and _HARMLESS.isdisjoint(self.names)
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            return []
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        value = self.value(statement.value)
        return [name for target in targets for name in self.assign(target, value)]

    def assign(self, target: ast.expr, value: Node) -> list[str]:
        if isinstance(target, ast.Name):
            self.names[target.id] = value.at(self.place(target.lineno), self.names.get(target.id))
            return [target.id]
        self.plain = False
        if not isinstance(target, ast.Tuple | ast.List):
            return []
        elements = value.elements() or []
        if len(elements) != len(target.elts):
            elements = [Node(self.place(target.lineno))] * len(target.elts)
        return [name for part, node in zip(target.elts, elements, strict=True) for name in self.assign(part, node)]

    def value(self, expression: ast.expr) -> Node:
        """The tree of an expression's value, as far as the text tells."""
        build = getattr(self, f'value_{type(expression).__name__}', None)
        self.plain &= build is not None
        node = build(expression) if build else None
        return node or Node(self.place(expression.lineno))

    def value_Constant(self, constant: ast.Constant) -> Node:
        return self.scalar(constant.value, constant.lineno)

    def value_Name(self, name: ast.Name) -> Node:
        known = self.names.get(name.id)
        return known.used_at(self.place(name.lineno)) if known else self.scalar(name.id, name.lineno)

    def value_Dict(self, display: ast.Dict) -> Node:
        self.plain &= all(key is None or isinstance(key, ast.Constant) for key in display.keys)
        return self.mapping(display.lineno, display.keys, display.values)

    def mapping(self, line: int, keys: list[Any], values: list[ast.expr]) -> Node:
        items: dict[Any, Node] = {}
        for key, value in zip(keys, values, strict=True):
            node = self.value(value)
            if isinstance(key, (ast.Constant, ast.keyword)):
                items[key.value if isinstance(key, ast.Constant) else key.arg] = node.at(self.place(key.lineno))
            elif key is None and isinstance(node.items, dict):  # `**value`
                items.update({name: node.item(name) for name in node.items})
        return Node(self.place(line), items)

    def value_Call(self, call: ast.Call) -> Node | None:
        name = getattr(call.func, 'id', getattr(call.func, 'attr', ''))
        if name == 'dict':  # a display in other words
            keys = [*[None] * len(call.args), *(part if part.arg else None for part in call.keywords)]
            return self.mapping(call.lineno, keys, [*call.args, *(part.value for part in call.keywords)])
        self.plain &= isinstance(call.func, ast.Name) and name in _HARMLESS and not call.keywords
        values = [self.value(source) for source in call.args or [getattr(call.func, 'value', call.func)]]
        return values[0] if name in _SAME_VALUE and len(values) == 1 else None

    def value_List(self, display: ast.List | ast.Tuple) -> Node:
        items: list[Node] = []
        for element in display.elts:
            spread = self.value(element.value).elements() if isinstance(element, ast.Starred) else [self.value(element)]
            if spread is None:  # the index of what follows is not known
                self.plain = False
                break
            items += spread
        return Node(self.place(display.lineno), dict(enumerate(items)))

    value_Tuple = value_List

    def value_UnaryOp(self, operation: ast.UnaryOp) -> None:
        self.value(operation.operand)

    def value_BinOp(self, operation: ast.BinOp) -> Node | None:
        first, second = self.value(operation.left).elements(), self.value(operation.right).elements()
        if not isinstance(operation.op, ast.Add) or first is None:
            return None
        return Node(self.place(operation.lineno), dict(enumerate(first + (second or []))))

    def value_Subscript(self, subscript: ast.Subscript) -> Node | None:
        place, node, index = self.place(subscript.lineno), self.value(subscript.value), subscript.slice
        elements = node.elements()
        try:
            if isinstance(index, ast.Slice):
                key: Any = slice(*(edge and ast.literal_eval(edge) for edge in (index.lower, index.upper, index.step)))
            else:
                key = ast.literal_eval(index)
            found: Any = elements[key] if elements else node.known_item(key)
        except (ValueError, TypeError, IndexError):  # an index that has to be computed, or no list
            self.plain, found = False, None
        return Node(place, dict(enumerate(found))) if isinstance(found, list) else found and found.used_at(place)

    def value_ListComp(self, comprehension: Any) -> Node:
        return self.each(comprehension, comprehension.elt)

    value_GeneratorExp = value_ListComp

    def value_DictComp(self, comprehension: ast.DictComp) -> Node:
        return self.each(comprehension, comprehension.key, comprehension.value)

    def each(self, comprehension: Any, *elements: ast.expr) -> Node:
        own = {n.id for g in comprehension.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        for part in comprehension.generators:
            self.plain &= isinstance(part.target, ast.Name) and part.target.id not in _HARMLESS and not part.ifs
            self.value(part.iter)
        outer, self.names = self.names, {name: node for name, node in self.names.items() if name not in own}
        *_, node = map(self.value, elements)
        self.names = outer
        return Node(self.place(comprehension.lineno), Each(node))
