"""Numbers under named columns: aligned text in a terminal, a table in a notebook and in a report."""
from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Table:
    """Rows of text and numbers; numbers are aligned at the right, floats get two decimals."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def sides(self) -> list[str]:
        """Of each column, by its first row: `right` for numbers, else `left`."""
        first = self.rows[0] if self.rows else [''] * len(self.columns)
        return ['right' if isinstance(value, int | float | np.number) else 'left' for value in first]

    def __str__(self) -> str:
        lines = [list(self.columns), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ('  '.join(cell.rjust(width) if side == 'right' else cell.ljust(width)
                          for cell, width, side in zip(line, widths, self.sides, strict=True)) for line in lines)
        return '\n'.join(line.rstrip() for line in text)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(tag: str, values: Sequence[Any]) -> str:
            return '<tr>' + ''.join(f'<{tag} style="text-align:{side}">{html.escape(_cell(value))}</{tag.split()[0]}>'
                                    for value, side in zip(values, self.sides, strict=True)) + '</tr>'

        head = row('th scope="col"', self.columns)
        body = ''.join(row('td', values) for values in self.rows)
        return f'<table><thead>{head}</thead><tbody>{body}</tbody></table>'


def _cell(value: Any) -> str:
    return f'{value:.2f}' if isinstance(value, float | np.floating) else str(value)
