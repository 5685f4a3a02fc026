"""The GPUs in a notebook: a panel with bars and a short history, and a figure of a session that was recorded.

In: looks at the GPUs, live or read from ``workspace gpu --json``. Out: an ipywidgets box; a `Plot`.
"""
from __future__ import annotations

import html
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .gpu import Gpu, Look, look
from .gpu_hook import summary
from .nvml import Sampler, open_nvml
from .plots import BLUE, GREY, STYLE, VERMILLION, Plot
from .table import Table

_WIDTH, _HEIGHT = 160, 28  # pixels of a bar, of a history
_COMMAND = 60  # characters of a process's command line
#: Neighbours differ in colour (Okabe and Ito's) and in stroke; no two of eight share both.
_LINES: list[dict[str, Any]] = [
    dict(color=color, linestyle=stroke) for color, stroke in zip(
        (BLUE, VERMILLION, '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', BLUE),
        ('-', '--', '-.', ':', '-', '--', '-.', ':'), strict=True)]


def panel_html(looks: Sequence[Look]) -> str:
    """The last look as bars with their numbers, and the share of time each GPU was busy over all of them."""
    if not looks:
        return '<p>no look at the GPUs yet</p>'
    return ''.join(_card_html(gpu, [_busy(gpus, gpu.index) for _, gpus in looks]) for gpu in looks[-1][1])


def _busy(gpus: Sequence[Gpu], index: int) -> int | None:
    return next((gpu.sample.utilisation for gpu in gpus if gpu.index == index), None)


def _card_html(gpu: Gpu, busy: list[int | None]) -> str:
    sample, mib = gpu.sample, 2**20
    rows = [_bar_html('busy', sample.utilisation, 100, '%'),
            _bar_html('memory', _over(sample.memory_used, mib), _over(sample.memory_total, mib), 'MiB'),
            _bar_html('power', sample.power, sample.power_limit, 'W')]
    told = [f'{sample.temperature} °C' if sample.temperature is not None else '',
            f'SM {sample.sm_clock:,} MHz' if sample.sm_clock is not None else '',
            f'clocks limited by: {", ".join(sample.reasons)}' if sample.reasons else '', gpu.problem or '']
    title = html.escape(f'GPU {gpu.index}: {gpu.name or "unknown"}')
    return (f'<div style="margin:0 0 1em"><b>{title}</b><table>{"".join(rows)}</table>{_history_svg(busy)}'
            f'{_processes_html(gpu)}<div>{html.escape(", ".join(filter(None, told)))}</div></div>')


def _processes_html(gpu: Gpu) -> str:
    """A line for each process on the card; the start of its command, and a star at this notebook's own."""
    if gpu.processes is None:
        return '<div>the driver does not tell which processes use it</div>'
    lines = [f'{one.pid}{"*" * one.own}: {"?" if one.memory is None else f"{one.memory // 2**20:,}"} MiB, '
             f'{(one.command or "?")[:_COMMAND]}' for one in gpu.processes]
    return ''.join(f'<div>process {html.escape(line)}</div>' for line in lines)


def _over(value: int | None, unit: int) -> int | None:
    return None if value is None else value // unit


def _bar_html(label: str, value: float | None, limit: float | None, unit: str) -> str:
    number = 'not told' if value is None else f'{value:,.0f} {unit}' if limit is None or unit == '%' else \
        f'{value:,.0f} / {limit:,.0f} {unit}'
    width = _WIDTH * min(value / limit, 1) if value is not None and limit else 0
    return (f'<tr><td>{label}</td><td><div style="width:{_WIDTH}px;border:1px solid {GREY}"><div style="width:'
            f'{width:.0f}px;height:0.8em;background:{BLUE}"></div></div></td><td>{number}</td></tr>')


def _history_svg(busy: list[int | None]) -> str:
    """A gap where it is not told."""
    step = _WIDTH / max(len(busy) - 1, 1)
    runs: list[list[str]] = [[]]
    for position, value in enumerate(busy):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f'{position * step:.1f},{_HEIGHT - _HEIGHT * value / 100:.1f}')
    lines = ''.join(f'<polyline points="{" ".join(run)}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>'
                    for run in runs if run)
    told = [value for value in busy if value is not None]
    said = f'busy over the last {len(busy)} looks: {min(told)} to {max(told)} %' if told else 'busy: not told'
    return (f'<svg role="img" aria-label="{said}" width="{_WIDTH}" height="{_HEIGHT}" '
            f'viewBox="0 -1 {_WIDTH} {_HEIGHT + 2}">{lines}</svg><div>{said}</div>')


