"""Several processes: 1, 2 and 3 of them with gloo give the same metrics, the same training, the same files.

The processes of one number are started once, do everything, and leave what they found in a file for each rank.
"""
from __future__ import annotations

import io
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from workspace_lib import apis, dist
from workspace_lib.config import Config
from workspace_lib.datasets import MultiLabelDataset, build_dataset
from workspace_lib.datasets.base import ArrayInfos
from workspace_lib.datasets.builtin import MNIST5k
from workspace_lib.hooks import Hook, OptimizerHook
from workspace_lib.loops import multi_gpu_test
from workspace_lib.models import ImageClassifier, build_classifier
from workspace_lib.registry import CLASSIFIERS, DATASETS
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.tools import commands, launchers

pytestmark = pytest.mark.timeout(300)  # six processes, on a machine of two cores that may be busy
IMAGES = 1003  # no number of ranks divides it but 17 and 59


@DATASETS.register_module(force=True)
class Digits1003(MNIST5k):
    def load_annotations(self):
        infos = super().load_annotations()
        return ArrayInfos(infos.images[::3][:IMAGES], infos.labels[::3][:IMAGES])


@DATASETS.register_module(force=True)
class DigitParts(MultiLabelDataset):
    """What is true of a digit: even, small, prime; and some of it hard to say."""

    CLASSES = ('even', 'small', 'prime')

    def __init__(self, pipeline=(), **kwargs):
        super().__init__('', pipeline, **kwargs)

    def load_annotations(self):
        digits = Digits1003()
        infos = [dict(img=digits.data_infos.images[i], gt_label=np.array(
            [n % 2 == 0, n < 5, n in (2, 3, 5, 7) or -(i % 50 == 0)], np.int8))
            for i, n in enumerate(digits.data_infos.labels)]
        return infos


@CLASSIFIERS.register_module(force=True)
class Float64(ImageClassifier):
    """LeNet-5 in double precision, so that the order of additions shows late."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.double()

    def extract_feat(self, img, stage='neck'):
        return super().extract_feat(img.double(), stage)


class Losses(Hook):
    """The loss of each iteration over all ranks, and what the log made of it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logged: list[float] = []

    def after_train_iter(self, runner: Any) -> None:
        self.losses.append(float(np.mean(dist.all_gather(float(runner.outputs['loss'].detach())))))
        self.logged.append(runner.log_buffer.average(1)['loss'])


def digits(kind: str = 'ImageClassifier', samples: int = 16, **changes: Any) -> Config:
    cfg = apis.load_config('lenet/lenet5_mnist5k.py')
    cfg.merge_from_dict({
        'model.type': kind, 'data.samples_per_gpu': samples, 'runner.max_epochs': 1, 'seed': 3, 'device': 'cpu',
        **{f'data.{part}.type': 'Digits1003' for part in ('train', 'val', 'test')},
        **{f'data.{part}.test_mode': False for part in ('val', 'test')}, **changes})
    return cfg


def trained(cfg: Config, *hooks: Hook, validate: bool = False, iters: int | None = None) -> Any:
    """A run of `iters` iterations at most; without a folder unless the config names one."""
    apis.set_random_seed(3)
    model = build_classifier(cfg.model)
    model.init_weights()
    dataset = build_dataset(cfg.data.train)
    model.CLASSES = dataset.CLASSES
    if iters:
        cfg.runner = dict(type='IterBasedRunner', max_iters=iters)
        cfg.checkpoint_config = None
    runner, loaders = apis.build_training(model, dataset, cfg, validate)
    for hook in hooks:
        runner.register_hook(hook)
    return apis.run_training(runner, loaders, cfg)


