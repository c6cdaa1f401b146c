"""Which limit of a connection passes next, and what it is called when it has passed. No clock."""

from __future__ import annotations

from typing import Protocol

from srvkit.protocol.outcomes import FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT, REQUEST_TIMEOUT, WRITE_TIMEOUT


class Timeouts(Protocol):
    """Limits in seconds; 0 for none."""

    @property
    def first_byte_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def request_timeout(self) -> float: ...
    @property
    def write_timeout(self) -> float: ...


Wait = tuple[float | None, str]  # how many seconds it may take, None for any, and the outcome when they pass


def waits_of(limits: Timeouts) -> tuple[Wait, Wait, Wait]:
    """Return how long the first read of a connection may wait, a later one, and a write."""
    return (
        next_timeout(limits, heard=False, reading=0.0),
        next_timeout(limits, heard=True, reading=0.0),
        next_timeout(limits, heard=True, writing=0.0),
    )


def next_timeout(
    limits: Timeouts,
    *,
    heard: bool,
    reading: float | None = None,
    writing: float | None = None,
    message: float | None = None,
) -> tuple[float | None, str]:
    """Return in how many seconds a limit passes if nothing happens, and the outcome then; None for never.

    `heard` tells whether the peer has said anything yet. The rest are seconds since something began, None
    for what has not: `reading` since more of the peer is waited for, `writing` since it took the last of
    what it is to take, `message` since the first byte of what is not complete, or not answered.
    """
    left, outcome = None, IDLE_TIMEOUT
    if writing is not None and limits.write_timeout:
        left, outcome = limits.write_timeout - writing, WRITE_TIMEOUT
    if reading is not None:
        seconds = limits.idle_timeout if heard else limits.first_byte_timeout
        if seconds and (left is None or seconds - reading < left):
            left, outcome = seconds - reading, IDLE_TIMEOUT if heard else FIRST_BYTE_TIMEOUT
    if message is not None and limits.request_timeout:
        in_all = limits.request_timeout - message
        if left is None or in_all < left:
            left, outcome = in_all, REQUEST_TIMEOUT
    return left, outcome
