"""The PROXY protocol, from outside: whose address a handler, the rules and the limits see."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Connect, Tool
from tests.server.conftest import Cells, Ended, Peer, Secure, Under

PROXY = f"""
[sub.proxy]
trusted = ["127.0.0.1/32", "uid:{os.geteuid()}"]
header_timeout = "20s"
[sub.access]
deny = ["192.0.2.66/32", "2001:db8:66::/48"]
"""
FEW = PROXY.replace("20s", "500ms") + "[sub.limits]\nmax_per_client = 2\nconnect_rate = 3\n"
TLS = '[sub.tls]\ncert = "server.pem"\nhandshake_timeout = "20s"\n'
STRANGERS = '[sub.proxy]\ntrusted = ["192.0.2.0/24", "uid:54321"]\n'
TABLES = {
    "proxy": (PROXY,),
    "few": (FEW, "message", "blocking", "receive", "async"),
    "tls": (PROXY + TLS,),
    "strangers": (STRANGERS,),
}
HOOK = """
import srvkit

@srvkit.hookimpl
def srvkit_verify_request(server, request, client_address):
    with open("asked", "ab", buffering=0) as file:
        file.write(f"{server.name} {client_address!r}\\n".encode())
    return client_address[0] != "192.0.2.77"
"""
PLUGINS = {"proxy": HOOK}
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def line(source: str, port: int = 4711) -> bytes:
    """A header of version 1."""
    family = "TCP6" if ":" in source else "TCP4"
    return f"PROXY {family} {source} {'::1' if ':' in source else '192.0.2.1'} {port} 80\r\n".encode()


def binary(source: str, port: int = 4711, tlvs: bytes = b"", command: int = 0x21) -> bytes:
    """A header of version 2."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    other = "::1" if ":" in source else "192.0.2.1"
    addresses = (
        socket.inet_pton(family, source) + socket.inet_pton(family, other) + struct.pack("!HH", port, 80)
    )
    kind = 0x21 if ":" in source else 0x11
    return SIGNATURE + struct.pack("!BBH", command, kind, len(addresses + tlvs)) + addresses + tlvs


@pytest.fixture
def connected(under: Under, client: Connect, cell: str) -> Callable[..., socket.socket]:
    """`connected(header)`: a connection to the cell on which this was said."""

    def connect(header: bytes = b"", name: str = "proxy", transport: str = "tcp") -> socket.socket:
        sock: socket.socket = client(under(name).address(cell, transport), under(name).folder)
        sock.sendall(header)
        return sock

    return connect


@pytest.mark.parametrize("make", [line, binary])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("source", ["192.0.2.9", "2001:db8::9"])
def test_a_handler_sees_the_client_and_the_proxy(
    make: Any, transport: str, source: str, connected: Any, peer: Peer
) -> None:
    sock = connected(make(source), transport=transport)
    known = peer(sock)
    assert known["address"][:2] == [source, 4711]
    assert known["same"]
    assert known["socket"] == (list(sock.getsockname()) if transport == "tcp" else "")
    version, is_local, (host, port, *_), destination = known["proxy"]
    assert (version, is_local, host, port) == (1 if make is line else 2, False, source, 4711)
    assert destination[1] == 80
    assert (known["credentials"] is not None) == (transport == "unix")


@pytest.mark.parametrize("header", [line("192.0.2.9"), binary("192.0.2.9", tlvs=b"\x02\0\7example")])
def test_it_may_come_in_pieces(header: bytes, connected: Any, peer: Peer) -> None:
    sock = connected()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in header:
        sock.sendall(bytes([byte]))
    assert peer(sock)["address"] == ["192.0.2.9", 4711]


@pytest.mark.parametrize("header", [line("192.0.2.9"), binary("192.0.2.9")])
def test_what_follows_belongs_to_the_handler(header: bytes, connected: Any) -> None:
    """A second header too: it is data like any other."""
    sock = connected(header + b"one\n" + header.replace(b"\n", b"") + b"\ntwo\n")
    with sock.makefile("rb") as file:
        assert file.readline() == b"one\n"
        assert file.readline().rstrip() == header.replace(b"\n", b"").rstrip()
        assert file.readline() == b"two\n"


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ff 4711\r\n", binary("192.0.2.9", command=0x20)]
)
def test_where_nobody_is_spoken_for_the_sockets_address_holds(
    header: bytes, connected: Any, peer: Peer
) -> None:
    sock = connected(header)
    known = peer(sock)
    assert known["address"] == list(sock.getsockname())
    assert known["proxy"][1:] == [True, None, None]


