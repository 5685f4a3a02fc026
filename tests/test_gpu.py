"""What is read of a GPU, and `workspace gpu`, against a session of two cards (tests/nvml)."""
from __future__ import annotations

import argparse
import gc
import io
import json
import os
import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from nvml_replay import SESSION, NVMLError, Replay

from workspace_lib.tools import gpu as tool
from workspace_lib.tools.cli import build_parser, main
from workspace_lib.tools.gpu import as_json, as_text, look, read_looks
from workspace_lib.tools.nvml import Card, Sample, Sampler, open_nvml

GIB = 2**30
HOT = 15  # a look while gpu0 is slowed by heat


@pytest.fixture
def nvml():
    return Replay()


def looked(nvml, count):
    """The look with that number, from 1."""
    return [look(nvml) for _ in range(count)][-1]


def without(call, error):
    """The session, with one call that fails on every card."""
    nvml = Replay()
    nvml.__dict__[call] = lambda *args: (_ for _ in ()).throw(error)
    return nvml


def failing(calls, text):
    """The session, with all calls to a card that begin with a pattern failing on both cards."""
    nvml = Replay()
    for call, *args in list(nvml.answers):
        for card in ('gpu0', 'gpu1') if args[:1] in (['gpu0'], ['gpu1']) and re.match(calls, call) else ():
            nvml.answers[call, card, *args[1:]] = [dict(error=999, text=text)]
    return nvml


# reading one card

def test_units_are_watts_bytes_and_megahertz(nvml):
    for _ in range(HOT):
        sample = Card(nvml, 'gpu0').read()
    record = {(one['call'], *one['args']): one['answers'] for one in json.loads(SESSION.read_text())['calls']}
    assert sample == Sample(
        utilisation=record['nvmlDeviceGetUtilizationRates', 'gpu0'][HOT - 1]['gpu'], memory_used=64_084 * 2**20,
        memory_total=81_559 * 2**20, power=record['nvmlDeviceGetPowerUsage', 'gpu0'][HOT - 1] / 1000, power_limit=700.,
        temperature=record['nvmlDeviceGetTemperature', 'gpu0', 0][HOT - 1],
        sm_clock=record['nvmlDeviceGetClockInfo', 'gpu0', 1][HOT - 1], memory_clock=2619,
        reasons=('hardware slowdown', 'heat (hardware)'))


def test_what_a_card_does_not_tell_is_none(nvml):
    sample = Card(nvml, 'gpu1').read()
    assert (sample.power, sample.power_limit, sample.memory_clock) == (None, None, None)


def test_an_older_driver_is_asked_by_older_names(nvml):
    sample = Card(nvml, 'gpu1').read()
    assert sample.memory_total == 8_188 * 2**20 and sample.reasons == ('idle',)


CALLS = {'nvmlDeviceGetUtilizationRates': 'utilisation', 'nvmlDeviceGetMemoryInfo': 'memory_used',
         'nvmlDeviceGetPowerUsage': 'power', 'nvmlDeviceGetEnforcedPowerLimit': 'power_limit',
         'nvmlDeviceGetTemperature': 'temperature', 'nvmlDeviceGetClockInfo': 'sm_clock',
         'nvmlDeviceGetCurrentClocksEventReasons': None}


@pytest.mark.parametrize('call', CALLS)
@pytest.mark.parametrize('code', [3, 4, 13, 15, 999])
def test_an_error_in_one_call_leaves_the_rest(call, code):
    nvml = without(call, NVMLError(code, 'broken'))
    if CALLS[call] is None:  # which has an older name that is asked next
        nvml.__dict__['nvmlDeviceGetCurrentClocksThrottleReasons'] = nvml.__dict__[call]
    sample = Card(nvml, 'gpu0').read()
    assert getattr(sample, CALLS[call] or 'reasons') is None
    told = [value for value in vars(sample).values() if value is not None]
    assert len(told) >= 7


@pytest.mark.parametrize('bits, words', [(0, ()), (0x1, ('idle',)), (0x60, ('heat (software)', 'heat (hardware)')),
                                         (0x1004, ('power cap', 'reason 0x1000'))])
def test_reasons_in_words(nvml, bits, words):
    nvml.__dict__['nvmlDeviceGetCurrentClocksEventReasons'] = lambda handle: bits
    assert Card(nvml, 'gpu0').read().reasons == words


def test_idle_and_chosen_clocks_are_no_limits(nvml):
    nvml.__dict__['nvmlDeviceGetCurrentClocksEventReasons'] = lambda handle: 0x1 | 0x2 | 0x100 | 0x4
    assert Card(nvml, 'gpu0').read().held_back == ['power cap']


def test_a_missing_package_names_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    with pytest.raises(RuntimeError, match='pip install nvidia-ml-py'):
        open_nvml()


# the thread

