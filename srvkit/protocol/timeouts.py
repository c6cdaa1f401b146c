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


def next_timeout(
    limits: Timeouts, *, heard: bool, unsent: bool = False, quiet: float = 0.0, message: float | None = None
) -> tuple[float | None, str]:
    """Return in how many seconds a limit passes if nothing happens, and the outcome then; None for never.

    `heard` tells whether the peer has said anything yet, `unsent` whether it has something left to take.
    `quiet` are the seconds in which nothing has come in or gone out; `message` those since the first byte of
    a message that is not complete, or not answered, None where there is none.
    """
    seconds, outcome = limits.idle_timeout, IDLE_TIMEOUT
    if unsent:
        seconds, outcome = limits.write_timeout, WRITE_TIMEOUT
    elif not heard:
        seconds, outcome = limits.first_byte_timeout, FIRST_BYTE_TIMEOUT
    left = seconds - quiet if seconds else None
    if message is not None and limits.request_timeout:
        in_all = limits.request_timeout - message
        if left is None or in_all < left:
            return in_all, REQUEST_TIMEOUT
    return left, outcome
