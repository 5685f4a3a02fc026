"""What was built, from which line, in which order: the trace and its two pictures."""
from __future__ import annotations

import html.parser
import re
import threading
from pathlib import Path

import pytest
import torch

from workspace_lib.registry import Registry
from workspace_lib.tools.build_tree import BuildTree, trace_builds
from workspace_lib.trace import shown

PARTS = Registry('part')


@PARTS.register_module()
class Leaf(torch.nn.Linear):
    def __init__(self, features, label=''):
        super().__init__(features, 1)


@PARTS.register_module()
class Tree(torch.nn.Module):
    def __init__(self, parts, extra=None):
        super().__init__()
        self.parts = torch.nn.ModuleList(PARTS.build(part) for part in parts)
        parts.clear()  # as constructors do that pop from what they are given


@PARTS.register_module()
def broken():
    raise ValueError('no luck')


@pytest.fixture
def trace():
    leaf = dict(type='Leaf', features=999)
    with trace_builds() as trace:
        PARTS.build(dict(type='Tree', parts=[
            dict(type='Tree', parts=[leaf, leaf]), dict(leaf, label='<b>&"')]))
        PARTS.build(leaf)
    return trace


def test_records_are_in_the_order_in_which_builds_began(trace):
    assert [(r.type, r.depth) for r in trace.records] == [
        ('Tree', 0), ('Tree', 1), ('Leaf', 2), ('Leaf', 2), ('Leaf', 1), ('Leaf', 0)]


def test_a_record_names_registry_class_and_source_line(trace):
    record = trace.records[2]
    assert (record.registry, record.cls) == ('part', f'{__name__}.Leaf')
    lines = Path(__file__).read_text().splitlines()
    assert record.file == __file__ and 'class Leaf' in ' '.join(lines[record.line - 1:record.line + 1])


def test_a_record_keeps_the_arguments_as_they_were_given(trace):
    leaf = dict(type='Leaf', features=999)
    assert trace.records[1].args == dict(parts=[leaf, leaf])


def test_parameters_are_counted_for_models_only(trace):
    assert [r.parameters for r in trace.records] == [3000, 2000, 1000, 1000, 1000, 1000]
    with trace_builds() as other:
        Registry('r').build(dict(type=dict, a=1))
    assert other.records[0].parameters is None


def test_time_includes_the_parts(trace):
    whole, *parts = (r.seconds for r in trace.records[:5])
    assert whole >= parts[0] + parts[3] > 0


def test_an_inner_trace_sees_its_builds_from_its_own_depth():
    with trace_builds() as outer:
        PARTS.build(dict(type='Leaf', features=1))
        with trace_builds() as inner:
            PARTS.build(dict(type='Leaf', features=2))
    PARTS.build(dict(type='Leaf', features=3))
    assert [r.args['features'] for r in outer.records] == [1, 2]
    assert [(r.args['features'], r.depth) for r in inner.records] == [(2, 0)]


def test_a_failed_build_is_recorded_with_its_error():
    with pytest.raises(ValueError, match='no luck'), trace_builds() as trace:
        PARTS.build(dict(type='Tree', parts=[dict(type='broken')]))
    assert [r.error for r in trace.records] == ['ValueError: no luck'] * 2
    assert str(BuildTree(trace)).count('FAILED ValueError: no luck') == 2
    with trace_builds() as later:
        PARTS.build(dict(type='Leaf', features=1))
    assert later.records[0].depth == 0


def test_another_thread_is_not_recorded():
    with trace_builds() as trace:
        thread = threading.Thread(target=PARTS.build, args=(dict(type='Leaf', features=1),))
        thread.start()
        thread.join()
    assert trace.records == []


def test_the_tree_in_text(trace, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    steady = re.sub(r':\d+|[\d.]+ ms', '', str(BuildTree(trace)))
    assert [re.sub(r' +', ' ', line).rstrip() for line in steady.splitlines()] == [
        'Tree part test_trace.py 3,000',
        '├─ Tree part test_trace.py 2,000',
        '│ ├─ Leaf part test_trace.py 1,000',
        '│ └─ Leaf part test_trace.py 1,000',
        '└─ Leaf part test_trace.py 1,000',
        'Leaf part test_trace.py 1,000',
    ]


def test_a_notebook_cell_has_a_steady_name():
    assert shown(('/tmp/ipykernel_4711/123.py', 3)) == 'notebook cell:3'


def test_an_empty_trace_says_so():
    with trace_builds() as trace:
        pass
    assert str(BuildTree(trace)) == BuildTree(trace)._repr_html_() == 'no builds'


class Outline(html.parser.HTMLParser):
    """Checks that every tag is closed in order, and collects the text of the summaries by depth."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.summaries: list[tuple[int, str]] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] == ['summary', 'b']:
            self.summaries.append((self.open.count('details') - 1, data))


def test_the_tree_in_html_is_nested_and_escaped(trace):
    outline = Outline()
    outline.feed(BuildTree(trace)._repr_html_())
    assert outline.open == []
    assert outline.summaries == [(r.depth, r.type) for r in trace.records]
    assert '<b>&"' not in BuildTree(trace)._repr_html_() and '&lt;b&gt;&amp;&quot;' in BuildTree(trace)._repr_html_()
