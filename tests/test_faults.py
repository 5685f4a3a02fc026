"""What goes wrong in a training is named: the place, the file, the way out, and the checkpoint to go on from."""
from __future__ import annotations

import gc
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import weakref
from pathlib import Path

import interrupted
import pytest
import torch
from test_loader import TRAIN, copy_of, loader
from test_loader import folder as images  # noqa: F401 - a fixture
from test_runner import Batches, Regression
from torch import distributed, nn
from torch.utils.data import get_worker_info

from workspace_lib import apis
from workspace_lib.datasets import CustomDataset, DecodeError, build_dataloader
from workspace_lib.datasets import loader as loader_module
from workspace_lib.datasets.loader import Loader
from workspace_lib.datasets.ring import SPARE
from workspace_lib.faults import CheckInvalidLossHook, StopSignalHook
from workspace_lib.hooks import CheckpointHook, Hook, OptimizerHook
from workspace_lib.iter_runner import IterBasedRunner
from workspace_lib.log_writers import TensorboardLoggerHook, TextLoggerHook
from workspace_lib.resume import damage_of
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.tools import commands, recovery

LOG = logging.getLogger('workspace_lib.test')


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level('INFO', 'workspace_lib')


def notes(error: BaseException) -> str:
    return '\n'.join([str(error), *getattr(error, '__notes__', [])])


class Normed(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def train_step(self, data, optimizer=None):
        return super().train_step(dict(data, img=self.norm(data['img'])))


def run(batches, *hooks, model=None, folder=None, kind=EpochBasedRunner, cumulative=1, **length):
    torch.manual_seed(0)
    model = model or Normed()
    runner = kind(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01), work_dir=folder,
                  logger=LOG, **(length or dict(max_epochs=1)))
    for hook in (OptimizerHook(cumulative_iters=cumulative), *hooks):
        runner.register_hook(hook)
    runner.run([batches], [('train', 1)])
    return runner


def poisoned(count, *at):
    batches = Batches(count)
    for number in at:
        batches[number] = dict(batches[number], img=torch.full_like(batches[number]['img'], torch.nan))
    return batches


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if 'num_batches' not in name}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# Losses that are no numbers.

def test_on_the_cpu_it_stops_before_the_step(tmp_path):
    model = Normed()
    with pytest.raises(FloatingPointError, match=r'the loss is nan in iteration 3, batch 3 of epoch 1') as caught:
        run(poisoned(5, 2), CheckInvalidLossHook(), CheckpointHook(interval=1, by_epoch=False), model=model,
            folder=tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())
    assert sorted(path.name for path in tmp_path.glob('iter*')) == ['iter_1.pth', 'iter_2.pth']
    assert f'the last good checkpoint: {tmp_path}/iter_2.pth' in notes(caught.value)
    assert "on_invalid='skip'" in notes(caught.value)


@pytest.mark.parametrize('value', [torch.inf, -torch.inf])
def test_infinite_is_invalid_too(value):
    batches = Batches(3)
    batches[1]['img'].fill_(value)
    with pytest.raises(FloatingPointError, match=r'the loss is (nan|inf) in iteration 2'):
        run(batches, CheckInvalidLossHook(), model=Regression())


def test_looking_late_it_names_the_first_and_says_that_the_weights_are_spoiled():
    with pytest.raises(FloatingPointError, match=r'in iteration 4, .*seen at 5: the weights are spoiled from there on'):
        run(poisoned(9, 3), CheckInvalidLossHook(interval=5))


def test_looking_late_it_looks_before_anything_is_saved(tmp_path):
    with pytest.raises(FloatingPointError, match='in iteration 5'):
        run(poisoned(9, 4), CheckInvalidLossHook(interval=8), CheckpointHook(interval=3, by_epoch=False),
            folder=tmp_path)
    assert [path.name for path in tmp_path.glob('iter*')] == ['iter_3.pth']


def test_looking_late_nothing_is_forgotten_at_the_end_of_the_run():
    with pytest.raises(FloatingPointError, match='in iteration 7'):
        run(poisoned(8, 6), CheckInvalidLossHook(interval=20))
    with pytest.raises(FloatingPointError, match='in iteration 7'):
        run(poisoned(8, 6), CheckInvalidLossHook(interval=20), kind=IterBasedRunner, max_iters=8)


