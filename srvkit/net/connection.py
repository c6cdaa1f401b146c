"""A connection's socket as servers from TOML hand it to their handlers.

It is a `socket.socket` in every respect; besides, it keeps the deadlines that a blocking handler would
never think of, counts its bytes, and remembers whether an error was its peer's. It knows nothing of
servers and handlers.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from time import monotonic
from typing import Any, NoReturn, TypeVar

from srvkit.protocol.outcomes import (
    CLOSED,
    EOF,
    IDLE_TIMEOUT,
    REQUEST_TIMEOUT,
    WRITE_TIMEOUT,
    lost_outcome,
)

# With each call: to the kernel, sockets stay blocking. A plain int: flags of the enum cost 1 µs for each "|".
DONT_WAIT = int(getattr(socket, "MSG_DONTWAIT", 0))

Accepted = TypeVar("Accepted", bound=socket.socket)
Limit = tuple[float | None, str]  # seconds, and the outcome when they have passed


_family = socket.SocketType.family.__get__  # as plain numbers; socket.family makes an enum member of them
_type = socket.SocketType.type.__get__


def accept(listening: socket.socket, make: type[Accepted]) -> tuple[Accepted, Any]:
    """Accept a connection as a socket of the class given; raises what accept(2) does."""
    # What socket.accept() does, without making enum members of numbers that are the same every time:
    # 3.5 µs where that takes 4.6.
    fd, address = listening._accept()  # type: ignore[attr-defined]
    if not sys.platform.startswith("linux"):
        os.set_blocking(fd, True)  # elsewhere the listener's non-blocking mode is inherited
    return make(_family(listening), _type(listening), listening.proto, fd), address


def is_datagram(thing: Any) -> bool:
    """Tell whether a request, of whatever server, is a datagram with its socket, and no connection."""
    return isinstance(thing, tuple)


def ends_at_once(request: Any, patience: float) -> bool:
    """Tell whether a request may be ended where a server drains: it is between two messages.

    With patience, somebody who has not said anything yet may still do so.
    """
    return getattr(request, "idle", False) and not (patience and not request.bytes_in)


def wait_for(sock: Any, events: int, seconds: float | None) -> None:
    """Wait until a socket is ready to READ or WRITE. Raises TimeoutError after `seconds`."""
    if seconds is not None and seconds < 0:
        raise TimeoutError("timed out")
    in_its_own_way = getattr(sock, "wait_for", None)
    if in_its_own_way is not None:
        in_its_own_way(events, seconds)
        return
    poll = select.poll()
    poll.register(sock.fileno(), events)  # the values are those of POLLIN and POLLOUT
    if not poll.poll(None if seconds is None else seconds * 1000):
        raise TimeoutError("timed out")


class Connection(socket.socket):
    """A socket that is the record of its connection: all that is known of it beside what is said on it.

    Whoever moves its bytes writes here, or is the `driver` and has the account until the end. Times are on
    the monotonic clock. A `net.datagrams.Datagram` has the same names.
    """

    # What every connection has from the moment it is registered: no dictionary for those that are idle.
    __slots__ = ("__dict__", "at_work", "client_address", "driver", "is_admitted", "number", "since")

    number: int  # among all that its server has taken, from 1
    since: float  # when it was taken
    client_address: Any  # the client's, which a proxy may have told
    driver: Any  # the connection of a loop that has the account as long as it lasts; None where there is none
    is_admitted: bool  # whether it was counted as accepted, so that its end counts, too
    at_work: float  # since when its handler works without waiting for the peer; 0 while it waits, inf before
    peer_address: Any = None  # the proxy's, where there is one
    proxy: Any = None  # the header by which it spoke for its client
    client: Any = None  # as whom `max_per_client` counts it, while it does
    row: int | None = None  # where the child that handles it leaves its account
    opened = 0.0  # when plugins heard of it
    bytes_in = 0
    bytes_out = 0
    outcome = CLOSED
    fault: Exception | None = None  # what its peer is to blame for, once there is something
    idle = False  # between two messages: a server that stops may end it at once
    last = 0.0  # when bytes were received or sent last; 0 for never
    pending = False  # whether something was received that recv() has not returned

    def time_for(self, seconds: float) -> float:
        """Return how long something may take that has so many seconds (0: no bound) of its own."""
        return seconds


class TimedConnection(Connection):
    """A connection whose own reads and writes keep the limits, for handlers that do their own I/O.

    `recv`, `recv_into`, `send`, `sendall`, `sendmsg`, `sendfile` and the files of `makefile()` raise
    TimeoutError when a limit is passed. A socket timeout that the handler sets itself (`settimeout`,
    `StreamRequestHandler.timeout`) holds instead of the idle and write limits; the request's deadline
    holds in any case.
    """

    deadline: float | None = None
    _first_read: Limit = (None, IDLE_TIMEOUT)
    _later_read: Limit = (None, IDLE_TIMEOUT)
    _write: Limit = (None, WRITE_TIMEOUT)
    _own: tuple[float | None] | None = None  # the timeout that the handler set, if it did
    _in_force: float | None = -1.0  # the socket's timeout as it was set last; below 0 for unknown

    def limit(self, waits: tuple[Limit, Limit, Limit], request: float) -> None:
        """Set how long the first read, a later one and a write may wait, and the seconds for it all, 0: any.

        All count from now.
        """
        self._first_read, self._later_read, self._write = waits
        self.deadline = monotonic() + request if request else None

    def time_for(self, seconds: float) -> float:
        if self.deadline is None:
            return seconds
        left = max(0.001, self.deadline - monotonic())
        return min(seconds, left) if seconds else left

    def settimeout(self, value: float | None) -> None:
        self._own = (value,)
        self._in_force = value
        super().settimeout(value)

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def recv(self, *args: Any) -> bytes:
        outcome = self._begin(self._later_read if self.bytes_in else self._first_read)
        try:
            data = super().recv(*args)
        except OSError as error:
            self._failed(error, outcome)
        self.at_work = self.last = monotonic()
        if not data:
            self.outcome = EOF
        self.bytes_in += len(data)
        return data

    def recv_into(self, *args: Any) -> int:
        outcome = self._begin(self._later_read if self.bytes_in else self._first_read)
        try:
            count = super().recv_into(*args)
        except OSError as error:
            self._failed(error, outcome)
        self.at_work = self.last = monotonic()
        if not count:
            self.outcome = EOF
        self.bytes_in += count
        return count

    def send(self, *args: Any) -> int:
        outcome = self._begin(self._write)
        try:
            count = super().send(*args)
        except OSError as error:
            self._failed(error, outcome)
        self.at_work = self.last = monotonic()
        self.bytes_out += count
        return count

    def sendmsg(self, *args: Any) -> int:
        outcome = self._begin(self._write)
        try:
            count = super().sendmsg(*args)
        except OSError as error:
            self._failed(error, outcome)
        self.at_work = self.last = monotonic()
        self.bytes_out += count
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        # Not the C loop: that one counts a single timeout for the whole, write_timeout is for no progress.
        sent = self.send(data, flags)
        if type(data) is bytes and sent == len(data):
            return
        with memoryview(data) as view, view.cast("B") as rest:
            while sent < len(rest):
                sent += self.send(rest[sent:], flags)

    def sendfile(self, *args: Any, **settings: Any) -> int:
        before = self.bytes_out
        outcome = self._begin(self._write)
        try:
            count = super().sendfile(*args, **settings)
        except OSError as error:
            self._failed(error, outcome)
        self.at_work = self.last = monotonic()
        self.bytes_out = before + count  # where the platform has no sendfile(2), send() has counted already
        return count

    def _begin(self, limit: Limit) -> str:
        """Put a limit in force, or what holds in its place; return what it means when it passes."""
        self.at_work = 0.0
        seconds, outcome = limit
        if self._own is not None:
            (seconds,) = self._own
        if self.deadline is not None:
            remaining = self.deadline - monotonic()
            if remaining <= 0:
                self._failed(TimeoutError("request_timeout is over"), REQUEST_TIMEOUT)
            if seconds is None or (seconds and remaining < seconds):
                seconds, outcome = remaining, REQUEST_TIMEOUT
        if seconds != self._in_force:
            self._in_force = seconds
            super().settimeout(seconds)
        return outcome

    def _failed(self, error: OSError, outcome: str) -> NoReturn:
        self.at_work = monotonic()
        if not isinstance(error, BlockingIOError):  # with that one, the handler chose not to wait
            if not isinstance(error, TimeoutError):
                outcome = lost_outcome(self, self.bytes_in)
            self.fault, self.outcome = error, outcome
        raise error
