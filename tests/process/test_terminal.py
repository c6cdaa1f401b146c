"""On a terminal, whoever has it in the foreground: nobody is held up, and handlers may read."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sys
import termios
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Connect

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30

NO_REPLY = """
from srvkit import Lines, MessageHandler, hookimpl

class Ask(MessageHandler):
    framing = Lines()

    def handle_message(self, message):
        print("printed", message.decode(), flush=True)
        return input("what? ").encode() if message == b"ask" else message

@hookimpl
def srvkit_handlers():
    return {"ask": Ask}
"""
CONFIG = """
[srvkit]
plugins = ["plugin.py"]
drain_timeout = "1s"
[logging]
connections = true
[server.a]
listen = "unix:a.sock"
handler = "ask"
concurrency = "{}"
"""
BACKGROUND = """
import os, signal, subprocess, sys
# As a shell does with a job: a process group of its own, which the terminal is not given to.
job = subprocess.Popen(sys.argv[1:], process_group=0)
signal.signal(signal.SIGUSR1, lambda *_: job.terminate())
sys.exit(job.wait())
"""


class Terminal:
    """A program on a terminal with `stty tostop`; `shown` is what it has displayed so far."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.shown = ""
        with warnings.catch_warnings():  # of threads, pytest's own among them; the child executes at once
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ |= {"PYTHONPATH": str(ROOT), "RUNTIME_DIRECTORY": str(folder / "run")}
            os.execv(sys.executable, [sys.executable, *command])
        mode = termios.tcgetattr(self._fd)
        mode[3] |= termios.TOSTOP
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            seconds = max(0.0, deadline - time.monotonic())
            assert select.select([self._fd], [], [], seconds)[0], f"{text!r} never came:\n{self.shown}"
            self.shown += os.read(self._fd, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self, number: int) -> int:
        """Send a signal, and return the exit status."""
        os.kill(self.pid, number)
        return self.ended()

    def ended(self) -> int:
        try:
            while select.select([self._fd], [], [], PATIENCE)[0]:
                self.shown += os.read(self._fd, 4096).decode()
        except OSError:  # closed by all who had it
            pass
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened = []

    def run(model: str, *arguments: str, background: bool = False) -> Terminal:
        (tmp_path / "plugin.py").write_text(NO_REPLY)
        (tmp_path / "srvkit.toml").write_text(CONFIG.format(model))
        command = ["-m", "srvkit", "run", *arguments]
        if background:
            command = ["-c", BACKGROUND, sys.executable, *command]
        opened.append(Terminal(tmp_path, *command))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


@pytest.fixture
def say(client: Connect, tmp_path: Path) -> Callable[[bytes], io.BufferedReader]:
    def say(line: bytes):
        with client("unix:a.sock", tmp_path) as sock:
            sock.sendall(line + b"\n")
            return sock.makefile("rb")

    return say


MODES = pytest.mark.parametrize("arguments", [[], ["--single"]], ids=["supervised", "single"])


@MODES
@pytest.mark.parametrize("model", ["threading", "forking", "event"])
def test_the_log_and_print_are_written_under_stty_tostop(model, arguments, terminal, say):
    program = terminal(model, *arguments)
    program.wait_for("listening on")
    with say(b"hi") as client:
        assert client.readline() == b"hi\n"
    program.wait_for("printed hi")
    program.wait_for(" eof after ")
    assert program.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("model", ["threading", "forking"])
def test_a_job_in_the_background_writes_its_log_and_keeps_its_workers(model, terminal, say):
    program = terminal(model, background=True)
    program.wait_for("listening on")
    with say(b"hi") as client:
        assert client.readline() == b"hi\n"
    program.wait_for("printed hi")
    program.wait_for(" eof after ")
    assert program.end(signal.SIGUSR1) == 0
    assert ": now " not in program.shown  # SIGTTOU would take a worker away


@MODES
@pytest.mark.parametrize("model", ["threading", "forking", "event"])
def test_a_handler_reads_from_the_terminal(model, arguments, terminal, say):
    program = terminal(model, *arguments)
    program.wait_for("listening on")
    with say(b"ask") as client:
        program.wait_for("what? ")
        program.type("this\n")
        assert client.readline() == b"this\n"
    assert program.end(signal.SIGTERM) == 0
