"""Downloads against a server on this machine that can break off, ignore ranges, lie about lengths, fail, redirect."""
from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from workspace_lib import download
from workspace_lib.checkpoint import load_checkpoint, read_checkpoint
from workspace_lib.download import fetch

CONTENT = os.urandom(3 << 20)
NAME = f'weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth'


class Server(ThreadingHTTPServer):
    """Behaves as its attributes say; `seen` are the ranges that were asked for."""
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.content = CONTENT
        self.seen: list[str | None] = []
        self.break_after: list[int] = []  # bytes of each reply until there are no more
        self.knows_ranges = True
        self.answers: list[int] = []  # status codes to fail with, one a request
        self.redirect_to = ''
        self.extra_length = 0
        self.range_header = ''
        self.stall_after: list[int] = []  # bytes of each reply, after which nothing more comes
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers['Range']
        server.seen.append(asked)
        if server.redirect_to and self.path.startswith('/moved'):
            self.send_response(302)
            self.send_header('Location', server.redirect_to)
            self.end_headers()
            return
        if server.answers:
            self.send_error(server.answers.pop(0))
            return
        start = int(asked.removeprefix('bytes=').removesuffix('-')) if asked and server.knows_ranges else 0
        if start and start >= len(server.content):
            self.send_error(416)
            return
        self.reply(server.content[start:], start if asked and server.knows_ranges else None)

    def reply(self, body: bytes, start: int | None) -> None:
        self.send_response(200 if start is None else 206)
        self.send_header('Content-Length', str(len(body) + self.server.extra_length))
        if start is not None:
            whole = len(self.server.content)
            self.send_header('Content-Range', self.server.range_header or f'bytes {start}-{whole - 1}/{whole}')
        self.end_headers()
        if self.server.stall_after:
            self.wfile.write(body[:self.server.stall_after.pop(0)])
            self.server.stopped.wait(60)
            return
        self.wfile.write(body[:self.server.break_after.pop(0)] if self.server.break_after else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(download, '_WAITS', (0., 0., 0.))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    return tmp_path / 'hub' / 'checkpoints'


def test_a_file_is_fetched_once_into_torchs_folder(server, cache):
    for _ in range(2):
        assert fetch(f'{server.url}/a/{NAME}?download=1') == cache / NAME
    assert (cache / NAME).read_bytes() == CONTENT
    assert server.seen == [None] and os.listdir(cache) == [NAME]


def test_what_torch_or_mmcv_fetched_is_found(server, cache):
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT)
    assert fetch(f'{server.url}/{NAME}') == cache / NAME and server.seen == []


def test_a_file_that_rotted_in_the_folder_is_not_used(server, cache):
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=rf'{NAME} is damaged.*Delete it, and it is fetched again'):
        fetch(f'{server.url}/{NAME}')


def test_a_broken_download_goes_on_where_it_broke(server, cache, caplog):
    server.break_after = [1 << 20, 1 << 20]
    with caplog.at_level(logging.WARNING, 'workspace_lib'):
        fetch(f'{server.url}/{NAME}')
    assert (cache / NAME).read_bytes() == CONTENT
    assert server.seen == [None, 'bytes=1048576-', 'bytes=2097152-']
    assert 'the connection ended after 1,048,576 of 3,145,728 bytes; another attempt' in caplog.text


def test_a_download_that_was_killed_goes_on_in_the_next_process(server, cache):
    cache.mkdir(parents=True)
    (cache / f'{NAME}.part').write_bytes(CONTENT[:1000])
    fetch(f'{server.url}/{NAME}')
    assert (cache / NAME).read_bytes() == CONTENT and server.seen == ['bytes=1000-']


def test_who_is_killed_holds_up_nobody(server, cache):
    server.stall_after = [2 << 20]
    process = multiprocessing.get_context('fork').Process(target=fetch, args=(f'{server.url}/{NAME}',))
    process.start()
    part, until = cache / f'{NAME}.part', time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == 2 << 20):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.join()
    fetch(f'{server.url}/{NAME}')
    assert (cache / NAME).read_bytes() == CONTENT and server.seen == [None, 'bytes=2097152-']


def test_a_server_that_falls_silent_is_asked_again(server, cache, monkeypatch):
    monkeypatch.setattr(download, '_TIMEOUT', 0.3)
    server.stall_after = [2 << 20]
    fetch(f'{server.url}/{NAME}')
    assert server.seen == [None, 'bytes=2097152-']


