"""Large files over HTTP that go on where a download broke off.

In: an address and the size that its publisher names. Out: `NAME.part` with all its bytes; whether they are the right
ones, an MD5 says. The core's fetching of weights is another matter: https alone, and a hash in the name.
"""
from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from .errors import PrepareError, Status

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before another attempt; counted anew whenever the file has grown
_NETWORK = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def download(url: str, part: Path, size: int | None, show_progress: bool = True) -> None:
    """Fetch what `part` lacks of the `size` bytes at `url`.

    Raises:
        PrepareError: it cannot be had; what has come stays, for the next run.
    """
    waits = iter(WAITS)
    while True:
        before = _size(part)
        try:
            return _attempt(url, part, size, show_progress)
        except _NETWORK as error:
            waits = iter(WAITS) if _size(part) > before else waits
            wait = next(waits, None)
            if wait is None or isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                raise PrepareError(f'{url} could not be fetched: {getattr(error, "reason", None) or error}. '
                                   f'{_size(part):,} bytes are kept in {part}; run the same command again to go on, '
                                   'name a --mirror, or put the archive there by hand', Status.DOWNLOAD) from error
            time.sleep(wait)


def check_address(mirror: str) -> None:
    """Raise unless files can be fetched below it."""
    try:
        parts = urllib.parse.urlsplit(mirror)
        if parts.scheme in ('http', 'https') and parts.hostname and parts.port != 0:
            return
        why = 'it begins with neither http:// nor https://, or names no host'
    except ValueError as error:
        why = str(error)
    raise PrepareError(f'--mirror {mirror}: {why}; write it as http://host/coco', Status.USAGE)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, part: Path, size: int | None, show_progress: bool) -> None:
    start = _size(part)
    if size is not None and start >= size:
        return
    request = urllib.request.Request(url, headers={'User-Agent': 'workspace-lib', 'Accept-Encoding': 'identity'})
    if start:
        request.add_header('Range', f'bytes={start}-')
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # a server that knows no ranges begins anew
            start = 0
        elif not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
            raise http.client.HTTPException(f'asked for the bytes from {start:,} on, got those of '
                                            f'{response.headers.get("Content-Range")}')
        length = response.headers.get('Content-Length')
        total = start + int(length) if length else size
        if size is not None and total != size:
            raise PrepareError(f'{url} has {total:,} bytes, the official file has {size:,}; nothing was fetched. '
                               'Is the --mirror complete?', Status.DOWNLOAD)
        bar = tqdm(total=total, initial=start, desc=part.stem, unit='B', unit_scale=True, disable=not show_progress)
        with part.open('ab' if start else 'wb') as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                file.flush()  # a kill loses no more than the next piece
                bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise ConnectionError(f'the connection ended after {_size(part):,} of {total:,} bytes')
