"""What a connection of a loop waits for, and what becomes of its bytes, by a loop and a socket of paper."""

from __future__ import annotations

from typing import Any

import pytest

from srvkit.concurrency.loop_connection import (
    CLOSING,
    ENDED,
    HANDSHAKE,
    LOST,
    OPEN,
    LoopConnection,
)
from srvkit.net.event_loop import READ, WRITE
from srvkit.server.limits import LimitSettings


class Loop:
    """Notes what is watched, and says what time it is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watched: int | None = None

    def watch(self, fd: int, callback: Any, events: int) -> None:
        self.watched = events

    def unwatch(self, fd: int) -> None:
        self.watched = None

    forget = unwatch


class Peer:
    """Takes so many bytes, then none until it is given more room."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""
        self.gone = False

    def fileno(self) -> int:
        return 7

    def send(self, data: Any, flags: int) -> int:
        if self.gone:
            raise ConnectionResetError
        if not self.room:
            raise BlockingIOError
        sent = bytes(data[: self.room])
        self.taken += sent
        self.room -= len(sent)
        return len(sent)


class Server:
    """As much of a server as a connection asks for."""

    def __init__(self, limits: LimitSettings | None = None) -> None:
        self.limits = limits
        self.timers = self
        self.links: dict[Any, None] = {}
        self.due: float | None = None
        self.handshake: Any = None
        self.closed = 0

    def schedule(self, one: Any, due: float) -> None:
        one.slot, self.due = {one}, due

    def cancel(self, one: Any) -> None:
        one.slot = self.due = None

    def secure(self, request: Any, done: Any) -> None:
        self.handshake = done

    def shutdown_request(self, request: Any) -> None:
        self.closed += 1


class Connection(LoopConnection):
    """A connection that reads as long as nothing is left to be sent."""

    __slots__ = (*LoopConnection.SLOTS, "events")

    def __init__(self, server: Server, loop: Loop, peer: Peer) -> None:
        self._set_up(server, loop, peer, ("x", 1))  # type: ignore[arg-type]
        self.events: list[Any] = []

    def _next_events(self) -> int | None:
        return WRITE if self._unsent else READ

    def _all_sent(self) -> None:
        self.events.append("all sent")
        self._update_interest()

    def _cannot_send(self, error: OSError) -> None:
        self.events.append(type(error))
        self._state = LOST

    def _handshake_over(self, outcome: str, error: Exception | None) -> None:
        self.events.append(outcome)

    def _spans(self, now: float) -> tuple[float | None, float | None]:
        return (None, 0.0) if self._unsent else (0.0, None)

    def _peer_lost(self, outcome: str) -> None:
        self.events.append(outcome)


def test_what_is_not_taken_is_kept_and_sent_when_there_is_room() -> None:
    loop, peer = Loop(), Peer(room=3)
    connection = Connection(Server(), loop, peer)
    connection._update_interest()
    assert loop.watched == READ
    connection._transmit(b"hello ")
    connection._transmit(b"world")
    connection._update_interest()
    assert (peer.taken, loop.watched) == (b"hel", WRITE)
    connection._writable()  # too early
    peer.room = 5
    connection._writable()
    assert (peer.taken, loop.watched, connection.events) == (b"hello wo", WRITE, [])
    peer.room = 5
    connection._writable()
    assert (peer.taken, loop.watched, connection.events) == (b"hello world", READ, ["all sent"])
    assert connection.bytes_out == 11


@pytest.mark.parametrize(
    ("state", "taken", "kept"),
    [
        (OPEN, b"x", None),
        (CLOSING, b"x", None),  # last words
        (HANDSHAKE, b"", b"x"),
        (LOST, b"", None),
    ],
)
def test_each_state_says_whether_anything_is_sent(state: Any, taken: bytes, kept: bytes | None) -> None:
    peer = Peer(room=9)
    connection = Connection(Server(), Loop(), peer)
    connection._state = state
    connection._transmit(b"x")
    assert (peer.taken, connection._unsent) == (taken, kept)


@pytest.mark.parametrize("outcome", ["", "bad-tls"])
def test_nothing_happens_during_a_handshake_and_what_was_written_leaves_behind_it(outcome: str) -> None:
    loop, peer, server = Loop(), Peer(room=9), Server(LimitSettings())
    connection = Connection(server, loop, peer)
    connection._update_interest()
    connection._begin_handshake()
    connection._transmit(b"secret")
    connection._update_interest()
    assert (peer.taken, loop.watched, server.due) == (b"", None, None)
    server.handshake(outcome, None)
    assert connection.events == [outcome]
    if not outcome:
        assert (peer.taken, loop.watched, connection._state) == (b"secret", READ, OPEN)
    else:
        assert peer.taken == b""


def test_a_connection_that_was_closed_during_a_handshake_stays_so() -> None:
    server = Server()
    connection = Connection(server, Loop(), Peer(room=9))
    connection._begin_handshake()
    connection._state = CLOSING
    server.handshake("", None)
    assert connection._state is CLOSING


@pytest.mark.parametrize("when", ["at once", "later"])
def test_who_cannot_be_sent_to_is_told_once_and_drops_the_rest(when: str) -> None:
    peer = Peer(room=0)
    connection = Connection(Server(), Loop(), peer)
    if when == "later":
        connection._transmit(b"lost")
    peer.gone = True
    if when == "later":
        connection._writable()
    else:
        connection._transmit(b"lost")
    connection._transmit(b"lost, too")
    assert connection.events == [ConnectionResetError] + ["all sent"] * (when == "later")
    assert connection._unsent is None


def test_the_end_gives_back_everything_and_nothing_comes_after_it() -> None:
    loop, server = Loop(), Server(LimitSettings())
    connection = Connection(server, loop, Peer(room=0))
    server.links[connection] = None
    connection._transmit(b"never sent")
    connection._update_interest()
    assert server.due is not None
    connection._give_back()
    assert (loop.watched, server.due, server.links, server.closed) == (None, None, {}, 1)
    assert connection.ended and connection._state is ENDED and connection._unsent is None
    connection._update_interest()
    connection._enter(lambda: connection.events.append("a step"))
    connection.check_deadline()
    assert (loop.watched, server.due, connection.events) == (None, None, [])


def test_a_limit_that_has_passed_is_told_and_another_is_looked_at_again() -> None:
    server = Server(LimitSettings(first_byte_timeout=10, idle_timeout=0, write_timeout=0))
    connection = Connection(server, Loop(), Peer(room=9))
    connection.check_deadline()
    assert server.due is not None and not connection.events
    late = Connection(Server(LimitSettings(request_timeout=1)), Loop(), Peer(room=9))
    late._began = 1e-9  # long ago
    late.check_deadline()
    assert late.events == ["request-timeout"]


def test_a_silent_client_is_looked_at_by_when_it_could_be_idle() -> None:
    """Its first byte may come without anybody looking, and then idle_timeout is the nearer limit."""
    near, far = (Server(LimitSettings(first_byte_timeout=100, idle_timeout=seconds)) for seconds in (5, 500))
    for server in (near, far):
        Connection(server, Loop(), Peer(room=9))._reschedule()
    assert near.due is not None and far.due is not None
    assert 90 < far.due - near.due < 100
