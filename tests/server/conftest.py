"""What tests of servers share: certificates, clients that speak TLS, and one program with every model.

A cell is a model with a kind of handler. A module's `TABLES` are the settings under which its servers
run, by name; `under(name)` is a program with one server for each cell under these settings.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import os
import re
import select
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import trustme

from srvkit.process.control_client import ask
from tests.conftest import Connect, Program, Start

PATIENCE = 30  # seconds before something counts as hung; nothing waits that long when all is well
PLUGIN = Path(__file__).with_name("line_handlers.py")
BLOCKING = ("message", "blocking", "receive")
MODELS: dict[str, tuple[str, ...]] = {
    "serial": BLOCKING,
    "threading": BLOCKING,
    "pool": BLOCKING,
    "forking": BLOCKING,
    "event": ("message",),
    "asyncio": ("message", "async"),
    "gevent": BLOCKING,
}
HAS_GEVENT = importlib.util.find_spec("gevent") is not None
CELLS = [(model, kind) for model, kinds in MODELS.items() for kind in kinds]
TABLE = """
[server.{model}-{kind}]
handler = "line-{kind}"
concurrency = "{model}"
"""
LISTEN = 'listen = ["tcp://127.0.0.1:0", "unix:{}"]\n'


def _needs_gevent(model: str) -> str:
    if model == "gevent" and not HAS_GEVENT:
        assert os.environ.get("SRVKIT_REQUIRE_TOOLS") != "1", "gevent is not installed"
        pytest.skip("gevent is not installed")
    return model


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Each model in turn."""
    return _needs_gevent(str(request.param))


def _one(request: pytest.FixtureRequest) -> str:
    model, kind = request.param
    return f"{_needs_gevent(model)}-{kind}"


@pytest.fixture(params=[cell for cell in CELLS if cell[1] != "receive"], ids="-".join)
def cell(request: pytest.FixtureRequest) -> str:
    """Each model with each kind of handler: the name of a server."""
    return _one(request)


@pytest.fixture(params=CELLS, ids="-".join)
def every_cell(request: pytest.FixtureRequest) -> str:
    """The same, and with handlers that call recv() themselves."""
    return _one(request)


@pytest.fixture(params=[cell for cell in CELLS if cell[0] != "serial"], ids="-".join)
def crowded_cell(request: pytest.FixtureRequest) -> str:
    """Every one that has several clients at a time."""
    return _one(request)


@pytest.fixture(params=[cell for cell in CELLS if cell[1] in ("message", "async")], ids="-".join)
def bounded_cell(request: pytest.FixtureRequest) -> str:
    """Those whose handlers do not read for themselves, and need not see to the size of what comes."""
    return _one(request)


