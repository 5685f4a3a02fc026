"""Data preparation that is killed, or whose power is cut, at any moment, and started again: the same tree."""
from __future__ import annotations

import inspect
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2  # noqa: F401 - loaded once here rather than in each of hundreds of forked workers
import mini_ilsvrc as mini
import pytest
import scipy.io  # noqa: F401

from workspace_lib.tools.prepare import PrepareError, copies, engine, prepare_imagenet, units
from workspace_lib.tools.prepare.disk import Disk

OPTIONS = ['--resize', '24', '--pack', '--no-progress']
SETTINGS: dict[str, Any] = dict(short=24, pack=True, progress=False, say=lambda line: None)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: what is simulated here needs no disk, and waits for none."""
    yield from memory_folder(tmp_path)


def memory_folder(otherwise: Path) -> Iterator[Path]:
    if not os.access('/dev/shm', os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir='/dev/shm') as name:
        yield Path(name)


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`archives`, and `facts` of them, and `reference`: what an uninterrupted run makes of them."""
    for folder in memory_folder(tmp_path_factory.mktemp('ilsvrc')):
        yield prepared(folder)


def prepared(folder: Path) -> Path:
    facts = mini.make(folder / 'archives')
    (folder / 'facts').write_text(mini.facts_text(facts))
    done = run(folder, 'reference')
    assert done.returncode == 0, done.stderr
    shutil.copy(folder / 'facts.log', folder / 'reference.log')
    return folder


def run(source: Path, dest: str | Path, kill: str = '0') -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, mini.__file__, str(source / 'facts'), kill, 'imagenet',
                           str(source / 'archives'), str(source / dest), *OPTIONS],
                          capture_output=True, text=True, timeout=60, env={**os.environ, 'PYTHONPATH': str(ROOT)})


ROOT = Path(engine.__file__).parents[3]


def killed_and_run_again(source: Path, folder: Path, count: int) -> None:
    """Kill `count` runs, each at another operation on the disk, from the first to the last of every phase in turn;
    finish, and compare."""
    expected, archives = mini.tree_of(source / 'reference'), mini.tree_of(source / 'archives')
    operations = (source / 'reference.log').read_text()
    for number in range(count):
        phase = mini.PHASES[number % len(mini.PHASES)]
        at = 1 + round((mini.count_of(operations, phase) - 1) * number / (count - 1))
        dest = folder / str(number)
        killed = run(source, dest, f'{phase}:{at}')
        assert killed.returncode == -signal.SIGKILL, f'{phase}:{at} had ended before it was killed: {killed.stderr}'
        assert mini.tree_of(dest) != expected, f'{phase}:{at} was finished when it was killed'
        again = run(source, dest)
        assert again.returncode == 0, again.stderr
        assert mini.tree_of(dest) == expected, f'killed at {phase}:{at}'
        shutil.rmtree(dest)
    assert mini.tree_of(source / 'archives') == archives


def test_killed_twelve_times_and_run_again_it_ends_with_the_same_tree(source, folder):
    killed_and_run_again(source, folder, 12)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_a_hundred_times_and_run_again_it_ends_with_the_same_tree(source, folder):
    killed_and_run_again(source, folder, 100)


@pytest.mark.parametrize('kill', ['train.write:40', 'val.write:9', 'copy.write:40', 'map.write_at:7', 'meta.write:2',
                                  'manifest.write:1', 'checks.write:1'])
def test_killed_within_a_write_it_ends_with_the_same_tree(source, folder, kill):
    dest = folder / 'dest'
    assert run(source, dest, kill).returncode == -signal.SIGKILL
    assert run(source, dest).returncode == 0
    assert mini.tree_of(dest) == mini.tree_of(source / 'reference')


def test_killed_again_and_again_on_the_way_it_ends_with_the_same_tree(source, folder):
    dest = folder / 'dest'
    for kill in ('checks:3', 'val:20', 'val:30', 'train:60', 'train:90', 'copy:50', 'copy:30', 'map:9', 'map:30',
                 'meta:9'):
        assert run(source, dest, kill).returncode == -signal.SIGKILL
    assert run(source, dest).returncode == 0
    assert mini.tree_of(dest) == mini.tree_of(source / 'reference')