def losses_of(kind: str, ranks: int) -> tuple[list[float], list[float]]:
    hook = Losses()
    trained(digits(kind, 32 // ranks), hook, iters=20)
    return hook.losses, hook.logged


def evaluated(folder: Path) -> dict[str, Any]:
    """`workspace test` on both kinds of data set, with its result file."""
    cfg = digits(samples=50)
    found = {'single': commands.test(cfg, str(folder.parent / 'start.pth'),
                                     ['accuracy', 'precision', 'recall', 'f1_score', 'support'],
                                     dict(topk=(1, 5)), str(folder / 'result.json'), device='cpu')}
    labels = digits(samples=50, **{'model.backbone.num_classes': 3, 'model.head': dict(
        _delete_=True, type='MultiLabelClsHead', loss=dict(type='CrossEntropyLoss', use_sigmoid=True)),
        **{f'data.{part}': dict(_delete_=True, type='DigitParts', pipeline=cfg.data.test.pipeline)
           for part in ('val', 'test')}})
    found['several'] = commands.test(labels, str(folder.parent / 'labels.pth'),
                                     ['mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1'], None,
                                     str(folder / 'labels.json'), device='cpu')
    return found


def fewer_broken(ranks: int) -> tuple[int, dict[int, str]] | None:
    """The test of a data set in which each rank meets a broken sample of its own."""
    cfg = digits(samples=50)
    dataset = build_dataset(cfg.data.test)
    model = build_classifier(cfg.model)
    rank = dist.get_dist_info()[0]
    dataset.broken = {rank: f'met by rank {rank}'}
    results = multi_gpu_test(model, apis.build_loader(cfg, 'test', dataset, torch.device('cpu')), progress=False)
    return None if results is None else (len(results), dataset.broken)


def exchanges(ranks: int) -> list[int]:
    """The iterations, of 7 with a step after each third, in which gradients were exchanged."""
    at: list[int] = []

    def averaged(runner, bucket):  # what DistributedDataParallel itself does; it wants no annotations
        at.append(runner.iter + 1)
        tensor = bucket.buffer().div_(ranks)
        return torch.distributed.all_reduce(tensor, async_op=True).get_future().then(lambda done: done.value()[0])

    class Count(Hook):
        def before_run(self, runner: Any) -> None:
            runner.step.register_comm_hook(runner, averaged)

    trained(digits(**{'optimizer_config.cumulative_iters': 3}), Count(), iters=7)
    return at


def normed(folder: Path) -> dict[str, Any]:
    """A run with BatchNorm, averages, precise statistics and the best kept: what each rank has at its end."""
    cfg = digits(**{
        'model': dict(_delete_=True, type='ImageClassifier', backbone=dict(
            type='ResNet', depth=18, base_channels=4, in_channels=1), neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=32, loss=dict(type='CrossEntropyLoss'))),
        'data.samples_per_gpu': 64, 'custom_hooks': [
            dict(type='EMAHook', momentum=0.1), dict(type='PreciseBNHook', num_samples=256, interval=1)],
        'work_dir': str(folder / 'normed'), 'evaluation.save_best': 'auto', 'log_config.interval': 2})
    runner = trained(cfg, validate=True)
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EvalHook')
    return dict(weights=runner.model.state_dict(), best=hook.best, best_file=str(hook.best_file))


def resumed(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights after 6 iterations, and after 6 of which the last 3 were of a run that was resumed."""
    cfg = digits(samples=8, work_dir=str(folder / 'whole'), **{
        'model': dict(_delete_=True, type='ImageClassifier', backbone=dict(
            type='ResNet', depth=18, base_channels=16, in_channels=1), neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='CrossEntropyLoss'))),
        'runner': dict(_delete_=True, type='IterBasedRunner', max_iters=6),
        'checkpoint_config': dict(interval=3, by_epoch=False, max_keep_ckpts=9),
        'lr_config': dict(_delete_=True, policy='fixed')})
    whole = trained(cfg).model.state_dict()
    cfg.merge_from_dict(dict(work_dir=str(folder / 'parts'), resume_from=str(folder / 'whole' / 'iter_3.pth')))
    return whole, trained(cfg).model.state_dict()


def uneven(folder: Path) -> dict[str, Any]:
    """A run of one process with batches of 100 goes on with three."""
    cfg = digits(samples=100, work_dir=str(folder / 'uneven'), **{'checkpoint_config.interval': 1})
    trained(cfg)
    dist.all_gather('saved')
    checkpoint = torch.load(folder / 'uneven' / 'epoch_1.pth', weights_only=True)
    checkpoint['meta'] |= dict(world_size=1, batch_size=100)
    mine = folder / f'{dist.get_dist_info()[0]}.pth'
    torch.save(checkpoint, mine)
    cfg.merge_from_dict({'runner.max_epochs': 2, 'work_dir': str(folder / 'even'), 'resume_from': str(mine)})
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger('workspace_lib')
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    runner = trained(cfg)
    logger.setLevel(logging.ERROR)
    logger.removeHandler(handler)
    return dict(size=runner.data_loader.batch_size, whole=runner.meta['batch_size'], epoch=runner.epoch,
                iter=runner.iter, said=said.getvalue())


def own_drops(ranks: int, folder: Path) -> float:
    """What this rank's generators draw after `commands.train`, which sets them."""
    cfg = digits(samples=128, work_dir=str(folder / 'drops'), **{'checkpoint_config.interval': -1})
    commands.train(cfg, seed=5, validate=False, device='cpu')
    return float(torch.rand(1))


def undealt() -> str:
    cfg = digits()
    loader = apis.build_loader(cfg, 'test', build_dataset(cfg.data.test), torch.device('cpu'), dist=False)
    with pytest.raises(ValueError) as error:
        multi_gpu_test(build_classifier(cfg.model), loader, progress=False)
    return str(error.value)


def refused(**changes: Any) -> str:
    """What is said about a training that cannot be, or, with `show_dir`, a test."""
    with pytest.raises(ValueError) as error:
        if 'show_dir' in changes:
            commands.test(digits(), 'none.pth', device='cpu', **changes)
        else:
            trained(digits(**changes), iters=2)
    return str(error.value)


SYNC_BN = dict(_delete_=True, type='ResNet', depth=18, base_channels=4, in_channels=1, norm_cfg=dict(type='SyncBN'))


def everything(rank: int, ranks: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    logging.getLogger('workspace_lib').setLevel(logging.ERROR)
    here = Path(folder, str(ranks))
    if ranks > 1:
        launchers.init_dist('pytorch')
    here.mkdir(exist_ok=True)
    found: dict[str, Any] = dict(evaluated=evaluated(here))
    found['losses'] = {kind: losses_of(kind, ranks) for kind in ('Float64', 'ImageClassifier')} if ranks < 3 else {}
    found['broken'] = fewer_broken(ranks)
    if ranks == 3:
        found |= dict(resumed=resumed(here), uneven=uneven(here))
    if ranks == 2:
        found |= dict(exchanges=exchanges(ranks), normed=normed(here), drops=own_drops(ranks, here),
                      unequal=refused(**{'data.train.type': ('Digits1003', 'MNIST5k')[rank]}), undealt=undealt(),
                      sync_bn=refused(**{'model.backbone': SYNC_BN}), pictures=refused(show_dir='x'))
    torch.save(found, here / f'rank{rank}.pt')
    if ranks > 1:
        torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """{number of processes: what each rank found}."""
    folder = tmp_path_factory.mktemp('ranks')
    for name, classes in (('start', 10), ('labels', 3)):
        torch.manual_seed(1)
        model = build_classifier(digits(**{'model.backbone.num_classes': classes}).model)
        model.init_weights()
        meta = dict(CLASSES=Digits1003.CLASSES if classes == 10 else DigitParts.CLASSES)
        torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / f'{name}.pth')
    for ranks in (1, 2, 3):
        multiprocessing.spawn(everything, (ranks, free_port(), str(folder)), nprocs=ranks)
    return {ranks: [torch.load(folder / str(ranks) / f'rank{rank}.pt', weights_only=False) | {'folder': folder}
                    for rank in range(ranks)] for ranks in (1, 2, 3)}


@pytest.mark.parametrize('ranks', [2, 3])
@pytest.mark.parametrize('labels', ['single', 'several'])
def test_metrics_are_the_same_to_the_last_digit(runs, ranks, labels):
    alone = {name: np.asarray(value).tolist() for name, value in runs[1][0]['evaluated'][labels].items()}
    assert len(alone) > 5
    assert {name: np.asarray(value).tolist() for name, value in runs[ranks][0]['evaluated'][labels].items()} == alone
    assert all(not rank['evaluated'][labels] for rank in runs[ranks][1:])


@pytest.mark.parametrize('ranks', [2, 3])
@pytest.mark.parametrize('name', ['result.json', 'labels.json'])
def test_the_result_file_has_every_image_once_and_in_order(runs, ranks, name):
    alone, here = (json.loads((runs[1][0]['folder'] / str(n) / name).read_text()) for n in (1, ranks))
    assert len(alone['pred_label']) == IMAGES
    assert here['pred_label'] == alone['pred_label'] and here['pred_class'] == alone['pred_class']
    assert list(here) == list(alone)
    assert np.abs(np.array(here['class_scores']) - np.array(alone['class_scores'])).max() < 1e-6


@pytest.mark.parametrize('kind, bound', [('Float64', 1e-12), ('ImageClassifier', 2e-6)])
def test_two_processes_of_16_train_as_one_of_32(runs, kind, bound):
    alone, together = (np.array(runs[n][0]['losses'][kind][0]) for n in (1, 2))
    assert alone.shape == together.shape == (20, ) and len(set(alone)) == 20
    print(f'\n{kind}: losses differ by {np.abs(alone - together).max():.2e} at most')
    assert np.abs(alone - together).max() < bound


def test_the_log_says_the_mean_over_the_ranks(runs):
    for rank in runs[2]:
        losses, logged = rank['losses']['ImageClassifier']
        assert np.allclose(losses, logged, rtol=0, atol=1e-6)


@pytest.mark.parametrize('ranks', [1, 2, 3])
def test_broken_samples_that_any_rank_met_are_left_out(runs, ranks):
    count, broken = runs[ranks][0]['broken']
    assert count == IMAGES and broken == {rank: f'met by rank {rank}' for rank in range(ranks)}


def test_three_processes_resume_to_the_same_bits(runs):
    """Whose sums depend on where in its bucket a gradient is, and the model has several buckets."""
    for number, rank in enumerate(runs[3]):
        whole, parts = rank['resumed']
        # The running statistics of other ranks than 0 are neither evaluated nor saved.
        names = [name for name in whole if number == 0 or 'running' not in name]
        assert [name for name in names if not torch.equal(parts[name], whole[name])] == []


def test_a_batch_that_the_ranks_cannot_share_becomes_the_nearest_with_a_warning(runs):
    for rank in runs[3]:
        found = rank['uneven']
        assert (found['size'], found['whole'], found['epoch'], found['iter']) == (33, 100, 2, 22)  # 11 of 99 an epoch
        assert '3 processes cannot share the batch of 100' in found['said'] and 'goes on with 99' in found['said']


def test_gradients_are_exchanged_at_the_optimizer_step_alone(runs):
    assert runs[2][0]['exchanges'] == [3, 6, 7]


def test_ranks_end_with_the_same_weights_averages_and_statistics(runs):
    first, second = (rank['normed']['weights'] for rank in runs[2])
    assert any('running_mean' in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first if 'num_batches' not in name)


def test_ranks_agree_on_the_best_and_rank_0_alone_writes(runs):
    (first, second), folder = (rank['normed'] for rank in runs[2]), runs[2][0]['folder'] / '2' / 'normed'
    assert first['best'] == second['best'] and first['best'] > 0
    assert Path(first['best_file']).is_file() and first['best_file'] == second['best_file']
    assert len(list(folder.glob('*.log.json'))) == 1
    meta = torch.load(folder / 'epoch_1.pth', weights_only=True)
    assert not any(name.startswith(('module.', 'model.')) for name in meta['state_dict'])
    assert {name: meta['meta'][name] for name in ('world_size', 'samples_per_gpu', 'batch_size')} == dict(
        world_size=2, samples_per_gpu=64, batch_size=128)


def test_ranks_draw_differently_after_the_same_first_weights(runs):
    assert len({rank['drops'] for rank in runs[2]}) == 2


def test_ranks_with_different_data_are_found_before_they_wait_for_each_other(runs):
    for rank in runs[2]:
        assert 'rank 0 1003 and 32, rank 1 4000 and 125' in rank['unequal']


def test_sync_bn_without_gpus_is_refused(runs):
    assert all('these are 2 processes on cpu' in rank['sync_bn'] and 'norm_cfg.type=BN' in rank['sync_bn']
               for rank in runs[2])


def test_pictures_are_for_one_process(runs):
    assert all('--show-dir draw in one process' in rank['pictures'] for rank in runs[2])


def test_a_loader_that_is_not_dealt_out_is_refused(runs):
    assert all('1003 of 1003 samples to one of 2 ranks' in rank['undealt'] for rank in runs[2])


class Numbers(torch.nn.Module):
    """A model whose batches are dicts with `img`; counts how much of a batch it gets at once."""

    def __init__(self):
        super().__init__()
        self.fc, self.sizes = torch.nn.Linear(4, 1).double(), []

    def train_step(self, batch, optimizer):
        self.sizes.append(len(batch['img']))
        loss = (self.fc(batch['img']) - batch['y']).pow(2).mean()
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(batch['img']))


def numbers(parts: int, window: int) -> tuple[Numbers, list[float]]:
    torch.manual_seed(0)
    model, logged = Numbers(), []
    batches = [dict(img=torch.randn(7, 4).double(), y=torch.randn(7, 1).double()) for _ in range(5)]
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.1), max_epochs=1)
    runner.parts = parts

    class Note(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner):
            logged.append(runner.log_buffer.average(1)['loss'])

    runner.register_hook(OptimizerHook(cumulative_iters=window))
    runner.register_hook(Note())
    runner.run([batches], [('train', 1)])
    return model, logged


