"""Everything ``doctor`` asks of a machine goes through one `Host`, so that a test can play any machine.

In: names of commands, paths, ports. Out: texts, sizes, owners. Nothing here decides anything.
"""
from __future__ import annotations

import glob
import http.client
import json
import os
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from typing import Any

NOT_FOUND = 127
TIMED_OUT = 124


@dataclass(frozen=True)
class Result:
    """What a command said, both streams together, and how it ended (127: no such command)."""
    status: int
    text: str

    @property
    def ok(self) -> bool:
        return self.status == 0


@dataclass(frozen=True)
class Space:
    """Of one file system, in bytes and inodes; ``inodes`` is 0 where the file system does not count them."""
    total: int
    free: int
    inodes: int
    inodes_free: int


@dataclass(frozen=True)
class Owner:
    uid: int
    gid: int
    mode: int
    folder: bool


class Host:
    """This machine. Commands speak English (``LC_ALL=C``), for their texts are compared."""

    def __init__(self) -> None:
        self.environ = dict(os.environ)
        # Through sudo the person is the one who called it: files must be theirs.
        self.uid = int(self.environ.get('SUDO_UID') or os.getuid())
        self.gid = int(self.environ.get('SUDO_GID') or os.getgid())

    def run(self, *command: str, seconds: float = 20) -> Result:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=seconds, env={**self.environ, 'LC_ALL': 'C'})
        except FileNotFoundError:
            return Result(NOT_FOUND, f'{command[0]}: command not found')
        except PermissionError as error:
            return Result(126, str(error))
        except subprocess.TimeoutExpired:
            return Result(TIMED_OUT, f'{command[0]} did not answer within {seconds:g} s')
        return Result(done.returncode, done.stdout.decode(errors='replace').strip())

    def which(self, name: str) -> str | None:
        return shutil.which(name, path=self.environ.get('PATH'))

    def read(self, path: str) -> str | None:
        """Text of a file; None when it is not there or not for us."""
        try:
            with open(path, errors='replace') as file:
                return file.read()
        except OSError:
            return None

    def glob(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern))

    def owner(self, path: str) -> Owner | None:
        try:
            found = os.stat(path)
        except OSError:
            return None
        return Owner(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), stat.S_ISDIR(found.st_mode))

    def space(self, path: str) -> Space | None:
        """Of the file system that holds ``path``, or the nearest folder above it that exists."""
        path = os.path.abspath(path)
        while not os.path.exists(path) and path != '/':
            path = os.path.dirname(path)
        try:
            found = os.statvfs(path)
        except OSError:
            return None
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail)

    def port_taken(self, port: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                return True
        return False

    def get(self, port: int, path: str, token: str = '') -> tuple[int, Any]:
        """(HTTP status, JSON) from a server on loopback; (0, None) when what is there speaks no HTTP."""
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=5)
        try:
            connection.request('GET', path, headers={'Authorization': f'token {token}'} if token else {})
            answer = connection.getresponse()
            code, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()
        try:
            return code, json.loads(body)
        except ValueError:
            return code, None
