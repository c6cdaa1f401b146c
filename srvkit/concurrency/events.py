"""One thread for all connections: message handlers, driven by readiness.

The mixin puts each accepted connection into the serving loop, as an `MessageConnection`; handlers run in the
loop's thread and must not block.
"""

from __future__ import annotations

from typing import Any

from srvkit.concurrency.loop_connection import ConnectionKeeper
from srvkit.concurrency.message_connection import MessageConnection


class EventMixIn(ConnectionKeeper):
    """Handle every connection in the loop's own thread; stands in front of a server class.

    For message handlers only. A handler that blocks, blocks all: this is for work that is quick. Datagrams
    are handled one after the other, and so is the connection of `handle_request`, which has no loop.
    """

    handler_kinds = frozenset({"message"})
    datagrams_in_turn = frozenset({"message"})

    def loop_begins(self, loop: Any) -> None:
        """Have connections join the loop from now on. May be extended."""
        super().loop_begins(loop)
        if self._takes_connections():
            self._srvkit_link = MessageConnection
