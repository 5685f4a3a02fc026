"""``python -m workspace_lib.tools.jpeg_crop``: compile the crop decoder for this environment, or say if it has one.

In: a C compiler and libjpeg-turbo with its header. Out: the library below the environment's folder.
"""
from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..jpeg_crop import SOURCE, UNUSABLE, library_path, load

PROGRAM = 'python -m workspace_lib.tools.jpeg_crop'
ON = 'crop decoding is on: of a JPEG that is cropped first, only the box is decoded'
NEEDED = 'apt-get install gcc libc6-dev libjpeg-dev'
#: In the library itself, where the archive allows: no package to hold beside it, and no other libjpeg to meet.
LINKED = (['-l:libjpeg.a', '-Wl,--exclude-libs,ALL'], ['-ljpeg'])


def build(target: Path, compiler: str = 'cc') -> None:
    """Compile `target`; it is there whole, or not at all.

    Raises:
        RuntimeError: with what is missing and how to get it. OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, target.name)
        for libraries in LINKED:
            said = _compile(compiler, made, libraries)
            if made.is_file():
                _put(made, target)
                return
    raise RuntimeError(f'{SOURCE.name} does not compile: {said}. {NEEDED}')


def _put(made: Path, target: Path) -> None:
    """In one step: a training may have an earlier one in use."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        os.replace(shutil.copy(made, folder), target)


def _compile(compiler: str, made: Path, libraries: Sequence[str]) -> str:
    command = [*shlex.split(compiler), '-O2', '-shared', '-fPIC', '-o', str(made), str(SOURCE), *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f'no C compiler ({compiler}): {NEEDED}') from error
    errors = [line for line in done.stderr.splitlines() if 'error' in line or 'cannot find' in line]
    return (errors or done.stderr.splitlines() or ['the compiler says nothing'])[0].strip()


def state(path: Path, prefix: str = sys.prefix) -> tuple[bool, str]:
    """Whether crop decoding is on by the library at `path`, and that in words; `prefix`: where a new one would go."""
    try:
        load(path)
    except UNUSABLE as error:
        there = '' if prefix == sys.prefix else f' --prefix {shlex.quote(prefix)}'
        return False, f'crop decoding is off: {error}; {PROGRAM}{there} compiles it'
    return True, ON


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument('--prefix', default=sys.prefix, help='environment that gets it; default: this one')
    parser.add_argument('--check', action='store_true', help='compile nothing; exit status 1 where it is off')
    args = parser.parse_args(argv)
    try:
        path = library_path(args.prefix)
        if not args.check:
            build(path, os.environ.get('CC') or 'cc')
    except (RuntimeError, OSError) as error:
        print(f'crop decoding stays off, JPEGs are decoded whole: {error}', file=sys.stderr)
        return 1
    is_on, said = state(path, args.prefix)
    print(said)
    return not is_on


if __name__ == '__main__':
    sys.exit(main())
