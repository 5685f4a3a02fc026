"""What the benchmarks have in common: turns, an aim beside its figure, and files that keep what was measured."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
side_by_side = pytest.importorskip('side_by_side', reason='not a checkout: no benchmarks')


@pytest.fixture
def results(tmp_path):
    return side_by_side.Results('cars', tmp_path, rounds=3)


def read(results):
    return json.loads(results.path.read_text())


def test_contestants_take_turns_and_the_first_turn_does_not_count():
    order = []
    figures = side_by_side.in_turns({name: lambda name=name: order.append(name) or len(order) for name in 'AB'}, 2)
    assert order == list('ABABAB')
    assert figures == {'A': [3, 5], 'B': [4, 6]}


def test_a_figure_that_reaches_its_aim_is_met_and_one_that_does_not_is_missed(results):
    results.aim('faster than a horse', 2.5, '>= 2')
    results.aim('cheaper than a horse', 3.0, '<= 2.5', 'EUR')
    assert [(aim['what'], aim['met']) for aim in read(results)['aims']] == [
        ('faster than a horse', True), ('cheaper than a horse', False)]
    lines = str(results).splitlines()
    assert next(line for line in lines if 'faster' in line).endswith('met')
    assert next(line for line in lines if 'cheaper' in line).endswith('MISSED')


def test_a_figure_on_the_bound_meets_it(results):
    results.aim('least', 2.0, '>= 2')
    results.aim('most', 2.0, '<= 2')
    assert all(aim['met'] for aim in read(results)['aims'])


def test_an_aim_without_a_figure_is_neither_met_nor_silent(results):
    results.aim('over the peer', None, '>= 1.4', reason='peer is not installed')
    assert read(results)['aims'][0]['met'] is None
    assert 'not measured: peer is not installed' in str(results)


def test_a_figure_that_is_not_judged_is_told_with_the_reason(results):
    results.aim('over the peer', 0.957, '>= 1.3', 'x', 'not compiled', unjudged='on a CPU')
    assert (read(results)['aims'][0]['met'], read(results)['aims'][0]['figure']) == (None, 0.957)
    assert '0.957 x  not judged: on a CPU' in str(results) and 'not measured' not in str(results)
    assert '| 0.96 x | not judged: on a CPU |' in side_by_side.write_readme(results.path.parent).read_text()


def test_an_aim_is_a_bound(results):
    with pytest.raises(ValueError, match='about 3.*>= or <='):
        results.aim('what', 3, 'about 3')


def test_a_section_gives_median_spread_and_ratio_to_its_base(results):
    results.section('km', 'l', {'ours': [1., 3., 2.], 'theirs': [8., 4., 6.]}, base='ours')  # round by round
    rows = read(results)['sections'][0]['rows']
    assert rows['theirs'] == dict(median=6., least=4., most=8., runs=[8., 4., 6.], ratio=3.)
    assert rows['ours']['ratio'] == 1.


def test_a_section_that_grows_is_kept_once(results):
    results.section('km', 'l', {'ours': [1.]}, base='ours')
    results.section('km', 'l', {'ours': [1.], 'theirs': [2.]}, base='ours')
    assert [len(section['rows']) for section in read(results)['sections']] == [2]


def test_of_a_section_that_grows_only_new_rows_are_printed(results, capsys):
    results.section('km', 'l', {'ours': [1.]}, base='ours')
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ['km', 'l', 'ours']
    results.section('km', 'l', {'ours': [1.], 'theirs': [2.]}, base='ours')
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ['theirs']


def test_a_figure_that_takes_the_place_of_another_is_a_line_of_the_same_table(results, capsys):
    for number in (1, 2):
        results.section('km', 'l', {f'after {number} h': [1.]}, base=f'after {number} h')
    said = capsys.readouterr().out
    assert said.count('km') == 1 and 'after 1 h' in said and 'after 2 h' in said
    assert [*read(results)['sections'][0]['rows']] == ['after 2 h']


def test_a_section_of_more_rounds_is_printed_again_and_says_so(results, capsys):
    results.section('km', 'l', {'ours': [1.]}, base='ours')
    assert 'rounds' not in capsys.readouterr().out
    results.section('km', 'l', {'ours': [1., 2.]}, base='ours')
    assert 'km, now of 2 rounds' in capsys.readouterr().out and read(results)['sections'][0]['title'] == 'km'


def test_a_figure_of_thousands_is_written_out(results):
    results.aim('faster than a train', 6012.3, '>= 6000', 'images/s')
    assert '6,012 images/s  met' in str(results)
    assert '| 6,012 images/s | met |' in side_by_side.write_readme(results.path.parent).read_text()


@pytest.mark.parametrize('number, said', [(0, '0 epochs'), (1, '1 epoch'), (2, '2 epochs')])
def test_things_are_counted_as_in_english(number, said):
    assert side_by_side.counted(number, 'epoch') == said


def test_who_is_missing_is_named_with_the_reason(results):
    results.missing('horse', 'asleep')
    results.section('km', 'l', {'ours': [1.]}, base='ours')
    assert read(results)['missing'] == {'horse': 'asleep'}
    assert 'horse: not measured: asleep' in str(results)


def test_the_file_says_what_ran_on_what_and_is_there_after_each_part(results):
    assert not results.path.exists()
    results.section('km', 'l', {'ours': [1.]}, base='ours')
    found = read(results)
    assert {'name', 'command', 'started', 'rounds', 'machine', 'versions', 'sections', 'aims', 'missing'} <= set(found)
    assert found['versions']['crop decoding'] in ('on', 'off')
    assert found['versions']['torch'] and found['versions']['commit'] and found['machine']['cores'] >= 1


def test_the_picture_has_a_panel_a_section(results):
    results.section('km', 'l', {'ours': [1., 2.], 'theirs': [3., 3.]}, base='ours')
    results.section('t', 's', {'ours': [1.]}, base='ours')
    assert results.plot().read_bytes()[:4] == b'\x89PNG'


def test_the_readme_lists_every_aim_of_every_file(tmp_path):
    for name, figure in (('a', 3.), ('b', 1.)):
        one = side_by_side.Results(name, tmp_path, rounds=1)
        one.section('km', 'l', {'ours': [1.], 'theirs': [figure]}, base='ours')
        one.aim(f'aim of {name}', figure, '>= 2')
    text = side_by_side.write_readme(tmp_path).read_text()
    assert '| aim of a | >= 2 | 3.00 | met |' in text
    assert '| aim of b | >= 2 | 1.00 | **missed** |' in text
    assert text.count('theirs') == 2


def test_a_toy_run_says_so_and_is_not_judged(tmp_path):
    toy = side_by_side.Results('image', tmp_path, toy=True)
    toy.section('km', 'l', {'ours': [1.]}, base='ours')
    toy.aim('faster than a horse', 2.5, '>= 2')
    toy.aim('cheaper than a horse', 3.0, '<= 2.5')
    toy.aim('larger than a horse', 3.0, '>= 2.5', unjudged='on a CPU')
    assert read(toy)['aims'].pop()['reason'] == 'toy size, on a CPU'
    toy.content['aims'].pop()
    toy.write()
    assert [(aim['met'], aim['reason']) for aim in read(toy)['aims']] == [(None, 'toy size')] * 2
    text = str(toy)
    assert 'km (toy size)' in text and text.count('not judged: toy size') == 2 and 'MISSED' not in text
    readme = side_by_side.write_readme(tmp_path).read_text()
    assert '## image (toy size)' in readme and '| 2.50 | not judged: toy size |' in readme
    assert 'missed' not in readme and 'not measured yet: image, ' in readme  # a toy is no measurement


@pytest.mark.parametrize('words, where', [([], 'results'), (['--quick'], 'temporary'), (['--toy'], 'temporary'),
                                          (['--quick', '--out', 'here'], 'here')])
def test_toy_results_do_not_go_where_real_ones_are_kept(tmp_path, monkeypatch, capsys, words, where):
    monkeypatch.setattr(side_by_side.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['bench.py', *words])
    parser = side_by_side.arguments('what')
    parser.add_argument('--toy', action='store_true')
    args = side_by_side.parsed(parser)
    assert args.toy is bool(words)
    if where == 'temporary':
        assert args.out.parent == tmp_path and str(args.out) in capsys.readouterr().out
    else:
        assert args.out == (side_by_side.RESULTS if where == 'results' else Path(where))


def test_the_readme_names_what_is_not_measured_yet(tmp_path):
    gpu = 'gpu_speed, gpu_fed, gpu_cifar10, gpu_keys, gpu_sweep: needs a GPU: `make bench-gpu`'
    assert f'not measured yet: {gpu}' in side_by_side.write_readme(tmp_path).read_text()
    for name in side_by_side.MEASURED:
        side_by_side.Results(f'{name}_real' if name == 'image' else name, tmp_path).write()
    assert 'not measured yet' not in side_by_side.write_readme(tmp_path).read_text()


def test_the_base_stands_out_where_nothing_is_called_ours(results):
    from matplotlib.figure import Figure

    from workspace_lib.tools.plots import BLUE, GREY
    results.section('keys', 'images/s', {'defaults': [1.], 'bf16=False': [2.]}, base='defaults')
    results.section('loaders', 'images/s', {'theirs': [1.], 'ours': [2.]}, base='theirs')
    drawn = []
    saved, Figure.savefig = Figure.savefig, lambda self, *args, **options: drawn.append(self)
    try:
        results.plot()
    finally:
        Figure.savefig = saved
    from matplotlib.colors import same_color
    keys, loaders = drawn[0].axes
    for axes, colours in ((keys, (BLUE, GREY)), (loaders, (GREY, BLUE))):
        assert all(same_color(bar.get_facecolor(), colour)
                   for bar, colour in zip(axes.patches, colours, strict=True))


def test_cpu_time_counts_children_and_their_children(tmp_path):
    import subprocess
    import time
    code = 'import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(30)'
    child = subprocess.Popen([sys.executable, '-c',
                              f'import subprocess, sys; subprocess.run([sys.executable, "-c", {code!r}])'],
                             stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        assert side_by_side.tree_cpu(child.pid) >= 0.3
        assert side_by_side.tree_cpu() - time.process_time() >= 0.3
    finally:
        for pid in reversed(side_by_side.tree(child.pid)):
            import os
            os.kill(pid, 9)
        child.wait()


def test_no_place_of_this_machine_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [str(side_by_side.ROOT / 'benchmarks' / 'bench_image.py'), '--images',
                                      str(tmp_path / 'photos'), '--rounds', '5'])
    results = side_by_side.Results('cars', tmp_path, rounds=3)
    assert results.content['command'].split(' ', 1)[1] == 'benchmarks/bench_image.py --images photos --rounds 5'
