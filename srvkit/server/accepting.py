"""Whether a server takes new requests, in one place: the state, the reasons to pause, and what goes wrong.

| state      | requests are taken                   | the loop watches listeners | left when               |
|------------|--------------------------------------|----------------------------|-------------------------|
| `OPEN`     | as they come                         | yes                        | paused, drained, closed |
| `PAUSED`   | no: the kernel queues them           | no                         | the last reason is gone |
| `DRAINING` | only what waited when draining began | no                         | that was taken          |
| `CLOSED`   | no more                              | no                         | -                       |

A server that drains may be paused as well, and drains on afterwards. Three words say it all: the reasons to
pause, whether draining has begun, whether it was closed; `accepting` makes the state of them.
"""

from __future__ import annotations

import logging
from _thread import get_ident
from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic
from typing import Any

from srvkit.contracts import Steps
from srvkit.net.event_loop import EXCLUSIVE, READ, EventLoop
from srvkit.net.listener import CAPACITY_ERRNOS, FATAL_ERRNOS, Listener, is_dead
from srvkit.server.admission import Admission
from srvkit.server.limits import MAX_CONNECTIONS
from srvkit.server.stdlib_loop import ShutdownFlag

log = logging.getLogger("srvkit.server")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds without accepting after a capacity error, doubling
FAILURES_IN_A_ROW = 100  # from here on even errors that should pass are met with a pause
SHORTAGE = "a shortage"  # a reason not to accept: something ran out


class State(Enum):
    """Whether new requests are taken."""

    OPEN = "as they come"
    PAUSED = "not now: the kernel queues them"
    DRAINING = "only what waited when the server was told to drain"
    CLOSED = "no more"


OPEN, PAUSED, DRAINING, CLOSED = State.OPEN, State.PAUSED, State.DRAINING, State.CLOSED


