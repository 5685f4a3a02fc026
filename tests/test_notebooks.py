"""Scripts become executed notebooks, the same on every machine; a stale or changed one is found."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

notebooks = pytest.importorskip('workspace_lib.tools.notebooks', reason='extra lab is not installed',
                                exc_type=ImportError)

SCRIPT = '''# %% [markdown]
# # Title

# %%
print('six:', 6)
import sys; sys.stderr.write('noise')
from pathlib import Path; Path.cwd()

# %% tags=["varies"]
import time; time.time()

# %% tags=["raises-exception"]
1 / 0

# %%
import ipywidgets
slider = ipywidgets.IntSlider()
slider

# %%
ipywidgets.HBox([slider])

# %%
slider
'''


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('checkout') / 'notebooks'
    folder.mkdir()
    (folder / '00_a.py').write_text(SCRIPT)
    assert notebooks.main(['--folder', str(folder)]) == 0
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy to spoil, in a checkout of another place."""
    copy = tmp_path / 'notebooks'
    copy.mkdir()
    for file in written.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_writing_twice_gives_the_same_but_for_cells_that_vary(written, folder):
    assert notebooks.main(['--folder', str(folder)]) == 0
    first, second = (json.loads((f / '00_a.ipynb').read_text()) for f in (written, folder))
    del first['cells'][2]['outputs'], second['cells'][2]['outputs']
    assert first == second


def test_widgets_are_numbered_by_their_order_so_that_a_new_run_changes_no_line(written):
    """A page finds the pictures of a widget by its number in the kernel, which a saved notebook does not have."""
    cells = json.loads((written / '00_a.ipynb').read_text())['cells'][-3:]
    slider, box, again = (cell['outputs'][0]['data'][notebooks.WIDGET]['model_id'] for cell in cells)
    assert slider == again == f'{0:032x}' and box == f'{1:032x}'


def test_notebooks_are_named_with_or_without_their_ending(folder, capsys):
    (folder / '01_b.ko.py').write_text('# %%\nprint(1)\n')
    for name in ('01_b.ko', str(folder / '01_b.ko.py')):
        assert notebooks.main(['--folder', str(folder), name]) == 0
    assert (folder / '01_b.ko.ipynb').exists() and capsys.readouterr().out.count('01_b.ko: 1 cells') == 2
    assert notebooks.main(['--folder', str(folder), '02_c']) == 1
    assert '02_c.py' in capsys.readouterr().out


def test_no_path_of_this_machine_is_in_it(written):
    text = (written / '00_a.ipynb').read_text()
    assert str(written.parent) not in text and str(Path.home()) not in text


def test_the_library_is_the_one_that_stands_beside_the_notebooks(folder, tmp_path, monkeypatch):
    (tmp_path / 'workspace_lib').mkdir()
    (tmp_path / 'workspace_lib' / '__init__.py').write_text('')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    (folder / '01_b.py').write_text('# %%\nimport workspace_lib; workspace_lib.__file__\n')
    assert notebooks.main(['--folder', str(folder), '01_b']) == 0
    output = json.loads((folder / '01_b.ipynb').read_text())['cells'][0]['outputs'][0]
    assert ''.join(output['data']['text/plain']) == repr(str(notebooks.CHECKOUT / 'workspace_lib' / '__init__.py'))


def test_check_passes_on_a_fresh_one_and_writes_nothing(folder):
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert notebooks.main(['--folder', str(folder), '--check']) == 0
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_check_finds_a_notebook_older_than_its_script(folder, capsys):
    (folder / '00_a.py').write_text(SCRIPT.replace("'six:', 6", "'seven:', 7"))
    assert notebooks.main(['--folder', str(folder), '--check']) == 1
    assert 'make notebooks' in capsys.readouterr().out


def test_check_finds_an_output_that_changed(folder, capsys):
    target = folder / '00_a.ipynb'
    target.write_text(target.read_text().replace('six: 6\\n', 'six: 5\\n'))
    assert notebooks.main(['--folder', str(folder), '--check']) == 1
    said = capsys.readouterr().out
    assert '-six: 5' in said and '+six: 6' in said


