"""What the benchmarks share: contestants in turns, an aim beside each figure, results that outlive a crash.

In: functions that measure once. Out: `NAME.json` and `NAME.png` in a folder, a table on the terminal; called as a
script, the README.md of that folder from all its JSON files.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault('OMP_NUM_THREADS', '1')  # of processes that are started: threads that spin disturb everyone
RESULTS = ROOT / 'benchmarks' / 'results'
#: What there is to measure, and what it takes.
MEASURED = {**dict.fromkeys(('image', 'loader', 'scale', 'config', 'test_loop', 'train_loop'), '`make bench`'),
            **dict.fromkeys(('gpu_speed', 'gpu_fed', 'gpu_cifar10', 'gpu_keys', 'gpu_sweep'),
                            'needs a GPU: `make bench-gpu`')}


def in_turns(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Each contestant's figures over the rounds (A B A B ...), after one round that does not count."""
    figures: dict[str, list[Any]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, measure in contestants.items():
            gc.collect()
            figure = measure()
            if number:
                figures[name].append(figure)
    return figures


def ratio(figures: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median of the ratios round by round: what disturbs a whole round disturbs both."""
    return statistics.median(a / b for a, b in zip(figures[over], figures[under], strict=True))


def pin(cores: int = 1) -> None:
    """Keep this process and those it starts on the first cores it may use; one thread for each library."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f'/proc/{one}/task').iterdir():
                found += map(int, (task / 'children').read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def tree_cpu(pid: int | None = None) -> float:
    """CPU seconds (user and system) of a process, default this one, and of all below it that live; to the nanosecond.

    The clock of another process is ``clock_getcpuclockid`` of POSIX; its number on Linux is ~pid << 3 | 2.
    """
    total = 0.
    for one in tree(pid or os.getpid()):
        try:
            total += time.clock_gettime(~one << 3 | 2)
        except OSError:  # ended meanwhile
            continue
    return total


def counted(number: int, thing: str) -> str:
    return f'{number} {thing}{"s" * (number != 1)}'


def short(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def machine() -> dict[str, Any]:
    """The hardware, and how busy it was."""
    model = next((line.partition(':')[2].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                  if line.startswith('model name')), platform.machine())
    return {'cpu': model, 'cores': len(os.sched_getaffinity(0)), 'system': f'{platform.system()} {platform.machine()}',
            'load': round(os.getloadavg()[0], 2)}


def versions() -> dict[str, Any]:
    from workspace_lib.jpeg_crop import decoder
    from workspace_lib.tools.versions import collect_versions
    known = {name: value for name, value in collect_versions().items() if value}
    return known | {'crop decoding': 'on' if decoder() else 'off'}


def without_place(word: str) -> str:
    """A word of a command; of a path what is left on another machine: from the checkout on, or its name."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


class Results:
    """What one benchmark found; the file is written anew after each part.

    Args:
        name: of the files. folder: where they go. rounds: measurements of each contestant.
        toy: the sizes are those of a trial: sections say so, and no aim is judged.
        facts: more that belongs to the header, such as the images.
    """

    def __init__(self, name: str, folder: Path | str = RESULTS, rounds: int = 1, toy: bool = False,
                 **facts: Any) -> None:
        self.path = Path(folder) / f'{name}.json'
        self.content: dict[str, Any] = {
            'name': name, 'command': ' '.join([Path(sys.executable).name, *map(without_place, sys.argv)]),
            'started': time.strftime('%Y-%m-%d %H:%M:%S %z'), 'rounds': rounds, 'toy': toy, **facts,
            'machine': machine(), 'versions': versions(), 'sections': [], 'aims': [], 'missing': {}}

    def section(self, title: str, unit: str, figures: Mapping[str, Sequence[float]], base: str) -> None:
        """Add a table of contestants: median, least and most of their figures, and the `ratio` to `base`.

        A later one of the same title takes its place, with more in it.
        """
        title += ' (toy size)' * self.content['toy']
        before = next((one['rows'] for one in self.content['sections'] if one['title'] == title), {})
        rows = {name: dict(median=statistics.median(runs), least=min(runs), most=max(runs), runs=list(runs),
                           ratio=ratio(figures, name, base) if all(figures[base]) else None)
                for name, runs in figures.items() if runs}
        made = dict(title=title, unit=unit, base=base, rows=rows)
        others = [section for section in self.content['sections'] if section['title'] != title]
        self.content['sections'] = [*others, made]
        new = {name: row for name, row in rows.items() if before.get(name) != row}
        if before and not new.keys() & before.keys():  # it grows: its head stands above already
            print('\n'.join(row_texts({**made, 'rows': new})), flush=True)
        else:
            again = f', now of {max(len(runs) for runs in figures.values())} rounds' * bool(before)
            print(f'\n{section_text({**made, "title": title + again})}', flush=True)
        self.write()

    def aim(self, what: str, figure: float | None, bound: str, unit: str = '', reason: str = '',
            note: str = '', unjudged: str = '') -> None:
        """Set a figure beside its aim, `'>= 2'` or `'<= 0.03'`; None where it was not measured, for this `reason`.

        `unjudged`: why a figure, though measured, neither meets nor misses the aim.
        """
        sign, _, number = bound.partition(' ')
        if sign not in ('>=', '<='):
            raise ValueError(f'an aim of {bound!r} for {what!r}: write it as >= or <=, a blank and a number')
        limit = float(number)
        met = None if figure is None else figure >= limit if sign == '>=' else figure <= limit
        unjudged = ', '.join(filter(None, ['toy size' * self.content['toy'], unjudged]))
        if unjudged and figure is not None:
            met, reason = None, unjudged
        self.content['aims'].append(dict(what=what, aim=bound, unit=unit, figure=figure, met=met,
                                         reason=reason if met is None else '', note=note))
        print(aim_text(self.content['aims'][-1]), flush=True)
        self.write()

    def missing(self, name: str, reason: str) -> None:
        """Say who does not take part, and why."""
        self.content['missing'][name] = reason
        print(f'{name}: not measured: {reason}', flush=True)
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix('.partial')
        temporary.write_text(json.dumps(self.content, indent=1) + '\n')
        temporary.replace(self.path)

    def __str__(self) -> str:
        found = self.content
        return '\n\n'.join([header_text(found), *map(section_text, found['sections']),
                            '\n'.join(f'{name}: not measured: {why}' for name, why in found['missing'].items()),
                            '\n'.join(map(aim_text, found['aims']))])

    def finish(self) -> None:
        """The aims once more, together, and the picture where matplotlib is installed."""
        print('\n' + '\n'.join(map(aim_text, self.content['aims'])))
        try:
            print(f'{self.path}, {self.plot()}', flush=True)
        except ImportError as error:
            print(f'{self.path}; no picture: {error}', flush=True)

    def plot(self) -> Path:
        """Bars of the medians with least and most, one panel a section; returns the picture's path."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from workspace_lib.tools.plots import BLUE, GREY, STYLE, VERMILLION
        sections = self.content['sections']
        with mpl.rc_context(STYLE):
            heights = [len(section['rows']) + 2 for section in sections]
            figure = Figure(figsize=(8, 0.32 * sum(heights) + 0.4))
            panels = figure.subplots(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
            for axes, section in zip(panels, sections, strict=True):
                names, rows = [*section['rows']], [*section['rows'].values()]
                medians = [row['median'] for row in rows]
                spread = [[row['median'] - row['least'] for row in rows], [row['most'] - row['median'] for row in rows]]
                alone = not any(name.startswith('ours') for name in names)  # then the base stands out
                colours = [VERMILLION if name.startswith(('anchor', 'limit')) else
                           BLUE if name.startswith('ours') or alone and name == section['base'] else GREY
                           for name in names]
                axes.barh(names, medians, xerr=spread, color=colours, hatch=[
                    '//' if colour == VERMILLION else '' for colour in colours], error_kw=dict(lw=1, capsize=3))
                axes.bar_label(axes.containers[-1], [short(value) for value in medians], padding=6, fontsize=9)
                axes.margins(x=0.12)
                axes.invert_yaxis()
                axes.set(title=section['title'], xlabel=section['unit'])
            path = self.path.with_suffix('.png')
            figure.savefig(path, dpi=110)
        return path


def header_text(found: Mapping[str, Any]) -> str:
    facts = {**found['machine'], **found['versions'], 'rounds': found['rounds']}
    return f'{found["command"]}\n{found["started"]}: ' + ', '.join(f'{name} {value}' for name, value in facts.items())


def section_text(section: Mapping[str, Any]) -> str:
    width, last = _widths(section)
    over = f'over {section["base"]}'
    head = f'{"":{width}}{section["unit"]:>14}{"least":>11}{"most":>11}{over:>{last}}'
    return '\n'.join([section['title'], head, *row_texts(section)])


def row_texts(section: Mapping[str, Any]) -> list[str]:
    width, last = _widths(section)
    over = {name: '' if row['ratio'] is None else f'{row["ratio"]:.3f}' for name, row in section['rows'].items()}
    return [f'{name:{width}}{row["median"]:14.4g}{row["least"]:11.4g}{row["most"]:11.4g}{over[name]:>{last}}'
            for name, row in section['rows'].items()]


def _widths(section: Mapping[str, Any]) -> tuple[int, int]:
    """Of the first and the last column."""
    return max(30, *(len(name) + 2 for name in section['rows'])), max(24, len(f'over {section["base"]}') + 2)


def aim_text(aim: Mapping[str, Any]) -> str:
    if aim['figure'] is not None and aim['met'] is None:
        return f'{aim["what"]:70} aim {aim["aim"]:8} {short(aim["figure"])} {aim["unit"]}  not judged: {aim["reason"]}'
    if aim['met'] is None:
        return f'{aim["what"]:70} aim {aim["aim"]:8} not measured: {aim["reason"]}'
    verdict = 'met' if aim['met'] else 'MISSED'
    why = f' ({aim["note"]})' if aim['note'] else ''
    return f'{aim["what"]:70} aim {aim["aim"]:8} {short(aim["figure"])} {aim["unit"]}'.rstrip() + f'  {verdict}{why}'


def write_readme(folder: Path | str = RESULTS) -> Path:
    """`README.md` of the folder: all aims in one table, then each benchmark's sections; from the JSON files alone."""
    files = [json.loads(path.read_text()) for path in sorted(Path(folder).glob('*.json'))]
    lines = ['# What was measured', '', 'Made from the JSON files here by `python benchmarks/side_by_side.py`.', '']
    lines += not_measured(files)
    lines += ['| benchmark | aim | bound | figure | |', '| --- ' * 5 + '|']
    lines += [f'| {found["name"]} {_aim_row(aim)}' for found in files for aim in found['aims']]
    for found in files:
        lines += ['', f'## {found["name"]}{" (toy size)" * found["toy"]}', '', f'`{found["command"]}`', '',
                  header_text(found).partition('\n')[2]]
        lines += [f'\n{name} did not take part: {reason}' for name, reason in found['missing'].items()]
        for section in found['sections']:
            lines += ['', f'### {section["title"]}', '',
                      f'| | {section["unit"]} | least | most | over {section["base"]} |', '| --- ' * 5 + '|']
            lines += [f'| {name} | {row["median"]:.4g} | {row["least"]:.4g} | {row["most"]:.4g} | '
                      f'{"" if row["ratio"] is None else format(row["ratio"], ".3f")} |'
                      for name, row in section['rows'].items()]
        if Path(folder, f'{found["name"]}.png').is_file():
            lines += ['', f'![the same as bars]({found["name"]}.png)']
    path = Path(folder) / 'README.md'
    path.write_text('\n'.join(lines) + '\n')
    return path


def not_measured(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each way to measure that has benchmarks without a figure here; those of toy size are none."""
    there = {found['name'].removesuffix('_real') for found in files if not found['toy']}
    absent: dict[str, list[str]] = {}
    for name, way in MEASURED.items():
        if name not in there:
            absent.setdefault(way, []).append(name)
    return [line for way, names in absent.items() for line in (f'not measured yet: {", ".join(names)}: {way}', '')]


def _aim_row(aim: Mapping[str, Any]) -> str:
    if aim['figure'] is None:
        return f'| {aim["what"]} | {aim["aim"]} | not measured: {aim["reason"]} | |'
    figure = f'{aim["figure"]:.2f}' if 0.1 <= abs(aim['figure']) < 1000 else short(aim['figure'])
    verdict = {True: 'met', False: '**missed**', None: f'not judged: {aim["reason"]}'}[aim['met']]
    return f'| {aim["what"]} | {aim["aim"]} | {figure} {aim["unit"]}'.rstrip() + f' | {verdict} |'


def arguments(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', help='a folder of class folders of JPEGs; generated ones without')
    parser.add_argument('--generated', type=int, default=256, help='how many images to generate (default 256)')
    parser.add_argument('--rounds', type=int, default=rounds, help=f'measurements of each (default {rounds})')
    parser.add_argument('--quick', action='store_true', help='toy size: does it run, not how fast')
    parser.add_argument('--out', type=Path, help='folder of the results (default benchmarks/results; at toy size a '
                        'temporary one, which is printed)')
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; `out` is set, and figures of toy size do not go where real ones are kept."""
    args = parser.parse_args()
    args.toy = args.quick or getattr(args, 'toy', False)
    if args.out is None and args.toy:
        args.out = Path(tempfile.mkdtemp(prefix='benchmarks-'))
        print(f'toy size: results go to {args.out}')
    args.out = args.out or RESULTS
    return args


def name_of(name: str, args: argparse.Namespace) -> str:
    """Of the results: those on real images stand beside those on generated ones."""
    return f'{name}_real' if args.images else name


if __name__ == '__main__':
    print(write_readme(*sys.argv[1:2]))
