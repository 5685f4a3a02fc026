"""A config to look at: its values with the places that set them, a search, and what an override would change.

In: a `Config`. Out: tables, a tree for a notebook's page, and `config_explorer`, a widget over them.
"""
from __future__ import annotations

import argparse
import copy
import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..config.node import Path, children
from .annotate import leaves, origin_text, origins
from .options import DictAction
from .table import Table

ABSENT = '(nothing)'


@dataclass(frozen=True)
class Change:
    """A value before and after; `origin` is where the one before was set, '' if there was none."""

    key: str
    before: str
    after: str
    origin: str


def changes(cfg: Config, options: dict[str, Any]) -> list[Change]:
    """What `cfg.merge_from_dict(options)` would change, value by value; `cfg` stays as it is.

    Raises:
        whatever `merge_from_dict` does about a key that does not fit.
    """
    changed = copy.deepcopy(cfg)
    changed.merge_from_dict(options)
    before, after = dict(leaves(cfg.to_dict())), dict(leaves(changed.to_dict()))
    gone = [path for path in before if path not in after]
    return [Change('.'.join(map(str, path)), _text(before, path), _text(after, path),
                   origin_text(cfg.origin(path)) if path in before else '')
            for path in [*gone, *after] if _text(before, path) != _text(after, path)]


def _text(values: dict[Path, Any], path: Path) -> str:
    return repr(values[path]) if path in values else ABSENT


def changes_table(cfg: Config, options: dict[str, Any]) -> Table:
    return Table(['key', 'before', 'after', 'was set in'],
                 [(change.key, change.before, change.after, change.origin) for change in changes(cfg, options)])


def search(cfg: Config, text: str = '') -> Table:
    """Every value with `text` in its key, value or place, ignoring case."""
    found = origins(cfg)
    rows = [('.'.join(map(str, path)), repr(value), origin_text(found[path])) for path, value in leaves(cfg.to_dict())]
    return Table(['key', 'value', 'set in'], [row for row in rows if text.lower() in ' '.join(row).lower()])


@dataclass(frozen=True)
class ConfigTree:
    """The config as folded sections; prints as indented text. `depth` sections are open."""

    cfg: Config
    depth: int = 1

    def __str__(self) -> str:
        return '\n'.join(f'{"   " * (len(path) - 1)}{path[-1]}: {self._value(value, path)}'
                         for path, value in self._walk(self.cfg.to_dict()))

    def _walk(self, values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
        for key, value in children(values):
            yield (*path, key), value
            yield from self._walk(value, (*path, key))

    def _value(self, value: Any, path: Path) -> str:
        if count := len(list(children(value))):
            return f'{type(value).__name__} of {count}'
        return f'{value!r}  # {origin_text(self.cfg.origin(path))}'

    def _repr_html_(self) -> str:
        return f'<div style="font-family:monospace">{self._section(self.cfg.to_dict(), ())}</div>'

    def _section(self, values: Any, path: Path) -> str:
        lines = []
        for key, value in children(values):
            inner, name = (*path, key), html.escape(str(key))
            if list(children(value)):
                opened = ' open' * (len(path) < self.depth)
                kind = value.get('type', '') if isinstance(value, dict) else f'[{len(value)}]'
                lines.append(f'<details{opened} style="margin-left:1.5em"><summary><b>{name}</b> '
                             f'{html.escape(str(kind))}</summary>{self._section(value, inner)}</details>')
            else:
                place = html.escape(origin_text(self.cfg.origin(inner)))
                lines.append(f'<div style="margin-left:2.5em">{name} = {html.escape(repr(value))} '
                             f'<span style="color:#595959">{place}</span></div>')
        return ''.join(lines)


def parse_options(text: str) -> dict[str, Any]:
    """'optimizer.lr=0.1 model.backbone.depth=18' as the command line's `--cfg-options` reads it.

    Raises:
        ValueError: a word without '=', or brackets that do not close.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    try:
        return parser.parse_args(['--cfg-options', *text.split()]).cfg_options
    except argparse.ArgumentError as error:
        raise ValueError(str(error.message)) from None


def config_explorer(cfg: Config) -> Any:
    """A tree, a search box, and a box for overrides with what they would change. No override is applied."""
    import ipywidgets

    find = ipywidgets.Text(description='search', placeholder='lr, Resize, schedules/')
    override = ipywidgets.Text(description='override', placeholder='optimizer.lr=0.01 model.backbone.depth=18',
                               layout=ipywidgets.Layout(width='40em'))
    picture = ipywidgets.HTML()  # not an Output: what a cell draws before the page knows an Output is lost

    def draw(change: Any = None) -> None:
        picture.value = explored(cfg, find.value, override.value)

    for control in (find, override):
        control.observe(draw, names='value')
    draw()
    return ipywidgets.VBox([find, override, picture])


def explored(cfg: Config, text: str = '', options: str = '') -> str:
    """What the explorer shows, as HTML: what `options` would change, then what `text` finds, or the whole tree."""
    shown = search(cfg, text)._repr_html_() if text else ConfigTree(cfg, depth=0)._repr_html_()
    if not options:
        return shown
    try:
        found = changes_table(cfg, parse_options(options))
        said = found._repr_html_() if found.rows else '<p>This changes nothing.</p>'
    except (ValueError, KeyError, TypeError) as error:
        said = f'<p>{type(error).__name__}: {html.escape(str(error.args[0] if error.args else error))}</p>'
    return said + shown
