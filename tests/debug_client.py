"""The editor's side of the Debug Adapter Protocol, in few words: launch, one breakpoint, where it stops."""
from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Any


class DebugClient:
    """``debugpy``'s adapter as a child process; messages are JSON with a Content-Length header."""

    def __init__(self, folder: Path) -> None:
        self.adapter = subprocess.Popen([sys.executable, '-m', 'debugpy.adapter', '--log-dir', str(folder)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.messages: Queue[dict[str, Any]] = Queue()
        self.number = 0
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> DebugClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.send('disconnect', terminateDebuggee=True)
        try:
            self.adapter.wait(10)
        except subprocess.TimeoutExpired:
            self.adapter.kill()

    def send(self, command: str, **arguments: Any) -> None:
        self.number += 1
        body = json.dumps({'seq': self.number, 'type': 'request', 'command': command, 'arguments': arguments}).encode()
        assert self.adapter.stdin
        self.adapter.stdin.write(b'Content-Length: %d\r\n\r\n' % len(body) + body)
        self.adapter.stdin.flush()

    def _read(self) -> None:
        stream = self.adapter.stdout
        assert stream
        while header := stream.readline():
            length = int(header.split(b':')[1])
            stream.readline()
            self.messages.put(json.loads(stream.read(length)))

    def wait(self, end: float, **wanted: Any) -> dict[str, Any]:
        """The next message with these fields; others are passed over."""
        while time.monotonic() < end:
            try:
                message = self.messages.get(timeout=1)
            except Empty:
                continue
            assert message.get('success', True), message.get('message')
            if all(message.get(key) == value for key, value in wanted.items()):
                return message
        raise TimeoutError(f'no message with {wanted}')

    def launch(self, configuration: dict[str, Any]) -> None:
        self.send('initialize', adapterID='debugpy', linesStartAt1=True, columnsStartAt1=True, pathFormat='path')
        self.send('launch', **configuration)
        self.wait(time.monotonic() + 60, type='event', event='initialized')

    def breakpoint(self, source: Path, line: int) -> None:
        self.send('setBreakpoints', source={'path': str(source)}, breakpoints=[{'line': line}])
        self.send('configurationDone')

    def stopped_at(self, end: float) -> dict[str, Any]:
        """The innermost frame where the program stops: ``source.path``, ``line``, ``name``."""
        stopped = self.wait(end, type='event', event='stopped')
        self.send('stackTrace', threadId=stopped['body']['threadId'], levels=1)
        return self.wait(end, type='response', command='stackTrace')['body']['stackFrames'][0]
