"""How a server stops: gracefully, or by cutting what is still open."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from srvkit.net.connection import ends_at_once
from srvkit.net.send_queue import end_reading
from srvkit.server.accepting import CLOSED, Accepting
from srvkit.server.lingering import Lingering


class Draining(Accepting):
    """The part of a server that stops it."""

    draining = False  # whether drain() was called: conversations end after the current message
    patience = 0.0  # while draining: seconds in which who has just connected is expected to say a first word
    _srvkit_lingering: Lingering | None = None  # connections that were handled, whose peers still talk

    def drain(self, patience: float = 0.0) -> None:
        """Stop gracefully: accept nothing new, let open requests finish, then end `serve_forever`.

        What waits in the kernel's queue is still taken, as room for it comes free; connections that are
        idle between two messages end at once. So do those that have not said anything yet, unless there
        is `patience`: then they stay, for the caller to end by calling again, without, after so many
        seconds. Safe from any thread. For servers from TOML, which know their open requests.
        """
        self.draining, self.patience = True, patience
        self._srvkit_drains = True
        loop = self._srvkit_loop
        for request in self.requests_at_hand():
            if ends_at_once(request, patience):
                end_reading(request, loop)
        if loop is None:
            self.stop_serving()
            return
        loop.call_soon(self._empty_queue)
        if self._srvkit_admission is not None and not patience:
            loop.call_soon(self._srvkit_admission.turn_away)

    def retire(self) -> None:
        """Accept nothing new, serve the connections there are to their end, then end `serve_forever`.

        What waits in the kernel's queue is taken as by `drain`, which may follow. Safe from any thread. For
        servers from TOML.
        """
        self._srvkit_drains = True
        if self._srvkit_loop is None:
            self.stop_serving()
        else:
            self._srvkit_loop.call_soon(self._empty_queue)

    def on_stopped_listening(self, callback: Callable[[], None]) -> None:
        """Call back, in the loop's thread, when nothing more comes by the addresses that others share.

        To be called after `retire` or `drain`, which see to that.
        """
        loop = self._srvkit_loop
        if loop is None:
            callback()
        else:
            loop.call_soon(callback)

    def abort_all(self) -> int:
        """End the requests that are still open, whatever they are doing; return how many there were.

        What still waits in the kernel's queue is left there. Safe from any thread. Datagrams have no
        connection to cut; their handlers are left to themselves.
        """
        self._srvkit_closed = True
        loop = self._srvkit_loop
        if loop is not None:
            if self._srvkit_lingering is not None:
                loop.call_soon(partial(self._srvkit_lingering.end, loop))
            loop.call_soon(self._stop_listening)
        requests = self.requests_at_hand()
        for request in requests:
            with suppress(OSError, AttributeError):  # gone already, or a datagram
                request.shutdown(socket.SHUT_RDWR)
        return len(requests)

    def abort_request(self, request: Any) -> bool:
        """End one request, whatever its handler is doing; return False where that is not possible."""
        try:
            request.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):  # gone already, or a datagram
            return False
        return True

    def _stop_listening(self) -> None:
        """Close what connections come by, and end when the last request has; in the loop's thread."""
        self._srvkit_closed = True
        self._unwatch_listeners()
        for listener in self._srvkit_listeners:
            if listener.is_stream:  # datagrams' handlers may still answer through theirs
                listener.close()
        self._stop_when_empty()

    def _stop_when_empty(self) -> None:
        if self._srvkit_accepting is CLOSED and not self.requests_at_hand() and not self._srvkit_lingering:
            self.stop_serving()
