"""What must happen between taking a request and handling it: the stages of admission, one after the other.

    capacity -> access (trusted proxies) -> PROXY header -> access -> limits per client -> hook -> TLS

`compose` makes the tuple of those that a configuration asks for. Most decide at once. A header and a
handshake are awaited in the serving loop, in steps that never wait, each with a deadline of its own. So under
every model a client that stalls costs nothing but its seat, and whoever is let in has said who it is. The
work of a handshake is done where the model works (`run_step`).
"""

from __future__ import annotations

import logging
import socket
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from srvkit.contracts import Stage
from srvkit.errors import PeerError
from srvkit.net.address import display
from srvkit.net.connection import DONT_WAIT
from srvkit.net.event_loop import READ
from srvkit.net.timer_wheel import TimerWheel
from srvkit.net.tls_context import ServerTls
from srvkit.protocol.outcomes import (
    BAD_PROXY,
    BAD_TLS,
    EOF,
    PROXY_TIMEOUT,
    REFUSED,
    RESET,
    STOPPED,
    TLS_TIMEOUT,
)
from srvkit.protocol.proxy_header import LONGEST, ProxyError, ProxyHeader, ProxySettings, parse
from srvkit.server.registry import Registry

log = logging.getLogger("srvkit.server")

PEEK = int(socket.MSG_PEEK) | DONT_WAIT
BUSY_AGAIN = 0.1  # seconds until the deadline of a step under way is looked at again

NOTHING = "nothing was said"

_recv = socket.socket.recv  # the system call: no byte of a header counts as the client's

# Hears the outcome and the reason of a failure, or "" and None.
Done = Callable[[str, Exception | None], object]


class Admission:
    """The way of one server's requests from their record to the model, through its stages.

    Everything but `release` is for the loop's thread.
    """

    def __init__(self, server: Any, stages: Sequence[Stage]) -> None:
        self.registry = Registry()
        self.waiting: dict[PendingHandshake, None] = {}
        self._server = server
        self._stages = tuple(stage.for_server() for stage in stages)
        self._releases = tuple(stage.release for stage in self._stages if stage.counts)
        self._parked: deque[Any] = deque()  # let in, while the model takes no more
        self.timers: TimerWheel | None = None  # while there is a loop

    def __str__(self) -> str:
        return f"{len(self.registry.open)} of {self._server.limits.max_connections} seats taken"

    def begin(self, request: Any, client_address: Any) -> None:
        """Take a request through all stages, and hand it to the model behind the last one."""
        self.registry.add(request, client_address)
        self._pass(request, self._stages)

    def go_on(self, record: Any, stage: Any) -> None:
        """Take a connection on from a stage that has waited for it, and is content."""
        self._pass(record, self._stages[self._stages.index(stage) + 1 :])

    def _pass(self, record: Any, stages: Sequence[Stage]) -> None:
        server = self._server
        for stage in stages:
            if stage.waits:
                if not record.is_admitted:
                    self._count(record)
                stage.begin(self, record)
                return
            try:
                why = stage.admit(server, record)
            except Exception:
                server.handle_error(record, record.client_address)
                why = ""
            if why is not None:
                self._refuse(record, why)
                return
        if stages is self._stages:
            record.at_work = record.since
        elif server._is_held_up():  # it has waited, and meanwhile the model has no place left
            self._parked.append(record)
            return
        else:
            record.at_work = monotonic()
        if not record.is_admitted:
            self._count(record)
        server.admit_request(record, record.client_address)

    def _count(self, record: Any) -> None:
        """Count a request as accepted: its end counts from here on."""
        record.is_admitted = True
        if self._server._srvkit_hears_requests:
            self._server.request_admitted(record)

    def _refuse(self, record: Any, why: str) -> None:
        server = self._server
        if why:
            log.info("%s: %s refused: %s", server._srvkit_name(), display(record.client_address), why)
        if record.is_admitted:  # then its end is counted
            record.outcome = REFUSED
            server.shutdown_request(record)
        else:
            server.refuse_request(record)

    def end(self, record: Any, outcome: str, error: Exception | None) -> None:
        """End a connection whose header or handshake has failed."""
        server = self._server
        record.outcome = outcome
        if outcome != STOPPED:
            reason = outcome if error is None else f"{outcome}: {error}"
            level = logging.DEBUG if outcome == EOF else logging.INFO
            log.log(level, "%s: %s ended: %s", server._srvkit_name(), display(record.client_address), reason)
        server.shutdown_request(record)

    def release(self, record: Any) -> None:
        """Give back what the stages have counted for a request that has ended; in whatever thread."""
        self.registry.open.pop(record.number, None)  # doing so twice does no harm
        for release in self._releases:
            release(self._server, record)

    # ---- those who wait

    def loop_begins(self, loop: Any) -> None:
        """Begin with nobody waiting."""
        self.timers = TimerWheel(loop)

    def loop_ends(self) -> None:
        """Turn away whoever still waits."""
        for one in list(self.waiting):
            one.end(STOPPED, None)
        while self._parked:
            self.end(self._parked.popleft(), STOPPED, None)
        self.timers = None

    def turn_away(self) -> None:
        """End what is waited for: the server stops."""
        for one in list(self.waiting):
            one.give_up()

    def take_parked(self) -> None:
        """Hand on those who were held up by the model, as far as it takes them."""
        while self._parked and not self._server._is_held_up():
            record = self._parked.popleft()
            record.at_work = monotonic()
            self._server.admit_request(record, record.client_address)

    def close_in_child(self) -> None:
        """Close, in a forked child, the connections that wait for something else."""
        for one in list(self.waiting):
            one.record.close()
        for parked in self._parked:
            parked.close()


