"""``workspace analyze``: one page about a tested model: classes, confusions, worst mistakes, learning curves.

In: a result file with the config that was tested, logs of runs, or both. Out: a folder with `index.html`, which holds
all of it, and each picture as a PNG.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..datasets import build_dataset
from ..recipes import load_config
from . import mistakes, plots, report
from .analyze_logs import Entries, curves_plot, default_keys, read_runs, time_table
from .arguments import add_options, checked_output
from .commands import write_whole
from .plots import Plot
from .results import read_results
from .table import Table

#: By whether an image has one label or several.
SINGLE, SEVERAL = ('accuracy', 'precision', 'recall', 'f1_score'), ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
LEAD = 'Which classes are hard, what is taken for what, where the model is wrong and sure of it, and how it learned.'


class Analysis:
    """The parts of a page: `sections` of HTML, `plots` by name, `numbers` for JSON; each method adds one part."""

    def __init__(self) -> None:
        self.sections: list[report.Section] = []
        self.facts: list[report.Fact] = []
        self.plots: dict[str, Plot] = {}
        self.numbers: dict[str, Any] = {}

    def add_results(self, dataset: Any, scores: np.ndarray, worst: int = 24) -> None:
        """Scores (N, C) of a data set whose labels are (N,), or (N, C) where an image may have several.

        Raises:
            ValueError: not as many scores as images, or as classes.
        """
        labels, classes = dataset.get_gt_labels(), dataset.CLASSES
        if scores.shape != (len(labels), len(classes)):
            raise ValueError(f'the results are of {scores.shape[0]} images and {scores.shape[1]} classes, the test set '
                             f'of {len(labels)} and {len(classes)}; give the config that was tested')
        several = labels.ndim == 2
        metrics = dataset.evaluate(list(scores), list(SEVERAL if several else SINGLE))
        self.numbers['metrics'] = metrics
        self.facts += [('images', f'{len(labels):,}'), *((name, f'{value:.2f} %') for name, value in metrics.items())]
        if several:
            self._section('classes', lambda: self._table('classes', precision_table(scores, labels, classes)))
            return
        self._section('classes', lambda: self._table('classes', mistakes.class_table(scores, labels, classes)))
        self._section('confusions', lambda: self._confusions(scores, labels, classes))
        self._section('worst mistakes', lambda: self._mistakes(dataset, scores, labels, worst))

    def add_runs(self, runs: Mapping[str, Entries], keys: Sequence[str] = ()) -> None:
        """Learning curves of several runs in one plot, and their times."""
        self._section('learning curves', lambda: self._plot('curves', curves_plot(runs, keys or default_keys(runs)))
                      + self._table('times', time_table(runs)))

    def _section(self, name: str, make: Callable[[], str]) -> None:
        start = time.perf_counter()
        content = make()
        self.sections.append((name, time.perf_counter() - start, content))

    def _table(self, name: str, table: Table, shown: int = 30) -> str:
        self.numbers[name] = records(table)
        first = report.table(Table(table.columns, table.rows[:shown]))
        return first + (report.folded(f'All {len(table.rows)}', report.table(table)) if len(table.rows) > shown else '')

    def _plot(self, name: str, plot: Plot) -> str:
        self.plots[name] = plot
        self.numbers.setdefault(name, records(plot.table))
        return report.figure(plot)

    def _confusions(self, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> str:
        matrix = self._plot('confusion', mistakes.confusion_plot(scores, labels, classes))
        pairs = self._table('confused pairs', mistakes.pair_table(scores, labels, classes))
        return f'{matrix}<h3>The pairs that are confused most</h3>{pairs}'

    def _mistakes(self, dataset: Any, scores: np.ndarray, labels: np.ndarray, worst: int) -> str:
        self.plots['mistakes'] = plots.worst_mistakes(dataset, list(scores), worst)
        found = plots.find_mistakes(list(scores), labels, worst)
        self.numbers['worst mistakes'] = [
            {'image': m.index, 'file': dataset.filename(m.index), 'true': dataset.CLASSES[m.true],
             'predicted': dataset.CLASSES[m.predicted], 'confidence': m.score, 'of the true class': m.true_score}
            for m in found]
        files = Table(('image', 'file'), [(m.index, dataset.filename(m.index)) for m in found])
        return (report.paragraph('Wrong, and sure of it: the confidence in the answer against that in the right one.')
                + report.mistake_grid(dataset, found) + report.folded('The files', report.table(files)))

    def write(self, folder: Path, title: str, commands: str = '') -> Path:
        """`index.html`, and each plot as `<name>.png`; returns the page."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, plot in self.plots.items():
            plot.save(folder / f'{name}.png')
        return report.write(folder, title, LEAD, self.sections, self.facts, commands)


