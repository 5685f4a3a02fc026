"""The notebooks keep the rules of their form: size, opening, diagram, exercises, the debugger's way, fresh outputs.

That they run, and print what is committed, is for `make notebooks-check`.
"""
from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

notebooks = pytest.importorskip('workspace_lib.tools.notebooks', reason='extra lab is not installed',
                                exc_type=ImportError)

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / 'notebooks').glob('[0-9]*.py'))
ENGLISH = [script for script in SCRIPTS if '.' not in script.stem]
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)


def parametrized(scripts):
    return pytest.mark.parametrize('script', scripts, ids=lambda path: path.stem)


def cells(script: Path, kind: str) -> list:
    return [cell for cell in notebooks.read_script(script).cells if cell.cell_type == kind]


def text(script: Path) -> str:
    return '\n\n'.join(cell.source for cell in cells(script, 'markdown'))


def launch_entries() -> set[str]:
    return set(re.findall(r'"name": "([^"]+)"', (ROOT / '.vscode' / 'launch.json').read_text()))


@parametrized(SCRIPTS)
def test_code_comes_in_few_short_cells(script):
    code = [cell.source for cell in cells(script, 'code')]
    assert 25 <= len(code) <= 45
    assert statistics.median(sum(bool(line.strip()) for line in source.splitlines()) for source in code) <= 4


@parametrized(ENGLISH)
def test_there_is_enough_to_read_and_not_too_much(script):
    assert 900 <= len(FENCED.sub('', text(script)).split()) <= 1800


@parametrized(ENGLISH)
def test_the_opening_says_what_is_asked_and_what_it_takes(script):
    opening = cells(script, 'markdown')[0].source
    assert opening.startswith('# ') and re.search(r'\*\*[^*]+\?\*\*', opening)
    assert '**Time**' in opening and '**Needs**' in opening and '*You are here*' in opening and '→' in opening


@parametrized(SCRIPTS)
def test_one_diagram_that_can_be_read_aloud(script):
    diagrams = [code for language, code in FENCED.findall(text(script)) if language == 'mermaid']
    assert len(diagrams) == 1 and 'accTitle:' in diagrams[0] and 'accDescr' in diagrams[0]


@parametrized(ENGLISH)
def test_predictions_are_asked_for_and_explanations_asserted(script):
    numbered = re.findall(r'^## \d', text(script), re.M)
    asserting = [cell for cell in cells(script, 'code') if 'assert ' in cell.source]
    assert len(re.findall(r'\*\*Predict\*\*', text(script))) >= 5
    assert len(asserting) >= max(5, len(numbered))


@parametrized(ENGLISH)
def test_three_exercises_with_folded_solutions(script):
    asked = re.findall(r'\*\*([123])\. (Modify|Break|Extend)\.\*\*', text(script))
    assert [number for number, _ in asked] == ['1', '2', '3'] and len({kind for _, kind in asked}) == 3
    solutions = [cell for cell in cells(script, 'code') if 'solution' in cell.metadata.get('tags', [])]
    assert len(solutions) >= 3 and all(cell.metadata['jupyter'] == {'source_hidden': True} for cell in solutions)


@parametrized(SCRIPTS)
def test_at_most_three_cells_print_what_varies(script):
    assert sum(notebooks.VARIES in cell.metadata.get('tags', []) for cell in cells(script, 'code')) <= 3


@parametrized(ENGLISH)
def test_the_way_with_a_debugger_leads_to_places_that_exist(script):
    way = text(script).partition('## The same way with a debugger')[2]
    assert set(re.findall(r'launch\s+entry\s+\*\*([^*]+)\*\*', way)) & launch_entries()
    stops = re.findall(r'^\d\. `([\w.]+)` in (?:`(workspace_lib/[\w/]+\.py)`|the same file)', way, re.M)
    assert len(stops) == 3
    for number, (name, path) in enumerate(stops):
        path = path or stops[number - 1][1]
        source = (ROOT / path).read_text()
        parts = name.removeprefix(f'{Path(path).stem}.').split('.')
        assert all(re.search(rf'\b(def|class) {part}\b', source) for part in parts), (name, path)


@parametrized(ENGLISH[:-1])
def test_it_leads_on_to_the_next(script):
    following = ENGLISH[ENGLISH.index(script) + 1].stem
    assert following in cells(script, 'markdown')[-1].source


# --- what is committed beside each script ---------------------------------------------------------


@parametrized(SCRIPTS)
def test_the_notebook_is_that_of_the_script_ran_from_top_to_bottom_and_fits_a_page(script):
    file = script.with_suffix('.ipynb')
    committed = notebooks.nbformat.read(file, as_version=4)
    assert notebooks.sources(committed) == notebooks.sources(notebooks.read_script(script))
    assert file.stat().st_size <= notebooks.MAX_BYTES
    code = [cell for cell in committed.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]


@parametrized(SCRIPTS)
def test_no_cell_ended_in_an_error(script):
    for cell in json.loads(script.with_suffix('.ipynb').read_text())['cells']:
        assert all(output['output_type'] != 'error' for output in cell.get('outputs', []))


@parametrized(SCRIPTS)
def test_no_output_tells_in_which_folder_of_which_machine_it_came_about(script):
    path = re.compile(r'(?<![\w.~-])/[\w./-]+/(?:workspace_lib|site-packages)/')
    for cell in json.loads(script.with_suffix('.ipynb').read_text())['cells']:
        assert not path.findall(json.dumps(cell.get('outputs', [])).replace(r'\n', ' '))


# --- the ten questions ----------------------------------------------------------------------------


def questions() -> list[tuple[str, str, str, str, str]]:
    """(number, notebook and heading as they are read, file, fragment, what is in the cell)."""
    row = re.compile(r'^\| (\d+) \| [^|]+\? \| \[([^\]]+)\]\((\w+\.ipynb)#([^)]+)\) \| `(.+)` \|$', re.M)
    return row.findall((ROOT / 'notebooks' / 'README.md').read_text())


def test_there_are_ten_questions_from_all_steps_of_the_study_plan():
    assert [number for number, *_ in questions()] == [str(number) for number in range(1, 11)]
    answered = {file[:2] for _, _, file, _, _ in questions()}
    assert {'02', '03', '06', '07', '08', '09', '10'} <= answered and answered & {'04', '05'}


@pytest.mark.parametrize('question', questions(), ids=lambda question: question[0])
def test_each_answer_is_in_one_cell_of_its_section(question):
    _, shown, file, fragment, words = question
    name, _, heading = shown.partition(': ')
    assert file == f'{name}.ipynb' and fragment == heading.replace(' ', '-')
    under = section(ROOT / 'notebooks' / f'{name}.py', heading)
    assert under, f'no heading {heading!r} in {name}'
    assert len([source for source in under if words in source]) == 1, under


def section(script: Path, heading: str) -> list[str]:
    """The texts of the cells under a heading; of a Markdown cell with several headings, the part that belongs there."""
    found, inside = [], False
    for cell in notebooks.read_script(script).cells:
        if cell.cell_type == 'code':
            found += [cell.source] * inside
            continue
        for part in re.split(r'^(?=## )', cell.source, flags=re.M):
            inside = part.startswith(f'## {heading}\n') if part.startswith('## ') else inside
            found += [part] * inside
    return found


def test_the_table_of_notebooks_is_complete():
    listed = re.findall(r'^\| \[(\w+)\]\(\1\.ipynb\)', (ROOT / 'notebooks' / 'README.md').read_text(), re.M)
    assert listed == [script.stem for script in ENGLISH]
