"""What several test modules share: a config file from text, the folder of real samples, quiet threads."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before torch is imported: on two cores a thread pool per process slows tests with worker processes down.
os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(autouse=True)
def logger_as_imported() -> Iterator[None]:
    """A command that a test ran set the library's logger up for a terminal: the next `caplog` would hear nothing."""
    yield
    logger = logging.getLogger('workspace_lib')
    for handler in [*logger.handlers]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture
def tmp_config(tmp_path: Path) -> Callable[..., str]:
    """``tmp_config(text, name='c.py')`` writes a config file and returns its path."""
    def write(text: str, name: str = 'c.py') -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)
    return write


@pytest.fixture(scope='session')
def samples_dir() -> Path:
    """Real images beside the checkout (WORKSPACE_SAMPLES names the folder); without, the test is skipped."""
    folder = os.environ.get('WORKSPACE_SAMPLES')
    if not folder:
        pytest.skip('WORKSPACE_SAMPLES is not set: no folder with real samples')
    assert Path(folder).is_dir(), f'WORKSPACE_SAMPLES={folder} is no folder'
    return Path(folder).resolve()
