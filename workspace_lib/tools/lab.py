"""JupyterLab in the background, on loopback and behind a token: ``python -m workspace_lib.tools.lab up``.

In: the checkout, the Python that runs this. Out: a server; its token, log and state lie in ``.lab/``.
Nothing but the standard library is imported, so that ``make status`` answers at once.
"""
from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .processes import end_processes, process_start, process_table, tail, write_private

HOST = '127.0.0.1'
FIRST_PORT = 8888
CHECKOUT = Path(__file__).resolve().parents[2]
# A person's own settings that would send the server or its kernels to another Python, port or token.
FOREIGN_VARIABLES = ('JUPYTER', 'PYTHONPATH', 'PYTHONHOME', 'MPLBACKEND')


class LabError(Exception):
    """What went wrong and the way out, in words for the person at the terminal."""


class Lab:
    """One JupyterLab for one checkout.

    Args:
        root: the folder that the lab shows; ``root/.lab`` (mode 0700) holds everything it writes.
    """

    def __init__(self, root: Path = CHECKOUT) -> None:
        self.root = root.resolve()
        self.folder = self.root / '.lab'
        self.token_file = self.folder / 'token'
        self.state_file = self.folder / 'state.json'
        self.log_file = self.folder / 'jupyter.log'
        self.runtime = self.folder / 'runtime'

    # --- what a caller asks for -------------------------------------------------------------------

    def up(self, device: str = 'auto', because: str = '', seconds: float = 90) -> str:
        """Start the server unless it runs, wait until it is healthy, and return its URL, token included.

        Raises:
            LabError: it cannot be had as asked, ended at its start, or was not healthy within ``seconds``.
        """
        chosen, why = choose_lane(device, because)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with self._locked():
            if state := self.running():
                if device != 'auto' and state['device'] != chosen:
                    raise LabError(f'a lab on {state["device"]} is already running (pid {state["pid"]}); '
                                   'stop it first: make down')
                print(f'Already running (pid {state["pid"]}).', flush=True)
                return self.url(state)
            print(why, flush=True)
            token = self.token(create=True)
            state = self._start(chosen, find_port(), device)
            try:
                self._wait(state, token, seconds)
            except BaseException:  # Ctrl-C too: leave nothing half-started behind
                self._stop(state)
                raise
            return self.url(state)

    def down(self) -> bool:
        """Stop the server and its kernels, those of a crashed server included. False if there were none."""
        state = self.running()
        if not state and not self._kernels():
            return False
        self._stop(state)
        return True

    def url(self, state: dict[str, Any] | None = None) -> str:
        """The address to open, with the token. Raises LabError when nothing runs."""
        state = state or self.running()
        if not state:
            raise LabError('JupyterLab is not running; start it with: make up')
        return f'{address(state)}lab{self._first_page()}?token={urllib.parse.quote(self.token())}'

    def status(self) -> str | None:
        """One line about the server, without the token, and one a kernel; None when it does not run."""
        state = self.running()
        if not state:
            return None
        age = spoken(time.time() - state['since'])
        where = f'{address(state)} (pid {state["pid"]}, on {state["device"]}, up {age})'
        code, sessions = get(state['port'], '/api/sessions', self.token())
        if code != 200:
            return f'JupyterLab runs at {where}, but does not answer; its log: make logs'
        lines = [f'JupyterLab runs at {where}, {len(sessions)} kernel{"s"[:len(sessions) != 1]}']
        lines += [f'  {s["path"]}  {s["kernel"]["name"]}, {s["kernel"]["execution_state"]}' for s in sessions]
        return '\n'.join(lines)

    def running(self) -> dict[str, Any] | None:
        """The state (pid, port, device, since) of the server if that very process is alive."""
        state = self.noted()
        return state if state and process_start(state['pid']) == state['start'] else None

    def noted(self) -> dict[str, Any] | None:
        """The state of the last server that was not stopped by us: it runs, or it crashed, or the machine did."""
        try:
            state = json.loads(self.state_file.read_text())
            return state if {'pid', 'start', 'port', 'device'} <= set(state) else None
        except (FileNotFoundError, ValueError, TypeError):  # none, or spoilt
            return None

    def token(self, create: bool = False) -> str:
        """Read the token, after making it (once, mode 0600) if asked to.

        Jupyter takes the file's content as it is, so a newline that an editor left is removed.
        """
        if create and not self.token_file.exists():
            write_private(self.token_file, secrets.token_hex(24))
        written = self.token_file.read_text()
        token = written.strip()
        if not token:
            raise LabError(f'{self.token_file} is empty, which would let anyone in; '
                           'delete it and call make up again')
        if create and (token != written or self.token_file.stat().st_mode & 0o077):
            write_private(self.token_file, token)
        return token

    # --- the process ------------------------------------------------------------------------------

    def _start(self, device: str, port: int, asked: str) -> dict[str, Any]:
        if self.log_file.exists():
            self.log_file.replace(self.log_file.with_suffix('.log.1'))
        self.runtime.mkdir(mode=0o700, exist_ok=True)
        log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(server_command(self.root, port), cwd=self.root,
                                       env=self._environment(device), stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True)
        finally:
            os.close(log)
        state = {'pid': process.pid, 'start': process_start(process.pid), 'port': port, 'device': device,
                 'asked': asked, 'since': time.time()}
        write_private(self.state_file, json.dumps(state))
        process.returncode = 0  # it outlives us: no "subprocess is still running" when this object goes
        return state

    def _environment(self, device: str) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN_VARIABLES)}
        env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env.get('PATH', os.defpath)])
        # The name of the file only: the token itself is in nobody's argv or environment.
        env['JUPYTER_TOKEN_FILE'] = str(self.token_file)
        env['JUPYTER_CONFIG_PATH'] = str(CHECKOUT / 'docker' / 'jupyter')
        # Kernels, settings and extensions of another installation in the home folder stay out of this one.
        env['JUPYTER_CONFIG_DIR'] = str(self.folder / 'config')
        env['JUPYTER_DATA_DIR'] = str(self.folder / 'data')
        env['JUPYTER_RUNTIME_DIR'] = str(self.runtime)
        if sys.prefix != sys.base_prefix:
            env['VIRTUAL_ENV'] = sys.prefix
        if device == 'cpu':
            env['CUDA_VISIBLE_DEVICES'] = ''
        return env

    def _wait(self, state: dict[str, Any], token: str, seconds: float) -> None:
        """Return once the server answers, to the token alone."""
        port = state['port']
        end = time.monotonic() + seconds
        while get(port, '/api')[0] != 200:
            if process_start(state['pid']) != state['start']:
                raise LabError(f'JupyterLab ended at its start. {self._end_of_log()}')
            if time.monotonic() > end:
                raise LabError(f'JupyterLab was not ready after {seconds:g} s and is stopped. '
                               f'{self._end_of_log()}')
            time.sleep(0.2)
        if get(port, '/api/status')[0] == 200:
            raise LabError('JupyterLab let a visitor in without the token, so it is stopped. A configuration '
                           'on this machine switches the token off; see the folders that '
                           '.venv/bin/jupyter --paths lists under config')
        if get(port, '/api/status', token)[0] != 200:
            raise LabError(f'what answers on port {port} refuses our token: another Jupyter? '
                           'Choose a port: make up JUPYTER_PORT=8899')

    def _stop(self, state: dict[str, Any] | None) -> None:
        # Kernels lead sessions of their own, so the server's process group does not hold them.
        kernels = self._kernels()
        if state:
            server = {state['pid']: state['start']}
            if not end_processes(server, signal.SIGTERM, 10):
                end_processes(server, signal.SIGKILL, 5)
        end_processes(kernels, signal.SIGTERM, 3) or end_processes(kernels, signal.SIGKILL, 5)
        self.state_file.unlink(missing_ok=True)

    def _end_of_log(self) -> str:
        return f'The end of {self.log_file}:\n{tail(self.log_file, 20)}'

    def _kernels(self) -> dict[int, str]:
        """Kernels of this lab and what they started: pid -> start. Their argv names our runtime folder."""
        mark = os.fsencode(f'{self.runtime}{os.sep}')
        parents = process_table()
        found = {pid for pid, (_, command) in parents.items() if mark in command}
        while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
            found |= more
        return {pid: start for pid in found - {os.getpid()} if (start := process_start(pid))}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One ``up`` at a time; the second finds the first one's server."""
        with open(self.folder / 'lock', 'w') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _first_page(self) -> str:
        notebooks = sorted((self.root / 'notebooks').glob('*.ipynb'))
        if not notebooks:
            return ''
        return '/tree/' + urllib.parse.quote(str(notebooks[0].relative_to(self.root)))


