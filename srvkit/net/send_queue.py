"""What was sent on a connection and waits to be taken by the system of its peer.

A connection that is closed with some of it waiting loses that as soon as the peer says anything more: the
kernel answers by a reset (RFC 1122, 4.2.2.13). Servers and handlers are not known here.
"""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from time import monotonic, sleep
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows, where srvkit can be imported and that is all
    fcntl = None  # type: ignore[assignment]

FITS = 1024  # bytes that every peer's system has room for from the start: it takes them whatever comes
SILENCE = 2.0  # seconds without a byte, either way, after which a peer has had its time
LONGEST = 30.0  # seconds in all
LOOK = 0.05  # seconds between looks whether something was taken
AF_UNIX = int(getattr(socket, "AF_UNIX", -1))

_SIOCOUTQ = 0x5411 if fcntl is not None and sys.platform.startswith("linux") else 0  # tcp(7)
_SO_NWRITE = 0x1024 if sys.platform == "darwin" else 0

family = socket.SocketType.family.__get__  # of a socket, as a plain number


def untaken(sock: socket.socket) -> int:
    """Return how many bytes of what was sent are not taken; 0 where nobody tells, or the socket is closed.

    The end of the stream may count as one of them.
    """
    try:
        if _SIOCOUTQ:
            waiting = bytearray(4)
            fcntl.ioctl(sock.fileno(), _SIOCOUTQ, waiting)
            return int.from_bytes(waiting, sys.byteorder)
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE) if _SO_NWRITE else 0
    except (OSError, ValueError):
        return 0


def end_reading(request: Any, loop: Any) -> None:
    """Have whoever waits to read from a connection find its end; from any thread.

    As soon as its peer has taken what was sent to it, that is: in a connection that is shut both ways, the
    kernel answers whatever else the peer says by a reset. `loop` is the server's; None where there is none.
    """
    if getattr(request, "bytes_out", 0) <= FITS or family(request) == AF_UNIX or not untaken(request):
        _shut(request)
    elif loop is not None:
        loop.call_soon(partial(_shut_when_taken, request, loop, _Patience(request)))
    else:
        threading.Thread(target=_wait_and_shut, args=(request,), daemon=True).start()


class _Patience:
    """How long a peer is waited for that is to take something: as long as it does, and some seconds more."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._left = sys.maxsize
        self._since = self._begin = monotonic()

    def is_over(self) -> bool:
        before, self._left, now = self._left, untaken(self._request), monotonic()
        if self._left < before:
            self._since = now
        return not self._left or now - self._since > SILENCE or now - self._begin > LONGEST


def _shut_when_taken(request: Any, loop: Any, patience: _Patience) -> None:
    if patience.is_over():
        _shut(request)
    else:
        loop.call_later(LOOK, partial(_shut_when_taken, request, loop, patience))


def _wait_and_shut(request: Any) -> None:
    patience = _Patience(request)
    while not patience.is_over():
        sleep(LOOK)
    _shut(request)


def _shut(request: Any) -> None:
    with suppress(OSError):  # gone already
        request.shutdown(socket.SHUT_RD)
