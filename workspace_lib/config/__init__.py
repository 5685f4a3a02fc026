"""Config files that inherit from each other, and which file and line set each of their values.

In: a .py, .json or .yaml file. Out: a `Config`, a dictionary whose keys are attributes.
"""
from .config import Config, place, where
from .node import ConfigDict
from .origin import Origin, place_text

__all__ = ['Config', 'ConfigDict', 'Origin', 'place', 'place_text', 'where']