# --- which lane -------------------------------------------------------------------------------


def choose_lane(device: str = 'auto', because: str = '') -> tuple[str, str]:
    """Return (``cpu`` or ``cuda``, one line that says which lane it is and why).

    Args:
        because: why it is this lane and no container, as `lanes.choose_lane` says it.

    Raises:
        LabError: what was asked for cannot be had; or a driver is loaded, but PyTorch cannot use the GPU.
    """
    lane = f'Lane: local environment{f" ({because})" if because else ""}, '
    if device == 'cpu':
        return 'cpu', f'{lane}on the CPU (DEVICE=cpu)'
    if not nvidia_driver_loaded():
        if device == 'gpu':
            raise LabError('DEVICE=gpu: no NVIDIA driver is loaded on this host. Install the driver '
                           '(scripts/setup_ubuntu.sh driver), or go on with: make up DEVICE=cpu')
        return 'cpu', f'{lane}on the CPU (no NVIDIA driver is loaded on this host)'
    name, complaint = probe_cuda()
    if not name:
        raise LabError(f'this host has an NVIDIA driver, but PyTorch cannot use the GPU: {complaint}\n'
                       'Mend that (often: a newer driver), or go on with: make up DEVICE=cpu')
    return 'cuda', f'{lane}on {name}'


