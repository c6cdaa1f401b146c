"""What still reaches a handler, and its peer, when a connection ends: the same in every model."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).with_name("end_handlers.py")
MESSAGES = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]
BLOCKING = ["serial", "threading", "pool", "forking", "gevent"]
HANDLERS = {
    "talk": MESSAGES,
    "huge": MESSAGES,
    "many": [model for model in MESSAGES if model != "forking"],
    "stand": MESSAGES,
    "stream": BLOCKING,
    "coroutine": ["asyncio"],
    "by-hand": BLOCKING,
    "async-by-hand": ["asyncio"],
}
DATAGRAMS = {"tenfold": MESSAGES, "tenfold-by-hand": BLOCKING, "tenfold-coroutine": ["asyncio"]}
PATIENCE = 30
ROOT = Path(__file__).resolve().parents[2]
numbers = itertools.count()


class Running:
    """`srvkit run` with every handler under every model that can run it."""

    def __init__(self, folder: Path, program: Any, connect: Callable[..., Any]) -> None:
        self.folder = folder
        self.program = program
        self.connect = lambda server: connect(program.addresses(server)[0], folder)

    def noted(self, server: str, name: str = "noted") -> list[str]:
        """Lines that handlers of this server have written so far."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / name).read_text().splitlines()
            return [line.removeprefix(f"{server} ") for line in lines if line.startswith(f"{server} ")]
        return []


@pytest.fixture(scope="module")
def program(start: Any, tmp_path_factory: Any) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("ends")
    has_gevent = importlib.util.find_spec("gevent") is not None
    text = f'[srvkit]\nplugins = ["{PLUGIN}"]\n'
    for handler, models in HANDLERS.items():
        for model in models:
            if model == "gevent" and not has_gevent:
                continue
            text += (
                f'[server.{handler}-{model}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "{handler}"\n'
                f'concurrency = "{model}"\n'
            )
            if handler.endswith("by-hand"):
                text += (
                    f'[server.{handler}-{model}-udp]\nlisten = "udp://127.0.0.1:0"\nhandler = "{handler}"\n'
                    f'concurrency = "{model}"\n'
                )
    for handler, models in DATAGRAMS.items():
        for model in models:
            if model != "gevent" or has_gevent:
                text += (
                    f'[server.{handler}-{model}]\nlisten = "unixgram:{handler}-{model}"\n'
                    f'handler = "{handler}"\nconcurrency = "{model}"\nlimits.max_message = "100000"\n'
                )
    (folder / "srvkit.toml").write_text(text)
    with start("-m", "srvkit", "run", folder=folder) as program:
        yield program
        assert program.end() == 0, program.log


@pytest.fixture
def running(program: Any, client: Any) -> Running:
    return Running(program.folder, program, client)


def cells(*handlers: str) -> Any:
    every = HANDLERS | DATAGRAMS
    found = [(handler, model) for handler in handlers for model in every[handler]]
    return pytest.mark.parametrize("server", ["-".join(cell) for cell in found])


@pytest.fixture(autouse=True)
def _has_gevent(request: Any) -> None:
    needed = request.node.callspec.params["server"].endswith("gevent")
    if needed and importlib.util.find_spec("gevent") is None:
        assert os.environ.get("SRVKIT_REQUIRE_TOOLS") != "1", "gevent is not installed"
        pytest.skip("gevent is not installed")


def heard(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as file:
        return bytes(file.read())


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    sock.close()


@cells("talk")
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"x" * 101 + b"\n", b"bye bad-message\n"),
        (b"one\nwrong\ntwo\n", b"heard one\nbye bad-message\n"),
        (b"one\nfail\n", b"heard one\nbye error\n"),
        (b"one\n", b"heard one\nbye eof\n"),
        (b"one\ntw", b"heard one\nbye truncated\n"),
        (b"large\n", b"L" * 90 + b"\nbye closed\n"),
    ],
)
def test_what_a_handler_says_when_it_takes_leave_arrives(
    server: str, said: bytes, answer: bytes, running: Running
) -> None:
    sock = running.connect(server)
    sock.sendall(said)
    if said != b"large\n":
        sock.shutdown(socket.SHUT_WR)
    assert heard(sock) == answer


@cells("huge")
def test_it_may_be_much(server: str, running: Running) -> None:
    sock = running.connect(server)
    sock.sendall(b"go\n")
    assert len(heard(sock)) == (1 << 20) + 1


@pytest.mark.parametrize(
    ("server", "way"),
    [(f"{kind}-{model}", "") for kind in ("talk", "stream") for model in HANDLERS[kind]]
    + [("coroutine-asyncio", way) for way in ("lines", "until", "exactly", "read")],
)
def test_what_arrived_before_a_reset_is_handed_out(
    server: str, way: str, running: Running, eventually: Any
) -> None:
    """Also where nobody has read it when the peer vanished, and although it cannot be answered."""
    name = f"gate{next(numbers)}"
    lines = [f"wait {name}"] + [f"{name} {number}" for number in range(5)]
    texts = [f"{len(line) + 1:3}{line}\n" if way == "exactly" else f"{line}\n" for line in lines]
    if way:
        texts[0] = f"{way}\n{texts[0]}"

    def noted() -> list[str]:
        return [line for line in running.noted(server) if line.startswith(f"{name} ")]

    before = running.noted(server, "ended")
    sock = running.connect(server)
    sock.sendall(texts[0].encode())
    eventually(lambda: f"waiting {name}" in running.noted(server))
    for text in texts[1:]:
        sock.sendall(text.encode())
    reset(sock)
    (running.folder / name).touch()
    eventually(lambda: len(noted()) == 5)
    assert noted() == lines[1:]
    eventually(lambda: running.noted(server, "ended") != before)
    size = sum(map(len, texts))
    (ended,) = running.noted(server, "ended")[len(before) :]
    assert ended.startswith(f"reset {size} "), ended


