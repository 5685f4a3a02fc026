"""The page about a tested model: its numbers on results small enough to count by hand, and that it is whole."""
from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from figures import assert_nothing_is_cut_off

from workspace_lib.tools import mistakes
from workspace_lib.tools.analyze import Analysis, analyze, precision_table
from workspace_lib.tools.cli import main
from workspace_lib.tools.plots import label_names

CLASSES = ('tabby, tabby cat', 'dog', 'fish <raw>')
LABELS = np.array([0, 0, 0, 0, 1, 1])
PREDICTED, SURE = [0, 0, 1, 2, 1, 0], [.9, .8, .7, .95, .6, .5]


def scores() -> np.ndarray:
    rows = np.zeros((6, 3), np.float32)
    for row, label, score in zip(rows, PREDICTED, SURE, strict=True):
        row[:] = (1 - score) / 2
        row[label] = score
    return rows


def random_scores(classes: int, images: int, right: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    rows = rng.dirichlet(np.ones(classes), images).astype(np.float32)
    hit = rng.random(images) < right
    rows[hit, labels[hit]] += 1
    return rows / rows.sum(1, keepdims=True), labels


class Pictures:
    CLASSES = CLASSES

    def __init__(self, labels=LABELS):
        self.labels = labels

    def get_gt_labels(self):
        return self.labels

    def load_image(self, index):
        return np.full((80, 100, 3), 30 * index, np.uint8)

    def filename(self, index):
        return f'{index}.jpg'

    def evaluate(self, results, metric):
        return dict.fromkeys(metric, 50.)


def test_classes_have_precision_recall_and_what_they_are_taken_for():
    rows = {row[0]: row[1:] for row in mistakes.class_table(scores(), LABELS, CLASSES).rows}
    assert rows['tabby, tabby cat'] == (4, pytest.approx(200 / 3), 50, pytest.approx(400 / 7), 'dog (1)')
    assert rows['dog'] == (2, 50, 50, 50, 'tabby, tabby cat (1)')
    assert rows['fish <raw>'] == (0, 0, 0, 0, '-')


def test_the_worst_class_comes_first_and_one_without_images_last():
    assert [row[0] for row in mistakes.class_table(scores(), LABELS, CLASSES).rows] == ['dog', 'tabby, tabby cat',
                                                                                       'fish <raw>']


def test_pairs_come_by_number_then_by_share():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    found = np.eye(3, dtype=np.float32)[[1, 1, 2, 0, 0, 1, 2]]
    assert mistakes.pair_table(found, labels, CLASSES).rows == [
        ('tabby, tabby cat', 'dog', 2, 50), ('dog', 'tabby, tabby cat', 1, 50),
        ('tabby, tabby cat', 'fish <raw>', 1, 25)]


def test_few_classes_have_their_whole_matrix():
    plot = mistakes.confusion_plot(scores(), LABELS, CLASSES)
    assert len(plot.figure.axes[0].get_xticklabels()) == 3


def test_many_classes_show_the_most_confused_and_count_the_rest():
    found, labels = random_scores(200, 4000)
    names = [f'class number {i}' for i in range(200)]
    plot = mistakes.confusion_plot(found, labels, names)
    axes = plot.figure.axes[0]
    assert_nothing_is_cut_off(plot)
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(rows) == 20 and [t.get_text() for t in axes.get_xticklabels()] == [*rows, 'any other']
    assert {mistakes.pair_table(found, labels, names).rows[0][i] for i in (0, 1)} <= set(rows)
    shown = sum(int(text.get_text()) for text in axes.texts)
    assert shown == sum((labels == int(name.split()[-1])).sum() for name in rows)  # every image of these classes
    assert min(tick.get_fontsize() for tick in [*axes.get_xticklabels(), *axes.get_yticklabels()]) >= 11


def test_many_classes_without_a_mistake_are_a_figure_too():
    plot = mistakes.confusion_plot(np.eye(30, dtype=np.float32), np.arange(30), [*map(str, range(30))])
    assert 'of all 30 images 30 are' in plot.alt and len(plot.figure.axes[0].texts) == 20


def test_names_are_short_and_stay_different():
    assert label_names(['0 - zero', 'tabby, tabby cat']) == ['0', 'tabby']
    assert label_names(['cat - wild', 'cat - tame', 'crane, bird', 'crane, machine']) == [
        'cat - wild', 'cat - tame', 'crane, bird', 'crane, machine']
    assert label_names(['x' * 40]) == ['x' * 21 + '…']


@pytest.fixture
def analysis():
    made = Analysis()
    made.add_results(Pictures(), scores())
    return made


def test_the_worst_mistakes_are_named_with_file_and_true_class(analysis):
    first = analysis.numbers['worst mistakes'][0]
    assert (first['file'], first['true'], first['predicted']) == ('3.jpg', 'tabby, tabby cat', 'fish <raw>')
    assert first['confidence'] == pytest.approx(.95)
    assert [m['image'] for m in analysis.numbers['worst mistakes']] == [3, 2, 5]
    assert_nothing_is_cut_off(analysis.plots['mistakes'])
    titles = [axes.get_title() for axes in analysis.plots['mistakes'].figure.axes]
    assert titles[0] == 'tabby\n→ fish <raw>\n95%'


def test_the_page_is_whole_and_escapes_names(analysis, tmp_path):
    page = analysis.write(tmp_path / 'a' / 'b', 'Results').read_text()
    assert {p.name for p in (tmp_path / 'a' / 'b').iterdir()} == {'index.html', 'confusion.png', 'mistakes.png'}
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # it fetches nothing
    assert page.count('<img src="data:image/') == 3 and 'fish &lt;raw&gt;' in page and 'fish <raw>' not in page
    assert [name for name, *_ in analysis.sections] == ['classes', 'confusions', 'worst mistakes']


def test_results_of_another_test_set_are_refused():
    with pytest.raises(ValueError, match='6 images and 3 classes, the test set of 4 and 3'):
        Analysis().add_results(Pictures(LABELS[:4]), scores())


def test_several_labels_an_image_give_average_precisions():
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, -1]])
    found = np.array([[.9, .1, .8], [.8, .2, .3], [.7, .3, .6], [.1, .9, .9]], np.float32)
    rows = precision_table(found, labels, CLASSES).rows
    assert rows == [('tabby, tabby cat', 2, pytest.approx(100 * (1 + 2 / 3) / 2)),
                    ('fish <raw>', 2, pytest.approx(100 * (1 + 2 / 3) / 2)), ('dog', 1, 100)]
    made = Analysis()
    made.add_results(Pictures(labels), found)
    assert list(made.numbers) == ['metrics', 'classes'] and 'mAP' in made.numbers['metrics']


