"""A headless Chromium opens the printed URL, runs every notebook through and moves the widgets: ``make test-browser``.

LAB_URL names a lab that runs already; without it one is started on a copy of the notebooks.
SCREENSHOTS names a folder for pictures of what the browser showed.
"""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workspace_lib.tools.lab import CHECKOUT, Lab

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed (extra: test)')
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-quic',
         '--no-first-run', '--disable-component-update', '--disable-sync']
NOTEBOOKS = sorted(path.name for path in (CHECKOUT / 'notebooks').glob('[0-9]*.ipynb'))
COPY = 'browser_check_'  # what is run: copies without outputs, so that old ones prove nothing
RUN_SECONDS = 300
AT_ONCE = 2  # one is looked at while the next one runs
IN_FRONT = '.jp-NotebookPanel:not(.lm-mod-hidden)'  # the tabs of an earlier visit are there too, hidden
IDLE = f'{IN_FRONT} .jp-Notebook-ExecutionIndicator[data-status="idle"]'
TINY = """{"nbformat": 4, "nbformat_minor": 5,
 "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
 "cells": [{"cell_type": "code", "id": "a", "metadata": {}, "execution_count": null, "outputs": [],
            "source": "import workspace_lib\\nworkspace_lib.__version__"}]}"""


class Server:
    """The lab's own interface, for what a test needs to put there or look up."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urllib.parse.urlsplit(url)
        self.base = f'{parts.scheme}://{parts.netloc}'
        self.token = urllib.parse.parse_qs(parts.query)['token'][0]
        self.notebook = urllib.parse.unquote(parts.path.partition('/lab/tree/')[2])
        assert self.notebook, 'the URL opens no notebook; write one first: make notebooks'

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f'{self.base}/{urllib.parse.quote(path)}', method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={'Authorization': f'token {self.token}', 'Content-Type': 'application/json'})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.loads(answer.read() or b'null')


@pytest.fixture(scope='module')
def server(tmp_path_factory) -> Iterator[Server]:
    if url := os.environ.get('LAB_URL'):
        yield Server(url)
        return
    lab = Lab(checkout_with_copied_notebooks(tmp_path_factory.mktemp('lab')))
    try:
        yield Server(lab.up(device='cpu'))
    finally:
        lab.down()


def checkout_with_copied_notebooks(root: Path) -> Path:
    """The checkout as the notebooks see it, by links; what they are saved to is a copy."""
    for entry in CHECKOUT.iterdir():
        if not entry.name.startswith('.') and entry.name not in ('notebooks', 'work_dirs'):
            (root / entry.name).symlink_to(entry)
    (root / 'notebooks').mkdir()
    for entry in (CHECKOUT / 'notebooks').glob('*.ipynb'):
        shutil.copy(entry, root / 'notebooks')
    if not list((root / 'notebooks').glob('*.ipynb')):
        (root / 'notebooks' / '00_tiny.ipynb').write_text(TINY)
    return root


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    program = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    assert program, 'no Chromium on the PATH; on Debian and Ubuntu: sudo apt-get install -y chromium'
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS, headless=True)
        yield running
        running.close()


@pytest.fixture
def page(browser) -> Iterator[Any]:
    """A tab of a new visitor. A script error on the page fails the test."""
    context = browser.new_context(viewport={'width': 1440, 'height': 1000})
    tab = context.new_page()
    errors: list[str] = []
    tab.on('pageerror', lambda error: errors.append(str(error)))
    yield tab
    context.close()
    assert not errors


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get('SCREENSHOTS'):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f'{name}.png'))


def open_notebook(server: Server, page: Any, path: str, url: str) -> None:
    """Open the URL and wait until the notebook is drawn, in front, and its kernel waits for work."""
    page.goto(url)
    page.wait_for_selector(f'{IN_FRONT} .jp-Cell', timeout=90_000)
    page.wait_for_selector(f'.lm-mod-current .lm-TabBar-tabLabel:text-is("{Path(path).name}")', timeout=30_000)
    end = time.monotonic() + 90
    while kernel_state(server, path) != 'idle' or not page.locator(IDLE).count():
        assert time.monotonic() < end, f'the kernel of {path} is {kernel_state(server, path)} after 90 s'
        page.wait_for_timeout(200)


def kernel_state(server: Server, path: str) -> str:
    states = [s['kernel']['execution_state'] for s in server.call('GET', 'api/sessions') if s['path'] == path]
    return states[0] if states else 'not started'


def test_wrong_token_leads_to_the_login_page(server, page):
    page.goto(f'{server.base}/lab?token=wrong')
    assert urllib.parse.urlsplit(page.url).path == '/login'
    assert page.get_by_text('Token authentication is enabled').count() == 1
    screenshot(page, '1_wrong_token')


def test_printed_url_opens_the_notebook_undisturbed(server, page):
    """Offline: no news, no update notice, no dialog, no error message over the notebook."""
    open_notebook(server, page, server.notebook, server.url)
    assert page.locator('.lm-TabBar-tabLabel', has_text=Path(server.notebook).name).count() == 1
    page.wait_for_timeout(3000)
    assert page.locator('.jp-Dialog').count() == 0
    assert page.locator('.jp-toastContainer .Toastify__toast').all_inner_texts() == []
    screenshot(page, '2_opened')


# --- every notebook ---------------------------------------------------------------------------------


class Visits:
    """Each notebook as a copy in a tab and a workspace of its own. The next one is started before one is waited for."""

    def __init__(self, server: Server, browser: Any) -> None:
        self.server = server
        self.visitor = browser.new_context(viewport={'width': 1440, 'height': 1000})  # one: its cache holds the scripts
        self.folder = Path(server.notebook).parent
        self.pages: dict[str, Any] = {}
        self.script_errors: dict[str, list[str]] = {}

    def run(self, name: str) -> tuple[Any, list[dict]]:
        """(page, code cells) of a notebook after *Run All Cells*."""
        place = NOTEBOOKS.index(name)
        for upcoming in NOTEBOOKS[place:place + AT_ONCE]:
            if upcoming not in self.pages:
                self._start(upcoming)
        return self.pages[name], run_through(self.server, self.pages[name], self._copy(name))

    def _copy(self, name: str) -> str:
        return str(self.folder / f'{COPY}{name}')

    @staticmethod
    def _workspace(name: str) -> str:
        """One of its own: no tab opens what another has open. A name with a dot would lead to the front page."""
        return f'{COPY}{Path(name).stem}'.replace('.', '_')

    def _start(self, name: str) -> None:
        copy, errors = self._copy(name), self.script_errors.setdefault(name, [])
        notebook = self.server.call('GET', f'api/contents/{self.folder / name}')['content']
        for cell in notebook['cells']:
            if cell['cell_type'] == 'code':
                cell.update(outputs=[], execution_count=None)
        self.server.call('PUT', f'api/contents/{copy}', {'type': 'notebook', 'format': 'json', 'content': notebook})
        page = self.pages[name] = self.visitor.new_page()
        page.on('pageerror', lambda error: errors.append(str(error)))
        url = f'{self.server.base}/lab/workspaces/{self._workspace(name)}/tree/{urllib.parse.quote(copy)}'
        open_notebook(self.server, page, copy, f'{url}?token={self.server.token}')
        page.locator('.lm-MenuBar-itemLabel', has_text='Run').first.click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()

    def end(self, name: str) -> None:
        """Leave nothing of it: tab, kernel, copy, workspace."""
        copy = self._copy(name)
        if page := self.pages.get(name):
            page.close()
        for session in self.server.call('GET', 'api/sessions'):
            if session['path'] == copy:
                self.server.call('DELETE', f'api/sessions/{session["id"]}')
        for path in (f'api/contents/{copy}', f'lab/api/workspaces/{self._workspace(name)}'):
            with contextlib.suppress(urllib.error.HTTPError):  # it was never made
                self.server.call('DELETE', path)


@pytest.fixture(scope='module')
def visits(server, browser) -> Iterator[Visits]:
    made = Visits(server, browser)
    yield made
    for name in [*made.script_errors]:
        made.end(name)
    made.visitor.close()


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_every_notebook_runs_through(visits, name):
    """*Run All* leaves no error cell, the diagram is drawn, the widgets that are tried respond."""
    try:
        page, cells = visits.run(name)
        assert [c['source'] for c in cells if c['execution_count'] is None] == []
        assert error_outputs(cells) == []
        scroll_to(page, f'{IN_FRONT} .jp-RenderedMermaid figure img')  # a diagram that does not parse stays text
        if check := WIDGETS.get(Path(name).stem):
            check(page)
        screenshot(page, f'3_{Path(name).stem}')
        assert visits.script_errors[name] == []
    finally:
        visits.end(name)


def crop_slider(page: Any) -> None:
    """00: another size, another picture of the cat."""
    box = widget(page, '.widget-slider')
    screenshot(page, '3_run')
    changed_by(page, box, lambda: pressed(box.locator('.noUi-handle').first, 'ArrowRight', 3))
    screenshot(page, '4_widget')


def config_fields(page: Any) -> None:
    """02: a search finds keys with their files; an override says what it would change."""
    box = widget(page, 'input[placeholder^="lr, Resize"]')
    search, override = box.locator('input[type="text"]').all()
    changed_by(page, box, lambda: search.fill('momentum'), 'imagenet_bs256.py')
    changed_by(page, box, lambda: override.fill('optimizer.momentum=0.75'), '0.75')
    screenshot(page, '5_config_explorer')


def registry_fields(page: Any) -> None:
    """03: a search fills the menu; what is chosen there shows its source."""
    box = widget(page, 'input[placeholder^="ResNet, backbones"]')
    changed_by(page, box, lambda: box.locator('input[type="text"]').fill('vgg'), 'models/backbones/vgg.py')
    changed_by(page, box, lambda: box.locator('select').nth(1).select_option('VGG'), 'class VGG(')
    screenshot(page, '6_registry_browser')


def pipeline_sliders(page: Any) -> None:
    """04: another seed cuts another part out of the photograph; a smaller crop is a smaller picture."""
    box = widget(page, '.widget-slider')
    for label in ('seed', 'RandomResizedCrop.size'):
        handle = box.locator('.widget-slider', has_text=label).locator('.noUi-handle').first
        changed_by(page, box, lambda handle=handle: pressed(handle, 'ArrowRight', 2))
    screenshot(page, '7_pipeline_viewer')


def confusion_menus(page: Any) -> None:
    """05: other classes, other images."""
    box = widget(page, 'select')
    changed_by(page, box, lambda: box.locator('select').first.select_option(index=4))
    changed_by(page, box, lambda: box.locator('select').nth(1).select_option(index=9))
    screenshot(page, '8_confusion_explorer')


WIDGETS: dict[str, Callable[[Any], None]] = {
    '00_tour': crop_slider, '02_config': config_fields, '03_registry': registry_fields,
    '04_inference': pipeline_sliders, '05_test_loop': confusion_menus}


def widget(page: Any, control: str) -> Any:
    """The box that holds the first such control, in view."""
    scroll_to(page, f'{IN_FRONT} .jp-OutputArea {control}')
    return page.locator(f'{IN_FRONT} .jp-OutputArea-output', has=page.locator(control)).first


def changed_by(page: Any, box: Any, act: Callable[[], Any], words: str = '') -> None:
    """After `act`, what the box shows (its last HTML) is another, with these words in it."""
    shown = box.locator('.widget-html-content').last
    before, end = shown.inner_html(), time.monotonic() + 60
    act()
    while (now := shown.inner_html()) == before or words not in shown.inner_text():
        assert time.monotonic() < end, f'after 60 s the widget shows {"the same" if now == before else now[:300]}'
        page.wait_for_timeout(200)


def pressed(control: Any, key: str, times: int) -> None:
    control.focus()
    for _ in range(times):
        control.press(key)


def scroll_to(page: Any, selector: str) -> None:
    """Scroll down the notebook until it is in view: JupyterLab draws only the cells around that."""
    box = page.locator(f'{IN_FRONT} .jp-WindowedPanel-outer').first
    box.evaluate('element => { element.scrollTop = 0 }')
    for _ in range(200):
        page.wait_for_timeout(150)
        if page.locator(selector).count():
            for _ in range(3):  # what is drawn above it still pushes it about
                page.locator(selector).first.evaluate("element => element.scrollIntoView({block: 'center'})")
                page.wait_for_timeout(500)
            return
        box.evaluate('element => { element.scrollTop += 800 }')
    raise AssertionError(f'{selector} is nowhere in the notebook')


def run_through(server: Server, page: Any, path: str) -> list[dict]:
    """Save and look again until every code cell has run or one failed; return the code cells.

    The page itself tells too little: JupyterLab draws only the cells in view.
    """
    end = time.monotonic() + RUN_SECONDS
    while True:
        page.wait_for_timeout(2000)
        page.keyboard.press('Control+s')
        page.wait_for_timeout(1000)
        content = server.call('GET', f'api/contents/{path}')['content']
        cells = [c for c in content['cells'] if c['cell_type'] == 'code' and c['source'].strip()]
        idle = kernel_state(server, path) == 'idle'
        waiting = [c for c in cells if c['execution_count'] is None]
        if idle and (not waiting or error_outputs(cells)):
            return cells
        assert time.monotonic() < end, f'after {RUN_SECONDS} s {len(waiting)} of {len(cells)} cells wait'


def error_outputs(cells: list[dict]) -> list[dict]:
    return [output for cell in cells for output in cell['outputs'] if output['output_type'] == 'error']
