"""The builds of a `BuildTrace` as a tree.

In: what `trace_builds` recorded. Out: an object that prints as text and shows itself as HTML in a notebook.
"""
from __future__ import annotations

import html
import reprlib
from dataclasses import dataclass

from ..trace import BuildRecord, BuildTrace, shown

_REPR = reprlib.Repr()
_REPR.maxdict, _REPR.maxstring, _REPR.maxother = 30, 120, 120


@dataclass(frozen=True, repr=False)
class BuildTree:
    """One line a build, its parts below it."""

    trace: BuildTrace

    def _branch(self, i: int) -> str:
        depths = [r.depth for r in self.trace.records[i:]]

        def goes_on(level: int) -> bool:
            return next((d for d in depths[1:] if d <= level), -1) == level

        arms = ['│  ' if goes_on(level) else '   ' for level in range(1, depths[0])]
        return ''.join(arms) + ('├─ ' if goes_on(depths[0]) else '└─ ') if depths[0] else ''

    def __repr__(self) -> str:
        return f'{len(self.trace.records)} builds'  # for a notebook's plain text: times differ from run to run

    def __str__(self) -> str:
        rows = [columns(r) for r in self.trace.records]
        rows = [(self._branch(i) + row[0], *row[1:]) for i, row in enumerate(rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return '\n'.join(f'{t:<{widths[0]}}  {r:<{widths[1]}}  {s:<{widths[2]}}  {n:>{widths[3]}}  {ms}'
                         for t, r, s, n, ms in rows) or 'no builds'

    def _repr_html_(self) -> str:
        out = []
        depths = [r.depth for r in self.trace.records] + [0]
        for record, after in zip(self.trace.records, depths[1:], strict=True):
            name, registry, source, count, ms = map(html.escape, columns(record))
            args = ''.join(f'<li>{html.escape(k)} = {html.escape(_REPR.repr(v))}</li>'
                           for k, v in record.args.items())
            out.append(f'<details open><summary><b>{name}</b> {registry} <code>{source}</code> '
                       f'{count} parameters, {ms}</summary><div style="margin-left:1.5em">'
                       f'<details><summary>arguments</summary><ul>{args}</ul></details>'
                       + '</div></details>' * (record.depth - after + 1))
        return ''.join(out) or 'no builds'


def columns(record: BuildRecord) -> tuple[str, ...]:
    """Type, registry, source line, parameters and milliseconds, as text."""
    count = '-' if record.parameters is None else f'{record.parameters:,}'
    failed = f'  FAILED {record.error}' if record.error else ''
    source = shown((record.file, record.line)) if record.file else '(not Python)'
    source = f'{source} borrowed from {record.lender}' if record.lender else source
    return record.type, record.registry, source, count, f'{record.seconds * 1e3:.1f} ms{failed}'
