"""Rank, world size and sums: alone, and in two processes."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, multiprocessing

from workspace_lib.dist import all_gather, all_reduce_sum, get_dist_info, is_main


def test_one_process_is_rank_0_of_1():
    assert get_dist_info() == (0, 1) and is_main()


def test_alone_a_sum_is_the_tensor_itself():
    tensor = torch.tensor([1, 2])
    assert all_reduce_sum(tensor) is tensor and tensor.tolist() == [1, 2]


def test_alone_what_is_gathered_is_ones_own():
    assert all_gather('mine') == ['mine']


def two_processes(rank: int, folder: str) -> None:
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    total = all_reduce_sum(torch.tensor([rank + 1, 10]))
    Path(folder, f'rank{rank}').write_text(
        f'{get_dist_info()} {is_main()} {total.tolist()} {all_gather("ab"[rank])}')
    distributed.destroy_process_group()


def test_two_processes_sum_and_gather(tmp_path):
    multiprocessing.spawn(two_processes, args=(str(tmp_path),), nprocs=2)
    assert (tmp_path / 'rank0').read_text() == "(0, 2) True [3, 20] ['a', 'b']"
    assert (tmp_path / 'rank1').read_text() == "(1, 2) False [3, 20] ['a', 'b']"
