"""The figures say the right thing: their numbers, their words, and that they can be drawn."""
from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip('matplotlib')

from workspace_lib.datasets import Pipeline
from workspace_lib.tools import plots
from workspace_lib.tools.table import Table

LABELS = np.array([0, 0, 1, 1, 2, 2])
# image 1 (a 0) is taken for 2 with 90 %, image 4 (a 2) for 1 with 60 %
SCORES = [np.array(row, np.float32) for row in
          ([.8, .1, .1], [.05, .05, .9], [.1, .8, .1], [.2, .7, .1], [.1, .6, .3], [.1, .2, .7])]


class Digits:
    CLASSES = ('0 - zero', '1 - one', '2 - two')

    def get_gt_labels(self):
        return LABELS

    def load_image(self, index):
        return np.full((8, 8), 40 * index, np.uint8)


def test_worst_mistakes_come_first():
    found = plots.find_mistakes(SCORES, LABELS)
    assert [(m.index, m.true, m.predicted) for m in found] == [(1, 0, 2), (4, 2, 1)]
    assert found[0].score == pytest.approx(.9) and found[0].true_score == pytest.approx(.05)


def test_mistakes_are_as_many_as_asked_for():
    assert len(plots.find_mistakes(SCORES, LABELS, count=1)) == 1


def test_mistakes_are_drawn_with_both_classes():
    plot = plots.worst_mistakes(Digits(), SCORES)
    assert [axes.get_title() for axes in plot.figure.axes][:2] == ['0 → 2\n90%', '2 → 1\n60%']


def test_no_mistakes_is_a_figure_too():
    right = [np.eye(3, dtype=np.float32)[label] for label in LABELS]
    assert plots.worst_mistakes(Digits(), right).table.rows == []
    assert '6 right, 0 wrong' in plots.confusion_matrix(right, LABELS, Digits.CLASSES).alt


def test_confusion_matrix_has_true_classes_in_rows():
    plot = plots.confusion_matrix(SCORES, LABELS, Digits.CLASSES)
    assert plot.table.rows == [('0 - zero', 2, 1, '2 - two'), ('1 - one', 2, 0, '-'), ('2 - two', 2, 1, '1 - one')]
    where = {text.get_text(): text.get_position() for text in plot.figure.axes[0].texts}
    assert where['2'] == (1, 1)  # both ones are right
    assert {text.get_position() for text in plot.figure.axes[0].texts} == {(0, 0), (2, 0), (1, 1), (1, 2), (2, 2)}
    assert '4 right, 2 wrong' in plot.alt


def log_file(folder, entries):
    (folder / '20250101_000000.log.json').write_text('\n'.join(json.dumps(entry) for entry in entries) + '\n')


def entries():
    for epoch in (1, 2):
        for iteration in (5, 10):
            yield dict(mode='train', epoch=epoch, iter=iteration, loss=2.0 / epoch - iteration / 100)
        yield {'mode': 'val', 'epoch': epoch, 'iter': 4, 'accuracy_top-1': 40.0 * epoch}


def test_learning_curves_from_a_run(tmp_path):
    log_file(tmp_path, [dict(seed=0), *entries()])
    plot = plots.learning_curves(plots.read_log(tmp_path))
    assert plot.table.rows == [(1, 1.9, 40.0), (2, .9, 80.0)]
    assert list(plot.figure.axes[0].lines[0].get_xdata()) == [.5, 1, 1.5, 2]
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ['training loss (nats)', 'held-out accuracy (%)']


def test_a_run_without_a_log_says_what_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match='TextLoggerHook'):
        plots.read_log(tmp_path)


def test_curves_without_validation_say_so():
    with pytest.raises(ValueError, match='4 and 0'):
        plots.learning_curves([entry for entry in entries() if entry['mode'] == 'train'])


def test_predictions_are_sorted_and_shortened():
    image = np.zeros((6, 8, 3), np.uint8)
    plot = plots.predictions([image], [SCORES[3]], ['tench, Tinca tinca', 'goldfish', 'shark'], ['a.jpg'], k=2)
    assert [row[:3] for row in plot.table.rows] == [('a.jpg', 1, 'goldfish'), ('a.jpg', 2, 'tench')]
    assert 'a.jpg: goldfish 70 %' in plot.alt


def test_pipeline_steps_show_what_changes_the_image():
    pipeline = Pipeline([dict(type='Resize', size=(4, 6)), dict(type='Normalize', mean=[10.] * 3, std=[2.] * 3),
                         dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
                         dict(type='Collect', keys=['img', 'gt_label'])])
    plot = plots.pipeline_steps(pipeline, dict(img=np.zeros((8, 8, 3), np.uint8), gt_label=3))
    assert plot.table.rows == [('Resize', '4x6x3', 'uint8'), ('Normalize', '4x6x3', 'float32'),
                               ('ImageToTensor', '3x4x6', 'float32')]


def test_displayed_turns_bgr_to_rgb_and_tensors_around():
    blue = np.zeros((2, 2, 3), np.uint8)
    blue[..., 0] = 255
    assert plots.displayed(blue)[0, 0].tolist() == [0, 0, 255]
    assert plots.displayed(torch.zeros(3, 4, 5)).shape == (4, 5, 3)
    assert plots.displayed(torch.zeros(1, 4, 5)).shape == (4, 5)


@pytest.fixture
def plot():
    return plots.confusion_matrix(SCORES, LABELS, Digits.CLASSES)


def test_a_notebook_gets_alt_text(plot):
    bundle = plot._repr_mimebundle_()
    assert f'alt="{plot.alt}"' in bundle['text/html'] and bundle['text/plain'] == plot.alt


def test_svg_has_alt_text_and_the_colour_of_the_page(plot):
    svg = plot.svg()
    assert f'aria-label="{plot.alt}"' in svg and 'currentColor' in svg and '#000000' not in svg
    assert svg == plot.svg()  # nothing in it that varies from run to run


def test_text_is_11_points_or_more(plot):
    for axes in plot.figure.axes:
        texts = [*axes.texts, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
        assert min(text.get_fontsize() for text in texts) >= 11


def test_table_in_text_and_html():
    table = Table(('name', 'share'), [('a<b', .5), ('longer', 12.25)])
    assert str(table).splitlines() == ['name    share', 'a<b      0.50', 'longer  12.25']
    assert 'a&lt;b' in table._repr_html_()
    assert re.search(r'text-align:right">12\.25', table._repr_html_())
