"""A connection that lives in a loop: what it waits for, what its peer has not taken, its limits, its end.

What is read and what is written is up to the classes above: conversations of message handlers, and the
streams of coroutines. Servers are known by their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from socket import SOCK_STREAM
from time import monotonic
from typing import Any

from srvkit.contracts import Steps
from srvkit.net.connection import DONT_WAIT, Connection
from srvkit.net.event_loop import READ, EventLoop
from srvkit.net.timer_wheel import Slot, TimerWheel
from srvkit.protocol.timeouts import next_timeout

CHUNK = 65536  # bytes of one read
NO_SLOTS: tuple[str, ...] = ()


class State(Enum):
    """Where a connection stands."""

    OPEN = "bytes go both ways"
    HALF_CLOSED = "the handler has written its last byte, the peer is still read"
    HANDSHAKE = "TLS begins; what is written waits for it"
    CLOSING = "how it ends is known, and it does so when what was written is out"
    LOST = "the peer is gone: what it has said is still handled, nothing is sent"
    ENDED = "the socket was given back to the server"


# By their own names, since a look into the class would be one for each message.
OPEN, HALF_CLOSED, HANDSHAKE = State.OPEN, State.HALF_CLOSED, State.HANDSHAKE
CLOSING, LOST, ENDED = State.CLOSING, State.LOST, State.ENDED


class ConnectionKeeper(Steps):
    """A mixin's part that keeps the links of its server, for models whose connections live in the loop."""

    lives_in_loop = True
    timers: TimerWheel
    links: dict[Any, None] = {}  # noqa: RUF012 (each loop begins with one of its own)

    def loop_begins(self, loop: Any) -> None:
        """Begin without connections. May be extended."""
        super().loop_begins(loop)
        self.timers = TimerWheel(loop)
        self.links = {}

    def loop_ends(self, loop: Any) -> None:
        """End the connections that are left: nobody would read from them any more. May be extended."""
        for link in list(self.links):
            link.leave_behind()
        self._srvkit_link = None
        super().loop_ends(loop)

    def _takes_messages(self) -> bool:
        return hasattr(self.RequestHandlerClass, "handle_message")

    def _takes_connections(self) -> bool:
        return bool(getattr(self, "socket_type", SOCK_STREAM) == SOCK_STREAM)

    def drain(self, patience: float = 0.0) -> None:
        """Drain; connections that are idle between two messages end at once."""
        super().drain(patience)
        loop = self._srvkit_loop
        if loop is not None:
            loop.call_soon(self._end_idle)

    def _end_idle(self) -> None:
        for link in list(self.links):
            link.end_if_idle()


