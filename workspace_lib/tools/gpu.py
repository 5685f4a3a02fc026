"""``workspace gpu``: what every GPU does, who uses it, what holds it back; in place on a terminal, as lines in a pipe.

In: NVML, through ``nvml``. Out: a `Gpu` a card; as text, or as a line of JSON a look.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from .nvml import Card, Sample, open_nvml
from .table import Table

#: Seconds since 1970, and every GPU then.
Look = tuple[float, list['Gpu']]

_NOTHING = Sample(*[None] * 9)
_BAR = 10  # characters
_MORE = 0xFFFFFFFFFFFFFFFF  # NVML_VALUE_NOT_AVAILABLE, where a package does not turn it into None


@dataclass(frozen=True)
class Process:
    """One process on a GPU. `pid` and `memory` (bytes) are NVML's; see `unresolved` for a command that is None."""

    pid: int
    memory: int | None
    command: str | None
    own: bool


@dataclass(frozen=True)
class Gpu:
    """One look at a card. `processes` is None where the driver does not tell; `problem` where nothing answers."""

    index: int
    name: str | None
    sample: Sample
    processes: tuple[Process, ...] | None
    problem: str | None = None


def look(nvml: Any) -> list[Gpu]:
    """One look at every GPU of an open session.

    Raises:
        RuntimeError: a driver without a GPU.
    """
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise RuntimeError(f'NVML does not say how many GPUs there are ({error}): make doctor finds out why') from error
    if count == 0:
        raise RuntimeError('the NVIDIA driver answers, but has no GPU: make doctor finds out why, and what mends it')
    return [_look_at(nvml, index) for index in range(count)]


