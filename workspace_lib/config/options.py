"""`DictAction`: `--cfg-options model.backbone.depth=18 data.train.pipeline.1.size=32` as a dictionary."""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import accumulate
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
        in_brackets = text[:1] + text[-1:] in ('()', '[]') and _closes_last(text)
        if not in_brackets and ',' not in text:
            return DictAction._parse_int_float_bool(text)
        if text.count('(') != text.count(')') or text.count('[') != text.count(']'):
            raise AssertionError(f'Imbalanced brackets exist in {text}')
        items = [DictAction._parse_iterable(part) for part in _split(text[1:-1] if in_brackets else text)]
        return tuple(items) if in_brackets and text[0] == '(' else items


def _depths(text: str) -> Iterator[int]:
    """How many brackets are open after each character."""
    return accumulate((char in '([') - (char in ')]') for char in text)


def _closes_last(text: str) -> bool:
    """Whether the first bracket stays open until the last character."""
    return all(depth > 0 for depth in _depths(text[:-1]))


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside of brackets; a comma at the end adds none."""
    start = 0
    for end, (char, depth) in enumerate(zip(text, _depths(text), strict=True)):
        if char == ',' and depth == 0:
            yield text[start:end]
            start = end + 1
    if text[start:]:
        yield text[start:]
