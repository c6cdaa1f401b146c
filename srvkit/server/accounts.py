"""The steps of a server that is watched over: they count, and show that the loop comes round.

A mixin for `process` to put in front of a composed class. It knows the board it writes on by its
protocol, and nothing of who reads it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from time import monotonic
from typing import Any

from srvkit.contracts import Board, Rows, Steps, passes_datagrams
from srvkit.net.connection import CLOSED, ERROR


@dataclass
class OpenRequest:
    """A request being handled, as far as its server knows."""

    number: int
    request: Any
    client_address: Any
    since: float  # on the monotonic clock


class AccountsMixIn(Steps):
    """Count requests on a board, keep a list of those at hand, and beat while the loop comes round.

    Class attributes: `board`; `beat_interval`, in seconds; `retire_after`, the number of requests after
    which `on_enough()` is called, 0 for never.
    """

    board: Board
    beat_interval: float
    retire_after = 0
    _numbers = 0

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.at_hand: dict[int, OpenRequest] = {}

    def on_enough(self) -> None:
        """Hear that so many requests have come; in the loop's thread."""

    def loop_begins(self, loop: Any) -> None:
        """Beat from now on. May be extended."""
        super().loop_begins(loop)

        def beat() -> None:
            self.board.beat()
            loop.call_later(self.beat_interval, beat)

        beat()

    @passes_datagrams
    def process_request(self, request: Any, client_address: Any) -> None:
        """Count the request and have it handled."""
        self.board.accepted()
        self._numbers += 1
        self.at_hand[id(request)] = OpenRequest(self._numbers, request, client_address, monotonic())
        if self._numbers == self.retire_after:
            self.on_enough()
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count what is not the peer's fault."""
        if self.own_error(request, sys.exception()) is not None:
            self.board.failed()
        super().handle_error(request, client_address)

    def datagrams_handled(self, count: int, size: int) -> None:
        """Count datagrams that were handled at once."""
        before, self._numbers = self._numbers, self._numbers + count
        self.board.handled(count, size)
        if before < self.retire_after <= self._numbers:
            self.on_enough()

    @passes_datagrams
    def request_done(self, request: Any) -> None:
        """Count the end of the request."""
        # Before the seat is given back: with the last one a server that stops, and its process, may end.
        one = self.at_hand.pop(id(request), None)
        if one is None:
            self.board.refused()
        else:
            self.account(one)
        super().request_done(request)

    def account(self, one: OpenRequest) -> None:
        """Write down how the request ended."""
        self.board.ended(*_account(one.request))


class ForkedAccountsMixIn(AccountsMixIn):
    """The same where a child handles each request: it leaves its account to its parent, who writes.

    Class attribute `rows`: memory that both have, with a row for each child at a time.
    """

    rows: Rows

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._pid = os.getpid()
        self._row_of: dict[int, int] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the child a row to write to."""
        self._row_of[id(request)] = self.rows.take()
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report it; the parent counts."""
        if os.getpid() == self._pid:
            super().handle_error(request, client_address)
        else:
            super(AccountsMixIn, self).handle_error(request, client_address)

    def account(self, one: OpenRequest) -> None:
        """In the child, leave the account; in the parent, read what the child has left, and write it down."""
        row = self._row_of.pop(id(one.request))
        if os.getpid() != self._pid:
            self.rows.write(row, *_account(one.request))
            return
        outcome, bytes_in, bytes_out = self.rows.give_back(row) or (ERROR, 0, 0)
        if outcome == ERROR:
            self.board.failed()
        self.board.ended(outcome, bytes_in, bytes_out)


def _account(request: Any) -> tuple[str, int, int]:
    if isinstance(request, tuple):
        return CLOSED, len(request[0]), 0
    return (
        getattr(request, "outcome", ERROR),
        getattr(request, "bytes_in", 0),
        getattr(request, "bytes_out", 0),
    )
