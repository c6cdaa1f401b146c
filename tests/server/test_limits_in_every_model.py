"""Limits, from outside, in every model: how many, how long, how much, and what is left when it is over."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Connect, Eventually
from tests.server.conftest import BothWays, Cells, Ended, Reset, Say, Secure, Under

PATIENCE = 30
MIB = 1 << 20
ALL = ("message", "blocking", "receive", "async")

PLAIN = """
[sub.limits]
first_byte_timeout = "20s"
max_message = 65536
[sub.socket]
send_buffer = 4096
"""
SEATS = 'limits = { max_connections = 4, when_full = "WHEN", first_byte_timeout = "20s" }\n'
ONCE = '[sub.limits]\nrequest_timeout = "700ms"\n'
TLS = '[sub.tls]\ncert = "server.pem"\nhandshake_timeout = "20s"\n'
BOMB = 'framing = { name = "length-prefix", size = 8 }\n'
FEW = "[sub.limits]\nmax_per_client = 2\n"
RATE = "[sub.limits]\nconnect_rate = 3\n"
TABLES = {
    "plain": (PLAIN, *ALL),
    "wait": (SEATS.replace("WHEN", "wait"), *ALL),
    "close": (SEATS.replace("WHEN", "close"), *ALL),
    "once": (ONCE, *ALL),
    "tls": (TLS, *ALL),
    "bomb": (BOMB, "message"),
    "few": (FEW, *ALL),
    "rate": (RATE, *ALL),
}


@pytest.fixture
def connected(under: Under, client: Connect, every_cell: str) -> Callable[..., socket.socket]:
    """`connected(name)`: a connection to the cell."""
    return lambda name="plain", transport="tcp": client(
        under(name).address(every_cell, transport), under(name).folder
    )


def come_from(host: str, address: str) -> socket.socket:
    """Connect from an address of this machine's own."""
    there, port = address.removeprefix("tcp://").split(":")
    return socket.create_connection((there, int(port)), PATIENCE, (host, 0))


# How many


@pytest.mark.parametrize("when_full", ["wait", "close"])
def test_a_thousand_clients_leave_nothing_behind(
    when_full: str,
    every_cell: str,
    under: Under,
    connected: Any,
    say: Say,
    reset: Reset,
    eventually: Eventually,
    ended: Ended,
) -> None:
    """However they end. (A thousand under each policy, all models taken together.)"""
    program = under(when_full)

    def counted(name: str) -> int:
        return int(program.server(every_cell)["counters"][name])

    before = counted("accepted") + counted("refused")
    for number in range(60):
        sock = connected(when_full)
        with contextlib.suppress(ConnectionError):
            if number % 3 == 0:
                sock.sendall(b"half")
            elif number % 3 == 1:
                sock.sendall(b"hello\n")
        if number % 2:
            reset(sock)
        else:
            sock.close()
    eventually(lambda: counted("open") == 0 and counted("accepted") + counted("refused") == before + 60)
    if every_cell.startswith("serial"):
        assert say(connected(when_full), b"hello") == b"hello"
        return
    seated: list[Any] = []

    def seat() -> bool:
        """Take a seat; the last connection is counted as ended just before its seat is free."""
        sock = connected(when_full)
        with contextlib.suppress(ConnectionError):
            if say(sock, b"hello") == b"hello":
                seated.append(sock)
                return True
        sock.close()
        return False

    for _ in range(4):
        eventually(seat)
    assert counted("open") == 4
    refused = counted("refused")
    fifth = connected(when_full)
    if when_full == "close":
        assert ended(fifth) == b""
        eventually(lambda: counted("refused") == refused + 1)
        seated.pop().close()
        eventually(seat)
    else:
        fifth.sendall(b"hello\n")
        assert not select.select([fifth], [], [], 0)[0]
        assert counted("open") == 4
        seated.pop().close()
        assert fifth.recv(100) == b"hello\n"
    for sock in (*seated, fifth):
        sock.close()
    eventually(lambda: counted("open") == 0)