class InParts(Hook):
    """Each batch is done in two parts, as after a group became smaller; poisons the second part of one of them."""

    def __init__(self, poisoned: int) -> None:
        self.poisoned = poisoned

    def before_run(self, runner):
        runner.parts = 2

    def before_train_iter(self, runner):
        if runner.iter == self.poisoned:
            runner.rest[0]['img'].fill_(torch.nan)


def test_the_second_part_of_a_batch_is_looked_at_before_the_step():
    model = Regression()
    with pytest.raises(FloatingPointError, match='the loss is nan in iteration 3, batch 3'):
        run(Batches(5), CheckInvalidLossHook(), InParts(2), model=model)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_skipped_part_leaves_the_rest_of_its_batch():
    hook, model = CheckInvalidLossHook(on_invalid='skip'), Normed()
    run(Batches(5), hook, InParts(2), model=model)
    assert hook.skipped == 1 and all(p.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_weights_that_are_no_numbers_are_not_saved_though_the_loss_was_one(tmp_path):
    class Spoils(Hook):
        priority = 'ABOVE_NORMAL'

        def after_train_iter(self, runner):
            if runner.iter == 1:
                runner.model.fc.bias.data.fill_(torch.inf)

    with pytest.raises(FloatingPointError, match='fc.bias holds NaN or infinite values after iteration 2'):
        run(Batches(4), CheckInvalidLossHook(), Spoils(), CheckpointHook(interval=1, by_epoch=False), folder=tmp_path)
    assert [path.name for path in tmp_path.glob('iter*')] == ['iter_1.pth']


def test_a_skipped_batch_leaves_no_trace(caplog):
    hook = CheckInvalidLossHook(on_invalid='skip')
    runner = run(poisoned(6, 1, 4), hook)
    plain = Batches(6)
    del plain[4], plain[1]
    assert same(weights(runner.model), weights(run(plain).model))
    assert hook.skipped == 2 and 'skipped, 2 so far: the loss is nan in iteration 5' in caplog.text


def test_of_an_accumulation_the_others_count():
    runner = run(poisoned(4, 0, 2, 3), CheckInvalidLossHook(on_invalid='skip'), cumulative=2)
    torch.manual_seed(0)
    model = Normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    (model.train_step(Batches(4)[1])['loss'] / 2).backward()  # the only step: of the second window nothing is left
    optimizer.step()
    assert same(weights(runner.model), weights(model))


def test_skipping_works_with_a_loss_scaler():
    def scaled(batches, *hooks):
        torch.manual_seed(0)
        model = Normed()
        runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.05), max_epochs=1, logger=LOG)
        runner.precision.scaler = torch.amp.GradScaler('cpu', init_scale=128.0)
        for hook in (OptimizerHook(), *hooks):
            runner.register_hook(hook)
        runner.run([batches], [('train', 1)])
        return runner

    plain = Batches(4)
    del plain[1]
    runner = scaled(poisoned(4, 1), CheckInvalidLossHook(on_invalid='skip'))
    assert same(weights(runner.model), weights(scaled(plain).model))
    assert runner.precision.scaler.get_scale() == 128


def test_ten_in_a_row_are_not_the_batches_fault():
    with pytest.raises(FloatingPointError, match='10 batches in a row'):
        run(poisoned(20, *range(5, 20)), CheckInvalidLossHook(on_invalid='skip'))
    assert run(poisoned(20, *range(0, 20, 2)), hook := CheckInvalidLossHook(on_invalid='skip')) and hook.skipped == 10


@pytest.mark.parametrize('options', [dict(on_invalid='pass'), dict(interval=0)])
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match='but got'):
        CheckInvalidLossHook(**options)


def one_rank_has_nan(rank: int, folder: str) -> None:
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    hook = CheckInvalidLossHook(on_invalid='skip')
    runner = run(poisoned(4, 2) if rank else Batches(4), hook)
    torch.save(dict(weights(runner.model), skipped=hook.skipped), f'{folder}/rank{rank}')
    distributed.destroy_process_group()


