"""Connections that live in a loop: what a peer that does not take what it is sent may cost."""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
from typing import Any

import pytest

import srvkit
from srvkit.net.timer_wheel import TimerWheel

PATIENCE = 30


@pytest.mark.parametrize("model", ["event", "pool", "asyncio"])
def test_a_member_of_a_room_that_does_not_read_is_dropped_and_the_room_goes_on(
    model: str, client: Any, eventually: Any
) -> None:
    """Others cannot know how much it has not taken yet; the server does, and bounds it."""
    members: list[Any] = []
    reasons: list[str] = []

    class Room(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def connected(self) -> bytes:
            members.append(self)
            return b"welcome"

        def disconnected(self, reason: str) -> None:
            members.remove(self)
            reasons.append(reason)

        def handle_message(self, message: bytes) -> bytes:
            for one in list(members):
                if one is not self:
                    one.send(message)
            return b"said"

    with srvkit.serve(Room, "tcp://127.0.0.1:0", concurrency=model, limits={"write_timeout": 0}) as server:
        client(server.address).recv(1)
        with client(server.address) as speaker, speaker.makefile("rb") as heard:
            assert heard.readline() == b"welcome\n"
            for _ in range(400):
                speaker.sendall(bytes(65536) + b"\n")
                assert heard.readline() == b"said\n"
                if reasons:
                    break
            eventually(lambda: reasons)
            assert reasons == ["overflow"]
            speaker.sendall(b"alone\n")
            assert heard.readline() == b"said\n"


class EventTCPServer(srvkit.EventMixIn, srvkit.TCPServer):
    pass


class TaskTCPServer(srvkit.TaskMixIn, srvkit.TCPServer):
    pass


@pytest.mark.parametrize("server_class", [EventTCPServer, srvkit.ThreadPoolTCPServer, TaskTCPServer])
def test_connections_end_with_the_loop_they_live_in(server_class: Any, client: Any) -> None:
    """A handler shuts its server down: its reply leaves, and nobody is left waiting for a dead loop."""
    reasons: list[str] = []
    faults: list[Any] = []

    class Stop(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def connected(self) -> bytes:
            return b"welcome"

        def disconnected(self, reason: str) -> None:
            reasons.append(reason)

        def handle_message(self, message: bytes) -> bytes:
            self.server.shutdown()
            return b"done"

    class Noting(server_class):
        def handle_error(self, request: Any, client_address: Any) -> None:
            faults.append(sys.exception())

    with Noting(("127.0.0.1", 0), Stop) as server:
        for _ in range(2):  # it may serve again after that
            loop = threading.Thread(target=server.serve_forever)
            loop.start()
            idle, stopping = (client(server.server_address).makefile("rwb", 0) for _ in range(2))
            assert idle.readline() == stopping.readline() == b"welcome\n"
            stopping.write(b"stop\n")
            assert stopping.readline() == b"done\n"
            assert idle.read() == stopping.read() == b""
            loop.join(PATIENCE)
            assert not loop.is_alive()
    assert reasons == ["stopped"] * 4
    assert not faults


@pytest.fixture(params=["event", "pool", "asyncio"])
def model(request: Any) -> str:
    return str(request.param)


class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> Any:
        return message


def test_a_handler_that_raises_at_the_end_is_counted_as_an_error(
    model: str, client: Any, monkeypatch: Any
) -> None:
    """As it is where connections block: what it did last is how its connection ended."""
    outcomes: queue.Queue[str] = queue.Queue()

    class Handler(Echo):
        def disconnected(self, reason: str) -> None:
            raise ValueError(reason)

    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency=model) as served:
        done = served.server.request_done
        note = lambda request: (outcomes.put(request.outcome), done(request))  # noqa: E731
        monkeypatch.setattr(served.server, "request_done", note)
        client(served.address).close()
        assert outcomes.get(timeout=PATIENCE) == "error"


@pytest.mark.parametrize(
    ("who", "server_class"),
    [
        ("handler", EventTCPServer),
        ("handler", TaskTCPServer),
        ("server", EventTCPServer),
        ("server", TaskTCPServer),
        ("server", srvkit.ThreadPoolTCPServer),
    ],
)
def test_a_connection_is_given_back_once_whatever_is_raised_at_its_end(
    who: str, server_class: Any, client: Any, eventually: Any
) -> None:
    given_back: list[Any] = []
    errors: list[Any] = []

    class Handler(Echo):
        def disconnected(self, reason: str) -> None:
            if who == "handler":
                raise SystemExit(reason)

    class Server(server_class):
        def shutdown_request(self, request: Any) -> None:
            given_back.append(request)
            super().shutdown_request(request)
            if who == "server":
                raise ValueError("broken on purpose")

        def handle_error(self, request: Any, client_address: Any) -> None:
            errors.append(sys.exception())

    def serve() -> None:
        with contextlib.suppress(SystemExit):
            server.serve_forever()

    with Server(("127.0.0.1", 0), Handler) as server:
        loop = threading.Thread(target=serve)
        loop.start()
        client(server.server_address).close()
        eventually(lambda: given_back and (errors or not loop.is_alive() or who == "handler"))
        server.shutdown()
        loop.join(PATIENCE)
        assert not loop.is_alive()
    assert len(given_back) == 1


def test_what_others_send_has_its_time_from_then_on(model: str, client: Any, eventually: Any) -> None:
    """A client may have been silent for longer than it may take to read, or to have its answer."""
    handlers: list[Any] = []
    much = bytes(4 * 1024 * 1024)

    class Handler(Echo):
        def connected(self) -> bytes:
            handlers.append(self)
            return b"welcome"

    limits = {"write_timeout": 500, "request_timeout": 500, "idle_timeout": 0}
    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency=model, limits=limits) as served:
        sock = client(served.address)
        with sock.makefile("rb") as heard:
            assert heard.readline() == b"welcome\n"
            (handler,) = handlers
            link = handler.link
            eventually(lambda: not getattr(link, "_busy", False))
            link.last -= 1000  # as if it had been silent for so long
            handler.send(much)
            eventually(lambda: link._unsent and not getattr(link, "_busy", False))
            looked = threading.Event()
            loop = served.server._srvkit_loop
            loop.call_soon(lambda: (link.check_deadline(), looked.set()))
            assert looked.wait(PATIENCE)
            assert len(heard.read(len(much))) == len(much)
            assert heard.readline() == b"\n"
            sock.sendall(b"hello\n")
            assert heard.readline() == b"hello\n"


