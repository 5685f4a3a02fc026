"""What the documents say exists, exists."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from workspace_lib.recipes import CONFIGS
from workspace_lib.tools.cli import build_parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'README.ko.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')),
             *sorted(ROOT.glob('*/README.md'))]


def test_every_difference_names_tests_that_exist():
    document = (ROOT / 'docs' / 'compatibility.md').read_text()
    defined = {name for path in (ROOT / 'tests').rglob('test_*.py')
               for name in re.findall(r'^\s*def (test_\w+)', path.read_text(), re.M)}
    last_cells = '\n'.join(line.rstrip(' |').rpartition('|')[2] for line in document.splitlines() if line[:1] == '|')
    named = set(re.findall(r'`(?:tests/test_\w+\.py::)?(test_[a-z0-9_]+)(?:\[[^`]*\])?`', last_cells))
    assert len(named) > 50
    assert named <= defined, sorted(named - defined)


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_to_files(document):
    links = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def anchors(document: Path) -> set[str]:
    """What a `#fragment` can name in a Markdown file: its headings, as GitHub writes them."""
    headings = re.findall(r'^#+ +(.+)$', document.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_fragments_lead_to_headings(document):
    links = re.findall(r'\]\(([^)#:]*)#([^)]*)\)', document.read_text())
    pages = [(document.parent / path if path else document, fragment) for path, fragment in links]
    assert [fragment for page, fragment in pages if page.suffix == '.md' and fragment not in anchors(page)] == []


# --- the map --------------------------------------------------------------------------------------

STEPS = ['overall structure', 'inference', 'training', 'data loader', 'loss, optimizer, scheduler', 'checkpoint',
         'batch and multi-GPU']


def the_map() -> list[list[str]]:
    """The rows of the README's study plan: step, notebook, library, mmclassification."""
    section = (ROOT / 'README.md').read_text().partition('## What to read, in which order')[2].partition('\n## ')[0]
    rows = [line.strip('|').split('|') for line in section.splitlines() if line.startswith('| ')]
    return rows[2:]


def test_the_map_goes_through_the_seven_steps_and_all_notebooks():
    steps = [row[0].strip() for row in the_map()]
    assert list(dict.fromkeys(steps)) == [f'{number}. {step}' for number, step in enumerate(STEPS, 1)]
    assert steps == sorted(steps)
    named = [re.findall(r'notebooks/(\w+)\.ipynb', row[1]) for row in the_map()]
    english = [path.stem for path in sorted(ROOT.glob('notebooks/[0-9]*.py')) if '.' not in path.stem]
    assert all(len(names) == 1 for names in named) and [name for name, in named] == english


def test_each_row_of_the_map_names_files_of_the_library_and_of_mmclassification():
    for row in the_map():
        assert re.search(r'\]\([\w/.-]+\)', row[2]) and re.search(r'`(mmcls|mmcv|tools)/', row[3]), row


def test_what_the_map_names_of_mmclassification_is_in_the_packages():
    mmcls, mmcv = (Path(pytest.importorskip(name).__file__).parent for name in ('mmcls', 'mmcv'))
    homes = {'mmcls': mmcls.parent, 'mmcv': mmcv.parent, 'tools': mmcls / '.mim'}
    named = [path for row in the_map() for path in re.findall(r'`([^`]+)`', row[3])]
    packaged = [path for path in named if path.partition('/')[0] in homes]
    assert set(named) - set(packaged) == {'demo/image_demo.py'}  # the repository's alone
    assert [path for path in packaged if not (homes[path.partition('/')[0]] / path).exists()] == []


def test_the_commands_of_the_readme_parse():
    text = (ROOT / 'README.md').read_text().replace('\\\n', ' ')
    commands = re.findall(r'^workspace +(.+?)(?:\s+#.*)?$', text, re.M)
    assert len(commands) >= 4
    for command in commands:
        args = build_parser().parse_args(command.split())
        if config := getattr(args, 'config', None):  # not all commands take one
            assert (CONFIGS / config).is_file(), command
    assert sum('.py' in command for command in commands) >= 8


def test_the_targets_of_the_readme_exist():
    targets = set(re.findall(r'^([a-z][a-z-]*):', (ROOT / 'Makefile').read_text(), re.M))
    named = set(re.findall(r'`make ([a-z-]+)', ''.join(path.read_text() for path in DOCUMENTS)))
    assert named and named <= targets, sorted(named - targets)
