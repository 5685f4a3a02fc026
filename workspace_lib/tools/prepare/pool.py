"""Work spread over processes, with one progress bar, that ends with its parent.

In: a function `f(meter, *task)` and tasks. Out: the results in order. With one worker all happens in this process.
"""
from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from .errors import PrepareError

# fork: workers start at once, share what is loaded, and hold the lock of the run for as long as they live
_processes = multiprocessing.get_context('fork')
_PR_SET_PDEATHSIG = 1
REDRAW = 0.2  # seconds
SPARE = 1  # processes beside one for each core: it has the core of one that waits for the disk


class Stopped(Exception):
    """Raised in a worker when another has failed, or Ctrl-C was pressed."""


class Meter:
    """How much is done, over all workers; and the flag that stops them."""

    def __init__(self, on_add: Callable[[int], object] | None = None) -> None:
        self._amount, self._stop = _processes.Value('q', 0), _processes.RawValue('b', 0)
        self._on_add = on_add
        self._untold, self._told_at = 0, 0.0  # of this process

    def add(self, amount: int) -> None:
        """Cheap enough for every file: others hear of it a few times a second."""
        if self._stop.value:
            raise Stopped
        self._untold += amount
        if time.monotonic() - self._told_at > REDRAW / 2:
            self.tell()

    def tell(self) -> None:
        """What has been added since the last time; before a process turns to something else."""
        amount, self._untold, self._told_at = self._untold, 0, time.monotonic()
        if self._on_add:
            self._on_add(amount)
        else:
            with self._amount.get_lock():
                self._amount.value += amount

    def stop(self) -> None:
        self._stop.value = 1

    @property
    def amount(self) -> int:
        return self._amount.value


class Pool:
    """Runs functions over tasks on `workers` cores."""

    def __init__(self, workers: int, show_progress: bool = True) -> None:
        self.workers, self.show_progress = workers, show_progress

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple], title: str = '', total: int = 0,
            unit: str = 'B') -> list[Any]:
        """`[function(meter, *task) for task in tasks]`; a bar with rate and time left if there is a title.

        The first exception stops all workers and is raised.
        """
        bar = tqdm(total=total, desc=title, unit=unit, unit_scale=True, disable=not (title and self.show_progress),
                   mininterval=REDRAW if _is_watched() else 30, smoothing=0.1, leave=True)
        tqdm.monitor_interval = 0  # no thread of its own: this process forks
        with bar:
            if self.workers == 1 or len(tasks) == 1:
                meter = Meter(bar.update)
                found = [_told(meter, function, task) for task in tasks]
            else:
                found = self._spread(function, tasks, bar)
            bar.total = bar.n  # it may have been an estimate
            return found

    def aside(self, function: Callable[..., Any], *task: Any) -> Any:
        """`function(meter, *task)` in a process of its own: what it loads is gone afterwards."""
        with tqdm(disable=True) as bar:
            return self._spread(function, [task], bar)[0]

    def _spread(self, function: Callable[..., Any], tasks: Sequence[tuple], bar: tqdm) -> list[Any]:
        meter, count = Meter(), min(self.workers + SPARE, len(tasks)) or 1
        with ProcessPoolExecutor(count, _processes, _begin, (meter, os.getpid())) as pool:
            futures = [pool.submit(_call, function, task) for task in tasks]
            workers = multiprocessing.active_children()
            pending: set[Any] = set(futures)
            try:
                while pending:
                    done, pending = wait(pending, REDRAW, FIRST_EXCEPTION)
                    bar.update(meter.amount - bar.n)
                    for future in done:
                        future.result()
                bar.update(meter.amount - bar.n)
            except BrokenProcessPool:
                pool.shutdown()
                raise PrepareError(_how_ended(function.__name__, [worker.exitcode for worker in workers])) from None
            except BaseException:
                meter.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in futures]


def _how_ended(task: str, codes: Sequence[int | None]) -> str:
    """Of the worker that broke the pool, by the exit codes of all; the pool itself ends the others with SIGTERM."""
    code = next((code for code in codes if code not in (None, 0, -signal.SIGTERM)), None)
    how = 'for an unknown reason'
    if code is not None:
        how = f'by signal {-code} ({signal.strsignal(-code)})' if code < 0 else f'with exit status {code}'
    return (f'a worker process ended {how} in {task}, without a word of its own. Signal 9 may be want of memory (dmesg '
            'says so): try fewer --workers. Else it is a fault of a program, or of a file that it read. What is '
            'finished stays; run the same command again')


def _is_watched() -> bool:
    """Whether a line can be written over: in a terminal, or in a notebook, whose kernel says that it is none."""
    return sys.stderr.isatty() or 'ipykernel' in sys.modules


_meter: Meter


def _begin(meter: Meter, parent: int) -> None:
    """In a new worker: die with the parent, and leave Ctrl-C to it."""
    global _meter
    _meter = meter
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _call(function: Callable[..., Any], task: tuple) -> Any:
    return _told(_meter, function, task)


def _told(meter: Meter, function: Callable[..., Any], task: tuple) -> Any:
    try:
        return function(meter, *task)
    finally:
        meter.tell()
