"""The anchor of every image benchmark: libjpeg-turbo's full decode in C, compiled when it is needed.

In: JPEG files. Out: functions that measure CPU milliseconds an image, one pass a call. Where there is no C compiler or
no libjpeg header, simplejpeg's full decode stands in (within 5 % of it), and its name says so.
"""
from __future__ import annotations

import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

ANCHOR, LIMIT, STAND_IN = 'anchor: full decode, C', 'limit: crop decode, C', 'anchor: full decode, simplejpeg'
SOURCE = Path(__file__).with_name('anchor.c')


def compiled(folder: Path, compiler: str = 'cc') -> Path:
    """The program; `compiler` must be on the path.

    Raises:
        RuntimeError: with what is missing and how to get it.
    """
    program = folder / 'anchor'
    try:
        done = subprocess.run([compiler, '-O2', '-o', str(program), str(SOURCE), '-ljpeg', '-lm'], capture_output=True,
                              text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f'no C compiler ({compiler}): apt-get install gcc libjpeg-dev') from error
    if done.returncode:
        raise RuntimeError(f'{done.stderr.strip().splitlines()[0]}: apt-get install libjpeg-dev '
                           '(libjpeg62-turbo-dev on Debian)')
    return program


class Program:
    """A running anchor; a call is one pass over the files. It ends with this object."""

    def __init__(self, program: Path, kind: str, paths: Sequence[str]) -> None:
        self.count = len(paths)
        self.process = subprocess.Popen([str(program), kind, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        weakref.finalize(self, _end, self.process)

    def __call__(self) -> float:
        assert self.process.stdin and self.process.stdout
        print(file=self.process.stdin, flush=True)
        seconds, failed = self.process.stdout.readline().split()
        if int(failed):
            raise RuntimeError(f'{failed} of {self.count} files are no JPEG that libjpeg decodes')
        return float(seconds) / self.count * 1e3


def _end(process: subprocess.Popen[str]) -> None:
    process.communicate()  # the end of its input is its end


def anchors(paths: Sequence[str], compiler: str = 'cc') -> tuple[dict[str, Callable[[], float]], str]:
    """The anchor and the limit by name, the anchor first; and why the anchor is a stand-in, if it is one."""
    folder = tempfile.TemporaryDirectory()
    try:
        program = compiled(Path(folder.name), compiler)
    except RuntimeError as error:
        return {STAND_IN: lambda: _by_simplejpeg(paths)}, str(error)
    made: dict[str, Callable[[], float]] = {ANCHOR: Program(program, 'full', paths),
                                            LIMIT: Program(program, 'crop', paths)}
    folder.cleanup()  # a running program does without its file
    return made, ''


def _by_simplejpeg(paths: Sequence[str]) -> float:
    import simplejpeg
    start = time.process_time()
    for path in paths:
        with open(path, 'rb') as file:
            simplejpeg.decode_jpeg(file.read(), 'BGR')
    return (time.process_time() - start) / len(paths) * 1e3
