"""What constructors share: checks of an argument, and a signature that shows what is passed on to the base class.

In: a name, a value, what is known. Out: nothing, or an error that says all three.
"""
from __future__ import annotations

import inspect
from collections.abc import Collection
from numbers import Real
from typing import Any


def check_known(name: str, value: Any, known: Collection[Any], owner: Any = '') -> None:
    """ValueError unless `value` is one of the `known`; `owner`: whose argument it is, an object or a name."""
    if value not in known:
        who = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f'{who} got {name}={value!r}; known: {", ".join(map(repr, known))}'.lstrip())


def check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise TypeError(f'got {name}={value!r}; it is a number')


def check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f'got {name}={value}; a probability is between 0 and 1')


class PassesOn:
    """What a subclass passes on as **kwargs shows in its signature, so that a misspelt key is noticed."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        named: dict[str, inspect.Parameter] = {}
        for base in cls.__mro__:
            own = list(inspect.signature(vars(base).get('__init__', cls.__init__)).parameters.values())[1:]
            for p in own:
                if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                    named.setdefault(p.name, p.replace(kind=p.KEYWORD_ONLY) if base is not cls else p)
            if not any(p.kind is p.VAR_KEYWORD for p in own):
                break
        cls.__signature__ = inspect.Signature(list(named.values()))  # type: ignore[attr-defined]
