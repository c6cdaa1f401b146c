"""Conversations of message handlers over blocking sockets: read, cut, handle, answer.

Used by every model that gives a connection a place to block: serial, threading, pool, forking, gevent.
It knows the handler by its callbacks and the server by nothing but `limits` and `draining`.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import Any

from srvkit.errors import FrameError, PeerGone
from srvkit.net.address import display
from srvkit.net.connection import (
    BAD_MESSAGE,
    CLOSED,
    EOF,
    ERROR,
    FIRST_BYTE_TIMEOUT,
    IDLE_TIMEOUT,
    REQUEST_TIMEOUT,
    RESET,
    STOPPED,
    TRUNCATED,
    WRITE_TIMEOUT,
    Connection,
)
from srvkit.net.datagrams import reply as send_datagram

log = logging.getLogger("srvkit.server")

CHUNK = 65536  # bytes of one read, and of replies held back to be sent in one write


def converse(handler: Any) -> None:
    """See a connection through, from `connected` to `disconnected`; leaves the socket open.

    What the peer does wrong is logged here; what the handler raises is passed on.
    """
    link = StreamLink(handler)
    handler.link = link
    outcome = ERROR
    try:
        outcome = link.converse()
    finally:
        link.account(outcome)
        handler.disconnected(outcome)


def converse_datagram(handler: Any) -> None:
    """Handle the messages of one datagram and answer them in one."""
    link = DatagramLink(handler)
    handler.link = link
    link.converse()


class StreamLink:
    """The way of a message handler's bytes over one blocking socket."""

    __slots__ = (
        "_armed",
        "_awaited",
        "_began",
        "_handler",
        "_in_kernel",
        "_limits",
        "_lost",
        "_sending",
        "_socket",
        "_thread",
        "_unsent",
        "_unsent_bytes",
        "bytes_in",
        "bytes_out",
        "closing",
    )

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self._socket = handler.request
        self._limits = getattr(handler.server, "limits", None)
        self._thread = threading.get_ident()
        self._sending = threading.Lock()
        self._unsent: list[bytes] = []  # replies of the messages of one read: they leave in one write
        self._unsent_bytes = 0
        self._lost: str | None = None
        self._began: float | None = None  # when the first byte came of a message not answered yet
        self._armed: float | None = None  # the receive timeout in force
        self._awaited = FIRST_BYTE_TIMEOUT
        # A timeout of the kernel saves a poll() for each read. Only where recv() is the plain system call.
        self._in_kernel = type(self._socket).recv is socket.socket.recv and hasattr(socket, "SO_RCVTIMEO")
        self.bytes_in = 0
        self.bytes_out = 0
        self.closing = False

    def write(self, data: bytes) -> None:
        if threading.get_ident() == self._thread:
            self._unsent.append(data)
            self._flush()
        else:
            with suppress(PeerGone):
                self._send(data)

    def close(self) -> None:
        self.closing = True
        if threading.get_ident() != self._thread:
            with suppress(OSError):  # gone already
                self._socket.shutdown(socket.SHUT_RD)  # ends a recv() that waits

    def converse(self) -> str:
        """Talk until the end and return the outcome. Raises what the handler raises."""
        try:
            if self._limits is not None and self._limits.write_timeout:
                self._set_timeout("SO_SNDTIMEO", self._limits.write_timeout)
            try:
                return self._converse()
            except BaseException:
                if self._lost is None:
                    with suppress(PeerGone):
                        self._flush()  # the replies to what was handled before
                raise
        except PeerGone:
            if self._lost is None:
                raise  # some other connection's, that the handler let escape
            self._log(self._lost)
            return self._lost

    def account(self, outcome: str) -> None:
        if isinstance(self._socket, Connection):
            self._socket.outcome = outcome
            self._socket.bytes_in = self.bytes_in
            self._socket.bytes_out = self.bytes_out

    def _converse(self) -> str:
        handler = self._handler
        server = handler.server
        self._deliver(handler.connected())
        self._flush()
        account = self._socket if isinstance(self._socket, Connection) else None
        while not self.closing:
            if account is not None:
                account.idle = self._began is None
            draining = getattr(server, "draining", False) is True
            data = self._receive_what_is_there() if draining else self._receive()
            if account is not None:
                account.idle = False
            if not data:
                return self._ended()
            self.bytes_in += len(data)
            fault = self._handle(data)
            self._flush()
            if fault is not None:
                self._log(f"{BAD_MESSAGE}: {fault}")
                return BAD_MESSAGE
            if self._limits is not None:
                self._note_begin()
        return CLOSED

    def _receive(self) -> bytes:
        if self._limits is not None:
            self._arm()
        try:
            data: bytes = self._socket.recv(CHUNK)
        except (BlockingIOError, TimeoutError):
            self._lost = self._awaited
        except OSError:
            self._lost = RESET
        else:
            return data
        raise PeerGone(self._lost)

    def _receive_what_is_there(self) -> bytes:
        """Read without waiting between messages: the server stops, what has arrived is still answered."""
        if self._began is not None:
            return self._receive()
        try:
            data: bytes = self._socket.recv(CHUNK, socket.MSG_DONTWAIT)
        except OSError:
            return b""
        return data

    def _handle(self, data: bytes) -> FrameError | None:
        """Handle every whole message that `data` completes; return what is wrong with the rest, if it is."""
        handler = self._handler
        while True:
            framing = handler.framing
            fault = None
            try:
                messages = framing.feed(data)
            except FrameError as error:
                messages, fault = error.messages, error
            for index, message in enumerate(messages):
                reply = handler.handle_message(message)
                if reply is not None:
                    self._deliver(reply)
                if self.closing:
                    return None
                if handler.framing is not framing:
                    data = _hand_over(framing, handler.framing, messages[index + 1 :], data)
                    break
            else:
                return fault
            if not data:
                return None

    def _ended(self) -> str:
        if self.closing:
            return CLOSED
        if getattr(self._handler.server, "draining", False) is True:
            return STOPPED
        try:
            self._handler.framing.eof()
        except FrameError as error:
            self._log(f"{TRUNCATED}: {error}")
            return TRUNCATED
        return EOF

    def _deliver(self, reply: Any) -> None:
        if reply is None:
            return
        if isinstance(reply, (bytes, bytearray, memoryview)):
            self._hold(self._handler.framing.encode(reply))
            return
        if isinstance(reply, str):
            raise TypeError(f"{type(self._handler).__name__} replied with a str; replies are bytes")
        at_once = not isinstance(reply, (list, tuple))  # a generator may take its time between two replies
        for part in reply:
            self._hold(self._handler.framing.encode(part))
            if at_once:
                self._flush()
            if self.closing:
                break

    def _hold(self, data: bytes) -> None:
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        unsent = self._unsent
        if unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            unsent.clear()
            self._unsent_bytes = 0
            self._send(data)

    def _send(self, data: bytes) -> None:
        with self._sending:
            if self._lost is not None:
                raise PeerGone(self._lost)
            try:
                self._socket.sendall(data)
            except (BlockingIOError, TimeoutError):
                self._lost = WRITE_TIMEOUT
            except OSError:
                self._lost = RESET
            else:
                self.bytes_out += len(data)
                return
        raise PeerGone(self._lost)

    def _note_begin(self) -> None:
        if not self._handler.framing.buffered:
            self._began = None
        elif self._began is None:
            self._began = monotonic()

    def _arm(self) -> None:
        """Set how long the next read may take, and what it means if it takes longer."""
        limits = self._limits
        assert limits is not None
        if self.bytes_in:
            seconds, self._awaited = limits.idle_timeout, IDLE_TIMEOUT
        else:
            seconds, self._awaited = limits.first_byte_timeout, FIRST_BYTE_TIMEOUT
        if limits.request_timeout and self._began is not None:
            remaining = max(0.001, self._began + limits.request_timeout - monotonic())
            if not seconds or remaining < seconds:
                seconds, self._awaited = remaining, REQUEST_TIMEOUT
        if seconds != (self._armed or 0):
            self._set_timeout("SO_RCVTIMEO", seconds)
            self._armed = seconds

    def _set_timeout(self, option: str, seconds: float) -> None:
        if self._in_kernel:
            self._socket.setsockopt(socket.SOL_SOCKET, getattr(socket, option), _timeval(seconds))
        else:
            self._socket.settimeout(seconds or None)

    def _log(self, what: str) -> None:
        log.info("%s: %s ended: %s", _name(self._handler), display(self._handler.client_address), what)