def test_a_sampler_keeps_what_comes_and_hands_it_over_once():
    numbers, sampled = iter(range(10**6)), threading.Event()

    def read():
        number = next(numbers)
        if number == 5:
            sampled.set()
        return number

    sampler = Sampler(read, 0.001)
    assert sampled.wait(10)
    first = sampler.take()
    assert sampler.stop()
    rest = sampler.take()
    assert first + rest == list(range(len(first) + len(rest))) and len(first) >= 5
    assert sampler.take() == []


def test_a_sampler_that_nobody_holds_ends():
    before = set(threading.enumerate())
    sampler = Sampler(lambda: 0, 0.001)
    thread, = set(threading.enumerate()) - before
    assert thread.daemon
    del sampler
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_driver_that_hangs_is_not_waited_for():
    hanging = threading.Event()
    sampler = Sampler(lambda: hanging.wait(30), 0.001)
    start = time.monotonic()
    assert not sampler.stop(seconds=0.05)
    assert time.monotonic() - start < 10
    hanging.set()
    assert sampler.stop()


# the command

def test_a_look_sees_both_cards(nvml):
    gpus = looked(nvml, HOT)
    assert [(gpu.index, gpu.name) for gpu in gpus] == [(0, 'NVIDIA H100 80GB HBM3'),
                                                       (1, 'NVIDIA GeForce RTX 4070 Laptop GPU')]
    assert [(one.pid, one.memory) for one in gpus[0].processes] == [(4242, 60_100 * 2**20), (4777, 520 * 2**20)]
    assert [(one.pid, one.memory) for one in gpus[1].processes] == [(990, None), (1201, None)]


def test_a_lost_card_hides_no_other():
    nvml = Replay()
    nvml.answers['nvmlDeviceGetHandleByIndex', 0] = [dict(error=15, text='GPU is lost')]
    lost, other = look(nvml)
    assert lost.problem == 'does not answer (GPU is lost): make doctor' and lost.name is None
    assert other.sample.utilisation is not None
    assert 'GPU 0: does not answer (GPU is lost)' in as_text([lost, other])


def test_a_card_lost_while_it_is_watched_is_said():
    nvml = failing('nvmlDeviceGet(?!Name)', 'GPU is lost')
    gpu = look(nvml)[0]
    assert 'answers nothing' in gpu.problem and gpu.processes is None
    assert 'GPU 0: answers nothing' in as_text([gpu])


def test_no_gpu_is_one_line():
    nvml = Replay()
    nvml.answers['nvmlDeviceGetCount',] = [0]
    with pytest.raises(RuntimeError, match='no GPU: make doctor'):
        look(nvml)


def test_the_command_without_a_driver_is_one_line_with_the_way_out(monkeypatch, capsys):
    nvml = SimpleNamespace(NVMLError=NVMLError)
    nvml.nvmlInit = lambda: (_ for _ in ()).throw(NVMLError(9, 'Driver Not Loaded'))
    monkeypatch.setitem(sys.modules, 'pynvml', nvml)
    assert main(['gpu', '--once']) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.splitlines()[0] == ('error: no NVIDIA driver answers (Driver Not Loaded): make doctor finds out why, '
                                   'and what mends it')


def test_the_table(nvml, monkeypatch):
    monkeypatch.setattr(tool, 'command_of', {4242: 'python train.py', 1201: 'Xorg :0'}.get)
    monkeypatch.setattr(os, 'getpid', lambda: 4242)
    table, limits, processes, own, note = as_text(looked(nvml, HOT)).split('\n\n')
    head, first, second = table.splitlines()
    assert re.split(r'  +', head) == ['GPU', 'name', 'busy', 'memory MiB', 'power W', 'temp C', 'MHz SM / mem']
    assert re.split(r'  +', first.strip()) == ['0', 'H100 80GB HBM3', '|##########|', '96 %', '64,084 / 81,559',
                                               '436 / 700', '87', '1,200 / 2,619']
    assert re.split(r'  +', second.strip())[0] == '1' and second.endswith(' / -') and ' - / - ' in second
    assert limits == 'GPU 0: clocks limited by: hardware slowdown, heat (hardware)'
    assert [re.split(r'  +', line.strip()) for line in processes.splitlines()] == [
        ['GPU', 'pid', 'memory MiB', 'command'], ['0', '4242*', '60,100', 'python train.py'], ['0', '4777', '520', '?'],
        ['1', '990', '-', '?'], ['1', '1201', '-', 'Xorg :0']]
    assert own == '* this process'
    assert 'container' in note and note.endswith('ps -o pid,user,args -p 990,4777')


def test_nothing_is_said_of_processes_that_are_known(nvml, monkeypatch):
    monkeypatch.setattr(tool, 'command_of', lambda pid: 'python')
    text = as_text(looked(nvml, HOT))
    assert '?' not in text and '* this process' not in text


def test_a_driver_that_tells_no_processes_and_no_reasons():
    text = as_text(look(failing('.*Reasons|.*Processes', 'Insufficient Permissions')))
    assert 'GPU 1: the driver does not tell what limits the clocks' in text
    assert 'GPU 0: the driver does not tell which processes use it' in text


