"""Signals as bytes on a descriptor, so that all work is done in the loop and none in a handler."""

from __future__ import annotations

import os
import signal
from types import TracebackType
from typing import Any


class Signals:
    """Catch the given signals while the context lasts; main thread only.

    `fileno()` becomes readable when one arrives, `read()` returns their numbers. On leaving, the
    program's own dispositions are back.
    """

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            # The byte is written by the interpreter's own C handler; this one only replaces the default.
            self._before[number] = signal.signal(number, _noted)
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

    def fileno(self) -> int:
        return self._read

    def read(self) -> list[int]:
        """Return the signals that came since the last call, in order; never waits."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []


def _noted(number: int, frame: Any) -> None:
    """Take note of a signal; the loop reads it from the descriptor."""
