"""What tests of processes share: the command over a configuration, and a look at what it forked."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 30  # seconds before something counts as hung; nothing waits that long when all is well

HANDLERS = """
import threading
from srvkit import Lines, MessageHandler, hookimpl

class Hold(MessageHandler):
    '''Answer "hold" when a line is written to the pipe named `release`, "endless" never, else at once.'''

    framing = Lines()

    def handle_message(self, message):
        if message in (b"hold", b"endless"):
            self.send(b"holding")
        if message == b"hold":
            with open("release") as pipe:
                pipe.read()
        elif message == b"endless":
            threading.Event().wait()
        return b"done"

@hookimpl
def srvkit_handlers():
    return {"hold": Hold}
"""


@pytest.fixture
def run(tmp_path: Path, start: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`run(servers, drain_timeout="1s")`: `srvkit run` with the handler `hold`, and more in plugin.py."""
    os.mkfifo(tmp_path / "release")  # to be written to, or nothing that holds ever ends
    with contextlib.ExitStack() as stack:

        def run(servers: str, plugin: str = "", drain_timeout: str = "60s", **settings: Any) -> Any:
            (tmp_path / "plugin.py").write_text(HANDLERS + plugin)
            general = f'[srvkit]\nplugins = ["plugin.py"]\ndrain_timeout = "{drain_timeout}"\n'
            (tmp_path / "srvkit.toml").write_text(general + servers)
            return stack.enter_context(start("-m", "srvkit", "run", folder=tmp_path, **settings))

        yield run


@pytest.fixture
def say(client: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`say(address, b"hold")`: say a line to a stream server that answers; return the socket's file."""
    with contextlib.ExitStack() as stack:

        def say(address: str, line: bytes) -> Any:
            sock = stack.enter_context(client(address, tmp_path))
            file = stack.enter_context(sock.makefile("rwb", buffering=0))
            file.write(line + b"\n")
            assert file.readline() == (b"holding\n" if line in (b"hold", b"endless") else b"done\n")
            return file

        yield say


@pytest.fixture
def offspring() -> Iterator[Callable[..., Any]]:
    """`ended = offspring(pid)`: what a process has forked by now; `ended()` waits for its end."""
    descriptors: list[int] = []

    def offspring(pid: int, count: int) -> Callable[[], None]:
        pids = _below(pid)
        assert len(pids) == count
        fds = [os.pidfd_open(child) for child in pids]
        descriptors.extend(fds)

        def ended() -> None:
            for child, fd in zip(pids, fds, strict=True):
                assert select.select([fd], [], [], PATIENCE)[0], f"{child} lives on"

        return ended

    yield offspring
    for fd in descriptors:
        os.close(fd)


def _below(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [*children, *(other for child in children for other in _below(child))]
