"""`{{ fileDirname }}` and `{{ _base_.key }}` in config files.

The first are replaced in the text; the second become tokens, in whose place the bases' values are put later.
"""
from __future__ import annotations

import os
import re
from typing import Any

from .merge import near_names

_FILE_VAR = re.compile(r'\{\{\s*(fileDirname|fileBasenameNoExtension|fileBasename|fileExtname)\s*\}\}')
_BASE_VAR = re.compile(r'\{\{\s*_base_\.([\w.]+)\s*\}\}')
_JSON_STRING_OR_BASE_VAR = re.compile(r'"(?:[^"\\]|\\.)*"|' + _BASE_VAR.pattern)
_TOKEN = re.compile(r'__base_var_(\d+)__')


class BaseVar:
    """Stands for `{{ _base_.key }}` while a Python file runs, before its bases are known; has no operations."""

    def __init__(self, token: str):
        self.token = token

    def __repr__(self) -> str:
        return self.token

    def __bool__(self) -> bool:
        raise TypeError('{{ _base_.key }} is known only after the file has run; it cannot be tested')


def substitute(filename: str, text: str, file_vars: bool = True) -> tuple[str, list[str]]:
    """The text with the placeholders replaced, line for line, and the key that each token stands for."""
    if '{{' not in text:
        return text, []
    if file_vars:
        text = _substitute_file_vars(filename, text)
    keys: list[str] = []

    def token(match: re.Match[str]) -> str:
        keys.append(match[1])
        return f'__base_var_{len(keys) - 1}__' + '\n' * match[0].count('\n')

    def json_token(match: re.Match[str]) -> str:  # JSON has no bare words
        return _BASE_VAR.sub(token, match[0]) if match[0][0] == '"' else f'"{token(match)}"'

    if filename.endswith('.json'):
        return _JSON_STRING_OR_BASE_VAR.sub(json_token, text), keys
    return _BASE_VAR.sub(token, text), keys


def _substitute_file_vars(filename: str, text: str) -> str:
    stem, extension = os.path.splitext(os.path.basename(filename))
    known = {'fileDirname': os.path.dirname(filename).replace('\\', '/'), 'fileBasename': stem + extension,
             'fileBasenameNoExtension': stem, 'fileExtname': extension}
    return _FILE_VAR.sub(lambda match: known[match[1]], text)


def token_number(text: Any) -> int | None:
    """Which of a file's placeholders `text` is the token of, if it is one."""
    match = _TOKEN.fullmatch(text) if isinstance(text, str) else None
    return int(match[1]) if match else None


class BaseValues:
    """The values of a file's bases (None: it has none), to be put in the place of its tokens."""

    def __init__(self, filename: str, text: str, keys: list[str], values: dict[Any, Any] | None):
        self.filename, self.text, self.keys, self.values = filename, text, keys, values

    def resolve(self, value: Any) -> Any:
        """`value` with every token in it resolved, in keys too."""
        if isinstance(value, dict):
            return {self.resolve(key): self.resolve(item) for key, item in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)([self.resolve(item) for item in value])
        text = value.token if type(value) is BaseVar else value
        match = _TOKEN.search(text) if isinstance(text, str) and '__base_var_' in text else None
        if match is None or int(match[1]) >= len(self.keys):
            return value
        if match[0] != text:
            raise ValueError(f'{self.name(int(match[1]))} is part of a longer string; it must be the whole value')
        return self.find(int(match[1]))[1]

    def find(self, number: int) -> tuple[list[Any], Any]:
        """The keys that lead to the value that a token stands for, and the value."""
        if self.values is None:
            raise ValueError(f'{self.name(number)} refers to nothing: the file has no `_base_`')
        keys, value = list[Any](), self.values
        for part in self.keys[number].split('.'):
            key = int(part) if isinstance(value, list | tuple) and part.isdigit() else part
            if not has_key(value, key):
                near = near_names(key, value if isinstance(value, dict) else ())
                raise KeyError(f'{self.name(number)}: the bases have no {key!r} there{near}')
            keys.append(key)
            value = value[key]
        return keys, value

    def name(self, number: int) -> str:
        match = list(_BASE_VAR.finditer(self.text))[number]
        return f'{match[0]} in {self.filename}:{self.text.count(chr(10), 0, match.start()) + 1}'


def has_key(values: Any, key: Any) -> bool:
    if isinstance(values, dict):
        return key in values
    return isinstance(values, (list, tuple)) and isinstance(key, int) and 0 <= key < len(values)