def test_where_one_process_skips_all_do(tmp_path):
    interrupted.run_ranks(one_rank_has_nan, str(tmp_path))
    ranks = [torch.load(tmp_path / f'rank{rank}', weights_only=True) for rank in range(2)]
    plain = Batches(4)
    del plain[2]
    for rank in ranks:
        assert rank.pop('skipped') == 1 and same(weights(run(plain).model), rank)


@pytest.mark.parametrize('ranks, sampler', [(1, False), (2, False), (1, True)])
def test_a_batch_can_be_asked_for_its_files(images, ranks, sampler):  # noqa: F811
    data = CustomDataset(str(images), TRAIN)
    order = [*range(21, -1, -2), 3, 3]
    for rank in range(ranks):
        batches = Loader(data, 4, shuffle=not sampler, seed=3, rank=rank, world_size=ranks,
                         sampler=order if sampler else None)
        seen = []
        for epoch in range(2):
            for number, batch in enumerate(batches):
                files = batches.files(epoch, number)
                seen += files
                assert [int(Path(file).parent.name) for file in files] == batch['gt_label'].tolist()
        if sampler:
            assert seen == [data.filename(index) for index in order] * 2
        again = Loader(data, 4, shuffle=not sampler, seed=3, rank=rank, world_size=ranks,
                       sampler=order if sampler else None)
        assert again.files(1, 2) == seen[len(seen) // 2 + 8:len(seen) // 2 + 12]  # an epoch that it did not make itself


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    interrupted.make_data(root)
    return root


def config(data, *more, text=interrupted.EPOCHS):
    cfg = interrupted.config(text.replace('workers_per_gpu=2', 'workers_per_gpu=0'), data)
    cfg.custom_hooks = [*cfg.custom_hooks, *more]
    return cfg


class Poisons(Hook):
    def before_train_iter(self, runner):
        if runner.iter == 10:
            runner.data_batch['img'].fill_(torch.nan)
            Poisons.files = runner.data_loader.files(runner.epoch, runner.inner_iter)


apis.HOOKS.register_module(force=True, module=Poisons)


def test_a_training_stops_with_iteration_files_and_checkpoint(data, tmp_path):
    with pytest.raises(FloatingPointError) as caught:
        commands.train(config(data, dict(type='Poisons')), str(tmp_path / 'run'), device='cpu')
    said = notes(caught.value)
    assert 'the loss is nan in iteration 11, batch 3 of epoch 2, of:' in said
    assert len(Poisons.files) == 4 and all(file in said for file in Poisons.files)
    assert f'the last good checkpoint: {tmp_path}/run/iter_10.pth' in said


def test_a_config_that_says_so_skips_and_has_the_hook_once(data, tmp_path):
    skip = dict(type='CheckInvalidLossHook', on_invalid='skip')
    runner = commands.train(config(data, dict(type='Poisons'), skip), str(tmp_path / 'run'), device='cpu')
    checks = [hook for hook in runner.hooks if isinstance(hook, CheckInvalidLossHook)]
    assert [check.skipped for check in checks] == [1]
    assert sum(isinstance(hook, StopSignalHook) for hook in runner.hooks) == 1


# Workers.

class Dies:
    """A step that ends the worker in which it comes upon one file."""

    def __init__(self, name, number=signal.SIGKILL):
        self.name, self.number = name, number

    def __call__(self, results):
        if results['img_info']['filename'].endswith(self.name) and get_worker_info():
            os.kill(os.getpid(), self.number)
            time.sleep(60)
        return results


# Each in a process of its own: in one where a worker died, torch says so again whenever another child ends.


def said_by(target, folder, *args):
    process = interrupted.processes().Process(target=interrupted.forking, args=(target, 0, str(folder), *args))
    process.start()
    process.join(60)
    return (folder / 'said').read_text()


def reading_with_a_worker_that_dies(rank: int, folder: str, pictures: str, number: int) -> None:
    os.setsid()
    batches = loader(Path(pictures), 2, [TRAIN[0], Dies('07.jpg', number), *TRAIN[1:]])
    try:
        list(batches)
    except Exception as error:
        Path(folder, 'said').write_text(notes(error))
    os.killpg(os.getpid(), signal.SIGKILL)  # with its workers


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_dies_is_named_with_its_file(images, tmp_path, number):  # noqa: F811
    told = said_by(reading_with_a_worker_that_dies, tmp_path, str(images), int(number))
    # Torch's own word is that of a worker, or of a connection, as the moment has it.
    assert f' was reading {images}/1/07.jpg. Killed: look' in told
    assert number.name in told or {signal.SIGKILL: 'Killed', signal.SIGBUS: 'Bus error'}[number] in told.split('. ')[0]
    assert told.count('was reading') == 1


class Slow(Hook):
    def after_train_iter(self, runner):
        time.sleep(3)  # the worker's end interrupts it


class Sums(nn.Linear):
    def train_step(self, batch, optimizer=None):
        loss = self(batch['img'].mean((1, 2, 3))[:, None]).mean()
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=1)


