"""A connection or a datagram with a coroutine of its own, on an asyncio loop.

A `StreamTransport` is the transport under the coroutine's streams: it moves the bytes, keeps the limits, and
sees to the end, whichever side it comes from. Handlers are known by `handle()`, servers by their steps.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any

from srvkit.concurrency.asyncio.loop import TaskLoop
from srvkit.concurrency.asyncio.streams import LIMIT, Reader, Writer
from srvkit.concurrency.loop_connection import (
    CHUNK,
    CLOSING,
    ENDED,
    HALF_CLOSED,
    HANDSHAKE,
    LOST,
    OPEN,
    LoopConnection,
    State,
)
from srvkit.errors import EscapedError, FrameError, PeerGone
from srvkit.net.address import display
from srvkit.net.connection import DONT_WAIT
from srvkit.net.datagrams import ReplySocket
from srvkit.net.datagrams import reply as send_datagram
from srvkit.net.event_loop import READ, WRITE
from srvkit.net.tls_context import to_begin
from srvkit.protocol.framing import UNASKED
from srvkit.protocol.outcomes import (
    BAD_MESSAGE,
    CLOSED,
    EOF,
    ERROR,
    REQUEST_TIMEOUT,
    RESET,
    STOPPED,
    TRUNCATED,
    WRITE_TIMEOUT,
    frame_outcome,
    lost_outcome,
)

log = logging.getLogger("srvkit.server")

HIGH_WATER = 65536  # bytes the peer has not taken, from which on `drain()` waits
TLS_INFO = {
    "peercert": "getpeercert",
    "cipher": "cipher",
}  # what asyncio calls it, and what a connection does
LAST_WORDS = 5.0  # seconds that a handler has, once it has read all there is of a connection that is lost


class HandlerTask(asyncio.Transport):
    """One request, its task, and the transport of its streams; what connections and datagrams share."""

    __slots__ = (
        "_client_address",
        "_handled",
        "_limits",
        "_loop",
        "_request",
        "_server",
        "_started",
        "_state",
        "_task",
        "fault",
        "high_water",
        "outcome",
        "pending",
        "reader",
    )

    def __init__(self, server: Any, loop: TaskLoop, request: Any, client_address: Any) -> None:
        self._set_up(server, loop, request, client_address)
        self._task: asyncio.Task[None] | None = None
        self._started = False  # whether the task has taken its first step
        self._handled = False  # whether the handler has returned
        self.reader = Reader(self, loop.aio, LIMIT if self._limits is None else self._limits.max_message)
        self.fault: Exception | None = None  # why the peer cannot be talked to any more
        self.pending = 0  # bytes that are written and not sent
        self.high_water = HIGH_WATER

    def _set_up(self, server: Any, loop: Any, request: Any, client_address: Any) -> None:
        self._server = server
        self._loop = loop
        self._request = request
        self._client_address = client_address
        self._limits = server.limits
        self._state: State = OPEN
        self.outcome = ""

    def begin(self) -> None:
        """Have the task started, when what has arrived so far was read: then it need not wait for it."""
        self._server.links[self] = None
        self._loop.start_soon(self)

    def start(self) -> None:
        """Start the task, in a context of its own."""
        if self._state is not ENDED:
            self._task = self._loop.aio.create_task(self._see_through(), context=Context())

    def cut(self) -> None:
        """End at once: the server stops and waits no longer."""
        if self._state is ENDED:
            return
        self.outcome = self.outcome or STOPPED
        self._cancel()
        if not self._started or self._handled:  # else the task sees to it
            self._end()

    def leave_behind(self) -> None:
        """End, although the handler does not."""
        self._end()

    @property
    def request(self) -> Any:
        """The connection's socket, or the datagram."""
        return self._request

    def end_if_idle(self) -> None:
        """Do nothing: only the handler knows whether it is between two requests."""

    def is_closing(self) -> bool:
        return self._state is CLOSING or self._state is ENDED

    async def room(self) -> None:
        """Return when there may be room for more."""

    async def wait_closed(self) -> None:
        """Return when what was written is out, or lost."""

    async def _see_through(self) -> None:
        self._started = True
        server = self._server
        try:
            handler = server.RequestHandlerClass(self._request, self._client_address, server)
            handler.reader = self.reader
            handler.writer = Writer(self, self.reader, self._loop.aio)
            await handler.handle()
        except BaseException as error:
            self._failed(error)
        finally:
            self._handled = True
            if self._state is not ENDED:
                self._finish()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            if self._state is ENDED or self.outcome == STOPPED:
                return
            error = self.fault or error  # what it was cancelled for
        elif self._state is ENDED:
            return
        if error is self.reader.fault and isinstance(error, Exception):
            self._blame_peer(self._blamed(error), error)
        elif isinstance(error, FrameError):
            self._blame_peer(frame_outcome(error), error)
        self.outcome = self.outcome or ERROR
        contained = self._server.contain_exit or isinstance(error, asyncio.CancelledError)
        try:
            if contained and not isinstance(error, Exception):
                raise EscapedError(f"the handler raised {type(error).__name__}") from error
            raise error
        except Exception:
            self._server.handle_error(self._request, self._client_address)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _blamed(self, fault: Exception) -> str:
        """Return the outcome of what the reader has found wrong."""
        return BAD_MESSAGE

    def _blame_peer(self, outcome: str, fault: Exception) -> None:
        """Note what the peer did; the server tells by it whose fault an exception is."""
        self.outcome = self.outcome or outcome
        if self._server._srvkit_admission is not None:  # it keeps records
            self._request.outcome = self.outcome
            self._request.fault = fault

    def _finish(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _over_with(self) -> None:
        if self._server.alone:
            self._loop.wake()


class StreamTransport(LoopConnection, HandlerTask):
    """One connection. What is written in one turn of the loop leaves in one write."""

    __slots__ = (
        *(name for name in LoopConnection.SLOTS if name not in HandlerTask.__slots__),
        "_out",
        "_over",
        "_reads",
        "_unread",
        "_waiters",
        "_wrote_eof",
        "low_water",
    )

    def __init__(self, server: Any, loop: TaskLoop, request: Any, client_address: Any) -> None:
        HandlerTask.__init__(self, server, loop, request, client_address)
        self._began = loop.now
        self._out: list[bytes] = []  # what was written in this turn
        self._over: asyncio.Future[tuple[str, Exception | None]] | None = None  # a handshake, when it is
        self._reads = True  # whether the reader has room
        self._wrote_eof = False
        self._unread = 0  # bytes that the handler had not read when the peer was lost, or when last looked at
        self._waiters: list[asyncio.Future[None]] | None = None
        self.low_water = HIGH_WATER // 4

    def begin(self) -> None:
        super().begin()
        self._watch(READ)
        if getattr(self._request, "pending", False):  # a plain socket where a program has made the server
            self._readable()
        self._begin_limits()

    # ---- for the writer, and whoever asks for `writer.transport`

    def write(self, data: Any) -> None:
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"what is written must be bytes, not {type(data).__name__}")
            data = bytes(data)
        state = self._state
        if state is not OPEN and state is not HANDSHAKE:
            if self._wrote_eof:
                raise RuntimeError("nothing can be written after write_eof()")
            return  # as in asyncio: who wants to know, asks drain()
        self.pending += len(data)
        if self._unsent is not None:
            self._unsent += data
            return
        if state is HANDSHAKE:
            self._unsent = bytearray(data)
            return
        if not self._out:
            self._loop.flush_soon(self)
        self._out.append(data)
        if self.pending >= HIGH_WATER:
            self.flush()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self.is_closing():
            self._wrote_eof = True
            if self._state is not LOST:
                self._state = HALF_CLOSED
                self._loop.flush_soon(self)

    def close(self) -> None:
        if not self.is_closing():
            self._state = CLOSING
            self._reads = False
            self._loop.flush_soon(self)

    def abort(self) -> None:
        if self._state is not ENDED:
            self._drop()
            self._state = CLOSING
            self._loop.flush_soon(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._client_address
        if name == "socket":
            return self._request
        if name == "sockname" and self._state is not ENDED:
            return self._request.getsockname()
        if name in TLS_INFO and getattr(self._request, "is_encrypted", False):
            return getattr(self._request, TLS_INFO[name])()
        return default

    def get_write_buffer_size(self) -> int:
        return self.pending

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.low_water, self.high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        self.low_water = high // 4 if low is None else low
        if not 0 <= self.low_water <= high:
            raise ValueError(f"0 <= low ({low}) <= high ({high}) does not hold")
        self.high_water = max(1, high)

    def is_reading(self) -> bool:
        return self._reads and not self.is_closing()

    def pause_reading(self) -> None:
        self._reads = False
        self._update_interest()

    def resume_reading(self) -> None:
        self._reads = True
        self._update_interest()

    async def room(self) -> None:
        self.flush()
        if self.pending >= self.high_water and self.fault is None:
            await self._change()

    async def wait_closed(self) -> None:
        while not (self._state is ENDED or self.fault or (self._state is CLOSING and not self.pending)):
            await self._change()
        await asyncio.sleep(0)  # everybody expects it to let others run

    async def start_tls(self) -> None:
        """Encrypt what is written and read from now on. Raises what went wrong, the peer's fault."""
        to_begin(self._server, self._request)
        self.flush()
        while self.pending and self.fault is None:
            await self._change()
        if self.fault is not None:
            raise self.fault
        if self.reader.unread:
            unasked = FrameError(UNASKED)
            self._blame_peer(BAD_MESSAGE, unasked)
            raise unasked
        if self._state is ENDED:
            raise ConnectionError("the connection has ended")
        self._over = over = self._loop.aio.create_future()
        state = self._state
        self._begin_handshake()
        if state is not OPEN:  # who has closed it meanwhile, or written its end, has done so for good
            self._state = state
        self._reschedule()  # the whole has its time, with the handshake or without
        try:
            outcome, error = await over
        except asyncio.CancelledError:
            self._over = None
            self.abort()
            raise
        if outcome:
            fault = error or ConnectionError(f"no handshake: {outcome}")
            self._blame_peer(outcome, fault)
            raise fault

    def _handshake_over(self, outcome: str, error: Exception | None) -> None:
        over, self._over = self._over, None
        if over is not None and not over.done():
            over.set_result((outcome, error))

    def _go_on_encrypted(self, outcome: str, error: Exception | None) -> None:
        super()._go_on_encrypted(outcome, error)
        if not outcome:
            self.pending = len(self._unsent or b"")
            self.flush()
            if getattr(self._request, "pending", False):
                self._readable()

    def _change(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = self._loop.aio.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        return waiter

    def _wake(self) -> None:
        if self._waiters is not None:
            waiters, self._waiters = self._waiters, None
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # ---- bytes on their way

    def _readable(self) -> None:
        if not self._reads:
            self._update_interest()
            return
        try:
            data = self._request.recv(CHUNK, DONT_WAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose_peer(RESET, error)
            return
        if data:
            self.bytes_in += len(data)
            self.reader.feed_data(data)
        else:
            # It is still watched: mostly the handler returns now, and that saves a system call.
            self._reads = False
            self.reader.feed_eof()

    def _ready(self) -> None:
        if self._interest & WRITE:
            self.flush()
        if self._interest & READ and self._state is not ENDED:
            self._readable()

    def flush(self) -> None:
        """Send what is pending, as far as the peer takes it, and then what has to follow it."""
        if self._state is ENDED or self._over is not None:
            return
        out = self._out
        if out:
            data: Any = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._transmit(data)
            if self._unsent is None:
                self.pending = 0
            else:
                self.pending = len(self._unsent)
                self._update_interest()
        elif self._unsent:
            self._writable()
            if self._unsent:
                self.pending = len(self._unsent)
        if self._waiters is not None and self.pending <= self.low_water:
            self._wake()
        if not self.pending and self.fault is None and self._state in (CLOSING, HALF_CLOSED):
            self._shut()

    def _all_sent(self) -> None:
        self.pending = 0
        self._update_interest()

    def _cannot_send(self, error: OSError) -> None:
        self._lose_peer(RESET, error)

    def _shut(self) -> None:
        if self._handled:
            self._end()
            return
        closes = self._state is CLOSING
        try:
            self._request.shutdown(socket.SHUT_RDWR if closes else socket.SHUT_WR)
        except OSError:
            pass  # the peer has gone first
        if closes:
            self.outcome = self.outcome or CLOSED
            self.reader.feed_eof()
            self._reads = False
            self._update_interest()
            self._wake()

    def _next_events(self) -> int | None:
        if self._over is not None or (self.fault is not None and not self._reads):
            return None
        return READ * self._reads | WRITE * bool(self._unsent)

    # ---- limits

    def check_deadline(self) -> None:
        """Act if a limit has passed, else be looked at again when one may have."""
        if self.fault is None:
            super().check_deadline()
            return
        before, self._unread = self._unread, self.reader.unread
        if self._unread >= before:  # it reads no more: it was told, and has had its time
            self._cancel()
        self._server.timers.schedule(self, monotonic() + LAST_WORDS)

    def _reschedule(self) -> None:
        if self.fault is None:
            super()._reschedule()

    def _spans(self, now: float) -> tuple[float | None, float | None]:
        # A handler that does not read has its reasons; the peer's time begins when it does.
        reading = None if self._handled else now - (self.reader.waiting_since or now)
        return reading, now - self.last if self._unsent and self._over is None else None

    def _peer_lost(self, outcome: str) -> None:
        self._lose_peer(outcome, TimeoutError(f"{outcome.replace('-', '_')} is over"))

    # ---- ends

    def _lose_peer(self, outcome: str, fault: Exception) -> None:
        """Let the handler know that its peer is lost: by exception, and in the end by cancelling it."""
        if self.fault is not None or self._state is ENDED:
            return
        if outcome == RESET:
            self._read_the_rest()
        if outcome == RESET:
            outcome = lost_outcome(self._request, self.bytes_in)
        is_silent = outcome == EOF
        if self.pending or self._state is not CLOSING:
            self._blame_peer(outcome, fault)
        self.fault = fault
        self._unread = self.reader.unread
        if is_silent or outcome in (RESET, WRITE_TIMEOUT):
            self._drop()
        if self._handled:
            level = logging.DEBUG if outcome == EOF else logging.INFO
            peer = display(self._client_address)
            log.log(level, "%s: %s ended: %s (%s)", self._server._srvkit_name(), peer, outcome, fault)
            self._end()
            return
        if is_silent:
            self.reader.feed_eof()
        else:
            self.reader.set_exception(fault)
        self._wake()
        if outcome == REQUEST_TIMEOUT:
            self._cancel()
        self._server.timers.schedule(self, monotonic() + LAST_WORDS)

    def _read_the_rest(self) -> None:
        """Take what has arrived of a peer that has gone: the kernel still has it, the handler is to."""
        with suppress(OSError):
            while self._state is not CLOSING and (data := self._request.recv(CHUNK, DONT_WAIT)):
                self.bytes_in += len(data)
                self.reader.feed_data(data)

    def _blamed(self, fault: Exception) -> str:
        if not isinstance(fault, asyncio.IncompleteReadError):
            return BAD_MESSAGE
        return TRUNCATED if self.bytes_in else EOF

    def _drop(self) -> None:
        self._out.clear()
        self._unsent = None
        self.pending = 0
        if self._state is not CLOSING:
            self._state = LOST
        self._reads = False
        self.reader.detach()  # it must not ask for more
        self._watch(0)

    def _finish(self) -> None:
        self._state = CLOSING
        if self._out:
            self.flush()
        if self.ended:  # by what flush() has met
            return
        if self.pending and self.fault is None and self.outcome != STOPPED:
            self._reads = False
            self._update_interest()
            self._reschedule()  # the peer has write_timeout for the rest
        else:
            self._end()

    def _end(self) -> None:
        if self._state is ENDED:
            return
        if not self.outcome:
            if self._server.cutting:
                self.outcome = STOPPED
            else:
                self.outcome = EOF if self.reader.at_eof() else CLOSED
        self._wake()
        self._handshake_over(CLOSED, None)  # where another task waits for one
        self.reader.detach()
        self._write_account(self.outcome)
        try:
            self._give_back()
        finally:
            self._over_with()


class DatagramTask(HandlerTask):
    """One datagram; its handler's `writer` collects the reply."""

    __slots__ = ("_replies",)

    def begin(self) -> None:
        self._replies: list[bytes] = []
        super().begin()
        self.reader.feed_data(self._request[0])
        self.reader.feed_eof()

    def write(self, data: Any) -> None:
        self._replies.append(bytes(memoryview(data)))

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if self._state is not ENDED:
            self._state = CLOSING

    def pause_reading(self) -> None:
        """Do nothing: all there is has arrived."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._client_address
        if name == "socket":
            return self._request[1]
        if name == "sockname":
            return self._request[1].getsockname()
        return default

    def _finish(self) -> None:
        try:
            if self._replies and self.outcome != STOPPED:
                send_datagram(self._request[1], b"".join(self._replies), self._client_address)
        except PeerGone as gone:
            self._server.reply_lost(self._client_address, str(gone))
        except OSError:
            self._server.handle_error(self._request, self._client_address)
            self.outcome = ERROR
        finally:
            self._end()

    def _blame_peer(self, outcome: str, fault: Exception) -> None:
        super()._blame_peer(outcome, fault)
        if not isinstance(fault, FrameError):  # which the server counts, in every model
            self._server.datagram_dropped()

    def _end(self) -> None:
        account = self._request[1]
        if isinstance(account, ReplySocket):
            account.outcome = self.outcome or CLOSED
        self._state = ENDED
        self._server.links.pop(self, None)
        self.reader.detach()
        try:
            self._server.shutdown_request(self._request)
        finally:
            self._over_with()
