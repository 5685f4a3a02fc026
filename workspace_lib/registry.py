"""Names to classes: what a config calls `type='ResNet'` is found, checked and built here.

In: a config dict with a `type`. Out: the object, and on request a trace of every build and its source line.
"""

from __future__ import annotations

import difflib
import html
import importlib
import inspect
import os
import reprlib
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import dropwhile
from types import FrameType
from typing import Any

try:
    from workspace_lib.config import where
except ImportError:

    def where(node: Any, key: str | None = None) -> str:
        return ''


Line = tuple[str, int]
_LAUNCHERS = tuple({sysconfig.get_path(p) + os.sep for p in ('stdlib', 'platlib', 'purelib', 'scripts')})
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Registry:
    """A table of classes and functions by name, with the grammar of mmcv 1.x.

    Args:
        name: how errors call the table (`X is not in the <name> registry`).
        build_func: called as `build_func(cfg, registry=self)`; default the parent's, else `build_from_cfg`.
        parent: the registry through which sibling packages find this one, as in `type='mmdet.ResNet'`.
        scope: the prefix that names this table; default the package that constructs it.
    """

    def __init__(self, name: str, build_func: Callable[..., Any] | None = None,
                 parent: Registry | None = None, scope: str | None = None) -> None:
        caller = sys._getframe(1).f_globals.get('__name__', '__main__')
        self.name = name
        self.scope = caller.split('.')[0] if scope is None else scope
        self.parent = parent
        self.children: dict[str, Registry] = {}
        self.module_dict: dict[str, Callable[..., Any]] = {}
        self._imports: dict[str, list[Line]] = {}
        self.build_func = build_func or (parent.build_func if parent else build_from_cfg)
        if parent is not None:
            parent._add_child(self)

    def __len__(self) -> int:
        return len(self.module_dict)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name}, items={self.module_dict})'

    def _add_child(self, child: Registry) -> None:
        if child.scope in self.children:
            raise AssertionError(f'scope {child.scope} exists in {self.name} registry')
        self.children[child.scope] = child

    def _home(self, key: str) -> tuple[Registry | None, str]:
        """The registry that `scope.Name` points to (None for an unknown scope), and the bare name in it."""
        scope, dot, rest = key.partition('.')
        if not dot or key in self.module_dict:
            return self, key
        if scope == self.scope:
            return self, rest
        if scope in self.children:
            return self.children[scope]._home(rest)
        return self.parent._home(key) if self.parent else (None, key)

    def get(self, key: str) -> Callable[..., Any] | None:
        """The class or function of that name, or None. A parent is searched only for a `scope.Name`."""
        registry, name = self._home(key)
        return registry.module_dict.get(name) if registry else None

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """`build_func(cfg, registry=self)`: the object that a config dict describes."""
        return self.build_func(*args, **kwargs, registry=self)

    def register_module(self, name: Any = None, force: bool = False, module: Any = None) -> Any:
        """Register a class or function: as decorator `@R.register_module()`, or as call `(module=C)`.

        Args:
            name: the name, or a sequence of names; default the module's own `__name__`.
            force: replace what has the name already.
            module: the class or function; without it a decorator is returned.

        Raises:
            TypeError: not a class or function, a bad name, a `force` that is no bool.
            KeyError: the name is taken. Only a definition run again (a notebook cell, a reload) replaces itself.
        """
        if not isinstance(force, bool):
            raise TypeError(f'force must be a boolean, but got {type(force)}')
        if isinstance(name, type):  # the form without parentheses
            warnings.warn('register_module(cls) is deprecated: write register_module(module=cls), or '
                          '@register_module() with parentheses', DeprecationWarning, stacklevel=2)
            return self._register(name, None, force, sys._getframe(1))
        is_names = isinstance(name, Sequence) and all(isinstance(n, str) for n in name)
        if name is not None and not is_names:
            raise TypeError(f'name must be None, a str or a sequence of str, but got {type(name)}')
        if module is not None:
            return self._register(module, name, force, sys._getframe(1))
        return lambda decorated: self._register(decorated, name, force, sys._getframe(1))

    def _register(self, module: Any, name: Any, force: bool, frame: FrameType) -> Any:
        if not (inspect.isclass(module) or inspect.isfunction(module)):
            raise TypeError(f'module must be a class or a function, but got {type(module)}')
        names = [name or module.__name__] if name is None or isinstance(name, str) else list(name)
        for taken in (n for n in names if not force and n in self.module_dict):
            if not _defined_again(self.module_dict[taken], module):
                raise KeyError(f'{taken} is already registered in {self.name} by '
                               f'{_shown(self.registered_by(taken)[-1])}; give it another name, or force=True')
        chain = _import_chain(frame)
        for n in names:
            self.module_dict[n] = module
            self._imports[n] = chain
        return module

    def registered_by(self, name: str) -> list[Line]:
        """Which import registered it: (file, line) of each import statement, outermost first.

        The last entry is where the class itself is written. Raises KeyError for an unknown name.
        """
        registry, key = self._home(name)
        if registry is None or key not in registry.module_dict:
            raise KeyError(self._unknown(name))
        chain = registry._imports.get(key, [])
        source = source_line(registry.module_dict[key])
        return chain + [source] if source[0] and source not in chain[-1:] else list(chain)

    def _unknown(self, name: str) -> str:
        registry, key = self._home(name)
        known = {n.lower(): n for n in (registry or self).module_dict}
        near = [known[n] for n in difflib.get_close_matches(key.split('.')[-1].lower(), known)]
        hint = f'; nearest: {", ".join(near)}' if near else ''
        if registry is None:
            hint += f'; no registry of scope {key.partition(".")[0]!r} is known here'
        return (f'{name} is not in the {self.name} registry{hint}. '
                'Is the module that defines it imported (custom_imports)?')


