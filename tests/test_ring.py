"""Shared memory that batches are handed over in: used over and over, but never while anyone still holds a batch."""
from __future__ import annotations

import gc
import logging
import os
import signal
import time
import weakref
from contextlib import nullcontext
from pathlib import Path

import cv2
import interrupted
import numpy as np
import pytest
import torch
from test_faults import said_by
from test_loader import NORMALIZE, TEST, TO_TENSOR, TRAIN, Shift, epoch, loader, same
from test_loader import folder as folder  # noqa: PLC0414 (a fixture)
from test_packed import dataset as packed_dataset
from test_packed import tree as tree  # noqa: PLC0414 (a fixture)

from workspace_lib.datasets import ConcatDataset, CustomDataset, Loader, build_dataloader, ring
from workspace_lib.datasets import loader as loader_module
from workspace_lib.datasets.ring import Ring, batch_memory, choose_workers, copied_ahead, cores, to_send

UNEQUAL = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(16, -1)), NORMALIZE, *TO_TENSOR]


def clones(batches) -> list[dict[str, torch.Tensor]]:
    return [{key: value.clone() for key, value in batch.items()} for batch in batches]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in zip(first, second, strict=True))


def slot_of(batches: Loader, batch: dict) -> int:
    """In which slot of the ring a batch lies; -1 if in none."""
    slots = batches._requests.ring.slots
    number, rest = divmod(batch['img'].data_ptr() - slots.data_ptr(), slots.shape[1])
    return number if 0 <= number < len(slots) and rest == 0 else -1


def free(batches: Loader) -> int:
    """How many slots nobody uses; afterwards as before."""
    found, whole = [], batches._requests.ring
    asked = set(whole._asked)
    while (slot := whole.ask()) >= 0:
        found.append(slot)
    whole._asked = asked
    return len(found)


# The ring itself

def filled(whole: Ring, value: int) -> torch.Tensor | None:
    slot = whole.ask()
    if slot < 0:
        return None
    memory = batch_memory((3, 4), np.dtype(np.float32), whole.slots[slot].numpy())
    memory.fill(value)
    return whole.receive(slot, to_send(dict(img=memory.T), whole.slots[slot].numpy()))['img']


HOLDERS = {'the tensor': lambda img: img, 'a slice': lambda img: img[1:, 2:], 'one number': lambda img: img[0, 0],
           'a reshaped view': lambda img: img.t().view(-1), 'an array': lambda img: img.numpy(),
           'a slice of an array': lambda img: img.numpy()[1:], 'a detached view': lambda img: img.detach(),
           'its storage': lambda img: img.untyped_storage(), 'what autograd saved': lambda img: (
               img * torch.ones(4, 3, requires_grad=True)).grad_fn}


@pytest.mark.parametrize('holder', HOLDERS)
def test_a_slot_is_free_when_the_last_view_is_gone_and_no_sooner(holder):
    whole = Ring(1, 100)
    first = filled(whole, 1)
    assert first.shape == (4, 3) and first.stride() == (1, 4) and first.eq(1).all()
    held = HOLDERS[holder](first)
    del first
    gc.collect()
    assert filled(whole, 2) is None, 'the slot was given away'
    del held
    assert filled(whole, 3).eq(3).all()


def test_what_was_asked_for_stays_so_until_it_comes_or_is_recalled():
    whole = Ring(2, 10)
    assert [whole.ask() for _ in range(3)] == [0, 1, -1]
    held = whole.receive(1, dict(img=torch.zeros(1), label=np.arange(3)))
    assert whole.ask() == 1 and held['label'].tolist() == [0, 1, 2]
    whole.recall()
    assert [whole.ask() for _ in range(3)] == [0, 1, -1]


def test_a_recall_does_not_take_back_what_is_held():
    whole = Ring(1, 100)
    held = filled(whole, 1)
    whole.recall()
    assert whole.ask() == -1 and held.eq(1).all()


