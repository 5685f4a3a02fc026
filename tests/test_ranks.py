"""Processes that wait for functions: what ranks return, what is said when one fails, and what a notebook runs there."""
from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from threading import Timer

import pytest
import torch

from workspace_lib import apis, dist
from workspace_lib.datasets import build_dataset
from workspace_lib.models import build_classifier
from workspace_lib.tools.ranks import Ranks, shared_gradients, train_briefly

pytestmark = pytest.mark.timeout(300)  # ten processes, on a machine of two cores that may be busy
RECIPE = 'lenet/lenet5_mnist5k.py'
FIXED = {'lr_config': dict(_delete_=True, policy='fixed')}


@pytest.fixture(scope='module')
def two():
    with Ranks(2) as ranks:
        yield ranks


def test_each_rank_answers_in_its_place(two):
    assert two.run(dist.get_dist_info) == [(0, 2), (1, 2)]
    assert two.run(os.getpid) == [process.pid for process in two.processes]


def test_arguments_of_each_rank(two):
    totals = two.run_each(dist.all_reduce_sum, [(torch.tensor([1, 10]), ), (torch.tensor([2, 20]), )])
    assert [total.tolist() for total in totals] == [[3, 30], [3, 30]]


def test_keywords_are_handed_on(two):
    assert two.run(int, '11', base=2) == [3, 3]


def test_what_was_typed_into_a_session_is_refused(two):
    def typed() -> None: ...
    typed.__module__ = '__main__'
    with pytest.raises(ValueError, match='typed was typed into this session'):
        two.run(typed)
    assert len(two.run(os.getpid)) == 2, 'the group is still there'


def test_a_rank_that_raises_ends_the_group_though_the_other_waits():
    ranks = Ranks(2)
    with pytest.raises(RuntimeError, match=r'(?s)rank 1 of 2.*TypeError'):
        ranks.run_each(dist.all_reduce_sum, [(torch.tensor([1.]), ), ('no tensor', )])
    assert all(process.poll() is not None for process in ranks.processes)


def test_a_rank_that_dies_is_told_by_its_status():
    with Ranks(1) as ranks, pytest.raises(RuntimeError, match='rank 0 of 1: its process ended with status 7'):
        ranks.run(os._exit, 7)


def test_a_group_that_cannot_meet_says_why(monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'no_such_card')
    with Ranks(2) as ranks, pytest.raises(RuntimeError, match='rank [01] of 2: its process ended.*(?s:.*)no_such_card'):
        ranks.run(os.getpid)


def test_what_cannot_be_sent_leaves_the_ranks_as_they_are(two):
    pids = two.run(os.getpid)
    with pytest.raises(ValueError, match='arguments for 3 ranks; there are 2'):
        two.run_each(abs, [(-1, ), (-2, ), (-3, )])
    with pytest.raises(ValueError, match='arguments for 1 ranks; there are 2'):
        two.run_each(abs, [(-1, )])
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError), match='lambda|local'):
        two.run_each(abs, [(-1, ), (lambda: 0, )])
    assert two.run(os.getpid) == pids, 'an answer of a call that failed was handed out'


def test_an_interrupted_call_ends_the_group():
    ranks = Ranks(1)
    ranks.run(os.getpid)
    Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ranks.run(time.sleep, 60)
    assert all(process.poll() is not None for process in ranks.processes)
    with pytest.raises(RuntimeError, match=r'these ranks have ended .*start new ones: ranks = Ranks\(1\)'):
        ranks.run(os.getpid)


def test_an_interrupt_of_the_whole_group_does_not_reach_the_ranks():
    said = subprocess.run([sys.executable, '-c', INTERRUPTED], start_new_session=True, capture_output=True, text=True,
                          timeout=120)
    assert said.stdout == 'interrupted\n[7]\n', said.stderr


INTERRUPTED = '''
import os, signal, time
from workspace_lib.tools.ranks import Ranks
with Ranks(1) as ranks:
    ranks.run(os.getpid)
    try:
        os.killpg(0, signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print('interrupted')
    print(ranks.run(int, '7'))
'''


def test_a_group_of_no_ranks_is_refused():
    with pytest.raises(ValueError, match='0 ranks; a group has at least 1'):
        Ranks(0)


@pytest.fixture(scope='module')
def model_and_batch():
    cfg = apis.load_config(RECIPE, {'seed': 0})
    torch.manual_seed(0)
    loader = apis.build_loader(cfg, 'train', build_dataset(cfg.data.train), torch.device('cpu'))
    return build_classifier(cfg.model), next(iter(loader))


def halves(model, batch, *more):
    return [(model, {key: values[rank::2] for key, values in batch.items()}, *more) for rank in range(2)]


def test_shared_gradients_are_those_of_the_whole_batch(two, model_and_batch):
    model, batch = model_and_batch
    first, second = two.run_each(shared_gradients, halves(model, batch))
    model.zero_grad()
    model.train_step(batch)['loss'].backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], parameter.grad, atol=1e-6)


def test_mmcvs_wrapper_shares_the_same_gradients(two, model_and_batch):
    parallel = pytest.importorskip('mmcv.parallel')
    ours = two.run_each(shared_gradients, halves(*model_and_batch))
    theirs = two.run_each(shared_gradients, halves(*model_and_batch, parallel.MMDistributedDataParallel))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a)


def test_a_brief_training_is_the_same_on_two_ranks(two):
    alone = train_briefly(RECIPE, 5, {**FIXED, 'data.samples_per_gpu': 32})
    first, second = two.run(train_briefly, RECIPE, 5, {**FIXED, 'data.samples_per_gpu': 16})
    assert alone['batch'] == first['batch'] == 32 and len(alone['losses']) == 5
    mean = [(a + b) / 2 for a, b in zip(first['losses'], second['losses'], strict=True)]
    assert mean == pytest.approx(alone['losses'], abs=1e-5)
    for name, value in alone['state'].items():
        assert torch.equal(first['state'][name], second['state'][name])
        assert torch.allclose(first['state'][name], value, atol=1e-5)


def test_a_brief_training_counts_accumulated_iterations():
    accumulated = train_briefly(RECIPE, 4, {**FIXED, 'data.samples_per_gpu': 8, 'optimizer_config.cumulative_iters': 2})
    assert accumulated['batch'] == 16 and len(accumulated['losses']) == 4
