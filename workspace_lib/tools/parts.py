"""The data sets of a config's train, val or test section, whole, or without what wraps or joins them.

In: a config. Out: data sets of files or arrays, each with its pipeline.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config import Config, where
from ..datasets import build_dataset


def datasets_of(cfg: Config, part: str) -> list[Any]:
    """The data sets of `part` ('train', 'val' or 'test'): several where a list or a wrapper joins them.

    Raises:
        KeyError: the config has no such part.
    """
    return [build_dataset(section, dict(test_mode=part != 'train')) for section in _innermost(_section(cfg, part))]


def dataset_of(cfg: Config, part: str) -> Any:
    """The data set of `part` as a run has it.

    Raises:
        KeyError: the config has no such part.
    """
    return build_dataset(_section(cfg, part), dict(test_mode=part != 'train'))


def _section(cfg: Config, part: str) -> Any:
    if not cfg.get('data', {}).get(part):
        raise KeyError(f'the config has no data.{part} ({where(cfg, "data") or cfg.filename})')
    return cfg.data[part]


def _innermost(section: Any) -> Iterator[Any]:
    if isinstance(section, list | tuple):
        for one in section:
            yield from _innermost(one)
    elif 'dataset' in section:  # repeated, balanced, folded
        yield from _innermost(section['dataset'])
    elif 'datasets' in section:
        yield from _innermost(section['datasets'])
    else:
        yield section