def training_with_a_worker_that_dies(rank: int, folder: str, pictures: str) -> None:
    os.setsid()
    # 0/00 ... 0/20 come first, so that 1/07 is in the fourth batch of four, made while the second step sleeps.
    batches = loader(Path(pictures), 1, [TRAIN[0], Dies('07.jpg'), *TRAIN[1:]], shuffle=False)
    runner = IterBasedRunner(Sums(1, 1), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), max_iters=6,
                             logger=LOG)
    runner.register_hook(Slow())
    try:
        runner.run([batches], [('train', 1)])
    except RuntimeError as error:
        Path(folder, 'said').write_text(f'{runner.iter}\n{notes(error)}')
    os.killpg(os.getpid(), signal.SIGKILL)  # with its workers


def test_it_is_named_though_torch_says_so_amid_a_step(images, tmp_path):  # noqa: F811
    told = said_by(training_with_a_worker_that_dies, tmp_path, str(images))
    assert int(told[0]) < 3 and f'was reading {images}/1/07.jpg' in told
    assert 'of the run; no checkpoint was saved yet' in told


def test_an_error_in_a_worker_names_the_file_or_the_sample(images):  # noqa: F811
    class Fails:
        def __call__(self, results):
            if results['img_info']['filename'].endswith('07.jpg'):
                raise KeyError('no such key')
            return results

    class Foreign(list):
        def __getitem__(self, index):
            return dict(img=torch.zeros(1, 2, 2) if index != 3 else torch.zeros(1, 2, 2)[9])

    for workers in (0, 2):
        with pytest.raises(KeyError) as caught:
            list(loader(images, workers, [TRAIN[0], Fails(), *TRAIN[1:]]))
        assert '1/07.jpg' in notes(caught.value)
        with pytest.raises(IndexError) as caught:
            list(Loader(Foreign(range(6)), 2, workers))
        assert 'while reading sample 3 of Foreign' in notes(caught.value)


def test_a_worker_says_which_file_it_is_at_without_slowing_down(images):  # noqa: F811
    batches = loader(images, 2)
    list(batches)
    assert len(set(batches._places[::2]) - {-1, os.getpid()}) == 2
    assert batches._places[1::2] == [-1, -1]


# Shared memory.

def space(free, used=0):
    return shutil._ntuple_diskusage(used + free, used, free)


def test_shared_memory_that_is_too_small_is_recognised_before_the_first_batch(images, monkeypatch):  # noqa: F811
    batches = loader(images, 2)  # of float32, as they are for the CPU
    needed = (2 * 2 + SPARE) * 4 * (3 * 16 * 16 * 4)
    monkeypatch.setattr(loader_module.shutil, 'disk_usage', lambda path: space(needed - 1))
    with pytest.raises(RuntimeError, match=r'/dev/shm has 0 MiB free, but 7 batches .*SHM_SIZE=8gb in .env.*--shm-size'
                                           r'.*workers_per_gpu=0'):
        list(batches)
    assert getattr(batches._batches, '_iterator', None) is None  # no worker was started
    batches._batch_bytes = 3 * 2**30
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert 'SHM_SIZE=84gb in .env, or docker run --shm-size=84g' in batches.shortage()  # 7 slots, 2 ranks, 2 loaders
    monkeypatch.setattr(loader_module.shutil, 'disk_usage', lambda path: space(needed - 1, 64 * 2**30))
    assert 'SHM_SIZE=148gb' in batches.shortage()  # what others hold stays theirs
    monkeypatch.delenv('LOCAL_WORLD_SIZE')
    monkeypatch.setattr(loader_module.shutil, 'disk_usage', lambda path: space(needed))
    assert len(list(loader(images, 2))) == 6


