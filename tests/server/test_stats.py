"""A server that is watched over counts every request once, whatever becomes of it, and shows it lives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srvkit.config.assemble import assemble
from srvkit.config.loader import from_table
from srvkit.server.stats import StatsMixIn
from tests.conftest import Eventually, Serving


class Board:
    """Remembers what was counted; `outcomes` also the bytes."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.outcomes: list[tuple[str, int, int]] = []
        self.beats = threading.Semaphore(0)
        self.pids: set[int] = set()
        self._lock = threading.Lock()

    def beat(self) -> None:
        self.beats.release()

    def accepted(self) -> None:
        self._count("accepted")

    def refused(self) -> None:
        self._count("refused")

    def failed(self) -> None:
        self._count("failed")

    def ended(self, outcome: str, bytes_in: int, bytes_out: int) -> None:
        self.outcomes.append((outcome, bytes_in, bytes_out))
        self._count("ended")

    def handled(self, count: int, bytes_in: int, bytes_out: int, unusual: list[str]) -> None:
        with self._lock:
            self.counted["accepted"] += count
            self.counted["ended"] += count
        self.outcomes += [(outcome, 0, 0) for outcome in unusual]
        self.outcomes.append(("closed", bytes_in, bytes_out))

    def _count(self, what: str) -> None:
        with self._lock:
            self.counted[what] += 1
            self.pids.add(os.getpid())


PLUGIN = """
import os, signal, threading
import srvkit

class Talk(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message):
        if message == b"fail":
            raise LookupError("as wished")
        if message == b"where":
            return b"%d" % threading.get_native_id()
        if message == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        return message

@srvkit.hookimpl
def srvkit_handlers():
    return {"talk": Talk}

@srvkit.hookimpl
def srvkit_verify_request(request):
    return not isinstance(request, tuple) or request[0] != b"no"
"""
MODELS = ["serial", "threading", "pool", "event", "asyncio"]


