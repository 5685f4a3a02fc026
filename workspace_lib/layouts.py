"""What mmcls, torchvision and timm call the same tensor, and the way from each to the others.

In: a state dict. Out: whose names they are, and the same tensors under the names of another library.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from torch import Tensor

LAYOUTS = ('mmcls', 'torchvision', 'timm')
_Rules = list[list[str]]  # rows of three names, one for each of LAYOUTS; '-' where it has no such tensor


def _rows(text: str) -> _Rules:
    return [line.split() for line in text.splitlines() if line]


def _with(text: str, **values: object) -> _Rules:
    """The rows with `<name>` filled in."""
    for name, value in values.items():
        text = text.replace(f'<{name}>', str(value))
    return _rows(text)


# mmcls, torchvision, timm. A row is a layer, or a tensor that belongs to none; `{i}` is a number, `{i+1}` the next.
_PLAIN_STEM = '''
backbone.conv1                      conv1                       conv1
backbone.bn1                        bn1                         bn1
'''
_DEEP_STEM = '''
backbone.stem.0.conv                -                           conv1.0
backbone.stem.0.bn                  -                           conv1.1
backbone.stem.1.conv                -                           conv1.3
backbone.stem.1.bn                  -                           conv1.4
backbone.stem.2.conv                -                           conv1.6
backbone.stem.2.bn                  -                           bn1
'''
_RESIDUAL = '''
backbone.layer{s}.{b}.conv{i}       layer{s}.{b}.conv{i}        layer{s}.{b}.conv{i}
backbone.layer{s}.{b}.bn{i}         layer{s}.{b}.bn{i}          layer{s}.{b}.bn{i}
head.fc                             fc                          fc
'''
_SHORTCUT = '''
backbone.layer{s}.{b}.downsample.0  layer{s}.{b}.downsample.0   layer{s}.{b}.downsample.0
backbone.layer{s}.{b}.downsample.1  layer{s}.{b}.downsample.1   layer{s}.{b}.downsample.1
'''
# The first stage halves nothing: timm keeps the place of the pooling, mmcls does not.
_POOLED_SHORTCUT = '''
backbone.layer1.0.downsample.0      -                           layer1.0.downsample.1
backbone.layer1.0.downsample.1      -                           layer1.0.downsample.2
backbone.layer{s}.{b}.downsample.1  -                           layer{s}.{b}.downsample.1
backbone.layer{s}.{b}.downsample.2  -                           layer{s}.{b}.downsample.2
'''
_SQUEEZE = '''
backbone.layer{s}.{b}.se_layer.conv{i}.conv -                   layer{s}.{b}.se.fc{i}
'''
_SPLIT_ATTENTION = '''
backbone.layer{s}.{b}.conv2.conv    -                           layer{s}.{b}.conv2.conv
backbone.layer{s}.{b}.conv2.bn{i}   -                           layer{s}.{b}.conv2.bn{i}
backbone.layer{s}.{b}.conv2.fc{i}   -                           layer{s}.{b}.conv2.fc{i}
'''
_VIT = '''
backbone.cls_token                  class_token                 cls_token
backbone.pos_embed                  encoder.pos_embedding       pos_embed
backbone.patch_embed.projection     conv_proj                   patch_embed.proj
backbone.layers.{b}.ln{i}           <layer>.ln_{i}              blocks.{b}.norm{i}
backbone.layers.{b}.attn.qkv.weight <layer>.self_attention.in_proj_weight   blocks.{b}.attn.qkv.weight
backbone.layers.{b}.attn.qkv.bias   <layer>.self_attention.in_proj_bias     blocks.{b}.attn.qkv.bias
backbone.layers.{b}.attn.proj       <layer>.self_attention.out_proj         blocks.{b}.attn.proj
backbone.layers.{b}.ffn.layers.0.0  <layer>.mlp.0               blocks.{b}.mlp.fc1
backbone.layers.{b}.ffn.layers.1    <layer>.mlp.3               blocks.{b}.mlp.fc2
backbone.ln1                        encoder.ln                  norm
head.layers.head                    heads.head                  head
'''
_DENSENET = '''
backbone.stem.0                     features.conv0              features.conv0
backbone.stem.1                     features.norm0              features.norm0
backbone.stages.{s}.block.{b}.norm{i}   <layer>.norm{i}         <layer>.norm{i}
backbone.stages.{s}.block.{b}.conv{i}   <layer>.conv{i}         <layer>.conv{i}
backbone.transitions.{s}.norm       features.transition{s+1}.norm   features.transition{s+1}.norm
backbone.transitions.{s}.conv       features.transition{s+1}.conv   features.transition{s+1}.conv
backbone.transitions.3.0            features.norm5              features.norm5
head.fc                             classifier                  classifier
'''


def _convnext() -> _Rules:
    rows = _rows('''
backbone.downsample_layers.0.{i}    features.0.{i}              stem.{i}
backbone.norm3                      classifier.0                head.norm
head.fc                             classifier.2                head.fc
''')
    for s in range(4):
        rows += _with('''
backbone.stages.<s>.{b}.gamma           features.<f>.{b}.layer_scale    stages.<s>.blocks.{b}.gamma
backbone.stages.<s>.{b}.depthwise_conv  features.<f>.{b}.block.0        stages.<s>.blocks.{b}.conv_dw
backbone.stages.<s>.{b}.norm            features.<f>.{b}.block.2        stages.<s>.blocks.{b}.norm
backbone.stages.<s>.{b}.pointwise_conv1 features.<f>.{b}.block.3        stages.<s>.blocks.{b}.mlp.fc1
backbone.stages.<s>.{b}.pointwise_conv2 features.<f>.{b}.block.5        stages.<s>.blocks.{b}.mlp.fc2
''', s=s, f=2 * s + 1)
        if s:
            rows += _with('backbone.downsample_layers.<s>.{i} features.<f>.{i} stages.<s>.downsample.{i}',
                              s=s, f=2 * s)
    return rows


def _vgg(convs_per_stage: Iterable[int], batch_norm: bool) -> _Rules:
    """Both count the layers of one long list; torchvision's has activation and normalisation as layers of their own."""
    rows = _rows('''
backbone.classifier.0               classifier.0                pre_logits.fc1
backbone.classifier.3               classifier.3                pre_logits.fc2
backbone.classifier.6               classifier.6                head.fc
''')
    ours = theirs = 0
    for convs in convs_per_stage:
        for _ in range(convs):
            rows += _with('backbone.features.<a>.conv features.<b> features.<b>', a=ours, b=theirs)
            if batch_norm:
                rows += _with('backbone.features.<a>.bn features.<b> features.<b>', a=ours, b=theirs + 1)
            ours, theirs = ours + 1, theirs + (3 if batch_norm else 2)
        ours, theirs = ours + 1, theirs + 1  # the pooling
    return rows


