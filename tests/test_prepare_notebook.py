"""Data preparation in a notebook's kernel: a bar that can be read there, and a stop button that harms nothing."""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mini_ilsvrc as mini
import pytest

from workspace_lib.tools.prepare import engine, prepare_imagenet

ROOT = Path(engine.__file__).parents[3]
CELL = '''
import time
from pathlib import Path
import mini_ilsvrc as mini
from workspace_lib.tools.prepare import prepare_imagenet
from workspace_lib.tools.prepare.disk import Disk

class SlowDisk(Disk):
    def write(self, path, chunks):
        time.sleep({pause})
        super().write(path, chunks)

facts = mini.facts_from(Path({folder!r}, 'facts').read_text())
made = prepare_imagenet(Path({folder!r}, 'archives'), Path({folder!r}, 'dest'), facts=facts, workers=2, short=24,
                        disk=SlowDisk())
'''


class Kernel:
    """Runs cells, and keeps what each has printed."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client, self.shown = manager, client, ''

    def run(self, cell: str) -> dict[str, Any]:
        self.start(cell)
        return self.finish()

    def start(self, cell: str) -> None:
        self.shown, self.cell = '', self.client.execute(cell)

    def finish(self) -> dict[str, Any]:
        """The reply to the cell that was started."""
        while (message := self._next(self.client.get_iopub_msg))['content'].get('execution_state') != 'idle':
            self.shown += message['content'].get('text', '')
        return self._next(self.client.get_shell_msg)['content']

    def _next(self, get: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """The next message about this cell; the kernel has answered other questions before."""
        while (message := get(timeout=60))['parent_header'].get('msg_id') != self.cell:
            pass
        return message


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    from jupyter_client.manager import start_new_kernel
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), str(ROOT / 'tests')]))
    manager, client = start_new_kernel(kernel_name='python3')
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """`archives`, and `facts` of them."""
    (tmp_path / 'facts').write_text(mini.facts_text(mini.make(tmp_path / 'archives')))
    return tmp_path


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f'{path} has not come'
        time.sleep(0.01)


def test_stopped_in_a_notebook_and_run_again_it_ends_with_the_whole_tree(kernel, source):
    kernel.start(CELL.format(folder=str(source), pause=0.05))
    wait_for(source / 'dest/val')
    kernel.manager.interrupt_kernel()
    reply = kernel.finish()
    assert (reply['status'], reply.get('ename')) == ('error', 'KeyboardInterrupt')
    assert not (source / 'dest/meta/manifest.json').exists()

    assert kernel.run(CELL.format(folder=str(source), pause=0))['status'] == 'ok', kernel.shown
    facts = mini.facts_from((source / 'facts').read_text())
    prepare_imagenet(source / 'archives', source / 'expected', facts=facts, workers=1, short=24, progress=False)
    assert mini.tree_of(source / 'dest') == mini.tree_of(source / 'expected')


def test_a_notebook_sees_the_bar_move_in_a_single_line(kernel, source):
    assert kernel.run(CELL.format(folder=str(source), pause=0.02))['status'] == 'ok', kernel.shown
    states = kernel.shown.partition('\n')[0].split('\r')
    assert all(state.startswith('images:') for state in states if state)
    assert len(states) > 4  # several a second, each over the one before
    assert '100%' in states[-1] and 'B/s' in states[-1]