def test_a_client_has_its_share_and_no_more(
    crowded_cell: str, under: Under, say: Say, ended: Ended, eventually: Eventually
) -> None:
    program = under("few")
    address = program.address(crowded_cell)
    with come_from("127.0.0.2", address) as one, come_from("127.0.0.2", address) as two:
        assert say(one, b"hello") == say(two, b"hello") == b"hello"
        for _ in range(10):
            with come_from("127.0.0.2", address) as greedy:
                assert ended(greedy) == b""
        with come_from("127.0.0.3", address) as other:
            assert say(other, b"hello") == b"hello"
        assert say(one, b"still here") == b"still here"
    program.program.wait_for(rf"{crowded_cell}: 127.0.0.2:\d+ refused: max_per_client \(2\) is reached")
    assert "127.0.0.3" not in program.program.log
    eventually(lambda: program.server(crowded_cell)["counters"]["open"] == 0)
    with come_from("127.0.0.2", address) as one, come_from("127.0.0.2", address) as two:
        assert say(one, b"hello") == say(two, b"hello") == b"hello"


def test_a_client_that_comes_too_often_is_refused(
    every_cell: str, under: Under, say: Say, ended: Ended
) -> None:
    program = under("rate")
    address = program.address(every_cell)
    for _ in range(30):
        with come_from("127.0.0.2", address) as sock:
            sock.shutdown(socket.SHUT_WR)
            ended(sock)
    program.program.wait_for(rf"{every_cell}: 127.0.0.2:\d+ refused: connect_rate \(3 a second\) is exceeded")
    with come_from("127.0.0.3", address) as sock:
        assert say(sock, b"hello") == b"hello"


# How long


def test_a_client_that_trickles_does_not_escape(under: Under, client: Connect) -> None:
    """Whoever reads for the handler, and however little comes at a time."""
    program = under("once")
    dribblers = {}
    for cell in program.cells:
        sock = client(program.address(cell))
        dribblers[cell] = sock, sock.getsockname()
    left = dict(dribblers)
    for _ in range(PATIENCE * 10):
        for cell, (sock, _) in list(left.items()):
            try:
                sock.sendall(b"a")
                if select.select([sock], [], [], 0)[0]:
                    assert sock.recv(100) == b""
                    del left[cell]
            except ConnectionError:
                del left[cell]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    for cell, (_, address) in dribblers.items():
        program.said(cell, address, "ended: request-timeout")


# Ends of all kinds


@pytest.mark.parametrize("name", ["plain", "tls"])
def test_the_reply_survives_what_is_not_read(
    name: str,
    every_cell: str,
    under: Under,
    connected: Any,
    secure: Secure,
    both_ways: BothWays,
    eventually: Eventually,
) -> None:
    """The handler replies at the first line and is done, while the client still sends."""
    sock = connected(name)
    if name == "tls":
        sock = secure(sock, "")
    said = both_ways(sock, b"early 200000\n" + b"a" * 10 * MIB, 10 * MIB)
    assert said.rstrip(b"\n") == b"x" * 200000
    sock.close()
    eventually(lambda: under(name).server(every_cell)["counters"]["open"] == 0)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_who_has_said_all_is_still_answered(transport: str, every_cell: str, connected: Any) -> None:
    sock = connected("plain", transport)
    sock.sendall(b"big 1048576\nlast\n")
    sock.shutdown(socket.SHUT_WR)
    with sock.makefile("rb") as file:
        said = file.read()
    assert len(said) == MIB + len(b"last\n")
    assert said.endswith(b"x\nlast\n")


@pytest.mark.parametrize(
    "said", [b"", b"half a mess", b"hello\n", b"big 104857600\n", b"early 10000000\n" + b"a" * 60000]
)
def test_a_reset_is_at_most_one_line(
    said: bytes, every_cell: str, under: Under, connected: Any, say: Say, reset: Reset, eventually: Eventually
) -> None:
    """Before a handler has it, in the middle of a message, before and in the middle of the reply."""
    program = under("plain")
    sock = connected()
    address = sock.getsockname()
    sock.sendall(said)
    if len(said) > 12:
        assert sock.recv(1000)
    reset(sock)
    assert say(connected(), b"hello") == b"hello"
    eventually(lambda: program.server(every_cell)["counters"]["open"] <= 1)
    lines = program.lines(every_cell, address)
    assert len(lines) <= 1
    assert all("ended: reset" in line for line in lines), lines