def test_what_does_not_fit_a_slot_gets_memory_of_its_own():
    whole = Ring(1, 10)
    room = whole.slots.shape[1]
    slot = whole.slots[0].numpy()
    assert np.shares_memory(batch_memory((room,), slot.dtype, slot), slot)
    assert not np.shares_memory(batch_memory((room + 1,), slot.dtype, slot), slot)


# Through the loader

@pytest.mark.parametrize('steps', [TRAIN, [*TRAIN[:2], Shift(), *TRAIN[3:]]], ids=['uint8', 'float, image by image'])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_a_loop_uses_the_same_slots_again_and_no_other_memory(folder, steps, device):
    batches = loader(folder, 2, steps, device=device)
    seen = set()
    whole_slot = []
    received = Ring.receive

    def receive(self, slot, batch):
        whole_slot.append((slot, isinstance(batch['img'], tuple)))
        return received(self, slot, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, 'receive', receive)
        for _ in range(3):
            for batch in batches:
                seen.add(slot_of(batches, batch) if device == 'cpu' else whole_slot[-1][0])
    assert len(whole_slot) == 18 and all(written for _, written in whole_slot)
    assert -1 not in seen and len(seen) <= 7 == len(batches._requests.ring.slots)
    del batch
    assert free(batches) == 7


def test_a_batch_that_is_on_its_device_has_given_its_slot_back_before_the_next_is_asked_for(folder, monkeypatch):
    slots, received = [], Ring.receive
    monkeypatch.setattr(Ring, 'receive', lambda self, slot, sent: slots.append(slot) or received(self, slot, sent))
    list(loader(folder, 1, batch=2, device='meta'))
    assert len(slots) == 11 and set(slots) == {0, 1, 2}  # two are asked for, and one comes


@pytest.mark.parametrize('persistent', [True, False])
def test_batches_held_over_epochs_are_never_overwritten(folder, persistent):
    batches, here = (loader(folder, workers, persistent_workers=persistent and workers > 0) for workers in (2, 0))
    expected = [batch for _ in range(4) for batch in clones(here)]
    held = [batch for _ in range(4) for batch in batches]  # 24 batches of 7 slots
    assert equal(held, expected)
    if persistent:
        assert len({slot_of(batches, batch) for batch in held}) == 8  # each slot once, and memory beside them
        del held[6:]
        again = clones(batches)
        assert equal(held, expected[:6]) and len(again) == 6


def test_a_view_that_is_held_outlives_its_batch(folder):
    batches, views, expected = loader(folder, 1, batch=2), [], []
    for number, batch in enumerate(batches):
        if number % 4 == 0:
            views += [batch['img'][1], batch['img'].numpy()[0, :, 3:]]
            expected += [view.clone() if isinstance(view, torch.Tensor) else view.copy() for view in views[-2:]]
    del batch
    for _ in range(3):
        for _ in batches:
            pass
    assert len(views) == 6
    assert all(np.array_equal(view, before) for view, before in zip(views, expected, strict=True))


@pytest.mark.parametrize('persistent', [True, False])
@pytest.mark.parametrize('taken', [1, 3, 5])
def test_an_epoch_left_half_way_disturbs_neither_what_is_held_nor_the_next(folder, persistent, taken):
    batches, here = (loader(folder, workers, persistent_workers=persistent and workers > 0) for workers in (2, 0))
    held, expected = [], []
    for _ in range(4):
        whole = clones(here)
        expected += whole[:taken]
        for number, batch in enumerate(batches, 1):
            held.append(batch)
            if number == taken:
                break
    del batch
    assert equal(held, expected)
    assert equal(clones(batches), clones(here)) and equal(held, expected)
    held.clear()
    assert free(batches) == 7, 'what was asked for in an epoch left early is free again'


