"""What becomes of a connection whose handler is done before its peer is."""

from __future__ import annotations

import contextlib
import importlib.util
import select
import socket
import ssl
import threading
from typing import Any

import pytest
import trustme

import srvkit
from srvkit.server import lingering

MODELS = ["serial", "threading", "pool", "gevent"]
REPLY = b"x" * 8_000_000  # more than the kernel keeps


class Brief(srvkit.StreamRequestHandler):
    """Reads one line, answers, and has done its part."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(REPLY + b"\n")


class BriefMessages(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        self.close()
        return REPLY


CASES = [(model, handler) for model in MODELS for handler in (Brief, BriefMessages)]
CASES += [("event", BriefMessages), ("asyncio", BriefMessages)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def brief(request: Any) -> Any:
    """A server of one connection at a time."""
    model, handler = request.param
    if model == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    limits = {"max_connections": 1, "idle_timeout": 0, "first_byte_timeout": 0}
    with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model, limits=limits) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    return folder


def everything(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as file:
        return file.read()


def test_a_client_that_stays_holds_nobody_up(brief: Any, client: Any) -> None:
    """Its seat, its thread and the loop are free as soon as it was answered."""
    first = client(brief.address)
    first.sendall(b"hello\n")
    assert everything(first) == REPLY + b"\n"
    second = client(brief.address)
    second.sendall(b"hello\n")
    assert everything(second) == REPLY + b"\n"


def test_the_reply_survives_what_was_not_read(brief: Any, client: Any) -> None:
    """Closing with unread input would have the kernel reset the connection and drop the rest of the reply."""
    with client(brief.address) as sock:
        sock.sendall(b"hello\n" + bytes(300_000))
        assert everything(sock) == REPLY + b"\n"
    with client(brief.address) as another:  # and it goes on
        another.sendall(b"hello\n")
        assert everything(another) == REPLY + b"\n"


class Large(srvkit.StreamRequestHandler):
    """Answers with what fits in the system's buffers on this side, and not on the other."""

    def handle(self) -> None:
        self.rfile.readline()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.wfile.write(LARGE)


class LargeMessages(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> Any:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if message == b"fail":
            self.send(LARGE)
            raise LookupError("as wished")
        if message == b"stay":
            return LARGE
        if message == b"and one thing more":
            return None
        self.close()
        return LARGE


class LargeCoroutine(srvkit.AsyncHandler):
    async def handle(self) -> None:
        await self.reader.readline()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.writer.write(LARGE)


LARGE = b"y" * 180_000
SAID = [(model, handler) for model in [*MODELS, "forking"] for handler in (Large, LargeMessages)]
SAID += [("event", LargeMessages), ("asyncio", LargeMessages), ("asyncio", LargeCoroutine)]


@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize(
    ("model", "handler"), SAID, ids=[f"{model}-{handler.__name__}" for model, handler in SAID]
)
def test_the_reply_survives_what_is_said_after_the_close(
    model: str, handler: Any, encrypted: bool, client: Any, certificates: Any, eventually: Any
) -> None:
    """Some of it waits, until its client reads; meanwhile that says more, which the kernel would resent."""
    if model == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    cert = str(certificates / "cert.pem")
    settings = {"tls": {"cert": cert, "key": cert}} if encrypted else {}
    with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model, **settings) as server:
        with contextlib.ExitStack() as stack:
            sock: Any = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            sock.settimeout(30)
            sock.connect(server.address)
            if encrypted:
                context = ssl.create_default_context(cafile=certificates / "ca.pem")
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
            sock.sendall(b"go\n")
            eventually(lambda: "0 of" in repr(server.server) or model == "forking")
            if model == "forking":
                select.select([sock], [], [], 30)
            sock.sendall(b"and one thing more\n")
            assert everything(sock).rstrip(b"\n") == LARGE
        assert server.stop(30)


@pytest.mark.parametrize("model", ["threading", "pool", "event", "serial"])
@pytest.mark.parametrize("said", [b"fail\n", b"stay\n"])
def test_also_when_the_handler_raises_or_the_server_stops(
    said: bytes, model: str, client: Any, eventually: Any
) -> None:
    with srvkit.serve(LargeMessages, "tcp://127.0.0.1:0", concurrency=model) as server:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            sock.settimeout(30)
            sock.connect(server.address)
            sock.sendall(said)
            select.select([sock], [], [], 30)
            if said == b"stay\n":
                stopping = threading.Thread(target=server.stop, args=(30,))
                stopping.start()
                eventually(lambda: server.server.draining)
            else:
                eventually(lambda: "0 of" in repr(server.server))
            sock.sendall(b"and one thing more\n")
            assert everything(sock) == LARGE + b"\n"
        if said == b"stay\n":
            stopping.join()


def test_a_short_reply_costs_no_look_at_the_queue(monkeypatch: Any, client: Any) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(lingering, "untaken", lambda request: looks.append(request) or 0)

    class Short(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def handle_message(self, message: bytes) -> bytes:
            self.close()
            return message

    with srvkit.serve(Short, "tcp://127.0.0.1:0", concurrency="event") as server:
        for size in (1000, 2000):
            with client(server.address) as sock:
                sock.sendall(b"z" * size + b"\n")
                assert everything(sock) == b"z" * size + b"\n"
    assert len(looks) == 1
