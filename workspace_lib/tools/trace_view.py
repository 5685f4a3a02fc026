"""Everything a registry knows, as a table: name, class, where it is written, and which import brought it in.

In: a registry. Out: an object that prints as text and shows itself as HTML in a notebook.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from itertools import groupby

from ..registry import Registry
from ..trace import shown


@dataclass
class RegistryTable:
    """Rows of (names, class, file:line, the imports that led there, outermost first)."""

    title: str
    rows: list[tuple[str, str, str, str]]

    def __str__(self) -> str:
        head = ('name', 'class', 'written in', 'registered by')
        widths = [max(len(row[i]) for row in [head, *self.rows]) for i in range(3)]
        lines = ('  '.join([*(f'{cell:<{width}}' for cell, width in zip(row[:3], widths, strict=True)), row[3]])
                 for row in [head, *self.rows])
        return '\n'.join([self.title, *lines])

    def _repr_html_(self) -> str:
        head = ''.join(f'<th scope="col">{c}</th>' for c in ('name', 'class', 'written in', 'registered by'))
        body = ''.join('<tr>' + ''.join(f'<td style="text-align:left">{html.escape(c)}</td>' for c in row) + '</tr>'
                       for row in self.rows)
        return (f'<table><caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead>'
                f'<tbody>{body}</tbody></table>')


def registry_table(registry: Registry) -> RegistryTable:
    """The table of one registry, sorted by class; a class with several names has one row."""
    def class_of(name: str) -> str:
        module = registry.module_dict[name]
        return f'{module.__module__}.{module.__qualname__}'

    rows = []
    for cls, group in groupby(sorted(registry.module_dict, key=class_of), key=class_of):
        names = list(group)
        *imports, source = registry.registered_by(names[0])
        rows.append((', '.join(names), cls, shown(source), ' > '.join(map(shown, imports))))
    return RegistryTable(f'{registry.name}: {len(registry)} names', rows)
