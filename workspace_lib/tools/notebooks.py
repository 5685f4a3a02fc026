"""Notebooks from scripts: ``python -m workspace_lib.tools.notebooks [--check]``.

In: ``notebooks/*.py`` in percent format, the only thing a person edits. Out: the executed ``.ipynb`` beside
each, without anything that differs from run to run; with ``--check``, only a verdict on those that are there.
"""
from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

CHECKOUT = Path(__file__).resolve().parents[2]
MAX_BYTES = 300_000  # what a web page still shows at once
CELL_SECONDS = 300
# A cell tagged so prints times, speeds or paths; its output is shown but not compared.
VARIES = 'varies'
WIDGET = 'application/vnd.jupyter.widget-view+json'


class NotebookError(Exception):
    """What is wrong with a notebook, in words for its author."""


def read_script(script: Path) -> Any:
    """Parse a percent-format script into a notebook, with nothing in it that depends on when or where."""
    notebook = jupytext.read(script, fmt='py:percent')
    for number, cell in enumerate(notebook.cells):
        cell.id = f'cell-{number:02d}'
    # No pairing entry: saving the notebook in the lab must not rewrite the script under version control.
    notebook.metadata = nbformat.from_dict({
        'kernelspec': {'name': 'python3', 'display_name': 'Python 3 (ipykernel)', 'language': 'python'},
        'language_info': {'name': 'python', 'file_extension': '.py', 'mimetype': 'text/x-python',
                          'pygments_lexer': 'ipython3'}})
    return notebook


def execute(notebook: Any, folder: Path) -> None:
    """Run every cell in place, with the Python that runs this and ``folder`` as the working directory.

    Raises:
        NotebookError: a cell raised an exception that it does not announce (tag ``raises-exception``), took longer
            than `CELL_SECONDS`, or ended its kernel.
    """
    # The kernel imports the library that stands beside the notebooks, and not what else is installed.
    path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get('PYTHONPATH')])])
    # No folder of kernel specifications: a "python3" that belongs to another installation cannot come in.
    # The asynchronous manager: the client of the other one blocks the loop in which nbclient counts the seconds of a
    # cell and looks whether the kernel lives, so that a kernel that died would be waited for without end.
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), kernel_name='python3')
    client = NotebookClient(notebook, km=manager, timeout=CELL_SECONDS, record_timing=False,
                            coalesce_streams=True, store_widget_state=False, extra_arguments=['--log-level=40'],
                            shutdown_kernel='immediate', resources={'metadata': {'path': str(folder)}})
    try:
        client.execute(cleanup_kc=True, env={**os.environ, 'PYTHONPATH': path})
    except CellExecutionError as error:
        raise NotebookError(f'a cell failed:\n{strip_escapes(str(error))}') from None
    except CellTimeoutError:
        raise NotebookError(f'{last_cell(client)} took longer than {CELL_SECONDS} s') from None
    except RuntimeError as error:
        raise NotebookError(f'{last_cell(client)} ended the kernel: {error}') from None
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)
        for output in cell.get('outputs', []):
            clean_output(output, folder.parent)
    number_widgets(notebook)


def last_cell(client: NotebookClient) -> str:
    """The code cell that ran last, counted from 1, and how it begins."""
    code = [cell for cell in client.nb.cells if cell.cell_type == 'code' and cell.source.strip()]
    number = client.code_cells_executed
    return f'code cell {number} ({code[number - 1].source.splitlines()[0]})' if number else 'the start'


def clean_output(output: Any, root: Path) -> None:
    """Take out what says on which machine a cell ran, and progress bars' earlier states."""
    if 'text' in output:
        output['text'] = last_states(without_paths(output['text'], root))
    for kind, value in output.get('data', {}).items():
        if kind.startswith('text/') and isinstance(value, str):
            output['data'][kind] = without_paths(value, root)
    if 'traceback' in output:
        output['traceback'] = [without_paths(line, root) for line in output['traceback']]


def number_widgets(notebook: Any) -> None:
    """Numbers in the order of the cells for widgets' random names, which mean nothing without the kernel's state."""
    numbers: dict[str, str] = {}
    for cell in notebook.cells:
        for output in cell.get('outputs', []):
            if widget := output.get('data', {}).get(WIDGET):
                widget['model_id'] = numbers.setdefault(widget['model_id'], f'{len(numbers):032x}')


def without_paths(text: str, root: Path) -> str:
    ours = (f'{root}{os.sep}', ''), (sys.prefix, '.venv'), (str(root), '.'), (str(Path.home()), '~')
    for folder, name in ours:
        text = text.replace(folder, name) if len(folder) > 1 else text
    return re.sub(r'/tmp/ipykernel_\d+/\d+\.py', '<cell>', text)


def last_states(text: str) -> str:
    """A line that was written over with carriage returns, as it looked at the end."""
    return '\n'.join(line.rstrip('\r').rpartition('\r')[2] for line in text.split('\n'))


def strip_escapes(text: str) -> str:
    return re.sub(r'\x1b\[[0-9;]*m', '', text)


