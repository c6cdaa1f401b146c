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

from srvkit.concurrency.executor import ThreadExecutor
from srvkit.concurrency.loop_connection import ENDED, HANDSHAKE, ConnectionKeeper
from srvkit.concurrency.message_connection import ASKED, MOST_UNSENT, MessageConnection
from srvkit.concurrency.threads import ThreadingMixIn
from srvkit.contracts import setting
from srvkit.net.event_loop import READ, WRITE
from srvkit.protocol.conversation import Encode
from srvkit.protocol.outcomes import OVERFLOW

FULL = "the pool"
BUSY_AGAIN = 1.0  # seconds until the limits of a connection at work are looked at again


class ThreadPoolMixIn(ConnectionKeeper, ThreadingMixIn):
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
            self._srvkit_taken.pop()
            self.resume_accepting(FULL, self._is_busy)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread handle the request, and stop accepting when it was the last one free."""
        if self._srvkit_link is not None:  # it waits in the loop
            self.finish_request(request, client_address)
            return
        self._srvkit_taken.append(None)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._srvkit_taken.pop()
            raise
        if self._is_busy():
            self.pause_accepting(FULL)
            if not self._is_busy():  # one came free between the count and the pause
                self.resume_accepting(FULL, self._is_busy)

    def loop_begins(self, loop: Any) -> None:
        """Have connections of message handlers wait in the loop from now on. May be extended."""
        super().loop_begins(loop)
        if self._takes_connections() and self._takes_messages():
            self._srvkit_link = PooledConnection

    def run_step(self, step: Callable[[], object]) -> None:
        """Take the step in a thread, or here while all of them are busy."""
        if self._is_busy():
            step()
        else:
            super().run_step(step)

    def jobs_wait(self) -> bool:
        """Tell whether others wait for a thread."""
        return self._srvkit_executor is not None and self._srvkit_executor.has_waiting

    def run_after_others(self, function: Callable[..., object], *args: Any) -> None:
        """Have a thread run this after what waits already; called in one of them, which takes the next."""
        assert self._srvkit_executor is not None
        self._srvkit_executor.add(function, *args)

    def _is_busy(self) -> bool:
        return len(self._srvkit_taken) >= self.threads

    def _may_put_off_handshakes(self) -> bool:
        return super()._may_put_off_handshakes() and not self._takes_messages()

    @property
    def _srvkit_taken(self) -> list[None]:
        """One entry for each thread that a request holds: a list changes its length in one step."""
        taken: list[None] = vars(self).setdefault("_threads_taken", [])
        return taken

    def _srvkit_new_executor(self) -> ThreadExecutor:
        self._most_threads = self.threads
        return super()._srvkit_new_executor()


class PooledConnection(MessageConnection):
    """A connection that waits in the loop and does its work in a thread, in one at a time.

    It is either *armed*, known to the loop for one event, or *busy*, in the hands of one thread. The loop
    makes it busy; the thread that has done all there was to do arms it again, last of all, since from then
    on another one may have it. What others send meanwhile waits in `_outside`.
    """

    __slots__ = ("_again", "_busy", "_gives_way", "_left", "_lock", "_outside", "_outside_size", "_thread")

    def begin(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._again = False  # whether the loop wanted something while a thread was busy
        self._left = False  # whether the loop ended while a thread was busy
        self._gives_way = False  # whether the thread that is busy goes on with others first
        self._outside: deque[tuple[bytes, Encode]] = deque()
        self._outside_size = 0
        self._thread = 0  # the one that is busy
        super().begin()

    def send(self, message: bytes, encode: Encode) -> None:
        if threading.get_ident() == self._thread:
            if self._state is not ENDED:
                self.hold(message, encode)
                self._flush()
        else:
            with self._lock:
                if self._outside_size > MOST_UNSENT:
                    self._outside.clear()
                    self.outcome = self.outcome or OVERFLOW
                elif self.outcome != OVERFLOW:
                    self._outside_size += len(message)  # first: it may have none
                    self._outside.append((message, encode))
            self._loop.call_soon(partial(self._dispatch, self._nothing))

    def close(self) -> None:
        if not self.closing:
            mine = threading.get_ident() == self._thread
            self.closing = mine or ASKED
            if not mine:
                self._loop.call_soon(partial(self._dispatch, self._nothing))

    def end_if_idle(self) -> None:
        self._dispatch(self._nothing)  # a thread knows best

    def leave_behind(self) -> None:
        """End the connection now, or when the thread that is busy with it has done what it was doing."""
        with self._lock:
            self._left = True
            if self._busy:
                return
            self._busy = True
        super().leave_behind()

    def check_deadline(self) -> None:
        if self._busy:  # the limits are about what a peer does; how long a handler takes is its own affair
            self._server.timers.schedule(self, monotonic() + BUSY_AGAIN)
        else:
            super().check_deadline()

    def _start(self) -> None:
        self._dispatch(self._greet)

    def _enter(self, step: Callable[[], object]) -> None:
        self._dispatch(step)

    def _dispatch(self, step: Callable[[], object]) -> None:
        """Have a thread take the step. One that is busy looks at everything before it arms the link again."""
        with self._lock:
            if self._busy or self._state is ENDED:
                self._again = True
                return
            self._busy = True
        self._begin_thread(step)

    def _begin_thread(self, step: Callable[[], object]) -> None:
        """Have a thread work for a link that is busy; in the loop's thread."""
        try:
            self._server.run_in_thread(self._work_off, step)
        except RuntimeError:  # the system has no more threads
            self._loop.call_later(BUSY_AGAIN, partial(self._begin_thread, step))

    def _work_off(self, step: Callable[[], object]) -> None:
        while True:
            self._take(step)
            if self._left:
                super().leave_behind()
            try:
                if self._let_go():
                    return
                step = self._nothing
            except (OSError, ValueError) as error:  # the handler has closed the socket
                step = partial(self._failed, error)

    def _let_go(self) -> bool:
        """Give the link back to the loop; return whether nothing came between."""
        with self._lock:
            shaking_hands = self._state is HANDSHAKE
            if self._left and self._state is not ENDED:  # since a moment ago
                return False
            if self._gives_way and self._state is not ENDED:
                self._gives_way = False
                self._thread = 0
                self._server.run_after_others(self._work_off, self._go_on)
                return True
            if not (shaking_hands or (self._state is ENDED)):
                if self._again or self._outside or self._has_more():
                    self._again = False
                    return False
                step, events = (self._writable, WRITE) if self._unsent else (self._readable, READ)
                self._loop.watch_once(self._request.fileno(), partial(self._dispatch, step), events)
                self._busy = False
            self._thread = 0
        if shaking_hands:
            # It stays busy, and nobody is armed, until the handshake is over.
            self._loop.call_soon(partial(self._server.secure, self._request, self._secured))
        return True

    def _take(self, step: Callable[[], object]) -> None:
        """Take a step and all that follows from it, up to where somebody must be waited for."""
        self._thread = threading.get_ident()
        self._attempt(step)
        while self._state is not ENDED:
            closing = self.closing  # asked now: what was sent before that is outside by then
            while one := self._next_outside():
                self._send_for_thread(*one)
            if closing:
                self.closing = True
            self._attempt(self._update_interest)
            if self._state is HANDSHAKE:
                return
            if self._server.draining and self._is_idle() and not self._is_expected():
                self._attempt(self._last_words)
            elif self._work is not None and not self._unsent:
                if self._server.jobs_wait():
                    self._gives_way = True
                    return
                self._attempt(self._go_on)
            elif self._has_more():
                self._attempt(self._read_the_rest if self.deaf else self._readable)
            else:
                return

    def _next_outside(self) -> tuple[bytes, Encode] | None:
        with self._lock:
            if not self._outside:
                self._outside_size = 0
                return None
            one = self._outside.popleft()
            self._outside_size -= len(one[0])
            return one

    def _has_more(self) -> bool:
        """Whether there is something to do that no event of the socket will tell of."""
        if self._unsent or self._state is ENDED or self.handler is None:
            return False
        return self._work is not None or self.deaf or getattr(self._request, "pending", False)

    def _begin_handshake(self) -> None:
        """Have TLS begin when the thread has let go of the connection."""
        self._state = HANDSHAKE

    def _secured(self, outcome: str, error: Exception | None) -> None:
        self._begin_thread(partial(self._go_on_encrypted, outcome, error))

    def _update_interest(self) -> None:
        self._interest = READ  # it is not armed while a thread has it
        super()._update_interest()

    def _watch(self, events: int) -> None:
        """Nothing: it is armed when the thread lets go of it."""

    def _say_last_words(self) -> None:
        """Nothing: the thread does so before it arms the link again."""

    def _go_on_later(self) -> None:
        """Nothing: the thread goes on by itself."""

    def _read_on_later(self) -> None:
        """Nothing: the thread reads on before it arms the link again."""

    def _read_the_rest_later(self) -> None:
        """Nothing: the thread does."""

    def _reschedule(self) -> None:
        self._loop.call_soon(super()._reschedule)

    def _look_no_more(self) -> None:
        if self._limits is not None:
            self._loop.call_soon(super()._look_no_more)  # the timers are the loop's

    def _nothing(self) -> None:
        """Take no step; only flush queued sends."""