class ProxyStage(Stage):
    """The stage of `[server.NAME.proxy]`: a trusted peer says by a header for whom it connects."""

    waits = True

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings

    def __repr__(self) -> str:
        return f"ProxyStage(header_timeout={self._settings.header_timeout!r})"

    def begin(self, admission: Admission, record: Any) -> None:
        """Wait for the header."""

        def done(outcome: str, error: Exception | None) -> None:
            if outcome:
                admission.end(record, outcome, error)
                return
            header: ProxyHeader = record.proxy
            if not header.is_local:
                record.peer_address, record.client_address = record.client_address, header.source
            admission.go_on(record, self)

        ProxyHandshake(admission, record, done).begin(self._settings.header_timeout)


class TlsStage(Stage):
    """The stage of `[server.NAME.tls]`, where TLS begins with the connection."""

    waits = True

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls

    def __repr__(self) -> str:
        return f"TlsStage({self._tls!r})"

    def begin(self, admission: Admission, record: Any) -> None:
        """Wait for the handshake."""

        def done(outcome: str, error: Exception | None) -> None:
            if outcome in (BAD_TLS, RESET) and not record.has_heard:
                outcome = EOF  # it only looked whether somebody is there
            if outcome:
                admission.end(record, outcome, error)
            else:
                admission.go_on(record, self)

        begin_tls(admission, record, self._tls, done)


class StandardVerify(Stage):
    """The stage of the standard step `verify_request`, where a class in front of the server has one."""

    def __repr__(self) -> str:
        return "StandardVerify()"

    def admit(self, server: Any, record: Any) -> str | None:
        """Ask the step."""
        return None if server.verify_request(record, record.client_address) else ""


def begin_tls(admission: Admission, record: Any, tls: ServerTls, done: Done) -> None:
    """Begin TLS on a connection and call `done` when the handshake is over; in the loop's thread."""
    record.begin_tls(tls)
    TlsHandshake(admission, record, done).begin(tls.settings.handshake_timeout)


