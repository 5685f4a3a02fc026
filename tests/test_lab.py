"""A real JupyterLab on a root of its own: token, port, life and death; and the choice of the lane, faked."""
from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace_lib.tools import lab as lab_module
from workspace_lib.tools.lab import Lab, LabError, choose_lane, find_port, get
from workspace_lib.tools.processes import process_start

needs_jupyter = pytest.mark.skipif(importlib.util.find_spec('jupyterlab') is None,
                                   reason='jupyterlab is not installed (extra: lab)')


@pytest.fixture(autouse=True)
def no_port_wish(monkeypatch):
    monkeypatch.delenv('JUPYTER_PORT', raising=False)


@pytest.fixture(scope='module')
def running(tmp_path_factory) -> Iterator[tuple[Lab, str]]:
    """A lab whose root holds two notebooks, and the URL that ``up`` gave."""
    root = tmp_path_factory.mktemp('lab root')  # with a space: paths are quoted where they must be
    (root / 'notebooks').mkdir()
    empty = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    for name in ('01_config.ipynb', '00_tour.ipynb'):
        (root / 'notebooks' / name).write_text(empty)
    lab = Lab(root)
    os.environ.pop('JUPYTER_PORT', None)
    try:
        yield lab, lab.up(device='cpu')
    finally:
        lab.down()


@needs_jupyter
class TestRunning:
    def test_url_opens_the_first_notebook_on_loopback(self, running):
        lab, url = running
        port = lab.running()['port']
        assert url == f'http://127.0.0.1:{port}/lab/tree/notebooks/00_tour.ipynb?token={lab.token()}'

    def test_token_file_is_private_and_one_line_without_newline(self, running):
        lab, _ = running
        assert stat.S_IMODE(lab.token_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(lab.folder.stat().st_mode) == 0o700
        token = lab.token_file.read_bytes()
        assert len(token) >= 32 and token == token.strip()

    @pytest.mark.parametrize('token, status', [('', 403), ('wrong', 403), (None, 200)])
    def test_only_the_token_gets_in(self, running, token, status):
        lab, _ = running
        token = lab.token() if token is None else token
        assert get(lab.running()['port'], '/api/status', token)[0] == status

    def test_health_needs_no_token(self, running):
        assert get(running[0].running()['port'], '/api')[0] == 200

    def test_post_without_xsrf_token_is_refused(self, running):
        """A cookie alone, as a foreign page in the same browser would send it, must not start a kernel."""
        lab, url = running
        browser = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                              urllib.request.HTTPCookieProcessor())
        browser.open(url, timeout=10).close()
        with pytest.raises(urllib.error.HTTPError, match='403'):
            browser.open(url.split('/lab')[0] + '/api/kernels', data=b'{}', timeout=10)
        assert get(lab.running()['port'], '/api/kernels', lab.token()) == (200, [])

    def test_listens_on_loopback_alone(self, running):
        port = f'{running[0].running()["port"]:04X}'
        rows = [line.split() for table in ('tcp', 'tcp6')
                for line in Path(f'/proc/net/{table}').read_text().splitlines()[1:]]
        listening = [row[1] for row in rows if row[3] == '0A' and row[1].endswith(f':{port}')]
        assert listening == [f'0100007F:{port}']

    def test_token_is_in_no_command_line_and_not_in_the_log(self, running):
        lab, _ = running
        token = lab.token().encode()
        for file in Path('/proc').glob('[0-9]*/cmdline'):
            try:
                assert token not in file.read_bytes(), file
            except OSError:
                continue  # ended meanwhile
        assert token not in lab.log_file.read_bytes()

    def test_second_up_returns_the_same_server(self, running, capsys):
        lab, url = running
        pid = lab.running()['pid']
        assert lab.up() == url
        assert lab.running()['pid'] == pid
        assert 'Already running' in capsys.readouterr().out

    def test_up_on_another_device_than_the_running_one_is_an_error(self, running, monkeypatch):
        monkeypatch.setattr(lab_module, 'choose_lane', lambda *_: ('cuda', ''))
        with pytest.raises(LabError, match='make down'):
            running[0].up(device='gpu')

    def test_what_was_asked_for_is_noted_for_a_restart(self, running):
        assert running[0].noted()['asked'] == 'cpu' and running[0].noted()['port'] == running[0].running()['port']

    def test_taken_port_means_the_next_one(self, running):
        assert find_port() != running[0].running()['port']

    def test_status_tells_kernels_but_not_the_token(self, running):
        lab, _ = running
        said = lab.status()
        assert 'on cpu' in said and '0 kernels' in said
        assert lab.token() not in said

    def test_kernel_is_of_this_python(self, running):
        lab, _ = running
        _, specs = get(lab.running()['port'], '/api/kernelspecs', lab.token())
        assert list(specs['kernelspecs']) == ['python3']

    def test_no_news_and_no_update_check(self, running):
        lab, _ = running
        path = '/lab/api/settings/@jupyterlab/apputils-extension:notification'
        _, settings = get(lab.running()['port'], path, lab.token())
        defaults = settings['schema']['properties']
        assert defaults['fetchNews']['default'] == 'false'
        assert defaults['checkForUpdates']['default'] is False