class Accepting(Steps):
    """The part of a server that takes requests and knows when not to; see the table above.

    Every attribute has a default in the class: a program's tests may leave out the constructor.
    """

    has_peers = False  # whether other processes wait for the same listening sockets
    shared: frozenset[int] = frozenset()  # listeners whose queues others serve when this server has stopped
    taking_requests = False  # whether further requests may follow before requests_taken() is called
    _srvkit_admission: Admission | None = None
    _srvkit_hears_requests = False  # whether a class in front hears of each that is admitted, and of its end
    _srvkit_loop: EventLoop | None = None
    _srvkit_listeners: Sequence[Listener] = ()
    # The standard library's name; programs set it where they cannot wait for shutdown().
    _BaseServer__shutdown_request: Any = ShutdownFlag()
    _srvkit_burst = 1  # requests taken per wake-up before the loop looks at anything else
    _srvkit_more = False  # whether another request may be waiting at the listener that is being emptied
    _srvkit_reasons: Any = frozenset()  # to pause; each server has a set of its own
    _srvkit_drains = False
    _srvkit_closed = False
    _empties_queue = False  # whether what is taken is what waited when draining began
    _in_burst = False  # whether get_request() must not wait: there may be nothing left
    _may_gather = False  # whether nothing between two requests takes its time
    _failures_in_a_row = 0  # to take a request
    _shortage: BaseException | None = None  # because of which accepting was paused last
    _last_complaint = 0.0
    _complaints_held_back = 0

    # ---- states

    @property
    def _srvkit_accepting(self) -> State:
        if self._srvkit_closed:
            return CLOSED
        if self._srvkit_reasons:
            return PAUSED
        return DRAINING if self._srvkit_drains else OPEN

    def pause_accepting(self, reason: str) -> None:
        """Leave new requests to the kernel's queue until `resume_accepting(reason)`; in the loop's thread."""
        if not self._srvkit_reasons:
            self._srvkit_reasons = set()
        self._srvkit_reasons.add(reason)
        self._unwatch_listeners()

    def resume_accepting(self, reason: str, unless: Callable[[], bool] | None = None) -> None:
        """Take back `pause_accepting(reason)`; safe from any thread, does nothing where it was not called.

        `unless`, asked in the loop's thread, tells of a reason that has come up again meanwhile.
        """
        if reason not in self._srvkit_reasons:
            return
        loop = self._srvkit_loop
        if loop is not None and get_ident() != self._srvkit_loop_thread:
            loop.call_soon(lambda: self.resume_accepting(reason, unless))
            return
        if unless is not None and unless():
            return
        self._srvkit_reasons.discard(reason)
        if self._srvkit_admission is not None:
            self._srvkit_admission.take_parked()
        self._watch_listeners()

    def _is_held_up(self) -> bool:
        """Tell whether the model takes no more; `max_connections` is about who is not accepted yet."""
        return bool(self._srvkit_reasons - {MAX_CONNECTIONS})

    def _empty_queue(self) -> None:
        """Take what waits in the kernel's queue, and when nothing does any more, stop listening.

        What others share is left to them, but for what the kernel may have woken this process for.
        """
        loop = self._srvkit_loop
        assert loop is not None
        for listener in self._srvkit_listeners:
            if listener.fileno() >= 0 and listener.number in self.shared:
                loop.unwatch(listener.fileno())
                if self.has_peers and self._srvkit_accepting is DRAINING:
                    self._take_what_waits(listener)
                continue
            if self._srvkit_accepting is not DRAINING:
                return  # it goes on here when there is room again
            self._take_what_waits(listener)
            if self._srvkit_more:  # a burst of many, or no room
                loop.call_later(0, self._empty_queue)
                return
        self._stop_listening()

    def _stop_listening(self) -> None:
        raise NotImplementedError

    # ---- waiting

    def _begin_accepting(self) -> None:
        """Take requests, as a loop begins; what ran out in an earlier one was its affair."""
        if self._srvkit_reasons:
            self._srvkit_reasons.discard(SHORTAGE)
        self._watch_listeners()

    def _watch_listeners(self) -> None:
        """Have the loop tell of new requests, if they are to be taken."""
        loop, state = self._srvkit_loop, self._srvkit_accepting
        if loop is None or state is PAUSED or state is CLOSED:
            return
        if state is DRAINING and self._srvkit_listeners:
            self._empty_queue()
            return
        if not self._srvkit_listeners:
            loop.watch(self.fileno(), self._take_requests)
        events = READ | EXCLUSIVE if self.has_peers else READ
        for listener in self._srvkit_listeners:
            loop.watch(listener.fileno(), self._taker(listener), events)

    def _unwatch_listeners(self) -> None:
        if self._srvkit_loop is not None:
            for fd in self._listening_fds():
                self._srvkit_loop.unwatch(fd)

    def _listening_fds(self) -> list[int]:
        return [listener.fileno() for listener in self._srvkit_listeners] or [self.fileno()]

    def _taker(self, listener: Listener) -> Callable[[], None]:
        if len(self._srvkit_listeners) == 1:
            return self._take_requests

        def take_requests() -> None:
            self.socket = listener.socket  # the steps read self.socket: the current listener
            self._take_requests()

        return take_requests

    def _take_what_waits(self, listener: Listener) -> None:
        self._empties_queue = True
        self._taker(listener)()
        self._empties_queue = False

    # ---- taking

    def _take_requests(self) -> None:
        """Take requests, one after the other, up to a burst of them."""
        self._in_burst = True
        self.taking_requests = self._may_gather
        try:
            for _ in range(self._srvkit_burst):
                if not self._takes_more():
                    break
                self._srvkit_more = True
                self._handle_request_noblock()
                if not self._srvkit_more:
                    break
        finally:
            self._in_burst = self.taking_requests = False
            self.requests_taken()

    def _takes_more(self) -> bool:
        """Tell whether one more may be taken now, whatever handling the one before has changed."""
        if self._BaseServer__shutdown_request or self._srvkit_closed or self._srvkit_reasons:
            return False
        # While it drains, what waited; a server of a program's own goes on.
        return not self._srvkit_drains or self._empties_queue or not self._srvkit_listeners

    # ---- what goes wrong

    def _get_request_failed(self, error: OSError) -> None:
        """Note that no request could be taken; raises the error where the listening socket is broken."""
        if isinstance(error, BlockingIOError):
            self._srvkit_more = False
        elif error.errno in CAPACITY_ERRNOS:
            self.back_off_accepting(error)
        elif error.errno in FATAL_ERRNOS and is_dead(self.socket):
            self._srvkit_more = False
            if not self._BaseServer__shutdown_request:
                raise error
        elif self._failures_in_a_row >= FAILURES_IN_A_ROW:
            self.back_off_accepting(error)
        else:
            self._failures_in_a_row += 1

    def _was_told(self, error: BaseException) -> bool:
        """Tell whether the error is the shortage that was logged just now; forgets it."""
        told = error is self._shortage
        if told:
            self._shortage = None
        return told

    def back_off_accepting(self, error: BaseException) -> None:
        """Stop accepting for a moment because something ran out: 10 ms, doubling up to 1 s.

        Logs at most one line a second. Without a loop (`handle_request`) it only logs.
        """
        self._srvkit_more = False
        self._shortage = error
        delay = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures_in_a_row, 10))
        self._failures_in_a_row += 1
        now = monotonic()
        if now - self._last_complaint >= 1.0:
            held = f" ({self._complaints_held_back} like it held back)" if self._complaints_held_back else ""
            log.warning(
                "%s: cannot accept: %s; next try in %d ms%s", self._srvkit_name(), error, delay * 1000, held
            )
            self._last_complaint, self._complaints_held_back = now, 0
        else:
            self._complaints_held_back += 1
        if self._srvkit_loop is not None:
            self.pause_accepting(SHORTAGE)
            self._srvkit_loop.call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self.resume_accepting(SHORTAGE)
        self.requests_taken()  # some may still be without what ran out
