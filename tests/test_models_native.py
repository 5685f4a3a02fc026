"""Which of mmclassification's recipes, read as plain files, build where neither mmcv nor mmcls can be imported."""
from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

# How many recipes of a family build, of how many.
NATIVE = {'resnet': (56, 56), 'vgg': (18, 18), 'vision_transformer': (9, 9), 'resnest': (8, 8), 'resnext': (8, 8),
          'seresnet': (8, 8), 'convnext': (5, 5), 'deit': (4, 8), 'wrn': (3, 3), 'fp16': (2, 2), 'mobilenet_v2': (2, 2),
          'csra': (1, 1), 'lenet': (1, 1)}

BUILD_ALL = '''
import json, sys, warnings
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmcv', 'mmcls'):
            raise ModuleNotFoundError(f'no module named {name}', name=name)

sys.meta_path.insert(0, Absent())
warnings.simplefilter('ignore')
import torch
from workspace_lib.config import Config
from workspace_lib.models import build_classifier

folder, built = Path(sys.argv[1]), {}
for path in sorted(folder.rglob('*.py')):
    name = str(path.relative_to(folder))
    if name.startswith('_base_'):
        continue
    try:
        model = Config.fromfile(path).model
    except FileNotFoundError:  # two recipes name a base file that upstream renamed
        continue
    try:
        with torch.device('meta'):
            built[name] = sum(p.numel() for p in build_classifier(model).parameters())
    except (KeyError, ImportError):  # a part that is not in the registry
        built[name] = 0
assert not {'mmcv', 'mmcls'} & set(sys.modules)
print(json.dumps(built))
'''


def test_at_least_120_recipes_build_without_mmcls() -> None:
    spec = find_spec('mmcls')
    if spec is None or spec.origin is None:
        pytest.skip('needs the recipes that mmcls ships (extra lab)')
    folder = Path(spec.origin).parent / '.mim' / 'configs'
    done = subprocess.run([sys.executable, '-c', BUILD_ALL, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert len(built) == 280
    native = [name for name, parameters in built.items() if parameters]
    print(f'\n{len(native)} of {len(built)} recipes:', *native, sep='\n  ')
    of, all_of = (Counter(name.split('/')[0] for name in names) for names in (native, built))
    assert {family: (of[family], all_of[family]) for family in of} == NATIVE
    assert len(native) == 125
    assert built['vgg/vgg16_8xb32_in1k.py'] == 138_357_544
    assert built['vision_transformer/vit-base-p16_ft-64xb64_in1k-384.py'] == 86_859_496
