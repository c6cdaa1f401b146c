"""What tests of processes share: the command over a configuration, and a look at what it forked."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import pytest

from srvkit.process.control_client import ask
from tests.conftest import Connect, Program, Start

ROOT = Path(__file__).resolve().parents[2]
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


class Run(Protocol):
    def __call__(
        self, servers: str, plugin: str = "", drain_timeout: str = "60s", **settings: Any
    ) -> Program: ...


Say = Callable[[str, bytes], socket.SocketIO]
Offspring = Callable[[int, int], Callable[[], None]]
Available = Callable[[str], None]


@pytest.fixture
def mode() -> list[str]:
    """What `run` adds to the command; parametrize it to choose."""
    return ["--single"]


@pytest.fixture
def run(tmp_path: Path, start: Start, mode: list[str]) -> Iterator[Run]:
    """`run(servers, drain_timeout="1s")`: `srvkit run` with the handler `hold`, and more in plugin.py."""
    os.mkfifo(tmp_path / "release")  # to be written to, or nothing that holds ever ends
    with contextlib.ExitStack() as stack:

        def run(servers: str, plugin: str = "", drain_timeout: str = "60s", **settings: Any) -> Program:
            (tmp_path / "plugin.py").write_text(HANDLERS + plugin)
            general = f'[srvkit]\nplugins = ["plugin.py"]\ndrain_timeout = "{drain_timeout}"\n'
            (tmp_path / "srvkit.toml").write_text(general + servers)
            return stack.enter_context(start("-m", "srvkit", "run", *mode, folder=tmp_path, **settings))

        yield run


@pytest.fixture
def say(client: Connect, tmp_path: Path) -> Iterator[Say]:
    """`say(address, b"hold")`: say a line to a stream server that answers; return the socket's file."""
    with contextlib.ExitStack() as stack:

        def say(address: str, line: bytes) -> socket.SocketIO:
            sock = stack.enter_context(client(address, tmp_path))
            file = stack.enter_context(sock.makefile("rwb", buffering=0))
            file.write(line + b"\n")
            assert file.readline() == (b"holding\n" if line in (b"hold", b"endless") else b"done\n")
            return file

        yield say


@pytest.fixture
def offspring() -> Iterator[Offspring]:
    """`ended = offspring(pid, count)`: what a process has forked by now; `ended()` waits for its end."""
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


TALK = """
import ctypes, os, signal, subprocess, sys, threading, time
from srvkit import AsyncHandler, Lines, MessageHandler, StreamRequestHandler, hookimpl

VERSION = b"one"

def wait_at(gate):
    '''Wait while there is a pipe of this name that nobody has opened for writing and closed again.'''
    if os.path.exists(gate):
        with open(gate) as pipe:
            pipe.read()

def obey(word):
    if word == b"spin":
        while True:
            pass
    elif word == b"sleep":
        time.sleep(1000)
    elif word == b"gil":
        ctypes.PyDLL(None).sleep(1000)  # by a library's call that does not let the lock go
    elif word == b"hold":
        wait_at("release")
    elif word == b"segv":
        ctypes.string_at(0)
    elif word == b"exit":
        os._exit(7)
    elif word == b"big":
        Talk.kept = bytearray(os.urandom(1)) * 200_000_000

class Talk(MessageHandler):
    '''Do what the line says, and answer with it, the version of this file, and the process.'''

    framing = Lines()

    @classmethod
    def startup(cls, server):
        wait_at("gate")

    def handle_message(self, message):
        if message == b"hold":
            self.send(b"holding")
        obey(message)
        return b"%s %s %d" % (message, VERSION, os.getpid())

class Block(StreamRequestHandler):
    '''The same, with a handler that does its own reading.'''

    def handle(self):
        for line in self.rfile:
            if line == b"hold\\n":
                self.wfile.write(b"holding\\n")
            obey(line.strip())
            self.wfile.write(b"%s %s %d\\n" % (line.strip(), VERSION, os.getpid()))

@hookimpl
def srvkit_handlers():
    return {"talk": Talk, "block": Block}
"""


