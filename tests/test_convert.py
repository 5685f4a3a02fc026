"""``workspace convert``: what it writes, what it says, what it never writes over; both ways between mmcls and here."""
from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from workspace_lib import models
from workspace_lib.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from workspace_lib.tools.cli import main
from workspace_lib.tools.convert import LAYOUTS

CONFIG = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), neck=dict(type='GlobalAveragePooling'),
              head=dict(type='LinearClsHead', num_classes=7, in_channels=512, topk=(1,),
                        loss=dict(type='CrossEntropyLoss')))


@pytest.fixture(scope='module')
def resnet() -> nn.Module:
    from torchvision.models import resnet18
    torch.manual_seed(0)
    return resnet18(num_classes=7).eval()


@pytest.fixture
def file(resnet, tmp_path) -> Path:
    torch.save(dict(model={f'module.{k}': v for k, v in resnet.state_dict().items()}, optimizer=dict(state={}),
                    epoch=3), tmp_path / 'in.pth')
    return tmp_path / 'in.pth'


def logits(model: nn.Module) -> torch.Tensor:
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval().simple_test(image, softmax=False, post_process=False)


def test_the_command_says_what_became_of_what(file, resnet, capsys):
    out = file.with_name('out.pth')
    assert main(['convert', str(file), str(out), '--to', 'mmcls']) == 0
    assert capsys.readouterr().out.splitlines() == [
        'ResNet, torchvision -> mmcls',
        '122 renamed: conv1.weight -> backbone.conv1.weight, bn1.weight -> backbone.bn1.weight, bn1.bias -> backbone.'
        'bn1.bias, bn1.running_mean -> backbone.bn1.running_mean, bn1.running_var -> backbone.bn1.running_var, '
        '... (117 more)',
        'left out: optimizer, epoch',
        f'wrote {out} ({out.stat().st_size:,} bytes, 122 tensors)']
    assert list(read_checkpoint(out)) == ['meta', 'state_dict']
    model = models.build_classifier(CONFIG)
    load_checkpoint(model, out, strict=True)
    assert torch.equal(model.backbone.layer4[1].bn2.weight, resnet.layer4[1].bn2.weight)


@pytest.mark.parametrize('to', ['torchvision', 'timm'])
def test_our_checkpoint_becomes_a_bare_state_dict_for_their_model(to, tmp_path):
    model = models.build_classifier(CONFIG).eval()
    save_checkpoint(model, tmp_path / 'in.pth', torch.optim.SGD(model.parameters(), 0.1), dict(epoch=3))
    assert main(['convert', f'{tmp_path}/in.pth', f'{tmp_path}/out.pth', '--to', to]) == 0
    if to == 'timm':
        other = pytest.importorskip('timm').create_model('resnet18', num_classes=7)
    else:
        from torchvision.models import resnet18
        other = resnet18(num_classes=7)
    other.load_state_dict(torch.load(tmp_path / 'out.pth', weights_only=True), strict=True)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(image), logits(model))


def test_an_existing_file_is_written_over_only_by_force(file, capsys):
    out = file.with_name('out.pth')
    out.write_bytes(b'mine')
    assert main(['convert', str(file), str(out), '--to', 'mmcls']) == 1
    assert out.read_bytes() == b'mine' and 'out.pth exists; --force writes over it' in capsys.readouterr().err
    assert main(['convert', str(file), str(out), '--to', 'mmcls', '--force']) == 0
    assert read_checkpoint(out)['state_dict']