@needs_jupyter
class TestDown:
    def start_kernel(self, lab: Lab) -> int:
        """Start a kernel that started a process of its own; return that process."""
        state = lab.running()
        connection = http.client.HTTPConnection('127.0.0.1', state['port'], timeout=30)
        connection.request('POST', '/api/kernels', b'{}', {'Authorization': f'token {lab.token()}'})
        kernel = json.loads(connection.getresponse().read())['id']
        from jupyter_client import BlockingKernelClient
        client = BlockingKernelClient(connection_file=str(lab.runtime / f'kernel-{kernel}.json'))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        code = 'from subprocess import *; print(Popen(["sleep", "600"], start_new_session=True).pid)'
        said = []
        client.execute_interactive(code, timeout=60,
                                   output_hook=lambda m: said.append(m['content'].get('text', '')))
        client.stop_channels()
        return int(''.join(said))

    @pytest.mark.parametrize('crashed', [False, True])
    def test_leaves_no_process(self, tmp_path, crashed):
        """The server, its kernels and what those started are gone, even when the server had crashed."""
        lab = Lab(tmp_path)
        lab.up(device='cpu')
        pid = lab.running()['pid']
        child = self.start_kernel(lab)
        kernels = lab._kernels()
        assert len(kernels) >= 2 and child in kernels
        if crashed:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while lab.running() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert lab.status() is None
        assert lab.down()
        assert not [p for p in [pid, *kernels] if process_start(p)]
        assert not lab.down()


