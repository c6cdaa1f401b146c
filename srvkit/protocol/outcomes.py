"""How a connection ended, in one word: for logs, hooks and `disconnected(reason)`."""

from __future__ import annotations

from typing import Any

from srvkit.errors import FrameError

CLOSED = "closed"  # the handler ended it
EOF = "eof"  # the peer ended it, between messages
TRUNCATED = "truncated"  # the peer ended it in the middle of a message
BAD_MESSAGE = "bad-message"  # bytes that are no message, or too many of them
RESET = "reset"  # the peer vanished
REFUSED = "refused"  # no seat was free, or a rule said no
ERROR = "error"  # the handler raised
STOPPED = "stopped"  # the server stopped and did not wait any longer
FIRST_BYTE_TIMEOUT = "first-byte-timeout"
IDLE_TIMEOUT = "idle-timeout"
REQUEST_TIMEOUT = "request-timeout"
WRITE_TIMEOUT = "write-timeout"
OVERFLOW = "overflow"  # others sent it more than it takes
BAD_PROXY = "bad-proxy"  # no PROXY header where one was due, or a wrong one
PROXY_TIMEOUT = "proxy-timeout"
BAD_TLS = "bad-tls"  # a handshake that failed
TLS_TIMEOUT = "tls-timeout"
UNHEARD = (RESET, OVERFLOW, WRITE_TIMEOUT, BAD_TLS, TLS_TIMEOUT)  # after which a peer hears nothing more
OUTCOMES = (
    CLOSED,
    EOF,
    TRUNCATED,
    BAD_MESSAGE,
    RESET,
    REFUSED,
    ERROR,
    STOPPED,
    FIRST_BYTE_TIMEOUT,
    IDLE_TIMEOUT,
    REQUEST_TIMEOUT,
    WRITE_TIMEOUT,
    OVERFLOW,
    BAD_PROXY,
    PROXY_TIMEOUT,
    BAD_TLS,
    TLS_TIMEOUT,
)


def lost_outcome(request: Any, bytes_in: int) -> str:
    """Return how a connection ended whose peer is gone: who never said anything only looked for a server."""
    return RESET if bytes_in or getattr(request, "floods", False) else EOF


def frame_outcome(error: FrameError) -> str:
    """Return how a connection ended whose handler or framing raised this."""
    return TRUNCATED if error.cut_short else BAD_MESSAGE


def handshake_outcome(error: Exception) -> str:
    """Return how a connection ended whose TLS handshake raised this."""
    if isinstance(error, TimeoutError):
        return TLS_TIMEOUT
    return RESET if isinstance(error, OSError) else BAD_TLS
