"""What mmcls, torchvision and timm call the same tensor, and the way from each to the others.

In: a state dict. Out: whose names they are, and the same tensors under the names of another library.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

LAYOUTS = ('mmcls', 'torchvision', 'timm')
_Rules = list[list[str]]  # rows of three names, one for each of LAYOUTS; '-' where it has no such tensor


@cache
def _sections() -> dict[str, list[str]]:
    """The rows of the file beside this one, by the name of their section."""
    _, *parts = re.split(r'^\[(.+)\]$', Path(__file__).with_suffix('.txt').read_text(), flags=re.MULTILINE)
    return {name: [row for row in rows.splitlines() if row and row[0] != '#']
            for name, rows in zip(parts[::2], parts[1::2], strict=True)}


def _rows(*names: str, **values: object) -> _Rules:
    """The rows of those sections, with `<value>` filled in."""
    text = '\n'.join(row for name in names for row in _sections()[name])
    for key, value in values.items():
        text = text.replace(f'<{key}>', str(value))
    return [row.split() for row in text.splitlines()]


def _convnext() -> _Rules:
    rows = _rows('ConvNeXt')
    for s in range(4):
        rows += _rows('ConvNeXt stage', s=s, f=2 * s + 1)
        rows += _rows('ConvNeXt downsampling', s=s, f=2 * s) if s else []
    return rows


def _vgg(convs_per_stage: Iterable[int], batch_norm: bool) -> _Rules:
    """Both count the layers of one long list; torchvision's has activation and normalisation as layers of their own."""
    rows = _rows('VGG')
    ours = theirs = 0
    for convs in convs_per_stage:
        for _ in range(convs):
            rows += _rows('VGG convolution', a=ours, b=theirs)
            rows += _rows('VGG normalisation', a=ours, b=theirs + 1) if batch_norm else []
            ours, theirs = ours + 1, theirs + (3 if batch_norm else 2)
        ours, theirs = ours + 1, theirs + 1  # the pooling
    return rows


def _mobilenet_v2() -> _Rules:
    rows = _rows('MobileNetV2')
    # Sandler et al. 2018, table 2: how often a bottleneck is repeated, after the first stage.
    places = [(s, b) for s, repeats in enumerate((2, 3, 4, 3, 3, 1), 1) for b in range(repeats)]
    for f, (s, b) in enumerate(places, 2):
        rows += _rows('MobileNetV2 bottleneck', s=s, b=b, l=s + 1, f=f)
    return rows


@cache
def families() -> dict[str, _Rules]:
    """Every family of networks by name; of two that fit the first is meant."""
    table = {
        'ResNet': _rows('plain stem', 'residual', 'shortcut'),
        'ResNetV1c': _rows('deep stem', 'residual', 'shortcut'),
        'ResNetV1d': _rows('deep stem', 'residual', 'pooled shortcut'),
        'SEResNet': _rows('plain stem', 'residual', 'shortcut', 'squeeze'),
        'ResNeSt': _rows('deep stem', 'residual', 'pooled shortcut', 'split attention'),
        'VisionTransformer': _rows('ViT', layer='encoder.layers.encoder_layer_{b}'),
        'DenseNet': _rows('DenseNet', layer='features.denseblock{s+1}.denselayer{b+1}'),
        'ConvNeXt': _convnext(), 'MobileNetV2': _mobilenet_v2(),
    }
    for depth, convs in {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}.items():
        table[f'VGG-{depth}'] = _vgg(convs, False)
        table[f'VGG-{depth} with batch normalisation'] = _vgg(convs, True)
    return table


# How released files of torchvision differ from what its models call their tensors today.
_OLD_NAMES = ((r'(denselayer\d+\.(?:norm|conv))\.(\d)', r'\1\2'), (r'\.mlp\.linear_1\.', '.mlp.0.'),
              (r'\.mlp\.linear_2\.', '.mlp.3.'))
# Name of a tensor of torchvision or timm -> (its shape there to mmcls's, and back). Neither moves a number.
_RESHAPED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    'layer_scale': (Tensor.flatten, lambda v: v[:, None, None]),
    'pre_logits.fc1.weight': (lambda v: v.flatten(1), lambda v: v.unflatten(1, (-1, 7, 7))),
    'pre_logits.fc2.weight': (lambda v: v.flatten(1), lambda v: v[:, :, None, None]),
}


