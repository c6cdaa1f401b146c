"""Connections that begin in the clear and go on encrypted when the handler says so."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Connect
from tests.server.conftest import Ended, Peer, Say, Secure, Under

TABLES = {
    "starts": (
        '[sub.tls]\ncert = "server.pem"\nbegin = "handler"\nhandshake_timeout = "20s"\n'
        '[sub.limits]\nfirst_byte_timeout = "20s"\n',
    ),
    "short": ('[sub.tls]\ncert = "server.pem"\nbegin = "handler"\nhandshake_timeout = "500ms"\n',),
}


@pytest.fixture
def connected(under: Under, client: Connect, cell: str, say: Say, peer: Peer) -> Callable[..., socket.socket]:
    """`connected()`: a connection on which TLS may begin, still in the clear."""

    def connect(transport: str = "tcp") -> socket.socket:
        sock: socket.socket = client(under("starts").address(cell, transport), under("starts").folder)
        assert peer(sock)["tls"] is None
        return sock

    return connect


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_it_goes_on_encrypted(transport: str, connected: Any, secure: Secure, say: Say, peer: Peer) -> None:
    sock = connected(transport)
    assert say(sock, b"tls") == b"go"
    encrypted = secure(sock, "")
    assert peer(encrypted)["tls"] == ["TLSv1.3", "localhost", None]
    encrypted.sendall(b"big 1048576\nlast\n")
    with encrypted.makefile("rb") as file:
        assert len(file.read(1048576)) == 1048576
        assert file.readline() == b"last\n"


def test_what_the_constructor_has_set_lasts(
    bounded_cell: str, under: Under, client: Connect, say: Say, secure: Secure
) -> None:
    """The handler of the encrypted part is the one that was constructed before the connection began."""
    sock = client(under("starts").address(bounded_cell), under("starts").folder)
    assert say(sock, b"lines") == b"1"
    assert say(sock, b"tls") == b"go"
    assert say(secure(sock, ""), b"lines") == b"3"


def test_what_was_sent_in_the_clear_too_early_is_not_taken_for_encrypted(
    cell: str, under: Under, connected: Any, secure: Secure, say: Say, ended: Ended
) -> None:
    """Such a client is a bad one, or what it sent is thrown away: in no case is it answered."""
    sock = connected()
    sock.sendall(b"tls\nevil\n")
    assert sock.recv(3, socket.MSG_WAITALL) == b"go\n"
    answer = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        answer = say(secure(sock, ""), b"hello")
    assert answer in (b"", b"hello")


@pytest.mark.parametrize("said", [b"hello\n", b"GET / HTTP/1.1\r\n\r\n", b""])
def test_without_a_handshake_it_ends(
    said: bytes, cell: str, under: Under, connected: Any, say: Say, ended: Ended
) -> None:
    """The client goes on in the clear, or goes away."""
    sock = connected()
    address = sock.getsockname()
    assert say(sock, b"tls") == b"go"
    if said:
        sock.sendall(said)
        assert b"hello" not in ended(sock)
    sock.close()
    under("starts").said(cell, address, "ended: (bad-tls|reset)")


def test_a_handshake_that_stalls_is_cut(
    under: Under, client: Connect, say: Say, ended: Ended, hello: bytes
) -> None:
    program = under("short")
    stalled = {}
    for cell in program.cells:
        stalled[cell] = sock = client(program.address(cell))
        assert say(sock, b"tls") == b"go"
        sock.sendall(hello[:100])
    for cell, sock in stalled.items():
        assert ended(sock) == b"", cell
        program.said(cell, sock.getsockname(), "ended: tls-timeout")
