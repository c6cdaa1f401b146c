"""Sockets that make a greenlet wait and let the others of its thread run, and who share them.

Imports gevent, and is imported only where that is used. Nothing of the standard library is patched: what
else the process does, in this thread or in others, stays as it is. Knows nothing of servers.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from time import monotonic
from typing import Any

from gevent import get_hub, getcurrent, sleep
from gevent.exceptions import ConcurrentObjectUseError
from gevent.hub import Waiter
from gevent.lock import Semaphore
from greenlet import greenlet

from srvkit.contracts import Lock
from srvkit.net.connection import DONT_WAIT
from srvkit.net.event_loop import READ, WRITE
from srvkit.protocol.conversation import TURN

READING, WRITING = 1, 2  # gevent's numbers of what a watcher waits for

MOST_WAITING = 4 * 1024 * 1024  # bytes of other threads' for one peer, above which there may be no more
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.1  # seconds between attempts to send a datagram

# The system calls themselves, without the look-ups of super() on the way to each.
_recv, _recv_into, _send = socket.socket.recv, socket.socket.recv_into, socket.socket.send
_close = socket.SocketType.close
_family = socket.SocketType.family.__get__  # as plain numbers
_type = socket.SocketType.type.__get__


class Wait:
    """Waiting for one descriptor in the hub, by one greenlet at a time.

    The timer of a time limit is set once and put off when it comes too early, so that most waits cost no
    more than noting until when.
    """

    __slots__ = ("_fires", "_hub", "_timer", "_until", "_waiter", "_watcher")

    def __init__(self, fd: int, events: int) -> None:
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(fd, events)
        self._waiter: Any = None  # stands for the greenlet that waits
        self._until: float | None = None
        self._timer: Any = None
        self._fires = 0.0

    def wait(self, seconds: float | None = None) -> None:
        """Let others run until the descriptor is ready. Raises TimeoutError after `seconds`."""
        if self._waiter is not None:
            raise ConcurrentObjectUseError("another greenlet waits for this socket already")
        if seconds is None:
            self._until = None
        else:
            self._until = until = monotonic() + seconds
            if self._timer is None or self._fires > until:
                self._set_timer(seconds)
        self._waiter = waiter = Waiter(self._hub)
        self._watcher.start(waiter.switch, None)
        try:
            waiter.get()
        finally:
            self._watcher.stop()
            self._waiter = None

    def close(self) -> None:
        """Release the watcher, before its descriptor is closed; whoever waits gets an OSError."""
        if self._timer is not None:
            self._drop_timer()
        self._watcher.close()
        if self._waiter is not None:
            gone = OSError(errno.EBADF, "closed by another greenlet")
            self._hub.loop.run_callback(self._waiter.throw, gone)

    def _set_timer(self, seconds: float) -> None:
        self._drop_timer()
        self._fires = monotonic() + seconds
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._fired)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _fired(self) -> None:
        self._drop_timer()
        if self._waiter is not None and self._until is not None:
            remaining = self._until - monotonic()
            if remaining > 0:
                self._set_timer(remaining)
            else:
                self._waiter.throw(TimeoutError("timed out"))


class CooperativeSocket(socket.socket):
    """A connection's socket that makes the greenlet wait which uses it, and not its thread.

    A peer that sends and takes so quickly that nobody ever waits for it does not keep others from running.

    Otherwise it is what it derives from; so are its timeouts. `receive_timeout`, in seconds, bounds
    each wait to read where `settimeout` has not been called. For greenlets of one thread; `shutdown` is
    safe from others.
    """

    receive_timeout: float | None = None
    _own_timeout: float | None = None
    _readable: Wait | None = None
    _writable: Wait | None = None
    _drained = False  # whether the last read took all there was
    _turn = 0  # how many calls were made since others had a chance to run

    @classmethod
    def of(cls, sock: socket.socket) -> CooperativeSocket:
        """Return a cooperative socket with the descriptor of a plain one, which is closed by that."""
        timeout = sock.gettimeout()
        made = cls(_family(sock), _type(sock), sock.proto, sock.detach())
        if timeout is not None:
            made.settimeout(timeout)
        return made

    @property
    def runners(self) -> Runners:
        """What a conversation on this socket is to use in the place of threads."""
        return Runners()

    # ---- reading

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._turn += 1
        if self._turn > TURN:
            self._give_way(flags)
        # After a read that took all there was, waiting comes first: it saves a call in vain, and the
        # exception, for each message of a peer that waits for its answer (2 of 13 µs).
        if self._drained and not flags and self._own_timeout != 0:
            self._wait_readable()
        while True:
            try:
                data = _recv(self, size, flags | DONT_WAIT)
            except BlockingIOError:
                if flags & DONT_WAIT or self._own_timeout == 0:
                    raise
            else:
                self._drained = 0 < len(data) < size and self._readable is not None
                return data
            self._wait_readable()

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        self._count(flags)
        if self._drained and not flags and self._own_timeout != 0:
            self._wait_readable()
        while True:
            try:
                count = _recv_into(self, buffer, size, flags | DONT_WAIT)
            except BlockingIOError:
                if flags & DONT_WAIT or self._own_timeout == 0:
                    raise
            else:
                self._drained = 0 < count < (size or len(buffer)) and self._readable is not None
                return count
            self._wait_readable()

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        return self._read(super().recvfrom, flags, size)  # type: ignore[no-any-return]

    def recvfrom_into(self, buffer: Any, size: int = 0, flags: int = 0) -> tuple[int, Any]:
        return self._read(super().recvfrom_into, flags, buffer, size)  # type: ignore[no-any-return]

    def recvmsg(self, size: int, ancillary_size: int = 0, flags: int = 0) -> Any:
        return self._read(super().recvmsg, flags, size, ancillary_size)

    def recvmsg_into(self, buffers: Any, ancillary_size: int = 0, flags: int = 0) -> Any:
        return self._read(super().recvmsg_into, flags, buffers, ancillary_size)

    def _read(self, call: Callable[..., Any], flags: int, *arguments: Any) -> Any:
        self._count(flags)
        while True:
            try:
                return call(*arguments, flags | DONT_WAIT)
            except BlockingIOError:
                if flags & DONT_WAIT or self._own_timeout == 0:
                    raise
            self._wait_readable()

    def _wait_readable(self) -> None:
        timeout = self._own_timeout
        self.wait_for(READ, self.receive_timeout if timeout is None else timeout)

    # ---- writing

    def send(self, data: Any, flags: int = 0) -> int:
        self._turn += 1
        if self._turn > TURN:
            self._give_way(flags)
        while True:
            try:
                return _send(self, data, flags | DONT_WAIT)
            except BlockingIOError:
                if flags & DONT_WAIT or self._own_timeout == 0:
                    raise
            self._wait_writable(self._own_timeout)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._turn += 1
        if self._turn > TURN:
            self._give_way(flags)
        try:
            sent = _send(self, data, flags | DONT_WAIT)
        except BlockingIOError:
            if flags & DONT_WAIT or self._own_timeout == 0:
                raise
            sent = 0
        if type(data) is bytes and sent == len(data):
            return
        with memoryview(data) as view:
            if sent < view.nbytes:
                with view.cast("B") as rest:
                    self._send_the_rest(rest, sent, flags)

    def _send_the_rest(self, data: memoryview, sent: int, flags: int) -> None:
        # The timeout is for the call as a whole.
        timeout = self._own_timeout
        deadline = monotonic() + timeout if timeout else 0.0
        while sent < len(data):
            if not flags & DONT_WAIT and timeout != 0:
                self._wait_writable(max(0.0, deadline - monotonic()) if timeout else None)
            try:
                sent += _send(self, data[sent:], flags | DONT_WAIT)
            except BlockingIOError:
                if flags & DONT_WAIT or timeout == 0:
                    raise

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
        return self._write_as_one(
            super().sendmsg, flags, (buffers, ancillary), () if address is None else (address,)
        )

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        flags = flags_and_address[0] if len(flags_and_address) == 2 else 0
        return self._write_as_one(super().sendto, flags, (data,), flags_and_address[-1:])

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        # Not sendfile(2), which would wait by itself.
        return self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined, no-any-return]

    def _write_as_one(
        self, call: Callable[..., int], flags: int, before: tuple[Any, ...], after: tuple[Any, ...]
    ) -> int:
        self._count(flags)
        while True:
            try:
                return call(*before, flags | DONT_WAIT, *after)
            except BlockingIOError:
                if flags & DONT_WAIT or self._own_timeout == 0:
                    raise
            self._wait_writable(self._own_timeout)

    def _wait_writable(self, timeout: float | None) -> None:
        self.wait_for(WRITE, timeout)

    # ---- timeouts, which the kernel does not hear of, and the end

    def wait_for(self, events: int, seconds: float | None) -> None:
        """Let others run until the socket is ready to READ or WRITE. Raises TimeoutError after `seconds`."""
        self._turn = 0
        if events == READ:
            if self._readable is None:
                self._readable = Wait(self.fileno(), READING)
            self._readable.wait(seconds)
        else:
            if self._writable is None:
                self._writable = Wait(self.fileno(), WRITING)
            self._writable.wait(seconds)

    def _count(self, flags: int) -> None:
        """Take note of a call; `recv`, `send` and `sendall` do the same in line, where it costs less."""
        self._turn += 1
        if self._turn > TURN:
            self._give_way(flags)

    def _give_way(self, flags: int) -> None:
        """Let others run, before a call that may wait; what it would have read or sent is untouched."""
        self._turn = 0
        may_wait = not flags & DONT_WAIT and self._own_timeout != 0
        if (
            may_wait and getcurrent().parent is not None
        ):  # else another thread calls, which is in nobody's way
            sleep(0)

    def settimeout(self, value: float | None) -> None:
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._own_timeout = value

    def gettimeout(self) -> float | None:
        return self._own_timeout

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self.gettimeout() != 0

    timeout = property(gettimeout)

    def detach(self) -> int:
        self._stop_waiting()
        return super().detach()

    def _real_close(self) -> None:
        # Where the last of the socket and its files is closed; ssl.SSLSocket overrides the same.
        self._stop_waiting()
        _close(self)

    def _stop_waiting(self) -> None:
        if self._readable is not None:
            self._readable.close()
            self._readable = None
        if self._writable is not None:
            self._writable.close()
            self._writable = None


class GivesWay:
    """Stands in front of a class whose reads and writes are not those of CooperativeSocket: TLS."""

    _count: Callable[[int], None]

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._count(flags)
        return super().recv(size, flags)  # type: ignore[misc, no-any-return]

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        self._count(flags)
        return super().recv_into(buffer, size, flags)  # type: ignore[misc, no-any-return]

    def send(self, data: Any, flags: int = 0) -> int:
        self._count(flags)
        return super().send(data, flags)  # type: ignore[misc, no-any-return]

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._count(flags)
        super().sendall(data, flags)  # type: ignore[misc]


@cache
def cooperative(connection_class: type[socket.socket]) -> type[socket.socket]:
    """Return this class of connections made cooperative."""
    if issubclass(CooperativeSocket, connection_class) or issubclass(connection_class, CooperativeSocket):
        return max(connection_class, CooperativeSocket, key=lambda one: len(one.__mro__))
    bases: tuple[type, ...] = (connection_class, CooperativeSocket)
    if hasattr(connection_class, "begin_tls"):
        bases = (GivesWay, *bases)
    return type(f"Cooperative{connection_class.__name__}", bases, {})


class AnsweringSocket:
    """The listening socket as the handler of a datagram gets it: a full buffer makes its greenlet wait."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        flags = flags_and_address[0] if len(flags_and_address) == 2 else 0
        pause = FIRST_PAUSE
        while True:
            try:
                sent: int = self._socket.sendto(data, flags | DONT_WAIT, flags_and_address[-1])
                return sent
            except BlockingIOError:
                if flags & DONT_WAIT:
                    raise
            # The hub is no help: the socket counts as writable where it is a peer's queue that is full.
            sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


