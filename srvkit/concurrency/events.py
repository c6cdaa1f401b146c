"""One thread for all connections: message handlers, driven by readiness.

The mixin puts each accepted connection into the serving loop, as an `MessageConnection`; handlers run in the
loop's thread and must not block.
"""

from __future__ import annotations

from typing import Any

from srvkit.concurrency.loop_connection import ConnectionKeeper
from srvkit.concurrency.message_connection import MessageConnection
from srvkit.contracts import passes_datagrams


class EventMixIn(ConnectionKeeper):
    """Handle every connection in the loop's own thread; stands in front of a server class.

    For message handlers only. A handler that blocks, blocks all: this is for work that is quick. Datagrams
    are handled one after the other, and so is the connection of `handle_request`, which has no loop.
    """

    handler_kinds = frozenset({"message"})

    @passes_datagrams
    def process_request(self, request: Any, client_address: Any) -> None:
        """Add the connection to the loop; a datagram is handled at once."""
        if self._joins_loop(request):
            self.finish_request(request, client_address)
        else:
            super().process_request(request, client_address)

    @passes_datagrams
    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a handler handle the connection, from now on whenever something arrives."""
        if self._joins_loop(request):
            MessageConnection(self, self._srvkit_loop, request, client_address).begin()
        else:
            super().finish_request(request, client_address)
