"""The first moments of a program that was executed in place of a supervisor, until it has the workers.

There is no way back then, and what was handed over is held by nobody else. So where anything keeps it from
taking over, the program is executed once more, with all it was handed.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from srvkit.net.closing import close
from srvkit.process import command_line as origin
from srvkit.process.memfd import contents
from srvkit.process.signals import hold_back
from srvkit.process.supervisor.fault_barrier import in_words

log = logging.getLogger("srvkit.process")

VARIABLE = "SRVKIT_REPLACES"  # the descriptor of the table
TRIES_VARIABLE = "SRVKIT_REPLACES_AGAIN"  # how often it was tried before
MOST_TRIES = 10
PAUSE = 0.2  # seconds before the second one, growing

Table = dict[str, Any]


class Takeover:
    """What this program was handed by the one whose place it has taken; see `begun`."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = dict(environ)
        self._tries = int(environ.pop(TRIES_VARIABLE, "0"))
        text = environ.pop(VARIABLE, "")
        self._fd = int(text) if text.isdecimal() else -1
        self._handed = _open_descriptors() if self.is_under_way else []
        self._made: list[socket.socket] = []

    @property
    def is_under_way(self) -> bool:
        """Whether something was handed over that nobody looks after yet."""
        return self._fd >= 0

    def table(self) -> Table | None:
        """Return what must be known of it; None where nothing was handed over."""
        if not self.is_under_way:
            return None
        table: Table = json.loads(contents(self._fd, os.fstat(self._fd).st_size))
        origin.refuse_unless_known(table["format"])
        return table

    def socket(self, fd: int) -> socket.socket:
        """Return the socket of a descriptor that was handed over; it stays open until `done`, at least."""
        os.set_inheritable(fd, False)
        self._made.append(sock := socket.socket(fileno=fd))
        return sock

    def done(self) -> None:
        """All of it is looked after now; whatever fails from here on is no reason to begin again."""
        self._made.clear()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd)

    def begin_again(self, error: Exception, signals: tuple[int, ...]) -> None:
        """Execute this program once more; returns where that cannot be, or has been tried often enough."""
        while self._tries < MOST_TRIES:
            self._tries += 1
            log.error("taking over failed, trying again: %s", in_words(error))
            time.sleep(PAUSE * self._tries)
            with suppress(OSError, MemoryError):
                hold_back(*signals)
                for fd in self._handed:
                    with suppress(OSError):
                        os.set_inheritable(fd, True)
                command = origin.command()
                os.execve(command[0], command, self._environ | {TRIES_VARIABLE: str(self._tries)})


@contextmanager
def begun(signals: tuple[int, ...], environ: MutableMapping[str, str] = os.environ) -> Iterator[Takeover]:
    """Take over what was handed to this program, if anything was, or begin again until that is done.

    To be entered before anything else is opened or taken from the environment. `signals` wait meanwhile.
    """
    takeover = Takeover(environ)
    try:
        yield takeover
    except Exception as error:
        if takeover.is_under_way:
            takeover.begin_again(error, signals)
        raise


def _open_descriptors() -> list[int]:
    """Return those that are not the standard ones: so early, all of them were handed over."""
    try:
        candidates = list(map(int, os.listdir("/dev/fd")))
    except OSError:
        candidates = list(range(4096))
    return [fd for fd in candidates if fd > 2 and _is_inherited(fd)]


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # it was the one by which the others were found
        return False
