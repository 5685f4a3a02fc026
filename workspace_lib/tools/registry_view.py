"""What a config can name: ``workspace registry [TABLE]``, and the same as tables and a widget in a notebook.

In: a registry. Out: of each entry its names, where it is written, and which import brought it in; its source.
"""
from __future__ import annotations

import argparse
import html
import inspect
from importlib import import_module
from itertools import groupby
from typing import Any

from .. import registry as tables
from ..registry import Registry
from ..trace import shown
from .table import Table

#: The variables of `registry.py`, in lower case.
REGISTRIES = ('models', 'datasets', 'pipelines', 'samplers', 'hooks', 'runners', 'optimizers')


def registry_table(registry: Registry, text: str = '') -> Table:
    """The entries with `text` in their names, class or place, sorted by class; a class with several names has one row.

    The last column are the import statements that led to the class, outermost first.
    """
    def class_of(name: str) -> str:
        module = registry.module_dict[name]
        return f'{module.__module__}.{module.__qualname__}'

    rows = []
    for cls, group in groupby(sorted(registry.module_dict, key=class_of), key=class_of):
        names = list(group)
        *imports, source = registry.registered_by(names[0])
        rows.append((', '.join(names), cls, shown(source), ' > '.join(map(shown, imports))))
    return Table(['name', 'class', 'written in', 'registered by'],
                 [row for row in rows if text.lower() in ' '.join(row[:3]).lower()])


def source_of(registry: Registry, name: str) -> str:
    """The text of a registered class or function.

    Raises:
        KeyError: no such name; the nearest are named.
    """
    *_, place = registry.registered_by(name)
    try:
        return inspect.getsource(registry.get(name))  # type: ignore[arg-type]
    except (OSError, TypeError):  # a compiled class; one typed into a session that keeps no text
        return f'# {shown(place)}: its source is not to be had'


def named(name: str) -> Registry:
    """'models' and the like to a filled table.

    Raises:
        ValueError: another name.
    """
    if name not in REGISTRIES:
        raise ValueError(f'no registry {name!r}; there are {", ".join(REGISTRIES)}')
    import_module('workspace_lib.apis')  # which imports all that fills a table
    return getattr(tables, name.upper())


def browsed(name: str, text: str = '', entry: str = '') -> str:
    """What the browser shows, as HTML: the table, and below it the source of `entry`, if one is chosen."""
    registry = named(name)
    page = registry_table(registry, text)._repr_html_()
    if not entry:
        return page
    return f'{page}<pre style="max-height:30em;overflow:auto">{html.escape(source_of(registry, entry))}</pre>'


def registry_browser() -> Any:
    """A menu of the tables, a search box, a menu of what was found, and the source of what is chosen there."""
    import ipywidgets

    menu = ipywidgets.Dropdown(options=REGISTRIES, description='registry')
    find = ipywidgets.Text(description='search', placeholder='ResNet, backbones/vgg.py')
    chosen = ipywidgets.Dropdown(description='source')
    picture = ipywidgets.HTML()  # not an Output: what a cell draws before the page knows an Output is lost

    def look(change: Any = None) -> None:
        rows = registry_table(named(menu.value), find.value).rows
        chosen.options = ['', *(row[0].split(', ')[0] for row in rows)]
        draw()

    def draw(change: Any = None) -> None:
        picture.value = browsed(menu.value, find.value, chosen.value or '')

    menu.observe(look, names='value')
    find.observe(look, names='value')
    chosen.observe(draw, names='value')
    look()
    return ipywidgets.VBox([menu, find, chosen, picture])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('registry', nargs='?', default='models', help=f'{", ".join(REGISTRIES)} (default models)')
    parser.add_argument('--search', default='', metavar='TEXT', help='only entries with TEXT in name, class or place')
    parser.add_argument('--source', metavar='NAME', help='print the source of one entry')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    registry = named(args.registry)
    print(source_of(registry, args.source) if args.source else registry_table(registry, args.search))