def test_a_failure_while_writing_leaves_nothing(file, monkeypatch):
    def disk_full(content, handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', disk_full)
    for option in ([], ['--publish']):
        assert main(['convert', str(file), str(file.with_name('out.pth')), '--to', 'mmcls', *option]) == 1
    assert os.listdir(file.parent) == ['in.pth']


def test_publishing_names_the_file_by_its_hash_and_leaves_the_original(file, capsys):
    before = file.read_bytes()
    assert main(['convert', str(file), str(file), '--publish']) == 0
    name, = set(os.listdir(file.parent)) - {'in.pth'}
    digits = re.fullmatch(r'in_\d{8}-([0-9a-f]{8})\.pth', name)[1]
    assert hashlib.sha256((file.parent / name).read_bytes()).hexdigest().startswith(digits)
    assert file.read_bytes() == before
    assert list(read_checkpoint(file.parent / name)) == ['meta', 'state_dict']
    assert main(['convert', str(file), str(file), '--publish']) == 1, 'the same file again'
    assert 'exists; --force writes over it' in capsys.readouterr().err
    assert len(os.listdir(file.parent)) == 2


def test_the_averaged_weights_are_taken_on_request(tmp_path, resnet, capsys):
    average = {k: v + 1 for k, v in resnet.state_dict().items()}
    torch.save(dict(state_dict=resnet.state_dict(), state_dict_ema=average), tmp_path / 'in.pth')
    assert main(['convert', f'{tmp_path}/in.pth', f'{tmp_path}/out.pth', '--to', 'timm', '--ema']) == 0
    assert torch.equal(read_checkpoint(tmp_path / 'out.pth')['fc.bias'], resnet.fc.bias + 1)
    assert 'left out: state_dict\n' in capsys.readouterr().out
    assert main(['convert', f'{tmp_path}/out.pth', f'{tmp_path}/no.pth', '--to', 'timm', '--ema']) == 1
    assert 'out.pth holds no averaged weights (model_ema, state_dict_ema); it has conv1.weight' in \
        capsys.readouterr().err


def test_nothing_to_do(file, capsys):
    assert main(['convert', str(file), str(file.with_name('out.pth'))]) == 1
    assert 'nothing to do: give --to, --publish or both' in capsys.readouterr().err


def test_names_of_nobody_and_a_layout_that_is_not_theirs(tmp_path, capsys):
    torch.save({'a.b': torch.ones(1), 'c.d': torch.ones(1)}, tmp_path / 'other.pth')
    assert main(['convert', f'{tmp_path}/other.pth', f'{tmp_path}/out.pth', '--to', 'mmcls']) == 1
    assert 'these names are of no network that mmcls, torchvision or timm has here: a.b, c.d' in capsys.readouterr().err
    torch.save({'features.0.0.weight': torch.ones(1), 'features.1.conv.1.weight': torch.ones(1)}, tmp_path / 'tv.pth')
    assert main(['convert', f'{tmp_path}/tv.pth', f'{tmp_path}/out.pth', '--to', 'mmcls', '--from', 'timm']) == 1
    assert 'of no network that timm has here: features.0.0.weight' in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()


def test_a_backbone_of_mmcls_alone_is_known(tmp_path):
    torch.save({'layer1.0.conv.0.conv.weight': torch.ones(1), 'conv1.bn.bias': torch.ones(1)}, tmp_path / 'in.pth')
    assert main(['convert', f'{tmp_path}/in.pth', f'{tmp_path}/out.pth', '--to', 'torchvision']) == 0
    assert list(read_checkpoint(tmp_path / 'out.pth')) == ['features.1.conv.0.0.weight', 'features.0.1.bias']


def test_tensors_beside_the_family_are_listed(file, resnet, capsys):
    torch.save({**resnet.state_dict(), 'scale': torch.ones(1)}, file)
    assert main(['convert', str(file), str(file.with_name('out.pth')), '--to', 'mmcls']) == 0
    assert '1 of the same name: scale\n' in capsys.readouterr().out


def test_parsing_the_command_line_needs_no_torch():
    code = ('import sys; from workspace_lib.tools.cli import build_parser; build_parser(); '
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_the_command_knows_every_layout():
    from workspace_lib import layouts
    assert LAYOUTS == layouts.LAYOUTS


# mmcls itself

@pytest.fixture(scope='module')
def theirs() -> nn.Module:
    models_of_mmcls = pytest.importorskip('mmcls.models')
    torch.manual_seed(1)
    return models_of_mmcls.build_classifier(CONFIG).eval()


def test_our_checkpoint_loads_into_mmcls_and_computes_the_same(theirs, tmp_path):
    from mmcv.runner import load_checkpoint as load_as_mmcv
    torch.manual_seed(2)
    ours = models.build_classifier(CONFIG)
    ours.CLASSES = tuple('abcdefg')
    save_checkpoint(ours, tmp_path / 'c.pth', torch.optim.SGD(ours.parameters(), 0.1), dict(epoch=2))
    read = load_as_mmcv(theirs, str(tmp_path / 'c.pth'), strict=True)
    assert read['meta']['CLASSES'] == tuple('abcdefg') and read['meta']['epoch'] == 2
    assert torch.equal(logits(theirs), logits(ours))


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_a_checkpoint_of_mmcls_loads_here_whatever_its_meta_holds(legacy, theirs, tmp_path, monkeypatch, capsys):
    import mmcls
    import mmcv
    from mmcv.runner import save_checkpoint as save_as_mmcv
    plain = torch.save
    monkeypatch.setattr(torch, 'save', lambda *args: plain(*args, _use_new_zipfile_serialization=not legacy))
    theirs.CLASSES = tuple('abcdefg')
    meta = dict(epoch=5, iter=np.int64(40), mmcls_version=mmcls.__version__, config=mmcv.Config(dict(model=CONFIG)),
                hook_msgs=dict(best_score=np.float64(71.5), best_ckpt='a.pth', last_ckpt=np.str_('b.pth')))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    save_as_mmcv(theirs, str(tmp_path / 'c.pth'), optimizer, meta)
    monkeypatch.undo()
    is_zip = (tmp_path / 'c.pth').read_bytes()[:2] == b'PK'
    assert is_zip is not legacy
    ours = models.build_classifier(CONFIG)
    read = load_checkpoint(ours, tmp_path / 'c.pth', strict=True)
    assert torch.equal(logits(ours), logits(theirs))
    assert read['meta']['mmcv_version'] == mmcv.__version__ and read['meta']['hook_msgs']['best_score'] == 71.5
    assert main(['convert', f'{tmp_path}/c.pth', f'{tmp_path}/out.pth', '--to', 'mmcls']) == 0
    assert 'left out: optimizer, meta.config\n' in capsys.readouterr().out
    assert read_checkpoint(tmp_path / 'out.pth')['meta']['CLASSES'] == tuple('abcdefg')
