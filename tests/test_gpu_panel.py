"""The panel is a skin over `panel_html`; the figure says what the looks hold."""
from __future__ import annotations

import re
import time
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from nvml_replay import NVMLError, Replay

pytest.importorskip('matplotlib')

from workspace_lib.tools import gpu_panel
from workspace_lib.tools.gpu import Process, look
from workspace_lib.tools.gpu_panel import GPUPanel, gpu_history, panel_html


def looks(count=30):
    nvml = Replay()
    return [(100. + second, look(nvml)) for second in range(count)]


def test_each_card_has_its_bars_and_numbers():
    root = ElementTree.fromstring(f'<div>{panel_html(looks(15))}</div>')
    first, second = root
    assert first.find('b').text == 'GPU 0: NVIDIA H100 80GB HBM3'
    assert [[cell.text for cell in row][::2] for row in first.find('table')][1:] == [
        ['memory', '64,084 / 81,559 MiB'], ['power', '436 / 700 W']]
    widths = [re.search(r'width:(\d+)px', row[1][0][0].get('style'))[1] for row in first.find('table')]
    assert widths[1:] == [f'{160 * 64_084 / 81_559:.0f}', f'{160 * 436 / 700:.0f}']
    assert 'clocks limited by: hardware slowdown, heat (hardware)' in first[-1].text
    assert [row[2].text for row in second.find('table')][2] == 'not told'


def test_each_card_lists_its_processes_and_marks_the_notebooks_own():
    when, (gpu, _) = looks(1)[0]
    processes = (Process(7, 3 * 2**20, '<python> ' + 'x' * 99, True), Process(8, None, None, False))
    shown = panel_html([(when, [replace(gpu, processes=processes)])])
    assert '<div>process 7*: 3 MiB, &lt;python&gt; ' + 'x' * 51 + '</div><div>process 8: ? MiB, ?</div>' in shown
    assert 'does not tell which processes' in panel_html([(when, [replace(gpu, processes=None)])])


def test_the_history_is_drawn_in_words_too():
    svg = next(ElementTree.fromstring(f'<div>{panel_html(looks(10))}</div>').iter('svg'))
    assert svg.get('role') == 'img' and svg.get('aria-label').startswith('busy over the last 10 looks: 0 to ')
    points = svg.find('polyline').get('points').split()
    assert len(points) == 10 and points[0] == '0.0,28.0'


def test_a_gap_in_the_history_stays_a_gap():
    svg = ElementTree.fromstring(gpu_panel._history_svg([10, None, 20, 30]).partition('<div>')[0])
    assert [len(line.get('points').split()) for line in svg] == [1, 2]
    assert 'busy: not told' in gpu_panel._history_svg([None])


def test_names_are_text_and_no_looks_are_words():
    when, (gpu, _) = looks(1)[0]
    strange = type(gpu)(0, '<script>', gpu.sample, None)
    assert '&lt;script&gt;' in panel_html([(when, [strange])]) and '<script>' not in panel_html([(when, [strange])])
    assert 'no look' in panel_html([])


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, 'nothing came'
        time.sleep(0.005)


@pytest.fixture
def panel():
    pytest.importorskip('ipywidgets')
    panel = GPUPanel(Replay(), interval=0.005, keep=5)
    yield panel
    panel.stop()


def test_the_button_starts_and_stops(panel):
    assert panel.sampler is None
    panel.button.value = True
    wait_for(lambda: len(panel.looks) == 5)
    assert panel.nvml.sessions == 1
    panel.button.value = False
    assert panel.sampler is None and panel.nvml.sessions == 0
    shown = panel.view.value
    assert shown == panel_html(panel.looks) and 'H100' in shown
    time.sleep(0.05)
    assert panel.view.value == shown, 'it goes on after it was stopped'


def test_it_can_be_started_again(panel):
    for _ in range(2):
        panel.start()
        assert panel.button.value
        panel.stop()
        assert not panel.button.value
    assert panel.nvml.sessions == 0


def test_one_panel_at_a_time(panel):
    panel.start()
    other = GPUPanel(Replay(), interval=0.005)
    other.start()
    assert panel.sampler is None and not panel.button.value and GPUPanel.running is other
    other.stop()
    assert GPUPanel.running is None


def test_without_a_gpu_the_panel_says_what_to_do():
    pytest.importorskip('ipywidgets')
    nvml = SimpleNamespace(NVMLError=NVMLError,
                           nvmlInit=lambda: (_ for _ in ()).throw(NVMLError(12, 'NVML Shared Library Not Found')))
    panel = GPUPanel(nvml)
    panel.button.value = True
    assert 'make doctor finds out why' in panel.view.value
    assert not panel.button.value and panel.sampler is None


def test_a_driver_that_goes_away_is_said(panel):
    panel.start()
    wait_for(lambda: panel.looks)
    panel.nvml.answers['nvmlDeviceGetCount',] = [dict(error=999, text='Unknown Error')]
    panel.nvml.asked.clear()
    wait_for(lambda: 'does not say how many GPUs there are (Unknown Error): make doctor' in panel.view.value)


def test_the_figure_has_a_curve_for_each_card_and_dots_where_it_is_held_back():
    plot = gpu_history(looks())
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ['busy (%)', 'memory (GiB)', 'power (W)',
                                                                'temperature (°C)']
    busy = plot.figure.axes[0].lines
    assert len(busy) == 4 and busy[0].get_linestyle() == '-' and busy[0].get_color() != busy[2].get_color()
    held = [second - 100 for second, gpus in looks() if gpus[0].sample.held_back]
    assert list(busy[1].get_xdata()) == held and len(held) == 26 and list(busy[3].get_xdata()) == []
    assert list(busy[0].get_xdata())[:3] == [0, 1, 2]


def test_the_numbers_stand_beside_the_figure():
    plot = gpu_history(looks())
    seen = [gpus[0].sample for _, gpus in looks()]
    assert plot.table.rows[0] == (0, 'NVIDIA H100 80GB HBM3', f'{sum(one.utilisation for one in seen) / 30:.0f}',
                                  '64084', f'{sum(one.power for one in seen) / 30:.0f}', '87', f'{2600 / 30:.0f}')
    assert plot.table.rows[1][4] == '-'
    assert plot.alt.startswith('2 GPUs over 29 seconds: GPU 0 (NVIDIA H100 80GB HBM3) busy ')
    assert plot.svg().startswith('<svg') and len(plot.webp()) > 1000


def test_no_looks_are_no_figure():
    with pytest.raises(ValueError, match='workspace gpu --json'):
        gpu_history([])