def nvidia_driver_loaded() -> bool:
    return Path('/proc/driver/nvidia/version').exists() or Path('/usr/lib/wsl/lib/nvidia-smi').exists()


def probe_cuda() -> tuple[str, str]:
    """(name of the first GPU or '', what PyTorch says), from a process of its own: torch is a slow import."""
    code = 'import torch; torch.cuda.init(); print(torch.cuda.get_device_name(0))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip(), ''
    return '', (done.stderr.strip().splitlines() or ['no reason given'])[-1]


# --- the server -------------------------------------------------------------------------------


def server_command(root: Path, port: int) -> list[str]:
    """The command line: readable by every user of the machine, so nothing secret is in it."""
    # Without a terminal of its own Jupyter starts login shells, which reset PATH and lose the environment.
    shell = json.dumps({'shell_command': [os.environ.get('SHELL') or '/bin/bash']})
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', f'--ServerApp.ip={HOST}',
               f'--ServerApp.port={port}', '--ServerApp.port_retries=0', f'--ServerApp.root_dir={root}',
               f'--ServerApp.terminado_settings={shell}']
    return [*command, '--allow-root'] if os.geteuid() == 0 else command


def find_port() -> int:
    """JUPYTER_PORT where it is set, else 8888 or the next free one. Raises LabError when there is none."""
    wanted = os.environ.get('JUPYTER_PORT')
    if wanted:
        if not wanted.isdigit() or not 0 < int(wanted) < 65536:
            raise LabError(f'JUPYTER_PORT={wanted} is no port number (1 to 65535)')
        if not port_free(int(wanted)):
            raise LabError(f'JUPYTER_PORT={wanted} is taken by another program, or not allowed. '
                           f'Find it with: ss -ltnp "sport = :{wanted}"; or choose another')
        return int(wanted)
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        if port_free(port):
            return port
    raise LabError(f'no free port from {FIRST_PORT} to {FIRST_PORT + 99}; '
                   'choose one: make up JUPYTER_PORT=9900')


def port_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: a port whose last connection is still in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def get(port: int, path: str, token: str = '') -> tuple[int, Any]:
    """GET from our server, past any proxy settings: (status, parsed JSON). (0, None) when nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request('GET', path, headers={'Authorization': f'token {token}'} if token else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None
    finally:
        connection.close()


def address(state: dict[str, Any]) -> str:
    return f'http://{HOST}:{state["port"]}/'


def spoken(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return f'{int(seconds)} s'
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60} min'


# --- command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done; 1 failed, the reason on stderr; 3 ``status`` of a lab that does not run."""
    parser = argparse.ArgumentParser(prog='python -m workspace_lib.tools.lab',
                                     description='JupyterLab on loopback.')
    parser.add_argument('action', choices=['up', 'down', 'status', 'logs', 'url'])
    parser.add_argument('--root', type=Path, default=CHECKOUT, help='folder to show (the checkout)')
    parser.add_argument('--device', choices=['auto', 'cpu', 'gpu'], default='auto')
    parser.add_argument('--why', default='', help='up: why there is no container, for the line it prints')
    parser.add_argument('--follow', '-f', action='store_true', help='logs: keep printing')
    args = parser.parse_args(argv)
    try:
        return run(args)
    except LabError as error:
        print(f'make {args.action}: {error}', file=sys.stderr)
    except PermissionError as error:
        print(f'make {args.action}: {error}. It belongs to another user (was make called with sudo?): '
              f'sudo chown -R "$(id -un)" "{args.root / ".lab"}"', file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def run(args: argparse.Namespace) -> int:
    lab = Lab(args.root)
    if args.action == 'up':
        print(f'JupyterLab is ready:\n\n    {lab.up(args.device, args.why)}\n\nStop it with: make down')
    elif args.action == 'down':
        print('Stopped.' if lab.down() else 'Nothing was running.')
    elif args.action == 'url':
        print(lab.url())
    elif args.action == 'status':
        said = lab.status()
        print(said or 'JupyterLab is not running; start it with: make up')
        return 0 if said else 3
    elif args.follow:
        os.execvp('tail', ['tail', '-n', '100', '-F', str(lab.log_file)])
    else:
        print(tail(lab.log_file, 100))
    return 0


if __name__ == '__main__':
    sys.exit(main())
