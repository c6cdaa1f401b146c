"""A bounded number of threads.

A message handler's connection waits in the serving loop and takes a thread only while there is something
to handle; a handler that does its own input and output holds one while its connection lasts.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from srvkit.concurrency.crew import Crew
from srvkit.concurrency.links import MOST_UNSENT, SHAKING_HANDS, EventLink, LinkKeeper
from srvkit.concurrency.threads import ThreadingMixIn
from srvkit.contracts import setting
from srvkit.net.connection import OVERFLOW
from srvkit.net.readiness import READ, WRITE

FULL = "the pool"
BUSY_AGAIN = 1.0  # seconds until the limits of a connection at work are looked at again


class ThreadPoolMixIn(LinkKeeper, ThreadingMixIn):
    """Handle requests in at most `threads` threads; stands in front of a server class.

    Connections of message handlers wait in the loop, as many as `limits` allow, and get a thread for each
    piece of work, their messages in order. Any other request holds its thread until it is handled; while
    all are busy with such the server takes no further ones (on servers of the standard library, which
    cannot do that, they wait for a thread here). Otherwise as `ThreadingMixIn`.
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
                resume(FULL, self._is_busy)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread handle the request, and stop accepting when it was the last one free."""
        if self._waits_in_loop(request):
            self.finish_request(request, client_address)
            return
        taken = self._taken
        taken[id(request)] = request
        try:
            super().process_request(request, client_address)
        except BaseException:
            taken.pop(id(request), None)
            raise
        pause = getattr(self, "pause_accepting", None)
        if pause is not None and self._is_busy():
            pause(FULL)
            if not self._is_busy():  # one came free between the count and the pause
                self.resume_accepting(FULL, self._is_busy)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a handler handle the request: here and now, or in the loop whenever something arrives."""
        if self._waits_in_loop(request):
            loop: Any = getattr(self, "_loop", None)
            PooledLink(self, loop, request, client_address).begin()
        else:
            super().finish_request(request, client_address)

    def run_step(self, step: Callable[[], object]) -> None:
        """Take the step in a thread, or here while all of them are busy."""
        if self._is_busy():
            step()
        else:
            super().run_step(step)

    def _is_busy(self) -> bool:
        return len(self._taken) >= self.threads

    def _waits_in_loop(self, request: Any) -> bool:
        if getattr(self, "_loop", None) is None or isinstance(request, tuple):
            return False  # handle_request(), a server of the standard library; a datagram is all there
        return hasattr(self.RequestHandlerClass, "handle_message")

    def _may_put_off_handshakes(self) -> bool:
        return super()._may_put_off_handshakes() and not hasattr(self.RequestHandlerClass, "handle_message")

    @property
    def _taken(self) -> dict[int, Any]:
        taken: dict[int, Any] = vars(self).setdefault("_requests_in_pool", {})
        return taken

    def _new_crew(self) -> Crew:
        self._most_threads = self.threads
        return super()._new_crew()


class PooledLink(EventLink):
    """A connection that waits in the loop and does its work in a thread, in one at a time.

    It is either *armed*, known to the loop for one event, or *busy*, in the hands of one thread. The loop
    makes it busy; the thread that has done all there was to do arms it again. What others send meanwhile
    waits in `_outside`.
    """

    __slots__ = ("_busy", "_lock", "_outside", "_outside_size", "_thread")

    def begin(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._outside: deque[bytes] = deque()
        self._outside_size = 0
        self._thread = 0
        super().begin()

    def write(self, data: bytes) -> None:
        if threading.get_ident() == self._thread and self._busy:
            if not self.ended:
                self._hold(data)
                self._flush()
        else:
            with self._lock:
                if self._outside_size > MOST_UNSENT:
                    self._outside.clear()
                    self._ending = self._ending or OVERFLOW
                elif self._ending != OVERFLOW:
                    self._outside.append(data)
                    self._outside_size += len(data)
            self._loop.call_soon(partial(self._dispatch, self._nothing))

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if threading.get_ident() != self._thread or not self._busy:
                self._loop.call_soon(partial(self._dispatch, self._nothing))

    def look(self) -> None:
        if self._busy:  # the limits are about what a peer does; how long a handler takes is its own affair
            self._server.deadlines.put(self, monotonic() + BUSY_AGAIN)
        else:
            super().look()

    def _start(self) -> None:
        self._dispatch(self._greet)

    def _enter(self, step: Callable[[], object]) -> None:
        self._dispatch(step)

    def _dispatch(self, step: Callable[[], object]) -> None:
        """Have a thread take the step. One that is busy looks at everything before it arms the link again."""
        with self._lock:
            if self._busy or self.ended:
                return
            self._busy = True
        self._server.run_in_thread(self._run, self._take, step)

    def _take(self, step: Callable[[], object]) -> None:
        self._thread = threading.get_ident()
        self._attempt(step)
        while not self.ended:
            while data := self._next_outside():
                self._send_for_another(data)
            self._attempt(self._settle)
            if self._tls == SHAKING_HANDS:
                return
            if self._server.draining and self._is_idle() and not self._is_expected():
                self._attempt(self._last_words)
                continue
            with self._lock:
                if not (self.ended or self._outside or self._has_more()):
                    self._busy = False
                    if self._unsent:
                        self._wait_for(self._writable, WRITE)
                    else:
                        self._wait_for(self._readable, READ)
                    return
            if self._has_more():
                self._attempt(self._readable if self._work is None else self._go_on)

    def _next_outside(self) -> bytes:
        with self._lock:
            if not self._outside:
                self._outside_size = 0
                return b""
            data = self._outside.popleft()
            self._outside_size -= len(data)
            return data

    def _has_more(self) -> bool:
        """Whether there is something to do that no event of the socket will tell of."""
        return not (self._unsent or self.ended) and (
            self._work is not None or getattr(self._request, "pending", False)
        )

    def _secure(self) -> None:
        # It stays busy, and nobody is armed, until the handshake is over.
        self._loop.call_soon(partial(self._server.secure, self._request, self._secured))

    def _secured(self, outcome: str, error: Exception | None) -> None:
        step = partial(self._go_on_encrypted, outcome, error)
        self._server.run_in_thread(self._run, self._take, step)

    def _settle(self) -> None:
        self._reading = True  # it is not armed while a thread has it
        super()._settle()

    def _wait_for(self, step: Callable[[], object], events: int) -> None:
        if not self._busy:
            self._loop.watch_once(self._request.fileno(), partial(self._dispatch, step), events)

    def _say_last_words(self) -> None:
        """Nothing: the thread does so before it arms the link again."""

    def _go_on_later(self) -> None:
        """Nothing: the thread goes on by itself."""

    def _read_on_later(self) -> None:
        """Nothing: the thread reads on before it arms the link again."""

    def _put_off(self) -> None:
        self._loop.call_soon(super()._put_off)

    def _nothing(self) -> None:
        """Take no step of one's own, but see to what came from outside."""
