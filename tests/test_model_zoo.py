"""The names under which weights were published, and the addresses behind them."""
from __future__ import annotations

import importlib.util
import json
import re
import runpy
from pathlib import Path

import pytest

from workspace_lib.model_zoo import address_of, config_of

ROOT = Path(__file__).parents[1]
HOST = 'https://download.openmmlab.com/'
NOTES = 'resnet50_batch256_imagenet_20200708-cfb998bf'


@pytest.mark.parametrize('scheme, name, path', [
    ('mmcls', 'resnet50_8xb32_in1k', 'mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'),
    ('mmcls', 'resnet50', 'mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'),
    ('mmcls', 'resnet50_8xb32_in1k_20210831-ea4938fc',
     'mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'),
    ('open-mmlab', 'resnet50_8xb32_in1k_20210831-ea4938fc.pth',
     'mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'),
    ('mmcls', NOTES, f'mmclassification/v0/resnet/{NOTES}.pth'),
    ('open-mmlab', NOTES, f'mmclassification/v0/resnet/{NOTES}.pth'),
    ('mmcls', 'resnest50', 'mmclassification/v0/resnest/resnest50_imagenet_converted-1ebf0afe.pth'),
    ('open-mmlab', 'resnest50', 'pretrain/third_party/resnest50_d2-7497a55b.pth'),
    ('openmmlab', 'resnext50_32x4d', 'pretrain/third_party/resnext50-32x4d-0ab1a123.pth'),
    ('mmcls', 'darknet53', 'pretrain/third_party/darknet53-a628ea1b.pth'),
    ('open-mmlab', 'resnet50_caffe', 'pretrain/third_party/resnet50_caffe-788b5fa3.pth'),
    ('open-mmlab', 'detectron2/resnet50_caffe', 'pretrain/third_party/resnet50_msra-5891d200.pth'),
    ('mmcls', 'vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384', 'mmclassification/v0/vit/finetune/vit-base-p16_'
     'in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth'),
])
def test_names_lead_to_addresses(scheme, name, path):
    assert address_of(scheme, name) == HOST + path


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r'mmcls://resnet50_8xb32_in1 is unknown; nearest: resnet50_8xb32_in1k,'):
        address_of('mmcls', 'resnet50_8xb32_in1')


def test_the_config_of_published_weights_is_known_by_the_file():
    assert config_of(f'/data/{NOTES}.pth') == 'resnet/resnet50_8xb32_in1k.py'
    assert config_of('mmcls://seresnet50_8xb32_in1k') is None, 'a name is no file'
    assert config_of('se-resnet50_batch256_imagenet_20200804-ae206104.pth') == 'seresnet/seresnet50_8xb32_in1k.py'
    assert config_of('resnext50-32x4d-0ab1a123.pth') is None and config_of('epoch_9.pth') is None


def test_every_published_file_but_one_carries_its_hash():
    lines = [line.split() for line in (ROOT / 'workspace_lib/model_zoo.txt').read_text().splitlines()[2:]]
    assert len(lines) > 300 and {len(line) for line in lines} == {4}
    without = {path for _, _, path, _ in lines if not re.search(r'-[0-9a-f]{8}\.pth$', path)}
    assert without == {'mmclassification/v0/swin-transformer/convert/swin-large_3rdparty_in21k-384px.pth'}


def test_the_table_is_what_mmcls_and_mmcv_say():
    pytest.importorskip('mmcls')
    table = runpy.run_path(str(ROOT / 'scripts/make_model_zoo.py'))['table']()
    assert table == (ROOT / 'workspace_lib/model_zoo.txt').read_text(), 'run scripts/make_model_zoo.py'


@pytest.mark.parametrize('name, file', [
    ('resnet50', 'resnet50-0676ba61.pth'), ('resnet50.imagenet1k_v2', 'resnet50-11ad3fa6.pth'),
    ('ResNet50_Weights.IMAGENET1K_V2', 'resnet50-11ad3fa6.pth'), ('resnet50.default', 'resnet50-11ad3fa6.pth'),
    ('vit_b_16', 'vit_b_16-c867db91.pth'),
])
def test_torchvisions_weights(name, file):
    assert address_of('torchvision', name) == f'https://download.pytorch.org/models/{file}'


def test_unknown_weights_of_torchvision():
    with pytest.raises(ValueError, match=r'torchvision://resnet51 is unknown; nearest: resnet50'):
        address_of('torchvision', 'resnet51')
    with pytest.raises(ValueError, match=r"no such weights of resnet18: 'v9'; it has imagenet1k_v1"):
        address_of('modelzoo', 'resnet18.v9')


def test_a_bare_name_of_torchvision_means_what_it_means_in_mmcv():
    spec = importlib.util.find_spec('mmcv')
    if spec is None:
        pytest.skip('mmcv is not installed')
    theirs = json.loads((Path(spec.origin).parent / 'model_zoo/torchvision_0.12.json').read_text())
    ours = {}
    for name in theirs:
        try:
            ours[name] = address_of('torchvision', name)
        except ValueError:  # torchvision itself no longer has the name
            assert name == 'inception_v3_google' or name.startswith('shufflenetv2_x')
    # These files torchvision has replaced since.
    assert {name for name, url in ours.items() if url != theirs[name]} == {f'efficientnet_b{i}' for i in range(8)}