@pytest.mark.parametrize('percent, drawn', [(0, '|          |   0 %'), (100, '|##########| 100 %'),
                                            (36, '|####      |  36 %'), (None, '-')])
def test_bars_are_plain_characters(percent, drawn):
    assert tool.bar(percent) == drawn


def test_the_command_line_of_this_process_is_found():
    command = tool.command_of(os.getpid())
    assert command and 'pytest' in command
    assert tool.command_of(2**22 + 1) is None  # above the kernel's highest number


def test_a_command_line_cannot_draw_on_the_terminal(tmp_path, monkeypatch):
    (tmp_path / '7').mkdir()
    (tmp_path / '7' / 'cmdline').write_bytes(b'python\0\x1b[2Jx\ny\0')
    monkeypatch.setattr(tool, 'Path', lambda text: tmp_path / text.removeprefix('/proc/'))
    assert tool.command_of(7) == 'python ?[2Jx?y'


class Terminal(io.StringIO):
    def isatty(self):
        return True


def arguments(*given):
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return parser.parse_args(given)


@pytest.fixture
def three_looks(monkeypatch):
    """Time passes at once, and Ctrl-C comes at the third pause."""
    pauses = []

    def sleep(pause):
        pauses.append(pause)
        if len(pauses) == 3:
            raise KeyboardInterrupt
    monkeypatch.setattr(tool.time, 'sleep', sleep)
    return pauses


def test_a_pipe_gets_plain_tables(nvml, three_looks):
    out = io.StringIO()
    tool.watch(arguments(), nvml, out)
    assert '\x1b' not in out.getvalue() and out.getvalue().isascii()
    assert out.getvalue().count('MHz SM / mem') == 3
    assert nvml.sessions == 0


def test_a_terminal_is_refreshed_in_place(nvml, three_looks, monkeypatch):
    monkeypatch.setattr(tool.shutil, 'get_terminal_size', lambda: os.terminal_size((60, 50)))
    out = Terminal()
    tool.watch(arguments(), nvml, out)
    screens = out.getvalue().split('\x1b[J')[1:]
    assert len(screens) == 3 and 'Ctrl-C ends' in screens[0]
    for before, after in zip(screens, screens[1:], strict=False):
        lines = before.split('\x1b')[0].count('\n')
        assert f'\x1b[{lines}F\x1b[J{after}' in out.getvalue(), 'the cursor does not go back to the first line'
    assert max(len(line) for line in re.sub(r'\x1b\[\d*[FJ]', '', out.getvalue()).splitlines()) < 60


def test_a_low_terminal_is_not_scrolled():
    out = io.StringIO()
    assert tool.show(out, '\n'.join('abcdef'), 3, os.terminal_size((80, 4))) == 3
    assert out.getvalue() == '\x1b[3F\x1b[Ja\nb\nc\n'


def test_json_is_a_line_a_look_and_reads_back(nvml, three_looks, tmp_path):
    out = Terminal()
    tool.watch(arguments('--json'), nvml, out)
    lines = out.getvalue().splitlines()
    assert [len(json.loads(line)['gpus']) for line in lines] == [2, 2, 2]
    again, file = Replay(), tmp_path / 'gpu.jsonl'
    expected = [look(again) for _ in range(3)]
    file.write_text(out.getvalue() + lines[0][:50])  # cut off while it was written
    assert [gpus for _, gpus in read_looks(file)] == expected


def test_json_of_unknown_fields_is_null(nvml):
    entry = json.loads(as_json(look(nvml), 1.23456))
    assert entry['time'] == 1.235 and entry['gpus'][1]['sample']['power'] is None


def test_a_file_of_something_else_names_the_line(tmp_path):
    file = tmp_path / 'x.jsonl'
    file.write_text('{"time": 1, "gpus": []}\n{"epoch": 1}\n\n')
    with pytest.raises(ValueError, match=r'x\.jsonl:2: not a line of workspace gpu --json'):
        read_looks(file)


def test_once_is_one_look_without_escapes(nvml):
    out = Terminal()
    tool.watch(arguments('--once'), nvml, out)
    assert '\x1b' not in out.getvalue() and out.getvalue().count('MHz SM / mem') == 1


def test_the_interval_counts_from_look_to_look(nvml, three_looks):
    tool.watch(arguments('--interval', '2', '--json'), nvml, io.StringIO())
    assert all(1.5 < pause <= 2 for pause in three_looks)


@pytest.mark.parametrize('interval', ['0', '-1', 'nan', '1e9', 'x'])
def test_an_impossible_interval_is_refused(interval, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(['gpu', '--interval', interval])
    assert 'interval' in capsys.readouterr().err


def test_the_command_line_reaches_the_command(nvml, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'pynvml', nvml)
    assert main(['gpu', '--once', '--json']) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry['gpus'][0]['sample']['memory_total'] == 81_559 * 2**20 < 80 * GIB