class Managed:
    """A srvkit with its supervisor: what is in its folder, what it logs, and what it answers."""

    def __init__(self, folder: Path, start: Callable[..., Program], connect: Connect) -> None:
        self.folder = folder
        self._program: Program | None = None
        self._start = start
        self._connect = connect

    @property
    def program(self) -> Program:
        assert self._program is not None, "it was not started"
        return self._program

    @program.setter
    def program(self, program: Program) -> None:
        self._program = program

    @property
    def has_ended(self) -> bool:
        """Whether it was started and is over."""
        return self._program is not None and self._program.process.poll() is not None

    def write(self, servers: str, plugin: str = TALK, general: str = "") -> None:
        """Write both files, for the start or for what comes after a reload."""
        head = f'[srvkit]\nplugins = ["plugin.py"]\n{general}\n'
        (self.folder / "srvkit.toml").write_text(head + servers)
        (self.folder / "plugin.py").write_text(plugin)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another srvkit in the same folder until it has ended."""
        return subprocess.run(
            [sys.executable, "-m", "srvkit", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=PATIENCE,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask over the control socket, as the commands do."""
        (control,) = (self.folder / "run").glob("*.sock")
        return ask(control, request, PATIENCE)

    def processes(self) -> list[int]:
        """Return all that it is made of: processes that have this folder in their environment."""
        mark = b"RUNTIME_DIRECTORY=" + os.fsencode(self.folder / "run")
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def signal(self, number: int) -> None:
        os.kill(self.program.pid, number)

    def reload(self) -> None:
        """Have the files read anew, successfully, and the workers of every server replaced."""
        answer = self.ask(do="reload", all=True)
        assert answer.get("ok"), f"{answer}\n{self.program.log}"

    def hup(self) -> None:
        """Have the files read anew by a signal, with something changed in the plugin of every server."""
        with (self.folder / "plugin.py").open("a") as file:
            file.write("# changed\n")
        self.signal(signal.SIGHUP)

    def server(self, name: str = "a") -> dict[str, Any]:
        """Return what the status says of a server."""
        servers: list[dict[str, Any]] = self.ask(do="status")["servers"]
        (found,) = (one for one in servers if one["name"] == name)
        return found

    def workers(self, name: str = "a") -> list[int]:
        """Return the numbers of the workers that serve."""
        return [worker["pid"] for worker in self.server(name)["workers"] if worker["state"] == "ready"]

    def address(self, name: str = "a") -> str:
        return str(self.server(name)["addresses"][0])

    def connect(self, address: str = "") -> socket.socket:
        """Return a socket that is connected to an address, or to the only one."""
        return self._connect(address or self.address(), self.folder)

    def talk(self, line: bytes = b"hello", address: str = "") -> IO[bytes]:
        """Say a line on a new connection; return the socket's file, from which nothing was read yet."""
        with self.connect(address) as sock:
            sock.sendall(line + b"\n")
            return sock.makefile("rb")

    def answer(self, line: bytes = b"hello", address: str = "") -> bytes:
        """Return what is answered to a line, up to the end."""
        with self.connect(address) as sock:
            sock.sendall(line + b"\n")
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                return bytes(file.read())

    def gate(self, name: str = "gate") -> Gate:
        """Return something at which workers wait that start from now on; or, as `release`, a handler."""
        return Gate(self.folder / name)

    def begin(self, *arguments: str, **settings: Any) -> Managed:
        """Start it, and return when it serves."""
        self.program = self.start("-m", "srvkit", "run", *arguments, **settings)
        self.program.wait_for("listening on ")
        if "--single" in arguments:  # there each server says so for itself
            for name in re.findall(r"^\[server\.(\w+)\]", (self.folder / "srvkit.toml").read_text(), re.M):
                self.program.wait_for(f"{name}: listening on ")
        return self

    def start(self, *arguments: str, **settings: Any) -> Program:
        """Start Python with these arguments in the folder; return the program."""
        return self._start(*arguments, **({"folder": self.folder} | settings))


class Gate:
    """A pipe that keeps others waiting until it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        os.mkfifo(path)

    def reached(self) -> None:
        """Return when somebody waits there; nobody is stopped there later."""
        self._fd = os.open(self._path, os.O_WRONLY)
        self._path.unlink()

    def open(self) -> None:
        """Let everybody go on."""
        if self._fd < 0:
            self.reached()
        os.close(self._fd)

    def abandon(self) -> None:
        """Remove it; whoever waits there does so for ever."""
        self._path.unlink()


class Load:
    """So many requests a second, each with its number and on a connection of its own.

    Those of a second that was too short for them come later. `answers` has what came back, by number;
    `failures` says what became of others.
    """

    def __init__(self, connect: Callable[[], Any], rate: int = 220, threads: int = 4) -> None:
        self.answers: dict[int, bytes] = {}
        self.failures: list[str] = []
        self._connect = connect
        self._rate = rate
        self._over = threading.Event()
        self._begin = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, args=(number, threads)) for number in range(threads)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, step: int) -> None:
        while not self._over.wait(max(0.0, self._begin + number / self._rate - time.monotonic())):
            try:
                self.answers[number] = self._request(b"%d" % number)
            except OSError as error:
                self.failures.append(f"{number}: {error!r}")
            number += step

    def _request(self, line: bytes) -> bytes:
        with self._connect() as sock:
            sock.sendall(line + b"\n")
            if sock.type == socket.SOCK_DGRAM:
                return bytes(sock.recv(1000))
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                return bytes(file.read())

    def verify(self) -> None:
        """Fail unless every request was answered, once, with its own number."""
        assert not self.failures
        assert len(self.answers) > 20
        wrong = {
            number: answer
            for number, answer in self.answers.items()
            if not re.fullmatch(rb"%d \w+ \d+\n" % number, answer)
        }
        assert not wrong


@pytest.fixture
def managed(
    tmp_path: Path, start: Start, client: Connect, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Managed]:
    """A supervisor in a folder of its own: `write` its files, `begin` it."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    with contextlib.ExitStack() as stack:
        it = Managed(tmp_path, lambda *run, **more: stack.enter_context(start(*run, **more)), client)
        yield it
        if it.has_ended:
            for pid in it.processes():  # else the pipe they write their log to would never end
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def load() -> type[Load]:
    """`with load(connect) as it:`, and then `it.verify()`."""
    return Load


@pytest.fixture
def talking() -> str:
    """The plugin that `managed` writes, to be changed by replacing."""
    return TALK


@pytest.fixture
def available() -> Available:
    """`available(model)`: skip where a model lacks what it is made of."""

    def check(model: str) -> None:
        if model == "gevent" and importlib.util.find_spec("gevent") is None:
            reason = "gevent is not installed"
            pytest.fail(reason) if os.environ.get("SRVKIT_REQUIRE_TOOLS") == "1" else pytest.skip(reason)

    return check


def open_descriptors() -> set[int]:
    # The one that the listing itself had is gone when it is looked at again.
    return {int(fd) for fd in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{fd}").is_symlink()}


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """See that the test leaves no thread and no descriptor in this process."""
    threads = set(threading.enumerate())
    before = open_descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert open_descriptors() <= before  # others' may have been collected meanwhile
