"""Where a class is written, and which imports led to it. In: classes and frames. Out: (file, line) pairs."""

from __future__ import annotations

import importlib
import inspect
import os
import sysconfig
from collections.abc import Callable
from functools import cache
from itertools import dropwhile
from types import FrameType
from typing import Any

from .config import place_text

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