class GPUPanel:
    """`box` is the widget; ``start`` and ``stop`` are its button's. Starting one panel stops the one before.

    Args:
        nvml: a module like pynvml.
        interval: seconds between looks.
        keep: looks in the history; ``looks`` holds them.
    """

    running: GPUPanel | None = None

    def __init__(self, nvml: Any = None, interval: float = 1., keep: int = 120) -> None:
        import ipywidgets

        self.nvml, self.interval = nvml, interval
        self.looks: deque[Look] = deque(maxlen=keep)
        self.button = ipywidgets.ToggleButton(description='watch', tooltip='look at the GPUs every second, or not')
        self.view = ipywidgets.HTML(panel_html([]))  # not an Output: see widgets.py
        self.box = ipywidgets.VBox([self.button, self.view])
        self.sampler: Sampler | None = None
        self.session: Any = None
        self.button.observe(lambda change: self.start() if change['new'] else self.stop(), names='value')

    def _ipython_display_(self) -> None:
        from IPython.display import display
        display(self.box)

    def start(self) -> None:
        if self.sampler is not None:
            return
        if GPUPanel.running is not None:
            GPUPanel.running.stop()
        try:
            self.session = open_nvml(self.nvml)
        except RuntimeError as error:
            self._say(error)
            self.button.value = False
            return
        self.sampler = Sampler(self._tick, self.interval, keep=1)
        GPUPanel.running, self.button.value = self, True

    def stop(self) -> None:
        sampler, self.sampler = self.sampler, None
        if sampler is not None and sampler.stop():
            self.session.nvmlShutdown()
        if GPUPanel.running is self:
            GPUPanel.running = None
        self.button.value = False

    def _tick(self) -> None:
        try:
            self.looks.append((time.time(), look(self.session)))
        except RuntimeError as error:
            self._say(error)
            return
        self.view.value = panel_html(self.looks)

    def _say(self, error: Exception) -> None:
        self.view.value = f'<p>{html.escape(str(error))}</p>'


def gpu_history(looks: Sequence[Look]) -> Plot:
    """Busy, memory, power and temperature of each GPU over time; dots where power or heat held it back.

    Raises:
        ValueError: no looks.
    """
    if not looks:
        raise ValueError('no looks to draw: workspace gpu --json > FILE records some, read_looks(FILE) reads them')
    cards = {gpu.index: gpu.name or 'unknown' for _, gpus in looks for gpu in gpus}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 7.5))
        panels = figure.subplots(len(_PANELS), 1, sharex=True)
        for axes, (label, value) in zip(panels, _PANELS.items(), strict=True):
            axes.set(ylabel=label)
            for index in cards:
                _curve(axes, looks, index, value)
            axes.set_ylim(0, None)
        panels[0].set_title('dots: power or heat held the clocks down')
        figure.legend(*panels[0].get_legend_handles_labels(), loc='outside upper center', ncols=4)
        panels[-1].set_xlabel('seconds')
    rows = [_row(index, name, looks) for index, name in cards.items()]
    said = '; '.join(f'GPU {row[0]} ({row[1]}) busy {row[2]} % on average, held back {row[6]} %' for row in rows)
    return Plot(figure, f'{len(cards)} GPUs over {looks[-1][0] - looks[0][0]:.0f} seconds: {said} of the time.',
                Table(('GPU', 'name', 'busy, mean (%)', 'memory, highest (MiB)', 'power, mean (W)',
                       'temperature, highest (°C)', 'held back (%)'), rows))


_PANELS = {'busy (%)': lambda sample: sample.utilisation,
           'memory (GiB)': lambda sample: sample.memory_used and sample.memory_used / 2**30,
           'power (W)': lambda sample: sample.power,
           'temperature (°C)': lambda sample: sample.temperature}


def _curve(axes: Any, looks: Sequence[Look], index: int, value: Any) -> None:
    points = [(when - looks[0][0], gpu.sample) for when, gpus in looks for gpu in gpus if gpu.index == index]
    y = [float('nan') if (one := value(sample)) is None else one for _, sample in points]
    line, = axes.plot([x for x, _ in points], y, label=f'GPU {index}', **_LINES[index % len(_LINES)])
    held = [at for at, (_, sample) in enumerate(points) if sample.held_back]
    axes.plot([points[at][0] for at in held], [y[at] for at in held], 'o', color=line.get_color(), markersize=4)


def _row(index: int, name: str, looks: Sequence[Look]) -> tuple[Any, ...]:
    values = summary([gpu.sample for _, gpus in looks for gpu in gpus if gpu.index == index])
    return (index, name, *(f'{values[key]:.0f}' if key in values else '-' for key in (
        'gpu_util', 'gpu_memory', 'gpu_power', 'gpu_temperature', 'gpu_held_back')))