class TestState:
    def test_pid_of_another_process_does_not_count_as_running(self, tmp_path):
        """After a reboot the number may belong to anybody."""
        lab = Lab(tmp_path)
        lab.folder.mkdir()
        lab.state_file.write_text(json.dumps(dict(pid=os.getpid(), start='1', port=1, device='cpu', since=0)))
        assert lab.running() is None
        assert not lab.down()

    @pytest.mark.parametrize('text', ['', 'nonsense', '{}', '[]'])
    def test_spoilt_state_file_counts_as_not_running(self, tmp_path, text):
        lab = Lab(tmp_path)
        lab.folder.mkdir()
        lab.state_file.write_text(text)
        assert lab.running() is None

    def test_empty_token_is_refused(self, tmp_path):
        lab = Lab(tmp_path)
        lab.folder.mkdir()
        lab.token_file.write_text('\n')
        with pytest.raises(LabError, match='is empty'):
            lab.up(device='cpu')

    def test_edited_token_file_is_mended(self, tmp_path):
        lab = Lab(tmp_path)
        lab.folder.mkdir()
        lab.token_file.write_text('mine\n')
        lab.token_file.chmod(0o644)
        assert lab.token(create=True) == 'mine'
        assert lab.token_file.read_text() == 'mine'
        assert stat.S_IMODE(lab.token_file.stat().st_mode) == 0o600

    def test_crash_at_start_shows_the_log(self, tmp_path, monkeypatch):
        crash = [sys.executable, '-c', 'raise SystemExit("no such option: --colour")']
        monkeypatch.setattr(lab_module, 'server_command', lambda *_: crash)
        lab = Lab(tmp_path)
        with pytest.raises(LabError, match='ended at its start(?s:.*)no such option: --colour'):
            lab.up(device='cpu')
        assert not lab.state_file.exists()

    def test_server_that_never_answers_is_stopped(self, tmp_path, monkeypatch):
        monkeypatch.setattr(lab_module, 'server_command', lambda *_: ['sleep', '60'])
        started = []
        monkeypatch.setattr(lab_module, 'process_start', lambda p: started.append(p) or process_start(p))
        lab = Lab(tmp_path)
        with pytest.raises(LabError, match='not ready after 1 s'):
            lab.up(device='cpu', seconds=1)
        assert process_start(started[0]) is None

    @needs_jupyter
    def test_configuration_that_drops_the_token_is_noticed(self, tmp_path, monkeypatch):
        real = lab_module.server_command
        monkeypatch.setattr(lab_module, 'server_command', lambda *a: [*real(*a), '--IdentityProvider.token='])
        lab = Lab(tmp_path)
        with pytest.raises(LabError, match='without the token'):
            lab.up(device='cpu')
        assert lab.running() is None

    def test_url_and_status_without_a_server(self, tmp_path):
        with pytest.raises(LabError, match='make up'):
            Lab(tmp_path).url()
        assert Lab(tmp_path).status() is None


class TestPort:
    def test_wanted_port_that_is_taken_is_an_error(self, monkeypatch):
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            taken.listen()
            monkeypatch.setenv('JUPYTER_PORT', str(taken.getsockname()[1]))
            with pytest.raises(LabError, match='is taken'):
                find_port()

    def test_wanted_port_that_is_no_number_is_an_error(self, monkeypatch):
        monkeypatch.setenv('JUPYTER_PORT', 'http')
        with pytest.raises(LabError, match='JUPYTER_PORT=http'):
            find_port()


class TestLane:
    """``make up`` says which lane and why, or what is missing: every host is faked."""

    @pytest.fixture
    def host(self, monkeypatch):
        def fake(driver: bool, cuda: tuple[str, str] = ('', '')):
            monkeypatch.setattr(lab_module, 'nvidia_driver_loaded', lambda: driver)
            monkeypatch.setattr(lab_module, 'probe_cuda', lambda: cuda)
        return fake

    def test_it_says_why_there_is_no_container(self, host):
        host(driver=False)
        said = choose_lane('cpu', 'no Docker on this host')[1]
        assert said.startswith('Lane: local environment (no Docker on this host), ')

    def test_gpu_without_a_driver_is_refused_with_the_way_on(self, host):
        host(driver=False)
        with pytest.raises(LabError, match='no NVIDIA driver(?s:.*)DEVICE=cpu'):
            choose_lane('gpu')

    def test_host_without_gpu_runs_on_the_cpu_and_says_so(self, host):
        host(driver=False)
        device, why = choose_lane()
        assert device == 'cpu' and 'no NVIDIA driver' in why

    def test_gpu_is_used_and_named(self, host):
        host(driver=True, cuda=('NVIDIA H100', ''))
        device, why = choose_lane()
        assert device == 'cuda' and 'NVIDIA H100' in why

    def test_gpu_that_torch_cannot_use_is_no_silent_fallback(self, host):
        host(driver=True, cuda=('', 'RuntimeError: The NVIDIA driver on your system is too old'))
        with pytest.raises(LabError, match='too old(?s:.*)DEVICE=cpu'):
            choose_lane()

    def test_cpu_by_name_asks_nobody(self, host):
        host(driver=True)
        assert choose_lane('cpu')[0] == 'cpu'


def test_lab_needs_the_standard_library_alone():
    """``make status`` answers at once."""
    code = ('import sys, workspace_lib.tools.lab; '
            'print([m for m in ("torch", "numpy", "cv2", "yaml", "jupyter_core") if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
