"""`DictAction`: `--cfg-options model.backbone.depth=18 data.train.pipeline.1.size=32` as a dictionary."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any


class DictAction(argparse.Action):
    """argparse action for KEY=VALUE pairs with numbers, booleans, None, `[lists]` and `(tuples)` as values."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: str | Sequence[Any] | None, option_string: str | None = None) -> None:
        options = {}
        for pair in [values] if isinstance(values, str) else values or []:
            key, equals, value = pair.partition('=')
            if not equals:
                raise argparse.ArgumentError(self, f'expected KEY=VALUE, got {pair!r}')
            try:
                options[key] = self._parse_iterable(value)
            except AssertionError as error:
                raise argparse.ArgumentError(self, f'{error} in {pair!r}') from None
        setattr(namespace, self.dest, options)

    @staticmethod
    def _parse_int_float_bool(text: str) -> Any:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
        return {'true': True, 'false': False}.get(text.lower(), None if text == 'None' else text)

    @staticmethod
    def _parse_iterable(text: str) -> Any:
        """'1,a' -> [1, 'a'], '(1,[2,x])' -> (1, [2, 'x']), '1e-3' -> 0.001; without spaces and outer quotes."""
        text = text.strip('\'"').replace(' ', '')
        depths = list(accumulate((char in '([') - (char in ')]') for char in text))  # brackets open after each
        in_brackets = text[:1] + text[-1:] in ('()', '[]') and all(depths[:-1])
        if not in_brackets and ',' not in text:
            return DictAction._parse_int_float_bool(text)
        if text.count('(') != text.count(')') or text.count('[') != text.count(']'):
            raise AssertionError(f'Imbalanced brackets exist in {text}')
        first, last = (0, len(text) - 1) if in_brackets else (-1, len(text))
        commas = [i for i, char in enumerate(text) if char == ',' and depths[i] == in_brackets]
        parts = [text[start + 1:end] for start, end in pairwise([first, *commas, last])]
        items = [DictAction._parse_iterable(part) for part in (parts if parts[-1] else parts[:-1])]
        return tuple(items) if in_brackets and text[0] == '(' else items