def build_from_cfg(cfg: dict[str, Any], registry: Registry, default_args: dict[str, Any] | None = None) -> Any:
    """Build the object that `cfg` describes; `cfg` itself is left as it is.

    Args:
        cfg: keyword arguments and `type`: a registered name, a class or a function.
        registry: where a name is looked up.
        default_args: fills in keys that `cfg` lacks.

    Raises:
        TypeError: an argument of the wrong type; a keyword that the constructor does not know.
        KeyError: no `type`, or one that is not registered.
        Exception: what the constructor raises, unchanged but for a note that says what was being built.
    """
    if not isinstance(cfg, dict):
        raise TypeError(f'cfg must be a dict, but got {type(cfg)}')
    if not isinstance(registry, Registry):
        raise TypeError(f'registry must be a Registry, but got {type(registry)}')
    if not isinstance(default_args, (dict, type(None))):
        raise TypeError(f'default_args must be a dict or None, but got {type(default_args)}')
    args = {**cfg, **{k: v for k, v in (default_args or {}).items() if k not in cfg}}
    if 'type' not in args:
        raise KeyError(f'`cfg` or `default_args` must contain the key "type", but got {cfg}\n{default_args}'
                       + _place(cfg))
    kind = args.pop('type')
    target = registry.get(kind) if isinstance(kind, str) else kind
    if target is None:
        raise KeyError(registry._unknown(kind) + _place(cfg, 'type'))
    if not (inspect.isclass(target) or inspect.isfunction(target)):
        raise TypeError(f'type must be a str, a class or a function, but got {type(target)}' + _place(cfg, 'type'))
    try:
        with _recorded(registry.name, kind, target, args) as finish:
            _check_keywords(target, args, cfg)
            return finish(target(**args))
    except Exception as error:
        error.add_note(f'while building {target.__name__}{_place(cfg)}')
        raise


def _check_keywords(target: Callable[..., Any], args: dict[str, Any], cfg: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have no signature
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in args:
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, 1)
            hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(parameters) or "none"}'
            raise TypeError(f'{target.__name__} has no argument {key!r}; {hint}{_place(cfg, key)}')


def _place(cfg: dict[str, Any], key: str | None = None) -> str:
    place = where(cfg, key) if key is None or key in cfg else where(cfg)
    return f' ({place})' if place else ''


def _shown(line: Line) -> str:
    """`file:line`, relative to the working folder when inside it."""
    inside = line[0].startswith(os.getcwd() + os.sep)
    return f'{os.path.relpath(line[0]) if inside else line[0]}:{line[1]}'


def source_line(target: Callable[..., Any]) -> Line:
    """File and line where a class or function is written; ('', 0) for what is not written in Python."""
    try:
        file = inspect.getsourcefile(target)
        return (os.path.abspath(file), inspect.getsourcelines(target)[1]) if file else ('', 0)
    except (OSError, TypeError):  # a class typed into a notebook: its first method still knows
        codes = (getattr(v, '__code__', None) for v in [target, *vars(target).values()])
        return next(((c.co_filename, c.co_firstlineno) for c in codes if c), ('', 0))