class Cells:
    """A program with a server for each cell."""

    def __init__(
        self, folder: Path, start: Callable[..., Program], table: str, kinds: tuple[str, ...]
    ) -> None:
        self.folder = folder
        self.cells = [
            f"{model}-{kind}" for model, kind in CELLS if kind in kinds and (model != "gevent" or HAS_GEVENT)
        ]
        head = f'[srvkit]\nplugins = ["{PLUGIN}", {{more}}]\ncontrol = "c.sock"\ndrain_timeout = "20s"\n'
        more = '"plugin.py"' if (folder / "plugin.py").exists() else ""
        self.config = head.format(more=more)
        for model, kind in CELLS:
            name = f"{model}-{kind}"
            if name in self.cells:
                body = table.replace("[sub.", f"[server.{name}.").replace("[[sub.", f"[[server.{name}.")
                listen = "" if "listen =" in table else LISTEN.format(name)
                self.config += TABLE.format(model=model, kind=kind) + listen + body.replace("CELL", name)
        (folder / "srvkit.toml").write_text(self.config)
        self._before: Counter[tuple[str, Any]] = Counter()
        (folder / "handled").touch()
        os.chmod(folder / "handled", 0o666)
        self.program = start("-m", "srvkit", "run", folder=folder)
        for cell in self.cells:
            self.program.addresses(cell)

    def address(self, cell: str, transport: str = "tcp") -> str:
        """Return where a server listens, for `client(address, folder)`."""
        return next(one for one in self.program.addresses(cell) if one.startswith(transport))

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask over the control socket."""
        return ask(self.folder / "c.sock", request, PATIENCE)

    def server(self, cell: str) -> dict[str, Any]:
        """Return what the status says of a server."""
        servers: list[dict[str, Any]] = self.ask(do="status")["servers"]
        (found,) = (one for one in servers if one["name"] == cell)
        return found

    def worker(self, cell: str) -> int:
        """Return the process of a server."""
        (worker,) = self.server(cell)["workers"]
        return int(worker["pid"])

    def connects(self, cell: str, peer: Any) -> None:
        """Leave out of `handled` whoever had this port before; call it before the client says anything."""
        self._before[cell, peer] = self.handled(cell, peer)

    def handled(self, cell: str, peer: Any) -> int:
        """Return how many handlers a server has made for a client."""
        lines = (self.folder / "handled").read_text().splitlines()
        return lines.count(f"{cell} {tuple(peer)!r}") - self._before[cell, peer]

    def lines(self, cell: str, peer: Any) -> list[str]:
        """Return what a server has logged about a client."""
        # With the server's name: for another one, the kernel may have chosen the same port.
        who = re.escape("{}: {}:{} ".format(cell, *peer))
        return [line for line in self.program.log.splitlines() if re.search(who, line)]

    def said(self, cell: str, peer: Any, pattern: str) -> None:
        """Wait until a server's log has one line about a client, and see that this is it."""
        who = re.escape("{}: {}:{} ".format(cell, *peer))
        self.program.wait_for(f"{who}(?:{pattern})")
        assert len(self.lines(cell, peer)) == 1, self.lines(cell, peer)


Under = Callable[[str], Cells]


@pytest.fixture(scope="module")
def under(
    start: Start,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    certificates: Path,
) -> Iterator[Under]:
    """`under(name)`: the program with the module's `TABLES[name]`; one for all tests of the module."""
    programs: dict[str, Cells] = {}
    with contextlib.ExitStack() as stack:

        def begin(name: str) -> Cells:
            if name not in programs:
                folder = tmp_path_factory.mktemp("e")
                for path in certificates.iterdir():
                    (folder / path.name).write_bytes(path.read_bytes())
                table, *kinds = request.module.TABLES[name]
                plugin = getattr(request.module, "PLUGINS", {}).get(name)
                if plugin:
                    (folder / "plugin.py").write_text(plugin)
                started = lambda *words, **more: stack.enter_context(start(*words, **more))  # noqa: E731
                programs[name] = Cells(
                    folder, started, table, tuple(kinds) or ("message", "blocking", "async")
                )
            return programs[name]

        yield begin
        for one in programs.values():
            assert one.program.process.poll() is not None or one.program.end() == 0, one.program.log
            assert "Traceback" not in one.program.log, one.program.log


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: ca, server, one, wild, renewed, client, stranger (of another authority), expired, late."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    for name, authority, host, more in (
        ("server", ca, "localhost", {}),
        ("one", ca, "one.example", {}),
        ("wild", ca, "*.wild.example", {}),
        ("client", ca, "client@example.org", {"common_name": "a client"}),
        ("stranger", other, "client@example.org", {}),
        ("expired", ca, "client@example.org", {"not_after": past}),
    ):
        made = authority.issue_cert(host, **more)
        made.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    renewed = ca.issue_cert("localhost", "renewed.example")
    renewed.private_key_and_cert_chain_pem.write_to_path(folder / "renewed.pem")
    return folder


class Context(Protocol):
    def __call__(self, certificate: str = "client") -> ssl.SSLContext: ...


class Secure(Protocol):
    def __call__(
        self, sock: socket.socket, certificate: str = "client", name: str = "localhost"
    ) -> ssl.SSLSocket: ...


Say = Callable[[socket.socket, bytes], bytes]
Peer = Callable[[socket.socket], dict[str, Any]]
Ended = Callable[[socket.socket], bytes]
BothWays = Callable[[socket.socket, bytes, int], bytes]
Reset = Callable[[socket.socket], None]


