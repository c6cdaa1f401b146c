"""What a supervisor and one of its children say to each other: lines of JSON, and descriptors.

Neither side ever waits for the other. That the other side has ended shows as the end of the stream, so
for a child it is also how it learns that its supervisor is dead.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from srvkit.net.closing import close
from srvkit.net.event_loop import READ, WRITE, EventLoop, wait_for

log = logging.getLogger("srvkit.process")

Message = dict[str, Any]

_CHUNK = 65536
_MOST_DESCRIPTORS = 16
MOST_MESSAGE = 64 * 2**20  # bytes; all connections of a worker are one
AGAIN = 1.0  # seconds until the kernel is asked once more for what it had no memory for
# What says nothing about the other side: later it may be different.
_FOR_NOW = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})


class Channel:
    """One end of a channel; `open_channel` makes both.

    `attach` has it served by a loop: `heard(message, descriptors)` for each message, whose descriptors
    belong to whoever hears it, and `ended()` once when the other side is gone.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = b""
        self._descriptors: list[int] = []
        self._takes_descriptors = True
        self._outgoing: list[tuple[bytes, Sequence[int]]] = []
        self._loop: EventLoop | None = None
        self._watched = 0  # for which events
        self._heard: Callable[[Message, list[int]], None] | None = None
        self._ended: Callable[[], None] | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def attach(
        self,
        loop: EventLoop,
        heard: Callable[[Message, list[int]], None],
        ended: Callable[[], None],
        *,
        descriptors: bool = True,
    ) -> None:
        """Be served by this loop from now on; without `descriptors`, what comes of them is closed at once."""
        self._takes_descriptors = descriptors
        self._loop, self._heard, self._ended = loop, heard, ended
        self._watch()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Send a message, as soon as there is room; return False where the other side is gone.

        From the loop's thread. Descriptors may be closed when this returns. Raises OSError, with nothing
        sent, where they would have to wait for room and cannot be duplicated.
        """
        line = json.dumps(message | {"descriptors": len(descriptors)} if descriptors else message).encode()
        line += b"\n"
        sent = self._sent(line, descriptors) if not self._outgoing else 0
        if sent is not None and sent < len(line):
            self._outgoing.append((line[sent:], () if sent else _duplicates(descriptors)))
            self._watch()
        return sent is not None

    def send_blocking(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message and wait until it is out; where nothing else is going on."""
        count = {"descriptors": len(descriptors)} if descriptors else {}
        line = json.dumps(message | count).encode() + b"\n"
        self._socket.setblocking(True)
        with suppress(OSError):  # the other side is gone
            sent = socket.send_fds(self._socket, [line], descriptors)
            self._socket.sendall(line[sent:])
        self._socket.setblocking(False)

    def receive(self, *, wait: bool = True) -> Message | None:
        """Return the next message; where no loop serves the channel.

        None where the other side is gone or, without `wait`, has said nothing yet. Descriptors are closed.
        """
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                message = _parsed(line)
                if message is not None:
                    return message
                continue
            if wait:
                wait_for(self.fileno(), None)
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, _CHUNK, _MOST_DESCRIPTORS)
            except OSError as error:
                if wait and error.errno in _FOR_NOW:
                    continue
                return None
            close(*descriptors)
            if not data:
                return None
            self._received += data

    def read_the_rest(self) -> None:
        """Hear what the other side had said before it ended."""
        while self._loop is not None and self._read():
            pass

    def die_with_the_other_side(self) -> None:
        """Let the kernel end this process as soon as anything is heard, the end included."""
        end_at_news(self.fileno(), os.getpid())

    def close_in_child(self) -> None:
        """Close the descriptor alone, in a forked process that has no use for it."""
        self._socket.close()

    def close(self) -> None:
        try:
            if self._loop is not None:
                self._loop.unwatch(self.fileno())
                self._loop = None
        finally:
            self._socket.close()
        descriptors, self._descriptors = self._descriptors, []
        close(*descriptors)
        self._drop_outgoing()

    def _drop_outgoing(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        for _, descriptors in outgoing:
            close(*descriptors)

    # ---- in the loop

    def _watch(self) -> None:
        events = READ | (WRITE if self._outgoing else 0)
        if self._loop is None or events == self._watched:
            return
        try:
            self._loop.watch(self.fileno(), self._ready, events)
        except OSError:  # the kernel has no room to note it
            self._loop.call_later(AGAIN, self._watch)
        else:
            self._watched = events

    def _ready(self) -> None:
        if self._outgoing:
            self._write()
        if self._loop is not None:
            self._read()

    def _write(self) -> None:
        while self._outgoing:
            line, descriptors = self._outgoing[0]
            sent = self._sent(line, descriptors)
            if sent is None:
                self._drop_outgoing()
            elif sent:
                close(*descriptors)
                self._outgoing[:1] = [(line[sent:], ())] if sent < len(line) else []
            else:
                break
        self._watch()

    def _sent(self, line: bytes, descriptors: Sequence[int]) -> int | None:
        """Send what there is room for; return how much that was, None where the other side is gone."""
        try:
            return socket.send_fds(self._socket, [line], descriptors)
        except OSError as error:
            return 0 if error.errno in _FOR_NOW else None  # the end of the stream says the rest

    def _read(self) -> bool:
        """Hear what has come; return whether there may be more."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _CHUNK, _MOST_DESCRIPTORS)
        except OSError as error:
            if error.errno in _FOR_NOW:
                return False
            data, descriptors = b"", []
        if self._takes_descriptors:
            for fd in descriptors:
                os.set_inheritable(fd, False)
            self._descriptors += descriptors
        else:
            close(*descriptors)
        if not data:
            self._end()
            return False
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            if self._loop is None:  # closed by whoever heard the one before
                return False
            message = _parsed(line)
            if message is None:
                continue
            count = message.pop("descriptors", 0)
            mine, self._descriptors = self._descriptors[:count], self._descriptors[count:]
            if self._heard is not None:
                self._heard(message, mine)
        if len(self._received) > MOST_MESSAGE:
            log.warning("the other end of a channel sent a line without end; ignoring it from now on")
            self._received = b""
            self._end()
        return True

    def _end(self) -> None:
        ended = self._ended
        if self._loop is not None:
            self._loop.unwatch(self.fileno())
            self._loop = None
        if ended is not None:
            ended()


def _parsed(line: bytes) -> Message | None:
    """Return what a line says; None where it is no message, for a plugin may write there, too."""
    try:
        message = json.loads(line)
        if isinstance(message, dict) and isinstance(message.get("descriptors", 0), int):
            return message
    except (ValueError, RecursionError):
        pass
    log.warning("not a message on a channel: %.60r", line)
    return None


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    """Duplicate all of them or, raising OSError, none."""
    made: list[int] = []
    try:
        for fd in descriptors:
            made.append(os.dup(fd))
    except BaseException:
        close(*made)
        raise
    return made


def open_channel() -> tuple[Channel, Channel]:
    """Return both ends of a new channel."""
    one, other = socket.socketpair()
    return Channel(one), Channel(other)


def end_at_news(fd: int, whom: int) -> None:
    """Have SIGIO kill a process (below 0: a group) as soon as there is anything to read, the end included.

    For when nobody reads there: plugins that are being imported may do anything.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, whom)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