def test_check_finds_a_missing_notebook(folder, capsys):
    (folder / '00_a.ipynb').unlink()
    assert notebooks.main(['--folder', str(folder), '--check']) == 1
    assert 'missing' in capsys.readouterr().out


def test_cell_that_fails_leaves_the_old_notebook(folder, capsys):
    before = (folder / '00_a.ipynb').read_bytes()
    (folder / '00_a.py').write_text("# %%\nraise ValueError('on purpose')\n")
    assert notebooks.main(['--folder', str(folder)]) == 1
    assert 'on purpose' in capsys.readouterr().out
    assert (folder / '00_a.ipynb').read_bytes() == before


def test_two_at_a_time_are_told_in_order_and_the_failed_one_counts(folder, capsys):
    (folder / '01_b.py').write_text('# %%\nimport os; os.getpid() / 0\n')
    (folder / '02_c.py').write_text('# %%\nprint(1)\n')
    assert notebooks.main(['--folder', str(folder), '--jobs', '2', '01_b', '02_c']) == 1
    said = capsys.readouterr().out
    assert said.index('01_b: FAILED') < said.index('02_c: 1 cells') and 'ZeroDivisionError' in said
    assert (folder / '02_c.ipynb').exists() and not (folder / '01_b.ipynb').exists()


def test_notebook_too_large_for_the_web_is_refused(folder, capsys):
    (folder / '00_a.py').write_text("# %%\nprint(('x' * 80 + '\\n') * 5000)\n")
    assert notebooks.main(['--folder', str(folder)]) == 1
    assert '300' in capsys.readouterr().out


def test_the_size_is_that_of_the_file_not_of_its_characters(folder, capsys):
    (folder / '00_a.py').write_text("# %%\nprint(('\u00e4' * 80 + '\\n') * 2500)\n", encoding='utf-8')
    assert notebooks.main(['--folder', str(folder)]) == 1
    assert 'more than 300' in capsys.readouterr().out


@pytest.mark.timeout(60)
@pytest.mark.parametrize('jobs', ['1', '2'])
def test_a_kernel_that_dies_is_named_with_its_cell(folder, capsys, jobs):
    (folder / '00_a.py').write_text('# %%\nprint(1)\n\n# %%\nimport os; os._exit(3)\n')
    assert notebooks.main(['--folder', str(folder), '--jobs', jobs]) == 1
    assert '00_a: FAILED: code cell 2 (import os; os._exit(3)) ended the kernel' in capsys.readouterr().out


@pytest.mark.timeout(60)
def test_a_cell_over_its_limit_is_named_and_its_kernel_ends(folder, monkeypatch):
    monkeypatch.setattr(notebooks, 'CELL_SECONDS', 2)
    (folder / '00_a.py').write_text('# %%\nfrom pathlib import Path; import os, time\n'
                                    "Path('pid').write_text(str(os.getpid())); time.sleep(600)\n")
    with pytest.raises(notebooks.NotebookError, match=r'code cell 1 \(from pathlib .* took longer than 2 s'):
        notebooks.process(folder / '00_a.py', check=False)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / 'pid').read_text()), 0)


@pytest.mark.parametrize('text', ['', '{}', '{"nbformat": 4', '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}'])
def test_check_says_that_a_notebook_cannot_be_read(folder, capsys, text):
    (folder / '00_a.ipynb').write_text(text)
    assert notebooks.main(['--folder', str(folder), '--check']) == 1
    assert '00_a: FAILED: 00_a.ipynb cannot be read' in capsys.readouterr().out


def test_a_folder_without_notebooks_fails(tmp_path, capsys):
    assert notebooks.main(['--folder', str(tmp_path), '--check']) == 1
    assert f'no notebooks in {tmp_path}' in capsys.readouterr().out


def test_no_notebook_at_a_time_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        notebooks.main(['--folder', str(folder), '--jobs', '0'])
    assert '--jobs 0: at least 1' in capsys.readouterr().err


def test_progress_bars_keep_their_last_state():
    assert notebooks.last_states(' 10%\r 50%\r100%\nnext\r\n') == '100%\nnext\n'
