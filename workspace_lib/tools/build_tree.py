"""What a registry built: the builds inside `with trace_builds() as trace:`, and `BuildTree(trace)`, their picture.

In: the builds of this thread. Out: records, and an object that prints as text and shows itself as HTML in a notebook.
"""
from __future__ import annotations

import html
import reprlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..config.node import plain
from ..registry import CONSTRUCT, Registry
from ..trace import shown, source_line

_REPR = reprlib.Repr()
_REPR.maxdict, _REPR.maxstring, _REPR.maxother = 30, 120, 120


@dataclass
class BuildRecord:
    """One build: what was asked for, what answered, where that is written, what it cost, parts included."""

    registry: str
    type: str
    target: Callable[..., Any] = field(repr=False)
    args: dict[str, Any]
    depth: int
    lender: str | None = None  # package and version, where the class is borrowed
    parameters: int | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def cls(self) -> str:
        """Qualified name of the class or function."""
        return f'{self.target.__module__}.{self.target.__qualname__}'

    # looked up when read: it costs a parse of the file, which is no build time
    file = property(lambda self: source_line(self.target)[0])
    line = property(lambda self: source_line(self.target)[1])


@dataclass
class BuildTrace:
    """Builds in the order in which they began."""

    records: list[BuildRecord] = field(default_factory=list)
    depth: int = field(default=0, repr=False)


@contextmanager
def trace_builds() -> Iterator[BuildTrace]:
    """`with trace_builds() as trace:` records every build inside, of this thread; may be nested."""
    trace, construct = BuildTrace(), CONSTRUCT.get()

    def recorded(registry: Registry, kind: Any, target: Any, args: dict[str, Any], cfg: dict[str, Any]) -> Any:
        name, lender = (kind, registry.lender_of(kind)) if isinstance(kind, str) else (target.__name__, None)
        # a constructor may pop from the nested dicts it is given: keep copies of them
        record = BuildRecord(registry.name, name, target, plain(args), trace.depth, lender)
        trace.records.append(record)
        trace.depth += 1
        start = time.perf_counter()
        try:
            built = construct(registry, kind, target, args, cfg)
            record.parameters = _parameter_count(built)
            return built
        except Exception as error:
            record.error = f'{type(error).__name__}: {error}'
            raise
        finally:
            record.seconds = time.perf_counter() - start
            trace.depth -= 1

    token = CONSTRUCT.set(recorded)
    try:
        yield trace
    finally:
        CONSTRUCT.reset(token)


def _parameter_count(built: Any) -> int | None:
    is_model = hasattr(built, 'state_dict') and callable(getattr(built, 'parameters', None))
    return sum(p.numel() for p in built.parameters()) if is_model else None


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
