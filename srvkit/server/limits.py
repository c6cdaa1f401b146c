"""Who is let in and who is not: limits, the seats taken, and rules of access.

Decides and counts; pausing the listener and closing sockets is the server's part.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import Any, Literal

from srvkit.contracts import Duration, Size, Steps, setting
from srvkit.net.access import Rules, group_of
from srvkit.net.address import display
from srvkit.protocol.timeouts import Wait, waits_of

log = logging.getLogger("srvkit.server")

MOST_REMEMBERED = 16384  # clients whose rate is kept in mind


@dataclass(frozen=True)
class LimitSettings:
    """`[server.NAME.limits]`: bounds and timeouts; 0 switches a timeout off."""

    max_connections: int = setting(1024, "connections (or datagrams being handled) at once", minimum=1)
    when_full: Literal["wait", "close"] = setting(
        "wait", "wait: the kernel queues new clients; close: they are closed"
    )
    max_per_client: int = setting(
        0,
        "connections of one client (IPv6: a /64; Unix: a user) at once, in a worker; 0: off",
        minimum=0,
    )
    connect_rate: int = setting(
        0, "new connections of one client in a second, in a worker; 0: off", minimum=0
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

    @cached_property
    def first_look(self) -> float:
        """Seconds after which a connection may have passed a limit, be it silent from the start; 0: none."""
        limits = self.first_byte_timeout, self.idle_timeout, self.request_timeout
        return min(filter(None, limits), default=0.0)

    @cached_property
    def waits(self) -> tuple[Wait, Wait, Wait]:
        """How long the first read of a handler that does its own I/O may wait, a later one, and a write."""
        return waits_of(self)


class ConnectionLimit:
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


class PerClientLimit:
    """How many requests each client has open, and how fast it sends new ones.

    A client is whatever `net.access.group_of` makes of an address. `refusal` is for the accepting thread,
    `give_back` for any. `rate` is refilled steadily, and that many may come at once.
    """

    def __init__(self, most: int, rate: int) -> None:
        self._most = most
        self._rate = rate
        self._at_hand: dict[Any, int] = {}
        self._client_of: dict[int, Any] = {}  # by id of the request
        self._full_at: dict[Any, float] = {}  # when the client's allowance is whole again; the latest last
        self._changing = threading.Lock()

    def refusal(self, request: Any, client: Any) -> str:
        """Return why the client may not have this request too; "" where it may, and then it is counted."""
        if client is None:
            return ""
        if self._most and self._at_hand.get(client, 0) >= self._most:
            return f"max_per_client ({self._most}) is reached"
        if self._rate and self._is_too_fast(client):
            return f"connect_rate ({self._rate} a second) is exceeded"
        if self._most:
            with self._changing:
                self._at_hand[client] = self._at_hand.get(client, 0) + 1
                self._client_of[id(request)] = client
        return ""

    def give_back(self, request: Any) -> None:
        """Count the end of a request; of one that was refused, or ended already, it does no harm."""
        with self._changing:
            client = self._client_of.pop(id(request), None)
            if client is not None:
                left = self._at_hand[client] - 1
                if left:
                    self._at_hand[client] = left
                else:
                    del self._at_hand[client]

    def _is_too_fast(self, client: Any) -> bool:
        now = monotonic()
        full_at = max(now, self._full_at.pop(client, now)) + 1 / self._rate
        is_too_fast = full_at > now + 1 + 1e-9
        self._full_at[client] = full_at - is_too_fast / self._rate
        if len(self._full_at) > MOST_REMEMBERED:
            del self._full_at[next(iter(self._full_at))]
        return is_too_fast


class LimitsMixIn(Steps):
    """Refuse clients by rules of access and by what each of them has already; for `compose` to put in front.

    Class attribute `access`; what a client may have is in `limits`.
    """

    access = Rules(())
    _clients: PerClientLimit | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        limits = self.limits
        if limits is not None and (limits.max_per_client or limits.connect_rate):
            self._clients = PerClientLimit(limits.max_per_client, limits.connect_rate)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Ask the rules first, then look at what the client has. May be extended."""
        why = ""
        # Where a proxy told the address, the socket's peer is the proxy.
        peer = None if getattr(request, "client_address", None) is not None else request
        if self.access and not self.access.admits(client_address, peer):
            why = "denied by access rules"
        elif self._clients is not None:
            why = self._clients.refusal(request, group_of(client_address, peer))
        if why:
            log.info("%s: %s refused: %s", self._srvkit_name(), display(client_address), why)
            return False
        return super().verify_request(request, client_address)

    def request_done(self, request: Any) -> None:
        """Give back what the request has taken of its client's share."""
        if self._clients is not None:
            self._clients.give_back(request)
        super().request_done(request)
