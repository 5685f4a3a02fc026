"""Classes of mmclassification 0.25 and mmcv 1.7 for names that this library does not have.

In: where a table of theirs stands, as `mmcls.models.builder:MODELS`. Out: its classes by name, or why there are none.
"""
from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

INSTALL = 'pip install mmcv==1.7.2 mmcls==0.25.0'
#: What they do through their own runner: here the runner's parts do it, under the names that a config gives.
_OWN_WORK = ('LoggerHook', 'LrUpdaterHook', 'MomentumUpdaterHook', 'OptimizerHook', 'DistSamplerSeedHook')


class Offer(NamedTuple):
    """`classes` by name, and what to say of a name that is not among them."""

    classes: Mapping[str, Callable[..., Any]]
    absent: str


def offer(table: str) -> Offer:
    """What another package has registered in `table` by now; imports it on the first call, which takes seconds."""
    module, _, name = table.partition(':')
    try:
        registry = getattr(_quietly_imported(module), name)
    except Exception as error:  # not there, or too old or too new for what else is installed
        if isinstance(error, ModuleNotFoundError) and (error.name or '').partition('.')[0] in ('mmcls', 'mmcv'):
            return Offer({}, f' A class of mmclassification would be borrowed from it: {INSTALL}')
        return Offer({}, f' mmcls, of which it might be borrowed, cannot be imported: {type(error).__name__}: {error}')
    classes = {key: cls for key, cls in registry.module_dict.items() if _is_lendable(table, cls)}
    return Offer(classes, f' {lender_of(next(iter(classes.values())))} does not lend it either.')


def lender_of(cls: Callable[..., Any]) -> str:
    """Package and version that a class comes from: `mmcls 0.25.0`."""
    package = cls.__module__.partition('.')[0]
    return f'{package} {getattr(importlib.import_module(package), "__version__", "")}'.strip()


def _quietly_imported(module: str) -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that a part of torch which mmcv imports finds no CUDA
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that mmcv 1.x is old: whoever borrows knows
            # What counts as made is left as it is: making a logger, mmcv turns down the root's handlers.
            importlib.import_module('mmcv.utils.logging').logger_initialized.update(mmcv=True, mmcls=True)
            for name in ('mmcls.models', 'mmcls.datasets', 'mmcls.core'):
                importlib.import_module(name)  # fills the tables, also those of mmcv
            imported = importlib.import_module(module)
        logging.getLogger('mmcv').setLevel(logging.WARNING)  # it would print every parameter that it initialises
    finally:
        logging.disable(before)
    # What torch and numpy say about their code is for those who maintain it.
    warnings.filterwarnings('ignore', module=r'mm(cv|cls)\.')
    warnings.filterwarnings('ignore', message='torch.meshgrid: in an upcoming release')
    return imported


def _is_lendable(table: str, cls: Any) -> bool:
    """Hooks that need their runner, and data sets that are made of data sets, cannot work by themselves."""
    bases = {base.__name__ for base in getattr(cls, '__mro__', ())}
    if table.endswith(':HOOKS'):
        return bases.isdisjoint(_OWN_WORK)
    return not table.endswith(':DATASETS') or 'BaseDataset' in bases
