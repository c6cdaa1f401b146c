"""A connection that lives in a readiness loop: read, cut, handle, answer, without ever waiting.

What arrives is handled at once; what the peer does not take waits here, and as long as it does nothing
more is read from that peer. Handlers are known by their callbacks, servers by their steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
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
from srvkit.protocol.framing import data_before_tls, hand_over, keep_bytes, no_reply, stands_still
from srvkit.protocol.outcomes import (
    BAD_MESSAGE,
    CLOSED,
    EOF,
    ERROR,
    FIRST_BYTE_TIMEOUT,
    IDLE_TIMEOUT,
    OVERFLOW,
    REQUEST_TIMEOUT,
    RESET,
    STOPPED,
    TRUNCATED,
    UNHEARD,
    WRITE_TIMEOUT,
    lost_outcome,
)

log = logging.getLogger("srvkit.server")

CHUNK = 65536  # bytes of one read
HIGH_WATER = 65536  # bytes the peer has not taken, from which on no further message is handled
MOST_UNSENT = 4 * 1024 * 1024  # bytes it has not taken, above which nobody may `send` it more
Encode = Callable[[bytes], bytes]
NO_REPLY: Any = object()  # stands for a reply that is not known yet
ASKED = "asked"  # by another thread, to close
WANTED, SHAKING_HANDS = "wanted", "shaking hands"  # of TLS that begins within a conversation


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

    def drain(self, patience: float = 0.0) -> None:
        """Drain; connections that are idle between two messages end at once."""
        super().drain(patience)
        loop = getattr(self, "_srvkit_loop", None)
        if loop is not None:
            loop.call_soon(self._end_idle)

    def _end_idle(self) -> None:
        for link in list(self.links):
            link.end_if_idle()


class MessageConnection:
    """One connection of a loop: its handler, what is on the way to its peer, and its deadlines."""

    __slots__ = (
        "_began",
        "_client_address",
        "_context",
        "_ending",
        "_handler",
        "_last",
        "_limits",
        "_loop",
        "_out",
        "_reading",
        "_request",
        "_server",
        "_tls",
        "_unheard",
        "_unsent",
        "_work",
        "bytes_in",
        "bytes_out",
        "closing",
        "ended",
        "slot",
    )

    def __init__(self, server: Any, loop: EventLoop, request: Any, client_address: Any) -> None:
        self._server = server
        self._loop = loop
        self._request = request
        self._client_address = client_address
        self._limits = getattr(server, "limits", None)
        self._handler: Any = None
        self._context = Context()  # each connection has one of its own
        self._out: list[bytes] | None = None  # replies of the messages of one read: they leave in one write
        self._unsent: bytearray | None = None  # what the peer has not taken yet
        self._work: Iterator[None] | None = None  # messages that wait until it has
        self._reading = True
        self._ending = ""  # the outcome, once the connection is to end as soon as all is sent
        self._unheard = False  # whether the peer hears nothing more; what it has said is handled all the same
        self._tls = ""  # whether it is to be encrypted as soon as all is sent, or just becomes so
        self._last = loop.now  # when something came in or went out
        self._began = 0.0  # when the first byte came of a message that is not complete yet
        self.bytes_in = 0
        self.bytes_out = 0
        self.closing: bool | str = False  # ASKED: no further message is handled, and the end is on its way
        self.ended = False
        self.slot: Slot | None = None

    # ---- for the handler

    def send(self, message: bytes, encode: Encode) -> None:
        if threading.get_ident() != self._server._srvkit_loop_thread:
            self._loop.call_soon(partial(self._enter, partial(self._send_for_thread, message, encode)))
        elif self._out is not None:
            self._hold(encode(message))
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
        self._tls = WANTED  # no further message is handled
        # What is encrypted begins afresh; the short way through the current messages ends with it.
        self._handler.framing = self._handler.framing.fresh()

    # ---- for the mixin

    def begin(self) -> None:
        """Build the handler, let it greet, and wait for what comes."""
        self._handler = handler = self._built()
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
        # The loop keeps one bound method for each link and no partial: an idle connection takes 0.96 KB
        # where it took 1.39, this and `_out`, `moment` and the loop's list taken together.
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
        try:
            handler = self._handler
            framing = handler.framing
            try:
                messages = framing.feed(data)
            except FrameError as error:
                self._begin_work(self._batch(framing, error.messages, data, error))
                return True
            if messages and self._began:
                self._began = 0.0  # what is next has a beginning of its own
            # The usual case, short: each message has one reply or none, and the peer takes them at once.
            self._out = out = []
            size = 0
            for index, message in enumerate(messages):
                reply = handler.handle_message(message)
                usual = type(reply) is bytes or reply is None
                if not usual or handler.framing is not framing or self.closing or size > HIGH_WATER:
                    self._begin_work(self._batch(framing, messages[index:], data, None, reply))
                    return True
                if reply is not None:
                    out.append(framing.encode(reply))
                    size += len(reply)
            self._flush()
            self._out = None
            if self._unsent or self.closing or framing.held or self._began:
                self._update_interest()
        except BaseException as error:
            self._failed(error)
        return True

    def _writable(self) -> None:
        assert self._unsent is not None
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
        greeting = self._handler.connected()
        if greeting is not None:
            self._begin_work(self._deliver(greeting))

    # ---- handling messages

    def _begin_work(self, work: Iterator[None]) -> None:
        self._work = work
        self._go_on()

    def _go_on(self) -> None:
        """Handle messages until they are done or the peer must take something first."""
        if self._work is not None:
            self._out = self._out or []
            try:
                next(self._work)
            except StopIteration:
                self._work = None
        self._flush()
        self._out = None
        self._update_interest()

    def _go_on_later(self) -> None:
        self._loop.call_soon(partial(self._enter, self._go_on))

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

    def _batch(
        self,
        framing: Any,
        messages: list[bytes],
        data: bytes,
        fault: FrameError | None = None,
        reply: Any = NO_REPLY,
    ) -> Iterator[None]:
        """Handle messages; yields where the peer must first take what was written."""
        handler = self._handler
        size = still = 0
        while True:
            for index, message in enumerate(messages):
                if reply is NO_REPLY:
                    reply = handler.handle_message(message)
                if type(reply) is bytes:
                    self._hold(handler.framing.encode(reply))
                    size += len(reply)
                    if size >= HIGH_WATER:
                        self._flush()
                        size = 0
                elif reply is not None:
                    yield from self._deliver(reply)
                reply = NO_REPLY
                if self.closing or self._ending:
                    return
                if self._tls:
                    fault = fault or data_before_tls(messages[index + 1 :], framing)
                    if fault is not None:
                        self._tls = ""
                        self._log(f"{BAD_MESSAGE}: {fault}")
                        self._ending = BAD_MESSAGE
                    return
                if self._unsent and len(self._unsent) >= HIGH_WATER:
                    yield
                if handler.framing is not framing:
                    rest = hand_over(framing, handler.framing, messages[index + 1 :], data)
                    still = stands_still(framing, still) if len(rest) >= len(data) else 0
                    data = rest
                    break
            else:
                if fault is not None:
                    self._log(f"{BAD_MESSAGE}: {fault}")
                    self._ending = BAD_MESSAGE
                return
            if not data:
                return
            framing, fault = handler.framing, None
            try:
                messages = framing.feed(data)
            except FrameError as error:
                messages, fault = error.messages, error

    def _deliver(self, reply: Any) -> Iterator[None]:
        if isinstance(reply, (bytes, bytearray, memoryview)):
            self._hold(self._handler.framing.encode(reply))
            return
        if isinstance(reply, str) or not hasattr(reply, "__iter__"):
            raise no_reply(self._handler, reply)
        for part in reply:
            held = self._hold(self._handler.framing.encode(part))
            if held >= 64 or not isinstance(reply, (list, tuple)):
                self._flush()
                if self._unsent:
                    yield
            if self.closing or self._ending or self._unheard:
                return

    def _hold(self, data: bytes) -> int:
        """Keep what is to be sent with the rest; return how many pieces there are."""
        if self._out is None:
            self._out = [data]
        else:
            self._out.append(data)
        return len(self._out)

    def _flush(self) -> None:
        out = self._out
        if out:
            try:
                data = out[0] if len(out) == 1 else b"".join(out)
            except TypeError as error:
                raise keep_bytes(out) or error from None
            out.clear()  # and no new one: whoever handles messages goes on filling it
            self._transmit(data)

    def _send_for_thread(self, message: bytes, encode: Encode) -> None:
        """Send for a thread that has gone on: what goes wrong is reported here."""
        try:
            self._send_for_another(message, encode)
        except Exception:
            self._server.handle_error(self._request, self._client_address)

    def _send_for_another(self, message: bytes, encode: Encode) -> None:
        """Send what no message of this peer has asked for, unless it takes nothing."""
        if self._handler is None:  # it has taken leave
            return
        if self._unsent and len(self._unsent) > MOST_UNSENT:
            self._unsent = None
            self._ending = OVERFLOW
        else:
            self._transmit(encode(message))

    def _transmit(self, data: bytes) -> None:
        if self._unheard:
            return
        if self._unsent:
            self._unsent += data
            return
        if self._tls == SHAKING_HANDS:
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
        if self.ended or self._tls == SHAKING_HANDS:
            return
        if self._ending == OVERFLOW:
            self._peer_lost(OVERFLOW)
            return
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
            if self._unheard and not self._ending:
                self._peer_lost(RESET)
            else:
                self._end(self._ending or CLOSED)
            return
        if self._tls:
            self._tls = SHAKING_HANDS
            self._secure()
            return
        if not self._reading:
            self._reading = True
            self._wait_for(self._readable, READ)
            self._reschedule()
        if getattr(self._request, "pending", False):
            self._read_on_later()
        if not self._handler.framing.buffered:
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
        self._tls = ""
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
        if self.ended or self._ending or self._tls:
            return False
        try:
            return not (self._unsent or self._work or self._handler.framing.buffered)
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
        limits = self._limits
        if limits is None:
            return 0.0, ""
        seconds, outcome = limits.idle_timeout, IDLE_TIMEOUT
        if self._unsent:
            seconds, outcome = limits.write_timeout, WRITE_TIMEOUT
        elif not self.bytes_in:
            seconds, outcome = limits.first_byte_timeout, FIRST_BYTE_TIMEOUT
        due = self._last + seconds if seconds else 0.0
        if self._began and limits.request_timeout:
            absolute = self._began + limits.request_timeout
            if not due or absolute < due:
                return absolute, REQUEST_TIMEOUT
        return due, outcome

    # ---- ends

    def _peer_ended(self) -> None:
        if self._unheard:
            self._peer_lost(RESET)
            return
        if self._server.draining:
            self._end(STOPPED)
            return
        try:
            self._handler.framing.eof()
        except FrameError as error:
            self._log(f"{TRUNCATED}: {error}")
            self._end(TRUNCATED)
        else:
            self._end(EOF)

    def _stop_writing(self) -> None:
        """Note that the peer cannot be written to any more; what it has said before is still handled."""
        if not self._unheard:
            self._unheard = True
            self._read_the_rest_later()

    def _peer_lost(self, outcome: str) -> None:
        if outcome == RESET:
            self._unheard = True
            outcome = lost_outcome(self._request, self.bytes_in)
        if self._handler is not None:
            self._log(outcome, logging.DEBUG if outcome == EOF else logging.INFO)
        self._end(outcome)

    def _failed(self, error: BaseException) -> None:
        """The handler raised: report it, and end the connection once earlier replies are out."""
        self._work = None
        if self._tls == WANTED:
            self._tls = ""
        try:
            self._flush()
        except Exception:  # the first one is told, below
            self._out = None
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
        if self._handler is None:
            self._close()
            return
        self._unheard = self._unheard or bool(self._unsent) or outcome in UNHEARD
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
        handler, self._handler = self._handler, None
        self._out = []
        try:
            handler.disconnected(outcome)
        except BaseException as error:
            self._report(error)
        self._flush()
        self._out = None

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
