"""The Korean documents say what the English ones say: same structure, code, links and numbers, section by section."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip('jupytext', reason='extra lab is not installed')

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md', ROOT / 'README.ko.md'
TOUR = ROOT / 'notebooks' / '00_tour.py', ROOT / 'notebooks' / '00_tour.ko.py'
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
HANGUL = re.compile('[가-힣]')


def prose(text: str) -> str:
    return FENCED.sub('', text)


def sections(text: str) -> list[tuple[int, str]]:
    """(level of the heading, what is under it), the heading's own line included."""
    parts = re.split(r'^(?=#{1,6} )', prose(text), flags=re.M)
    return [(len(part) - len(part.lstrip('#')), part) for part in parts if part.strip()]


def code_blocks(text: str) -> list[tuple[str, str]]:
    return [(language, without_comments(code)) for language, code in FENCED.findall(text)]


def without_comments(code: str) -> str:
    return re.sub(r'(^|\s+)#(?!!).*$', '', code, flags=re.M)


def links(text: str) -> list[str]:
    """Targets, sorted: words of a sentence stand in another order. A heading's anchor is its language's."""
    targets = (target.replace('.ko.', '.') for target in re.findall(r'\]\(([^)\s]+)\)', text))
    return sorted('#' if target.startswith('#') else target for target in targets)


def inline_code(text: str) -> list[str]:
    return sorted(re.findall(r'`([^`]+)`', ' '.join(text.split())))


def numbers(text: str) -> list[str]:
    """All numbers outside code and links; 1,000 is one."""
    words = re.sub(r'`[^`]+`|\]\([^)]*\)', ' ', text)
    return sorted(number.rstrip('.,') for number in re.findall(r'\d[\d,.]*', words))


def tables(text: str) -> list[list[int]]:
    """For each table the number of cells of each of its rows."""
    blocks = re.findall(r'(?:^\|.*\n?)+', text, re.M)
    return [[row.strip().strip('|').count('|') + 1 for row in block.splitlines()] for block in blocks]


@pytest.fixture(scope='module')
def readmes() -> list[str]:
    return [path.read_text() for path in README]


def test_the_readmes_have_the_same_headings_and_code_blocks(readmes):
    english, korean = readmes
    assert [level for level, _ in sections(korean)] == [level for level, _ in sections(english)]
    assert code_blocks(korean) == code_blocks(english)
    assert len(code_blocks(english)) >= 6


@pytest.mark.parametrize('found', [tables, links, inline_code, numbers])
def test_each_section_of_the_readme_has_the_same(readmes, found):
    for (_, english), (_, korean) in zip(*map(sections, readmes), strict=True):
        assert found(korean) == found(english), english.splitlines()[0]


def test_what_is_compared_is_there(readmes):
    assert all(len(found(readmes[0])) >= 4 for found in (tables, links, inline_code, numbers))


@pytest.mark.parametrize('english, korean', [README, TOUR], ids=['README', 'tour'])
def test_each_language_leads_to_the_other_at_its_top(english, korean):
    target = {path: path.name.replace('.py', '.ipynb') for path in (english, korean)}
    assert f'[한국어]({target[korean]})' in '\n'.join(english.read_text().splitlines()[:4])
    assert f'[English]({target[english]})' in '\n'.join(korean.read_text().splitlines()[:4])


def test_every_section_is_translated(readmes):
    for _, korean in sections(readmes[1]):
        assert HANGUL.search(korean.partition('\n')[0]) and HANGUL.search(korean.partition('\n')[2])
    english = readmes[0].replace('[한국어]', '')
    assert not HANGUL.search(english)


# --- the tour -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tours() -> list[list]:
    return [jupytext.read(path, fmt='py:percent').cells for path in TOUR]


def test_the_tours_have_the_same_cells_and_the_same_code(tours):
    english, korean = tours
    shape = [(cell.cell_type, cell.metadata.get('tags', [])) for cell in english]
    assert [(cell.cell_type, cell.metadata.get('tags', [])) for cell in korean] == shape
    for ours, theirs in zip(english, korean, strict=True):
        if ours.cell_type == 'code':
            assert without_comments(theirs.source) == without_comments(ours.source)


@pytest.mark.parametrize('found', [links, inline_code, tables])
def test_each_text_of_the_tour_has_the_same(tours, found):
    for ours, theirs in zip(*tours, strict=True):
        if ours.cell_type == 'markdown':
            assert found(prose(theirs.source)) == found(prose(ours.source)), ours.source.splitlines()[0]


def test_headings_and_the_diagram_of_the_tours_agree(tours):
    ours, theirs = ('\n'.join(cell.source for cell in cells if cell.cell_type == 'markdown') for cells in tours)
    assert [level for level, _ in sections(theirs)] == [level for level, _ in sections(ours)]
    arrows = re.compile(r'(\w+)(?:\["[^"]*"\])? (?:-- "[^"]*" )?--> (\w+)')
    (_, first), = FENCED.findall(ours)
    (_, second), = FENCED.findall(theirs)
    assert arrows.findall(second) == arrows.findall(first) and len(arrows.findall(first)) >= 8
    assert 'accTitle:' in second and HANGUL.search(second)


def test_every_text_of_the_tour_is_translated(tours):
    assert [cell.source for cell in tours[1] if cell.cell_type == 'markdown' and not HANGUL.search(cell.source)] == []