class LoopConnection:
    """One connection of a loop, without anybody who reads and writes; see `State`.

    A class on top of it says what to wait for (`_next_events`), takes what comes (`_readable`), and hears
    when all was taken (`_all_sent`), that nothing can be sent any more (`_cannot_send`), that a limit
    has passed (`_peer_lost`), and how a handshake went (`_handshake_over`). `_spans` tells the limits since
    when what has been waited for.
    """

    __slots__ = NO_SLOTS
    SLOTS = (  # of the classes on top: two bases with slots of their own cannot be combined
        "_began",
        "_client_address",
        "_interest",
        "last",
        "_limits",
        "_loop",
        "_request",
        "_server",
        "_state",
        "_unsent",
        "at_work",
        "bytes_in",
        "bytes_out",
        "outcome",
        "slot",
    )
    _began: float  # when that began which request_timeout bounds; 0 for not at all
    _client_address: Any
    _interest: int  # READ, WRITE or both: what the loop watches the socket for
    last: float  # when something came in or went out
    _limits: Any
    _loop: Any
    _request: Any
    _server: Any
    _state: State
    _unsent: bytearray | None  # what the peer has not taken yet
    at_work: float  # since when its handler runs; 0 while it does not
    bytes_in: int
    bytes_out: int
    outcome: str  # how it ends, once that is known
    slot: Slot | None

    def _set_up(self, server: Any, loop: EventLoop, request: Any, client_address: Any) -> None:
        self._server = server
        self._loop = loop
        self._request = request
        if isinstance(request, Connection):
            request.driver = self
        self._client_address = client_address
        self._limits = server.limits
        self._state = OPEN
        self._interest = 0
        self._unsent = None
        self.last = loop.now
        self._began = 0.0
        self.at_work = 0.0
        self.outcome = ""
        self.bytes_in = 0
        self.bytes_out = 0
        self.slot = None

    @property
    def request(self) -> Any:
        """The connection's socket."""
        return self._request

    @property
    def idle(self) -> bool:
        """Whether the connection is between two messages, as far as srvkit knows."""
        return False

    @property
    def ended(self) -> bool:
        """Whether the socket was given back."""
        return self._state is ENDED

    def _enter(self, step: Callable[[], object]) -> None:
        """Take a step that no event of the socket brought."""
        if self._state is not ENDED:
            step()

    # ---- what to wait for

    def _update_interest(self) -> None:
        """Wait for what comes next; the only place that decides it."""
        if self._state is ENDED or self._state is HANDSHAKE:
            return
        events = self._next_events()
        if events is not None and events != self._interest:
            self._watch(events)
            self._reschedule()

    def _next_events(self) -> int | None:
        """Return READ, WRITE, both or 0; None where something else comes first, or nothing changes."""
        raise NotImplementedError

    def _watch(self, events: int) -> None:
        self._interest = events
        if events:
            self._loop.watch(self._request.fileno(), self._callback(events), events)
        else:
            self._loop.unwatch(self._request.fileno())

    def _callback(self, events: int) -> Callable[[], object]:
        # A bound method, which the loop keeps for each connection: a partial would take more memory.
        return self._readable if events == READ else self._ready

    def _readable(self) -> object:
        raise NotImplementedError

    def _ready(self) -> None:
        """Do what can be done; called where more than reading is waited for."""
        raise NotImplementedError

    # ---- what is sent

    def _transmit(self, data: Any) -> None:
        """Send, behind what was sent before; keep what the peer does not take."""
        if (self._unsent or self._state is not OPEN) and self._waits(data):
            return
        try:
            sent = self._request.send(data, DONT_WAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._cannot_send(error)
            return
        self.bytes_out += sent
        if sent < len(data):
            self._unsent = bytearray(memoryview(data)[sent:])
            self._must_wait()

    def _must_wait(self) -> None:
        """Note that from now on the peer is to take something."""
        self.last = monotonic()  # the loop's time may be from long before

    def _waits(self, data: Any) -> bool:
        """Keep what cannot be sent now, or nothing where it never can; return False where it can."""
        if self._state is LOST:
            return True
        if self._unsent:
            self._unsent += data
            return True
        if self._state is HANDSHAKE:
            self._unsent = bytearray(data)
            return True
        return False

    def _writable(self) -> None:
        """Send more of what the peer had not taken."""
        if self._unsent is None:
            return
        try:
            sent = self._request.send(self._unsent, DONT_WAIT)
        except BlockingIOError as error:
            if getattr(error, "characters_written", 0):  # of what is encrypted already
                self.last = monotonic()
            return
        except OSError as error:
            self._unsent = None
            self._cannot_send(error)
            self._all_sent()
            return
        self.last = monotonic()  # a coroutine may have held up the loop, whose time is older
        self.bytes_out += sent
        del self._unsent[:sent]
        if not self._unsent:
            self._unsent = None
            self._all_sent()

    def _all_sent(self) -> None:
        raise NotImplementedError

    def _cannot_send(self, error: OSError) -> None:
        raise NotImplementedError

    # ---- TLS within a conversation

    def _begin_handshake(self) -> None:
        """Begin TLS; the connection does nothing else until it has come to its end."""
        self._state = HANDSHAKE
        self._server.timers.cancel(self)  # a handshake has a limit of its own
        self._loop.unwatch(self._request.fileno())
        self._interest = 0
        self._server.secure(self._request, self._secured)

    def _secured(self, outcome: str, error: Exception | None) -> None:
        self._enter(partial(self._go_on_encrypted, outcome, error))

    def _go_on_encrypted(self, outcome: str, error: Exception | None) -> None:
        if self._state is HANDSHAKE:  # else it was closed meanwhile
            self._state = OPEN
        self.last = self._loop.now  # the peer's time for what was written meanwhile begins now
        self._handshake_over(outcome, error)
        if not outcome:
            unsent, self._unsent = self._unsent, None
            if unsent:
                self._transmit(bytes(unsent))
            self._update_interest()

    def _handshake_over(self, outcome: str, error: Exception | None) -> None:
        raise NotImplementedError

    # ---- limits

    def check_deadline(self) -> None:
        """End the connection if a limit has passed, else have it looked at again when one may have."""
        left, outcome = self._next_timeout()
        if left is not None and left <= 0:
            self._enter(partial(self._peer_lost, outcome))
        else:
            self._reschedule()

    def _begin_limits(self) -> None:
        """Have the limits looked at when the first one may have passed; before anything is waited for."""
        limits = self._limits
        if limits is not None and limits.first_look:
            self._server.timers.schedule(self, self.last + limits.first_look)

    def _reschedule(self) -> None:
        """Have the limits looked at when the next one may have passed; no more once the end has come."""
        left = None if self._state is ENDED else self._next_timeout()[0]
        limits = self._limits
        if not self.bytes_in and limits is not None and limits.idle_timeout and self._state is not ENDED:
            # Once the first byte has come, without anybody looking, this limit may be the nearer one.
            left = limits.idle_timeout if left is None else min(left, limits.idle_timeout)
        if left is not None:
            self._server.timers.schedule(self, monotonic() + left)
        elif self.slot is not None:
            self._server.timers.cancel(self)

    def _look_no_more(self) -> None:
        """Have the limits looked at no more: this is the end, in whatever thread it came."""
        if self.slot is not None:
            self._server.timers.cancel(self)

    def _next_timeout(self) -> tuple[float | None, str]:
        """Return in how many seconds a limit passes if nothing happens, and what that means."""
        if self._limits is None:
            return None, ""
        now = monotonic()
        reading, writing = self._spans(now)
        message = now - self._began if self._began else None
        return next_timeout(
            self._limits, heard=self.bytes_in > 0, reading=reading, writing=writing, message=message
        )

    def _spans(self, now: float) -> tuple[float | None, float | None]:
        """Return how long more of the peer was waited for, and how long it has taken nothing."""
        raise NotImplementedError

    def _peer_lost(self, outcome: str) -> None:
        raise NotImplementedError

    # ---- the end

    def _write_account(self, outcome: str = "") -> None:
        """Write down what came and went, and the outcome where it is not to keep the one it has."""
        request = self._request
        if isinstance(request, Connection):
            request.outcome = outcome or request.outcome
            request.bytes_in = self.bytes_in
            request.bytes_out = self.bytes_out
            request.last = self.last
            if self._state is ENDED:
                request.driver = None  # they would otherwise keep each other

    def _give_back(self) -> None:
        """Let the server have the socket, which shuts it down; nothing comes after this."""
        self._state = ENDED
        self._loop.forget(self._request.fileno())
        self._unsent = None
        self._look_no_more()
        self._server.links.pop(self, None)
        self._write_account()
        self._shut_down()

    def _shut_down(self) -> None:
        self._server.shutdown_request(self._request)
