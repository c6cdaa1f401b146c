"""Who is let in and who is not: the stages of admission that decide at once, and the settings of limits.

A stage returns None for a record that may pass, else why it may not; "" where that was said already.
"""

from __future__ import annotations

import logging
import threading
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from time import monotonic
from typing import Any, Literal

from srvkit.contracts import Duration, Size, Stage, setting
from srvkit.net.access import Rules, group_of
from srvkit.net.address import display
from srvkit.protocol.timeouts import Wait, waits_of

log = logging.getLogger("srvkit.server")

MOST_REMEMBERED = 16384  # clients whose rate is kept in mind
MAX_CONNECTIONS = "max_connections"  # a reason not to accept


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


class Capacity(Stage):
    """The stage of `max_connections`: so many requests at once, all that are taken and not ended.

    Where there is no room, accepting pauses until there is, or the connection is closed at once.
    """

    counts = True

    def __init__(self, limit: int, when_full: str) -> None:
        self.limit = limit
        self._closing = when_full == "close"
        self._full = False

    def __repr__(self) -> str:
        return f"Capacity(max_connections={self.limit}, when_full={'close' if self._closing else 'wait'!r})"

    def for_server(self) -> Capacity:
        """Return one that counts for one server."""
        return copy(self)

    def admit(self, server: Any, record: Any) -> str | None:
        """Refuse the one too many, or pause behind the last that there is room for."""
        taken = server._srvkit_admission.registry.open  # this one, too
        if self._closing:
            if len(taken) <= self.limit:
                return None
            log.warning(
                "%s: connection limit reached: closed %s",
                server._srvkit_name(),
                display(record.client_address),
            )
            return ""
        if len(taken) >= self.limit:
            self._full = True
            server.pause_accepting(MAX_CONNECTIONS)
            # One may have ended between the count and the pause.
            if not self.is_reached(server):
                self._resume(server)
        return None

    def release(self, server: Any, record: Any) -> None:
        """Accept again where the end of a request has made room; in whatever thread it ends."""
        if self._full and not self.is_reached(server):
            self._full = False
            self._resume(server)

    def is_reached(self, server: Any) -> bool:
        """Tell whether no further request may come."""
        return len(server._srvkit_admission.registry.open) >= self.limit

    def _resume(self, server: Any) -> None:
        server.resume_accepting(MAX_CONNECTIONS, partial(self.is_reached, server))


class _RulesStage(Stage):
    """A stage that asks rules of access."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._rules!r})"


class TrustedProxies(_RulesStage):
    """The stage in front of a PROXY header: nobody else may send one."""

    def admit(self, server: Any, record: Any) -> str | None:
        """Refuse a peer that is none of them."""
        return None if self._rules.admits(record.client_address, record) else "not a trusted proxy"


class Access(_RulesStage):
    """The stage of rules: who may connect, by the address of the client, or of the peer on a Unix socket."""

    def admit(self, server: Any, record: Any) -> str | None:
        """Refuse whom the rules do not let in."""
        # Where a proxy told the address, the socket's peer is the proxy.
        peer = record if record.peer_address is None else None
        return None if self._rules.admits(record.client_address, peer) else "denied by access rules"


class PerClient(Stage):
    """The stage of how many requests each client has open, and how fast it sends new ones.

    A client is whatever `net.access.group_of` makes of an address. `rate` is refilled steadily, and that many
    may come at once. `admit` is for the accepting thread, `release` for any.
    """

    counts = True

    def __init__(self, most: int, rate: int) -> None:
        self._most = most
        self._rate = rate
        self._open: dict[Any, int] = {}  # by client
        self._full_at: dict[Any, float] = {}  # when the client's allowance is whole again; the latest last
        self._changing = threading.Lock()

    def __repr__(self) -> str:
        return f"PerClient(max_per_client={self._most}, connect_rate={self._rate})"

    def for_server(self) -> PerClient:
        """Return one that counts for one server."""
        return PerClient(self._most, self._rate)

    def admit(self, server: Any, record: Any) -> str | None:
        """Say why the client may not have this request too; where it may, it is counted."""
        client = group_of(record.client_address, record if record.peer_address is None else None)
        if client is None:
            return None
        if self._most and self._open.get(client, 0) >= self._most:
            return f"max_per_client ({self._most}) is reached"
        if self._rate and self._is_too_fast(client):
            return f"connect_rate ({self._rate} a second) is exceeded"
        if self._most:
            with self._changing:
                self._open[client] = self._open.get(client, 0) + 1
                record.client = client
        return None

    def release(self, server: Any, record: Any) -> None:
        """Count the end of a request; of one that was refused, or ended already, it does no harm."""
        if record.client is None:
            return
        with self._changing:
            client, record.client = record.client, None
            if client is not None:
                left = self._open[client] - 1
                if left:
                    self._open[client] = left
                else:
                    del self._open[client]

    def _is_too_fast(self, client: Any) -> bool:
        now = monotonic()
        full_at = max(now, self._full_at.pop(client, now)) + 1 / self._rate
        is_too_fast = full_at > now + 1 + 1e-9
        self._full_at[client] = full_at - is_too_fast / self._rate
        if len(self._full_at) > MOST_REMEMBERED:
            del self._full_at[next(iter(self._full_at))]
        return is_too_fast
