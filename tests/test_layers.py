"""The library is one straight line: a module imports only from the layers above it in this list."""
from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import workspace_lib

ROOT = Path(workspace_lib.__file__).parent
# From the ground up. A tuple is a room: its modules may import each other, rooms of one layer may not.
LAYERS: list[list[tuple[str, ...]]] = [
    [('config',)],
    [('trace',), ('recipes',), ('borrow',), ('arguments',), ('jpeg_crop',)],
    [('registry',)],
    [('dist',), ('randomness',)],
    [('device',)],
    [('download', 'model_zoo', 'packaged', 'safe_load', 'layouts', 'checkpoint', 'resume'),
     ('metrics', 'multi_label_metrics')],
    [('datasets',), ('models',), ('optim', 'lamb', 'schedules', 'policies')],
    [('runner', 'iter_runner', 'loops', 'hooks', 'log_hooks', 'log_writers', 'loader_watch', 'weight_hooks',
     'size_hook', 'faults')],
    [('apis', 'checks')],
    [('tools',)],
]
PLACE = {module: (level, room) for level, rooms in enumerate(LAYERS) for room in rooms for module in room}
SOURCES = [p for p in sorted(ROOT.rglob('*.py')) if 'configs' not in p.relative_to(ROOT).parts]
CORE = [p for p in SOURCES if 'tools' not in p.relative_to(ROOT).parts]
# What a registry or a table holds, one item beside the other: a recipe names some, and the machinery does without any.
CATALOGUE = ('models.backbones', 'models.heads', 'models.losses', 'models.necks',
             'datasets.transforms', 'datasets.colour', 'datasets.geometry', 'datasets.auto_augment', 'datasets.mixing',
             'datasets.builtin', 'datasets.folder', 'datasets.fine_grained', 'datasets.multi_label',
             'datasets.samplers', 'policies', 'lamb', 'weight_hooks', 'size_hook', 'log_writers', 'loader_watch',
             'faults', 'packaged', 'layouts', 'model_zoo')
# Lines of code, without docstrings, comments and blank lines. Guards against growth by habit: what makes the machinery
# pass its limit should rather be simpler, or be a tool; the catalogue grows by items, of which most are short.
LINE_LIMIT, CATALOGUE_LIMIT = 5000, 3000


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of everything a file imports, inside functions too, with the line."""
    package = ['workspace_lib', *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            whole = '.'.join([*base, *filter(None, [node.module])])
            # with the name appended: `from workspace_lib import x` may mean a module
            yield from ((f'{whole}.{alias.name}', node.lineno) for alias in node.names)


def own(name: str) -> str | None:
    """`registry` for `workspace_lib.registry.Registry`; None for other packages."""
    parts = name.split('.')
    return parts[1] if parts[0] == 'workspace_lib' and len(parts) > 1 and parts[1] in PLACE else None


def test_every_module_has_its_layer():
    names = {module_name(path).split('.')[0] for path in SOURCES} - {''}
    assert names <= set(PLACE), f'place these in a layer of this test: {sorted(names - set(PLACE))}'


@pytest.mark.parametrize('path', SOURCES, ids=module_name)
def test_a_module_imports_only_from_layers_below_it(path: Path):
    if path == ROOT / '__init__.py':
        return
    me = module_name(path).split('.')[0]
    level, room = PLACE[me]
    for name, line in imported(path):
        other = own(name)
        if other is None:
            continue
        other_level, other_room = PLACE[other]
        assert other_room == room or other_level < level, f'{path}:{line} {me} imports {other}'


@pytest.mark.parametrize('path', CORE, ids=module_name)
def test_the_core_does_without_mmcv(path: Path):
    guests = [f'{path}:{line}' for name, line in imported(path) if name.split('.')[0] in ('mmcv', 'mmcls')]
    assert not guests


def code_lines(path: Path) -> int:
    """Lines with code on them: a limit that counted explanations would be met by explaining less."""
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) \
                and ast.get_docstring(node, clean=False):
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
              tokenize.ENDMARKER}
    tokens = (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in silent)
    return len({n for t in tokens for n in range(t.start[0], t.end[0] + 1)} - documented)


def test_the_core_stays_small():
    counts = {path: code_lines(path) for path in SOURCES}
    catalogue = {path for path in CORE if module_name(path).startswith(CATALOGUE)}
    items, machinery = (sum(counts[path] for path in part) for part in (catalogue, set(CORE) - catalogue))
    print()
    for path, count in counts.items():
        print(f'{count:6,}  {module_name(path) or "workspace_lib"}{" *" if path in catalogue else ""}')
    print(f'{machinery:6,}  machinery: lines of code (limit {LINE_LIMIT:,})\n'
          f'{items:6,}  catalogue, *: lines of code (limit {CATALOGUE_LIMIT:,})\n'
          f'{sum(counts.values()) - machinery - items:6,}  tools')
    whole = sum(len(path.read_text().splitlines()) for path in CORE)
    print(f'{whole:6,}  core: with blank lines and explanations')
    assert machinery < LINE_LIMIT
    assert items < CATALOGUE_LIMIT
    assert all(any(module_name(path).startswith(name) for path in CORE) for name in CATALOGUE)


def test_importing_the_core_is_cheap():
    modules = ['workspace_lib', *(f'workspace_lib.{module_name(path)}' for path in CORE if module_name(path))]
    code = (f'import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n'
            "heavy = {'torchvision', 'timm', 'matplotlib.pyplot', 'mmcv', 'mmcls'} & set(sys.modules)\n"
            'sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
