"""Connections that have had their last word, whose peers are still talking.

Closing one with input unread makes the kernel throw away what the peer has not received yet, the reply
included (RFC 1122, 4.2.2.13); and so does input that comes later, while some of the reply still waits to be
taken. So the input is read and thrown away, until the peer ends it too.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from srvkit.net.connection import DONT_WAIT, TimedConnection
from srvkit.net.send_queue import AF_UNIX, FITS, LONGEST, SILENCE, family, untaken
from srvkit.protocol.outcomes import (
    BAD_MESSAGE,
    CLOSED,
    ERROR,
    FIRST_BYTE_TIMEOUT,
    IDLE_TIMEOUT,
    REQUEST_TIMEOUT,
    STOPPED,
)

MOST = 256  # connections of a server; the one that waits longest makes room
SPEAKING = (CLOSED, BAD_MESSAGE, ERROR)  # outcomes of connections whose peers may be saying something
# Of those that the peer has not ended; it may say something any time.
OPEN = frozenset((*SPEAKING, STOPPED, FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT, REQUEST_TIMEOUT))

_recv_into, _gettimeout = socket.socket.recv_into, socket.socket.gettimeout
_settimeout = socket.socket.settimeout

_bin = bytearray(65536)  # where the input goes; what stands in it does not matter


def has_to_linger(request: Any) -> bool:
    """Return whether its peer would lose something if a connection were closed now."""
    outcome = getattr(request, "outcome", CLOSED)
    return outcome in OPEN and (_is_unread(request, outcome) or _is_untaken(request))


def _is_unread(request: Any, outcome: str) -> bool:
    """Return whether it has input that nobody has read."""
    if outcome not in SPEAKING:
        return False
    try:
        if _gettimeout(request):
            _settimeout(request, 0.0)  # or it would wait for so long, whatever the flag says
        return _throw_away(request) > 0
    except BlockingIOError:
        return outcome == BAD_MESSAGE  # there is more where that came from
    except (OSError, ValueError):
        return False


def _is_untaken(request: Any) -> bool:
    """Return whether some of what was sent waits to be taken."""
    # Who does input and output of its own may have sent more than was counted, by the descriptor.
    if getattr(request, "bytes_out", 0) <= FITS and not isinstance(request, TimedConnection):
        return False
    # Between Unix sockets, what is sent has been received. The end of the stream counts as one.
    return family(request) != AF_UNIX and untaken(request) > 1


class Lingering:
    """The lingering connections of one server, in its loop; `close` is what becomes of each."""

    def __init__(self, close: Callable[[Any], None], over: Callable[[], None]) -> None:
        self._close = close
        self._over = over  # called when the last one has gone
        # Since when, when something was heard or taken, and how much was to be taken then.
        self._times: dict[Any, list[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def add(self, request: Any, loop: Any, in_loop: bool) -> None:
        """Let a connection linger; from any thread."""
        now = monotonic()
        self._times[request] = [now, now, untaken(request)]
        if in_loop:
            self._begin(request, loop)
        else:
            loop.call_soon(partial(self._begin, request, loop))

    def end(self, loop: Any) -> None:
        """Close them all; in the loop's thread."""
        for request in list(self._times):
            self._end(request, loop)

    def _begin(self, request: Any, loop: Any) -> None:
        if len(self._times) > MOST:
            oldest, *_ = list(self._times)  # a copy: threads add to it
            self._end(oldest, loop)
        if request in self._times:
            loop.watch(request.fileno(), partial(self._readable, request, loop))
            loop.call_later(SILENCE, partial(self._look, request, loop))

    def _readable(self, request: Any, loop: Any) -> None:
        with suppress(BlockingIOError):
            for _ in range(16):
                try:
                    received = _throw_away(request)
                except BlockingIOError:
                    raise
                except (OSError, ValueError):
                    received = 0
                if not received:
                    self._end(request, loop)
                    return
                self._times[request][1] = monotonic()

    def _look(self, request: Any, loop: Any) -> None:
        if request not in self._times:
            return
        now = monotonic()
        since, heard, before = self._times[request]
        left = untaken(request)
        if left < before:
            self._times[request] = [since, heard := now, left]
        due = min(heard + SILENCE, since + LONGEST)
        if due <= now:
            self._end(request, loop)
        else:
            loop.call_later(due - now, partial(self._look, request, loop))

    def _end(self, request: Any, loop: Any) -> None:
        if self._times.pop(request, None) is None:
            return
        loop.forget(request.fileno())
        self._close(request)
        if not self._times:
            self._over()


def wait_out(request: Any) -> None:
    """Let a connection linger here and now, where there is no loop: in a forked child."""
    poll = select.poll()
    poll.register(request.fileno(), select.POLLIN)
    deadline = monotonic() + LONGEST
    left = untaken(request)
    with suppress(OSError, ValueError):
        while (seconds := deadline - monotonic()) > 0:
            if poll.poll(min(SILENCE, seconds) * 1000):
                if not _throw_away(request):
                    break
            else:
                before, left = left, untaken(request)
                if left >= before:
                    break


def _throw_away(request: Any) -> int:
    # Of the socket itself: what is encrypted need not be read.
    return _recv_into(request, _bin, 0, DONT_WAIT)
