"""Coarse timers for thousands of connections at almost no cost: a hashed timing wheel.

Entries need a `check_deadline()` method and a `slot` attribute.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Any, Protocol

from srvkit.net.event_loop import EventLoop

GRANULARITY = 0.05  # seconds by which a look may come late


class Watched(Protocol):
    """Whoever has a deadline; `slot` belongs to `TimerWheel`, None at first."""

    slot: Any

    def check_deadline(self) -> None:
        """See whether the deadline has passed, or when it will."""


class TimerWheel:
    """Sets of those who are to be looked at, by moments that are `GRANULARITY` apart; in the loop's thread.

    Whose deadline moves further away stays where it is, and is put off when its slot comes; so a message
    costs no more than noting the time.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, Slot] = {}  # by their time in units of GRANULARITY

    def schedule(self, one: Watched, due: float) -> None:
        """Have `one.check_deadline()` called at `due`, and no longer when it was to be called before."""
        self.cancel(one)
        slot = int(due / GRANULARITY) + 1
        those = self._slots.get(slot)
        if those is None:
            self._loop.call_later(slot * GRANULARITY - monotonic(), partial(self._check, slot))
            those = self._slots[slot] = set()
        those.add(one)
        one.slot = those

    def cancel(self, one: Watched) -> None:
        """Leave `one` alone."""
        those, one.slot = one.slot, None
        if those is not None:
            those.discard(one)  # an empty set stays: who comes next needs no timer of its own

    def _check(self, slot: int) -> None:
        those = self._slots.pop(slot)
        while those:
            one = those.pop()
            one.slot = None
            one.check_deadline()


Slot = set[Watched]
