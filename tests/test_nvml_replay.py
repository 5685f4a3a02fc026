"""The stand-in for NVML is faithful: what is recorded is replayed, errors too, and its constants are NVML's."""
from __future__ import annotations

import ctypes
import json

import pytest
from nvml_replay import SESSION, NVMLError, Recorder, Replay, text

from workspace_lib.tools.gpu import look
from workspace_lib.tools.nvml import REASONS, open_nvml

RECORD = json.loads(SESSION.read_text())


def test_a_recorded_replay_is_the_same_session():
    recorder = Recorder(Replay())
    before = [look(recorder) for _ in range(30)]
    again = Replay(json.loads(text(recorder.session('test'))))
    assert [look(again) for _ in range(30)] == before
    assert len({str(gpus) for gpus in before}) > 20, 'the looks do not differ: nothing was replayed'


def test_an_error_is_recorded_and_raised_again():
    recorder = Recorder(Replay())
    with pytest.raises(NVMLError):
        recorder.nvmlDeviceGetPowerUsage('gpu1')
    with pytest.raises(NVMLError, match='Not Supported') as error:
        Replay(recorder.session('test')).nvmlDeviceGetPowerUsage('gpu1')
    assert error.value.value == 3


def test_handles_and_structures_are_recorded_as_text_and_fields():
    class Load(ctypes.Structure):
        _fields_ = [('gpu', ctypes.c_uint), ('memory', ctypes.c_uint)]

    handles = [ctypes.pointer(Load()), ctypes.pointer(Load())]

    class Driver:
        NVMLError = NVMLError

        def nvmlDeviceGetHandleByIndex(self, index):
            return handles[index]

        def nvmlDeviceGetUtilizationRates(self, handle):
            return Load(7, 3) if handle is handles[1] else Load(50, 20)

    recorder = Recorder(Driver())
    for index in (1, 0):
        recorder.nvmlDeviceGetUtilizationRates(recorder.nvmlDeviceGetHandleByIndex(index))
    replay = Replay(json.loads(text(recorder.session('test'))))
    loads = [replay.nvmlDeviceGetUtilizationRates(replay.nvmlDeviceGetHandleByIndex(index)).gpu for index in (0, 1)]
    assert loads == [50, 7]


def test_a_call_that_was_not_recorded_is_an_error_of_the_test():
    with pytest.raises(LookupError, match='not in the record'):
        Replay().nvmlDeviceGetName('gpu7')


def test_a_function_that_was_never_called_is_missing():
    assert not hasattr(Replay(), 'nvmlDeviceGetFanSpeed')


def test_the_session_says_how_it_was_made_and_in_which_units():
    assert 'not recorded from hardware' in RECORD['made'] and 'mW, bytes, MHz' in RECORD['made']


def test_constants_functions_and_errors_are_nvmls():
    pynvml = pytest.importorskip('pynvml')
    assert {name: getattr(pynvml, name) for name in RECORD['constants']} == RECORD['constants']
    assert [one['call'] for one in RECORD['calls'] if not callable(getattr(pynvml, one['call'], None))] == []
    errors = {(answer['error'], answer['text']) for one in RECORD['calls'] for answer in one['answers']
              if isinstance(answer, dict) and 'error' in answer}
    assert errors and all(str(pynvml.NVMLError(value)) == said or pynvml.NVMLError(value).value == value
                          for value, said in errors)


def test_the_words_are_those_of_nvmls_bits():
    pynvml = pytest.importorskip('pynvml')
    bits = {name: getattr(pynvml, f'nvmlClocksThrottleReason{name}') for name in (
        'GpuIdle', 'ApplicationsClocksSetting', 'SwPowerCap', 'HwSlowdown', 'SyncBoost', 'SwThermalSlowdown',
        'HwThermalSlowdown', 'HwPowerBrakeSlowdown', 'DisplayClockSetting')}
    assert {name: REASONS[bit] for name, bit in bits.items()} == dict(
        GpuIdle='idle', ApplicationsClocksSetting='clocks set by the user', SwPowerCap='power cap',
        HwSlowdown='hardware slowdown', SyncBoost='sync boost', SwThermalSlowdown='heat (software)',
        HwThermalSlowdown='heat (hardware)', HwPowerBrakeSlowdown='power brake',
        DisplayClockSetting='clocks set for the display')


def test_the_real_package_without_a_driver_gives_one_line():
    pynvml = pytest.importorskip('pynvml')
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(RuntimeError, match=r'no NVIDIA driver answers \(.*\): make doctor'):
            open_nvml()
    else:
        pynvml.nvmlShutdown()
        pytest.skip('there is a driver here')
