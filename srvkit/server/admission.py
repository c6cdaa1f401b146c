"""What must happen between accepting a connection and handling it: a PROXY header, then a TLS handshake.

Both are awaited in the serving loop, in steps that never wait, each with a deadline of its own. So under
every model a client that stalls costs nothing but its seat, and whoever is let in has said who it is.
The work of a handshake is done where the model works (`run_step`).
"""

from __future__ import annotations

import logging
import socket
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from srvkit.contracts import Steps
from srvkit.errors import PeerError
from srvkit.net.access import Rules
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
from srvkit.server.base import MAX_CONNECTIONS, STOPPING

log = logging.getLogger("srvkit.server")

PEEK = int(socket.MSG_PEEK) | DONT_WAIT
BUSY_AGAIN = 0.1  # seconds until the deadline of a step under way is looked at again

NOTHING = "nothing was said"

_recv = socket.socket.recv  # the system call: no byte of a header counts as the client's

# Hears the outcome and the reason of a failure, or "" and None.
Done = Callable[[str, Exception | None], object]


class AdmissionMixIn(Steps):
    """Keep connections waiting until they may be handled; stands in front of a server class.

    Class attributes: `tls`, the certificates, and `proxy`, the settings of PROXY headers, with `trusted`,
    who may send them. Where there is `proxy`, `verify_request` is called twice: for the peer, which must
    be trusted, and for the client that the header names.
    """

    tls: ServerTls | None = None
    proxy: ProxySettings | None = None
    trusted = Rules(())
    waiting: dict[PendingHandshake, None]
    _parked: deque[tuple[Any, Any]]  # who is ready, with addresses, while the model takes no more
    _srvkit_pauses: set[str]
    _srvkit_loop_thread: int | None
    _pending_timers: TimerWheel
    _srvkit_loop: Any = None

    def loop_begins(self, loop: Any) -> None:
        """Begin with nobody waiting. May be extended."""
        super().loop_begins(loop)
        self.waiting = {}
        self._parked = deque()
        self._pending_timers = TimerWheel(loop)

    def loop_ends(self, loop: Any) -> None:
        """Turn away whoever still waits. May be extended."""
        for one in list(self.waiting):
            one.end(STOPPED, None)
        while self._parked:
            self._refuse(*self._parked.popleft(), STOPPED, None)
        super().loop_ends(loop)

    def drain(self, patience: float = 0.0) -> None:
        """Drain; whoever waits is turned away, unless there is patience."""
        super().drain(patience)
        if self._srvkit_loop is not None and not patience:
            self._srvkit_loop.call_soon(self._turn_away)

    def _turn_away(self) -> None:
        for one in list(self.waiting):
            one.give_up()

    def close_in_child(self, request: Any) -> None:
        """Close, in a forked child, the connections that wait for something else. May be extended."""
        super().close_in_child(request)
        for one in list(self.waiting):
            one.request.close()
        for parked, _ in self._parked:
            parked.close()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Ask for trust in the peer where a header is still to come, else what everybody asks."""
        if self.proxy is None or request.proxy is not None:
            return super().verify_request(request, client_address)
        if self.trusted.admits(client_address, request):
            return True
        log.info("%s: %s refused: not a trusted proxy", self._srvkit_name(), display(client_address))
        return False

    def admit_request(self, request: Any, client_address: Any) -> None:
        """Have the request handled once its client is known and the connection secure."""
        if self.proxy is not None:
            header = ProxyHandshake(self, request, partial(self._identified, request, client_address))
            header.begin(self.proxy.header_timeout)
        else:
            self._encrypt(request, client_address)

    def secure(self, request: Any, done: Done) -> None:
        """Begin TLS on a connection and call `done` when the handshake is over; in the loop's thread."""
        assert self.tls is not None
        request.begin_tls(self.tls)
        TlsHandshake(self, request, done).begin(self.tls.settings.handshake_timeout)

    def _identified(self, request: Any, peer: Any, outcome: str, error: Exception | None) -> None:
        if outcome:
            self._refuse(request, peer, outcome, error)
            return
        client_address = peer
        header: ProxyHeader = request.proxy
        if not header.is_local:
            client_address = request.client_address = header.source
        try:
            if not self.verify_request(request, client_address):
                request.outcome = REFUSED
                self.shutdown_request(request)
                return
        except Exception:
            self.handle_error(request, client_address)
            self.shutdown_request(request)
            return
        self._encrypt(request, client_address)

    def _encrypt(self, request: Any, client_address: Any) -> None:
        if self.tls is not None and self.tls.begins_at_once:
            self.secure(request, partial(self._encrypted, request, client_address))
        else:
            self._hand_on(request, client_address)

    def _encrypted(self, request: Any, client_address: Any, outcome: str, error: Exception | None) -> None:
        if outcome in (BAD_TLS, RESET) and not request.has_heard:
            outcome = EOF  # it only looked whether somebody is there
        if outcome:
            self._refuse(request, client_address, outcome, error)
        else:
            self._hand_on(request, client_address)

    def _hand_on(self, request: Any, client_address: Any) -> None:
        """Have the model handle it, or wait until it takes more."""
        if self._is_held_up():
            self._parked.append((request, client_address))
        else:
            super().admit_request(request, client_address)

    def _is_held_up(self) -> bool:
        return bool(
            self._srvkit_pauses - {MAX_CONNECTIONS, STOPPING}
        )  # these are about who is not accepted yet

    def _listen_again(self) -> None:
        while self._parked and not self._is_held_up():
            super().admit_request(*self._parked.popleft())
        super()._listen_again()

    def _refuse(self, request: Any, client_address: Any, outcome: str, error: Exception | None) -> None:
        request.outcome = outcome
        if outcome != STOPPED:
            reason = outcome if error is None else f"{outcome}: {error}"
            level = logging.DEBUG if outcome == EOF else logging.INFO
            log.log(level, "%s: %s ended: %s", self._srvkit_name(), display(client_address), reason)
        self.shutdown_request(request)