class Runners:
    """Greenlets of one thread, to those who share a connection."""

    __slots__ = ("_calls", "_counting", "_hub", "_turn", "_weight", "lock")

    current = staticmethod(getcurrent)

    def __init__(self) -> None:
        self._hub = get_hub()
        # Of other threads, which never wait for this one, and how much all of them weigh.
        self._calls: deque[tuple[Callable[[], object], int]] = deque()
        self._weight = 0
        self._counting = threading.Lock()
        self._turn = Semaphore(1)  # of whoever makes them: each may wait, and they keep their order
        self.lock: Lock = Semaphore(1)

    def run(self, call: Callable[[], object], weight: int) -> bool:
        if getcurrent().parent is self._hub:
            call()
            return True
        with self._counting:
            if self._weight > MOST_WAITING:
                return False
            self._weight += weight
        self._calls.append((call, weight))
        loop = self._hub.loop
        if loop is not None:
            with suppress(ValueError):  # destroyed since: the server has ended
                loop.run_callback_threadsafe(self._begin_calls)
        return True

    def finish(self) -> None:
        self._make_calls()
        with self.lock:
            pass

    def give_way(self) -> None:
        if getcurrent().parent is self._hub:
            sleep(0)

    def _begin_calls(self) -> None:
        greenlet(self._make_calls, self._hub).switch()

    def _make_calls(self) -> None:
        with self._turn:
            while self._calls:
                call, weight = self._calls.popleft()
                call()
                with self._counting:
                    self._weight -= weight
