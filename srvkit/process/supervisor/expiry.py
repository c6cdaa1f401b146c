"""What ends while the process runs: certificates and revocation lists, noted once a day and when they end."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from srvkit.config.certificates import notes_on
from srvkit.net.event_loop import EventLoop, Timer
from srvkit.net.tls_context import Term

log = logging.getLogger("srvkit.process")

DAY = 86400.0  # seconds


class ExpiryReminder:
    """Logs what is to be noted of certificates; nothing where there are none."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._terms: Sequence[Term] = ()
        self._timer: Timer | None = None
        self._noted = 0.0  # when all there was to note was logged last

    def about(self, terms: Sequence[Term], noted: float) -> None:
        """Look after these from now on, whose notes of the moment `noted` were logged."""
        self._terms, self._noted = terms, noted
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wait()

    def _wait(self) -> None:
        now = time.time()
        moments = [moment for term in self._terms for moment in term.moments() if moment > self._noted]
        if self._terms:
            seconds = max(0.0, min([DAY, *(moment - now for moment in moments)]))
            self._timer = self._loop.call_later(seconds, self._remind)

    def _remind(self) -> None:
        self._noted = time.time()
        for note in notes_on(self._terms):
            log.warning("%s", note)
        self._wait()
