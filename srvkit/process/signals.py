"""Signals as bytes on a descriptor, so that all work is done in the loop and none in a handler."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any


def hold_back(*numbers: int) -> None:
    """Leave these signals waiting until a `Signals` catches them: none ends what is half started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def let_through(*numbers: int, to: signal.Handlers = signal.SIG_DFL) -> None:
    """Give these signals the plain disposition `to`, and hold them back no longer."""
    for number in numbers:
        signal.signal(number, to)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


@contextmanager
def interrupts_held_back() -> Iterator[Callable[[], object]]:
    """Keep Ctrl-C from this thread while the context lasts, or until what it yields is called."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield let_go
    finally:
        let_go()


class Signals:
    """Catch the given signals while the context lasts, also those held back; main thread only.

    `fileno()` becomes readable when one arrives, `read()` returns their numbers. Those in `ignored` do
    nothing. On leaving, the program's own dispositions are back.

    While `breaking` is set, because nobody reads here but somebody else's code has the main thread, a
    second signal, or QUIT, raises KeyboardInterrupt in that code.
    """

    def __init__(self, *numbers: int, ignored: Sequence[int] = ()) -> None:
        self.breaking = False
        self._numbers = numbers
        self._ignored = ignored
        self._unread = 0
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            # The byte is written by the interpreter's own C handler; this one need not.
            self._before[number] = signal.signal(number, self._noted)
        for number in self._ignored:
            # Not SIG_IGN, which programs that are started from here would inherit.
            self._before[number] = signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._numbers, *self._ignored})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)

    def abandon(self) -> None:
        """Forget all this in a forked child, which is to set its own; everything has its default there."""
        signal.set_wakeup_fd(-1)
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def read(self) -> list[int]:
        """Return the signals that came since the last call, in order; never waits."""
        self._unread = 0
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []

    def _noted(self, number: int, frame: Any) -> None:
        self._unread += 1
        if self.breaking and (self._unread > 1 or number == signal.SIGQUIT):
            raise KeyboardInterrupt
