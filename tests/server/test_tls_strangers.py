"""Who does not come in by TLS is not noticed, and who stands still inside is let go."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from typing import Any

import pytest

from tests.conftest import Connect, Eventually
from tests.server.conftest import Connected, Echoes, Ended, Peer, Reset, Say, Secure, Under
from tests.server.tls_settings import SHORT, TLS

PATIENCE = 30
ONCE = """
[sub.limits]
request_timeout = "1s"
[sub.tls]
cert = "server.pem"
"""
TABLES = {"tls": (TLS,), "short": (SHORT,), "once": (ONCE,)}


# Who does not come in, and is not noticed


def test_a_handshake_that_stalls_is_cut_and_holds_up_nobody(
    under: Under, client: Connect, hello: bytes, secure: Secure, ended: Ended, peer: Peer
) -> None:
    program = under("short")
    stalled = [(cell, client(program.address(cell))) for cell in program.cells for _ in range(4)]
    for number, (_, sock) in enumerate(stalled):
        if number % 2:
            sock.sendall(hello[:100])
    for cell in program.cells:
        with secure(client(program.address(cell)), "") as sock:
            assert peer(sock)["tls"], cell
    addresses = [(cell, sock.getsockname()) for cell, sock in stalled]
    for cell, sock in stalled:
        assert ended(sock) == b"", cell
    for cell, address in addresses:
        program.said(cell, address, "ended: tls-timeout$")
        assert program.handled(cell, address) == 0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "the client spoke HTTP in the clear"),
        (b"hello\npeer\n", "the client did not speak TLS|.*"),
        (bytes(range(256)) * 40, ".*"),
    ],
)
def test_what_is_no_tls_never_reaches_a_handler(
    said: bytes, reason: str, cell: str, under: Under, connected: Connected, echoes: Echoes, ended: Ended
) -> None:
    sock = connected()
    address = sock.getsockname()
    under("tls").connects(cell, address)
    sock.sendall(said)
    assert b"hello" not in ended(sock)
    under("tls").said(cell, address, f"ended: bad-tls: {reason}")
    echoes(under("tls"), cell)
    assert under("tls").handled(cell, address) == 0


@pytest.mark.parametrize("said", [b"hello\n", "half"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_who_leaves_before_the_handshake_was_never_there(
    said: Any,
    how: str,
    cell: str,
    under: Under,
    connected: Connected,
    hello: bytes,
    echoes: Echoes,
    reset: Reset,
) -> None:
    """What was sent in the clear behind it is not taken for what was sent encrypted, either."""
    sock = connected()
    address = sock.getsockname()
    under("tls").connects(cell, address)
    sock.sendall(hello[:50] if said == "half" else said)
    reset(sock) if how == "reset" else sock.close()
    under("tls").said(cell, address, "ended: (bad-tls|reset)")
    echoes(under("tls"), cell)
    assert under("tls").handled(cell, address) == 0


@pytest.mark.parametrize("said", [b"hal", b"big 104857600\n"])
def test_a_reset_of_an_encrypted_connection_is_one_line(
    said: bytes,
    cell: str,
    under: Under,
    connected: Connected,
    secure: Secure,
    say: Say,
    echoes: Echoes,
    reset: Reset,
) -> None:
    sock = secure(connected())
    address = sock.getsockname()
    assert say(sock, b"hello") == b"hello"
    sock.sendall(said)
    if said.endswith(b"\n"):
        sock.recv(1000)
    reset(sock)
    under("tls").said(cell, address, "ended: reset")
    echoes(under("tls"), cell)


def test_those_who_wait_are_among_the_connections(
    cell: str, under: Under, connected: Connected, eventually: Eventually
) -> None:
    program = under("tls")
    sock = connected()
    host, port = sock.getsockname()

    def found() -> list[Any]:
        return [
            one
            for one in program.ask(do="connections")["connections"]
            if (one["server"], one["peer"]) == (cell, f"{host}:{port}")
        ]

    eventually(found)
    assert program.ask(do="kill", id=found()[0]["id"]).get("killed")
    assert sock.recv(1) == b""
    eventually(lambda: not found())


# Limits


def test_a_client_that_says_nothing_is_let_go(
    under: Under, client: Connect, secure: Secure, say: Say, ended: Ended
) -> None:
    """Be it from the beginning or later on."""
    program = under("short")
    silent = []
    for cell in program.cells:
        sock = secure(client(program.address(cell)), "")
        silent.append((cell, sock, "first-byte-timeout"))
        if not cell.startswith("serial"):  # which serves the next when the first has been let go
            sock = secure(client(program.address(cell)), "")
            assert say(sock, b"hello") == b"hello"
            silent.append((cell, sock, "idle-timeout"))
    for cell, sock, why in silent:
        assert ended(sock) == b""
        program.said(cell, sock.getsockname(), f"ended: {why}")


def test_so_is_one_that_does_not_read(under: Under, client: Connect, secure: Secure, ended: Ended) -> None:
    program = under("short")
    socks = []
    for cell in program.cells:
        sock = client(program.address(cell))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock = secure(sock, "")
        sock.sendall(b"big 104857600\n")
        socks.append((cell, sock))
    for cell, sock in socks:
        program.said(cell, sock.getsockname(), "ended: write-timeout")
        sock.close()


def test_a_message_has_its_size(bounded_cell: str, under: Under, client: Connect, secure: Secure) -> None:
    sock = secure(client(under("short").address(bounded_cell)), "")
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        for _ in range(16):
            sock.sendall(b"a" * 65536)
    under("short").said(bounded_cell, sock.getsockname(), "ended: bad-message")


def test_a_client_that_trickles_does_not_escape(under: Under, client: Connect, secure: Secure) -> None:
    program = under("once")
    dribblers = {}
    for cell in program.cells:
        sock = secure(client(program.address(cell)), "")
        dribblers[cell] = sock, sock.getsockname()
    left = dict(dribblers)
    for _ in range(PATIENCE * 10):
        for cell, (sock, _) in list(left.items()):
            try:
                sock.sendall(b"a")
                if select.select([sock], [], [], 0)[0]:
                    sock.settimeout(0)
                    assert sock.recv(100) == b""
                    del left[cell]
            except ssl.SSLWantReadError:  # it was a session ticket
                sock.settimeout(PATIENCE)
            except (ConnectionError, ssl.SSLError):
                del left[cell]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    for cell, (_, address) in dribblers.items():
        program.said(cell, address, "ended: request-timeout")