def _defined_again(old: Any, new: Any) -> bool:
    same = (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return same and old is not new and '<locals>' not in new.__qualname__


def _import_chain(frame: FrameType | None) -> list[Line]:
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
    """One build: what was asked for, which class answered, where it is written and what it cost."""

    registry: str
    type: str
    cls: str
    file: str
    line: int
    args: dict[str, Any]
    depth: int
    parameters: int | None = None
    seconds: float = 0.0
    error: str | None = None

    def columns(self) -> tuple[str, ...]:
        """Type, registry, source line, parameters and milliseconds (its own parts included), as text."""
        count = '-' if self.parameters is None else f'{self.parameters:,}'
        failed = f'  FAILED {self.error}' if self.error else ''
        source = _shown((self.file, self.line)) if self.file else '(not Python)'
        return self.type, self.registry, source, count, f'{self.seconds * 1e3:.1f} ms{failed}'


@dataclass
class BuildTrace:
    """Builds in the order in which they began; prints as a tree, and as HTML in a notebook."""

    records: list[BuildRecord] = field(default_factory=list)
    depth: int = field(default=0, repr=False)

    def _branch(self, i: int) -> str:
        depths = [r.depth for r in self.records[i:]]

        def goes_on(level: int) -> bool:
            return next((d for d in depths[1:] if d <= level), -1) == level

        arms = ['│  ' if goes_on(level) else '   ' for level in range(1, depths[0])]
        return ''.join(arms) + ('├─ ' if goes_on(depths[0]) else '└─ ') if depths[0] else ''

    def __str__(self) -> str:
        rows = [r.columns() for r in self.records]
        rows = [(self._branch(i) + row[0], *row[1:]) for i, row in enumerate(rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return '\n'.join(f'{t:<{widths[0]}}  {r:<{widths[1]}}  {s:<{widths[2]}}  {n:>{widths[3]}}  {ms}'
                         for t, r, s, n, ms in rows)

    def _repr_html_(self) -> str:
        out = []
        following = [r.depth for r in self.records[1:]] + [0]
        for record, after in zip(self.records, following, strict=True):
            name, registry, source, count, ms = map(html.escape, record.columns())
            args = ''.join(f'<li>{html.escape(k)} = {html.escape(reprlib.repr(v))}</li>'
                           for k, v in record.args.items())
            out.append(f'<details open><summary><b>{name}</b> {registry} <code>{source}</code> {count} parameters, '
                       f'{ms}</summary><div style="margin-left:1.5em"><details><summary>arguments</summary>'
                       f'<ul>{args}</ul></details>' + '</div></details>' * (record.depth - after + 1))
        return ''.join(out)


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
def _recorded(registry: str, kind: Any, target: Any, args: dict[str, Any]) -> Iterator[Callable[[Any], Any]]:
    traces = _TRACES.get()
    if not traces:
        yield lambda built: built
        return
    name = kind if isinstance(kind, str) else target.__name__
    qualified = f'{target.__module__}.{target.__qualname__}'
    # a constructor may pop from the nested dicts it is given: keep copies of them
    records = [BuildRecord(registry, name, qualified, *source_line(target), _copied(args), t.depth) for t in traces]
    for trace, record in zip(traces, records, strict=True):
        trace.records.append(record)
        trace.depth += 1
    start = time.perf_counter()

    def finish(built: Any) -> Any:
        for record in records:
            record.seconds = time.perf_counter() - start
            record.parameters = _parameter_count(built)
        return built

    try:
        yield finish
    except Exception as error:
        for record in records:
            record.seconds, record.error = time.perf_counter() - start, f'{type(error).__name__}: {error}'
        raise
    finally:
        for trace in traces:
            trace.depth -= 1


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if type(value) is list else value


def _parameter_count(built: Any) -> int | None:
    if not (hasattr(built, 'state_dict') and callable(getattr(built, 'parameters', None))):
        return None
    return sum(p.numel() for p in built.parameters())


MODELS = Registry('models', scope='mmcls')
BACKBONES = NECKS = HEADS = LOSSES = CLASSIFIERS = MODELS
DATASETS = Registry('dataset', scope='mmcls')
PIPELINES = Registry('pipeline', scope='mmcls')
SAMPLERS = Registry('sampler', scope='mmcls')
HOOKS = Registry('hook', scope='mmcls')
RUNNERS = Registry('runner', scope='mmcls')
OPTIMIZERS = Registry('optimizer', scope='mmcls')
OPTIMIZER_BUILDERS = Registry('optimizer builder', scope='mmcls')
