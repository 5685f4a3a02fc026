"""Curves and times of several runs, from our logs and from mmclassification's."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from figures import assert_nothing_is_cut_off

from workspace_lib.tools.analyze_logs import curve, curves_plot, default_keys, read_runs, time_table
from workspace_lib.tools.cli import main

# As mmcv's TextLoggerHook writes them.
THEIRS = '''{"env_info": "sys.platform: linux", "seed": 0, "exp_name": "tiny.py", "mmcls_version": "0.25.0"}
{"mode": "train", "epoch": 1, "iter": 2, "lr": 0.05, "data_time": 1.0, "loss": 1.2, "time": 2.0}
{"mode": "train", "epoch": 1, "iter": 4, "lr": 0.05, "data_time": 0.1, "loss": 1.0, "time": 0.4}
{"mode": "val", "epoch": 1, "iter": 2, "lr": 0.05, "accuracy_top-1": 50.0}
{"mode": "train", "epoch": 2, "iter": 2, "lr": 0.025, "data_time": 0.9, "loss": 0.8, "time": 1.8}
{"mode": "train", "epoch": 2, "iter": 4, "lr": 0.025, "data_time": 0.1, "loss": 0.6, "time": 0.6}
{"mode": "val", "epoch": 2, "iter": 2, "lr": 0.025, "accuracy_top-1": 66.66666}
'''
BY_ITERATION = '''{"mode": "train", "epoch": 1, "iter": 10, "lr": 0.1, "loss": 3.0, "time": 0.1}
{"mode": "train", "epoch": 2, "iter": 20, "lr": 0.1, "loss": 2.0, "time": 0.1}
{"mode": "val", "epoch": 2, "iter": 20, "lr": 0.1, "accuracy_top-1": 40.0}
{"mode": "train", "epoch": 3, "iter": 30, "lr": 0.1, "loss": 1.0, "time": 0.1}
'''


@pytest.fixture
def write(tmp_path):
    def make(folder: str, text: str, name: str = '20260101_000000.log.json') -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
        return str(tmp_path / folder)
    return make


def entries(text: str) -> list[dict]:
    return [entry for entry in map(json.loads, text.splitlines()) if 'mode' in entry]


def test_training_values_stand_within_their_epoch_and_validations_at_its_end():
    x, y = curve(entries(THEIRS), 'loss')
    assert (x.tolist(), y.tolist()) == ([.5, 1, 1.5, 2], [1.2, 1, .8, .6])
    x, y = curve(entries(THEIRS), 'accuracy_top-1')
    assert (x.tolist(), y.tolist()) == ([1, 2], [50, 66.66666])


def test_a_run_counted_in_iterations_is_drawn_over_these():
    assert curve(entries(BY_ITERATION), 'loss')[0].tolist() == [10, 20, 30]
    assert curve(entries(BY_ITERATION), 'accuracy_top-1')[0].tolist() == [20]
    assert curves_plot({'a': entries(BY_ITERATION)}, ['loss']).figure.axes[0].get_xlabel() == 'iteration'


def test_several_runs_share_a_picture_and_no_two_look_alike(write):
    runs = read_runs([write(name, THEIRS) for name in 'abcdefg'])
    plot = curves_plot(runs, ['loss', 'accuracy_top-1'])
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ['loss', 'accuracy_top-1 (%)']
    assert_nothing_is_cut_off(plot)
    lines = plot.figure.axes[0].lines
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]
    assert len(lines) == 7 and len({colour for colour, *_ in looks}) == len({marker for _, marker, _ in looks}) == 7
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()] == list('abcdefg')
    assert plot.table.rows[0] == ('a', 'loss', 4, '1.2', '0.6', '0.6')


def test_text_is_11_points_or_more():
    plot = curves_plot({'a': entries(THEIRS)}, ['loss'])
    axes = plot.figure.axes[0]
    texts = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *plot.figure.legends[0].get_texts()]
    assert min(text.get_fontsize() for text in texts) >= 11


def test_times_leave_the_first_entry_of_an_epoch_out_unless_asked():
    (name, count, mean, deviation, fastest, least, slowest, most, waiting), = time_table({'a': entries(THEIRS)}).rows
    assert (name, count, mean, deviation) == ('a', 2, '0.5000', '0.1000')
    assert (fastest, least, slowest, most) == (1, '0.4000', 2, '0.6000')
    assert waiting == pytest.approx(20)
    assert time_table({'a': entries(THEIRS)}, include_outliers=True).rows[0][1:3] == (4, '1.2000')


def test_times_without_data_time_are_times_too():
    row, = time_table({'a': entries(BY_ITERATION)}).rows
    assert row[2] == '0.1000' and math.isnan(row[-1])


def test_runs_are_named_by_folder_or_by_file_where_folders_are_the_same(write, tmp_path):
    assert list(read_runs([write('a', THEIRS), write('b', THEIRS)])) == ['a', 'b']
    write('a', THEIRS, 'second.log.json')
    files = [str(tmp_path / 'a' / name) for name in ('20260101_000000.log.json', 'second.log.json')]
    assert list(read_runs(files)) == ['20260101_000000', 'second']


def test_a_resumed_run_is_one_curve(write):
    first = ''.join(THEIRS.splitlines(keepends=True)[:6])  # was cut off in epoch 2
    second = ''.join(THEIRS.splitlines(keepends=True)[4:])
    write('a', first)
    folder = write('a', second, '20260102_000000.log.json')
    assert read_runs([folder])['a'] == entries(THEIRS)


def test_a_run_that_was_cut_off_in_a_line_is_read_to_there(write):
    assert read_runs([write('a', THEIRS[:-20])])['a'] == entries(THEIRS)[:-1]


def test_what_is_no_log_is_named(write):
    folder = write('a', 'Traceback\n' + THEIRS)
    with pytest.raises(ValueError, match=r'000000\.log\.json:1: not JSON'):
        read_runs([folder])


def test_a_missing_key_names_the_nearest_and_the_run():
    with pytest.raises(KeyError, match='accuracy_top-1') as caught:
        curves_plot({'mine': entries(THEIRS)}, ['acuracy_top-1'])
    assert 'mine' in caught.value.__notes__[0]


def test_runs_that_count_differently_are_drawn_apart():
    with pytest.raises(ValueError, match='epochs and some iterations'):
        curves_plot({'a': entries(THEIRS), 'b': entries(BY_ITERATION)}, ['loss'])


def test_default_keys_are_those_that_every_run_has():
    assert default_keys({'a': entries(THEIRS)}) == ['loss', 'accuracy_top-1']
    assert default_keys({'a': entries(THEIRS), 'b': entries(THEIRS)[:2]}) == ['loss']


def test_the_command_draws_and_prints(write, tmp_path, capsys):
    out = tmp_path / 'curves.png'
    assert main(['analyze_logs', write('a', THEIRS), write('b', THEIRS), '--keys', 'loss', 'lr', '--out', str(out),
                 '--legend', 'one', 'two']) == 0
    printed = capsys.readouterr().out
    assert out.read_bytes()[:4] == b'\x89PNG' and 's/iter' in printed and 'two' in printed
    assert main(['analyze_logs', 'plot_curve', write('a', THEIRS), '--out', str(out)]) == 0  # as people type it
    assert main(['analyze-logs', write('a', THEIRS), '--legend', 'one', 'two', '--out', str(out)]) == 1


def test_our_own_log_is_read(tmp_path):
    from workspace_lib.tools import commands
    commands.train('lenet/lenet5_mnist5k.py', str(tmp_path / 'run'), seed=0, device='cpu', options={
        'runner.max_epochs': 2, 'log_config.interval': 20, 'checkpoint_config': None, 'log_level': 'WARNING'})
    runs = read_runs([tmp_path / 'run'])
    x, loss = curve(runs['run'], 'loss')
    np.testing.assert_allclose(x, [20 / 63, 40 / 63, 60 / 63, 1, 1 + 20 / 63, 1 + 40 / 63, 1 + 60 / 63, 2])
    assert loss[-1] < loss[0] and default_keys(runs) == ['loss', 'accuracy_top-1']