def test_the_timers_of_a_pool_are_touched_by_its_loop_only(client: Any, monkeypatch: Any) -> None:
    """They have no lock: a thread that took one out could end the loop, or leave an entry in it for ever."""
    strangers: list[str] = []
    ended: queue.Queue[str] = queue.Queue()
    cancel, schedule = TimerWheel.cancel, TimerWheel.schedule

    class Handler(Echo):
        def handle_message(self, message: bytes) -> bytes:
            self.close()
            return message

        def disconnected(self, reason: str) -> None:
            ended.put(reason)

    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency="pool") as served:
        server: Any = served.server

        def noting(method: Any) -> Any:
            def call(*args: Any) -> None:
                if threading.get_ident() != server._srvkit_loop_thread:
                    strangers.append(threading.current_thread().name)
                method(*args)

            return call

        monkeypatch.setattr(TimerWheel, "cancel", noting(cancel))
        monkeypatch.setattr(TimerWheel, "schedule", noting(schedule))
        sock = client(served.address)
        sock.sendall(b"hello\n")
        assert sock.recv(6, socket.MSG_WAITALL) == b"hello\n"
        assert ended.get(timeout=PATIENCE) == "closed"
        assert sock.recv(1) == b""
    assert not strangers


class Within(srvkit.Framing):
    """Holds nothing itself: another framing does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = srvkit.Lines()

    def feed(self, data: Any) -> list[bytes]:
        return self.inner.feed(data)

    def encode(self, message: bytes) -> bytes:
        return self.inner.encode(message)

    @property
    def buffered(self) -> int:
        return self.inner.buffered


every_model = pytest.mark.parametrize(
    "model", ["serial", "threading", "pool", "event", "asyncio", "gevent"], indirect=True
)


@every_model
def test_a_message_has_begun_where_its_framing_says_so(model: str, client: Any) -> None:
    """By `buffered`, also where that is not the length of what `held` has: its time counts from there."""
    outcomes: queue.Queue[str] = queue.Queue()

    class Handler(Echo):
        framing = Within()

        def disconnected(self, reason: str) -> None:
            outcomes.put(reason)

    limits = {"request_timeout": 0.2, "idle_timeout": PATIENCE}
    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency=model, limits=limits) as served:
        client(served.address).sendall(b"whole\npart")
        assert outcomes.get(timeout=PATIENCE / 2) == "request-timeout"


@every_model
@pytest.mark.parametrize("kind", [srvkit.Lines, Within])
def test_a_server_that_drains_ends_a_connection_behind_the_rest_of_a_message(
    kind: Any, model: str, client: Any, eventually: Any
) -> None:
    handlers: list[Any] = []

    class Handler(Echo):
        framing = kind()

        def connected(self) -> None:
            handlers.append(self)

    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency=model) as served:
        sock = client(served.address)
        sock.sendall(b"whole\npart")
        with sock.makefile("rb") as heard:
            assert heard.readline() == b"whole\n"
            eventually(lambda: handlers[0].framing.buffered)
            served.server.drain()
            eventually(lambda: served.server.draining)
            sock.sendall(b"ial\n")
            assert heard.read() == b"partial\n"


@every_model
def test_a_server_that_drains_with_patience_ends_a_connection_behind_its_first_message(
    model: str, client: Any, eventually: Any
) -> None:
    handlers: list[Any] = []

    class Handler(Echo):
        def connected(self) -> None:
            handlers.append(self)

    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency=model) as served:
        sock = client(served.address)
        eventually(lambda: handlers)
        served.server.drain(2 * PATIENCE)
        eventually(lambda: served.server.draining)
        sock.sendall(b"hello\n")
        with sock.makefile("rb") as heard:
            assert heard.read() == b"hello\n"


@every_model
@pytest.mark.parametrize("limit", ["first_byte_timeout", "idle_timeout", "request_timeout"])
def test_who_was_silent_for_too_long_hears_the_last_words(limit: str, model: str, client: Any) -> None:
    class Handler(Echo):
        def disconnected(self, reason: str) -> None:
            self.send(reason.encode())

    limits = {"first_byte_timeout": 0, "idle_timeout": 0, "request_timeout": 0, limit: 0.2}
    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency=model, limits=limits) as served:
        sock = client(served.address)
        if limit != "first_byte_timeout":
            sock.sendall(b"whole\n")
            assert sock.recv(6, socket.MSG_WAITALL) == b"whole\n"
        if limit == "request_timeout":
            sock.sendall(b"part")
        with sock.makefile("rb") as heard:
            assert heard.read() == limit.replace("_", "-").encode() + b"\n"