def detect(names: Iterable[str], layout: str | None = None) -> tuple[str, str] | None:
    """(family, layout) of the network that knows most of the names, at least four in five of them; else None.

    Args:
        layout: look only for networks of this one of LAYOUTS.
    """
    wanted = [_today(name) for name in names]
    known = {(family, one): sum(_all_of(family, one).fullmatch(name) is not None for name in wanted)
             for family in families() for one in LAYOUTS if layout in (None, one)}
    best = max(known, key=lambda found: known[found])
    return best if wanted and known[best] >= 0.8 * len(wanted) else None


def convert(weights: dict[str, Any], to: str, found: tuple[str, str] | None = None) -> dict[str, Any]:
    """The same tensors under the names, and in the shapes, of another layout; what the family does not know stays.

    Args:
        to: one of LAYOUTS.
        found: family and layout of `weights`; default what `detect` says.

    Raises:
        ValueError: whose names these are is not known, the other library has no such network, or two tensors would get
            one name.
    """
    found = found or detect(weights)
    if found is None:
        raise ValueError(f'the names are those of no family known here; known: {", ".join(families())}')
    family, source = found
    new = {name: _renamed(_today(name), family, source, to) for name in weights}
    lost = [name for name, renamed in new.items() if renamed is None]
    if lost:
        raise ValueError(f'{to} has no name for {lost[0]} of {family} ({len(lost)} of {len(new)} tensors)')
    taken = [name for name in weights if new[name] != name and new[name] in weights]
    if taken:
        raise ValueError(f'{taken[0]} would become {new[taken[0]]}, which is there already: names of two libraries?')
    return {str(new[name]): _reshaped(value, name, str(new[name])) for name, value in weights.items()}


def _today(name: str) -> str:
    for old, new in _OLD_NAMES:
        name = re.sub(old, new, name)
    return name


def _reshaped(value: Any, old: str, new: str) -> Any:
    for name, (to_mmcls, from_mmcls) in _RESHAPED.items():
        if old.endswith(name) != new.endswith(name):
            return (to_mmcls if old.endswith(name) else from_mmcls)(value)
    return value


def _renamed(name: str, family: str, source: str, to: str) -> str | None:
    """The name in the layout `to`; None where that has no such tensor, the name itself where the family has none."""
    for pattern, template in _patterns(family, source, to):
        match = pattern.fullmatch(name)
        if match:
            return template and _filled(template, match)
    return name


def _filled(template: str, match: re.Match[str]) -> str:
    def number(part: re.Match[str]) -> str:
        return str(int(match[part[1]]) + int(part[2] or 0))

    return re.sub(r'\{(\w)([+-]1)?\}', number, template) + (match['leaf'] or '')


@cache
def _patterns(family: str, source: str, to: str) -> list[tuple[re.Pattern[str], str | None]]:
    return [_pattern(row[LAYOUTS.index(source)], row[LAYOUTS.index(to)])
            for row in families()[family] if row[LAYOUTS.index(source)] != '-']


@cache
def _all_of(family: str, layout: str) -> re.Pattern[str]:
    return re.compile('|'.join(re.sub(r'\?P<\w+>', '', p.pattern) for p, _ in _patterns(family, layout, 'mmcls')))


def _pattern(source: str, target: str) -> tuple[re.Pattern[str], str | None]:
    """What to look for, and what to put there; a number that the source counts from one is that of `{s+1}`."""
    for name in re.findall(r'\{(\w)\+1\}', source):
        source = source.replace(f'{{{name}+1}}', f'{{{name}}}')
        target = target.replace(f'{{{name}}}', f'{{{name}-1}}').replace(f'{{{name}+1}}', f'{{{name}}}')
    pattern = re.sub(r'\\\{(\w)\\\}', r'(?P<\1>\\d+)', re.escape(source))
    return re.compile(pattern + r'(?P<leaf>\.[a-z_]+)?'), None if target == '-' else target
