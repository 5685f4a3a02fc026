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

    def __str__(self) -> str:
        lines = [list(self.columns), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        right = [_is_number(value) for value in self.rows[0]] if self.rows else [False] * len(widths)
        text = ('  '.join(cell.rjust(width) if is_right else cell.ljust(width)
                          for cell, width, is_right in zip(line, widths, right, strict=True)) for line in lines)
        return '\n'.join(line.rstrip() for line in text)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = ''.join('<tr>' + ''.join(
            f'<td style="text-align:{"right" if _is_number(value) else "left"}">{html.escape(_cell(value))}</td>'
            for value in row) + '</tr>' for row in self.rows)
        return f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _cell(value: Any) -> str:
    return f'{value:.2f}' if isinstance(value, float | np.floating) else str(value)
