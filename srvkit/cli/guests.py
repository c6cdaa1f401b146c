"""Plugins are guests in a command that loads them: it says what it found, and ends, whatever they do."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from time import sleep

EXIT_TIME = 1.0  # seconds for threads and functions of atexit; those of a worker have as long

status = 1  # what the command ends with, once that is known


@contextlib.contextmanager
def received() -> Iterator[None]:
    """Have standard output and error back after the block; what it leaves running keeps nobody waiting."""
    files, kept = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    before = _what_delays_the_end()
    try:
        yield
    finally:
        for fd, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, fd)
            os.close(descriptor)
        sys.stdout, sys.stderr = (
            file if not file.closed else open(fd, "w", closefd=False)  # noqa: SIM115 - lasts as the process does
            for fd, file in enumerate(files, start=1)
        )
        if _what_delays_the_end() > before:
            threading.Thread(target=_end_in_any_case, daemon=True).start()


def _what_delays_the_end() -> int:
    waited_for = sum(not thread.daemon for thread in threading.enumerate())
    return waited_for + atexit._ncallbacks()


def _end_in_any_case() -> None:
    threading.main_thread().join()  # returns when the others are waited for
    sleep(EXIT_TIME)
    os._exit(status)