def test_the_progress_bar_counts_what_was_there_already(server, cache, monkeypatch):
    bars = []

    class Bar(download.tqdm):
        def __init__(self, **options):
            bars.append({**options, 'moved': 0})
            super().__init__(**options)

        def update(self, n):
            bars[-1]['moved'] += n

    monkeypatch.setattr(download, 'tqdm', Bar)
    server.break_after = [1 << 20]
    fetch(f'{server.url}/{NAME}')
    assert [(bar['initial'], bar['total'], bar['moved']) for bar in bars] == [
        (0, len(CONTENT), 1 << 20), (1 << 20, len(CONTENT), len(CONTENT) - (1 << 20))]
    assert bars[0]['disable'] is None, 'shown on a terminal alone'


def test_a_wrong_certificate_is_not_asked_again():
    wrong = urllib.error.URLError(ssl.SSLCertVerificationError(1, 'certificate verify failed'))
    assert not download._may_pass(wrong) and download._may_pass(urllib.error.URLError(ConnectionRefusedError(111, 'x')))


def test_many_breaks_are_survived_as_long_as_it_grows(server, cache):
    server.break_after = [300_000] * 10
    fetch(f'{server.url}/{NAME}')
    assert len(server.seen) == 11


def test_a_server_without_ranges_begins_anew(server, cache):
    server.knows_ranges, server.break_after = False, [1 << 20]
    fetch(f'{server.url}/{NAME}')
    assert (cache / NAME).read_bytes() == CONTENT and server.seen == [None, 'bytes=1048576-']


def test_a_server_that_always_breaks_at_the_same_place_is_given_up(server, cache):
    server.knows_ranges, server.break_after = False, [1 << 20] * 99
    with pytest.raises(ConnectionError, match='ended after 1,048,576 of 3,145,728 bytes'):
        fetch(f'{server.url}/{NAME}')
    assert len(server.seen) == 4, 'the first grew, and three more did not'
    assert (cache / f'{NAME}.part').stat().st_size == 1 << 20


def test_a_part_of_the_wrong_place_is_not_joined(server, cache):
    server.break_after, server.range_header = [1 << 20], 'bytes 5-9/10'
    with pytest.raises(ConnectionError, match='asked for what follows byte 1,048,576, got bytes 5-9/10'):
        fetch(f'{server.url}/{NAME}')
    assert (cache / f'{NAME}.part').read_bytes() == CONTENT[:1 << 20]


def test_a_part_of_another_file_is_thrown_away(server, cache):
    cache.mkdir(parents=True)
    (cache / f'{NAME}.part').write_bytes(b'?' * 1000)
    fetch(f'{server.url}/{NAME}')
    assert (cache / NAME).read_bytes() == CONTENT and server.seen == ['bytes=1000-', None]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, cache):
    cache.mkdir(parents=True)
    (cache / f'{NAME}.part').write_bytes(CONTENT + b'?')
    fetch(f'{server.url}/{NAME}')
    assert (cache / NAME).read_bytes() == CONTENT


def test_a_part_that_is_the_whole_file_is_taken(server, cache):
    cache.mkdir(parents=True)
    (cache / f'{NAME}.part').write_bytes(CONTENT)
    fetch(f'{server.url}/{NAME}')
    assert (cache / NAME).read_bytes() == CONTENT and server.seen == [f'bytes={len(CONTENT)}-']


def test_a_file_without_a_hash_is_never_put_together_from_two_runs(server, cache):
    server.break_after = [1000, 1000, 1000, 1000]
    with pytest.raises(ConnectionError):
        fetch(f'{server.url}/weights.pth')
    assert fetch(f'{server.url}/weights.pth').read_bytes() == CONTENT
    assert server.seen == [None] * 5


@pytest.mark.parametrize('name', ['weights.pth', 'weights_20210831.pth', 'weights-20210831.pth', 'weights-0a1b.pth'])
def test_a_date_is_no_hash(name, server, cache):
    assert fetch(f'{server.url}/{name}').read_bytes() == CONTENT


def test_two_addresses_of_one_file_name_are_two_files(server, cache):
    first = fetch(f'{server.url}/run1/latest.pth')
    server.content = b'another'
    second, third = fetch(f'{server.url}/run2/latest.pth'), fetch(f'{server.url}/run2/latest.pth?version=2')
    assert len({first, second, third}) == 3 and first.read_bytes() == CONTENT and second.read_bytes() == b'another'
    assert {path.parent.parent for path in (first, second, third)} == {cache}


def test_another_content_than_the_name_says_is_refused(server, cache):
    server.content = b'?' * 1000
    with pytest.raises(ValueError, match=f'{NAME} gave a file whose SHA-256 does not begin with {NAME[8:16]}.*'
                                         'nothing was kept'):
        fetch(f'{server.url}/{NAME}')
    assert os.listdir(cache) == []


