"""Figures that explain a model: pipeline steps, predictions, learning curves, confusion matrix, worst mistakes.

In: what the library's calls return. Out: `Plot` (figure, alt text, the numbers as a `Table`), drawn without pyplot.
"""
from __future__ import annotations

import base64
import copy
import html
import io
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..datasets import Pipeline
from .evaluation import calculate_confusion_matrix
from .table import Table

#: Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/).
BLUE, VERMILLION, GREY = '#0072B2', '#D55E00', '#888888'
#: For several lines in one picture: no two share colour, marker or stroke.
LINES: list[dict[str, Any]] = [
    dict(color=colour, marker=marker, linestyle=stroke) for colour, marker, stroke in zip(
        (BLUE, VERMILLION, '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'), 'osD^vPX',
        ('-', '--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))), strict=True)]
STYLE: Any = {'font.size': 11, 'axes.titlesize': 11, 'axes.spines.top': False, 'axes.spines.right': False,
         'figure.constrained_layout.use': True, 'svg.fonttype': 'path', 'svg.hashsalt': 'workspace'}


@dataclass(repr=False)
class Plot:
    """A figure, what it shows in words, and its numbers."""

    figure: Figure
    alt: str
    table: Table

    def __repr__(self) -> str:
        return self.alt

    def save(self, path: str | os.PathLike, dpi: int = 120) -> Path:
        """Write the picture, in the format that the name ends in (.png, .svg, .pdf); returns the path."""
        with mpl.rc_context(STYLE):
            self.figure.savefig(path, dpi=dpi)
        return Path(path)

    def webp(self, dpi: int = 80) -> bytes:
        """The picture in a fifth of a PNG's bytes: a notebook with its outputs goes under version control."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format='webp', dpi=dpi, pil_kwargs=dict(quality=90))
        return buffer.getvalue()

    def pixels(self, dpi: int = 80) -> np.ndarray:
        """The picture as uint8 RGB (H, W, 3)."""
        with mpl.rc_context(STYLE):
            self.figure.set_dpi(dpi)
            canvas = FigureCanvasAgg(self.figure)
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]

    def svg(self) -> str:
        """An `<svg>` element whose black is the page's text colour, so that it reads on dark paper as well."""
        buffer = io.StringIO()
        with mpl.rc_context(STYLE):
            self.figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
        text = buffer.getvalue()
        body = text[text.index('<svg'):].replace('#000000', 'currentColor')
        return body.replace('<svg', f'<svg role="img" aria-label="{html.escape(self.alt)}" fill="currentColor"', 1)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        # as HTML, since JupyterLab gives a bare image no alt text
        data = base64.b64encode(self.webp()).decode()
        return {'text/html': f'<img src="data:image/webp;base64,{data}" alt="{html.escape(self.alt)}">',
                'text/plain': self.alt}


def styled(draw: Any) -> Any:
    """Decorates a function that draws a `Plot`: the house style holds inside."""
    @wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Plot:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)
    return inside


def short_name(name: str) -> str:
    """The first of ImageNet's synonyms: `tabby, tabby cat` is a tabby."""
    return name.split(',')[0]


def top_k(scores: np.ndarray, classes: Sequence[str], k: int = 5) -> list[tuple[str, float]]:
    """The `k` likeliest of `classes` with their probabilities, best first; ties in class order."""
    return [(short_name(classes[i]), float(scores[i])) for i in np.argsort(-scores, kind='stable')[:k]]


def displayed(img: Any, bgr: bool = True) -> np.ndarray:
    """An image of any step of a pipeline as matplotlib takes it: RGB or grey, float stretched to 0..1."""
    array = np.asarray(img)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.dtype != np.uint8:  # a tensor: (C, H, W)
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8:
        array = (array - array.min()) / max(float(np.ptp(array)), 1e-6)
    if array.ndim == 3 and array.shape[2] == 1:
        return array[..., 0]
    return array[..., ::-1] if bgr and array.ndim == 3 else array


@styled
def predictions(images: Sequence[np.ndarray], scores: Sequence[np.ndarray], classes: Sequence[str],
                names: Sequence[str], k: int = 5) -> Plot:
    """Each image, uint8 BGR (H, W, 3), beside the bars of its `k` likeliest classes; scores are (num_classes,)."""
    figure = Figure(figsize=(8, 1.9 * len(images)))
    axes = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 1.3), sharex='col')
    rows = []
    for (left, right), image, score, name in zip(axes, images, scores, names, strict=True):
        left.imshow(displayed(image), cmap='gray')
        left.axis('off')
        best = top_k(score, classes, k)
        right.barh([label for label, _ in best], [100 * p for _, p in best], color=[BLUE] + [GREY] * (k - 1))
        right.invert_yaxis()
        right.set_xlim(0, 100)
        rows += [(name, place, label, 100 * p) for place, (label, p) in enumerate(best, 1)]
    axes[-1][1].set_xlabel('probability (%)')
    said = '; '.join(f'{name}: {label} {p:.0f} %' for name, place, label, p in rows if place == 1)
    return Plot(figure, f'{len(images)} photographs with their top {k} classes. {said}.',
                Table(('photograph', 'place', 'class', 'probability (%)'), rows))


