"""A client that asks for a reply without end, and takes it quickly, holds up nobody else."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

import srvkit
from srvkit.concurrency.message_connection import MessageConnection
from srvkit.net.tls_connection import TlsConnection
from srvkit.protocol.conversation import PARTS, TURN

MODELS: dict[str, Any] = {
    "event": "event",
    "asyncio": {"name": "asyncio", "loop": "asyncio"},
    "pool": {"name": "pool", "threads": 1},
    "threading": "threading",
    "gevent": "gevent",
}


class Talk(srvkit.MessageHandler):
    framing = srvkit.Lines()
    enough = threading.Event()

    def handle_message(self, message: bytes) -> Any:
        return self.endless() if message == b"endless" else message

    def endless(self) -> Iterator[bytes]:
        while not self.enough.is_set():
            yield bytes(1000)


@pytest.mark.parametrize("model", list(MODELS))
def test_others_are_answered_meanwhile(model: str, client: Any) -> None:
    if model == "gevent":
        pytest.importorskip("gevent")
    Talk.enough.clear()
    with srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=MODELS[model]) as server:
        greedy, other = client(server.address), client(server.address)
        greedy.sendall(b"endless\n")
        assert greedy.recv(1000)

        def take() -> None:
            while greedy.recv(1 << 20):
                pass

        reader = threading.Thread(target=take, daemon=True)
        reader.start()
        try:
            with other.makefile("rb") as answers:
                for number in range(20):
                    other.sendall(b"%d\n" % number)
                    assert answers.readline() == b"%d\n" % number
        finally:
            Talk.enough.set()
    reader.join()


@pytest.mark.parametrize("does", ["send", "sendall", "recv", "recv_into"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_greenlet_that_never_has_to_wait_lets_others_run(does: str, tls: bool, tmp_path: Path) -> None:
    gevent = pytest.importorskip("gevent")
    from srvkit.concurrency.gevent.sockets import cooperative

    near, far = socket.socketpair()
    sock = cooperative(TlsConnection)(near.family, near.type, near.proto, near.detach())
    peer = Encrypted(far, sock, tmp_path) if tls else far
    others = []

    def go_on() -> int:
        for done in range(10 * TURN):
            if does.startswith("send"):
                getattr(sock, does)(b"x" * 100)
                peer.recv(100)
            else:
                peer.sendall(b"x" * 200)
                sock.recv(100) if does == "recv" else sock.recv_into(bytearray(100))
                sock.recv(100)
            if others:
                return done
        return done

    with sock, far:
        greedy = gevent.spawn(go_on)
        gevent.spawn(others.append, "ran")
        assert greedy.get() <= TURN


class Encrypted:
    """The client's end of a connection, once both have shaken hands."""

    def __init__(self, sock: socket.socket, server: Any, folder: Path) -> None:
        ca = trustme.CA()
        ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
        ours, theirs = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.configure_trust(ours)
        theirs.load_cert_chain(folder / "both.pem")
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ours.wrap_bio(self._in, self._out, server_hostname="localhost")
        server.begin_tls(SimpleNamespace(context=theirs))
        done = False
        while not done:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                done = True
            sock.sendall(self._out.read())
            server.shake_hands()
            with contextlib.suppress(BlockingIOError):
                self._in.write(sock.recv(65536, socket.MSG_DONTWAIT))

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._sock.sendall(self._out.read())

    def recv(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._in.write(self._sock.recv(65536, socket.MSG_DONTWAIT))


class Loop:
    """As much of a loop as a connection needs; what is to be called soon waits in `soon`."""

    now = 0.0

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def watch(self, fd: int, callback: Any, events: int) -> None:
        self.ready = callback

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)


class Quick:
    """The socket of a peer that takes everything at once."""

    def __init__(self, said: bytes) -> None:
        self.said = [said]
        self.taken = 0

    def fileno(self) -> int:
        return 3

    def recv(self, size: int, flags: int) -> bytes:
        if not self.said:
            raise BlockingIOError
        return self.said.pop()

    def send(self, data: bytes, flags: int) -> int:
        self.taken += len(data)
        return len(data)


class Server(srvkit.TCPServer):
    limits = None
    links: Any = {}

    def __init__(self, handler: Any) -> None:
        self.RequestHandlerClass = handler
        self._srvkit_loop_thread = threading.get_ident()


@pytest.mark.parametrize("reply", ["generator", "list", "messages"])
def test_one_turn_of_the_loop_handles_so_much_and_no_more(reply: str) -> None:
    class Long(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def handle_message(self, message: bytes) -> Any:
            parts = 100 * TURN * PARTS
            if reply == "messages":
                return bytes(1000)
            return (b"x" for _ in range(parts)) if reply == "generator" else [b"x"] * parts

    loop, peer = Loop(), Quick(b"go\n" * (20_000 if reply == "messages" else 1))
    connection = MessageConnection(Server(Long), loop, peer, ("x", 1))  # type: ignore[arg-type]
    connection.begin()
    most = 0
    loop.ready()
    while loop.soon:
        before = peer.taken
        (step,) = loop.soon
        loop.soon.clear()
        step()
        most = max(most, peer.taken - before)
    assert peer.taken == {"generator": 2 * 100 * TURN * PARTS, "list": 2 * 100 * TURN * PARTS}.get(
        reply, 20_000 * 1001
    )
    assert most <= (TURN + 1) * {"generator": 2, "list": 2 * (PARTS + 1), "messages": 67_000}[reply]
