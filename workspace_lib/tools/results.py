"""Result files of ``workspace test --out``, and of mmclassification's test.py, read back.

In: .json, .yaml or .pkl. Out: the dictionary, with `class_scores` as float (N, num_classes).
"""
from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import yaml


class UnsafeResultError(ValueError):
    """A pickle that asks for more than arrays, numbers and text; nothing of it was run."""


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy's arrays and numbers; anything else that a pickle may name, and so call, is refused."""

    ARRAYS = frozenset({'ndarray', 'dtype', '_reconstruct', 'scalar', '_frombuffer'})

    def find_class(self, module: str, name: str) -> Any:
        if module.split('.')[0] == 'numpy' and name in self.ARRAYS or (module, name) == ('_codecs', 'encode'):
            return super().find_class(module, name)
        raise UnsafeResultError(f'it asks for {module}.{name}, which a result does not need and which could run code')


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """A result file; of a pickle only arrays, numbers, text and their containers are accepted.

    Raises:
        FileNotFoundError: no such file.
        UnsafeResultError: a pickle of something else.
        ValueError: another kind of file, a torn one, or one without `class_scores`.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f'{path}: a result file ends in {", ".join(_READERS)}')
    if not path.is_file():
        raise FileNotFoundError(f'there is no result file {path}; workspace test ... --out {path} writes one')
    try:
        content = reader(path)
    except UnsafeResultError as error:
        raise UnsafeResultError(f'{path} is refused: {error}. Nothing of it was run; write it as .json') from None
    except Exception as error:  # a torn pickle fails with nearly anything
        raise ValueError(f'{path} cannot be read as {path.suffix}: {type(error).__name__} {error}') from error
    if not isinstance(content, dict) or 'class_scores' not in content:
        raise ValueError(f'{path} holds no class_scores; write it with: workspace test ... --out {path} '
                         '--out-items class_scores (or all)')
    scores = np.array(content['class_scores'], dtype=np.float32)
    if scores.ndim != 2 or not len(scores):
        raise ValueError(f'{path}: class_scores have shape {scores.shape}; expected (images, classes)')
    return {**content, 'class_scores': scores}


def _read_pickle(path: Path) -> Any:
    with path.open('rb') as file:
        return _ArraysOnly(file).load()


_READERS: dict[str, Any] = {
    '.json': lambda path: json.loads(path.read_text()), '.yaml': lambda path: yaml.safe_load(path.read_text()),
    '.yml': lambda path: yaml.safe_load(path.read_text()), '.pkl': _read_pickle, '.pickle': _read_pickle}
