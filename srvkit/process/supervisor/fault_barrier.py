"""The supervisor's boundary: what raises in one of its callbacks is said, and ends nothing else.

A shortage of descriptors, memory or processes may come at any call. Each cause is met where it arises, as
far as it is known; this is for the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial

from srvkit.errors import SrvkitError
from srvkit.net.event_loop import READ, EventLoop, Timer

log = logging.getLogger("srvkit.process")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds after a turn in which something raised, doubling
AGAIN = 1.0  # seconds until a timer is due once more whose callback has raised

_failed = False  # whether a step has raised since the loop has looked; a plain mark, which takes no memory


def attempt(what: str, step: Callable[[], object]) -> bool:
    """Take a step; return whether it raised nothing. What it raises is logged as the failure of `what`.

    After a turn of a `GuardedLoop` in which one has raised, what it has lost is looked for.
    """
    global _failed
    try:
        step()
    except Exception as error:
        _failed = True
        complain(what, error)
        return False
    return True


def complain(what: str, error: BaseException) -> None:
    """Log that something failed: one line where the system refused it, with a traceback where it is ours."""
    with suppress(Exception):  # there may be no memory for a line either
        report(what, error)


def report(what: str, error: BaseException) -> None:
    """Log that something failed, as `complain`; raises MemoryError where that cannot be said either."""
    expected = isinstance(error, (OSError, MemoryError, SrvkitError))
    log.error("%s: %s", what, in_words(error), exc_info=None if expected else error)


def in_words(error: BaseException) -> str:
    """Say in one line what an exception means."""
    if isinstance(error, SrvkitError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        of = f"{error.filename}: " if error.filename is not None else ""
        return f"{of}{error.strerror}"
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def mark_failure() -> None:
    """Have what is lost looked for, although nothing was logged."""
    global _failed
    _failed = True


class GuardedLoop(EventLoop):
    """A loop that goes on whatever its callbacks raise.

    `after_turn` is called after each turn, for what is due by then; where anything has raised, in a moment
    again. A timer whose callback raised is due again a moment later, unless it was cancelled: such callbacks
    do no harm when they are called twice. What raises in each turn eats neither a processor nor the log.
    """

    def __init__(self) -> None:
        self._in_a_row = 0  # turns in which something raised
        self.after_turn: Callable[[], None] | None = None
        self.recover: Callable[[], None] | None = None  # called after such a turn: for what that has lost
        super().__init__()

    def watch(self, fd: int, callback: Callable[[], object], events: int = READ) -> None:
        """Call `callback()` whenever `fd` is ready, as every loop does."""
        super().watch(fd, partial(self._call, callback), events)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback()` as soon as what is ready was called back for, as every loop does."""
        super().call_soon(partial(self._call_only, callback))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` once, `seconds` from now, and again where it raised."""
        timer = super().call_later(seconds, callback)
        timer.callback = partial(self._next_deadline, timer, callback, min(AGAIN, max(seconds, FIRST_PAUSE)))
        return timer

    def wait(self, timeout: float | None = None) -> None:
        """Wait and call back, as every loop does; never raises an Exception."""
        try:
            self._take_a_turn(timeout)
        except Exception:  # there was no memory to say what is wrong
            self._in_a_row = 1
            mark_failure()

    def _take_a_turn(self, timeout: float | None) -> None:
        global _failed
        self._call(partial(super().wait, 0.0 if self._in_a_row else timeout))
        if self.after_turn is not None:
            attempt("what is due now", self.after_turn)
        if not _failed:
            self._in_a_row = 0
        else:
            _failed = False
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._in_a_row, 10)))
            self._in_a_row += 1
            if self.recover is not None:
                attempt("recovering", self.recover)

    def close_in_child(self, keep: Collection[object] = ()) -> None:
        """Let go of epoll, in a child: what is closed there must not be taken out of the parent's."""
        self.close()

    def _call(self, callback: Callable[[], object]) -> bool:
        return attempt("srvkit goes on after an exception of its own", callback)

    def _call_only(self, callback: Callable[[], object]) -> None:
        self._call(callback)

    def _next_deadline(self, timer: Timer, callback: Callable[[], None], again: float) -> None:
        if not self._call(callback) and timer.callback is not None:
            self.postpone(timer, again)