@pytest.fixture
def watched(
    serving: Serving, eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """`watched(model)`: a server in its loop, put together as from a file, with a board."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def watched(model: str, scheme: str = "tcp", **attributes: Any) -> Any:
        (tmp_path / "accounted.py").write_text(PLUGIN)
        table = {"listen": f"{scheme}://127.0.0.1:0", "handler": "talk", "concurrency": model}
        settings = {"plugins": ["accounted.py"]}
        config, problems = from_table(
            {"srvkit": settings, "server": {"a": table}}, path=tmp_path / "srvkit.toml"
        )
        (plan,) = assemble(config, problems).plans
        attributes = {"board": Board(), "beat_interval": 0.01, **attributes}
        server_class = type("Watched", (StatsMixIn, plan.server_class), attributes)
        server = server_class.from_listeners(plan.bind(), plan.handler)
        server.server_activate()
        made.append(server)
        return serving(server)

    made: list[Any] = []
    yield watched
    for server in made:  # or a connection that has just ended would be left behind
        server.drain()
        eventually(lambda server=server: server._srvkit_loop is None)
    sys.modules.pop("accounted", None)


def say(client: Any, server: Any, *lines: bytes) -> bytes:
    """Say all of it on one connection; return all answers."""
    with client(server.server_address) as sock:
        sock.sendall(b"".join(lines))
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            return bytes(file.read())


@pytest.mark.parametrize("model", MODELS)
def test_every_connection_is_counted_once_with_its_outcome_and_bytes(
    model: str, watched: Any, client: Any, eventually: Any
) -> None:
    server = watched(model)
    board = server.board
    assert say(client, server, b"hello\n", b"you\n") == b"hello\nyou\n"
    assert say(client, server, b"hello\n", b"yo") == b"hello\n"
    assert say(client, server, b"fail\n") == b""
    eventually(lambda: board.counted["ended"] == 3)
    assert sorted(board.outcomes) == [("eof", 10, 10), ("error", 5, 0), ("truncated", 8, 6)]
    assert board.counted == {"accepted": 3, "ended": 3, "failed": 1}
    assert board.pids == {os.getpid()}
    eventually(lambda: not server.requests_at_hand())


def test_children_leave_their_accounts_and_one_that_dies_is_an_error(
    run_srvkit: Any, client: Any, eventually: Any, tmp_path: Path
) -> None:
    """As the status of a forking server shows it."""
    program = run_srvkit(
        '[server.a]\nlisten = "unix:a.sock"\nhandler = "talk"\nconcurrency = "forking"\n', PLUGIN
    )
    program.addresses("a")
    answers = []
    for data in (b"hello\nyou\n", b"hello\nyo", b"fail\n", b"die\n"):
        with client("unix:a.sock", tmp_path) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                answers.append(file.read())
    assert answers == [b"hello\nyou\n", b"hello\n", b"", b""]

    def counters() -> dict[str, Any]:
        command = [sys.executable, "-m", "srvkit", "status", "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=30)
        (server,) = json.loads(done.stdout)["servers"]
        return server["counters"]

    eventually(lambda: counters()["open"] == 0)
    found = counters()
    assert found["outcomes"] == {"eof": 1, "truncated": 1, "error": 2}
    assert [found[name] for name in ("accepted", "errors", "bytes_in", "bytes_out")] == [4, 2, 23, 16]
    assert program.end() == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_request_is_at_hand_as_long_as_it_lasts(
    model: str, watched: Any, client: Any, eventually: Any
) -> None:
    server = watched(model)
    with client(server.server_address) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        (one,) = server.requests_at_hand()
        assert (one.number, one.client_address) == (1, sock.getsockname())
    eventually(lambda: not server.requests_at_hand())


@pytest.mark.parametrize("model", MODELS)
def test_datagrams_are_counted_one_by_one_and_those_refused_too(
    model: str, watched: Any, client: Any, eventually: Any
) -> None:
    server = watched(model, "udp")
    host, port = server.server_address
    with client(f"udp://{host}:{port}") as sock:
        for data in (b"one", b"no", b"three"):
            sock.send(data)
            if data != b"no":
                sock.recv(100)
    board = server.board
    eventually(lambda: board.counted["ended"] == 2)
    assert sum(size for _, size, _ in board.outcomes) == 8
    assert {outcome for outcome, *_ in board.outcomes} <= {"closed", "handled"}
    assert board.counted == {"accepted": 2, "ended": 2, "refused": 1}
    eventually(lambda: not server.requests_at_hand())


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize("model", ["serial", "threading", "event"])
def test_enough_is_said_once_after_so_many_requests(
    model: str, scheme: str, watched: Any, client: Any
) -> None:
    told: list[int] = []
    server = watched(model, scheme, retire_after=2, on_max_requests=lambda self: told.append(self._admitted))
    host, port = server.server_address
    for number in range(1, 5):
        with client(f"{scheme}://{host}:{port}") as sock:
            sock.sendall(b"hello\n")
            assert sock.recv(100) == b"hello\n"
        assert told == [2] * (number >= 2)


@pytest.mark.parametrize("model", MODELS)
def test_it_beats_while_its_loop_comes_round(model: str, watched: Any) -> None:
    server = watched(model)
    for _ in range(5):
        assert server.board.beats.acquire(timeout=30)


def test_a_loop_that_is_held_up_does_not_beat(watched: Any) -> None:
    server = watched("event")
    assert server.board.beats.acquire(timeout=30)
    held, release = threading.Event(), threading.Event()
    server._srvkit_loop.call_soon(lambda: (held.set(), release.wait(30)))
    assert held.wait(30)
    while server.board.beats.acquire(blocking=False):
        pass
    assert not server.board.beats.acquire(timeout=0.1)
    release.set()
    assert server.board.beats.acquire(timeout=30)


@pytest.mark.parametrize(
    ("model", "is_the_loops"), [("serial", True), ("event", True), ("threading", False), ("pool", False)]
)
def test_datagrams_are_handled_where_the_model_says(
    model: str, is_the_loops: bool, watched: Any, client: Any
) -> None:
    """Counting them does not take them away from it."""
    loops = []

    def beat() -> None:
        loops.append(threading.get_native_id())

    board = Board()
    board.beat = beat  # type: ignore[method-assign]
    server = watched(model, "udp", board=board)
    host, port = server.server_address
    with client(f"udp://{host}:{port}") as sock:
        sock.send(b"where")
        where = int(sock.recv(100))
    assert (where in loops) == is_the_loops
