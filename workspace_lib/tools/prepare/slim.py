"""COCO's annotations without outlines, boxes and captions, read piece by piece.

In: an `instances_*.json` of any size. Out: the same form with `id`, `file_name`, `height`, `width` of the images,
`image_id`, `category_id`, `iscrowd` of the annotations, and all of the categories. Parsed whole, the training set's
470 MB would take 3 GB of memory; so they take 20 MB.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK = 1 << 20
KEPT = {'images': ('id', 'file_name', 'height', 'width'),
        'annotations': ('id', 'image_id', 'category_id', 'iscrowd'),
        'categories': ('id', 'name', 'supercategory')}
_decoder = json.JSONDecoder()


def slim_annotations(path: Path, categories: int) -> Iterator[bytes]:
    """The content of the small file. ValueError: not such a file, or another number of categories."""
    counts = dict.fromkeys(KEPT, 0)
    yield b'{'
    with path.open(encoding='utf-8') as file:
        for key, entries in _Stream(file).lists():
            if key not in KEPT:
                for _ in entries:
                    pass
                continue
            yield f'{"," if any(counts.values()) else ""}\n"{key}": ['.encode()
            for entry in entries:
                yield f'{"," if counts[key] else ""}\n{json.dumps(_slim(entry, key))}'.encode()
                counts[key] += 1
            yield b']'
    yield b'}\n'
    if counts['categories'] != categories or not counts['images']:
        raise ValueError(f'{counts["images"]:,} images, {counts["categories"]} categories; expected {categories} '
                         'categories')


def _slim(entry: Any, key: str) -> dict[str, Any]:
    try:
        return {name: entry[name] for name in KEPT[key]}
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f'an entry of {key!r} is not of COCO\'s form ({error!r}): {str(entry)[:80]}') from error


class _Stream:
    """A JSON object whose large values are lists, of which one entry at a time is in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, '', 0

    def lists(self) -> Iterator[tuple[str, Iterator[Any]]]:
        """Key and entries of each value that is a list; the entries must be used up before the next key."""
        self._expect('{')
        while self._peek() != '}':
            key = self._value()
            self._expect(':')
            if self._peek() == '[':
                yield key, self._entries()
            else:
                self._value()
            if self._peek() == ',':
                self._at += 1

    def _entries(self) -> Iterator[Any]:
        self._expect('[')
        while self._peek() != ']':
            yield self._value()
            if self._peek() == ',':
                self._at += 1
        self._at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
                if end < len(self._text):  # else a number may go on
                    self._at = end
                    return value
            except ValueError:
                pass
            if not self._more():
                raise ValueError('the JSON is cut off or damaged')

    def _peek(self) -> str:
        """The next character that is no space."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                raise ValueError('the JSON is cut off')

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise ValueError(f'expected {character!r}, got {self._peek()!r}')
        self._at += 1

    def _more(self) -> bool:
        chunk = self._file.read(CHUNK)
        self._text, self._at = self._text[self._at:] + chunk, 0
        return bool(chunk)