def read_log(work_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a run's JSON-lines log: dicts with `mode` 'train' or 'val', `epoch`, `iter` and numbers.

    Args:
        work_dir: a folder, whose logs are joined (a resumed run has several), or one log file; mmclassification's too.

    Raises:
        FileNotFoundError: no `*.log.json` there.
        ValueError: a line that is no JSON; the last one of a run that was cut off is passed over.
    """
    path = Path(work_dir)
    files = [path] if path.is_file() else sorted(path.glob('*.log.json'))
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no *.log.json; a training with TextLoggerHook writes one')
    entries: list[dict[str, Any]] = []
    for file in files:
        more = _entries(file)
        if more:  # what was trained again after a resume counts once
            first = (more[0]['epoch'], more[0]['iter'])
            entries = [entry for entry in entries if (entry['epoch'], entry['iter']) < first]
        entries += more
    return entries


def _entries(file: Path) -> list[dict[str, Any]]:
    entries, lines = [], file.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f'{file}:{number}: not JSON, so not a log of a run ({line[:40]!r})') from error
    return [entry for entry in entries if isinstance(entry, dict) and 'mode' in entry]


@styled
def learning_curves(entries: Sequence[dict[str, Any]], metric: str = 'accuracy_top-1') -> Plot:
    """Loss of each log entry and the validation's `metric` (%), over epochs. `entries`: see `read_log`."""
    train = [entry for entry in entries if entry['mode'] == 'train']
    val = {entry['epoch']: entry[metric] for entry in entries if entry['mode'] == 'val' and metric in entry}
    if not train or not val:
        raise ValueError(f'the log needs training entries and validations with {metric!r}; '
                         f'it has {len(train)} and {len(val)}')
    per_epoch = max(entry['iter'] for entry in train)
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    left.plot([e['epoch'] - 1 + e['iter'] / per_epoch for e in train], [e['loss'] for e in train], '.-', color=BLUE)
    left.set(xlabel='epoch', ylabel='training loss (nats)', yscale='log')
    right.plot(list(val), list(val.values()), 's--', color=VERMILLION, markersize=4)
    right.set(xlabel='epoch', ylabel='held-out accuracy (%)')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    last_loss = {entry['epoch']: entry['loss'] for entry in train}
    values = list(val.values())
    first, last = train[0]['loss'], train[-1]['loss']
    said = (f'In {len(last_loss)} epochs the training loss goes from {first:.2f} to {last:.2f}, '
            f'the held-out accuracy from {values[0]:.1f} to {values[-1]:.1f} %.')
    rows = [(epoch, last_loss[epoch], value) for epoch, value in val.items() if epoch in last_loss]
    return Plot(figure, said, Table(('epoch', 'training loss', 'held-out accuracy (%)'), rows))


def label_names(classes: Sequence[str], longest: int = 22) -> list[str]:
    """Class names as short as a figure needs them: `0 - zero` is 0, `tabby, tabby cat` a tabby; still all different."""
    full = [str(name) for name in classes]
    short = [short_name(name.split(' - ')[0]) for name in full]
    short = [name if len(name) <= longest else name[:longest - 1] + '…' for name in short]
    return [short[i] if short.count(short[i]) == 1 else full[i] for i in range(len(full))]


def draw_matrix(axes: Any, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Counts as coloured cells: blue on the diagonal, orange beside it, deeper is more."""
    right = np.where(np.eye(*matrix.shape) == 1, matrix, 0)
    for part, colour in ((right, BLUE), (matrix - right, VERMILLION)):
        rgba = np.full((*part.shape, 4), mpl.colors.to_rgba(colour))
        rgba[..., 3] = np.where(part, 0.15 + 0.45 * part / max(part.max(), 1), 0)
        axes.imshow(rgba)
    for i, j in zip(*matrix.nonzero(), strict=True):
        axes.text(j, i, str(matrix[i, j]), ha='center', va='center')
    axes.set(xticks=range(len(columns)), yticks=range(len(rows)), xticklabels=columns, yticklabels=rows,
             xlabel='predicted class', ylabel='true class')
    if max(map(len, columns)) > 3:
        axes.tick_params(axis='x', rotation=60)
        for tick in axes.get_xticklabels():
            tick.set(ha='right', rotation_mode='anchor')


@styled
def confusion_matrix(results: Sequence[np.ndarray], labels: np.ndarray, classes: Sequence[str]) -> Plot:
    """Rows are the true classes, columns the predicted ones; blue is right, orange wrong, deeper is more."""
    matrix = calculate_confusion_matrix(np.stack(results), labels).numpy().astype(int)
    right, wrong = np.diag(np.diag(matrix)), matrix - np.diag(np.diag(matrix))
    names = label_names(classes)
    side = max(0, len(names) - 10) * 0.3
    figure = Figure(figsize=(6 + side, 5.2 + side))
    draw_matrix(figure.subplots(), matrix, names, names)
    rows = [(name, int(row.sum()), int(errors.sum()), classes[int(errors.argmax())] if errors.any() else '-')
            for name, row, errors in zip(classes, matrix, wrong, strict=True)]
    i, j = np.unravel_index(int(wrong.argmax()), wrong.shape)
    worst = f'; most often {names[i]} is taken for {names[j]}, {wrong[i, j]} times' if wrong.any() else ''
    return Plot(figure, f'Confusion matrix of {matrix.sum()} images: {right.sum()} right, {wrong.sum()} wrong{worst}.',
                Table(('true class', 'images', 'wrong', 'most often taken for'), rows))


@dataclass
class Mistake:
    """One wrong prediction: `score` is the probability of the class it chose, `true_score` that of the right one."""

    index: int
    true: int
    predicted: int
    score: float
    true_score: float


def find_mistakes(results: Sequence[np.ndarray], labels: np.ndarray, count: int = 12) -> list[Mistake]:
    """The wrong predictions with the highest confidence, worst first."""
    return _surest(results, labels, np.stack(results).argmax(axis=1) != labels)[:count]


def find_cell(results: Sequence[np.ndarray], labels: np.ndarray, true: int, predicted: int) -> list[Mistake]:
    """What one cell of the confusion matrix counts, the surest first; on the diagonal these are no mistakes."""
    return _surest(results, labels, (labels == true) & (np.stack(results).argmax(axis=1) == predicted))


def _surest(results: Sequence[np.ndarray], labels: np.ndarray, chosen: np.ndarray) -> list[Mistake]:
    scores = np.stack(results)
    top, found = scores.argmax(axis=1), np.flatnonzero(chosen)
    order = found[np.argsort(-scores[found, top[found]], kind='stable')]
    return [Mistake(int(i), int(labels[i]), int(top[i]), float(scores[i, top[i]]), float(scores[i, labels[i]]))
            for i in order]


def worst_mistakes(dataset: Any, results: Sequence[np.ndarray], count: int = 12, columns: int = 6) -> Plot:
    """The images of `find_mistakes`, each with `true -> predicted` and the confidence in the wrong answer."""
    found = find_mistakes(results, dataset.get_gt_labels(), count)
    return gallery(dataset, found, f'The {len(found)} most confident mistakes', columns)


@styled
def gallery(dataset: Any, found: Sequence[Mistake], what: str, columns: int = 6) -> Plot:
    """Images of a data set, each with `true -> predicted` and the confidence in the answer; `what` they are."""
    names = label_names(dataset.CLASSES)
    is_long = max(map(len, names)) > 5
    columns = min(columns, 4) if is_long else columns
    lines = max(1, -(-len(found) // columns))
    figure = Figure(figsize=(10, 2.9 * lines) if is_long else (8, 1.9 * lines))
    for axes in (grid := figure.subplots(lines, columns, squeeze=False)).flat:
        axes.axis('off')
    for axes, mistake in zip(grid.flat, found, strict=False):
        axes.imshow(displayed(dataset.load_image(mistake.index)), cmap='gray')
        arrow = '\n→ ' if is_long else ' → '
        axes.set_title(f'{names[mistake.true]}{arrow}{names[mistake.predicted]}\n{mistake.score:.0%}')
    rows = [(m.index, names[m.true], names[m.predicted], 100 * m.score, 100 * m.true_score) for m in found]
    return Plot(figure, f'{what}: true class, predicted class, confidence.',
                Table(('image', 'true', 'predicted', 'confidence (%)', 'of the true class (%)'), rows))


def changes(pipeline: Pipeline, results: dict[str, Any]) -> list[tuple[str, Any]]:
    """(name of the step, image after it) for each step of a pipeline that changes the image of `results`."""
    shown: list[tuple[str, Any]] = []
    for step in pipeline.steps:
        before: Any = results.get('img')
        kept = copy.deepcopy(before)  # some steps write into the image that they get
        results = step(results)
        if results['img'] is not before or not np.array_equal(kept, before):
            shown.append((type(step).__name__, copy.deepcopy(results['img'])))
    return shown


@styled
def pipeline_steps(pipeline: Pipeline, results: dict[str, Any], seed: int = 0) -> Plot:
    """The image after each step that changes it, with shape and dtype; `results` as `Pipeline` takes them."""
    random.seed(seed)
    shown = changes(pipeline, results)
    figure = Figure(figsize=(2.2 * len(shown), 2.95))
    rows = [(name, 'x'.join(map(str, img.shape)), str(img.dtype).removeprefix('torch.')) for name, img in shown]
    for axes, (_, img), row in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, rows, strict=True):
        axes.imshow(displayed(img, bgr=row[2] == 'uint8'), cmap='gray')
        axes.set_title('\n'.join(row))
        axes.axis('off')
    return Plot(figure, 'The image after each step: ' + ', '.join(f'{a} {b} {c}' for a, b, c in rows) + '.',
                Table(('step', 'shape', 'dtype'), rows))