# How much


def growth(program: Cells, cell: str) -> Callable[[], int]:
    """Return what tells by how many bytes a worker (or the largest of its children) has grown at most."""
    pid = program.worker(cell)

    def peak(one: int | str) -> int:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return 0

    def children() -> list[str]:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [child for task in tasks for child in (task / "children").read_text().split()]

    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from now on
    before = peak(pid)
    return lambda: max(peak(pid), *map(peak, children()), 0) - before


def test_a_line_without_an_end_is_cut(
    bounded_cell: str, under: Under, client: Connect, eventually: Eventually
) -> None:
    """And so is what twenty such clients cost."""
    program = under("plain")
    grown = growth(program, bounded_cell)

    def bad_messages() -> int:
        return int(program.server(bounded_cell)["counters"]["outcomes"].get("bad-message", 0))

    before = bad_messages()
    clients = [client(program.address(bounded_cell)) for _ in range(20)]
    chunk = b"a" * 65536
    for _ in range(64):
        for sock in list(clients):
            try:
                sock.settimeout(0)
                sock.send(chunk)
            except BlockingIOError:
                pass
            except ConnectionError:
                clients.remove(sock)
    for sock in clients:
        sock.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            sock.shutdown(socket.SHUT_WR)
    eventually(lambda: bad_messages() == before + 20)
    assert grown() < 20 * 2 * 65536 + 8 * MIB
    with client(program.address(bounded_cell)) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"


@pytest.mark.parametrize("length", [1 << 20, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_a_length_is_not_believed(
    length: int, model: str, under: Under, client: Connect, ended: Ended
) -> None:
    """Nothing is allocated for it, and what stands behind is not handled."""
    program, cell = under("bomb"), f"{model}-message"
    grown = growth(program, cell)
    sock = client(program.address(cell))
    good = struct.pack("!Q", 5) + b"hello"
    sock.sendall(good + struct.pack("!Q", length + (length == MIB)) + good)
    assert ended(sock) == good
    program.said(cell, sock.getsockname(), "ended: bad-message")
    assert grown() < 10 * MIB


def test_a_message_that_is_cut_short_is_not_handled(
    model: str, under: Under, client: Connect, ended: Ended
) -> None:
    program, cell = under("bomb"), f"{model}-message"
    sock = client(program.address(cell))
    sock.sendall(struct.pack("!Q", 5) + b"hell")
    sock.shutdown(socket.SHUT_WR)
    assert ended(sock) == b""
    program.said(cell, sock.getsockname(), "ended: truncated")


@pytest.mark.parametrize("name", ["plain", "tls"])
def test_fifty_peers_that_never_read_cost_little(
    name: str, every_cell: str, under: Under, client: Connect, secure: Secure, eventually: Eventually
) -> None:
    program = under(name)
    grown = growth(program, every_cell)
    pid = program.worker(every_cell)
    at_once = 1 if every_cell.startswith("serial") else 50
    if every_cell in ("pool-blocking", "pool-receive"):
        at_once = 32
    peers = []
    for number in range(50):
        sock = client(program.address(every_cell))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if name == "tls" and number < at_once:
            sock = secure(sock, "")
        sock.sendall(b"big 104857600\n" if name == "plain" or number < at_once else b"")
        peers.append(sock)
    eventually(lambda: len(select.select(peers, [], [], 0)[0]) >= at_once)
    last = -1.0
    while last != (last := busy(pid)):  # as long as anything is still going on
        time.sleep(0.1)
    assert grown() < 50 * MIB
    for sock in peers:
        sock.close()
    eventually(lambda: program.server(every_cell)["counters"]["open"] == 0)


def busy(pid: int) -> float:
    """Return the processor time that a process and its children have used."""
    total = 0
    for one in [str(pid), *(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