class Connected(Protocol):
    def __call__(self, name: str = "tls", transport: str = "tcp") -> socket.socket: ...


class Echoes(Protocol):
    def __call__(self, program: Cells, cell: str, encrypted: bool = True) -> None: ...


@pytest.fixture
def context(certificates: Path) -> Context:
    """`context("client")`: how a client speaks TLS, with this certificate; "" for none."""

    def make(certificate: str = "client") -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=certificates / "ca.pem")
        if certificate:
            made.load_cert_chain(certificates / f"{certificate}.pem")
        return made

    return make


@pytest.fixture
def secure(context: Context) -> Iterator[Secure]:
    """`secure(sock, certificate="client", name="localhost")`: the same connection, encrypted."""
    with contextlib.ExitStack() as stack:

        def wrap(sock: socket.socket, certificate: str = "client", name: str = "localhost") -> ssl.SSLSocket:
            return stack.enter_context(
                context(certificate).wrap_socket(sock, server_hostname=name, suppress_ragged_eofs=False)
            )

        yield wrap


@pytest.fixture(scope="session")
def say() -> Say:
    """`say(sock, b"hello")`: the line that is answered to a line; b"" at the end."""

    def say(sock: socket.socket, line: bytes) -> bytes:
        sock.sendall(line + b"\n")
        return receive_line(sock)

    return say


def receive_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(65536)
        if not data:
            break
        line += data
    return line.removesuffix(b"\n")


@pytest.fixture(scope="session")
def peer(say: Say) -> Peer:
    """`peer(sock)`: what the handler knows of its peer."""

    def peer(sock: socket.socket) -> dict[str, Any]:
        known: dict[str, Any] = json.loads(say(sock, b"peer"))
        return known

    return peer


@pytest.fixture(scope="session")
def ended() -> Ended:
    """`ended(sock)`: what still comes until the other side has ended the connection, in whatever way."""

    def ended(sock: socket.socket) -> bytes:
        pieces = []
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := sock.recv(65536):
                pieces.append(data)
        return b"".join(pieces)

    return ended


@pytest.fixture(scope="session")
def both_ways() -> BothWays:
    """`both_ways(sock, data, most)`: say all of it, hear meanwhile until so much or the end has come."""

    def both_ways(sock: socket.socket, data: bytes, most: int) -> bytes:
        sock.setblocking(False)  # and one thread: ssl's sockets are not for two
        heard = bytearray()
        sent = 0
        while len(heard) < most:
            wanted = [sock] if sent < len(data) else []
            readable, writable, _ = select.select([sock], wanted, [], PATIENCE)
            assert readable or writable, (sent, len(heard))
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                while piece := sock.recv(65536):
                    heard += piece
                break
            with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
                sent += sock.send(data[sent : sent + 16384]) if writable else 0
        return bytes(heard)

    return both_ways


@pytest.fixture(scope="session")
def reset() -> Reset:
    """`reset(sock)`: close a connection so that the other side sees a reset."""

    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        sock.close()

    return reset


@pytest.fixture
def echoes(client: Connect, secure: Secure, say: Say) -> Echoes:
    """`echoes(program, cell)`: see that somebody else is served; `encrypted` says how."""

    def check(program: Cells, cell: str, encrypted: bool = True) -> None:
        sock = client(program.address(cell))
        if encrypted:
            sock = secure(sock)
        assert say(sock, b"hello") == b"hello"
        sock.close()

    return check


@pytest.fixture(scope="session")
def hello() -> bytes:
    """What a TLS client says first."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        made.do_handshake()
    return outgoing.read()


@pytest.fixture
def connected(under: Under, client: Connect, cell: str) -> Connected:
    """`connected(name="tls", transport="tcp")`: a connection to the cell, not encrypted yet."""

    def connected(name: str = "tls", transport: str = "tcp") -> socket.socket:
        program = under(name)
        return client(program.address(cell, transport), program.folder)

    return connected
