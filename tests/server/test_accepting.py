"""Whether a server takes requests: the states and what leads from one to the other."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

import srvkit
from srvkit.server.accepting import CLOSED, DRAINING, OPEN, PAUSED, SHORTAGE, Accepting


class Loop:
    """Remembers what it is to watch."""

    def __init__(self) -> None:
        self.watched: set[int] = set()
        self.later: list[Any] = []

    def watch(self, fd: int, callback: Any, events: int = 0) -> None:
        self.watched.add(fd)

    def unwatch(self, fd: int) -> None:
        self.watched.discard(fd)

    def wake(self) -> None:
        pass

    def call_later(self, seconds: float, callback: Any) -> None:
        self.later.append(callback)


class Server(Accepting):
    """Takes as many requests as there are; its only descriptor is 7."""

    def __init__(self, waiting: int = 0) -> None:
        self.waiting = waiting
        self.taken = 0
        self.stopped = False
        self._srvkit_loop: Any = Loop()
        self._srvkit_loop_thread = None
        self._srvkit_burst = 64

    def fileno(self) -> int:
        return 7

    def _handle_request_noblock(self) -> None:
        if self.waiting:
            self.waiting -= 1
            self.taken += 1
        else:
            self._srvkit_more = False

    def _stop_listening(self) -> None:
        self.stopped = self._srvkit_closed = True
        self._unwatch_listeners()

    @property
    def is_watched(self) -> bool:
        return bool(self._srvkit_loop.watched)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr("srvkit.server.accepting.get_ident", lambda: None)  # it is the loop's thread
    server = Server(waiting=3)
    server._begin_accepting()
    return server


def test_an_open_server_takes_what_comes(server: Server) -> None:
    assert (server._srvkit_accepting, server.is_watched) == (OPEN, True)
    server._take_requests()
    assert server.taken == 3


def test_a_paused_one_waits_until_the_last_reason_is_gone(server: Server) -> None:
    server.pause_accepting("one")
    server.pause_accepting("two")
    assert (server._srvkit_accepting, server.is_watched) == (PAUSED, False)
    server._take_requests()
    assert server.taken == 0
    server.resume_accepting("one")
    assert (server._srvkit_accepting, server.is_watched) == (PAUSED, False)
    server.resume_accepting("three")  # which was no reason
    server.resume_accepting("two", lambda: True)  # it has come up again
    assert server._srvkit_accepting is PAUSED
    server.resume_accepting("two", lambda: False)
    assert (server._srvkit_accepting, server.is_watched) == (OPEN, True)


def test_a_closed_one_is_never_opened_again(server: Server) -> None:
    server.pause_accepting("one")
    server._srvkit_closed = True
    server.resume_accepting("one")
    server._take_requests()
    assert (server._srvkit_accepting, server.is_watched, server.taken) == (CLOSED, False, 0)


def test_one_that_drains_may_be_paused_and_drains_on(server: Server) -> None:
    server._srvkit_drains = True
    assert server._srvkit_accepting is DRAINING
    server.pause_accepting("one")
    assert server._srvkit_accepting is PAUSED
    server.resume_accepting("one")
    assert server._srvkit_accepting is DRAINING


def test_a_request_that_is_told_to_stop_is_the_last(server: Server) -> None:
    """Whatever the handler of one has done: paused, stopped, cut."""
    for change in ("_BaseServer__shutdown_request", "_srvkit_closed", "_srvkit_reasons"):
        other = Server(waiting=3)

        def handle(other: Server = other, change: str = change) -> None:
            Server._handle_request_noblock(other)
            setattr(other, change, {"reason"})

        other._handle_request_noblock = handle  # type: ignore[method-assign]
        other._take_requests()
        assert (other.taken, other.waiting) == (1, 2), change


def test_a_shortage_pauses_ever_longer_and_no_longer_than_its_loop(server: Server) -> None:
    server.back_off_accepting(OSError(errno.EMFILE, "Too many open files"))
    assert (server._srvkit_accepting, server.is_watched) == (PAUSED, False)
    (again,) = server._srvkit_loop.later
    again()
    assert server._srvkit_accepting is OPEN
    server.back_off_accepting(OSError(errno.EMFILE, "Too many open files"))
    assert server._srvkit_reasons == {SHORTAGE}
    server._srvkit_loop = Loop()  # the timer has gone with the loop
    server._begin_accepting()
    assert (server._srvkit_accepting, server.is_watched) == (OPEN, True)


def test_a_server_that_ran_short_serves_again_in_its_next_loop(serving: Any, client: Any) -> None:
    errors = [errno.EMFILE]

    class Short(srvkit.TCPServer):
        def get_request(self) -> Any:
            if errors:
                number = errors.pop()
                self.stop_serving()
                raise OSError(number, os.strerror(number))
            return super().get_request()

    class Hello(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"hello")

    server = Short(("127.0.0.1", 0), Hello)
    with socket.create_connection(server.server_address) as waiting:
        server.serve_forever()
        serving(server)
        waiting.settimeout(30)
        assert waiting.recv(100) == b"hello"
