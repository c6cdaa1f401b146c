"""The steps of a server that is watched over: they count, and show that the loop comes round.

A mixin for `process` to put in front of a composed class. It knows the board it writes on by its
protocol, and nothing of who reads it.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from srvkit.contracts import Board, Rows, Steps, passes_datagrams
from srvkit.net.connection import account_of
from srvkit.protocol.outcomes import BAD_MESSAGE, CLOSED, ERROR, REFUSED
from srvkit.protocol.proxy_header import unmapped


@dataclass(slots=True)
class OpenRequest:
    """A connection being handled, as far as its server knows."""

    number: int
    request: Any
    client_address: Any
    since: float  # on the monotonic clock


class StatsMixIn(Steps):
    """Count requests on a board, know those being handled, and beat while the loop comes round.

    Class attributes: `board`; `beat_interval`, in seconds; `retire_after`, the number of requests after
    which `on_max_requests()` is called, 0 for never.
    """

    board: Board
    beat_interval: float
    retire_after = 0
    _numbers = 0
    _refused: Any = None  # the request that is being refused

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # By descriptor, and nothing more: an idle connection pays 16 bytes where an object takes 500.
        self._number = array("Q")
        self._since = array("d")

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

    @passes_datagrams
    def admit_request(self, request: Any, client_address: Any) -> None:
        """Count the request and have it handled."""
        self.board.accepted()
        self._numbers += 1
        self.note(request, client_address)
        if self._numbers == self.retire_after:
            self.on_max_requests()
        super().admit_request(request, client_address)

    def refuse_request(self, request: Any) -> None:
        """Count the request, which is not handled."""
        self.board.refused()
        self._refused = request
        super().refuse_request(request)
        self._refused = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count what is not the peer's fault."""
        if self.own_error(request, sys.exception()) is not None:
            self.board.failed()
        super().handle_error(request, client_address)

    def datagrams_handled(self, count: int, bytes_in: int, bytes_out: int, unusual: list[str]) -> None:
        """Count datagrams that were handled at once."""
        before, self._numbers = self._numbers, self._numbers + count
        self.board.handled(count, bytes_in, bytes_out, unusual)
        if before < self.retire_after <= self._numbers:
            self.on_max_requests()

    def datagram_dropped(self) -> None:
        """Count a datagram that was no message, or too long."""
        self.board.dropped()

    def reply_lost(self, client_address: Any, why: str) -> None:
        """Count a reply that its client could not be given, and say so."""
        self.board.unanswered()
        super().reply_lost(client_address, why)

    @passes_datagrams
    def request_done(self, request: Any) -> None:
        """Count the end of the request."""
        # Before the seat is given back: with the last one a server that stops, and its process, may end.
        if request is not self._refused:
            self.account(request)
        super().request_done(request)

    def account(self, request: Any) -> None:
        """Write down how the request ended."""
        self.board.ended(*_account(request))

    def note(self, request: Any, client_address: Any) -> None:
        """Remember that a connection begins; datagrams are over too soon for anybody to ask."""
        if isinstance(request, tuple):
            return
        fd = request.fileno()
        missing = fd + 1 - len(self._since)
        if missing > 0:
            self._number.extend([0] * missing)
            self._since.extend([0.0] * missing)
        self._number[fd], self._since[fd] = self._numbers, monotonic()

    def open_requests(self) -> list[OpenRequest]:
        """Return the connections that are being handled; safe from any thread."""
        found = []
        for request in self.requests_at_hand():
            with suppress(OSError, AttributeError, IndexError):  # just ended, or a datagram
                fd = request.fileno()
                if fd >= 0:
                    peer = request.client_address or unmapped(request.getpeername())
                    found.append(OpenRequest(self._number[fd], request, peer, self._since[fd]))
        return found


class ForkedStatsMixIn(StatsMixIn):
    """The same where a child handles each request: it leaves its account to its parent, who writes.

    Class attribute `rows`: memory that both have, with a row for each child at a time.
    """

    rows: Rows

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._pid = os.getpid()
        self._noted: dict[int, OpenRequest] = {}
        self._rows: dict[int, int] = {}  # of those that have a child
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
        self._rows[id(request)] = self.rows.take()
        super().process_request(request, client_address)

    def account(self, request: Any) -> None:
        """In the child, leave the account; in the parent, read what the child has left, and write it down."""
        self._noted.pop(id(request))
        row = self._rows.pop(id(request), None)
        if row is None:  # it never had one
            self.board.ended(*_account(request))
            return
        if os.getpid() != self._pid:
            self.rows.write(row, *_account(request), self._unanswered)
            return
        left = self.rows.give_back(row)
        if left is None and getattr(account_of(request), "outcome", None) == REFUSED:
            left = REFUSED, 0, 0, 0  # there was no process for it
        outcome, bytes_in, bytes_out, unanswered = left or (ERROR, 0, 0, 0)
        if outcome == ERROR:
            self.board.failed()
        for _ in range(unanswered):
            self.board.unanswered()
        if outcome == BAD_MESSAGE and isinstance(request, tuple):
            self.board.dropped()
        self.board.ended(outcome, bytes_in, bytes_out)

    def note(self, request: Any, client_address: Any) -> None:
        """Remember a request, whose connection is closed here as soon as its child has it."""
        self._noted[id(request)] = OpenRequest(self._numbers, request, client_address, monotonic())

    def open_requests(self) -> list[OpenRequest]:
        """Return what the children handle, and what is to be."""
        for one in (found := list(self._noted.values())):
            one.client_address = getattr(one.request, "client_address", None) or one.client_address
        return found


class EndsMixIn(Steps):
    """Tell by `tell_end(address)` of each request that is over, handled or refused, in whatever thread.

    The address is that of the socket's peer, whatever a PROXY header says. Where a child handles a request
    its end is that of the child.
    """

    tell_end: Callable[[Any], object]

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._pid = os.getpid()
        self._peers: dict[int, Any] = {}  # by id of the request

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Remember whose request it is; behind a proxy this is called a second time, for its client."""
        self._peers.setdefault(id(request), client_address)
        return super().verify_request(request, client_address)

    def refuse_request(self, request: Any) -> None:
        """Refuse it; where there was no seat nobody has been asked about it yet."""
        if id(request) not in self._peers:
            with suppress(OSError, AttributeError):  # gone already, or a datagram
                self._peers[id(request)] = unmapped(request.getpeername())
        super().refuse_request(request)

    def request_done(self, request: Any) -> None:
        """Tell of its end."""
        peer = self._peers.pop(id(request), None)
        if peer is not None and os.getpid() == self._pid:
            self.tell_end(peer)
        super().request_done(request)

    def _drop(self, client_address: Any, longest: int) -> None:
        """Tell of the end of a datagram that never became a request."""
        super()._drop(client_address, longest)  # type: ignore[misc]
        self.tell_end(client_address)


def telling_ends(server_class: type[Any], tell_end: Callable[[Any], object]) -> type[Any]:
    """Return the class with `EndsMixIn` in front."""
    attributes = {"__module__": __name__, "tell_end": staticmethod(tell_end)}
    return type(server_class.__name__, (EndsMixIn, server_class), attributes)


def _account(request: Any) -> tuple[str, int, int]:
    account = account_of(request)
    if isinstance(request, tuple):
        return getattr(account, "outcome", CLOSED), len(request[0]), getattr(account, "bytes_out", 0)
    return (
        getattr(account, "outcome", ERROR),
        getattr(account, "bytes_in", 0),
        getattr(account, "bytes_out", 0),
    )
