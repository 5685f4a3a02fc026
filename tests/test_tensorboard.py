"""What is in TensorBoard's files: scalars, the first batch, the config, and pictures of an evaluation; read back."""
from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from workspace_lib.datasets.pipeline import DeviceStage
from workspace_lib.datasets.transforms import Normalize
from workspace_lib.hooks import OptimizerHook
from workspace_lib.log_writers import TensorboardLoggerHook
from workspace_lib.loops import EvalHook
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.tools.cli import main
from workspace_lib.tools.eval_pictures import evaluation_pictures, show_evaluations

events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
MEAN, STD = [10., 20., 30.], [2., 3., 4.]


class Mean(nn.Module):
    """Scores by the colour of an image; `train_step` as the classifiers have it."""

    def __init__(self, channels=3):
        super().__init__()
        self.fc = nn.Linear(channels, 3)

    def train_step(self, data, optimizer=None):
        loss = nn.functional.cross_entropy(self.fc(data['img'].mean((2, 3))), data['gt_label'])
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(data['img']))

    def forward(self, img, return_loss=False):
        return list(self.fc(img.mean((2, 3))).softmax(1).numpy())


class Batches(list):
    """One batch of four 8 x 6 images, uint8 BGR `source` after the device stage."""

    def __init__(self, to_rgb=True, channels=3):
        self.source = torch.randint(0, 256, (4, channels, 8, 6), dtype=torch.uint8,
                                    generator=torch.Generator().manual_seed(0))
        self.device_stage = DeviceStage(Normalize(MEAN[:channels], STD[:channels], to_rgb))
        super().__init__([dict(img=self.device_stage(self.source), gt_label=torch.tensor([0, 1, 2, 0]))])


class Images:
    """A test set of nine plain images."""

    def __init__(self, classes=('red', 'green', 'blue'), labels=None):
        self.CLASSES = classes
        self.labels = np.arange(9) % len(classes) if labels is None else labels

    def __len__(self):
        return len(self.labels)

    def get_gt_labels(self):
        return self.labels

    def load_image(self, index):
        return np.full((8, 6, 3), index % 256, np.uint8)

    def evaluate(self, results, logger=None, **options):
        return dict(accuracy=50.)


class OneBatch(list):
    def __init__(self, dataset):
        self.dataset = dataset
        super().__init__([dict(img=torch.zeros(len(dataset), 3, 8, 6))])


def run(tmp_path, loader=None, dataset=None, meta=None, pictures=evaluation_pictures, epochs=1, model=None):
    torch.manual_seed(0)
    model = model or Mean()
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1), work_dir=tmp_path, meta=meta,
                              max_epochs=epochs, logger=logging.getLogger('workspace_lib.test_board'))
    evaluation = [EvalHook(OneBatch(dataset))] if dataset else []
    for one in (OptimizerHook(), TensorboardLoggerHook(interval=1), *evaluation):
        runner.register_hook(one)
    if pictures:
        show_evaluations(runner, pictures)
    runner.run([loader or Batches()], [('train', 1)])
    return read(tmp_path / 'tf_logs')


def read(folder):
    return events.EventAccumulator(str(folder), size_guidance={'images': 0, 'scalars': 0}).Reload()


def image(log, tag, at=-1):
    return np.asarray(Image.open(io.BytesIO(log.Images(tag)[at].encoded_image_string)).convert('RGB'))


def side_by_side(source):
    """Pictures (N, 3, H, W) in a row."""
    return np.hstack(list(source.permute(0, 2, 3, 1).numpy())).astype(int)


@pytest.mark.parametrize('to_rgb', [True, False])
def test_the_first_batch_has_the_colours_of_its_files(tmp_path, to_rgb):
    loader = Batches(to_rgb)
    log = run(tmp_path, loader)
    assert len(log.Images('train/first batch')) == 1
    found = image(log, 'train/first batch').astype(int)
    assert abs(found - side_by_side(loader.source.flip(1))).max() <= 1  # BGR files, an RGB picture


def test_a_grey_batch(tmp_path):
    loader = Batches(channels=1)
    found = image(run(tmp_path, loader, model=Mean(1)), 'train/first batch').astype(int)
    assert abs(found - side_by_side(loader.source.expand(-1, 3, -1, -1))).max() <= 1