# --- comparing ------------------------------------------------------------------------------------


def visible_text(cell: Any) -> list[str]:
    """The lines a reader sees under a code cell: stdout, plain values, kind and message of an error.

    Pictures, HTML and stderr (progress, warnings) are left out; addresses of objects are made equal.
    """
    if cell.cell_type != 'code' or VARIES in cell.metadata.get('tags', []):
        return []
    parts = []
    for output in cell.outputs:
        if output.output_type == 'stream' and output.name == 'stdout':
            parts.append(output.text)
        elif output.output_type == 'error':
            parts.append(f'{output.ename}: {output.evalue}')
        elif 'data' in output:
            parts.append(output.data.get('text/plain', ''))
    return re.sub(r'0x[0-9a-f]{6,}', '0x...', '\n'.join(parts)).splitlines()


def sources(notebook: Any) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source, cell.metadata.get('tags', [])) for cell in notebook.cells]


def compare(committed: Any, fresh: Any) -> None:
    """Raise NotebookError at the first cell whose source or visible text differs."""
    if sources(committed) != sources(fresh):
        raise NotebookError('its cells are not those of the script; write it anew: make notebooks')
    for number, (old, new) in enumerate(zip(committed.cells, fresh.cells, strict=True)):
        before, after = visible_text(old), visible_text(new)
        if before != after:
            lines = list(difflib.unified_diff(before, after, 'committed', 'this run', lineterm='', n=1))
            raise NotebookError(f'cell {number} prints something else (tag it "{VARIES}" if it may):\n'
                                f'    {old.source.splitlines()[0]}\n' + '\n'.join(lines[:30]))


# --- command line ---------------------------------------------------------------------------------


def process(script: Path, check: bool) -> str:
    """Run one script as a notebook; write it, or compare it with what is there. Returns what to print."""
    target = script.with_suffix('.ipynb')
    if check and not target.exists():
        raise NotebookError(f'{target.name} is missing; write it: make notebooks')
    notebook = read_script(script)
    if check:
        committed = read_committed(target)
        if sources(committed) != sources(notebook):  # before the minute that a run takes
            compare(committed, notebook)
    begin = time.monotonic()
    execute(notebook, script.parent)
    seconds = time.monotonic() - begin
    text = nbformat.writes(notebook) + '\n'
    size = len(text.encode())
    if size > MAX_BYTES:
        raise NotebookError(f'{size // 1000} KB with its outputs, more than {MAX_BYTES // 1000}: '
                            'smaller figures, fewer of them, or fewer printed lines')
    if check:
        compare(committed, notebook)
    else:
        write_whole(target, text)
    return f'{len(notebook.cells)} cells, {size // 1000} KB, {seconds:.0f} s'


def read_committed(target: Path) -> Any:
    """Raises NotebookError where the file is no notebook."""
    try:
        notebook = nbformat.read(target, as_version=4)
        nbformat.validate(notebook)
    except OSError:
        raise
    except Exception as error:  # of many kinds, by what is wrong in the file
        raise NotebookError(f'{target.name} cannot be read ({type(error).__name__}: {str(error)[:100]}); '
                            'write it anew: make notebooks') from None
    return notebook


def write_whole(file: Path, text: str) -> None:
    """The old notebook stays until the new one is complete."""
    json.loads(text)
    temporary = file.with_name(f'.{file.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(file)


def named(word: str, folder: Path) -> Path:
    """The script at that path, or of that name: `02_config` is `folder/02_config.py`."""
    return Path(word) if word.endswith('.py') else folder / f'{word}.py'


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when every notebook ran (and, with ``--check``, equals what is committed), else 1."""
    parser = argparse.ArgumentParser(prog='python -m workspace_lib.tools.notebooks',
                                     description='Run notebooks/*.py and write the .ipynb files beside them.')
    parser.add_argument('scripts', nargs='*', help='some of them, as names or paths: 02_config (all)')
    parser.add_argument('--folder', type=Path, default=CHECKOUT / 'notebooks')
    parser.add_argument('--check', action='store_true', help='write nothing; fail if an output differs')
    parser.add_argument('--jobs', type=int, default=1, help='so many at a time (1)')
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: at least 1')
    scripts = [named(word, args.folder) for word in args.scripts] or sorted(args.folder.glob('[0-9]*.py'))
    if not scripts:
        print(f'FAILED: no notebooks in {args.folder}: there is no [0-9]*.py')
        return 1
    passed = True
    with ThreadPoolExecutor(args.jobs) as pool:  # the work is done by the kernels, processes of their own
        for script, (good, said) in zip(scripts, pool.map(partial(attempt, check=args.check), scripts), strict=True):
            print(f'{script.stem}: {said}', flush=True)
            passed &= good
    return 0 if passed else 1


def attempt(script: Path, check: bool) -> tuple[bool, str]:
    """(did `process` succeed, what to print)."""
    try:
        return True, process(script.resolve(), check)
    except (NotebookError, OSError) as error:
        return False, f'FAILED: {error}'


if __name__ == '__main__':
    sys.exit(main())
