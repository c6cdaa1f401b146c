"""Conversations of message handlers over blocking sockets: read, cut, handle, answer.

Used by every model that gives a connection a place to block: serial, threading, pool, forking, gevent.
It knows the handler by its callbacks and the server by nothing but `limits` and `draining`.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from contextlib import suppress
from functools import lru_cache, partial
from time import monotonic
from typing import Any

from srvkit.contracts import Runners, Threads
from srvkit.errors import FrameError, PeerError, PeerGone
from srvkit.net.address import display
from srvkit.net.connection import DONT_WAIT, Connection, wait_for
from srvkit.net.datagrams import reply as send_datagram
from srvkit.net.event_loop import WRITE
from srvkit.net.send_queue import end_reading
from srvkit.net.tls_context import encrypt, to_begin
from srvkit.protocol.conversation import NO_REPLY, TURN, Conversation, DatagramConversation, Encode
from srvkit.protocol.outcomes import (
    BAD_MESSAGE,
    CLOSED,
    EOF,
    ERROR,
    FIRST_BYTE_TIMEOUT,
    OVERFLOW,
    RESET,
    STOPPED,
    TRUNCATED,
    UNHEARD,
    WRITE_TIMEOUT,
    handshake_outcome,
    lost_outcome,
)
from srvkit.protocol.timeouts import next_timeout

log = logging.getLogger("srvkit.server")

_recv = socket.socket.recv  # taken now: a program's tests may put something else in the class's place

CHUNK = 65536  # bytes of one read


def converse(handler: Any) -> None:
    """See a connection through, from `connected` to `disconnected`; leaves the socket open.

    What the peer does wrong is logged here; what the handler raises is passed on.
    """
    driver = BlockingDriver(handler)
    handler.link = driver
    outcome = ERROR
    try:
        outcome = driver.converse()
    except FrameError:
        outcome = BAD_MESSAGE
        raise
    finally:
        driver.end(outcome)


class BlockingDriver:
    """Drives the conversation of a message handler over one blocking socket; the handler's `link`."""

    # Most connections need no more than what __init__ sets; these stand for the rest until it is needed.
    _lost: str | None = None
    _ends = False  # whether the handler takes leave
    _was_silent = False  # whether that is because the peer said nothing in time
    _began: float | None = None  # when the first byte came of a message that is not complete yet
    _answers: float | None = None  # when the first byte came of what is being answered
    _late = WRITE_TIMEOUT  # what it means if the peer does not take a reply in time
    _armed: float = 0  # the receive timeout in force
    _waits_as_usual = False  # whether that is the one between two messages
    _awaited = FIRST_BYTE_TIMEOUT
    bytes_in = 0
    bytes_out = 0

    def __init__(self, handler: Any) -> None:
        self._socket = handler.request
        self._account = self._socket if isinstance(self._socket, Connection) else None
        self._server = handler.server
        self._client_address = handler.client_address
        self._limits = getattr(handler.server, "limits", None)
        self._runners: Runners = getattr(self._socket, "runners", None) or Threads()
        self._own = self._runners.current()
        self._sending = self._runners.lock  # from encoding to the end of the write
        self._conversation = Conversation(handler, self._sending)

    # ---- for the handler

    def send(self, message: bytes, encode: Encode) -> None:
        runner = self._runners.current()
        if runner == self._own:
            self._conversation.hold(message, encode)
            try:
                self._flush()
                if self._lost is not None:
                    raise PeerGone(self._lost)
            except PeerGone:
                if not self._ends:
                    raise
        elif not self._runners.run(partial(self._send_for_another, runner, message, encode), len(message)):
            self._give_up(OVERFLOW)

    def close(self) -> None:
        self._conversation.closing = True
        if self._runners.current() != self._own:  # which may wait in recv()
            end_reading(self._socket, getattr(self._server, "_srvkit_loop", None))

    def start_tls(self) -> None:
        to_begin(self._server, self._socket)
        conversation = self._conversation
        if not conversation.wants_tls:
            self._sending.acquire()  # what others send waits until it can be encrypted
            conversation.lock = None
            conversation.wants_tls = True

    # ---- from the beginning to the end

    def converse(self) -> str:
        """Talk until the end and return the outcome. Raises what the handler raises."""
        try:
            try:
                return self._converse()
            except BaseException:
                if self._lost is None:
                    with suppress(PeerGone):
                        self._flush()  # the replies to what was handled before
                raise
            finally:
                if self._conversation.wants_tls:
                    self._done_with_tls()
                self._runners.finish()
        except PeerGone:
            if self._lost is None:
                raise  # some other connection's, that the handler let escape
            if self._lost == RESET and lost_outcome(self._socket, self.bytes_in) == EOF:
                self._log(EOF, logging.DEBUG)
                return EOF
            self._log(self._lost)
            return self._lost

    def end(self, outcome: str) -> None:
        """Write the account and let the handler take leave.

        What it sends from now on reaches the peer, if it can, and raises nothing.
        """
        conversation, account = self._conversation, self._account
        if account is not None:
            account.outcome = outcome
            account.bytes_in = self.bytes_in
            account.bytes_out = self.bytes_out
        self._ends = True
        if outcome in UNHEARD:
            self._lost = self._lost or outcome
        elif self._was_silent:
            self._lost = None
        try:
            conversation.handler.disconnected(outcome)
        finally:
            # It and this would otherwise keep each other until the garbage collector comes by.
            conversation.handler = None

    def _converse(self) -> str:
        conversation = self._conversation
        account = self._account
        if account is not None:
            account.at_work = monotonic()
        conversation.greet()
        if conversation.out or conversation.busy:
            self._reply()
        if conversation.wants_tls and (outcome := self._secure()):
            return outcome
        while not conversation.closing:
            if account is not None:
                account.idle = self._began is None
                account.at_work = 0.0
            data = self._read()
            if account is not None:
                account.idle = False
                account.at_work = account.last = monotonic()
            if not data:
                if self._lost is not None:
                    raise PeerGone(self._lost)  # to whoever else was sending
                return self._ended()
            self.bytes_in += len(data)
            if account is not None:
                account.bytes_in = self.bytes_in
            if self._limits is not None and self._limits.request_timeout:
                self._answers = self._began or monotonic()
            if conversation.receive(data):
                if conversation.out:
                    self._flush()
                self._answers = self._began = None
                continue
            self._reply()
            self._answers = None
            if conversation.fault is not None:
                self._log(f"{BAD_MESSAGE}: {conversation.fault}")
                return BAD_MESSAGE
            if conversation.wants_tls and (outcome := self._secure()):
                return outcome
            if self._limits is not None:
                self._note_begin()
        if self._lost is not None:
            raise PeerGone(self._lost)
        return CLOSED

    def _reply(self) -> None:
        """Send what was replied, and all that follows from it."""
        conversation = self._conversation
        pauses = 0
        while True:
            self._flush()
            if not conversation.busy:
                return
            if self._account is not None:
                self._account.last = monotonic()
            pauses += 1
            if pauses % TURN == 0:
                self._runners.give_way()
            conversation.pull()

    def _ended(self) -> str:
        if self._conversation.closing:
            return CLOSED
        if getattr(self._server, "draining", False) is True:
            return STOPPED
        fault = self._conversation.end_of_input()
        if fault is not None:
            self._log(f"{TRUNCATED}: {fault}")
            return TRUNCATED
        return EOF

    # ---- reading

    def _read(self) -> bytes:
        if self._lost is not None:
            return self._receive_the_rest()
        server = self._server
        if getattr(server, "draining", False) is True:
            has_just_connected = not self.bytes_in and getattr(server, "patience", 0) > 0
            if self._began is None and not has_just_connected:  # else, if it stays silent, the server ends it
                return self._receive_what_is_there()
        if self._limits is not None and not (self._waits_as_usual and self._began is None):
            self._arm()
        try:
            data: bytes = self._socket.recv(CHUNK)
        except (BlockingIOError, TimeoutError):
            self._lost = self._awaited
            self._was_silent = True
        except OSError:
            self._lost = RESET
        else:
            return data
        raise PeerGone(self._lost)

    def _receive_what_is_there(self) -> bytes:
        """Read without waiting between messages: the server stops, what has arrived is still answered."""
        try:
            data: bytes = self._socket.recv(CHUNK, socket.MSG_DONTWAIT)
        except OSError:
            return b""
        return data

    def _receive_the_rest(self) -> bytes:
        """Read what has arrived of a peer that hears nothing more."""
        with suppress(OSError):
            if data := self._socket.recv(CHUNK, DONT_WAIT):
                return bytes(data)
        assert self._lost is not None
        raise PeerGone(self._lost)

    def _note_begin(self) -> None:
        conversation = self._conversation
        if not conversation.handler.framing.buffered:
            self._began = None
        elif conversation.completed or self._began is None:  # what is next has a beginning of its own
            self._began = monotonic()

    def _arm(self) -> None:
        """Set how long the next read may take, and what it means if it takes longer."""
        assert self._limits is not None
        message = None if self._began is None else monotonic() - self._began
        left, self._awaited = next_timeout(
            self._limits, heard=self.bytes_in > 0, reading=0.0, message=message
        )
        self._waits_as_usual = message is None and self.bytes_in > 0
        seconds = 0 if left is None else max(0.001, left)
        if seconds != self._armed:
            self._armed = seconds
            self._limit_receiving(seconds)

    def _limit_receiving(self, seconds: float) -> None:
        sock = self._socket
        # A timeout of the kernel saves a poll() for each read; only where recv() is the plain system call.
        if type(sock).recv is _recv and hasattr(socket, "SO_RCVTIMEO"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
        elif hasattr(sock, "receive_timeout"):  # it waits in its own way
            sock.receive_timeout = seconds or None
        else:
            sock.settimeout(seconds or None)

    # ---- writing

    def _flush(self) -> None:
        """Send what was replied; to a peer that has vanished nothing, so that what it has said is handled.

        Raises PeerGone where it takes too long, or where its handler is to know by that.
        """
        conversation, account = self._conversation, self._account
        if not conversation.out:
            return
        try:
            if conversation.wants_tls:  # and has the lock until the handshake is over
                self._send_now(conversation.take())
            else:
                with self._sending:
                    self._send_now(conversation.take())
        except PeerGone:
            if not conversation.deaf:
                raise
        finally:
            if account is not None:
                account.bytes_out = self.bytes_out

    def _send_now(self, data: bytes) -> None:
        if not data:  # somebody else has sent it
            return
        if self._lost is not None:
            raise PeerGone(self._lost)
        try:
            if self._account is None or self._limits is None:
                self._socket.sendall(data)
            else:
                try:
                    sent = self._socket.send(data, DONT_WAIT)
                except BlockingIOError:
                    sent = 0
                if sent < len(data):
                    self._send_in_time(data, sent)
        except (BlockingIOError, TimeoutError):
            self._lost = self._late
        except OSError:
            self._lost = self._lost or RESET
        else:
            self.bytes_out += len(data)
            return
        self._conversation.deaf = self._lost == RESET  # what it has said before is still handled
        raise PeerGone(self._lost)

    def _send_in_time(self, data: bytes, sent: int) -> None:
        """Send the rest; the peer must go on taking something, and take all by the time replies must be out.

        Not by a timeout of the socket: each part that the kernel takes late would have one of its own.
        """
        assert self._limits is not None and self._account is not None
        sock, account = self._socket, self._account
        account.at_work = 0.0
        try:
            with memoryview(data) as rest:
                while sent < len(rest):
                    answering = None if self._answers is None else monotonic() - self._answers
                    left, self._late = next_timeout(self._limits, heard=True, writing=0.0, message=answering)
                    wait_for(sock, WRITE, left)
                    try:
                        sent += sock.send(rest[sent:], DONT_WAIT)
                        account.last = monotonic()
                    except BlockingIOError:
                        pass  # others have filled it
        finally:
            account.at_work = monotonic()

    def _send_for_another(self, sender: object, message: bytes, encode: Encode) -> None:
        conversation = self._conversation
        try:
            with self._sending:
                conversation.out.append(encode(message))
                self._send_now(conversation.take())
        except PeerGone as gone:
            self._give_up(gone.outcome)
        except Exception:
            if self._runners.current() == sender or conversation.handler is None:
                raise
            self._server.handle_error(self._socket, self._client_address)

    def _give_up(self, outcome: str) -> None:
        """Tell the owning thread that the peer is gone."""
        self._lost = self._lost or outcome
        with suppress(OSError):  # gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    # ---- TLS

    def _secure(self) -> str:
        """Shake hands; return "", or how the connection has ended thereby."""
        if self._account is not None:
            self._account.at_work = 0.0
        try:
            encrypt(self._server, self._socket)
            self._conversation.tls_began()
        except (PeerError, OSError) as error:
            if self._conversation.closing:
                return CLOSED
            outcome = handshake_outcome(error)
            self._log(f"{outcome}: {error}")
            return outcome
        finally:
            self._done_with_tls()
            if self._account is not None:
                self._account.at_work = monotonic()
        return ""

    def _done_with_tls(self) -> None:
        self._conversation.wants_tls = False
        self._conversation.lock = self._sending
        self._sending.release()

    def _log(self, what: str, level: int = logging.INFO) -> None:
        log.log(level, "%s: %s ended: %s", _name(self._server), display(self._client_address), what)


# Of all threads that answer datagrams: they are few, and a lock for each datagram would cost all others.
_SENDING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SENDING._at_fork_reinit)  # type: ignore[attr-defined]