# A cut of the power: what was not synced is lost, whatever had been renamed since.

class PowerCut(BaseException):
    pass


@mini.counted
class FragileDisk(Disk):
    """Loses at its `cut_at`-th operation what was not synced; of renames not synced, those that `chance` picks."""

    def __init__(self, cut_at: int, chance: random.Random) -> None:
        self.left, self.chance, self.log = cut_at, chance, list[str]()
        self.dirty: dict[Path, list[tuple[int, int]]] = {}  # regions; none: the whole file
        self.renames: list[tuple[Path, Path, bytes | None]] = []

    def step(self, name: str, path: Path, *args: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            raise PowerCut
        self.log.append(f'{mini.phase_of(path)} {name}')
        getattr(self, f'on_{name}', lambda *_: None)(path, *args)

    def on_write(self, path: Path, chunks: Any) -> None:
        self.dirty[path] = []

    on_allocate = on_write

    def on_write_at(self, path: Path, offset: int, data: bytes) -> None:
        if path not in self.dirty or self.dirty[path]:
            self.dirty.setdefault(path, []).append((offset, len(data)))

    def on_sync(self, path: Path) -> None:
        self.dirty.clear()
        self.renames.clear()

    def on_sync_file(self, path: Path) -> None:
        self.dirty.pop(path, None)

    def on_sync_folder(self, path: Path) -> None:
        self.on_sync_file(path)
        self.renames = [rename for rename in self.renames if rename[1].parent != path]

    def on_rename(self, source: Path, target: Path) -> None:
        self.dirty = {moved(path, source, target): regions for path, regions in self.dirty.items()}
        self.renames.append((source, target, target.read_bytes() if target.is_file() else None))

    def on_remove(self, path: Path) -> None:
        self.dirty = {file: regions for file, regions in self.dirty.items() if not file.is_relative_to(path)}

    def lose(self) -> None:
        """What the disk holds when the power is back."""
        for path, regions in self.dirty.items():
            if path.exists() and not regions:
                os.truncate(path, path.stat().st_size // 2)
            for offset, size in regions if path.exists() else ():
                Disk().write_at(path, offset, bytes(size))
        for source, target, before in reversed(self.renames):
            if self.chance.random() < 0.5:
                os.rename(target, source)
                if before is not None:
                    target.write_bytes(before)


def moved(path: Path, source: Path, target: Path) -> Path:
    return target / path.relative_to(source) if path.is_relative_to(source) else path


def prepare(source: Path, dest: Path, disk: Disk) -> None:
    facts = mini.facts_from((source / 'facts').read_text())
    prepare_imagenet(source / 'archives', dest, facts=facts, disk=disk, workers=1, **SETTINGS)


def operations_of(source: Path, dest: Path) -> list[str]:
    """Phase and name of all that an uninterrupted run does to the disk; it must end with the right tree."""
    disk = FragileDisk(10**9, random.Random(0))
    prepare(source, dest, disk)
    assert mini.tree_of(dest) == mini.tree_of(source / 'reference')
    return disk.log


def survives_power_cuts(source: Path, folder: Path, points: Iterable[int]) -> None:
    """Cut the power before each of these operations, run again, compare."""
    expected = mini.tree_of(source / 'reference')
    for point in points:
        dest, disk = folder / str(point), FragileDisk(point, random.Random(point))
        with pytest.raises(PowerCut):
            prepare(source, dest, disk)
        disk.lose()
        prepare(source, dest, Disk())
        assert mini.tree_of(dest) == expected, f'the power was cut at operation {point}'
        shutil.rmtree(dest)


def test_a_cut_of_the_power_loses_nothing(source, folder):
    count = len(operations_of(source, folder / 'whole'))
    survives_power_cuts(source, folder, range(1, count, count // 30))


@pytest.mark.parametrize('phase', ['train', 'map', 'meta'])
def test_a_cut_of_the_power_at_any_operation_of_a_unit_loses_nothing(source, folder, phase):
    survives_power_cuts(source, folder, around_renames(operations_of(source, folder / 'whole'), phase))


def test_a_cut_of_the_power_while_a_copy_gets_its_name_loses_nothing(source, folder):
    operations = operations_of(source, folder / 'whole')
    last = max(number for number, name in enumerate(operations, 1) if name == 'copy rename')
    survives_power_cuts(source, folder, range(last - 6, last + 3))


def around_renames(operations: list[str], phase: str) -> range:
    """The operations from the end of one unit to the end of the next but one, where the harm would be done."""
    renames = [number for number, name in enumerate(operations, 1) if name == f'{phase} rename']
    return range(renames[2], renames[2] + 24)


def mutant(function: Callable, *changes: tuple[str, str]) -> Callable:
    """The function with parts of its source replaced."""
    text = inspect.getsource(function)
    for old, new in changes:
        assert old in text, f'{function.__name__} no longer holds {old!r}'
        text = text.replace(old, new)
    names = dict(vars(inspect.getmodule(function)))
    exec('from __future__ import annotations\n' + text, names)
    return names[function.__name__]


SYNC = '    disk.sync(folder)\n'
LAST = '    disk.sync_folder(tree.folder(unit.name).parent)\n'
RECORD = "    disk.replace(tree.listing(record), [str(entry).encode()])\n"
DAMAGED, FOREIGN, OTHER = 'has changed since it was made', 'is there already', 'the power was cut at operation'
# Module, function, what is changed in its source, and how the harm comes out.
MUTANTS: dict[str, tuple[Any, Callable, list[tuple[str, str]], str]] = {
    'renamed before it is synced': (units, units.build, [
        (SYNC, ''), (LAST, LAST + '    disk.sync(tree.dest)\n')], DAMAGED),
    'never synced': (units, units.build, [(SYNC, '')], DAMAGED),
    'the folder has its name before its listing': (units, units.build, [
        ('    disk.rename(draft, listing)\n    disk.sync_folder(listing.parent)\n', ''),
        (LAST, LAST + '    disk.rename(draft, listing)\n')], FOREIGN),
    'recorded before the pixels are synced': (copies, copies._fill_region, [
        ('    disk.sync(pixels.parent)\n', ''), (RECORD, RECORD + '    disk.sync(pixels.parent)\n')], OTHER),
    'recorded before the pixels are written': (copies, copies._fill_region, [
        ('    at = _write_piece(disk, pixels, at, piece, digest)\n    entry',
         '    data, first = bytes(piece), at\n    digest.update(data)\n    at += len(data)\n    entry'),
        ('    disk.sync(pixels.parent)\n' + RECORD,
         RECORD + '    disk.write_at(pixels, first, data)\n    disk.sync(pixels.parent)\n')], OTHER),
    'a folder that is there counts as done': (units, units.is_done, [
        ('    if not listing.exists():', '    if folder.exists():\n        return True\n    if not listing.exists():')],
                                               'No such file or directory: .*/units/'),
}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    module, function, changes, _ = MUTANTS[request.param]
    if function is units.is_done:  # which does harm only where folders are filled in their place
        monkeypatch.setattr(units.Tree, 'unfinished', units.Tree.folder)
        monkeypatch.setattr(units, 'build', mutant(units.build, (
            '    disk.rename(folder, tree.folder(unit.name))\n', '')))
    monkeypatch.setattr(module, function.__name__, mutant(function, *changes))


@pytest.mark.parametrize('broken', MUTANTS, indirect=True)
def test_a_broken_engine_is_found_out(source, folder, broken, request):
    operations = operations_of(source, folder / 'whole')  # uninterrupted, it does its work
    name = request.node.callspec.id
    phase = 'map' if 'pixels' in name else 'train'
    with pytest.raises((AssertionError, PrepareError), match=MUTANTS[name][-1]):
        survives_power_cuts(source, folder, around_renames(operations, phase))
