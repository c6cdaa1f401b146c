"""Who is to be looked at when, by the thousand, for next to nothing each.

It knows who is looked at by two names, `look` and `moment`, and nothing of why.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Any, Protocol

from srvkit.net.readiness import Readiness, Timer

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
        self._moments: dict[int, Moment] = {}

    def put(self, one: Watched, due: float) -> None:
        """Have `one.look()` called at `due`, and no longer when it was to be called before."""
        self.remove(one)
        moment = int(due / GRANULARITY) + 1
        entry = self._moments.get(moment)
        if entry is None:
            timer = self._loop.call_later(moment * GRANULARITY - monotonic(), partial(self._look, moment))
            entry = self._moments[moment] = (set(), moment, timer)
        entry[0].add(one)
        one.moment = entry

    def remove(self, one: Watched) -> None:
        """Leave `one` alone."""
        entry, one.moment = one.moment, None
        if entry is not None:
            those, moment, timer = entry
            those.discard(one)
            if not those and self._moments.get(moment) is entry:
                timer.cancel()
                del self._moments[moment]

    def _look(self, moment: int) -> None:
        those = self._moments.pop(moment)[0]
        while those:
            one = those.pop()
            one.moment = None
            one.look()


# Those to be looked at, when that is in units of GRANULARITY, and what rings then.
Moment = tuple[set[Watched], int, Timer]
