"""A training that is killed at any moment, and resumed, ends with the same numbers to the bit as one that was not."""
from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import interrupted
import pytest
import torch
from test_prepare_kill import memory_folder

TEXTS = {'epochs': interrupted.EPOCHS, 'iterations': interrupted.ITERS}
# Within the writing of a file, the first and later ones: half of it there, or all and only the renaming to be done.
WITHIN = [f'tmp:{number}:{how}' for number, how in zip((1, 2, 4, 7, 11), ('half', 'whole') * 3, strict=False)]
# After so many iterations, or a little later: the process goes on until it is dead.
AFTER = [random.Random(3).randrange(1 + 5 * part, 6 + 5 * part) for part in range(5)]


@pytest.fixture(scope='module')
def context() -> Any:
    return interrupted.processes()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield from memory_folder(tmp_path)


@pytest.fixture(scope='module')
def world(tmp_path_factory: pytest.TempPathFactory, context: Any) -> Iterator[dict[str, Any]]:
    """The data, and the last checkpoint of an uninterrupted run in each of the two ways to count."""
    for root in memory_folder(tmp_path_factory.mktemp('world')):
        interrupted.make_data(root / 'data')
        for name in TEXTS:
            assert finish(context, name, root / 'data', root / name) == 0
        yield dict(data=root / 'data', **{name: interrupted.end_of(root / name) for name in TEXTS})


def finish(context: Any, name: str, data: Path, folder: Path, **options: Any) -> int:
    """Train to the end, from the newest checkpoint if there is one. Returns the exit status."""
    process = context.Process(target=interrupted.train, args=(TEXTS[name], data, folder), kwargs=options)
    process.start()
    process.join(60)
    return process.exitcode


def kill_at(context: Any, name: str, data: Path, folder: Path, moment: str | int, **options: Any) -> None:
    """Train until then, and SIGKILL."""
    pause = moment if isinstance(moment, str) else None
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=interrupted.train, args=(TEXTS[name], data, folder, pause, tell), kwargs=options)
    process.start()
    tell.close()
    for _ in range(1 if isinstance(moment, str) else moment):
        assert os.read(told.fileno(), 1), 'it ended before it was killed'
    interrupted.kill(process)
    assert process.exitcode == -signal.SIGKILL, 'it ended before it was killed'


def killed_and_resumed(context: Any, name: str, world: dict[str, Any], folder: Path, moment: str | int,
                       mutation: str | None = None, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    kill_at(context, name, world['data'], folder, moment, mutation=mutation, **options)
    assert not interrupted.is_over(folder), 'it was over when it was killed'
    assert not (damaged := interrupted.damaged(folder)), f'half a file has the name of a whole one: {damaged}'
    if isinstance(moment, str):
        assert interrupted.temporary_files(folder), 'it was not killed within the writing of a file'
    assert finish(context, name, world['data'], folder, mutation=mutation, **options) == 0
    assert not interrupted.temporary_files(folder), 'what the kill left was not cleared away'
    differing = interrupted.difference(interrupted.end_of(folder), world[name])
    assert not differing, f'the resumed run differs: {differing[:8]}'


@pytest.mark.parametrize('moment', WITHIN + AFTER)
@pytest.mark.parametrize('name', TEXTS)
def test_killed_and_resumed_it_ends_with_the_same_bits(context, world, folder, name, moment):
    killed_and_resumed(context, name, world, folder, moment)


@pytest.mark.parametrize('name', TEXTS)
def test_killed_again_and_again_it_ends_with_the_same_bits(context, world, folder, name):
    for moment in (3, 'tmp:2:half', 5, 4, 'tmp:3:whole'):
        kill_at(context, name, world['data'], folder, moment)
        assert not interrupted.is_over(folder)
    assert finish(context, name, world['data'], folder) == 0
    assert not interrupted.difference(interrupted.end_of(folder), world[name])


@pytest.mark.parametrize('mutation, moment, said', [
    ('random state left out', 13, 'the resumed run differs'),
    ('saved without a rename', 'tmp:4:half', 'half a file has the name of a whole one')])
def test_a_defect_is_found_out(context, world, folder, mutation, moment, said):
    with pytest.raises(AssertionError, match=said):
        killed_and_resumed(context, 'epochs', world, folder, moment, mutation)


@pytest.mark.gpu
@pytest.mark.parametrize('name', TEXTS)
def test_on_a_gpu_in_deterministic_mode_too(context, world, folder, name):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    assert finish(context, name, world['data'], folder / 'whole', device='cuda') == 0
    expected = {**world, name: interrupted.end_of(folder / 'whole')}
    for moment in (5, 'tmp:4:half', 17):
        killed_and_resumed(context, name, expected, folder / f'{moment}', moment, device='cuda')