def test_a_batch_normalised_image_by_image_is_stretched(tmp_path):
    loader = Batches()
    loader.device_stage = DeviceStage()
    found = image(run(tmp_path, loader), 'train/first batch')
    assert found.min() == 0 and found.max() == 255


def test_batches_without_pictures_are_passed_over(tmp_path):
    class Vectors(Mean):
        def train_step(self, data, optimizer=None):
            return super().train_step({**data, 'img': data['points'][..., None, None]}, optimizer)

    log = run(tmp_path, [dict(points=torch.zeros(4, 3), gt_label=torch.zeros(4, dtype=torch.int64))], model=Vectors())
    assert log.Tags()['images'] == [] and len(log.Scalars('train/loss')) == 1


def test_the_config_is_there_as_code(tmp_path):
    log = run(tmp_path, meta=dict(config="model = dict(type='ResNet')\n"))
    text = log.Tensors('config/text_summary')[0].tensor_proto.string_val[0].decode()
    assert text == "```python\nmodel = dict(type='ResNet')\n\n```"


def test_scalars_by_iteration(tmp_path):
    log = run(tmp_path, dataset=Images(), epochs=3)
    assert [event.step for event in log.Scalars('train/loss')] == [1, 2, 3]
    assert [(event.step, event.value) for event in log.Scalars('val/accuracy')] == [(1, 50.), (2, 50.), (3, 50.)]


def test_a_confusion_matrix_and_the_worst_mistakes_of_each_evaluation(tmp_path):
    log = run(tmp_path, dataset=Images(), epochs=2)
    for tag in ('val/confusion matrix', 'val/worst mistakes'):
        assert [event.step for event in log.Images(tag)] == [1, 2]
        assert image(log, tag).std() > 5 and min(image(log, tag).shape[:2]) > 100  # something is drawn


def test_the_matrix_is_that_of_the_results(tmp_path, monkeypatch):
    from workspace_lib.tools import eval_pictures
    seen = []
    drawn = eval_pictures.confusion_plot
    monkeypatch.setattr(eval_pictures, 'confusion_plot',
                        lambda *given: seen.append(given) or drawn(*given))
    run(tmp_path, dataset=Images())
    scores, labels, classes = seen[0]
    assert scores.shape == (9, 3) and labels.tolist() == [0, 1, 2] * 3 and classes == ('red', 'green', 'blue')


def test_a_thousand_classes_stay_readable_and_cheap():
    names = tuple(f'class {i}' for i in range(1000))
    labels = np.arange(2000) % 1000
    scores = np.random.default_rng(0).random((2000, 1000), np.float32)
    dataset = Images(names, labels)
    pictures = evaluation_pictures(dataset, list(scores))
    assert max(pictures['confusion matrix'].shape) < 1500


def test_several_labels_an_image_have_no_matrix():
    dataset = Images(labels=np.eye(3, dtype=np.int64)[[0, 1, 2]])
    assert evaluation_pictures(dataset, list(np.eye(3, dtype=np.float32))) == {}


def test_a_picture_that_cannot_be_drawn_ends_no_training(tmp_path, caplog):
    def broken(dataset, results):
        raise OSError('images/7.jpg is gone')

    log = run(tmp_path, dataset=Images(), pictures=broken)
    assert [event.value for event in log.Scalars('val/accuracy')] == [50.]
    assert 'images/7.jpg is gone' in caplog.text


def test_without_pictures_there_are_none(tmp_path):
    assert run(tmp_path, dataset=Images(), pictures=None).Tags()['images'] == ['train/first batch']


def test_a_training_from_the_command_line_fills_tensorboard(tmp_path):
    from test_rerun import CONFIG
    config = tmp_path / 'digits.py'
    config.write_text(CONFIG.replace('TextLoggerHook', 'TensorboardLoggerHook'))
    assert main(['train', str(config), '--work-dir', str(tmp_path / 'run'), '--device', 'cpu', '--seed', '0']) == 0
    tags = read(tmp_path / 'run' / 'tf_logs').Tags()
    assert sorted(tags['images']) == ['train/first batch', 'val/confusion matrix', 'val/worst mistakes']
    assert {'train/loss', 'train/lr', 'val/accuracy_top-1'} <= set(tags['scalars'])
    assert tags['tensors'] == ['config/text_summary']