def test_further_values_are_there(connected: Any, peer: Peer) -> None:
    known = peer(connected(binary("192.0.2.9", tlvs=b"\x02\0\x07example" + b"\xe0\0\x02hi")))
    assert known["authority"] == "example"
    assert known["tlvs"] == [[0x02, b"example".hex()], [0xE0, b"hi".hex()]]


WRONG = [
    b"hello\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4711\r\n",
    b"PROXY TCP4 192.0.2.9 192.0.2.1 4711 80\n",
    b"PROXY UNKNOWN " + b"a" * 100,
    SIGNATURE + b"\x31\x11\0\x0c" + bytes(12),
    SIGNATURE + b"\x21\x11\xff\xff",
    binary("192.0.2.9", tlvs=b"\x02\xff\xff"),
]


@pytest.mark.parametrize("header", WRONG, ids=range(len(WRONG)))
def test_what_is_no_header_ends_it(
    header: bytes, cell: str, under: Under, connected: Any, ended: Ended
) -> None:
    sock = connected(header)
    address = sock.getsockname()
    assert ended(sock) == b""
    under("proxy").said(cell, address, "ended: bad-proxy: ")
    assert under("proxy").handled(cell, address) == 0


def test_so_does_an_end_before_the_header_has(cell: str, under: Under, connected: Any, ended: Ended) -> None:
    sock = connected(line("192.0.2.9")[:20])
    address = sock.getsockname()
    sock.shutdown(socket.SHUT_WR)
    assert ended(sock) == b""
    under("proxy").said(cell, address, "ended: bad-proxy: ")


def test_a_header_that_does_not_come_is_not_waited_for(
    under: Under, client: Connect, ended: Ended, peer: Peer
) -> None:
    program = under("few")
    stalled = [(cell, client(program.address(cell))) for cell in program.cells]
    for number, (_, sock) in enumerate(stalled):
        sock.sendall(binary("192.0.2.10")[: number % 20])
    for cell in program.cells:
        with client(program.address(cell)) as sock:
            sock.sendall(line("192.0.2.11"))
            assert peer(sock)["address"] == ["192.0.2.11", 4711], cell
    for cell, sock in stalled:
        assert ended(sock) == b""
        program.said(cell, sock.getsockname(), "ended: proxy-timeout")
        assert program.handled(cell, sock.getsockname()) == 0


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_only_those_who_are_trusted_may_say_so(
    transport: str, cell: str, under: Under, client: Connect, ended: Ended
) -> None:
    program = under("strangers")
    sock = client(program.address(cell, transport), program.folder)
    try:
        sock.sendall(line("192.0.2.12") + b"hello\n")
    except ConnectionError:
        pass
    assert ended(sock) == b""
    program.program.wait_for(f"{cell}: .* refused: not a trusted proxy")
    assert program.handled(cell, ("192.0.2.12", 4711)) == 0
    assert "192.0.2.12" not in program.program.log


# Who decides sees the client


@pytest.mark.parametrize("source", ["192.0.2.66", "2001:db8:66::1"])
def test_rules_of_access_are_about_the_client(
    source: str, cell: str, under: Under, connected: Any, ended: Ended
) -> None:
    sock = connected(line(source) + b"hello\n")
    assert ended(sock) == b""
    where = f"[{source}]" if ":" in source else source
    who = re.escape(f"{cell}: {where}:4711 ")
    under("proxy").program.wait_for(f"{who}refused: denied by access rules")
    assert under("proxy").handled(cell, (source, 4711)) == 0


def test_plugins_are_asked_about_the_client(
    cell: str, under: Under, connected: Any, ended: Ended, peer: Peer
) -> None:
    program = under("proxy")
    before = asked(program, cell)
    assert ended(connected(binary("192.0.2.77") + b"hello\n")) == b""
    assert peer(connected(binary("192.0.2.78")))["address"] == ["192.0.2.78", 4711]
    assert asked(program, cell)[len(before) :] == [
        f"{cell} ('192.0.2.77', 4711)",
        f"{cell} ('192.0.2.78', 4711)",
    ]
    assert program.handled(cell, ("192.0.2.77", 4711)) == 0


def asked(program: Cells, cell: str) -> list[str]:
    path = program.folder / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    return [one for one in lines if one.startswith(f"{cell} ")]


