"""``workspace eval_metric``: metrics of a stored result file, without testing again.

In: the config whose data set was tested, and the file. Out: the metrics, as the test gives them.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ..config import Config
from ..datasets import build_dataset
from ..recipes import load_config
from .arguments import add_config, add_metrics
from .main_commands import print_metrics
from .results import read_results


def eval_metric(config: str | Config, result: str | os.PathLike, metrics: Sequence[str],
                metric_options: dict | None = None, options: dict | None = None) -> dict[str, Any]:
    """The metrics of a result file on the config's test set.

    Raises:
        ValueError: not as many results as the test set has images; and as `read_results`.
    """
    scores = read_results(result)['class_scores']
    dataset = build_dataset(load_config(config, options).data.test, dict(test_mode=True))
    if len(scores) != len(dataset):
        raise ValueError(f'{result} holds {len(scores)} results, but the test set has {len(dataset)} images; give the '
                         'config that was tested')
    return dict(dataset.evaluate(list(scores), list(metrics), metric_options))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('result', help='result file of workspace test --out: .json, .yaml or .pkl')
    add_metrics(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if not args.metrics:
        raise ValueError('name the metrics: --metrics accuracy precision recall')
    print_metrics(eval_metric(args.config, args.result, args.metrics, args.metric_options, args.cfg_options))