def test_a_promised_length_that_never_comes_is_an_error(server, cache):
    server.extra_length = 10
    with pytest.raises(ConnectionError, match=r'ended after 3,145,728 of 3,145,738 bytes'):
        fetch(f'{server.url}/weights.pth')
    assert not list(cache.rglob('weights.pth'))


@pytest.mark.parametrize('code', [403, 404])
def test_what_is_not_there_is_not_asked_for_again(code, server, cache):
    server.answers = [code]
    with pytest.raises(ConnectionError, match=rf'{server.url}/{NAME} could not be fetched: HTTP Error {code}.*'
                                              rf'put it at {cache}/{NAME}; or give its path'):
        fetch(f'{server.url}/{NAME}')
    assert len(server.seen) == 1 and os.listdir(cache) == []


def test_a_server_that_is_busy_is_asked_again(server, cache):
    server.answers = [503, 500, 429]
    fetch(f'{server.url}/{NAME}')
    assert len(server.seen) == 4


def test_a_redirect_is_followed_and_the_name_asked_for_is_kept(server, cache):
    server.redirect_to = f'{server.url}/elsewhere/0b5c'
    assert fetch(f'{server.url}/moved/{NAME}') == cache / NAME


@pytest.mark.parametrize('place', ['http://example.com/x.pth', 'file:///etc/hostname', 'ftp://127.0.0.1/x.pth'])
def test_a_redirect_away_from_https_is_not_followed(place, server, cache):
    server.redirect_to = place
    with pytest.raises((ValueError, ConnectionError), match=f'{place}.*(https:// only|not allowed)'):
        fetch(f'{server.url}/moved/{NAME}')
    assert os.listdir(cache) == []


@pytest.mark.parametrize('url', ['http://example.com/a-00000000.pth', 'ftp://example.com/a.pth', 'https:///a.pth',
                                 'http://127.0.0.1.example.com/a.pth'])
def test_only_https_is_fetched(url, cache):
    with pytest.raises(ValueError, match='fetched by https:// only; download the file and give its path'):
        fetch(url)


@pytest.mark.parametrize('path', ['', '/', '/a/..'])
def test_an_address_that_names_no_file(path, cache):
    with pytest.raises(ValueError, match='names no file'):
        fetch(f'https://example.com{path}')


def test_a_name_cannot_leave_the_folder(server, cache):
    assert fetch(f'{server.url}/a/%2e%2e%2f{NAME}').parent == cache


def test_a_redirect_from_https_stays_with_https():
    request = urllib.request.Request('https://example.com/a.pth')
    with pytest.raises(ValueError, match='leads to http://127.0.0.1/a.pth, which is not https://'):
        download._SameRules().redirect_request(request, None, 302, '', {}, 'http://127.0.0.1/a.pth')


def test_offline_says_what_to_put_where(cache, monkeypatch):
    def no_name(*args, **kwargs):
        raise socket.gaierror(-3, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'create_connection', no_name)
    monkeypatch.setattr(download.time, 'sleep', lambda seconds: pytest.fail('waits although there is no network'))
    monkeypatch.setenv('no_proxy', '*')
    url = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
    with pytest.raises(ConnectionError) as caught:
        read_checkpoint('mmcls://resnet50_8xb32_in1k')
    for text in (url, 'Temporary failure in name resolution', f'put it at {cache}/{url.rpartition("/")[2]}'):
        assert text in str(caught.value)


def test_a_full_disk_is_not_taken_for_the_network(server, cache, monkeypatch):
    def full(fd):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left') as caught:
        fetch(f'{server.url}/{NAME}')
    assert not isinstance(caught.value, ConnectionError) and len(server.seen) == 1


def _fetch_in_a_process(url: str, start: object) -> None:
    start.wait()
    assert fetch(url).read_bytes() == CONTENT


def test_several_processes_fetch_it_once(server, cache):
    context = multiprocessing.get_context('fork')
    start = context.Barrier(8)
    processes = [context.Process(target=_fetch_in_a_process, args=(f'{server.url}/{NAME}', start)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert server.seen == [None] and os.listdir(cache) == [NAME]


def test_weights_from_an_address_load(server, cache, tmp_path):
    layer, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save(dict(state_dict=layer.state_dict()), tmp_path / 'c.pth')
    server.content = (tmp_path / 'c.pth').read_bytes()
    load_checkpoint(other, f'{server.url}/c-{hashlib.sha256(server.content).hexdigest()[:8]}.pth', strict=True)
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize('address', ['s3://bucket/a.pth', 'pavi://a', 'mmpretrain://resnet50'])
def test_an_unknown_kind_of_address_lists_the_known_ones(address):
    with pytest.raises(ValueError, match=rf'{address}: .*:// is unknown; known: a path, https://, mmcls://.*packaged:'):
        read_checkpoint(address)
