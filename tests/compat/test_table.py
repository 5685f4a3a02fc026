"""The table of families in the documentation was written from the committed records."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from table import BEGIN, DOCUMENT, END, by_family, committed, summary, written  # noqa: E402


def test_the_committed_table_is_of_the_committed_records():
    document = DOCUMENT.read_text()
    assert document == written(document, committed())


def test_the_records_are_of_all_280_recipes():
    records = committed()
    if records is None:
        pytest.skip('no sweep is committed: make test-compat, then tests/compat/table.py')
    assert len(records['recipes']) == 280
    assert not [name for name, status in records['recipes'].items() if status == 'failed']
    native = {name.partition('/')[0] for name, status in records['recipes'].items() if status == 'native'}
    assert native == {'convnext', 'csra', 'deit', 'fp16', 'lenet', 'mobilenet_v2', 'resnest', 'resnet', 'resnext',
                      'seresnet', 'vgg', 'vision_transformer', 'wrn'}


def test_a_row_counts_each_kind_apart():
    table = by_family({'a/x': 'native', 'a/y': 'borrowed VAN, Cutout', 'a/z': 'failed', 'b/x': 'native'})
    assert '| a | 3 | 1 | 1 | 1 | `Cutout`, `VAN` |' in table
    assert '| b | 1 | 1 | 0 | 0 |  |' in table and '| **all** | 4 | 2 | 1 | 1 |  |' in table


def test_a_summary_keeps_names_and_status():
    sweep = dict(versions=dict(mmcls='1', mmcv='2', torch='3', numpy='4'), recipes=[
        dict(name='a/x', error=None, borrowed=[]), dict(name='a/y', error=None, borrowed=['VAN', 'Cutout']),
        dict(name='a/z', error='KeyError: x', borrowed=['VAN'])])
    assert summary(sweep) == dict(versions=dict(mmcls='1', mmcv='2', torch='3'), recipes={
        'a/x': 'native', 'a/y': 'borrowed VAN, Cutout', 'a/z': 'failed'})


def test_a_document_without_its_marks_is_refused():
    with pytest.raises(ValueError, match='lost the marks'):
        written('# Compatibility\n', dict(versions=dict(mmcls='1', mmcv='2', torch='3'), recipes={}))
    assert written(f'a {BEGIN} old {END} b', dict(versions=dict(mmcls='1', mmcv='2', torch='3'), recipes={})).endswith(
        f'{END} b')
