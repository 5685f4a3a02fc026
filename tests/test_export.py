"""An exported file says what the model says, for any batch; one that does not is caught."""
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from workspace_lib.apis import init_model
from workspace_lib.tools import export as export_module
from workspace_lib.tools.cli import main
from workspace_lib.tools.export import export_onnx, verify_onnx

DIGITS = 'lenet/lenet5_mnist5k.py'


def lenet(seed: int = 0):
    torch.manual_seed(seed)
    return init_model(DIGITS, device='cpu')


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return export_onnx(lenet(), tmp_path_factory.mktemp('onnx') / 'lenet.onnx')


def session_of(file):
    import onnxruntime
    return onnxruntime.InferenceSession(str(file))


def test_input_and_output_are_named_and_the_batch_is_free(file):
    session = session_of(file)
    (img,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (img.name, img.type, img.shape[1:]) == ('img', 'tensor(float)', [1, 32, 32])
    assert (scores.name, scores.shape[1:]) == ('scores', [10])
    assert isinstance(img.shape[0], str) and img.shape[0] == scores.shape[0]


@pytest.mark.parametrize('batch', [1, 2, 7])
def test_the_scores_are_those_of_a_test(file, batch):
    img = torch.randn(batch, 1, 32, 32)
    theirs = session_of(file).run(None, {'img': img.numpy()})[0]
    np.testing.assert_allclose(theirs, np.stack(lenet()(img, return_loss=False)), atol=1e-6)


def test_verification_passes_on_noise_and_on_a_real_digit(file):
    from workspace_lib.datasets import build_dataset
    from workspace_lib.recipes import load_config
    digit = build_dataset(load_config(DIGITS).data.test).load_image(0)
    found = verify_onnx(lenet(), file, [digit])
    assert [(c.name, c.images) for c in found] == [('noise, batch of 1', 1), ('noise, batch of 3', 3), ('image 0', 1)]
    assert not any(c.fails for c in found) and max(c.difference for c in found) < 1e-5


def test_the_file_of_other_weights_fails_verification(file):
    assert all(c.fails for c in verify_onnx(lenet(seed=1), file))


def test_the_model_of_the_caller_stays_as_it_is(tmp_path):
    model = lenet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / 'm.onnx')
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class ReadsItsBatch(torch.nn.Module):
    def forward(self, img):
        return torch.cat([img.mean((2, 3))] * 10, 1) + torch.zeros(len(img), 10)


def test_a_model_that_would_fix_the_batch_is_refused_with_the_way_out(tmp_path):
    model = lenet()
    model.backbone = ReadsItsBatch()
    with pytest.raises(RuntimeError, match=r'x\.shape\[0\] in place of len\(x\)'):
        export_onnx(model, tmp_path / 'm.onnx', (1, 32, 32))
    assert not (tmp_path / 'm.onnx').exists()


def test_one_size_of_batch_on_request(tmp_path):
    model = lenet()
    model.backbone = ReadsItsBatch()
    path = export_onnx(model, tmp_path / 'm.onnx', (1, 32, 32), batch_size=3)
    assert session_of(path).get_inputs()[0].shape == [3, 1, 32, 32]
    found = verify_onnx(lenet(), export_onnx(lenet(), path, batch_size=2), [np.zeros((28, 28), np.uint8)])
    assert [(c.name, c.images, c.fails) for c in found] == [('noise, batch of 2', 2, False), ('image 0', 2, False)]


@pytest.fixture
def weights(tmp_path):
    torch.save({'state_dict': lenet().state_dict()}, tmp_path / 'lenet.pth')
    return str(tmp_path / 'lenet.pth')


def test_the_command_exports_and_verifies_on_the_test_set(weights, tmp_path, capsys):
    out = tmp_path / 'model.onnx'
    assert main(['export', DIGITS, weights, '--output', str(out), '--verify']) == 0
    printed = capsys.readouterr().out
    assert out.stat().st_size > 200_000 and 'image 3' in printed and 'largest difference of a score' in printed


def test_a_difference_is_exit_status_1(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_module, 'TOLERANCE', -1.)
    assert main(['pytorch2onnx', DIGITS, weights, '--output', str(tmp_path / 'm.onnx'), '--verify']) == 1
    assert 'FAILED: noise, batch of 1' in capsys.readouterr().out


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_is_an_error_with_the_command_to_install_it(weights, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(['export', DIGITS, weights, '--output', str(tmp_path / 'm.onnx'), '--verify']) == 1
    assert f'pip install {package}' in capsys.readouterr().err
    assert not (tmp_path / 'm.onnx').exists()


def test_a_path_that_cannot_be_written_is_found_first(weights, capsys):
    for output, said in (('model.pt', '.onnx'), ('/nowhere/model.onnx', 'does not exist')):
        assert main(['export', DIGITS, weights, '--output', output]) == 1
        assert said in capsys.readouterr().err


def test_images_of_another_size_than_the_file_are_resized(tmp_path):
    torch.manual_seed(0)
    model = init_model('resnet/resnet50_8xb32_in1k.py', None, 'cpu', {
        'model.backbone.depth': 18, 'model.backbone.base_channels': 8, 'model.head.in_channels': 64})
    path = export_onnx(model, tmp_path / 'small.onnx', shape=(3, 64, 64))
    image = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    found = verify_onnx(model, path, [image], shape=(3, 64, 64))
    assert [c.fails for c in found] == [False] * 3
