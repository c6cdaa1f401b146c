"""The requests that a server has taken and not ended yet: the one place that knows them all.

Each is its own record, a `net.connection.Connection` or a `net.datagrams.Datagram`, and known by its number.
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import Any

from srvkit.net.datagrams import Datagram


class Registry:
    """The open requests of one server.

    `add` is for the accepting thread; whatever thread (or reaper of children) ends a request takes it out.
    """

    __slots__ = ("_taken", "open")

    def __init__(self) -> None:
        self.open: dict[int, Any] = {}  # by number
        self._taken = 0  # requests so far

    def add(self, record: Any, client_address: Any) -> None:
        """Begin the record of a request that was just taken."""
        self._taken = record.number = number = self._taken + 1
        record.since = monotonic()
        record.client_address = client_address
        if type(record) is not Datagram:  # which has these from its class
            record.driver = None
            record.is_admitted = False
            record.at_work = inf
        self.open[number] = record

    def get(self, number: int) -> Any:
        """Return the open request with this number; None where it has ended."""
        return self.open.get(number)

    def records(self) -> list[Any]:
        """Return the open requests; safe from any thread."""
        return list(self.open.values())
