"""A connection's socket as servers from TOML hand it to their handlers.

It is a `socket.socket` in every respect; besides, it keeps the deadlines that a blocking handler would
never think of, counts its bytes, and remembers whether an error was its peer's. It knows nothing of
servers and handlers.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, NoReturn

# Outcomes of a connection, as they stand in logs and hooks.
CLOSED = "closed"  # the handler ended it
EOF = "eof"  # the peer ended it, between messages
TRUNCATED = "truncated"  # the peer ended it in the middle of a message
BAD_MESSAGE = "bad-message"  # bytes that are no message, or too many of them
RESET = "reset"  # the peer vanished
REFUSED = "refused"  # no seat was free, or a rule said no
ERROR = "error"  # the handler raised
STOPPED = "stopped"  # the server stopped and did not wait any longer
FIRST_BYTE_TIMEOUT = "first-byte-timeout"
IDLE_TIMEOUT = "idle-timeout"
REQUEST_TIMEOUT = "request-timeout"
WRITE_TIMEOUT = "write-timeout"


def accept(listening: socket.socket, make: type[Connection]) -> tuple[Connection, Any]:
    """Accept a connection as a socket of one's own class; raises what accept(2) does.

    An IPv4 client of a dual-stack listener has its IPv4 address.
    """
    # What socket.accept() does, less a second socket object and three look-ups of enum members.
    fd, address = listening._accept()  # type: ignore[attr-defined]
    if not sys.platform.startswith("linux"):
        os.set_blocking(fd, True)  # elsewhere the listener's non-blocking mode is inherited
    connection = make(listening.family, listening.type, listening.proto, fileno=fd)
    if len(address) == 4 and address[0].startswith("::ffff:") and "." in address[0]:
        address = (address[0][7:], address[1])
    return connection, address


class Connection(socket.socket):
    """A socket with an account of itself."""

    __slots__ = ("bytes_in", "bytes_out", "idle", "opened", "outcome")

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.opened = monotonic()
        self.bytes_in = 0
        self.bytes_out = 0
        self.outcome = CLOSED
        self.idle = False  # between two messages: a server that stops may end it at once


class TimedConnection(Connection):
    """A connection whose own reads and writes keep the limits, for handlers that do their own I/O.

    `recv`, `recv_into`, `send`, `sendall`, `sendmsg`, `sendfile` and the files of `makefile()` raise
    TimeoutError when a limit is passed. A socket timeout that the handler sets itself (`settimeout`,
    `StreamRequestHandler.timeout`) holds instead of the idle and write limits; the request's deadline
    holds in any case.
    """

    __slots__ = ("_first_byte", "_idle", "_own", "_write", "deadline", "fault")

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.fault: OSError | None = None  # what the peer did, once it did
        self.deadline: float | None = None
        self._first_byte: float | None = None
        self._idle: float | None = None
        self._write: float | None = None
        self._own: tuple[float | None] | None = None  # the timeout that the handler set, if it did

    def limit(self, first_byte: float, idle: float, request: float, write: float) -> None:
        """Set the limits in seconds, 0 for none; the request's deadline counts from now."""
        self._first_byte = first_byte or None
        self._idle = idle or None
        self._write = write or None
        self.deadline = monotonic() + request if request else None

    def settimeout(self, value: float | None) -> None:
        self._own = (value,)
        super().settimeout(value)

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def recv(self, *args: Any) -> bytes:
        data: bytes = self._kept(self._reading_limit(), super().recv, *args)
        if not data:
            self.outcome = EOF
        self.bytes_in += len(data)
        return data

    def recv_into(self, *args: Any) -> int:
        count: int = self._kept(self._reading_limit(), super().recv_into, *args)
        if not count:
            self.outcome = EOF
        self.bytes_in += count
        return count

    def send(self, *args: Any) -> int:
        count: int = self._kept((self._write, WRITE_TIMEOUT), super().send, *args)
        self.bytes_out += count
        return count

    def sendmsg(self, *args: Any) -> int:
        count: int = self._kept((self._write, WRITE_TIMEOUT), super().sendmsg, *args)
        self.bytes_out += count
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        # Not the C loop: that one counts a single timeout for the whole, write_timeout is for no progress.
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += self.send(rest[sent:], flags)

    def sendfile(self, *args: Any, **settings: Any) -> int:
        before = self.bytes_out
        count: int = self._kept((self._write, WRITE_TIMEOUT), super().sendfile, *args, **settings)
        self.bytes_out = before + count  # where the platform has no sendfile(2), send() has counted already
        return count

    def _reading_limit(self) -> tuple[float | None, str]:
        if self.bytes_in or self._first_byte is None:
            return self._idle, IDLE_TIMEOUT
        return self._first_byte, FIRST_BYTE_TIMEOUT

    def _kept(
        self, limit: tuple[float | None, str], call: Callable[..., Any], *args: Any, **settings: Any
    ) -> Any:
        seconds, outcome = limit
        if self._own is not None:
            (seconds,) = self._own
        if self.deadline is not None:
            remaining = self.deadline - monotonic()
            if remaining <= 0:
                self._fail(TimeoutError("request_timeout is over"), REQUEST_TIMEOUT)
            if seconds is None or (seconds and remaining < seconds):
                seconds, outcome = remaining, REQUEST_TIMEOUT
        if seconds != self.gettimeout():
            super().settimeout(seconds)
        try:
            return call(*args, **settings)
        except BlockingIOError:
            raise  # the handler chose not to wait
        except TimeoutError as error:
            self._fail(error, outcome)
        except OSError as error:
            self._fail(error, RESET)

    def _fail(self, error: OSError, outcome: str) -> NoReturn:
        self.fault, self.outcome = error, outcome
        raise error
