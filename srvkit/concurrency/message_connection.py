"""A connection that lives in a readiness loop: read, cut, handle, answer, without ever waiting.

What arrives is handled at once; what the peer does not take waits here, and as long as it does nothing
more is read from that peer. Handlers are known by their callbacks, servers by their steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any

from srvkit.contracts import Steps
from srvkit.errors import EscapedError, FrameError
from srvkit.net.address import display
from srvkit.net.connection import DONT_WAIT, Connection
from srvkit.net.event_loop import READ, WRITE, EventLoop
from srvkit.net.timer_wheel import Slot, TimerWheel
from srvkit.net.tls_context import to_begin
from srvkit.protocol.conversation import TURN, Conversation, Encode
from srvkit.protocol.outcomes import (
    BAD_MESSAGE,
    CLOSED,
    EOF,
    ERROR,
    OVERFLOW,
    RESET,
    STOPPED,
    TRUNCATED,
    UNHEARD,
    lost_outcome,
)
from srvkit.protocol.timeouts import next_timeout

log = logging.getLogger("srvkit.server")

CHUNK = 65536  # bytes of one read
MOST_UNSENT = 4 * 1024 * 1024  # bytes it has not taken, above which nobody may `send` it more
ASKED = "asked"  # by another thread, to close
NOTHING: Any = ()  # in place of an empty list of replies, which would take memory for each idle peer


class ConnectionKeeper(Steps):
    """A mixin's part that keeps the links of its server, for models whose connections live in the loop."""

    lives_in_loop = True
    timers: TimerWheel
    links: dict[MessageConnection, None] = {}  # noqa: RUF012 (each loop begins with one of its own)

    def loop_begins(self, loop: Any) -> None:
        """Begin without connections. May be extended."""
        super().loop_begins(loop)
        self.timers = TimerWheel(loop)
        self.links = {}

    def loop_ends(self, loop: Any) -> None:
        """End the connections that are left: nobody would read from them any more. May be extended."""
        for link in list(self.links):
            link.leave_behind()
        super().loop_ends(loop)

    def _joins_loop(self, request: Any) -> bool:
        """Tell whether the request is to live in the loop: there is one, and it is no datagram."""
        return getattr(self, "_srvkit_loop", None) is not None and not isinstance(request, tuple)

    def drain(self, patience: float = 0.0) -> None:
        """Drain; connections that are idle between two messages end at once."""
        super().drain(patience)
        loop = getattr(self, "_srvkit_loop", None)
        if loop is not None:
            loop.call_soon(self._end_idle)

    def _end_idle(self) -> None:
        for link in list(self.links):
            link.end_if_idle()


