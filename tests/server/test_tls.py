"""TLS, from outside: who comes in, and what is said."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Tool
from tests.server.conftest import BothWays, Cells, Connected, Context, Echoes, Ended, Peer, Say, Secure, Under
from tests.server.tls_settings import SHORT, TLS

PATIENCE = 30
MIB = 1 << 20
TABLES = {"tls": (TLS,), "short": (SHORT,)}


# Who comes in


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_handler_knows_who_speaks(
    transport: str, cell: str, connected: Connected, secure: Secure, peer: Peer
) -> None:
    known = peer(secure(connected(transport=transport)))
    assert known["tls"] == ["TLSv1.3", "localhost", None]
    assert known["certificate"] == {"commonName": "a client"} | known["certificate"]
    assert known["same"]
    assert (known["credentials"] is not None) == (transport == "unix")


def test_openssl_is_served(tool: Tool, under: Under, cell: str) -> None:
    tool("openssl")
    program = under("tls")
    with s_client(program, cell, "-quiet", "-CAfile", "ca.pem", "-verify_return_error") as it:
        assert it.stdin and it.stdout
        it.stdin.write(b"hello\n")
        it.stdin.flush()
        assert it.stdout.readline() == b"hello\n"
        it.stdin.close()
        it.kill()


def s_client(program: Cells, cell: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            "openssl",
            "s_client",
            "-connect",
            program.address(cell).removeprefix("tcp://"),
            *options,
            "-cert",
            "client.pem",
            "-servername",
            "localhost",
        ],
        cwd=program.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "-quiet" in options else subprocess.STDOUT,
    )


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        ("", "the client presented no certificate"),
        ("stranger", "the client's certificate is not accepted: "),
        ("expired", "the client's certificate is not accepted: certificate has expired"),
    ],
)
def test_without_a_good_certificate_nobody_comes_in(
    certificate: str,
    reason: str,
    cell: str,
    under: Under,
    connected: Connected,
    secure: Secure,
    echoes: Echoes,
    ended: Ended,
) -> None:
    sock = connected()
    address = sock.getsockname()
    under("tls").connects(cell, address)
    try:
        encrypted = secure(
            sock, certificate
        )  # of TLS 1.3, the client's part may be over before it is refused
        encrypted.sendall(b"hello\n")
        with pytest.raises(ssl.SSLError, match="alert"):
            encrypted.recv(100)
    except (ssl.SSLError, ConnectionError):
        pass
    under("tls").said(cell, address, f"ended: bad-tls: {reason}")
    echoes(under("tls"), cell)
    assert under("tls").handled(cell, address) == 0


@pytest.mark.parametrize(
    ("name", "presented"),
    [
        ("one.example", "one.example"),
        ("a.wild.example", "*.wild.example"),
        ("LOCALHOST", "localhost"),
        ("a.b.wild.example", "localhost"),
        ("", "localhost"),
    ],
)
def test_the_name_chooses_the_certificate(
    name: str, presented: str, cell: str, connected: Connected, context: Context, say: Say
) -> None:
    made = context()
    made.check_hostname = False
    with made.wrap_socket(connected(), server_hostname=name or None) as sock:
        assert sock.getpeercert()["subjectAltName"] == (("DNS", presented),)
        assert json.loads(say(sock, b"peer"))["tls"][1] == (name or None)


@pytest.mark.parametrize(("offers", "chosen"), [(["h2", "edge/1"], "edge/1"), (["h2"], None)])
def test_the_protocol_is_agreed_on(
    offers: list[str], chosen: str | None, cell: str, connected: Connected, context: Context, say: Say
) -> None:
    made = context()
    made.set_alpn_protocols(offers)
    with made.wrap_socket(connected(), server_hostname="localhost") as sock:
        assert sock.selected_alpn_protocol() == chosen
        assert json.loads(say(sock, b"peer"))["tls"][2] == chosen


@pytest.mark.parametrize(("name", "version"), [("tls", "-tls1_1"), ("short", "-tls1_2")])
def test_older_versions_are_refused(
    name: str,
    version: str,
    tool: Tool,
    cell: str,
    under: Under,
    secure: Secure,
    connected: Connected,
    say: Say,
) -> None:
    tool("openssl")
    program = under(name)
    with s_client(program, cell, version, "-cipher", "ALL@SECLEVEL=0") as it:
        said, _ = it.communicate(b"hello\n", PATIENCE)
    assert it.returncode != 0
    assert b"alert protocol version" in said
    assert say(secure(connected(name)), b"hello") == b"hello"


def test_nothing_is_negotiated_anew(tool: Tool, cell: str, under: Under, echoes: Echoes) -> None:
    tool("openssl")
    with s_client(under("tls"), cell, "-tls1_2") as it:
        said, _ = it.communicate(b"R\n", PATIENCE)
    assert b"RENEGOTIATING" in said
    assert b"no renegotiation" in said
    echoes(under("tls"), cell)


# What is said


def test_much_is_said_both_ways_at_once(connected: Connected, secure: Secure, both_ways: BothWays) -> None:
    said = (bytes(range(11, 256)) * 200 + b"\n") * (10 * MIB // 49001)
    assert both_ways(secure(connected()), said, len(said)) == said


@pytest.mark.parametrize("how", ["announced", "not announced"])
def test_who_has_said_all_is_still_answered(
    how: str, cell: str, connected: Connected, context: Context
) -> None:
    """The client ends its half at once; the whole reply follows, and then the server's announced end."""
    sock = connected()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context().wrap_bio(incoming, outgoing, server_hostname="localhost")

    def until_done(step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    sock.sendall(outgoing.read())
                data = sock.recv(65536)
                assert data, "the end was not announced"
                incoming.write(data)
            finally:
                if outgoing.pending:
                    sock.sendall(outgoing.read())

    until_done(tls.do_handshake)
    tls.write(b"big 1048576\nlast\n")
    if how == "announced":
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
    sock.sendall(outgoing.read())
    if how == "not announced":
        sock.shutdown(socket.SHUT_WR)
    received = b""
    with contextlib.suppress(ssl.SSLZeroReturnError):
        while True:
            data = until_done(lambda: tls.read(65536))
            if not data:  # the end, where the client has not announced its own
                break
            received += data
    assert len(received) == MIB + len(b"last\n")
    assert received.endswith(b"x\nlast\n")
    assert sock.recv(1) == b""


@pytest.mark.parametrize("ends", [False, True])
def test_what_comes_with_the_end_of_the_handshake_is_answered(
    ends: bool, connected: Connected, context: Context
) -> None:
    """The first message, and even the end, in one piece with the client's last part of it."""
    sock = connected()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context().wrap_bio(incoming, outgoing, server_hostname="localhost")

    def hear(step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                data = sock.recv(65536)
                assert data
                incoming.write(data)

    hear(tls.do_handshake)
    tls.write(b"hello\n")
    if ends:
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
    assert hear(lambda: tls.read(100)) == b"hello\n"
    if ends:
        with contextlib.suppress(ssl.SSLZeroReturnError):
            assert hear(lambda: tls.read(100)) == b""
