"""The mixins in front of the standard library's servers, and of those that programs derive from them."""

from __future__ import annotations

import importlib.util
import os
import socket
import socketserver
from typing import Any

import pytest

import srvkit
from srvkit.contracts import Steps

PATIENCE = 30


class Message(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        return message.upper()


class Blocking(srvkit.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


class BlockingDatagram(srvkit.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


class Async(srvkit.AsyncHandler):
    async def handle(self) -> None:
        self.writer.write((await self.reader.readline()).upper())


MIXINS = {
    "threading": srvkit.ThreadingMixIn,
    "pool": srvkit.ThreadPoolMixIn,
    "forking": srvkit.ForkingMixIn,
    "event": srvkit.EventMixIn,
    "asyncio": srvkit.TaskMixIn,
}
if importlib.util.find_spec("gevent") is not None:
    MIXINS["gevent"] = srvkit.GreenletMixIn
else:
    assert os.environ.get("SRVKIT_REQUIRE_TOOLS") != "1", "gevent is not installed"
RUNS = [
    (model, handler)
    for model, mixin in MIXINS.items()
    for handler, kind in (("message", "message"), ("blocking", "blocking"), ("async", "async"))
    if kind in mixin.handler_kinds and model != "forking"  # which is tested in programs of its own
]
HANDLERS: dict[str, Any] = {"message": Message, "blocking": Blocking, "async": Async}


@pytest.mark.parametrize(("model", "handler"), RUNS, ids="-".join)
def test_connections_are_handled(model: str, handler: str, serving: Any) -> None:
    kind = type("Server", (MIXINS[model], socketserver.TCPServer), {})
    server = serving(kind(("127.0.0.1", 0), HANDLERS[handler]))
    for _ in range(2):
        with socket.create_connection(server.server_address, PATIENCE) as sock:
            sock.sendall(b"hello\n")
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                assert file.read() == b"HELLO\n"


@pytest.mark.parametrize(("model", "handler"), RUNS, ids="-".join)
def test_datagrams_are_handled(model: str, handler: str, serving: Any, client: Any) -> None:
    kind = type("Server", (MIXINS[model], socketserver.UDPServer), {})
    chosen = HANDLERS | {"blocking": BlockingDatagram}
    server = serving(kind(("127.0.0.1", 0), chosen[handler]))
    with client("udp://{}:{}".format(*server.server_address)) as sock:
        for _ in range(2):
            sock.sendall(b"hello\n")
            assert sock.recv(100) == b"HELLO\n"


STANDARD = [
    one
    for one in vars(socketserver).values()
    if isinstance(one, type) and issubclass(one, socketserver.BaseServer)
]


def test_no_step_of_the_standard_library_is_hidden() -> None:
    """What stands between a mixin and such a server has no name that this one has."""
    filled = {name for name in vars(Steps) if not name.startswith("__")}
    assert filled
    for kind in STANDARD:
        assert not filled & set(dir(kind))


@pytest.mark.parametrize("model", MIXINS)
def test_it_is_asked_last_or_between(model: str) -> None:
    mixin = MIXINS[model]
    ours: Any = type("Ours", (mixin, srvkit.TCPServer), {})
    assert ours.__mro__[-2:] == (Steps, object)
    theirs: Any = type("Theirs", (mixin, socketserver.TCPServer), {})
    order = theirs.__mro__
    assert order.index(mixin) < order.index(Steps) < order.index(socketserver.TCPServer)


class Program(socketserver.TCPServer):
    """A server that uses for itself what srvkit calls a server's."""

    name = "the program's"
    limits = {"people": 3}
    draining = "maybe"
    _loop = _name = "a loop"

    def request_done(self, request: Any) -> str:
        return "done"

    def pause_accepting(self) -> str:
        return "paused"


class Further(Program):
    """Overrides one of them."""

    def pause_accepting(self) -> str:
        return f"further {super().pause_accepting()}"


@pytest.mark.parametrize("model", MIXINS)
def test_a_program_keeps_the_names_of_its_own_server(model: str) -> None:
    """Nothing of srvkit's that does nothing stands in front of them."""
    kind: Any = type("Server", (MIXINS[model], Program), {})
    further: Any = type("Server", (MIXINS[model], Further), {"limits": "none"})
    for one in (kind, type("Derived", (kind,), {})):
        assert (one.name, one.limits, one.draining) == ("the program's", {"people": 3}, "maybe")
        assert (one._loop, one._name) == ("a loop", "a loop")
        server = one(("127.0.0.1", 0), Message, bind_and_activate=False)
        assert (server.request_done(None), server.pause_accepting()) == ("done", "paused")
        server.server_close()
    assert further.limits == "none"
    server = further(("127.0.0.1", 0), Message, bind_and_activate=False)
    assert server.pause_accepting() == "further paused"
    server.server_close()


@pytest.mark.parametrize("model", MIXINS)
def test_what_a_mixin_extends_goes_on_to_the_programs_own(model: str) -> None:
    """A step that does nothing does not stand between them."""
    called: list[Any] = []

    class Own(socketserver.TCPServer):
        def drain(self, patience: float = 0.0) -> None:
            called.append("drain")

        def abort_all(self) -> int:
            called.append("abort_all")
            return 0

        def abort_request(self, request: Any) -> bool:
            return request == "its own"

    server = type("Server", (MIXINS[model], Own), {})(("127.0.0.1", 0), Message, bind_and_activate=False)
    server.drain()
    server.abort_all()
    assert called == ["drain", "abort_all"]
    assert server.abort_request("its own") and not server.abort_request("another")
    server.server_close()


class Listening:
    """A listening socket as much as a server that has yet to serve asks of it."""

    do_handshake_on_connect = True


@pytest.mark.parametrize("model", ["threading", "pool", "forking"])
def test_a_program_may_keep_its_socket_and_address_elsewhere(model: str) -> None:
    """They are asked for as attributes, and may be properties."""
    listening = Listening()

    class Program:
        RequestHandlerClass = Blocking
        socket = property(lambda self: listening)

        verify_request = socketserver.BaseServer.verify_request

        def serve_forever(self, poll_interval: float) -> None:
            """It has nothing to do."""

    server: Any = type("Server", (MIXINS[model], Program), {})()
    server.serve_forever()
    assert server.handshakes_due and not listening.do_handshake_on_connect

    class Ours(MIXINS[model], srvkit.TCPServer):  # type: ignore[misc, name-defined]
        server_address = property(lambda self: ("elsewhere", 1), lambda self, value: None)

    ours = Ours(("127.0.0.1", 0), Blocking, bind_and_activate=False)
    assert "elsewhere" in repr(ours)
    ours.server_close()


def test_a_server_of_srvkits_is_not_touched() -> None:
    """Its own names are found first, and nothing is added to its classes."""

    class Server(srvkit.ThreadingMixIn, srvkit.TCPServer):
        pass

    assert not {name for name in vars(Server) if not name.startswith("__")}


def test_a_program_may_name_an_attribute_as_srvkit_does(serving: Any) -> None:
    """A server's name in logs is asked for by no name that programs use."""

    class Server(srvkit.ThreadingTCPServer):
        _name = "mine"

    server = serving(Server(("127.0.0.1", 0), Message))
    with socket.create_connection(server.server_address, PATIENCE) as sock:
        sock.sendall(b"hello\n")
        with sock.makefile("rb") as file:
            assert file.readline() == b"HELLO\n"
    server.back_off_accepting(OSError("too many open files"))