def _mobilenet_v2() -> _Rules:
    rows = _rows('''
backbone.conv1.conv                 features.0.0                conv_stem
backbone.conv1.bn                   features.0.1                bn1
backbone.conv2.conv                 features.18.0               conv_head
backbone.conv2.bn                   features.18.1               bn2
head.fc                             classifier.1                classifier
backbone.layer1.0.conv.0.conv       features.1.conv.0.0         blocks.0.0.conv_dw
backbone.layer1.0.conv.0.bn         features.1.conv.0.1         blocks.0.0.bn1
backbone.layer1.0.conv.1.conv       features.1.conv.1           blocks.0.0.conv_pw
backbone.layer1.0.conv.1.bn         features.1.conv.2           blocks.0.0.bn2
''')
    # Sandler et al. 2018, table 2: how often a bottleneck is repeated, after the first stage.
    places = [(s, b) for s, repeats in enumerate((2, 3, 4, 3, 3, 1), 1) for b in range(repeats)]
    for f, (s, b) in enumerate(places, 2):
        rows += _with('''
backbone.layer<l>.<b>.conv.0.conv   features.<f>.conv.0.0       blocks.<s>.<b>.conv_pw
backbone.layer<l>.<b>.conv.0.bn     features.<f>.conv.0.1       blocks.<s>.<b>.bn1
backbone.layer<l>.<b>.conv.1.conv   features.<f>.conv.1.0       blocks.<s>.<b>.conv_dw
backbone.layer<l>.<b>.conv.1.bn     features.<f>.conv.1.1       blocks.<s>.<b>.bn2
backbone.layer<l>.<b>.conv.2.conv   features.<f>.conv.2         blocks.<s>.<b>.conv_pwl
backbone.layer<l>.<b>.conv.2.bn     features.<f>.conv.3         blocks.<s>.<b>.bn3
''', s=s, b=b, l=s + 1, f=f)
    return rows


@cache
def families() -> dict[str, _Rules]:
    """Every family of networks by name; of two that fit the first is meant."""
    table = {
        'ResNet': _rows(_PLAIN_STEM + _RESIDUAL + _SHORTCUT),
        'ResNetV1c': _rows(_DEEP_STEM + _RESIDUAL + _SHORTCUT),
        'ResNetV1d': _rows(_DEEP_STEM + _RESIDUAL + _POOLED_SHORTCUT),
        'SEResNet': _rows(_PLAIN_STEM + _RESIDUAL + _SHORTCUT + _SQUEEZE),
        'ResNeSt': _rows(_DEEP_STEM + _RESIDUAL + _POOLED_SHORTCUT + _SPLIT_ATTENTION),
        'VisionTransformer': _with(_VIT, layer='encoder.layers.encoder_layer_{b}'),
        'DenseNet': _with(_DENSENET, layer='features.denseblock{s+1}.denselayer{b+1}'),
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
