"""A `Profile` in words, as bars and under its roofline. In: the profile. Out: text; one page that fetches nothing."""
from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from . import report
from .plots import BLUE, GREY, LINES, VERMILLION, Plot, styled
from .table import Table

if TYPE_CHECKING:
    from .profile_cards import Roof
    from .profile_limit import Profile

_HATCHES = ('', '//', '', '..', 'xx', '--')


def parts_table(found: Profile) -> Table:
    rows = [(name, 1e3 * seconds, 100 * seconds / found.step) for name, seconds in found.parts.items()]
    return Table(('part', 'ms', 'share (%)'), [*rows, ('step', 1e3 * found.step, 100.)])


def text(found: Profile) -> str:
    """What a terminal shows."""
    limit = found.limit
    return (f'{parts_table(found)}\n\n{found.batch_size / found.step:,.0f} images/s, batches of {found.batch_size}, '
            f'{found.dtype}, {found.mode}, on {found.roof.name}\n{_work(found)}\n'
            f'limit: {limit.name} ({limit.part}): {limit.reason}\n'
            f'try: {limit.advice}')


def _work(found: Profile) -> str:
    if not found.flops:
        return 'the FLOPs of this model cannot be counted, so there is no roofline'
    roof = found.roof
    return (f'{found.flops / 1e9:,.1f} GFLOP and {found.moved / 1e6:,.0f} MB a step: {found.intensity:.1f} FLOP a '
            f'byte; {found.achieved / 1e9:,.0f} GFLOP/s of {roof.attainable(found.intensity) / 1e9:,.0f} that the '
            f'roofline allows there (peaks {roof.flops / 1e9:,.0f} GFLOP/s, {roof.bandwidth / 1e9:,.0f} GB/s: '
            f'{roof.source})')


@styled
def parts_plot(found: Profile) -> Plot:
    """One bar, from load to wait."""
    figure = Figure(figsize=(8, 1.9))
    axes = figure.subplots()
    left = 0.
    for (name, seconds), line, hatch in zip(found.parts.items(), LINES, _HATCHES, strict=False):
        axes.barh([0], [1e3 * seconds], left=left, color=line['color'], hatch=hatch, edgecolor='white', label=name)
        left += 1e3 * seconds
    axes.set(yticks=[], xlabel='milliseconds of a step', xlim=(0, max(left, 1e3 * found.step)))
    figure.legend(loc='outside upper center', ncols=6)
    said = ', '.join(f'{name} {seconds / found.step:.0%}' for name, seconds in found.parts.items())
    return Plot(figure, f'A step of {1e3 * found.step:.2f} ms: {said}.', parts_table(found))


@styled
def roofline_plot(found: Profile) -> Plot:
    """What the device allows by the work a byte, and where this training is."""
    roof = found.roof
    around = [found.intensity or 1., roof.ridge]
    x = np.geomspace(min(around) / 10, max(around) * 10, 64)
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    axes.loglog(x, [roof.attainable(value) for value in x], color=GREY, label=f'roof of {roof.name}')
    axes.axvline(roof.ridge, color=GREY, linestyle=':', linewidth=1)
    axes.plot([found.intensity], [found.achieved], 'o', color=VERMILLION, label='this training')
    axes.plot([found.intensity], [roof.attainable(found.intensity)], '^', color=BLUE, label='the most it could be')
    axes.set(xlabel='FLOP a byte (unfused)', ylabel='FLOP/s')
    axes.legend()
    rows = [('this training', found.intensity, found.achieved / 1e9),
            ('the most it could be', found.intensity, roof.attainable(found.intensity) / 1e9),
            ('ridge', roof.ridge, roof.flops / 1e9)]
    return Plot(figure, _work(found), Table(('point', 'FLOP a byte', 'GFLOP/s'), rows))


@styled
def roofs_plot(roofs: Sequence[Roof], work: dict[str, float]) -> Plot:
    """What several devices allow by the work a byte, and where some works are: {name: FLOP a byte}."""
    ends = [*work.values(), *(roof.ridge for roof in roofs)]
    x = np.geomspace(min(ends) / 4, max(ends) * 4, 128)
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for roof, line in zip(roofs, LINES, strict=False):
        axes.loglog(x, [roof.attainable(value) / 1e12 for value in x], **{**line, 'marker': ''}, label=roof.name)
        axes.plot([roof.ridge], [roof.flops / 1e12], **line)
    for name, intensity in work.items():
        axes.axvline(intensity, color=GREY, linestyle=':')
        axes.annotate(name, (intensity, 0.02), xycoords=('data', 'axes fraction'), rotation=90, ha='right')
    axes.set(xlabel='FLOP a byte', ylabel='TFLOP/s')
    figure.legend(loc='outside right upper')
    rows = [(roof.name, name, roof.ridge, roof.attainable(value) / 1e12, 'memory' if value < roof.ridge else 'compute')
            for roof in roofs for name, value in work.items()]
    said = '; '.join(f'{name} on {card}: {limit} sets the pace' for card, name, _, _, limit in rows)
    return Plot(figure, f'Rooflines. {said}.',
                Table(('device', 'work', 'ridge (FLOP a byte)', 'at most (TFLOP/s)', 'limit'), rows))


def write_page(folder: Path, config: str, found: Profile, seconds: float, words: Sequence[str] = ()) -> Path:
    """`index.html`: parts, limit and what to change, roofline; and the command.

    Args:
        words: of the command that made it, from ``profile`` on; none are those of `config` alone.
    """
    limit, words = found.limit, words or ('profile', config)
    train = shlex.join(['workspace', 'train', *_of_training(words)])
    sections = [
        ('parts of a step', seconds, report.figure(parts_plot(found)) + report.paragraph(
            f'The GPU computes {found.busy:.0%} of the time.' if found.device.startswith('cuda') else
            'On a CPU nothing is copied, and the parts follow one another.')),
        ('what limits it', 0., report.paragraph(f'{limit.name}, in {limit.part}: {limit.reason}.')
         + report.paragraph(f'Try, one at a time: {limit.advice}.'))]
    if found.flops:
        sections.append(('roofline', 0., report.figure(roofline_plot(found))))
    facts = [('images a second', f'{found.batch_size / found.step:,.0f}'), ('a step', f'{1e3 * found.step:.2f} ms'),
             ('limit', limit.name), ('device', found.roof.name)]
    return report.write(folder, f'Where the time goes: {Path(config).stem}',
                        f'Steps of `{train}`, batches of {found.batch_size}, {found.dtype}, '
                        f'{found.mode}.',
                        sections, facts, f'{shlex.join(["workspace", *words])}  # again, after a change\n{train}')


def _of_training(words: Sequence[str]) -> list[str]:
    """What ``train`` takes of the words of a ``profile``."""
    own = argparse.ArgumentParser(add_help=False)
    for option in ('--steps', '--warm-up', '--out-dir'):
        own.add_argument(option)
    return own.parse_known_args(words[1:])[1]