def test_it_is_not_asked_for_where_nothing_goes_through_it(images, monkeypatch):  # noqa: F811
    monkeypatch.setattr(loader_module.shutil, 'disk_usage', lambda path: pytest.fail('it was asked for'))
    assert len(list(loader(images, 0))) == 6
    monkeypatch.setattr(loader_module, 'SHARED_MEMORY', '/nowhere')
    assert len(list(loader(images, 2))) == 6


RING = 7 * 4 * (3 * 16 * 16 * 4)  # of two workers with batches of four


@pytest.fixture
def shared_memory(monkeypatch):
    """As much as the test says; what rings take is gone, as the system sees to it."""
    total, rings = [0], weakref.WeakSet()

    class Reserving(loader_module.Ring):
        def __init__(self, *args):
            super().__init__(*args)
            rings.add(self)
    monkeypatch.setattr(loader_module, 'Ring', Reserving)
    monkeypatch.setattr(loader_module.shutil, 'disk_usage', lambda path: space(
        total[0] - sum(whole.slots.nbytes for whole in rings)))
    return total


def test_each_process_of_a_machine_takes_its_part(images, monkeypatch, shared_memory):  # noqa: F811
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    shared_memory[0] = 4 * RING
    ranks = [loader(images, 2) for _ in range(4)]
    for rank in ranks:  # the last finds a quarter free, and needs no more
        rank.prepare()
    shared_memory[0] -= 1
    del rank, ranks[3]
    with pytest.raises(RuntimeError, match='/dev/shm has 0 MiB free, but 7 batches'):
        loader(images, 2).prepare()


@pytest.mark.parametrize('persistent', [True, False])
def test_what_is_reserved_before_a_pass_is_used_by_it(images, shared_memory, persistent):  # noqa: F811
    shared_memory[0] = RING
    batches = loader(images, 2, persistent_workers=persistent)
    batches.prepare()
    assert [len(list(batches)) for _ in range(2)] == [6, 6]


def with_workers(data, **val):
    cfg = config(data)
    cfg.data.workers_per_gpu, cfg.data.prefetch_factor, cfg.data.val_dataloader = 1, 2, val
    return cfg


def test_a_training_without_room_for_its_validation_is_not_begun(data, shared_memory):
    cfg = with_workers(data)
    dataset, each = apis.build_dataset(cfg.data.train), 5 * 4 * (3 * 16 * 16 * 4)
    shared_memory[0] = 2 * each
    runner, _ = apis.build_training(apis.build_classifier(cfg.model), dataset, cfg, validate=True, device='cpu')
    assert any(isinstance(hook, apis.EvalHook) for hook in runner.hooks)
    del runner, _
    gc.collect()
    shared_memory[0] -= 1
    with pytest.raises(RuntimeError, match='/dev/shm has 0 MiB free, but 5 batches'):
        apis.build_training(apis.build_classifier(cfg.model), dataset, cfg, validate=True, device='cpu')


@pytest.mark.parametrize('lacking, samples', [(0, 8), (1, 4)])
def test_batches_of_validation_are_not_doubled_beyond_shared_memory(data, shared_memory, monkeypatch, caplog, lacking,
                                                                    samples):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    monkeypatch.setattr(loader_module.Ring, 'lock_pages', lambda self, device: '')
    monkeypatch.setattr(logging.getLogger('workspace_lib'), 'propagate', True)
    cfg = with_workers(data)
    shared_memory[0] = 5 * 8 * (3 * 16 * 16) - lacking
    val = apis.build_loader(cfg, 'val', apis.build_dataset(cfg.data.val), torch.device('cuda'))
    assert (val.batch_size, val._requests.ring.slots.nbytes) == (samples, 5 * samples * 3 * 16 * 16)
    assert ('batches of val are not twice those of training: /dev/shm has' in caplog.text) == bool(lacking)
    with pytest.raises(RuntimeError, match='/dev/shm'):  # a number that the config gives is not changed
        apis.build_loader(with_workers(data, samples_per_gpu=20), 'val', val.dataset, torch.device('cuda'))


