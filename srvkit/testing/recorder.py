"""What a server's handlers do, seen by the program that started it: what they raise, whose requests end.

A plugin object with a hook, for `embed.start`. It knows nothing of servers, and nothing of tests.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from srvkit.net.event_loop import wait_for
from srvkit.plugins.hookspecs import hookimpl

CHUNK = 65536  # bytes of one read


class Recorder:
    """Notes what handlers raise and whose requests have ended, also in forked children.

    Another process sends a line for each, and leaves exceptions as files; from this one an empty line
    wakes up who waits. Lines are lost where nobody reads for hundreds of them.
    """

    def __init__(self, folder: Path) -> None:
        self.errors: list[BaseException] = []
        self.ended: set[str] = set()  # their clients' own addresses, as repr writes them
        self._folder = folder
        self._pid = os.getpid()
        self._news, self._pen = socket.socketpair()
        self._news.setblocking(False)
        self._pen.setblocking(False)
        self._partial = b""

    def close(self) -> None:
        self._news.close()
        self._pen.close()

    @hookimpl
    def srvkit_error(self, error: BaseException) -> None:
        if os.getpid() == self._pid:
            self.errors.append(error)
        else:
            _leave(error, self._folder)
        self._send("")

    def request_ended(self, peer: Any) -> None:
        """Note that a request is over, handled or refused; `peer` is the address of who has connected."""
        name = repr(peer)
        if os.getpid() == self._pid:
            self.ended.add(name)
            name = ""
        self._send(name)

    def read(self) -> None:
        """Take in what has happened so far, without waiting."""
        with contextlib.suppress(BlockingIOError):
            while data := self._news.recv(CHUNK):
                *lines, self._partial = (self._partial + data).split(b"\n")
                self.ended.update(line.decode() for line in lines if line)
        for file in sorted(self._folder.glob("*.raised")):
            self.errors.append(pickle.loads(file.read_bytes()))
            file.unlink()

    def wait(self, condition: Callable[[], bool], timeout: float) -> None:
        """Return when the condition holds or a handler has raised; raises TimeoutError after `timeout` s."""
        deadline = monotonic() + timeout
        self.read()
        while not (condition() or self.errors):
            if not wait_for(self._news.fileno(), max(0.0, deadline - monotonic())):
                raise TimeoutError(f"the handler is not done after {timeout:g} s")
            self.read()

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody has read for long, or the server is stopped
            self._pen.send(f"{line}\n".encode())


def _leave(error: BaseException, folder: Path) -> None:
    """Put an exception where the test's process finds it, under its final name only when it is whole."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # whatever a stranger's __reduce__ does
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    number, name = tempfile.mkstemp(dir=folder)
    with open(number, "wb") as file:
        file.write(data)
    os.rename(name, f"{name}.raised")
