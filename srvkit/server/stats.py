"""The steps of a server that is watched over: they count, and show that the loop comes round.

A mixin for `process` to put in front of a composed class. It knows the board it writes on by its
protocol, and nothing of who reads it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from srvkit.contracts import Board, Rows, Steps
from srvkit.net.connection import is_datagram
from srvkit.protocol.outcomes import BAD_MESSAGE, ERROR, REFUSED


class StatsMixIn(Steps):
    """Count requests on a board, know those being handled, and beat while the loop comes round.

    Class attributes: `board`; `beat_interval`, in seconds; `retire_after`, the number of requests after
    which `on_max_requests()` is called, 0 for never.
    """

    board: Board
    beat_interval: float
    retire_after = 0
    _admitted = 0
    _srvkit_hears_requests = True

    def on_beat(self) -> None:
        """Hear of each beat; in the loop's thread."""

    def on_max_requests(self) -> None:
        """Hear that so many requests have come; in the loop's thread."""

    def loop_begins(self, loop: Any) -> None:
        """Beat from now on. May be extended."""
        super().loop_begins(loop)

        def beat() -> None:
            self.board.beat()
            self.on_beat()
            loop.call_later(self.beat_interval, beat)

        beat()

    def request_admitted(self, request: Any) -> None:
        """Count the request, which is about to be handled."""
        self.board.accepted()
        self._admitted += 1
        if self._admitted == self.retire_after:
            self.on_max_requests()
        super().request_admitted(request)

    def refuse_request(self, request: Any) -> None:
        """Count the request, which is not handled."""
        self.board.refused()
        super().refuse_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count what is not the peer's fault."""
        if self.own_error(request, sys.exception()) is not None:
            self.board.failed()
        super().handle_error(request, client_address)

    def datagrams_handled(self, count: int, bytes_in: int, bytes_out: int, unusual: list[str]) -> None:
        """Count datagrams that were handled at once."""
        before, self._admitted = self._admitted, self._admitted + count
        self.board.handled(count, bytes_in, bytes_out, unusual)
        if before < self.retire_after <= self._admitted:
            self.on_max_requests()

    def datagram_dropped(self) -> None:
        """Count a datagram that was no message, or too long."""
        self.board.dropped()

    def reply_lost(self, client_address: Any, why: str) -> None:
        """Count a reply that its client could not be given, and say so."""
        self.board.unanswered()
        super().reply_lost(client_address, why)

    def request_ended(self, request: Any) -> None:
        """Count the end of the request, and how it ended."""
        # Before the seat is given back: with the last one a server that stops, and its process, may end.
        self.board.ended(request.outcome, request.bytes_in, request.bytes_out)
        super().request_ended(request)


class ForkedStatsMixIn(StatsMixIn):
    """The same where a child handles each request: it leaves its account to its parent, who writes.

    Class attribute `rows`: memory that both have, with a row for each child at a time.
    """

    rows: Rows

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._pid = os.getpid()
        self._unanswered = 0  # in the child

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report it; the parent counts."""
        if os.getpid() == self._pid:
            super().handle_error(request, client_address)
        else:
            super(StatsMixIn, self).handle_error(request, client_address)

    def datagram_dropped(self) -> None:
        """Count it; of a child, its parent does, by the outcome."""
        if os.getpid() == self._pid:
            super().datagram_dropped()

    def reply_lost(self, client_address: Any, why: str) -> None:
        """Say so, and count it; of a child, its parent does."""
        if os.getpid() == self._pid:
            self.board.unanswered()
        else:
            self._unanswered += 1
        super(StatsMixIn, self).reply_lost(client_address, why)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a child handle the request."""
        request.row = self.rows.take()
        super().process_request(request, client_address)

    def request_ended(self, request: Any) -> None:
        """In the child, leave the account; in the parent, read what the child has left, and write it down."""
        row, request.row = request.row, None
        if row is None:  # it never had one
            super().request_ended(request)
            return
        if os.getpid() != self._pid:
            account = request.outcome, request.bytes_in, request.bytes_out
            self.rows.write(row, *account, self._unanswered)
            return
        left = self.rows.give_back(row)
        if left is None and request.outcome == REFUSED:
            left = REFUSED, 0, 0, 0  # there was no process for it
        outcome, bytes_in, bytes_out, unanswered = left or (ERROR, 0, 0, 0)
        if outcome == ERROR:
            self.board.failed()
        for _ in range(unanswered):
            self.board.unanswered()
        if outcome == BAD_MESSAGE and is_datagram(request):
            self.board.dropped()
        self.board.ended(outcome, bytes_in, bytes_out)


class EndsMixIn(Steps):
    """Tell by `tell_end(address)` of each request that is over, handled or refused, in whatever thread.

    The address is that of the socket's peer, whatever a PROXY header says. Where a child handles a request
    its end is that of the child.
    """

    tell_end: Callable[[Any], object]

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._pid = os.getpid()

    def request_done(self, request: Any) -> None:
        """Tell of its end."""
        if request is not None and os.getpid() == self._pid:
            self.tell_end(request.client_address if request.peer_address is None else request.peer_address)
        super().request_done(request)

    def _drop(self, client_address: Any, longest: int) -> None:
        """Tell of the end of a datagram that never became a request."""
        super()._drop(client_address, longest)  # type: ignore[misc]
        self.tell_end(client_address)


def telling_ends(server_class: type[Any], tell_end: Callable[[Any], object]) -> type[Any]:
    """Return the class with `EndsMixIn` in front."""
    attributes = {"__module__": __name__, "tell_end": staticmethod(tell_end)}
    return type(server_class.__name__, (EndsMixIn, server_class), attributes)
