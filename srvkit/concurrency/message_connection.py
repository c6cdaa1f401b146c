"""A message handler's connection in a loop: read, cut, handle, answer, without ever waiting.

What arrives is handled at once; as long as the peer has not taken the replies, nothing more is read from it.
Handlers are known by their callbacks, servers by their steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from srvkit.concurrency.loop_connection import CHUNK, CLOSING, ENDED, HANDSHAKE, LOST, OPEN, LoopConnection
from srvkit.errors import EscapedError, FrameError
from srvkit.net.address import display
from srvkit.net.connection import DONT_WAIT
from srvkit.net.event_loop import READ, WRITE, EventLoop
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

log = logging.getLogger("srvkit.server")

MOST_UNSENT = 4 * 1024 * 1024  # bytes it has not taken, above which nobody may `send` it more
ASKED = "asked"  # by another thread, to close
NOTHING: Any = ()  # in place of an empty list of replies, which would take memory for each idle peer


class MessageConnection(LoopConnection, Conversation):
    """One connection of a loop and its conversation."""

    __slots__ = (*LoopConnection.SLOTS, "_context", "_goes_on")

    def __init__(self, server: Any, loop: EventLoop, request: Any, client_address: Any) -> None:
        super().__init__(None)
        self._set_up(server, loop, request, client_address)
        self.out = NOTHING
        self._context = Context()  # each connection has one of its own
        self.at_work = 0.0
        self._goes_on = False  # whether it goes on in the loop's next turn
        # `closing` is ASKED as long as the end is on its way: no further message is handled by then.

    # ---- for the handler

    def send(self, message: bytes, encode: Encode) -> None:
        if threading.get_ident() != self._server._srvkit_loop_thread:
            self._loop.call_soon(partial(self._enter, partial(self._send_for_thread, message, encode)))
        elif self.at_work:
            self.hold(message, encode)
            self._flush()
        elif self._state is not ENDED:
            self._send_for_another(message, encode)
            if self._unsent or self.outcome:
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
        self._begin_limits()
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
        self._watch(READ)
        self._enter(self._greet)

    @property
    def idle(self) -> bool:
        """Whether the connection is between two messages."""
        return self._is_idle()

    def end_if_idle(self) -> None:
        """End the connection unless it handles a message or expects its first; the server stops."""
        if self._is_idle() and not self._is_expected():
            self._enter(self._last_words)
        elif self._interest == READ and self._state is not ENDED:
            self._attempt(partial(self._watch, READ))

    def _callback(self, events: int) -> Callable[[], object]:
        # While the server drains each message may be the last: that costs a look.
        return self._readable if events == READ and not self._server.draining else self._ready

    def _ready(self) -> None:
        if self._interest != READ:
            self._writable()
            return
        self._readable()
        if self._state is not ENDED:
            self._attempt(self._update_interest)

    def cut(self) -> None:
        """End the connection at once; the server stops and waits no longer."""
        self._enter(partial(self._end, STOPPED))

    def leave_behind(self) -> None:
        """End the connection, with what its peer takes at once; its loop ends."""
        if self._state is not ENDED:
            self._attempt(self._end_now)

    def _end_now(self) -> None:
        try:
            self._end(STOPPED)
        finally:
            if self._state is not ENDED:  # its peer has not taken its last words
                self._give_back()

    def _enter(self, step: Callable[[], object]) -> None:
        """Take a step that no event of the socket brought."""
        if self._state is not ENDED:
            self._attempt(step)
            if self._state is not ENDED:
                self._attempt(self._update_interest)

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
        self.last = self.at_work = self._loop.now
        self.bytes_in += len(data)
        out: list[bytes] = []
        self.out = out
        try:
            steady = self._context.run(self.receive, data)
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
            self.at_work = 0.0
        return True

    def _must_wait(self) -> None:
        if self.at_work:  # else nothing is answered: it is what others send
            self._began = self._began or self.last
        super()._must_wait()

    def _all_sent(self) -> None:
        self._attempt(self._go_on)

    def _greet(self) -> None:
        self.at_work = self._loop.now
        self.out = []
        try:
            self._context.run(self.greet)
            if self.out:
                self._flush()
        finally:
            self.at_work = 0.0
        if self._work is not None:
            self._go_on()
        self.out = NOTHING

    # ---- handling messages

    def _go_on(self) -> None:
        """Handle messages until they are done, the peer must take something, or others have their turn."""
        if self._work is not None:
            self.at_work = self._loop.now
            self.out = []
            try:
                for _ in range(TURN):
                    if self._work is None or self._unsent or self.outcome:
                        break
                    self._context.run(self.pull)
                    self._flush()
            finally:
                self.at_work = 0.0
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
        if self.outcome or self.closing:
            return
        if self._work is None and not self._readable():
            self._peer_lost(RESET)
        elif self._state is not ENDED:
            self._read_the_rest_later()

    def _flush(self) -> None:
        data = self.take()
        if data:
            self._transmit(data)

    def _send_for_thread(self, message: bytes, encode: Encode) -> None:
        """Send for a thread that has gone on: what goes wrong is reported here."""
        try:
            self._context.run(self._send_for_another, message, encode)
        except Exception:
            self._context.run(self._server.handle_error, self._request, self._client_address)

    def _send_for_another(self, message: bytes, encode: Encode) -> None:
        """Send what no message of this peer has asked for, unless it takes nothing."""
        if self.handler is None:  # it has taken leave
            return
        if self._unsent and len(self._unsent) > MOST_UNSENT:
            self._unsent = None
            self._will_end(OVERFLOW)
        else:
            self._transmit(encode(message))

    # ---- after each step

    def _next_events(self) -> int | None:
        if self.outcome == OVERFLOW:
            self._peer_lost(OVERFLOW)
            return None
        if self.fault is not None and not self.outcome:
            self._log(f"{BAD_MESSAGE}: {self.fault}")
            self._will_end(BAD_MESSAGE)
        if self._unsent:
            return WRITE
        if self._work is not None:
            self._go_on_later()
            return None
        if self.closing is True or self.outcome:
            if self.deaf and not self.outcome:
                self._peer_lost(RESET)
            else:
                self._end(self.outcome or CLOSED)
            return None
        if self.wants_tls:
            self.tls_began()  # what others send meanwhile leaves encrypted
            self._begin_handshake()
            return None
        if getattr(self._request, "pending", False):
            self._read_on_later()
        if not self.handler.framing.buffered:
            self._began = 0.0
            if self._server.draining:
                self._say_last_words()
        elif not self._began:
            self._began = self.last
            if self._interest == READ and self._limits is not None and self._limits.request_timeout:
                self._reschedule()
        return READ

    def _handshake_over(self, outcome: str, error: Exception | None) -> None:
        self._began = 0.0
        if outcome:
            if outcome != STOPPED:
                self._log(f"{outcome}: {error}" if error is not None else outcome)
            self._end(outcome)

    def _say_last_words(self) -> None:
        self._loop.call_soon(self.end_if_idle)

    def _last_words(self) -> None:
        """Answer what has arrived, and end the connection when nothing more has; the server stops."""
        if self._is_idle() and not self._readable():
            self._end(STOPPED)

    def _is_expected(self) -> bool:
        return not self.bytes_in and self._server.patience > 0

    def _is_idle(self) -> bool:
        if self._state is ENDED or self._state is HANDSHAKE or self.outcome or self.wants_tls:
            return False
        try:
            return not self._unsent and self.between_messages
        except Exception:
            return False  # the framing's own fault, which is told where it is fed

    def _spans(self, now: float) -> tuple[float | None, float | None]:
        quiet = now - self.last
        return (None, quiet) if self._unsent else (quiet, None)

    # ---- ends

    def _peer_ended(self) -> None:
        if self.deaf:
            self._peer_lost(RESET)
            return
        if self._server.draining:
            self._end(STOPPED)
            return
        fault = self._context.run(self.end_of_input)
        if fault is not None:
            self._log(f"{TRUNCATED}: {fault}")
            self._end(TRUNCATED)
        else:
            self._end(EOF)

    def _cannot_send(self, error: OSError) -> None:
        """Note that the peer cannot be written to any more; what it has said before is still handled."""
        if not self.deaf:
            self._lose_peer()
            self._read_the_rest_later()

    def _lose_peer(self) -> None:
        self.deaf = True
        if self._state is not ENDED:
            self._state = LOST

    def _will_end(self, outcome: str) -> None:
        """Have the connection end as soon as the peer has taken what was sent."""
        self.outcome = self.outcome or outcome
        if self._state is OPEN:  # a handshake is seen through first, and an end is for good
            self._state = CLOSING

    def _peer_lost(self, outcome: str) -> None:
        if outcome == RESET:
            self._lose_peer()
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
        self._will_end(BAD_MESSAGE if isinstance(error, FrameError) else ERROR)
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
            self._context.run(self._server.handle_error, self._request, self._client_address)

    def _end(self, outcome: str) -> None:
        """Let the handler take leave, and close the connection when its last words are out."""
        if self._state is ENDED:
            return
        if self.handler is None:
            self._give_back()
            return
        self.outcome = outcome
        if self.deaf or self._unsent or self._state is HANDSHAKE or outcome in UNHEARD:
            self._lose_peer()
        else:
            self._state = CLOSING
        self._work = self._unsent = None
        self._write_account(outcome)
        try:
            self._take_leave(outcome)
        except BaseException:
            self._give_back()
            raise
        if self._unsent:
            self._update_interest()
        else:
            self._give_back()

    def _take_leave(self, outcome: str) -> None:
        # handler.link and this would otherwise keep each other until the garbage collector comes by.
        handler, self.handler = self.handler, None
        self.out = []
        self.at_work = self._loop.now
        try:
            self._context.run(handler.disconnected, outcome)
        except BaseException as error:
            self._report(error)
        finally:
            self.at_work = 0.0
        if self.out:
            self._flush()

    def _shut_down(self) -> None:
        self._context.run(self._server.shutdown_request, self._request)

    def _log(self, what: str, level: int = logging.INFO) -> None:
        name, peer = self._server._srvkit_name(), display(self._client_address)
        self._context.run(log.log, level, "%s: %s ended: %s", name, peer, what)
