"""A bounded number of threads; further requests stay in the kernel's queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from srvkit.concurrency.crew import Crew
from srvkit.concurrency.threads import ThreadingMixIn
from srvkit.contracts import setting

FULL = "the pool"


class ThreadPoolMixIn(ThreadingMixIn):
    """Handle each request in one of at most `threads` threads; stands in front of a server class.

    A request holds its thread until it is handled. While all are busy the server takes no further ones
    (on servers of the standard library, which cannot do that, they wait for a thread here). Otherwise
    as `ThreadingMixIn`.
    """

    @dataclass(frozen=True)
    class Options:
        threads: int = setting(32, "requests handled at once", minimum=1)

    threads = 32

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle the request; runs in its thread. May be extended."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._taken.pop(id(request), None)
            resume = getattr(self, "resume_accepting", None)
            if resume is not None:
                resume(FULL)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread handle the request, and stop accepting when it was the last one free."""
        taken = self._taken
        taken[id(request)] = request
        try:
            super().process_request(request, client_address)
        except BaseException:
            taken.pop(id(request), None)
            raise
        pause = getattr(self, "pause_accepting", None)
        if pause is not None and len(taken) >= self.threads:
            pause(FULL)
            if len(taken) < self.threads:  # one came free between the count and the pause
                self.resume_accepting(FULL)

    @property
    def _taken(self) -> dict[int, Any]:
        taken: dict[int, Any] = vars(self).setdefault("_requests_in_pool", {})
        return taken

    def _new_crew(self) -> Crew:
        self._most_threads = self.threads
        return super()._new_crew()