@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='memory is shared in another way here')
def test_memory_that_went_after_the_check_is_named_with_the_way_out(images, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Loader, '_batch_bytes', shutil.disk_usage('/dev/shm').total)
    monkeypatch.setattr(loader_module, '_free_memory', lambda: 2**62)
    with pytest.raises(RuntimeError, match='No space left') as caught:
        list(loader(images, 1))
    needed = (2 + SPARE) * shutil.disk_usage('/dev/shm').total
    named = re.search(r'shared memory is full: give the container more \(SHM_SIZE=(\d+)gb in .env', notes(caught.value))
    assert int(named[1]) * 2**30 >= max(needed, 8 * 2**30)
    with pytest.raises(RuntimeError) as caught:
        loader(images, 1).prepare()  # as a training does, before it begins
    assert notes(caught.value).count('shared memory is full: give the container more') == 1


# Broken files.

class Truncates(Hook):
    """Before the second epoch."""

    def __init__(self, path):
        self.path = path

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            os.truncate(self.path, 300)


class Means(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)

    def train_step(self, data, optimizer=None):
        loss = nn.functional.cross_entropy(self(data['img'].mean((2, 3))), data['gt_label'])
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(data['img']))


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_truncated_in_epoch_2_is_named_with_the_place_and_the_checkpoint(images, tmp_path, workers):  # noqa: F811
    root = copy_of(images, tmp_path / 'images') if (tmp_path / 'images').mkdir() is None else None
    with pytest.raises(DecodeError) as caught:
        run(loader(root, workers), Truncates(root / '1' / '07.jpg'), CheckpointHook(interval=1), model=Means(),
            folder=tmp_path / 'run', max_epochs=3)
    said = notes(caught.value)
    assert '1/07.jpg: JPEG is truncated' in said and 'skip_broken=True' in said and 'in epoch 2, iteration ' in said
    assert f'the last good checkpoint: {tmp_path}/run/epoch_1.pth' in said


@pytest.mark.parametrize('workers', [0, 2])
def test_or_it_is_skipped_with_a_warning_if_the_config_says_so(images, tmp_path, workers, caplog):  # noqa: F811
    root = copy_of(images, tmp_path / 'images') if (tmp_path / 'images').mkdir() is None else None
    batches = build_dataloader(CustomDataset(str(root), TRAIN, skip_broken=True), 4, workers, seed=3)
    logging.getLogger('workspace_lib').addHandler(caplog.handler)
    try:
        runner = run(batches, Truncates(root / '1' / '07.jpg'), model=Means(), max_epochs=3)
    finally:
        logging.getLogger('workspace_lib').removeHandler(caplog.handler)
    assert runner.iter == 18 and 'skipped broken file 1: ' in caplog.text and '1/07.jpg' in caplog.text


# Memory.

@pytest.mark.parametrize('batch, needed, fixed, available, fits', [
    (64, 20, 4, 12, 32),  # 0.25 each
    (64, 20, 4, 13, 32),  # 36, rounded down
    (64, 20, 4, 5.9, 7),
    (64, 20, 4, 3, 0),
    (64, 20, 4, 100, 56),  # what failed cannot fit, whatever the figures say
    (1, 20, 4, 12, 0)])
def test_what_would_fit(batch, needed, fixed, available, fits):
    assert recovery.what_fits(batch, needed, fixed, available) == fits