def test_nothing_and_a_result_without_its_config_are_errors(tmp_path):
    with pytest.raises(ValueError, match='nothing to analyze'):
        analyze()
    with pytest.raises(ValueError, match='--config'):
        analyze(tmp_path / 'r.json')


def test_the_command_makes_one_page_of_results_and_logs(tmp_path, capsys):
    digits = 'lenet/lenet5_mnist5k.py'
    from workspace_lib.datasets import build_dataset
    from workspace_lib.recipes import load_config
    labels = build_dataset(load_config(digits).data.test, dict(test_mode=True)).get_gt_labels()
    found = np.full((1000, 10), .01, np.float32)
    found[np.arange(1000), np.where(np.arange(1000) % 50 == 0, (labels + 1) % 10, labels)] = .91
    (tmp_path / 'r.json').write_text(json.dumps(dict(class_scores=found.tolist())))
    (tmp_path / 'x.log.json').write_text(''.join(json.dumps(entry) + '\n' for entry in (
        dict(mode='train', epoch=1, iter=5, loss=2., time=.1), dict(mode='train', epoch=2, iter=5, loss=1., time=.1))))
    out = tmp_path / 'out'
    assert main(['analyze', str(tmp_path / 'r.json'), str(tmp_path / 'x.log.json'), '--config', digits, '--out-dir',
                 str(out), '--json', str(tmp_path / 'n.json'), '--worst', '5']) == 0
    numbers = json.loads((tmp_path / 'n.json').read_text())
    assert numbers['metrics']['accuracy_top-1'] == pytest.approx(98)
    assert {'metrics', 'classes', 'confusion', 'confused pairs', 'worst mistakes', 'curves', 'times'} == set(numbers)
    assert len(numbers['worst mistakes']) == 5 and sum(row['wrong'] for row in numbers['confusion']) == 20
    assert {p.name for p in out.iterdir()} == {'index.html', 'confusion.png', 'mistakes.png', 'curves.png'}
    assert all(cv2.imread(str(p)) is not None for p in out.glob('*.png'))
    assert 'accuracy_top-1 : 98.00 %' in capsys.readouterr().out


def test_the_config_may_come_first_as_in_analyze_results(tmp_path, capsys):
    (tmp_path / 'r.json').write_text(json.dumps(dict(class_scores=[[1., 0.]])))
    assert main(['analyze_results', 'lenet/lenet5_mnist5k.py', str(tmp_path / 'r.json'), '--out-dir',
                 str(tmp_path / 'out')]) == 1
    assert '1 images and 2 classes, the test set of 1000 and 10' in capsys.readouterr().err


def test_logs_alone_are_a_page_of_curves(tmp_path):
    (tmp_path / 'x.log.json').write_text(json.dumps(dict(mode='train', epoch=1, iter=5, loss=2., time=.1)) + '\n')
    assert main(['analyze', str(tmp_path / 'x.log.json'), '--out-dir', str(tmp_path / 'out')]) == 0
    assert 'learning curves' in (tmp_path / 'out' / 'index.html').read_text()


def test_two_results_at_once_are_refused(capsys):
    assert main(['analyze', 'a.json', 'b.json']) == 1
    assert 'one result file at a time' in capsys.readouterr().err


def test_a_cell_of_the_matrix_opens_its_images_surest_first():
    plot = mistakes.cell_plot(Pictures(), list(scores()), 0, 0)
    assert [row[:3] for row in plot.table.rows] == [(0, 'tabby', 'tabby'), (1, 'tabby', 'tabby')]
    assert plot.alt.startswith('2 of the 2 images of tabby taken for tabby')
    assert not mistakes.cell_plot(Pictures(), list(scores()), 1, 2).table.rows


def test_the_confusion_explorer_begins_at_the_worst_pair_and_follows_its_menus():
    matrix, menus, picture = mistakes.confusion_explorer(Pictures(), list(scores())).children
    true, predicted = menus.children
    assert (true.value, predicted.value) == (1, 0)  # one of two dogs weighs more than one of four cats
    assert '<img' in matrix.value and '1 of the 1 images of dog taken for tabby' in picture.value
    true.value, predicted.value = 0, 2
    assert 'images of tabby taken for fish &lt;raw&gt;' in picture.value