def test_two_passes_at_once_have_a_ring_each(folder):
    batches, here = (loader(folder, workers, persistent_workers=False) for workers in (1, 0))
    expected = [clones(here), clones(here)]
    pairs = list(zip(iter(batches), iter(batches), strict=True))
    assert equal([pair[0] for pair in pairs], expected[0]) and equal([pair[1] for pair in pairs], expected[1])


def test_a_second_pass_of_workers_that_persist_leaves_the_batches_of_the_first(folder):
    batches, here = loader(folder, 2), loader(folder)
    expected = clones(here)
    first = iter(batches)
    held = [next(first), next(first)]
    assert equal(clones(batches), clones(here)) and equal(held, expected[:2])


def dying(rank: int, to: str, pictures: str) -> None:
    os.setsid()
    batches = loader(Path(pictures), 2)
    held = [next(one) for one in [iter(batches)] for _ in range(2)]
    before = clones(held)
    os.kill(batches._places[0], signal.SIGKILL)
    try:
        for _ in range(3):
            list(batches)
        said = 'nobody noticed'
    except RuntimeError as error:
        said = str(error)
    Path(to, 'said').write_text(f'{equal(held, before)} {said}')
    os.killpg(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_takes_no_batch_with_it(folder, tmp_path):
    assert said_by(dying, tmp_path, str(folder)).startswith('True DataLoader worker')


def dying_and_going_on(rank: int, to: str, pictures: str, amid: bool) -> None:
    os.setsid()
    batches, here = (loader(Path(pictures), workers) for workers in (2, 0))
    expected = [clones(here) for _ in range(2)]
    held = list(batches)
    if amid:
        next(iter(batches))
    said = []
    try:
        os.kill(batches._places[0], signal.SIGKILL)
        time.sleep(1)  # its end interrupts it
        list(batches)
    except RuntimeError as error:
        said.append(str(error))
    batches.set_epoch(0)
    again = [clones(batches) for _ in range(2)]
    right = [equal(held, expected[0]), *map(equal, again, expected)]
    Path(to, 'said').write_text(f'{right} {slot_of(batches, held[0])} {free(batches)} {said}')
    os.killpg(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('amid', [True, False], ids=['amid a pass', 'between two'])
def test_after_the_death_of_a_worker_the_next_pass_has_new_ones(folder, tmp_path, amid):
    said = said_by(dying_and_going_on, tmp_path, str(folder), amid)
    assert said.startswith("[True, True, True] -1 7 ['DataLoader worker"), said


def test_a_pass_that_another_overtook_is_an_error_and_takes_none_of_its_batches(folder):
    batches, here = loader(folder, 2), loader(folder)
    list(here)
    first = iter(batches)
    next(first)
    second = iter(batches)
    taken = clones([next(second)])
    with pytest.raises(RuntimeError, match='the pass of epoch 0 was left after batch 0, when another began: set'):
        next(first)
    assert equal(taken + clones(second), clones(here))


def test_a_ring_holds_no_more_than_the_samples_that_there_are(folder):
    for batch_size, sampler, images, slots in ((100, None, 22, 1), (12, None, 12, 2), (100, [3, 4, 5], 3, 1)):
        batches = Loader(CustomDataset(str(folder), TEST), batch_size, 2, sampler=sampler)
        made = list(batches)
        assert batches._requests.ring.slots.shape == (slots + ring.SPARE, images * 3 * 16 * 16 * 4)
        assert all(slot_of(batches, batch) >= 0 for batch in made)
    half = Loader(CustomDataset(str(folder), TEST), 100, 1, rank=1, world_size=2)
    half.prepare()
    assert half._requests.ring.slots.shape[1] == 11 * 3 * 16 * 16 * 4


def test_without_workers_there_is_no_ring(folder):
    batches = loader(folder)
    held = list(batches)
    before = clones(held)
    list(batches)
    assert equal(held, before) and batches._requests.ring is None


@pytest.mark.parametrize('workers', [0, 1])
def test_images_larger_than_the_first_get_memory_of_their_own(folder, tmp_path, workers):
    (tmp_path / 'a').mkdir()
    for number, width in enumerate((20, 400, 30, 24)):
        cv2.imwrite(str(tmp_path / 'a' / f'{number}.png'), np.full((20, width, 3), number * 20, np.uint8))
    batches = loader(tmp_path, workers, UNEQUAL, 1, shuffle=False)
    held = [batch['img'] for batch in batches]
    assert [img.shape[3] for img in held] == [16, 320, 24, 19]
    dataset = batches.dataset
    assert all(torch.equal(img[0], dataset.pipeline(dataset.data_infos[at])['img']) for at, img in enumerate(held))


class Growing(torch.utils.data.Dataset):
    """The third image is of another type."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(img=torch.zeros(1, 2, 2, dtype=torch.float64 if index == 2 else torch.float32))


@pytest.mark.parametrize('workers', [0, 1])
def test_images_of_different_types_are_an_error(workers):
    with pytest.raises(ValueError, match=r'differ in .* or type: .*float32 and .*float64'):
        list(Loader(Growing(), 4, workers))


def test_parts_of_different_pipelines_make_the_same_batches(folder):
    def parts():
        others = [*TRAIN[:2], Shift(), *TRAIN[3:]]
        return ConcatDataset([CustomDataset(str(folder), steps) for steps in (TRAIN, others)])
    here, there = (build_dataloader(parts(), 4, workers, seed=3) for workers in (0, 2))
    for _ in range(2):
        assert equal(clones(here), list(there))


def test_ranks_have_rings_of_their_own(folder):
    def ranks(workers):
        return [Loader(CustomDataset(str(folder), TRAIN), 3, workers, True, 5, rank=rank, world_size=2)
                for rank in range(2)]
    here, there = ([list(batches) for batches in zip(*ranks(workers), strict=True)] for workers in (0, 1))
    assert len(here) == 4 and all(equal(one, other) for one, other in zip(here, there, strict=True))


@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_workers_may_be_started_in_each_way(folder, method):
    batches = loader(folder, 1, multiprocessing_context=method)
    for number in range(2):
        made = list(batches)
        assert -1 not in {slot_of(batches, batch) for batch in made[:4]}
        here = loader(folder)
        here.set_epoch(number)
        assert same(epoch(here), (torch.cat([batch['img'] for batch in made]),
                                  torch.cat([batch['gt_label'] for batch in made])))
        del made


@pytest.mark.parametrize('name', ['train', 'train_short24', 'train_short24.pack'])
def test_originals_resized_copies_and_packs_come_the_same_way(tree, name):
    here, there = (build_dataloader(packed_dataset(tree, name), 16, workers, seed=3) for workers in (0, 2))
    for number, (batch, expected) in enumerate(zip(there, here, strict=True)):
        assert equal([batch], [expected]), number
        assert slot_of(there, batch) >= 0


def test_rows_of_labels_and_other_fields_come_with_the_images():
    data = [dict(img=np.full((2, 2, 3), k, np.uint8), gt_label=np.eye(5, dtype=np.int8)[k], weight=0.5, name=f'n{k}',
                 map=np.full((99, 99), k)) for k in range(5)]
    for here, there in zip(Loader(data, 3, 0, device='cpu'), Loader(data, 3, 1, device='cpu'), strict=True):
        assert here.keys() == there.keys() and here['name'] == there['name']
        assert all(torch.equal(here[key], there[key]) and here[key].dtype == there[key].dtype
                   for key in ('img', 'gt_label', 'weight', 'map'))
        assert here['gt_label'].dtype == torch.int8 and here['map'].shape[1:] == (99, 99)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_tensors_of_every_type_come_as_float32(workers, dtype):
    data = [dict(img=torch.full((3, 2, 2), k, dtype=dtype), gt_label=k) for k in range(5)]
    made = list(Loader(data, 3, workers))
    assert torch.equal(torch.cat([batch['img'] for batch in made])[:, 0, 0, 0], torch.arange(5.))
    assert all(batch['img'].dtype == torch.float32 and batch['gt_label'].dtype == torch.int64 for batch in made)


@pytest.mark.parametrize('workers', [0, 1])
def test_text_and_dates_come_as_arrays(workers):
    data = [dict(img=np.full((2, 2, 3), k, np.uint8), name=np.str_(f'n{k}'), day=np.datetime64('2020-01-01') + k)
            for k in range(3)]
    batch, = Loader(data, 3, workers)
    assert batch['name'].tolist() == ['n0', 'n1', 'n2'] and batch['day'][2] == np.datetime64('2020-01-03')
    assert torch.equal(batch['img'][:, 0, 0, 0], torch.arange(3.))


def looping(rank: int, to: str, pictures: str) -> None:
    os.setsid()
    batches = loader(Path(pictures), 2)
    next(iter(batches))
    pids = [os.getpid(), *batches._places[::2]]
    Path(to, 'pids').write_text(' '.join(map(str, pids)))
    time.sleep(60)


def test_nothing_is_left_in_shared_memory_when_all_are_killed(folder, tmp_path):
    process = interrupted.processes().Process(target=interrupted.forking, args=(looping, 0, str(tmp_path), str(folder)))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / 'pids').is_file() or not (tmp_path / 'pids').read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pids = (tmp_path / 'pids').read_text().split()
    os.killpg(int(pids[0]), signal.SIGKILL)
    process.join(20)
    left = os.listdir('/dev/shm')
    assert not [name for name in left for pid in pids if pid in name.replace('-', '_').split('_')]


# Workers that nobody asked for by number

@pytest.mark.parametrize('share, batches, expected', [
    (8, 1000, (7, 2)), (1, 1000, (0, 0)), (0, 1000, (0, 0)), (2, 1000, (1, 2)), (8, 17, (7, 2)), (8, 16, (7, 1)),
    (8, 10, (7, 1)), (8, 7, (4, 1)), (8, 4, (1, 1)), (8, 3, (0, 0)), (8, 0, (0, 0))])
def test_workers_are_as_many_as_cores_and_memory_allow(share, batches, expected):
    workers, ahead = choose_workers(share, batches)
    assert (workers, ahead) == expected
    assert workers == 0 or workers * ahead + ring.SPARE <= batches


def test_cores_are_those_of_the_affinity_and_the_quota(monkeypatch):
    monkeypatch.setattr(ring.os, 'sched_getaffinity', lambda pid: set(range(12)), raising=False)
    for text, expected in (('max 100000\n', 12), ('450000 100000\n', 4), ('50000 100000', 1), ('9900000 100000', 12)):
        monkeypatch.setattr(ring.Path, 'read_text', lambda path, text=text: text)
        assert cores() == expected
    monkeypatch.setattr(ring.Path, 'read_text', lambda path: Path('/nowhere/at/all').read_bytes())
    assert cores() == 12


@pytest.mark.parametrize('given', [{}, dict(workers_per_gpu='auto'), dict(workers_per_gpu=None)])
def test_workers_that_are_not_given_are_chosen_and_said(folder, monkeypatch, caplog, given):
    monkeypatch.setattr(loader_module, 'cores', lambda: 6)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    caplog.set_level(logging.INFO, 'workspace_lib')
    logging.getLogger('workspace_lib').addHandler(caplog.handler)
    try:
        batches = build_dataloader(CustomDataset(str(folder), TRAIN), 4, seed=3, **given)
    finally:
        logging.getLogger('workspace_lib').removeHandler(caplog.handler)
    assert (batches.num_workers, batches._batches.prefetch_factor) == (2, 2)
    assert 'loader: 2 workers, 2 batches ahead each: 6 cores, 2 ranks, ' in caplog.text
    assert same(epoch(batches), epoch(loader(folder)))


def test_a_number_that_is_given_is_taken(folder, monkeypatch):
    monkeypatch.setattr(loader_module, 'cores', lambda: pytest.fail('nobody asked'))
    assert loader(folder, 3).num_workers == 3 and loader(folder, 0).num_workers == 0
    monkeypatch.setattr(loader_module, 'cores', lambda: 2)
    assert build_dataloader(CustomDataset(str(folder), TEST), 4, prefetch_factor=5)._batches.prefetch_factor == 5


# The way to a GPU, with stand-ins for its streams and events that write down what happens

class Cuda:
    def __init__(self, patch):
        self.said: list[str] = []
        self.patch, cuda = patch, self

        class Event:
            def __init__(self, blocking):
                assert blocking, 'it would keep a core busy'

            def synchronize(self):
                cuda.said.append(f'wait for copy {self.number}')

        class Stream:
            def __init__(self, device=None):
                self.side = device is not None

            def wait_stream(self, other):
                assert self.side is not other.side
                cuda.said.append('copy after the steps so far' if self.side else 'step after the copies so far')

            def record_event(self, event):
                event.number = sum(line.endswith('way') for line in cuda.said)
                cuda.said.append(f'copy {event.number} is on its way')
                return event

            def synchronize(self):
                cuda.said.append('wait for all copies')

            def __enter__(self):
                return self

            def __exit__(self, *error):
                pass
        patch.setattr(torch.cuda, 'Event', Event)
        patch.setattr(torch.cuda, 'Stream', Stream)
        patch.setattr(torch.cuda, 'stream', lambda stream: stream)
        patch.setattr(torch.cuda, 'current_stream', lambda device=None: Stream())
        patch.setattr(torch.Tensor, 'pin_memory', lambda self: self)
        patch.setattr(torch.Tensor, 'record_stream', lambda self, stream: None)
        self.sent: list[weakref.ref] = []

    def batches(self, count, error=None):
        for number in range(count):
            array = np.full((2,), number)
            self.sent.append(weakref.ref(array))
            yield dict(img=torch.from_numpy(array), name=str(number))
            del array
        if error:
            yield error

    def ahead(self, *args):
        """Copies are of the number + 10."""
        def to_device(batch, device):
            return {**batch, 'img': batch['img'] + 10}
        self.patch.setattr(ring, 'to_device', to_device)
        for batch in copied_ahead(self.batches(*args), torch.device('cpu')):
            if isinstance(batch, Exception):
                raise batch
            yield batch


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_while_a_batch_is_in_use_the_next_is_copied(cuda):
    order = []
    for batch in cuda.ahead(3):
        order.append((batch['img'].tolist(), batch['name'], len(cuda.sent)))
        cuda.said.append(f'step {batch["name"]}')
    assert order == [([10, 10], '0', 2), ([11, 11], '1', 3), ([12, 12], '2', 3)]
    moved = ['copy after the steps so far', 'copy {0} is on its way']
    first, second, third = ([line.format(n) for line in moved] for n in range(3))
    given = 'step after the copies so far'
    assert cuda.said == [given, *first, given, *second, 'step 0', given, 'wait for copy 0', *third, 'step 1',
                         given, 'wait for copy 1', 'step 2', 'wait for all copies']


def test_a_batch_stays_on_the_host_until_its_copy_is_done(cuda):
    alive = []
    for _ in cuda.ahead(6):
        done = {int(line.split()[-1]) for line in cuda.said if line.startswith('wait for copy')}
        assert all(number in done or sent() is not None for number, sent in enumerate(cuda.sent))
        alive.append(sum(sent() is not None for sent in cuda.sent))
    assert max(alive) <= 2 and len(alive) == 6
    assert not any(sent() for sent in cuda.sent)


def test_a_pass_that_is_left_waits_for_its_copies(cuda):
    ahead = cuda.ahead(6)
    next(ahead)
    ahead.close()
    assert cuda.said[-1] == 'wait for all copies' and len(cuda.sent) == 2


def test_an_error_is_raised_after_the_batches_before_it(cuda):
    ahead = cuda.ahead(2, OSError('no such file'))
    assert [next(ahead)['name'], next(ahead)['name']] == ['0', '1']
    with pytest.raises(OSError, match='no such file'):
        next(ahead)


def test_where_pages_cannot_be_locked_torch_pins_and_the_log_says_why(folder, monkeypatch, caplog):
    batches = loader(folder, 1)
    batches._locks = True  # as on a GPU
    monkeypatch.setattr(Ring, 'lock_pages', lambda self, device: 'cudaHostRegister of 1 MiB: out of memory')
    caplog.set_level(logging.WARNING, 'workspace_lib')
    logging.getLogger('workspace_lib').addHandler(caplog.handler)
    try:
        batches.prepare()
    finally:
        logging.getLogger('workspace_lib').removeHandler(caplog.handler)
    assert batches._batches.pin_memory and len(batches._requests.ring.slots) == 0
    assert 'by a thread of torch: cudaHostRegister of 1 MiB: out of memory' in caplog.text
    batches._batches.pin_memory = False  # there is nothing here to pin for
    assert same(epoch(batches), epoch(loader(folder)))


class Cudart:
    """What of the CUDA runtime torch offers; `code` is its answer."""

    def __init__(self, code):
        self.code, self.locked = code, {}

    def cudaHostRegister(self, start, size, flags):
        self.locked[start] = size
        return self.code

    def cudaHostUnregister(self, start):
        del self.locked[start]

    def cudaGetErrorString(self, code):
        return 'out of memory'


def test_pages_are_unlocked_when_the_last_batch_of_a_ring_is_gone(monkeypatch):
    cudart = Cudart(0)
    monkeypatch.setattr(torch.cuda, 'cudart', lambda: cudart)
    monkeypatch.setattr(torch.cuda, 'device', nullcontext)
    whole = Ring(2, 100)
    assert whole.lock_pages(torch.device('cpu')) == '' and list(cudart.locked.values()) == [2 * 128]
    held = filled(whole, 1)
    del whole
    gc.collect()
    assert cudart.locked and held.eq(1).all()
    del held
    gc.collect()
    assert not cudart.locked
    monkeypatch.setattr(torch.cuda, 'cudart', lambda: Cudart(2))
    assert Ring(1, 10).lock_pages(torch.device('cpu')) == 'cudaHostRegister of 0 MiB: out of memory'


@pytest.mark.gpu
@pytest.mark.parametrize('persistent', [True, False])
def test_on_a_gpu_the_ring_is_page_locked_and_no_batch_is_overwritten(folder, persistent):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    batches = loader(folder, 2, device='cuda', channels_last=True, persistent_workers=persistent)
    here, held = loader(folder), []
    for _ in range(3):
        for number, batch in enumerate(batches):
            held.append(batch)
            torch.cuda._sleep(10**7)  # the step is slower than the loader
            if number == 0:
                assert batches._requests.ring.slots.is_pinned()
    expected = [batch for _ in range(3) for batch in clones(here)]
    for batch, wanted in zip(held, expected, strict=True):
        torch.testing.assert_close(batch['img'].cpu(), wanted['img'], rtol=1e-6, atol=1e-6)
        assert torch.equal(batch['gt_label'].cpu(), wanted['gt_label'])


@pytest.mark.gpu
def test_on_a_gpu_no_batch_waits_for_the_device(folder):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    batches = loader(folder, 2, device='cuda', channels_last=True)
    list(batches)
    try:
        for number, _ in enumerate(batches):
            torch.cuda.set_sync_debug_mode('error' if number < 4 else 'default')  # the end of a pass may wait
    finally:
        torch.cuda.set_sync_debug_mode('default')