def _look_at(nvml: Any, index: int) -> Gpu:
    try:
        card = Card(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError as error:  # a lost card hides no other
        return Gpu(index, None, _NOTHING, None, f'does not answer ({error}): make doctor')
    sample = card.read()
    problem = 'answers nothing: lost, or not to be asked from here; make doctor' if sample == _NOTHING else None
    return Gpu(index, card.ask('nvmlDeviceGetName'), sample, _processes(card), problem)


def _processes(card: Card) -> tuple[Process, ...] | None:
    told = [_first(card, f'nvmlDeviceGet{kind}RunningProcesses') for kind in ('Compute', 'Graphics')]
    if told == [None, None]:
        return None
    found = {entry.pid: entry.usedGpuMemory for entries in told for entry in entries or ()}  # one that does both: once
    return tuple(Process(pid, None if memory == _MORE else memory, command_of(pid), pid == os.getpid())
                 for pid, memory in sorted(found.items()))


def _first(card: Card, call: str) -> Any:
    """By version: the plain name raises something else than NVML's errors under an older driver."""
    newest = card.ask(f'{call}_v3')
    return card.ask(f'{call}_v2') if newest is None else newest


def command_of(pid: int) -> str | None:
    """The command line of a process; None where the number means nothing here."""
    try:
        words = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
    except OSError:
        return None
    text = b' '.join(filter(None, words)).decode(errors='replace')
    return ''.join(char if char.isprintable() else '?' for char in text) or None  # it may be anybody's


def unresolved(gpus: Sequence[Gpu]) -> str | None:
    """What to say of processes whose numbers mean nothing here."""
    pids = sorted({process.pid for gpu in gpus for process in gpu.processes or () if process.command is None})
    if not pids:
        return None
    numbers = ','.join(map(str, pids))
    return (f'? = not a process that can be seen here: another user\'s, or, inside a container, one of the host '
            f'(NVML may give the host\'s numbers). On the host: ps -o pid,user,args -p {numbers}')


def as_text(gpus: Sequence[Gpu]) -> str:
    """Two tables, of cards and of processes, and a line for each card that is limited; plain characters, no colour."""
    cells = [_cells(gpu) for gpu in gpus]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    rows = [[cell.ljust(width) if name == 'name' else cell.rjust(width)
             for name, cell, width in zip(_COLUMNS, row, widths, strict=True)] for row in cells]
    limits = [f'GPU {gpu.index}: {line}' for gpu in gpus for line in _remarks(gpu)]
    users = [(gpu.index, process) for gpu in gpus for process in gpu.processes or ()]
    processes = [(f'{index:>3}', f'{one.pid}{"*" * one.own}', f'{_number(one.memory, 2**20):>10}', one.command or '?')
                 for index, one in users]
    parts = [str(Table(_COLUMNS, rows)), '\n'.join(limits),
             str(Table(('GPU', 'pid', 'memory MiB', 'command'), processes)) if processes else '',
             '* this process' if any(process.own for _, process in users) else '', unresolved(gpus) or '']
    return '\n\n'.join(filter(None, parts))


_COLUMNS = ('GPU', 'name', 'busy', 'memory MiB', 'power W', 'temp C', 'MHz SM / mem')


def _cells(gpu: Gpu) -> list[str]:
    sample = gpu.sample
    return [str(gpu.index), (gpu.name or '-').removeprefix('NVIDIA '), bar(sample.utilisation),
            f'{_number(sample.memory_used, 2**20)} / {_number(sample.memory_total, 2**20)}',
            f'{_number(sample.power)} / {_number(sample.power_limit)}', _number(sample.temperature),
            f'{_number(sample.sm_clock)} / {_number(sample.memory_clock)}']


def _remarks(gpu: Gpu) -> Iterator[str]:
    if gpu.problem:
        yield gpu.problem
        return
    if gpu.sample.reasons is None:
        yield 'the driver does not tell what limits the clocks'
    elif gpu.sample.reasons:
        yield f'clocks limited by: {", ".join(gpu.sample.reasons)}'
    if gpu.processes is None:
        yield 'the driver does not tell which processes use it'


def bar(percent: int | None) -> str:
    """``|######    |  60 %``"""
    if percent is None:
        return '-'
    return f'|{"#" * round(percent * _BAR / 100):{_BAR}}| {percent:3} %'


def _number(value: float | None, unit: int = 1) -> str:
    return '-' if value is None else f'{value / unit:,.0f}'


def as_json(gpus: Sequence[Gpu], seconds: float) -> str:
    """One line; the units are those of `Sample`. `seconds`: since 1970."""
    return json.dumps(dict(time=round(seconds, 3), gpus=[asdict(gpu) for gpu in gpus]))


def read_looks(path: str | os.PathLike) -> list[Look]:
    """What ``workspace gpu --json > FILE`` wrote; a last line that was cut off is passed over.

    Raises:
        ValueError: another line that is no look.
    """
    lines, found = Path(path).read_text().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found.append((entry['time'], [_gpu(**gpu) for gpu in entry['gpus']]))
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise ValueError(f'{path}:{number}: not a line of workspace gpu --json ({line[:40]!r})') from error
    return found


def _gpu(sample: dict, processes: list[dict] | None, **rest: Any) -> Gpu:
    reasons = sample['reasons']
    return Gpu(sample=Sample(**{**sample, 'reasons': reasons if reasons is None else tuple(reasons)}),
               processes=processes if processes is None else tuple(Process(**one) for one in processes), **rest)


def looks(nvml: Any, interval: float) -> Generator[list[Gpu], None, None]:
    """A look every `interval` seconds, without end."""
    while True:
        start = time.monotonic()
        yield look(nvml)
        time.sleep(max(0., interval - (time.monotonic() - start)))


def show(stream: TextIO, text: str, above: int, size: os.terminal_size) -> int:
    """Write `text` in place of the `above` lines before it, cut to a terminal of `size`.

    Returns:
        The lines written: `above` of the next call.
    """
    lines = [line[:size.columns - 1] for line in text.splitlines()][:size.lines - 1]  # a wrapped line would count twice
    # up to the first of them, and clear from there to the end of the screen
    stream.write((f'\x1b[{above}F' if above else '') + '\x1b[J' + '\n'.join(lines) + '\n')
    stream.flush()
    return len(lines)


def watch(args: argparse.Namespace, nvml: Any = None, stream: TextIO | None = None) -> None:
    """The command; Ctrl-C ends it."""
    stream, session, above = stream or sys.stdout, open_nvml(nvml), 0
    with contextlib.closing(looks(session, args.interval)) as seen, contextlib.suppress(KeyboardInterrupt):
        for number, gpus in enumerate(seen):
            if args.json:
                print(as_json(gpus, time.time()), file=stream, flush=True)
            elif stream.isatty() and not args.once:
                head = f'every {args.interval:g} s, Ctrl-C ends; {time.strftime("%H:%M:%S")}\n\n'
                above = show(stream, head + as_text(gpus), above, shutil.get_terminal_size())
            else:
                print('\n' * bool(number) + as_text(gpus), file=stream, flush=True)
            if args.once:
                break
    session.nvmlShutdown()


def seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f'{text}: from 0.1 to 3600 seconds')
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--interval', type=seconds, default=1., metavar='SECONDS', help='between looks (default 1)')
    parser.add_argument('--once', action='store_true', help='one look, then end')
    parser.add_argument('--json', action='store_true',
                        help='a line of JSON a look; percent, bytes, watts, degrees Celsius, MHz; null: not told')
    parser.set_defaults(run=watch, logs=False)
