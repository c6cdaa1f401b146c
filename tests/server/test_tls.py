"""TLS, from outside: who comes in, what is said, and that nobody who does not come in is noticed."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Connect, Eventually, Start, Tool
from tests.server.conftest import BothWays, Cells, Context, Echoes, Ended, Peer, Reset, Say, Secure, Under

PATIENCE = 30
MIB = 1 << 20

TLS = """
[sub.tls]
cert = "server.pem"
client_ca = "ca.pem"
alpn = ["edge/1"]
handshake_timeout = "20s"
[[sub.tls.sni]]
names = ["one.example"]
cert = "one.pem"
[[sub.tls.sni]]
names = ["*.wild.example"]
cert = "wild.pem"
"""
SHORT = """
[sub.limits]
first_byte_timeout = "1s"
idle_timeout = "1s"
write_timeout = "1s"
max_message = 65536
[sub.socket]
send_buffer = 4096
[sub.tls]
cert = "server.pem"
min_version = "1.3"
handshake_timeout = "1s"
"""
ONCE = """
[sub.limits]
request_timeout = "1s"
[sub.tls]
cert = "server.pem"
"""
TABLES = {"tls": (TLS,), "short": (SHORT,), "once": (ONCE,)}


@pytest.fixture
def connected(under: Under, client: Connect, cell: str) -> Callable[..., socket.socket]:
    """`connected()`: a connection to the cell, not encrypted yet."""
    return lambda name="tls", transport="tcp": client(
        under(name).address(cell, transport), under(name).folder
    )


# Who comes in


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_handler_knows_who_speaks(
    transport: str, cell: str, connected: Any, secure: Secure, peer: Peer
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
    connected: Any,
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
    name: str, presented: str, cell: str, connected: Any, context: Context, say: Say
) -> None:
    made = context()
    made.check_hostname = False
    with made.wrap_socket(connected(), server_hostname=name or None) as sock:
        assert sock.getpeercert()["subjectAltName"] == (("DNS", presented),)
        assert json.loads(say(sock, b"peer"))["tls"][1] == (name or None)


@pytest.mark.parametrize(("offers", "chosen"), [(["h2", "edge/1"], "edge/1"), (["h2"], None)])
def test_the_protocol_is_agreed_on(
    offers: list[str], chosen: str | None, cell: str, connected: Any, context: Context, say: Say
) -> None:
    made = context()
    made.set_alpn_protocols(offers)
    with made.wrap_socket(connected(), server_hostname="localhost") as sock:
        assert sock.selected_alpn_protocol() == chosen
        assert json.loads(say(sock, b"peer"))["tls"][2] == chosen


@pytest.mark.parametrize(("name", "version"), [("tls", "-tls1_1"), ("short", "-tls1_2")])
def test_older_versions_are_refused(
    name: str, version: str, tool: Tool, cell: str, under: Under, secure: Secure, connected: Any, say: Say
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


def test_much_is_said_both_ways_at_once(connected: Any, secure: Secure, both_ways: BothWays) -> None:
    said = (bytes(range(11, 256)) * 200 + b"\n") * (10 * MIB // 49001)
    assert both_ways(secure(connected()), said, len(said)) == said


@pytest.mark.parametrize("how", ["announced", "not announced"])
def test_who_has_said_all_is_still_answered(how: str, cell: str, connected: Any, context: Context) -> None:
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
    ends: bool, connected: Any, context: Context
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
    said: bytes, reason: str, cell: str, under: Under, connected: Any, echoes: Echoes, ended: Ended
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
    said: Any, how: str, cell: str, under: Under, connected: Any, hello: bytes, echoes: Echoes, reset: Reset
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
    connected: Any,
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
    cell: str, under: Under, connected: Any, eventually: Eventually
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


# Certificates that change, and the end


RELOADED = {"reload": (TLS.replace('client_ca = "ca.pem"\n', ""),)}
TABLES |= RELOADED


def test_certificates_are_renewed_and_nobody_is_cut(
    under: Under, client: Connect, secure: Secure, say: Say
) -> None:
    """Connections that have begun a message go on where they are; broken certificates change nothing."""
    program = under("reload")
    config = program.folder / "srvkit.toml"

    def connect(cell: str) -> ssl.SSLSocket:
        sock: ssl.SSLSocket = secure(client(program.address(cell)), "")
        return sock

    def names(sock: ssl.SSLSocket) -> list[str]:
        return [name for _, name in (sock.getpeercert() or {})["subjectAltName"]]

    before = {cell: connect(cell) for cell in program.cells}
    for sock in before.values():
        assert say(sock, b"hello") == b"hello"
        sock.sendall(b"half a ")
    config.write_text(program.config.replace('"server.pem"', '"ca.pem"'))
    answer = program.ask(do="reload")
    assert not answer.get("ok")
    assert "holds no usable key in PEM" in json.dumps(answer)
    config.write_text(program.config)
    (program.folder / "server.pem").write_bytes((program.folder / "renewed.pem").read_bytes())
    assert program.ask(do="reload").get("ok"), program.program.log
    after = {cell: connect(cell) for cell in program.cells}
    for sock in after.values():
        assert names(sock) == ["localhost", "renewed.example"]
        sock.sendall(b"half an")
    for cell, sock in before.items():
        assert names(sock) == ["localhost"]
        assert say(sock, b"message") == b"half a message", cell
        sock.close()
    idle = {cell: connect(cell) for cell in program.cells if not cell.startswith("serial")}
    for sock in idle.values():
        assert say(sock, b"hello") == b"hello"
    program.program.process.terminate()
    program.program.wait_for("stopping|draining")
    for cell, sock in after.items():
        assert say(sock, b"other") == b"half another", cell
        if "message" in cell:
            assert sock.recv(1) == b""  # announced, or ssl would raise
        sock.close()
    for cell, sock in idle.items():
        if "message" in cell:
            assert sock.recv(1) == b""
        sock.close()
    assert program.program.ended() == 0


# What is wrong with certificates is wrong with the configuration

WRONG = """\
[server.missing]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls.cert = "nowhere.pem"
[server.mismatched]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls = { cert = "server.pem", key = "other.pem" }
[server.encrypted]
listen = "tcp://127.0.0.1:0"
handler = "echo"
[server.encrypted.tls]
cert = "server.pem"
key = "encrypted.pem"
[server.nothing]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls.cert = "srvkit.toml"
[server.names]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls.cert = "server.pem"
[[server.names.tls.sni]]
names = ["a.*.example", "b.example"]
cert = "server.pem"
[[server.names.tls.sni]]
names = ["b.example"]
cert = "folder"
[server.authority]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls = { cert = "server.pem", client_ca = "empty.pem", alpn = [""] }
[server.datagrams]
listen = "udp://127.0.0.1:0"
handler = "echo"
tls.cert = "server.pem"
"""
PROBLEMS = """\
srvkit.toml:4: server.missing.tls.cert: nowhere.pem cannot be read: No such file or directory
srvkit.toml:8: server.mismatched.tls.key: other.pem is not the key of server.pem
srvkit.toml:14: server.encrypted.tls.key: encrypted.pem is encrypted; srvkit cannot ask for its password: \
store it without one
srvkit.toml:18: server.nothing.tls.cert: srvkit.toml holds no usable certificate in PEM
srvkit.toml:24: server.names.tls.sni[0].names[0]: 'a.*.example': only a whole first label may be '*'
srvkit.toml:27: server.names.tls.sni[1].names[0]: 'b.example' has another certificate already
srvkit.toml:28: server.names.tls.sni[1].cert: folder cannot be read: Is a directory
srvkit.toml:32: server.authority.tls.client_ca: empty.pem holds no certificate in PEM
srvkit.toml:32: server.authority.tls.alpn: a protocol's name has 1 to 255 bytes of ASCII
srvkit.toml:36: server.datagrams.tls: only streams (tcp, unix) can have it, not udp://127.0.0.1:0
"""


def test_every_problem_with_certificates_has_its_place(
    tool: Tool, start: Start, certificates: Path, tmp_path: Path
) -> None:
    tool("openssl")
    for name, source in (("server", "server"), ("other", "one")):
        (tmp_path / f"{name}.pem").write_bytes((certificates / f"{source}.pem").read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pem").touch()
    (tmp_path / "srvkit.toml").write_text(WRONG)
    subprocess.run(
        [
            "openssl",
            "pkey",
            "-in",
            "server.pem",
            "-aes128",
            "-passout",
            "pass:secret",
            "-out",
            "encrypted.pem",
        ],
        cwd=tmp_path,
        check=True,
        timeout=PATIENCE,
    )
    with start("-m", "srvkit", "check", folder=tmp_path) as program:
        assert program.ended() == 2
    said = program.log.replace(f"{tmp_path}/", "")
    for line in PROBLEMS.splitlines():
        assert line in said
    assert len(re.findall(r"srvkit\.toml:\d+:", program.log)) == len(PROBLEMS.splitlines())
