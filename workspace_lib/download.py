"""Fetches a file once: goes on where a download broke off, checks the hash in its name, keeps it for the next time.

In: an address, as `https://download.openmmlab.com/.../resnet50_8xb32_in1k_20210831-ea4938fc.pth`. Out: the file, in
the folder where torch.hub, torchvision and mmcv keep theirs, so that what they fetched is found.
"""
from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import torch
from tqdm import tqdm

_CHUNK = 1 << 16
_TIMEOUT = 30.  # seconds without a byte
_WAITS = (1., 2., 4.)  # seconds before another attempt; counted anew whenever the file has grown
logger = logging.getLogger(__name__)


class _BrokenOff(OSError):
    """The connection ended early; another attempt may go on from there."""


_NETWORK = (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException, _BrokenOff)


def fetch(url: str) -> Path:
    """The file at `url`, from `torch.hub.get_dir()/checkpoints` where it is already there.

    Only https, and http from this machine: the eight digits of a hash tell a damaged file, not a forged one.
    Several processes that ask at once wait for one of them. A file whose name carries no hash is kept in a folder of
    its own for each address, as many are called `latest.pth`; it is never looked at again for news.

    Raises:
        ValueError: an address of another kind, or a file whose hash is not the one in its name.
        ConnectionError: it could not be had; says what to put where by hand.
    """
    _check_address(url)
    target = _target(url)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target.with_name(target.name + '.part')) as part:
            if not target.is_file():
                _download(url, part, target)
    if not _is_intact(target):
        raise ValueError(f'{target} is damaged: its SHA-256 does not begin with {_hash_in(target.name)}, as its name '
                         'says. Delete it, and it is fetched again')
    return target


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    local = parts.hostname in ('localhost', '127.0.0.1', '::1')
    if not (parts.scheme == 'https' and parts.hostname or parts.scheme == 'http' and local):
        raise ValueError(f'{url}: weights are fetched by https:// only; download the file and give its path')


def _target(url: str) -> Path:
    name, folder = Path(urlsplit(url).path).name, Path(torch.hub.get_dir(), 'checkpoints')
    if name in ('', '..'):
        raise ValueError(f'{url} names no file')
    return folder / name if _hash_in(name) else folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _hash_in(name: str) -> str:
    """The first digits of the SHA-256, as the names of mmcls and torchvision end in it, and not in a date; or ''."""
    found = re.search(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.\w+$', name)
    return found[1] if found else ''


def _is_intact(path: Path, name: str | None = None) -> bool:
    expected = _hash_in(name or path.name)
    if not expected:
        return True
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest().startswith(expected)


@contextmanager
def alone(part: Path) -> Iterator[Path]:
    """Hold the unfinished file against other processes; whoever waited finds it renamed, or goes on with it.

    The lock ends with the process that holds it, however that ends; of a file that stayed empty nothing remains.
    """
    while True:
        with part.open('ab') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info('waiting for another process that fetches %s', part.stem)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, part):
                continue  # finished or given up meanwhile
            try:
                yield part
            finally:
                if _is_at(file, part) and not part.stat().st_size:
                    part.unlink()
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _download(url: str, part: Path, target: Path) -> None:
    logger.info('fetching %s to %s', url, target)
    try:
        resumed = part.stat().st_size > 0
        _with_retries(url, part)
        if resumed and not _is_intact(part, target.name):  # what lay there belonged to something else
            os.truncate(part, 0)  # not unlinked: it is the file that is held
            _with_retries(url, part)
    except _NETWORK as error:
        raise ConnectionError(f'{url} could not be fetched: {_reason(error)}. On a machine that can, download it, and '
                              f'put it at {target}; or give its path instead of the address') from error
    if not _is_intact(part, target.name):
        os.truncate(part, 0)
        raise ValueError(f'{url} gave a file whose SHA-256 does not begin with {_hash_in(target.name)}, as its name '
                         'says; nothing was kept. If you trust it, download it yourself and give its path')
    os.replace(part, target)


def _reason(error: BaseException) -> object:
    return error if isinstance(error, urllib.error.HTTPError) else getattr(error, 'reason', error)


def _with_retries(url: str, part: Path) -> None:
    largest, waits = part.stat().st_size, iter(_WAITS)
    while True:
        try:
            return _attempt(url, part)
        except _NETWORK as error:
            grown = part.stat().st_size > largest
            largest, waits = max(largest, part.stat().st_size), iter(_WAITS) if grown else waits
            wait = next(waits, None)
            if wait is None or not _may_pass(error):
                raise
            logger.warning('%s: %s; another attempt in %g s', url, _reason(error), wait)
            time.sleep(wait)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 416, 429) or error.code >= 500
    # Without a network, or with another server than the name says, waiting would not help.
    return not isinstance(_reason(error), (socket.gaierror, ssl.SSLCertVerificationError))


class _SameRules(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_address(newurl)
        if req.full_url.startswith('https:') and not newurl.startswith('https:'):
            raise ValueError(f'{req.full_url} leads to {newurl}, which is not https://')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(url: str, part: Path) -> None:
    """Add to `part` what is missing; raises `_BrokenOff` where less came than was promised."""
    if not _hash_in(part.stem):  # nothing could tell whether two halves belong together
        os.truncate(part, 0)
    start = part.stat().st_size
    request = urllib.request.Request(url, headers={'User-Agent': 'workspace', 'Accept-Encoding': 'identity'})
    if start:
        request.add_header('Range', f'bytes={start}-')
    try:
        response = urllib.request.build_opener(_SameRules).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if _is_intact(part, part.stem):  # all of it was there already
            return
        os.truncate(part, 0)
        raise
    with response, part.open('r+b') as file:
        if not _goes_on_at(response, start):  # a server that knows no ranges begins anew
            start = 0
        file.truncate(start)
        file.seek(start)
        _copy(response, file, start, part.stem)


def _goes_on_at(response: HTTPResponse, start: int) -> bool:
    if response.status != 206:
        return False
    if not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
        raise _BrokenOff(f'asked for what follows byte {start:,}, got {response.headers.get("Content-Range")}')
    return True


def _copy(response: HTTPResponse, file: BinaryIO, start: int, name: str) -> None:
    length = response.headers.get('Content-Length')
    total = start + int(length) if length else None
    with tqdm.wrapattr(response, 'read', total=total, initial=start, desc=name, disable=None) as counted:
        shutil.copyfileobj(counted, file, _CHUNK)
    file.flush()
    os.fsync(file.fileno())
    if total is not None and file.tell() < total:
        raise _BrokenOff(f'the connection ended after {file.tell():,} of {total:,} bytes')
