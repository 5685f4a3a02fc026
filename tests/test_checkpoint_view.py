"""A table of a checkpoint names every entry, and its bytes are those of the tensors."""
from __future__ import annotations

import argparse

import pytest
import torch
from torch import nn

from workspace_lib.checkpoint import read_checkpoint, save_checkpoint
from workspace_lib.tools.checkpoint_view import add_arguments, contents, summary


@pytest.fixture
def file(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(model, tmp_path / 'c.pth', optimizer, dict(epoch=7, config='x' * 100))
    return tmp_path / 'c.pth'


def test_every_entry_has_a_row(file):
    rows = {path: (what, size) for path, what, size in contents(read_checkpoint(file)).rows}
    assert rows['meta.epoch'] == ('7', 0)
    assert rows['state_dict.0.weight'] == ('float32 (2, 3)', 24)
    assert rows['state_dict'] == ('OrderedDict of 7, 7 tensors with 17 numbers', 16 * 4 + 8)
    assert rows['optimizer.param_groups'] == ('list of 1', 0)
    assert rows['optimizer'][1] == rows['optimizer.state'][1] == 12 * 4
    assert 'optimizer.state.0' not in rows


def test_depth_says_how_far(file):
    checkpoint = read_checkpoint(file)
    assert [row[0] for row in contents(checkpoint, 1).rows] == list(checkpoint)
    assert 'optimizer.state.0.momentum_buffer' in [row[0] for row in contents(checkpoint, 4).rows]


def test_no_depth_is_refused(file):
    with pytest.raises(ValueError, match='depth 0; 1 shows the entries'):
        contents(read_checkpoint(file), 0)


def test_long_values_are_cut_and_counted():
    assert summary('short') == "'short'"
    said = summary('x' * 100)
    assert said.startswith("'xxx") and said.endswith('(str of 102 characters)') and len(said) < 80


def run(file) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([str(file), '--depth', '1'])
    return args.run(args)


def test_the_command_prints_the_table_and_finds_a_flipped_bit(file, capsys):
    assert run(file) == 0
    said = capsys.readouterr().out
    assert 'state_dict' in said and f'c.pth: {file.stat().st_size:,} bytes' in said
    content = bytearray(file.read_bytes())
    weight = read_checkpoint(file)['state_dict']['0.weight'].numpy().tobytes()
    content[content.index(weight) + 2] ^= 1
    file.write_bytes(content)
    assert run(file) == 1
    assert 'c.pth is damaged' in capsys.readouterr().out


def test_a_file_of_the_format_before_torch_1_6_is_not_called_damaged(file, tmp_path, capsys):
    torch.save(read_checkpoint(file), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert run(tmp_path / 'old.pth') == 0
    said = capsys.readouterr().out
    assert 'no check sums' in said and 'damaged' not in said
