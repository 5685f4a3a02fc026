"""Names to classes: what a config calls `type='ResNet'` is found, checked and built here.

In: a config dict with a `type`. Out: the object; `tools.build_tree` shows what was built on the way.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any

from .borrow import Offer, lender_of, offer
from .config import place
from .config.merge import near_names
from .trace import Line, import_chain, shown, source_line

_log = logging.getLogger(__name__)


class Registry:
    """A table of classes and functions by name, with the grammar of mmcv 1.x.

    Args:
        name: how errors call the table (`X is not in the <name> registry`).
        build_func: called as `build_func(cfg, registry=self)`; default the parent's, else `build_from_cfg`.
        parent: the registry through which sibling packages find this one, as in `type='mmdet.ResNet'`.
        scope: the prefix that names this table; default the package that constructs it.
        home: the module whose import fills the table, imported before a name counts as missing: what a config means
            must not depend on what has been imported so far.
        lender: a table of another package, as `mmcls.models.builder:MODELS`, that is asked for names not in this one.
    """

    def __init__(self, name: str, build_func: Callable[..., Any] | None = None, parent: Registry | None = None,
                 scope: str | None = None, home: str | None = None, lender: str | None = None) -> None:
        caller = sys._getframe(1).f_globals.get('__name__', '__main__')
        self.name = name
        self.scope = caller.split('.')[0] if scope is None else scope
        self.parent = parent
        self.children: dict[str, Registry] = {}
        self.module_dict: dict[str, Callable[..., Any]] = {}
        self.home, self.lender = home, lender
        self.borrowed: dict[str, Callable[..., Any]] = {}
        self._imports: dict[str, list[Line]] = {}
        inherited = build_from_cfg if parent is None else parent.build_func
        self.build_func: Callable[..., Any] = build_func or inherited
        if parent is not None:
            if self.scope in parent.children:
                raise AssertionError(f'scope {self.scope} exists in {parent.name} registry')
            parent.children[self.scope] = self

    def __len__(self) -> int:
        return len(self.module_dict)

    def __contains__(self, key: str) -> bool:
        """Whether the table has that name itself: nothing is borrowed, or imported, to answer."""
        registry, name = self._home(key)
        return registry is not None and name in registry.module_dict

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name}, items={self.module_dict})'

    def _home(self, key: str) -> tuple[Registry | None, str]:
        """The registry that `scope.Name` points to (None for an unknown scope), and the bare name in it."""
        scope, dot, rest = key.partition('.')
        if not dot or key in self.module_dict:
            return self, key
        if scope == self.scope:
            return self, rest
        if scope in self.children:
            return self.children[scope]._home(rest)
        return (None, key) if self.parent is None else self.parent._home(key)

    def get(self, key: str) -> Callable[..., Any] | None:
        """The class or function of that name, the lender's if it has none of its own, or None.

        A parent is searched only for a `scope.Name`.
        """
        registry, name = self._home(key)
        return None if registry is None else registry._own(name) or registry._borrow(name)

    def _own(self, name: str) -> Callable[..., Any] | None:
        if name not in self.module_dict and self.home is not None:
            home, self.home = self.home, None  # once; and what it builds while it is imported finds what is there
            importlib.import_module(home)
        return self.module_dict.get(name)

    def _borrow(self, name: str) -> Callable[..., Any] | None:
        if self.lender is None or not name or name in self.borrowed:
            return self.borrowed.get(name)
        borrowed = offer(self.lender).classes.get(name)
        if borrowed is not None:
            self.borrowed[name] = borrowed
            _log.warning('%s is borrowed from %s', name, lender_of(borrowed))
        return borrowed

    def lender_of(self, key: str) -> str | None:
        """Package and version from which the class of that name is borrowed; None if it is not."""
        registry, name = self._home(key)
        borrowed = registry is not None and name not in registry.module_dict and registry.borrowed.get(name)
        return lender_of(borrowed) if borrowed else None

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
            KeyError: the name is taken. Only a definition that is run again (a notebook cell, a reload)
                replaces itself.
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
                               f'{shown(self.registered_by(taken)[-1])}; give it another name, or force=True')
        chain = import_chain(frame)
        for n in names:
            self.module_dict[n] = module
            self._imports[n] = chain
        return module

    def registered_by(self, name: str) -> list[Line]:
        """Which import registered it: (file, line) of each import statement, outermost first.

        The last entry is where the class itself is written. A borrowed class has the lender in place of the
        imports: ('borrowed from mmcls 0.25.0', 0). Raises KeyError for an unknown name.
        """
        registry, key = self._home(name)
        if registry is None or registry.get(key) is None:
            raise KeyError(self._unknown(name))
        if lender := self.lender_of(name):
            return [(f'borrowed from {lender}', 0), source_line(registry.borrowed[key])]
        chain = registry._imports.get(key, [])
        source = source_line(registry.module_dict[key])
        return chain + [source] if source[0] and source not in chain[-1:] else list(chain)

    def _unknown(self, name: str) -> str:
        registry, key = self._home(name)
        others = Offer({}, '') if registry is None or registry.lender is None else offer(registry.lender)
        known = {n.lower(): n for n in [*others.classes, *(registry or self).module_dict]}
        near = [known[n] for n in difflib.get_close_matches(key.split('.')[-1].lower(), known)]
        hint = f'; nearest: {", ".join(near)}' if near else ''
        if registry is None:
            hint += f'; no registry of scope {key.partition(".")[0]!r} is known here'
        return (f'{name} is not in the {self.name} registry{hint}. '
                'Is the module that defines it imported (custom_imports)?' + others.absent)


def build_from_cfg(cfg: dict[str, Any], registry: Registry,
                   default_args: dict[str, Any] | None = None) -> Any:
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
                       + place(cfg))
    kind = args.pop('type')
    target = registry.get(kind) if isinstance(kind, str) else kind
    if target is None:
        raise KeyError(registry._unknown(kind) + place(cfg, 'type'))
    if not (inspect.isclass(target) or inspect.isfunction(target)):
        raise TypeError(f'type must be a str, a class or a function, but got {type(target)}'
                        + place(cfg, 'type'))
    try:
        return CONSTRUCT.get()(registry, kind, target, args, cfg)
    except Exception as error:
        error.add_note(f'while building {target.__name__}{place(cfg)}')
        raise


def _construct(registry: Registry, kind: Any, target: Callable[..., Any], args: dict[str, Any],
               cfg: dict[str, Any]) -> Any:
    _check_keywords(target, args, cfg)
    return target(**args)


#: What makes the object of each build, in this thread; whoever watches sets a function that calls the one before it.
CONSTRUCT: ContextVar[Callable[..., Any]] = ContextVar('construct', default=_construct)


def _check_keywords(target: Callable[..., Any], args: dict[str, Any], cfg: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have no signature
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in args:
        if key not in parameters:
            hint = near_names(key, parameters) or f'; known: {", ".join(parameters) or "none"}'
            raise TypeError(f'{target.__name__} has no argument {key!r}{hint}{place(cfg, key)}')


def _defined_again(old: Any, new: Any) -> bool:
    same = (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return same and old is not new and '<locals>' not in new.__qualname__


MODELS = Registry('models', scope='mmcls', home='workspace_lib.models', lender='mmcls.models.builder:MODELS')
BACKBONES = NECKS = HEADS = LOSSES = CLASSIFIERS = MODELS
DATASETS = Registry('dataset', scope='mmcls', home='workspace_lib.datasets', lender='mmcls.datasets.builder:DATASETS')
PIPELINES = Registry('pipeline', scope='mmcls', home='workspace_lib.datasets',
                     lender='mmcls.datasets.builder:PIPELINES')
SAMPLERS = Registry('sampler', scope='mmcls', home='workspace_lib.datasets', lender='mmcls.datasets.builder:SAMPLERS')
HOOKS = Registry('hook', scope='mmcls', home='workspace_lib.apis', lender='mmcv.runner:HOOKS')
RUNNERS = Registry('runner', scope='mmcls', home='workspace_lib.apis')
OPTIMIZERS = Registry('optimizer', scope='mmcls')
OPTIMIZER_BUILDERS = Registry('optimizer builder', scope='mmcls')