def precision_table(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Table:
    """For images with several labels: of each class how many images have it, and its average precision. Worst first."""
    from .evaluation import average_precision
    rows = [(str(name), int((labels[:, i] == 1).sum()), 100 * average_precision(scores[:, i], labels[:, i]))
            for i, name in enumerate(classes)]
    return Table(('class', 'images with it', 'AP (%)'), sorted(rows, key=lambda row: row[2]))


def records(table: Table) -> list[dict[str, Any]]:
    """The rows as dictionaries of plain numbers and text."""
    return [{name: value.item() if isinstance(value, np.generic) else value
             for name, value in zip(table.columns, row, strict=True)} for row in table.rows]


def analyze(result: str | Path | None = None, logs: Sequence[str | Path] = (), config: str | Config | None = None,
            keys: Sequence[str] = (), worst: int = 24, options: dict | None = None) -> Analysis:
    """All that can be said about a result file and logs.

    Raises:
        ValueError: neither of them, or a result without the config that was tested.
    """
    if result is None and not logs:
        raise ValueError('nothing to analyze: give a result file of workspace test --out, logs, or both')
    analysis = Analysis()
    if result is not None:
        if config is None:
            raise ValueError(f'{result}: give the config that was tested, --config CONFIG; the true classes are in its '
                             'data set')
        scores = read_results(result)['class_scores']
        analysis.add_results(build_dataset(load_config(config, options).data.test, dict(test_mode=True)), scores, worst)
    if logs:
        analysis.add_runs(read_runs(logs), keys)
    return analysis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('files', nargs='+', metavar='RESULT|LOG',
                        help='a result file of workspace test --out, and logs (*.log.json, or the folders of runs)')
    parser.add_argument('--config', help='the config that was tested, needed with a result file; a file among the '
                                         'others that ends in .py is it too')
    add_options(parser)
    parser.add_argument('--keys', nargs='+', default=(), help='what of the logs to draw; default loss and accuracy')
    parser.add_argument('--worst', '--topk', type=int, default=24, help='how many mistakes to show (default 24)')
    parser.add_argument('--out-dir', default='analysis', help='folder of the page (default analysis)')
    parser.add_argument('--json', metavar='FILE', help='write the numbers here too')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    json_file = checked_output(args.json, ('.json',), '--json') if args.json else None
    logs = [file for file in args.files if Path(file).is_dir() or file.endswith('.log.json')]
    configs = [file for file in args.files if file.endswith('.py')]
    results = [file for file in args.files if file not in (*logs, *configs)]
    args.config = args.config or next(iter(configs), None)
    if len(results) > 1:
        raise ValueError(f'one result file at a time, but got {", ".join(results)} (logs end in .log.json)')
    analysis = analyze(results[0] if results else None, logs, args.config, args.keys, args.worst, args.cfg_options)
    page = analysis.write(Path(args.out_dir), f'Results: {args.config}' if results else 'Learning curves',
                          f'workspace vis_cam IMAGE {args.config} CHECKPOINT' if results else '')
    if json_file:
        write_whole(json_file, json.dumps(analysis.numbers, indent=2) + '\n')
    for name, value in analysis.facts:
        print(f'{name} : {value}')
    for name in ('confused pairs', 'times'):
        if analysis.numbers.get(name):
            shown = analysis.numbers[name][:10]
            print(f'\n{name}\n{Table(tuple(shown[0]), [tuple(row.values()) for row in shown])}')
    print(f'\n{page}')