class MessageConnection(Conversation):
    """One connection of a loop: its conversation, what is on the way to its peer, and its deadlines."""

    __slots__ = (
        "_at_work",
        "_began",
        "_client_address",
        "_context",
        "_ending",
        "_goes_on",
        "_last",
        "_limits",
        "_loop",
        "_reading",
        "_request",
        "_server",
        "_shaking_hands",
        "_unsent",
        "bytes_in",
        "bytes_out",
        "ended",
        "slot",
    )

    def __init__(self, server: Any, loop: EventLoop, request: Any, client_address: Any) -> None:
        super().__init__(None)
        self.out = NOTHING
        self._server = server
        self._loop = loop
        self._request = request
        self._client_address = client_address
        self._limits = getattr(server, "limits", None)
        self._context = Context()  # each connection has one of its own
        self._at_work = False  # whether its own handler runs
        self._goes_on = False  # whether it goes on in the loop's next turn
        self._unsent: bytearray | None = None  # what the peer has not taken yet
        self._reading = True
        self._ending = ""  # the outcome, once the connection is to end as soon as all is sent
        self._shaking_hands = False
        self._last = loop.now  # when something came in or went out
        self._began = 0.0  # when the first byte came of a message that is not complete yet
        self.bytes_in = 0
        self.bytes_out = 0
        # `closing` is ASKED as long as the end is on its way: no further message is handled by then.
        self.ended = False
        self.slot: Slot | None = None

    # ---- for the handler

    def send(self, message: bytes, encode: Encode) -> None:
        if threading.get_ident() != self._server._srvkit_loop_thread:
            self._loop.call_soon(partial(self._enter, partial(self._send_for_thread, message, encode)))
        elif self._at_work:
            self.hold(message, encode)
            self._flush()
        elif not self.ended:
            self._send_for_another(message, encode)
            if self._unsent or self._ending:
                # It was the handler of another connection that called: nobody else would see to it.
                self._loop.call_soon(partial(self._enter, self._update_interest))

    def close(self) -> None:
        if not self.closing:
            # What another thread has sent before is on its way into the loop: the end comes behind it.
            self.closing = threading.get_ident() == self._server._srvkit_loop_thread or ASKED
            self._loop.call_soon(partial(self._enter, self._close_now))

    def _close_now(self) -> None:
        self.closing = True

    def start_tls(self) -> None:
        to_begin(self._server, self._request)
        self.wants_tls = True

    # ---- for the mixin

    def begin(self) -> None:
        """Build the handler, let it greet, and wait for what comes."""
        self.handler = handler = self._built()
        handler.request = self._request
        handler.link = self
        self._server.links[self] = None
        if self._limits is not None:
            self._reschedule()
        self._start()

    def _built(self) -> Any:
        try:
            return self._server.RequestHandlerClass(None, self._client_address, self._server)
        except Exception:
            raise
        except BaseException as error:
            if not self._server.contain_exit:
                raise
            raise EscapedError(f"the handler raised {type(error).__name__}") from error

    def _start(self) -> None:
        self._wait_for(self._readable, READ)
        self._enter(self._greet)

    def _wait_for(self, step: Callable[[], object], events: int) -> None:
        # The loop keeps one bound method for each connection and no partial, which would take more memory.
        self._loop.watch(self._request.fileno(), self._ready, events)

    def _ready(self) -> None:
        self._context.run(self._readable if self._reading else self._writable)

    @property
    def request(self) -> Any:
        """The connection's socket."""
        return self._request

    @property
    def idle(self) -> bool:
        """Whether the connection is between two messages."""
        return self._is_idle()

    @property
    def _run(self) -> Callable[..., Any]:
        return self._context.run

    def end_if_idle(self) -> None:
        """End the connection unless it handles a message or expects its first; the server stops."""
        if self._is_idle() and not self._is_expected():
            self._enter(self._last_words)

    def cut(self) -> None:
        """End the connection at once; the server stops and waits no longer."""
        self._enter(partial(self._end, STOPPED))

    def leave_behind(self) -> None:
        """End the connection, with what its peer takes at once; its loop ends."""
        if not self.ended:
            self._run(self._attempt, self._end_now)

    def _end_now(self) -> None:
        try:
            self._end(STOPPED)
        finally:
            if not self.ended:  # its peer has not taken its last words
                self._close()

    def check_deadline(self) -> None:
        """End the connection if a limit has passed, else have it looked at again when one may have."""
        due, outcome = self._next_deadline()
        if due and due <= monotonic():
            self._enter(partial(self._peer_lost, outcome))
        else:
            self._reschedule()

    def _enter(self, step: Callable[[], object]) -> None:
        """Take a step that no event of the socket brought, in the connection's own context."""
        if not self.ended:
            self._run(self._attempt, step)
            if not self.ended:
                self._run(self._attempt, self._update_interest)

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except BaseException as error:
            self._failed(error)

    # ---- what happens

    def _readable(self) -> bool:
        """Read once and handle what came; return False where nothing did."""
        if self._work is not None:
            return False  # what came before has its turn first
        try:
            data = self._request.recv(CHUNK, DONT_WAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._peer_lost(RESET)
            return True
        if not data:
            self._attempt(self._peer_ended)
            return True
        self._last = self._loop.now
        self.bytes_in += len(data)
        self._at_work = True
        out: list[bytes] = []
        self.out = out
        try:
            steady = self.receive(data)
            if self._began and self.completed:
                self._began = 0.0  # what is next has a beginning of its own
            if out:
                self._transmit(out.pop() if len(out) == 1 else self.take())
            self.out = NOTHING
            if not steady or self._unsent or self._began:
                self._go_on()
        except BaseException as error:
            self._failed(error)
        finally:
            self._at_work = False
        return True

    def _writable(self) -> None:
        if self._unsent is None:
            return  # what is next to be sent has its turn soon
        try:
            sent = self._request.send(self._unsent, DONT_WAIT)
        except BlockingIOError as error:
            if getattr(error, "characters_written", 0):  # of what is encrypted already
                self._last = self._loop.now
            return
        except OSError:
            self._unsent = None
            self._stop_writing()
            self._attempt(self._go_on)
            return
        self._last = self._loop.now
        self.bytes_out += sent
        del self._unsent[:sent]
        if not self._unsent:
            self._unsent = None
            self._attempt(self._go_on)

    def _greet(self) -> None:
        self._at_work = True
        self.out = []
        try:
            self.greet()
            self._flush()
        finally:
            self._at_work = False
        self._go_on()

    # ---- handling messages

    def _go_on(self) -> None:
        """Handle messages until they are done, the peer must take something, or others have their turn."""
        if self._work is not None:
            self._at_work = True
            self.out = []
            try:
                for _ in range(TURN):
                    if self._work is None or self._unsent or self._ending:
                        break
                    self.pull()
                    self._flush()
            finally:
                self._at_work = False
        self.out = NOTHING
        self._update_interest()

    def _go_on_later(self) -> None:
        if not self._goes_on:
            self._goes_on = True
            self._loop.call_soon(self._go_on_now)

    def _go_on_now(self) -> None:
        self._goes_on = False
        self._enter(self._go_on)

    def _read_on_later(self) -> None:
        self._loop.call_soon(partial(self._enter, self._readable))

    def _read_the_rest_later(self) -> None:
        self._loop.call_soon(partial(self._enter, self._read_the_rest))

    def _read_the_rest(self) -> None:
        """Handle what has arrived of a peer that has gone; end the connection when nothing more has."""
        if self._ending or self.closing:
            return
        if self._work is None and not self._readable():
            self._peer_lost(RESET)
        elif not self.ended:
            self._read_the_rest_later()

    def _flush(self) -> None:
        data = self.take()
        if data:
            self._transmit(data)

    def _send_for_thread(self, message: bytes, encode: Encode) -> None:
        """Send for a thread that has gone on: what goes wrong is reported here."""
        try:
            self._send_for_another(message, encode)
        except Exception:
            self._server.handle_error(self._request, self._client_address)

    def _send_for_another(self, message: bytes, encode: Encode) -> None:
        """Send what no message of this peer has asked for, unless it takes nothing."""
        if self.handler is None:  # it has taken leave
            return
        if self._unsent and len(self._unsent) > MOST_UNSENT:
            self._unsent = None
            self._ending = OVERFLOW
        else:
            self._transmit(encode(message))

    def _transmit(self, data: bytes) -> None:
        if self.deaf:
            return
        if self._unsent:
            self._unsent += data
            return
        if self._shaking_hands:
            self._unsent = bytearray(data)
            return
        try:
            sent = self._request.send(data, DONT_WAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._stop_writing()
            return
        self.bytes_out += sent
        if sent < len(data):
            self._unsent = bytearray(memoryview(data)[sent:])

    # ---- after each step

    def _update_interest(self) -> None:
        """Wait for what comes next: the peer to read, the peer to write, or nothing any more."""
        if self.ended or self._shaking_hands:
            return
        if self._ending == OVERFLOW:
            self._peer_lost(OVERFLOW)
            return
        if self.fault is not None and not self._ending:
            self._log(f"{BAD_MESSAGE}: {self.fault}")
            self._ending = BAD_MESSAGE
        if self._unsent:
            if self._reading:
                self._reading = False
                self._began = self._began or self._last
                self._wait_for(self._writable, WRITE)
                self._reschedule()
            return
        if self._work is not None:
            self._go_on_later()
            return
        if self.closing is True or self._ending:
            if self.deaf and not self._ending:
                self._peer_lost(RESET)
            else:
                self._end(self._ending or CLOSED)
            return
        if self.wants_tls:
            self._shaking_hands = True
            self.tls_began()  # what others send meanwhile leaves encrypted
            self._secure()
            return
        if not self._reading:
            self._reading = True
            self._wait_for(self._readable, READ)
            self._reschedule()
        if getattr(self._request, "pending", False):
            self._read_on_later()
        if not self.handler.framing.buffered:
            self._began = 0.0
            if self._server.draining:
                self._say_last_words()
        elif not self._began:
            self._began = self._last
            if self._limits is not None and self._limits.request_timeout:
                self._reschedule()

    def _secure(self) -> None:
        self._server.timers.cancel(self)
        self._loop.unwatch(self._request.fileno())
        self._server.secure(self._request, self._secured)

    def _secured(self, outcome: str, error: Exception | None) -> None:
        if not self.ended:
            self._enter(partial(self._go_on_encrypted, outcome, error))

    def _go_on_encrypted(self, outcome: str, error: Exception | None) -> None:
        self._shaking_hands = False
        if outcome:
            if outcome != STOPPED:
                self._log(f"{outcome}: {error}" if error is not None else outcome)
            self._end(outcome)
            return
        self._began = 0.0
        self._last = self._loop.now
        unsent, self._unsent = self._unsent, None
        if unsent:  # what others sent meanwhile
            self._transmit(bytes(unsent))
        self._reading = bool(self._unsent)  # so that whatever is next is waited for anew
        self._update_interest()

    def _say_last_words(self) -> None:
        self._loop.call_soon(self.end_if_idle)

    def _last_words(self) -> None:
        """Answer what has arrived, and end the connection when nothing more has; the server stops."""
        if self._is_idle() and not self._readable():
            self._end(STOPPED)

    def _is_expected(self) -> bool:
        return not self.bytes_in and self._server.patience > 0

    def _is_idle(self) -> bool:
        if self.ended or self._ending or self.wants_tls or self._shaking_hands:
            return False
        try:
            return not self._unsent and self.between_messages
        except Exception:
            return False  # the framing's own fault, which is told where it is fed

    def _reschedule(self) -> None:
        """Have the limits looked at when the next one may have passed; no more once the end has come."""
        due = 0.0 if self.ended else self._next_deadline()[0]
        if not (self.bytes_in or self.ended) and self._limits is not None and self._limits.idle_timeout:
            # Once the first byte has come, without anybody looking, this limit may be the nearer one.
            soon = monotonic() + self._limits.idle_timeout
            due = min(due, soon) if due else soon
        if due:
            self._server.timers.schedule(self, due)
        elif self.slot is not None:
            self._server.timers.cancel(self)

    def _next_deadline(self) -> tuple[float, str]:
        """Return when a limit will have passed if nothing happens, and what that means; 0 for never."""
        if self._limits is None:
            return 0.0, ""
        now = monotonic()
        left, outcome = next_timeout(
            self._limits,
            heard=self.bytes_in > 0,
            unsent=bool(self._unsent),
            quiet=now - self._last,
            message=now - self._began if self._began else None,
        )
        return (0.0 if left is None else now + left), outcome

    # ---- ends

    def _peer_ended(self) -> None:
        if self.deaf:
            self._peer_lost(RESET)
            return
        if self._server.draining:
            self._end(STOPPED)
            return
        fault = self.end_of_input()
        if fault is not None:
            self._log(f"{TRUNCATED}: {fault}")
            self._end(TRUNCATED)
        else:
            self._end(EOF)

    def _stop_writing(self) -> None:
        """Note that the peer cannot be written to any more; what it has said before is still handled."""
        if not self.deaf:
            self.deaf = True
            self._read_the_rest_later()

    def _peer_lost(self, outcome: str) -> None:
        if outcome == RESET:
            self.deaf = True
            outcome = lost_outcome(self._request, self.bytes_in)
        if self.handler is not None:
            self._log(outcome, logging.DEBUG if outcome == EOF else logging.INFO)
        self._end(outcome)

    def _failed(self, error: BaseException) -> None:
        """The handler raised: report it, and end the connection once earlier replies are out."""
        self._work = None
        self.wants_tls = False
        try:
            self._flush()
        except Exception:  # the first one is told, below
            pass
        self.out = NOTHING
        self._ending = self._ending or (BAD_MESSAGE if isinstance(error, FrameError) else ERROR)
        try:
            self._report(error)
        except BaseException:
            self._end(ERROR)
            raise
        self._update_interest()

    def _report(self, error: BaseException) -> None:
        """Report what the handler raised; raise it where it is to end the server."""
        try:
            if self._server.contain_exit and not isinstance(error, Exception):
                raise EscapedError(f"the handler raised {type(error).__name__}") from error
            raise error
        except Exception:
            self._server.handle_error(self._request, self._client_address)

    def _end(self, outcome: str) -> None:
        """Let the handler take leave, and close the connection when its last words are out."""
        if self.ended:
            return
        if self.handler is None:
            self._close()
            return
        self.deaf = self.deaf or bool(self._unsent) or outcome in UNHEARD
        self._work = self._unsent = None
        self._ending = outcome
        self._write_account(outcome)
        try:
            self._take_leave(outcome)
        except BaseException:
            self._close()
            raise
        if self._unsent:
            self._reading = True
            self._update_interest()
        else:
            self._close()

    def _take_leave(self, outcome: str) -> None:
        # handler.link and this would otherwise keep each other until the garbage collector comes by.
        handler, self.handler = self.handler, None
        self.out = []
        self._at_work = True
        try:
            handler.disconnected(outcome)
        except BaseException as error:
            self._report(error)
        finally:
            self._at_work = False
        self._flush()

    def _close(self) -> None:
        self.ended = True
        self._loop.forget(self._request.fileno())
        self._reschedule()
        self._server.links.pop(self, None)
        self._unsent = None
        self._write_account("")
        self._server.shutdown_request(self._request)

    def _write_account(self, outcome: str) -> None:
        request = self._request
        if isinstance(request, Connection):
            request.outcome = outcome or request.outcome
            request.bytes_in = self.bytes_in
            request.bytes_out = self.bytes_out

    def _log(self, what: str, level: int = logging.INFO) -> None:
        name = self._server.name or type(self._server).__name__
        log.log(level, "%s: %s ended: %s", name, display(self._client_address), what)