class DatagramLink:
    """The way of a message handler's bytes in answer to one datagram."""

    __slots__ = ("_handler", "_replies", "closing")

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self._replies: list[bytes] | None = []  # None once the answer has left
        self.closing = False

    def write(self, data: bytes) -> None:
        if self._replies is not None:
            self._replies.append(data)
        else:
            with suppress(PeerGone):
                send_datagram(self._handler.request[1], data, self._handler.client_address)

    def close(self) -> None:
        self.closing = True

    def converse(self) -> None:
        fault = None
        try:
            fault = self._handle(self._handler.request[0])
        finally:
            replies, self._replies = self._replies, None
            if replies:
                try:
                    send_datagram(self._handler.request[1], b"".join(replies), self._handler.client_address)
                except PeerGone as gone:
                    self._log(f"reply lost: {gone}")
        if fault is not None:
            self._log(f"{BAD_MESSAGE}: {fault}")

    def _handle(self, data: bytes) -> FrameError | None:
        handler = self._handler
        while True:
            framing = handler.framing
            fault = None
            try:
                messages = framing.datagram(data)
            except FrameError as error:
                messages, fault = error.messages, error
            for index, message in enumerate(messages):
                self._deliver(handler.handle_message(message))
                if self.closing:
                    return None
                if handler.framing is not framing:
                    data = _hand_over(framing, handler.framing, messages[index + 1 :], data)
                    break
            else:
                return fault
            if not data:
                return None

    def _deliver(self, reply: Any) -> None:
        if reply is None:
            return
        if isinstance(reply, str):
            raise TypeError(f"{type(self._handler).__name__} replied with a str; replies are bytes")
        parts = (reply,) if isinstance(reply, (bytes, bytearray, memoryview)) else reply
        for part in parts:
            self.write(self._handler.framing.encode(part))

    def _log(self, what: str) -> None:
        log.info("%s: datagram of %s: %s", _name(self._handler), display(self._handler.client_address), what)


def _hand_over(old: Any, new: Any, unhandled: list[bytes], data: bytes) -> bytes:
    """Return what goes through the new framing; it keeps the old one's maximum unless it has its own."""
    if new.max_message is None:
        new.limit = old.limit
    rest: bytes = old.rest(unhandled, data)
    return rest


def _name(handler: Any) -> str:
    return getattr(handler.server, "name", "") or type(handler.server).__name__


@lru_cache(maxsize=64)
def _timeval(seconds: float) -> bytes:
    # struct timeval of the platform; less than a microsecond would mean no timeout at all.
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
