"""Sockets that somebody else opened and gave to this process, found by name for `systemd:NAME`.

It keeps them, open, for as long as the process lasts, and processes forked later find them too. Who
passed them, and how, is not known here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NamedTuple


class Inherited(NamedTuple):
    """One descriptor that was passed."""

    name: str
    fd: int
    socket: socket.socket | None  # None where it is something else


_passed: list[Inherited] = []


def keep(passed: Iterable[Inherited]) -> None:
    """Keep these descriptors, in place of those kept until now, which stay open."""
    _passed[:] = passed


def passed() -> list[Inherited]:
    """Return all that was passed, in the order in which it came."""
    return list(_passed)


def named(name: str) -> list[socket.socket]:
    """Return the sockets of this name; they stay with this module: duplicate what you want to close."""
    return [one.socket for one in _passed if one.name == name and one.socket is not None]


def missing(name: str) -> str:
    """Say why there is no socket of this name, and which there are."""
    if any(one.name == name for one in _passed):
        return "what was passed by this name is no socket"
    names = sorted({one.name for one in _passed if one.socket is not None})
    if not names:
        return "no sockets were passed to this process; is it started by its socket unit?"
    return f"no socket of this name was passed, but {', '.join(names)}"