@cells("talk")
def test_taking_leave_of_a_peer_that_has_vanished_says_nothing(
    server: str, running: Running, eventually: Any
) -> None:
    sock = running.connect(server)
    sock.sendall(b"one\n")
    assert sock.recv(100) == b"heard one\n"
    reset(sock)
    eventually(lambda: "left reset" in running.noted(server))
    another = running.connect(server)
    another.sendall(b"two\n")
    another.shutdown(socket.SHUT_WR)
    assert heard(another) == b"heard two\nbye eof\n"


@cells("many")
def test_messages_of_several_threads_are_encoded_as_they_leave(server: str, running: Running) -> None:
    sock = running.connect(server)
    sock.sendall(b"go\n")
    with sock.makefile("rb") as file:
        found = [int(file.readline().split()[0]) for _ in range(500)]
    assert found == list(range(1, 501))


@cells("stand")
def test_a_framing_that_stands_still_ends_one_connection_and_says_why(server: str, running: Running) -> None:
    other = running.connect(server) if not server.endswith("serial") else None
    sock = running.connect(server)
    sock.sendall(b"\x03hi\0")
    assert heard(sock) == b""
    running.program.wait_for(
        rf" {server}: error while handling [^\n]*\n(?s:.*?)"
        r"RuntimeError: Still\.take\(\) says that a message ends where it begins"
    )
    other = other or running.connect(server)
    other.sendall(b"\x03hi")
    assert other.recv(100) == b"\x03hi"


@cells("by-hand", "async-by-hand")
def test_framings_used_by_hand_accuse_the_peer_and_nobody_else(
    server: str, running: Running, eventually: Any
) -> None:
    for said in (b"\0\2hi\xff\xff", b"\0\2hi\0\5x"):
        sock = running.connect(server)
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        assert heard(sock) in (b"\0\2hi", b"")
    eventually(lambda: len(running.noted(server, "ended")) >= 2)
    # The children of two connections end when they like.
    assert sorted(line.rsplit(" ", 1)[0] for line in running.noted(server, "ended")) == [
        "bad-message 6",
        "truncated 7",
    ]
    sock = running.connect(f"{server}-udp")
    sock.send(b"\0\2hi")
    assert sock.recv(100) == b"\0\2hi"
    sock.send(b"\xff\xff")
    # In any order: each datagram may have a child of its own.
    eventually(lambda: {"bad-message 2 0", "closed 4 4"} <= {*running.noted(f"{server}-udp", "ended")})
    assert f"{server}: error" not in running.program.log


@cells("tenfold", "tenfold-by-hand", "tenfold-coroutine")
def test_datagrams_have_accounts_as_connections_have(server: str, running: Running, eventually: Any) -> None:
    """Bytes both ways, outcomes, errors, replies that nobody got, and what was too long: hook and status."""
    sock = running.connect(server)
    sock.send(b"0123456789")
    assert sock.recv(1000) == b"0123456789" * 10
    sock.send(b"boom")
    sock.send(b"wrong")
    sock.send(b"z" * 60_000)  # to which the reply is too long for the kernel
    sock.send(b"x" * 100_001)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
        gone.bind("")
        gone.connect(str(running.folder / server))
        sock.send(b"between")
        assert sock.recv(1000) == b"between" * 10
        gone.send(b"nobody")
    path = running.folder / server
    sock.send(b"y" * 10_000)
    assert sock.recv(200_000) == b"y" * 100_000, path

    def told() -> Any:
        (found,) = (one for one in status(running)["servers"] if one["name"] == server)
        return {key: found["counters"][key] for key in expected}

    expected = {
        "accepted": 7,
        "errors": 2,
        "dropped": 2,
        "bytes_in": 10 + 4 + 5 + 60_000 + 7 + 6 + 10_000,
        "outcomes": {"closed": 4, "error": 2, "bad-message": 1},
    }
    eventually(lambda: told() == expected)
    (found,) = (one for one in status(running)["servers"] if one["name"] == server)
    lost = found["counters"]["unanswered"]
    assert lost <= 1  # it may have been answered before it was gone
    assert found["counters"]["bytes_out"] == 100 + 70 + 100_000 + 60 * (1 - lost)
    ended = running.noted(server, "ended")
    assert {"closed 10 100", "error 4 0", "closed 7 70", "closed 10000 100000"} < set(ended)
    assert {"bad-message 5 0", "error 60000 0"} < set(ended)
    assert len(ended) == 7


@cells("tenfold")
def test_a_unix_datagram_may_be_as_long_as_a_message(server: str, running: Running) -> None:
    sock = running.connect(server)
    sock.send(b"z" * 15_000)
    assert sock.recv(200_000) == b"z" * 150_000


def status(running: Running) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "srvkit", "status", "--json"],
        cwd=running.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