class PendingHandshake:
    """A connection that something is awaited from, in steps that never wait.

    It hands the connection back by `done`, in the loop's thread, exactly once.
    """

    late: str  # the outcome when the time is up
    wrong: str  # the outcome when the peer does not keep to the protocol

    def __init__(self, admission: Admission, record: Any, done: Done) -> None:
        assert admission.timers is not None
        self.record = record
        self.slot: Any = None  # of `TimerWheel`
        self._waiting = admission.waiting
        self._timers = admission.timers
        self._server = admission._server
        self._loop = admission._server._srvkit_loop
        self._done = done
        self._deadline = 0.0
        self._busy = False  # whether a step is under way, in whatever thread
        self._given_up = False
        self._over = False

    def begin(self, seconds: float) -> None:
        """Wait at most so long, 0 for without end; in the loop's thread."""
        self._waiting[self] = None
        if seconds:
            self._deadline = monotonic() + seconds
            self._timers.schedule(self, self._deadline)
        self._ready()

    def step(self) -> int:
        """Go as far as it goes; return what to wait for, READ or WRITE, 0 when done. Raises what is wrong."""
        raise NotImplementedError

    def check_deadline(self) -> None:
        """End the waiting if its time is up."""
        if self._busy:
            self._timers.schedule(self, monotonic() + BUSY_AGAIN)
        elif monotonic() >= self._deadline:
            self.end(self.late, None)
        else:
            self._timers.schedule(self, self._deadline)

    def give_up(self) -> None:
        """End it, when a step that is under way has been taken: the server stops."""
        if self._busy:
            self._given_up = True
        else:
            self.end(STOPPED, None)

    def end(self, outcome: str, error: Exception | None) -> None:
        """Hand the connection back, with an outcome where it has failed; in the loop's thread."""
        if self._over:
            return
        self._over = True
        self._waiting.pop(self, None)
        if self.slot is not None:
            self._timers.cancel(self)
        self._loop.unwatch(self.record.fileno())
        self._done(outcome, error)

    def _ready(self) -> None:
        if not self._over:
            self._busy = True
            self._take_step()

    def _take_step(self) -> None:
        outcome = ""
        error: Exception | None = None
        try:
            wanted = self.step()
            if wanted:
                self._await(wanted)
                return
        except Silent as nothing:
            outcome, error = EOF, nothing
        except PeerError as fault:
            outcome, error = self.wrong, fault
        except OSError as gone:
            outcome, error = RESET, gone
        except ValueError:  # the descriptor is closed: the server has been cut
            outcome = STOPPED
        if outcome and self._server._srvkit_closed:
            outcome = STOPPED  # it was cut
        self._step_taken(outcome, error)

    def _await(self, wanted: int) -> None:
        if self._over:
            return
        self._busy = False
        if self._given_up:
            self.end(STOPPED, None)
        else:
            self._loop.watch_once(self.record.fileno(), self._ready, wanted)

    def _step_taken(self, outcome: str, error: Exception | None) -> None:
        self.end(outcome, error)


class Silent(PeerError):
    """A peer that has gone without a byte, as whoever checks a server's health does."""


class ProxyHandshake(PendingHandshake):
    """A connection from which a PROXY header is to come, and nothing else until then."""

    late = PROXY_TIMEOUT
    wrong = BAD_PROXY
    _received = b""

    def step(self) -> int:
        # What follows the header belongs to TLS or to the handler, so nothing is taken that might.
        try:
            seen = _recv(self.record, LONGEST, PEEK)
        except BlockingIOError:
            return READ
        except OSError as error:
            if self._received:
                raise
            raise Silent(str(error)) from error
        if not seen:
            raise ProxyError("the stream ended before a header did") if self._received else Silent(NOTHING)
        found = parse(self._received + seen)
        if found is None:
            self._received += _recv(self.record, len(seen), DONT_WAIT)
            return READ
        header, length = found
        _recv(self.record, length - len(self._received), DONT_WAIT)
        self.record.proxy = header
        return 0


class TlsHandshake(PendingHandshake):
    """A connection whose TLS handshake is under way; each step of it is work for the model's threads."""

    late = TLS_TIMEOUT
    wrong = BAD_TLS

    def step(self) -> int:
        wanted: int = self.record.shake_hands()
        return wanted

    def _ready(self) -> None:
        if not self._over:
            self._busy = True
            self._server.run_step(self._take_step)

    # The step may have been taken in another thread; who waits for what is the loop's business.

    def _await(self, wanted: int) -> None:
        if get_ident() == self._server._srvkit_loop_thread:
            super()._await(wanted)
        else:
            self._loop.call_soon(partial(super()._await, wanted))

    def _step_taken(self, outcome: str, error: Exception | None) -> None:
        self._loop.call_soon(partial(self.end, outcome, error))