def test_memory_that_does_not_depend_on_the_batch():
    model = Normed()  # 10 parameters, 6 statistics and a counter of 8 bytes
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    fixed = 4 * count + 4 * 6 + 8 + 4 * count
    assert recovery.fixed_memory(model, torch.optim.SGD(parameters, lr=1)) == fixed
    assert recovery.fixed_memory(model, torch.optim.SGD(parameters, lr=1, momentum=0.9)) == fixed + 4 * count
    adam = torch.optim.AdamW(parameters, lr=1)
    assert recovery.fixed_memory(model, adam) == fixed + 8 * count
    model.train_step(Batches()[0])['loss'].backward()
    adam.step()
    assert recovery.fixed_memory(model, adam) == fixed + 8 * count + 4 * len(parameters)  # and their counts of steps


def test_out_of_memory_says_batch_peak_and_what_would_fit(data, tmp_path, monkeypatch):
    def fails(self, *args):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...')

    gib = 2**30
    monkeypatch.setattr(interrupted.DroppingNet, 'forward', fails)
    monkeypatch.setattr(recovery, 'memory_of', lambda device: (30 * gib, 20 * gib))
    cfg = config(data)
    cfg.data.samples_per_gpu = 16
    with pytest.raises(torch.OutOfMemoryError) as caught:
        commands.train(cfg, str(tmp_path / 'run'), device='cpu')
    said = notes(caught.value)
    assert 'out of memory with samples_per_gpu=16: at most 30.00 GiB were in use, of 20.00 GiB' in said
    assert 'samples_per_gpu=8 would fit' in said  # 32 of which 20 are there: 9.99
    assert 'data.samples_per_gpu=8 optimizer_config.cumulative_iters=6' in said and 'bf16=True' in said  # 3 as it is
    assert 'in epoch 1, iteration 1 of the run; no checkpoint was saved yet' in said


@pytest.mark.parametrize('batch, fits, cumulative, advice', [
    (100, 40, 1, 'data.samples_per_gpu=25 optimizer_config.cumulative_iters=4'),
    (10, 3, 1, 'data.samples_per_gpu=2 optimizer_config.cumulative_iters=5'),
    (16, 8, 4, 'data.samples_per_gpu=8 optimizer_config.cumulative_iters=8'),
    (16, 0, 1, 'not even one sample fits'), (1, 0, 1, 'not even one sample fits')])
def test_the_advice_keeps_the_batch_and_never_names_what_failed(monkeypatch, batch, fits, cumulative, advice):
    model = Regression()
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=1), max_epochs=1,
                              meta=dict(cumulative_iters=cumulative))
    runner.data_loader = loader_of(batch)
    monkeypatch.setattr(recovery, 'what_fits', lambda *figures: fits)
    said = recovery.out_of_memory(runner, torch.OutOfMemoryError('CUDA out of memory.'))
    assert advice in said and 'samples_per_gpu=0' not in said


def loader_of(batch):
    from types import SimpleNamespace
    return SimpleNamespace(batch_size=batch)


# A full disk.

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    where = tmp_path / 'small'
    where.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(where)], capture_output=True)
    if mounted.returncode:
        pytest.skip('no file system can be mounted here')
    yield where
    subprocess.run(['umount', str(where)], check=True)


