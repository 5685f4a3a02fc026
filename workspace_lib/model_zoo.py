"""The names of published weights: which address stands behind `mmcls://resnet50_8xb32_in1k`.

In: `mmcls://`, `open-mmlab://`, `torchvision://` (or `openmmlab://`, `modelzoo://`) and a name. Out: an address.
"""
from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

SCHEMES = ('mmcls', 'open-mmlab', 'openmmlab', 'torchvision', 'modelzoo')
_HOST = 'https://download.openmmlab.com/'
_File = tuple[str, str]  # path below _HOST, config in mmclassification or '-'


def address_of(scheme: str, name: str) -> str:
    """Where the weights of that name are.

    Args:
        scheme: one of SCHEMES.
        name: the name or the file name of a model of mmclassification 0.25; a name of mmcv's table; of a torchvision
            model, with `.imagenet1k_v2` or the like for other weights than its first.

    Raises:
        ValueError: nothing has that name; the nearest are listed.
    """
    if scheme in ('torchvision', 'modelzoo'):
        return _of_torchvision(name)
    tables = _names()
    own = tables['open-mmlab' if scheme.startswith('open') else 'mmcls']
    known = {**_files(), **tables['open-mmlab'], **tables['mmcls'], **own}  # of two with one name the scheme's own
    found = known.get(name.removesuffix('.pth'))
    if found is None:
        raise ValueError(f'{scheme}://{name} is unknown; nearest: {nearest(name, [*known])}')
    return _HOST + found[0]


def config_of(filename: str) -> str | None:
    """mmclassification's config of published weights, by the name of their file; None for other files."""
    config = _files().get(PurePosixPath(filename).name.removesuffix('.pth'), ('', '-'))[1]
    return None if config == '-' else config


@cache
def _names() -> dict[str, dict[str, _File]]:
    table: dict[str, dict[str, _File]] = {'mmcls': {}, 'open-mmlab': {}}
    for line in Path(__file__).with_suffix('.txt').read_text().splitlines():
        if not line.startswith('#'):
            scheme, name, path, config = line.split()
            table[scheme][name] = path, config
    return table


@cache
def _files() -> dict[str, _File]:
    return {PurePosixPath(file[0]).stem: file for names in _names().values() for file in names.values()}


def _of_torchvision(name: str) -> str:
    """Without a choice the first weights, as in mmcv; `ResNet50_Weights.IMAGENET1K_V2` is understood too."""
    from torchvision import models

    model, _, tag = name.lower().replace('_weights', '').partition('.')
    known = models.list_models(module=models)
    if model not in known:
        raise ValueError(f'torchvision://{name} is unknown; nearest: {nearest(model, known)}')
    weights = {key.lower(): one for key, one in models.get_model_weights(model).__members__.items()}
    tag = tag or next(iter(weights), '')
    if tag not in weights:
        raise ValueError(f'torchvision has no such weights of {model}: {tag!r}; it has {", ".join(weights) or "none"}')
    return weights[tag].url


def nearest(name: str, known: Sequence[str]) -> str:
    """The three known names nearest to `name`, or 'none'."""
    return ', '.join(difflib.get_close_matches(name, known, 3, 0.4)) or 'none'
