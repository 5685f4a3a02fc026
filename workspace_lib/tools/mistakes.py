"""What a classifier confuses: class by class, pair by pair, picture by picture.

In: scores (N, C) and labels of a test set. Out: tables and plots that stay readable for many classes.
"""
from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import plots
from .evaluation import calculate_confusion_matrix, precision_recall_f1
from .plots import Plot, label_names, styled
from .table import Table

#: More classes than that, and the matrix shows those that are confused most.
MATRIX_LIMIT = 20


def class_table(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Table:
    """Of each class: images, precision, recall and F1 in percent, and what it is most often taken for.

    The worst come first, classes without images last.
    """
    precision, recall, f1 = precision_recall_f1(scores, labels, average_mode='none')
    matrix = calculate_confusion_matrix(scores, labels).numpy()
    wrong = matrix - np.diag(np.diag(matrix))
    rows = [(str(name), int(matrix[i].sum()), *(float(v[i]) for v in (precision, recall, f1)),
             f'{classes[int(wrong[i].argmax())]} ({wrong[i].max()})' if wrong[i].any() else '-')
            for i, name in enumerate(classes)]
    rows.sort(key=lambda row: (row[1] == 0, row[4]))
    return Table(('class', 'images', 'precision (%)', 'recall (%)', 'F1 (%)', 'most often taken for'), rows)


def pair_table(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], count: int = 20) -> Table:
    """The pairs of classes that are confused most: how many images of the first are taken for the second."""
    matrix = calculate_confusion_matrix(scores, labels).numpy()
    rows = [(str(classes[i]), str(classes[j]), int(matrix[i, j]), 100 * float(matrix[i, j] / matrix[i].sum()))
            for i, j in _pairs(matrix)[:count]]
    return Table(('true class', 'taken for', 'images', 'of the true class (%)'), rows)


def _pairs(matrix: np.ndarray) -> list[tuple[int, int]]:
    """(true, predicted) of all mistakes, the most frequent first; then those of the larger share."""
    wrong = matrix - np.diag(np.diag(matrix))
    true, predicted = wrong.nonzero()
    share = wrong[true, predicted] / matrix.sum(1)[true]
    order = np.lexsort((predicted, true, -share, -wrong[true, predicted]))
    return [(int(true[i]), int(predicted[i])) for i in order]


def cell_plot(dataset: Any, results: Sequence[np.ndarray], true: int, predicted: int, count: int = 12) -> Plot:
    """The images behind one cell of the confusion matrix, the surest first."""
    found = plots.find_cell(results, dataset.get_gt_labels(), true, predicted)
    names = label_names(dataset.CLASSES)
    shown = f'{min(count, len(found))} of the {len(found)} images of {names[true]} taken for {names[predicted]}'
    return plots.gallery(dataset, found[:count], shown)


def confusion_explorer(dataset: Any, results: Sequence[np.ndarray]) -> Any:
    """The matrix, and two menus that open the images of one cell; they begin at the pair that is confused most."""
    import ipywidgets

    labels, names = dataset.get_gt_labels(), label_names(dataset.CLASSES)
    scores = np.stack(results)
    pairs = _pairs(calculate_confusion_matrix(scores, labels).numpy())
    i, j = pairs[0] if pairs else (0, 0)
    choices = [(name, number) for number, name in enumerate(names)]
    true = ipywidgets.Dropdown(options=choices, value=i, description='true class')
    predicted = ipywidgets.Dropdown(options=choices, value=j, description='taken for')
    matrix = ipywidgets.HTML(confusion_plot(scores, labels, dataset.CLASSES)._repr_mimebundle_()['text/html'])
    picture = ipywidgets.HTML()  # not an Output: what a cell draws before the page knows an Output is lost

    def draw(change: Any = None) -> None:
        plot = cell_plot(dataset, results, true.value, predicted.value)
        picture.value = f'<p>{html.escape(plot.alt)}</p>' + plot._repr_mimebundle_()['text/html']

    for control in (true, predicted):
        control.observe(draw, names='value')
    draw()
    return ipywidgets.VBox([matrix, ipywidgets.HBox([true, predicted]), picture])


def confusion_plot(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Plot:
    """The confusion matrix; of more than `MATRIX_LIMIT` classes, the part with the most confused pairs."""
    if len(classes) <= MATRIX_LIMIT:
        return plots.confusion_matrix(list(scores), labels, classes)
    matrix = calculate_confusion_matrix(scores, labels).numpy().astype(int)
    chosen: list[int] = []
    for pair in _pairs(matrix):
        new = [label for label in pair if label not in chosen]
        if len(chosen) + len(new) > MATRIX_LIMIT:
            break
        chosen += new
    chosen = chosen or [*range(MATRIX_LIMIT)]  # nothing is confused
    return _part_plot(matrix, sorted(chosen), classes)


@styled
def _part_plot(matrix: np.ndarray, chosen: list[int], classes: Sequence[str]) -> Plot:
    names = label_names([classes[i] for i in chosen])
    part = matrix[np.ix_(chosen, chosen)]
    others = matrix[chosen].sum(1) - part.sum(1)
    figure = Figure(figsize=(10, 9))
    axes = figure.subplots()
    plots.draw_matrix(axes, np.column_stack([part, others]), names, [*names, 'any other'])
    right, total = int(np.diag(matrix).sum()), int(matrix.sum())
    said = (f'The {len(chosen)} of {len(classes)} classes that are confused most; of all {total} images {right} are '
            f'right, {total - right} wrong.')
    axes.grid(alpha=0.2)
    axes.set_title(f'the {len(chosen)} of {len(classes)} classes that are confused most')
    rows = [(classes[i], int(matrix[i].sum()), int(matrix[i].sum() - matrix[i, i])) for i in chosen]
    return Plot(figure, said, Table(('true class', 'images', 'wrong'), rows))
