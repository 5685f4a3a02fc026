"""What the documents say exists, exists."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from workspace_lib.recipes import CONFIGS
from workspace_lib.tools.cli import build_parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')),
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