def test_limits_are_about_the_client(
    crowded_cell: str, under: Under, client: Connect, ended: Ended, peer: Peer
) -> None:
    def connect(header: bytes) -> socket.socket:
        sock: socket.socket = client(under("few").address(crowded_cell))
        sock.sendall(header)
        return sock

    held = [connect(line("192.0.2.20", port)) for port in (1, 2)]
    for port, sock in enumerate(held, 1):
        assert peer(sock)["address"] == ["192.0.2.20", port]
    assert ended(connect(line("192.0.2.20", 3) + b"hello\n")) == b""
    under("few").said(crowded_cell, ("192.0.2.20", 3), r"refused: max_per_client \(2\) is reached")
    assert peer(connect(line("192.0.2.21", 1)))["address"] == ["192.0.2.21", 1]


def test_so_is_the_rate(cell: str, under: Under, connected: Any, ended: Ended, peer: Peer) -> None:
    for port in range(1, 31):
        with connected(line("192.0.2.30", port), "few") as sock:
            sock.shutdown(socket.SHUT_WR)
            ended(sock)
    under("few").program.wait_for(rf"{cell}: 192.0.2.30:\d+ refused: connect_rate \(3 a second\) is exceeded")
    other = connected(line("192.0.2.31", 1), "few")
    assert peer(other)["address"] == ["192.0.2.31", 1]


# Before TLS


@pytest.mark.parametrize("make", [line, binary])
def test_the_header_comes_before_tls(make: Any, connected: Any, secure: Secure, peer: Peer) -> None:
    known = peer(secure(connected(make("192.0.2.40"), "tls"), ""))
    assert known["address"] == ["192.0.2.40", 4711]
    assert known["tls"] == ["TLSv1.3", "localhost", None]


def test_and_what_comes_behind_it_is_tls(
    cell: str, under: Under, connected: Any, hello: bytes, ended: Ended
) -> None:
    sock = connected(line("192.0.2.41") + hello, "tls")
    assert sock.recv(5, socket.MSG_WAITALL)[:3] == b"\x16\x03\x03"  # a handshake record
    sock.close()
    sock = connected(line("192.0.2.42") + b"hello\n" * 10, "tls")
    assert b"hello" not in ended(sock)
    under("tls").said(cell, ("192.0.2.42", 4711), "ended: bad-tls")
    assert under("tls").handled(cell, ("192.0.2.42", 4711)) == 0


def test_a_header_within_tls_is_no_header(
    cell: str, under: Under, connected: Any, hello: bytes, ended: Ended
) -> None:
    sock = connected(hello, "tls")
    assert ended(sock) == b""
    under("tls").said(cell, sock.getsockname(), "ended: bad-proxy")


# A real one


WAYS = ("send-proxy", "send-proxy-v2", "send-proxy-v2-ssl")


@pytest.fixture(scope="module")
def haproxy(
    under: Under, tool: Tool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], Any]]:
    """`haproxy(cell, way)`: where HAProxy listens for this server and speaks of its clients this way."""
    tool("haproxy")
    program = under("proxy")
    folder = tmp_path_factory.mktemp("haproxy")
    listening: dict[tuple[str, str], socket.socket] = {}
    config = "defaults\n  mode tcp\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n"
    for cell in program.cells:
        for way in WAYS:
            listening[cell, way] = sock = socket.create_server(("127.0.0.1", 0))
            tls = f" ssl crt {program.folder}/server.pem" if way.endswith("ssl") else ""
            more = " proxy-v2-options authority" if way.endswith("ssl") else ""
            address = program.address(cell).removeprefix("tcp://")
            config += (
                f"listen {cell}-{way}\n  bind fd@{sock.fileno()}{tls}\n  server one {address} {way}{more}\n"
            )
    (folder / "haproxy.cfg").write_text(config)
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", "haproxy.cfg"],
        cwd=folder,
        pass_fds=[sock.fileno() for sock in listening.values()],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield lambda cell, way: listening[cell, way].getsockname()
    finally:
        process.terminate()
        process.wait()
        for sock in listening.values():
            sock.close()


@pytest.mark.parametrize("way", WAYS)
def test_haproxy_speaks_for_its_clients(
    way: str, cell: str, haproxy: Any, client: Connect, secure: Secure, peer: Peer
) -> None:
    sock = client(haproxy(cell, way))
    address = list(sock.getsockname())
    if way.endswith("ssl"):
        sock = secure(sock, "")
    known = peer(sock)
    assert known["address"] == address
    assert known["proxy"][:2] == [1 if way == "send-proxy" else 2, False]
    assert known["proxy"][3] == list(haproxy(cell, way))
    if way.endswith("ssl"):
        assert known["proxied"] == [True, "TLSv1.3"]
        assert known["authority"] == "localhost"
    assert known["tls"] is None
