"""After a rename and USR1 all write to the new log: workers, their children, and what those fork."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Eventually
from tests.process.conftest import Available, Managed

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]

LOGS = """
import logging, os
from srvkit import Lines, MessageHandler, hookimpl

log = logging.getLogger("app")

def below(depth):
    if depth == 0:
        with open("release") as pipe:
            for line in pipe:
                log.warning("below says %s", line.strip())
        os._exit(0)
    if os.fork() == 0:
        below(depth - 1)

class Log(MessageHandler):
    framing = Lines()

    def handle_message(self, message):
        if message == b"fork":
            if os.fork() == 0:
                below(2)
                os._exit(0)
        elif message == b"fail":
            raise ValueError("a mistake")
        else:
            log.warning("says %s", message.decode())
        return message

@hookimpl
def srvkit_handlers():
    return {"log": Log}
"""


@pytest.fixture
def rotating(managed: Managed, available: Available, eventually: Eventually) -> Callable[[str], Any]:
    """`rotating(model)`: a srvkit with a log file; `.rotate(name)` renames that and sends USR1."""

    def begin(model: str):
        available(model)
        os.mkfifo(managed.folder / "release")
        managed.write(
            f'[server.a]\nlisten = "unix:a.sock"\nhandler = "log"\nconcurrency = "{model}"\n'
            '[logging]\nfile = "a.log"\nconnections = true\n',
            LOGS,
        )
        managed.program = managed.start("-m", "srvkit", "run")
        log = managed.folder / "a.log"
        eventually(lambda: log.exists() and "listening on" in log.read_text())

        def rotate(name: str) -> None:
            log.rename(managed.folder / name)
            managed.signal(signal.SIGUSR1)
            eventually(lambda: log.exists() and "log reopened" in log.read_text())
            # The workers are told over their channels; whoever answers this has heard it.
            managed.ask(do="connections")

        def has(text: str) -> None:
            eventually(lambda: text in log.read_text())

        managed.rotate, managed.has = rotate, has
        return managed

    return begin


@pytest.mark.parametrize("model", MODELS)
def test_a_connection_that_stays_is_logged_where_the_log_is_now(model, rotating):
    managed = rotating(model)
    with managed.connect("unix:a.sock") as sock, sock.makefile("rwb", buffering=0) as file:
        for number in range(3):
            file.write(b"%d\n" % number)
            assert file.readline() == b"%d\n" % number
            managed.has(f"says {number}")
            managed.rotate(f"a.log.{number}")
        file.write(b"fail\n")
        assert file.readline() == b""
    managed.has("ValueError: a mistake")
    managed.has(" error after ")


@pytest.mark.parametrize("model", MODELS)
def test_so_does_what_a_handler_has_forked(model, rotating):
    managed = rotating(model)
    with managed.connect("unix:a.sock") as sock, sock.makefile("rwb", buffering=0) as file:
        file.write(b"fork\n")
        assert file.readline() == b"fork\n"
        with open(managed.folder / "release", "w", buffering=1) as pipe:
            pipe.write("one\n")
            managed.has("below says one")
            managed.rotate("a.log.1")
            managed.rotate("a.log.2")
            pipe.write("two\n")
            managed.has("below says two")
