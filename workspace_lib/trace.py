"""What the building of a model leaves behind for the eye: source lines, imports and a tree of builds.

In: classes, frames and the builds that the registry reports. Out: (file, line) pairs, `BuildTrace`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from itertools import dropwhile
from types import FrameType
from typing import Any

from .config import place_text
from .config.node import plain

Line = tuple[str, int]
shown = place_text  # `file:line`, short where it can be
_LAUNCHERS = tuple({sysconfig.get_path(p) + os.sep for p in ('stdlib', 'platlib', 'purelib', 'scripts')})
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@cache
def source_line(target: Callable[..., Any]) -> Line:
    """File and line where a class or function is written; ('', 0) for what is not written in Python."""
    try:
        file = inspect.getsourcefile(target)
        return (os.path.abspath(file), inspect.getsourcelines(target)[1]) if file else ('', 0)
    except (OSError, TypeError):  # a class typed into a notebook: its first method still knows
        codes = (getattr(v, '__code__', None) for v in [target, *vars(target).values()])
        return next(((c.co_filename, c.co_firstlineno) for c in codes if c), ('', 0))


def import_chain(frame: FrameType | None) -> list[Line]:
    """(file, line) of every statement on the stack that is importing, outermost first, launchers left out."""
    chain: list[Line] = []
    importing = False
    while frame:
        file = frame.f_code.co_filename
        machinery = file.startswith('<frozen') or file == importlib.__file__
        if not machinery and (importing or frame.f_code.co_name == '<module>'):
            chain.append((file, frame.f_lineno))
        importing, frame = machinery, frame.f_back
    return list(dropwhile(_is_launcher, reversed(chain)))


def _is_launcher(line: Line) -> bool:
    return line[0].startswith(_LAUNCHERS) and not line[0].startswith(_PACKAGE)


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
    """Builds in the order in which they began; `tools.build_tree` draws them."""

    records: list[BuildRecord] = field(default_factory=list)
    depth: int = field(default=0, repr=False)


_TRACES: ContextVar[tuple[BuildTrace, ...]] = ContextVar('traces', default=())


@contextmanager
def trace_builds() -> Iterator[BuildTrace]:
    """`with trace_builds() as trace:` records every build inside, of this thread; may be nested."""
    trace = BuildTrace()
    token = _TRACES.set((*_TRACES.get(), trace))
    try:
        yield trace
    finally:
        _TRACES.reset(token)


@contextmanager
def recorded(registry: str, kind: Any, target: Any, args: dict[str, Any],
             lender: str | None = None) -> Iterator[list[Any]]:
    """Around one build: writes it into every open trace; what is built is put into the list that it yields."""
    name = kind if isinstance(kind, str) else target.__name__
    # a constructor may pop from the nested dicts it is given: keep copies of them
    records = [(trace, BuildRecord(registry, name, target, plain(args), trace.depth, lender))
               for trace in _TRACES.get()]
    for trace, record in records:
        trace.records.append(record)
        trace.depth += 1
    built: list[Any] = []
    start, failure = time.perf_counter(), None
    try:
        yield built
    except Exception as error:
        failure = f'{type(error).__name__}: {error}'
        raise
    finally:
        for trace, record in records:
            record.seconds, record.error = time.perf_counter() - start, failure
            record.parameters = _parameter_count(*built) if built else None
            trace.depth -= 1


def _parameter_count(built: Any) -> int | None:
    is_model = hasattr(built, 'state_dict') and callable(getattr(built, 'parameters', None))
    return sum(p.numel() for p in built.parameters()) if is_model else None
