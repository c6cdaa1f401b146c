"""Connections that have had their last word, whose peers are still talking.

Closing one with input unread makes the kernel throw away what the peer has not received yet, the reply
included (RFC 1122, 4.2.2.13). So its input is read and thrown away, until the peer ends it too.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from srvkit.net.connection import BAD_MESSAGE, CLOSED, DONT_WAIT, ERROR

SILENCE = 2.0  # seconds without a byte after which the peer has had its time
LONGEST = 30.0  # seconds in all
MOST = 256  # connections of a server; the one that waits longest makes room
SPEAKING = (CLOSED, BAD_MESSAGE, ERROR)  # outcomes of connections that the peer has not ended

_recv_into, _gettimeout = socket.socket.recv_into, socket.socket.gettimeout
_settimeout = socket.socket.settimeout

_bin = bytearray(65536)  # where the input goes; what stands in it does not matter


def is_unread(request: Any) -> bool:
    """Return whether a connection that is to be closed has input that nobody has read."""
    outcome = getattr(request, "outcome", CLOSED)
    if outcome not in SPEAKING:
        return False
    try:
        if _gettimeout(request):
            _settimeout(request, 0.0)  # or it would wait for so long, whatever the flag says
        return _throw_away(request) > 0
    except BlockingIOError:
        return bool(outcome == BAD_MESSAGE)  # there is more where that came from
    except (OSError, ValueError):
        return False


class Lingering:
    """The lingering connections of one server, in its loop; `close` is what becomes of each."""

    def __init__(self, close: Callable[[Any], None], over: Callable[[], None]) -> None:
        self._close = close
        self._over = over  # called when the last one has gone
        self._times: dict[Any, list[float]] = {}  # since when, and when something was heard

    def __len__(self) -> int:
        return len(self._times)

    def add(self, request: Any, loop: Any, in_loop: bool) -> None:
        """Let a connection linger; from any thread."""
        self._times[request] = [monotonic()] * 2
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
        since, heard = self._times[request]
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
    with suppress(OSError, ValueError):
        while poll.poll(min(SILENCE, max(0.0, deadline - monotonic())) * 1000):
            if not _throw_away(request):
                break


def _throw_away(request: Any) -> int:
    # Of the socket itself: what is encrypted need not be read.
    return _recv_into(request, _bin, 0, DONT_WAIT)
