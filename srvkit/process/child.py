"""A child process of srvkit's own: how one is begun, and how it has ended.

It leads a session, and so a process group. So it is no job of the terminal that srvkit was started on: as
one in the background it could not read there, and under `stty tostop` each write would be interrupted for
ever. And what it has forked can be ended with it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from srvkit.errors import SrvkitError
from srvkit.fork import fork
from srvkit.process.signals import forget_handlers

log = logging.getLogger("srvkit.process")

CANNOT_BOOT = 78  # the status of a child that broke before it could say why
_ALL = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


class StartError(SrvkitError):
    """The servers cannot start as they are configured."""

    exit_status = 3


def begin(main: Callable[[], int]) -> int:
    """Run `main()` in a child, which ends with what that returns; return the child's number.

    There each signal has its default effect, whatever the program's handlers, and is held back until `main`
    lets it through. What the program ignores stays ignored, but for SIGCHLD: who forks wants to know how
    a child has ended. Raises OSError, which says so, where the system cannot fork. With MemoryError there may
    be a child, of an unknown number.
    """
    for file in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # what cannot be written, the child cannot either
            file.flush()
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    except Exception:  # there was no memory for what it returns: they are held back
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)
        raise
    pid = -1
    try:
        pid = _fork()
        if pid == 0:
            _be_the_child(main)
    finally:
        if pid == 0:  # there was no memory for that call: a second parent is the last thing that is wanted
            os._exit(CANNOT_BOOT)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except Exception:  # as above: they are let through, and nobody else would know of the child
            pass
    return pid


def _fork() -> int:
    try:
        return fork()
    except OSError as error:
        raise OSError(error.errno, f"cannot fork a process: {error.strerror}") from error


def _be_the_child(main: Callable[[], int]) -> NoReturn:
    status = CANNOT_BOOT
    try:
        os.setsid()
        forget_handlers()
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        status = status if 0 <= status <= 255 else 255  # or this would raise here, in a second parent
    except BaseException:
        log.exception("process %d broke", os.getpid())
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def end_group(leader: int) -> None:
    """Kill what a child has forked that has just ended, or is about to be waited for."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def ending(status: int) -> str:
    """Say how a process ended; `status` is below 0 for the number of a signal."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"


def refuse_threads() -> None:
    """Raise StartError where there are other threads than the main one: forking would not be safe."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise StartError(
            f"a plugin started threads when it was imported ({', '.join(others)}), and forking beside "
            "threads is not safe: start them where a connection is handled, or choose another concurrency"
        )