class PendingHandshake:
    """A connection that something is awaited from, in steps that never wait.

    It hands the connection back by `done`, in the loop's thread, exactly once.
    """

    late: str  # the outcome when the time is up
    wrong: str  # the outcome when the peer does not keep to the protocol

    def __init__(self, server: Any, request: Any, done: Done) -> None:
        self.request = request
        self.slot: Any = None  # of `TimerWheel`
        self._server = server
        self._loop = server._srvkit_loop
        self._done = done
        self._deadline = 0.0
        self._busy = False  # whether a step is under way, in whatever thread
        self._given_up = False
        self._over = False

    def begin(self, seconds: float) -> None:
        """Wait at most so long, 0 for without end; in the loop's thread."""
        self._server.waiting[self] = None
        if seconds:
            self._deadline = monotonic() + seconds
            self._server._pending_timers.schedule(self, self._deadline)
        self._ready()

    def step(self) -> int:
        """Go as far as it goes; return what to wait for, READ or WRITE, 0 when done. Raises what is wrong."""
        raise NotImplementedError

    def check_deadline(self) -> None:
        """End the waiting if its time is up."""
        if self._busy:
            self._server._pending_timers.schedule(self, monotonic() + BUSY_AGAIN)
        elif monotonic() >= self._deadline:
            self.end(self.late, None)
        else:
            self._server._pending_timers.schedule(self, self._deadline)

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
        self._server.waiting.pop(self, None)
        if self.slot is not None:
            self._server._pending_timers.cancel(self)
        self._loop.unwatch(self.request.fileno())
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
        if outcome and STOPPING in self._server._srvkit_pauses:
            outcome = STOPPED  # it was cut
        self._step_taken(outcome, error)

    def _await(self, wanted: int) -> None:
        if self._over:
            return
        self._busy = False
        if self._given_up:
            self.end(STOPPED, None)
        else:
            self._loop.watch_once(self.request.fileno(), self._ready, wanted)

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
            seen = _recv(self.request, LONGEST, PEEK)
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
            self._received += _recv(self.request, len(seen), DONT_WAIT)
            return READ
        header, length = found
        _recv(self.request, length - len(self._received), DONT_WAIT)
        self.request.proxy = header
        return 0


class TlsHandshake(PendingHandshake):
    """A connection whose TLS handshake is under way; each step of it is work for the model's threads."""

    late = TLS_TIMEOUT
    wrong = BAD_TLS

    def step(self) -> int:
        wanted: int = self.request.shake_hands()
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
