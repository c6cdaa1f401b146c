"""Limits on what a server takes on, and the count of the seats taken.

Decides and counts; pausing the listener and closing sockets is the server's part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from srvkit.contracts import Duration, Size, setting


@dataclass(frozen=True)
class LimitSettings:
    """`[server.NAME.limits]`: bounds and timeouts; 0 switches a timeout off."""

    max_connections: int = setting(1024, "connections (or datagrams being handled) at once", minimum=1)
    when_full: Literal["wait", "close"] = setting(
        "wait", "wait: the kernel queues new clients; close: they are closed"
    )
    first_byte_timeout: Duration = setting(10.0, "how long a new connection may say nothing", minimum=0)
    idle_timeout: Duration = setting(60.0, "how long a connection may say nothing later on", minimum=0)
    request_timeout: Duration = setting(
        0.0,
        "first byte of a message to its reply; for a handler that does its own I/O, the whole connection",
        minimum=0,
    )
    write_timeout: Duration = setting(
        30.0, "how long a peer may take nothing of what is written to it", minimum=0
    )
    max_message: Size = setting(1 << 20, "bytes of one message", minimum=1)
    max_requests: int = setting(
        0,
        "a worker retires after so many connections (up to a tenth more); 0: never",
        minimum=0,
    )
    max_rss: Size = setting(0, "a worker that has grown larger than this retires; 0: never", minimum=0)


class Seats:
    """The requests that are being handled, at most `limit` at once.

    `take` is for the accepting thread, `give_back` for whatever thread (or reaper of children) finishes
    a request. `pause` and `resume` are called when the last seat goes and when one is free again.
    """

    def __init__(
        self, limit: int, when_full: str, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self.limit = limit
        self.refused = 0
        self._closing = when_full == "close"
        self._pause = pause
        self._resume = resume
        self._taken: dict[int, Any] = {}  # by id: a datagram's request is a tuple, slow to hash
        self._full = False

    def __str__(self) -> str:
        return f"{len(self._taken)} of {self.limit} seats taken"

    def __len__(self) -> int:
        return len(self._taken)

    def requests(self) -> list[Any]:
        """Return the requests being handled."""
        return list(self._taken.values())

    def take(self, request: Any) -> bool:
        """Give the request a seat; return False where none is free and `when_full` says close."""
        taken = self._taken
        if self._closing and len(taken) >= self.limit:
            self.refused += 1
            return False
        taken[id(request)] = request
        if len(taken) >= self.limit and not self._closing:
            self._full = True
            self._pause()
            # One may have been given back between the count and the pause.
            if len(taken) < self.limit:
                self._resume()
        return True

    def give_back(self, request: Any) -> None:
        """Free the request's seat; giving it back twice does no harm."""
        self._taken.pop(id(request), None)
        if self._full and len(self._taken) < self.limit:
            self._full = False
            self._resume()
