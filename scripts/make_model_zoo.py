#!/usr/bin/env python3
"""Write workspace_lib/model_zoo.txt anew from the tables that the installed mmcls and mmcv carry.

In: mmcls's metafiles (name, weights, config) and mmcv's model_zoo/*.json. Out: one line per name.
"""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import yaml

HOST = 'https://download.openmmlab.com/'
TARGET = Path(__file__).parents[1] / 'workspace_lib' / 'model_zoo.txt'
# Released with mmclassification 0.6 to 0.15, replaced later; notes and configs of those years name them.
REPLACED = {
    'resnet18': 'resnet18_batch256_imagenet_20200708-34ab8f90',
    'resnet34': 'resnet34_batch256_imagenet_20200708-32ffb4f7',
    'resnet50': 'resnet50_batch256_imagenet_20200708-cfb998bf',
    'resnet101': 'resnet101_batch256_imagenet_20200708-753f3608',
    'resnet152': 'resnet152_batch256_imagenet_20200708-ec25b1f9',
    'resnetv1d50': 'resnetv1d50_batch256_imagenet_20200708-1ad0ce94',
    'resnetv1d101': 'resnetv1d101_batch256_imagenet_20200708-9cb302ef',
    'resnetv1d152': 'resnetv1d152_batch256_imagenet_20200708-e79cb6a2',
}
# Weights to start from that only configs name, beside the released models.
STARTS = [
    'mmclassification/v0/resnet/resnet50_3rdparty-mill_in21k_20220331-faac000b.pth',
    'mmclassification/v0/swin-transformer/convert/swin-large_3rdparty_in21k-384px.pth',
]
OTHER_TASKS = ('mmedit/', 'kin400/')  # image editing, video


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f'{package} is not installed: its tables are what this file is made from')
    return Path(spec.origin).parent


def released() -> list[tuple[str, str, str, str]]:
    root = folder_of('mmcls') / '.mim'
    models = [model for file in yaml.safe_load((root / 'model-index.yml').read_text())['Import']
              for model in yaml.safe_load((root / file).read_text())['Models']]
    return [('mmcls', model['Name'], model['Weights'], model.get('Config', '-').removeprefix('configs/'))
            for model in models]


def named_by_mmcv(released_models: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    zoo = folder_of('mmcv') / 'model_zoo'
    config = {url: config for _, _, url, config in released_models}
    short = json.loads((zoo / 'mmcls.json').read_text())
    outside = json.loads((zoo / 'open_mmlab.json').read_text())
    renamed = json.loads((zoo / 'deprecated.json').read_text())
    outside.update({old: outside[new] for old, new in renamed.items() if new in outside})
    return [('mmcls', name, url, config.get(url, '-')) for name, url in short.items()] + [
        ('open-mmlab', name, url, '-') for name, url in outside.items() if not name.startswith(OTHER_TASKS)]


def table() -> str:
    models = released()
    rows = models + named_by_mmcv(models)
    rows += [('mmcls', stem, f'{HOST}mmclassification/v0/resnet/{stem}.pth', f'resnet/{name}_8xb32_in1k.py')
             for name, stem in REPLACED.items()]
    rows += [('mmcls', Path(path).stem, HOST + path, '-') for path in STARTS]
    strangers = [url for _, _, url, _ in rows if not url.startswith(HOST)]
    assert not strangers, strangers
    lines = sorted({f'{scheme} {name} {url.removeprefix(HOST)} {config}' for scheme, name, url, config in rows})
    return (f'# scheme, name, path below {HOST}, config of mmclassification 0.25.0. Every file also answers to its own '
            'name.\n# Written by scripts/make_model_zoo.py.\n' + '\n'.join(lines) + '\n')


if __name__ == '__main__':
    TARGET.write_text(table())
    print(f'{TARGET}: {len(TARGET.read_text().splitlines())} lines')