class DatagramDriver:
    """Drives the conversation of a message handler about one datagram; the handler's `link`."""

    __slots__ = ("_address", "_conversation", "_replies", "_server", "_socket", "closing")

    def __init__(self, handler: Any) -> None:
        handler.link = self
        self._socket = handler.request[1]
        self._address = handler.client_address
        self._server = handler.server
        self._replies: list[bytes] | None = []  # None once the answer has left
        self._conversation: DatagramConversation | None = None  # where there is more to it than one reply
        self.closing = False

    def send(self, message: bytes, encode: Encode) -> None:
        with _SENDING:
            data = encode(message)
            if self._replies is not None:
                self._replies.append(data)
                return
        self._answer(data)

    def close(self) -> None:
        self.closing = True
        if self._conversation is not None:
            self._conversation.closing = True

    def start_tls(self) -> None:
        raise RuntimeError("datagrams cannot be encrypted")

    def converse(self, handler: Any) -> None:
        """Handle the messages of the datagram and answer them in one."""
        # The handler is passed along and not kept: it keeps this driver, and a circle would wait for the
        # garbage collector.
        data = handler.request[0]
        framing = handler.framing
        fault = None
        try:
            messages = framing.datagram(data)
        except FrameError as error:
            messages, fault = error.messages, error
        try:
            reply = NO_REPLY
            if len(messages) == 1:
                # The usual case, short: one message, one reply. It saves 7 % of an echo.
                reply = handler.handle_message(messages[0])
                if type(reply) is bytes and handler.framing is framing and not (fault or self._replies):
                    answer = framing.encode(reply)
                    self._replies = None
                    self._answer(answer)
                    return
            fault = self._go_through(handler, framing, messages, data, fault, reply)
        finally:
            if self._replies is not None:
                with _SENDING:
                    replies, self._replies = self._replies, None
                if replies:
                    self._answer(replies[0] if len(replies) == 1 else b"".join(replies))
        if fault is not None:
            self._log(f"{BAD_MESSAGE}: {fault}")
            with suppress(AttributeError):  # of a server that keeps no accounts
                self._socket.outcome = BAD_MESSAGE
            dropped = getattr(self._server, "datagram_dropped", None)
            if dropped is not None:
                dropped()

    def _go_through(self, handler: Any, *beginning: Any) -> FrameError | None:
        self._conversation = conversation = DatagramConversation(handler, _SENDING)
        assert self._replies is not None
        conversation.out = self._replies
        conversation.closing = self.closing
        try:
            conversation.go_through(*beginning)
        finally:
            self._conversation = None
        return conversation.fault

    def _answer(self, data: bytes) -> None:
        try:
            send_datagram(self._socket, data, self._address)
        except PeerGone as gone:
            reply_lost = getattr(self._server, "reply_lost", None)
            if reply_lost is not None:
                reply_lost(self._address, str(gone))

    def _log(self, what: str) -> None:
        log.info("%s: datagram of %s: %s", _name(self._server), display(self._address), what)


def _name(server: Any) -> str:
    return getattr(server, "name", "") or type(server).__name__


@lru_cache(maxsize=64)
def _timeval(seconds: float) -> bytes:
    # struct timeval of the platform; less than a microsecond would mean no timeout at all.
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
