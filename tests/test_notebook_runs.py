"""The notebooks of the first six steps run from top to bottom, their assertions with them.

All of them, and whether they print what is committed: `make notebooks-check`.
"""
from __future__ import annotations

from pathlib import Path

import pytest

notebooks = pytest.importorskip('workspace_lib.tools.notebooks', reason='extra lab is not installed',
                                exc_type=ImportError)
FOLDER = Path(__file__).parents[1] / 'notebooks'
SCRIPTS = [script for number in ('00', '02', '03', '04', '05', '06') for script in sorted(FOLDER.glob(f'{number}_*.py'))
           if '.' not in script.stem]


@pytest.mark.timeout(300)
@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_runs(script):
    notebook = notebooks.read_script(script)
    notebooks.execute(notebook, FOLDER)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert len(code) >= 25
