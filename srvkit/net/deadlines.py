"""Who is to be looked at when, by the thousand, for next to nothing each.

It knows who is looked at by two names, `look` and `moment`, and nothing of why.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Any, Protocol

from srvkit.net.readiness import Readiness

GRANULARITY = 0.05  # seconds by which a look may come late


class Watched(Protocol):
    """Whoever has a deadline; `moment` belongs to `Deadlines`, None at first."""

    moment: Any

    def look(self) -> None:
        """See whether the deadline has passed, or when it will."""


class Deadlines:
    """Sets of those who are to be looked at, by moments that are `GRANULARITY` apart; in the loop's thread.

    Whose deadline moves further away stays where it is, and is put off when its moment comes; so a message
    costs no more than noting the time.
    """

    def __init__(self, loop: Readiness) -> None:
        self._loop = loop
        self._moments: dict[int, Moment] = {}  # by their time in units of GRANULARITY

    def put(self, one: Watched, due: float) -> None:
        """Have `one.look()` called at `due`, and no longer when it was to be called before."""
        self.remove(one)
        moment = int(due / GRANULARITY) + 1
        those = self._moments.get(moment)
        if those is None:
            self._loop.call_later(moment * GRANULARITY - monotonic(), partial(self._look, moment))
            those = self._moments[moment] = set()
        those.add(one)
        one.moment = those

    def remove(self, one: Watched) -> None:
        """Leave `one` alone."""
        those, one.moment = one.moment, None
        if those is not None:
            those.discard(one)  # an empty set stays: who comes next needs no timer of its own

    def _look(self, moment: int) -> None:
        those = self._moments.pop(moment)
        while those:
            one = those.pop()
            one.moment = None
            one.look()


Moment = set[Watched]