class Large(Regression):
    """Its checkpoint, with momentum, takes 1.6 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Parameter(torch.zeros(200_000))

    def train_step(self, data, optimizer=None):
        out = super().train_step(data)
        return dict(out, loss=out['loss'] + self.more.sum() * 0)


class Fills(Hook):
    """The disk, from one epoch on until the end of another."""

    def __init__(self, path, first, last, spare=300_000):
        self.path, self.first, self.last, self.spare = path, first, last, spare

    def before_train_epoch(self, runner):
        if runner.epoch + 1 == self.first:
            free = shutil.disk_usage(self.path.parent).free
            self.path.write_bytes(bytes(max(free - self.spare, 0)))
        if runner.epoch == self.last:
            self.path.unlink()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != '.json')


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(small_disk, caplog):
    seen, last = [], Hook()
    last.priority = 'LOWEST'
    last.after_train_epoch = lambda r: seen.append((files(small_disk), os.readlink(small_disk / 'latest.pth')))
    run(Batches(2), CheckpointHook(interval=1, max_keep_ckpts=1), TextLoggerHook(interval=1), last,
        Fills(small_disk / 'filler', 2, 3), model=Large(), folder=small_disk, max_epochs=4)
    full = (['epoch_1.pth', 'filler', 'latest.pth'], 'epoch_1.pth')
    assert seen == [(['epoch_1.pth', 'latest.pth'], 'epoch_1.pth'), full, full,
                    (['epoch_4.pth', 'latest.pth'], 'epoch_4.pth')]
    assert damage_of(small_disk / 'epoch_4.pth') is None
    said, = {record.getMessage() for record in caplog.records if 'epoch_2.pth' in record.getMessage()}
    assert 'No space left on device' in said and 'takes 1.5 MiB or more; 0.3 MiB are free there' in said
    assert f'the run goes on, the last good checkpoint: {small_disk}/epoch_1.pth' in said


def test_tensorboard_on_a_full_disk_costs_its_record_and_not_the_run(small_disk, caplog):
    hook = TensorboardLoggerHook(interval=1)
    runner = run(Batches(2), CheckpointHook(interval=1, max_keep_ckpts=1), TextLoggerHook(interval=1), hook,
                 Fills(small_disk / 'filler', 2, 3, spare=0), model=Large(), folder=small_disk, max_epochs=6)
    assert runner.epoch == 6 and damage_of(small_disk / 'epoch_6.pth') is None


def test_what_its_writer_cannot_do_is_said_once(tmp_path, caplog):
    class Full:
        def __getattr__(self, name):
            def fails(*args, **kwargs):
                raise OSError(28, 'No space left on device')
            return fails

    class Breaks(Hook):
        priority = 'HIGHEST'

        def after_train_iter(self, runner):
            if runner.iter == 1:
                hook.writer.close()
                hook.writer = Full()

    hook = TensorboardLoggerHook(interval=1)
    assert run(Batches(4), hook, Breaks(), model=Regression(), folder=tmp_path).iter == 4
    said = [record.getMessage() for record in caplog.records if 'TensorBoard' in record.getMessage()]
    assert len(said) == 1 and 'No space left on device' in said[0]


def test_a_disk_that_is_full_at_the_end_is_no_success(small_disk):
    with pytest.raises(OSError, match='No space left') as caught:
        run(Batches(2), CheckpointHook(interval=1), Fills(small_disk / 'filler', 2, 9), model=Large(),
            folder=small_disk, max_epochs=2)
    said = notes(caught.value)
    assert f'the end of this run is lost; the last good checkpoint: {small_disk}/epoch_1.pth' in said
    assert files(small_disk) == ['epoch_1.pth', 'filler', 'latest.pth']


def test_so_does_a_limit_on_the_size_of_files(tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limits(Hook):
        def before_train_epoch(self, runner):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000 if runner.epoch == 1 else soft, hard))

    try:
        run(Batches(2), CheckpointHook(interval=1), Limits(), model=Large(), folder=tmp_path, max_epochs=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == ['epoch_1.pth', 'epoch_3.pth', 'latest.pth']
    assert 'epoch_2.pth could not be written' in caplog.text and 'File too large' in caplog.text


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    class Breaks(Hook):
        def after_train_iter(self, runner):
            log, = tmp_path.glob('*.json')
            if log.is_file():
                log.unlink()
                log.mkdir()

    assert run(Batches(3), TextLoggerHook(interval=1), Breaks(), folder=tmp_path).iter == 3
    assert 'log.json lacks a line' in caplog.text


def test_a_full_disk_does_not_unmake_the_best(small_disk, monkeypatch):
    from workspace_lib.loops import EvalHook
    scores = iter([1.0, 2.0, 1.5, 3.0])
    monkeypatch.setattr(EvalHook, 'evaluate', lambda self, runner, moment: self._keep_best(
        runner, {'x': next(scores)}, moment))
    hook = EvalHook(None, save_best='x')
    run(Batches(1), hook, Fills(small_disk / 'filler', 2, 2), model=Large(), folder=small_disk, max_epochs=3)
    assert (hook.best, os.readlink(small_disk / 'best.pth')) == (1.5, 'best_x_epoch_3.pth')
