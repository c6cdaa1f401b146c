"""Now and then the supervisor looks whether its workers are alive, and its files still there."""

from __future__ import annotations

import logging
from time import monotonic

from srvkit.net.event_loop import Timer
from srvkit.process.supervisor.fault_barrier import attempt
from srvkit.process.supervisor.generation import Generations
from srvkit.process.supervisor.places import Places
from srvkit.process.supervisor.shared import Shared
from srvkit.process.worker.main import BEATS

log = logging.getLogger("srvkit.process")

LATE = 1.0  # seconds by which a timer may be late before this process was stopped, or its machine


class HealthCheck:
    """Looks at heartbeats as soon as one may be overdue, and at files then, too."""

    def __init__(self, shared: Shared, generations: Generations, places: Places) -> None:
        self._shared = shared
        self._generations = generations
        self._places = places
        self._timer: Timer | None = None
        self._planned = 0.0
        self._gone: set[str] = set()  # what was said of files that are gone

    def look_in(self, seconds: float) -> None:
        """Look in so many seconds, and not before."""
        if self._timer is not None:
            self._timer.cancel()
        self._planned = monotonic() + seconds
        self._timer = self._shared.loop.call_later(seconds, self._look)

    def look_at_places(self) -> None:
        """Make files anew that somebody has removed, and log what cannot be."""
        for line in self._renewed():
            log.warning("%s", line)

    def _renewed(self) -> list[str]:
        generation = self._generations.current
        return self._places.renew(generation.config.folder if generation is not None else None)

    def _look(self) -> None:
        generation = self._generations.current
        assert generation is not None
        self._shared.children.reap()  # should a signal have been lost for want of memory
        timeout = generation.config.srvkit.heartbeat_timeout
        attempt("looking at files", self._look_at_files)
        self._generations.settle()
        now = monotonic()
        if now > self._planned + LATE:
            # This process was stopped, and perhaps all of them were: let them come round first.
            self.look_in(timeout / BEATS + LATE)
            return
        again = min((pool.look(now, timeout) for pool in self._generations.pools()), default=now + timeout)
        self.look_in(max(0.01, again - now))

    def _look_at_files(self) -> None:
        gone = set(self._renewed())
        generation = self._generations.current
        for listener in generation.sockets if generation is not None else ():
            if listener.has_lost_its_file:
                gone.add(f"{listener.address}: its file is gone; a reload makes it anew")
        for line in sorted(gone - self._gone):
            log.warning("%s", line)
        self._gone = gone