@pytest.mark.parametrize('window', [1, 2])
def test_a_batch_in_parts_trains_as_the_whole(window):
    (whole, logged), (parted, logged_parts) = numbers(1, window), numbers(3, window)
    assert whole.sizes == [7] * 5 and parted.sizes == [3, 2, 2] * 5
    assert torch.allclose(whole.fc.weight, parted.fc.weight, rtol=0, atol=1e-14)
    assert np.allclose(logged, logged_parts, rtol=0, atol=1e-6)


def test_a_run_goes_on_with_the_batch_that_it_began_with(tmp_path, caplog):
    caplog.set_level('INFO')
    cfg = digits(samples=100, work_dir=str(tmp_path), **{'runner.max_epochs': 2, 'checkpoint_config.interval': 1})
    cfg.runner.max_epochs = 1
    trained(cfg)
    file = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint['meta']['batch_size'] == 100
    checkpoint['meta'] |= dict(world_size=3, batch_size=300)  # as three processes would have left it
    torch.save(checkpoint, file)
    cfg.merge_from_dict({'runner.max_epochs': 2, 'resume_from': str(file)})
    apis.set_random_seed(3)
    model, dataset = build_classifier(cfg.model), build_dataset(cfg.data.train)
    runner, (loader, ) = apis.build_training(model, dataset, cfg)
    assert (loader.batch_size, runner.parts, runner.meta['batch_size']) == (300, 3, 300)
    cfg.data.samples_per_gpu = 50  # a person's own wish goes before
    runner, (loader, ) = apis.build_training(build_classifier(cfg.model), dataset, cfg)
    assert (loader.batch_size, runner.parts, runner.meta['batch_size']) == (50, 1, 50)


def test_distributed_without_a_group_is_an_error():
    cfg = digits()
    with pytest.raises(ValueError, match='launchers.init_dist'):
        apis.train_model(build_classifier(cfg.model), build_dataset(cfg.data.train), cfg, distributed=True)
