"""Forked children of the supervisor: begin one, and hear of the end of each.

Every child that is known is waited for by its number, and nobody else's: as the first process of a
container (or of a namespace), where strangers become children, those are reaped as well.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

from srvkit.fork import fork
from srvkit.process.fault_barrier import complain, mark_failure

log = logging.getLogger("srvkit.process")

CANNOT_BOOT = 78  # the status of a child that broke before it could say why
_ALL = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


class ChildReaper:
    """The children that were forked here, by their numbers."""

    def __init__(self) -> None:
        self._ends: dict[int, Callable[[int], None]] = {}
        self._has_lost = False  # whether there may be a child that it does not know

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ends)

    def __contains__(self, pid: int) -> bool:
        return pid in self._ends

    def fork(self, main: Callable[[], int], ended: Callable[[int], None]) -> int:
        """Run `main()` in a child, which ends with what that returns; return the child's number.

        `ended(status)` is called from `reap`, with the exit status, or the negative number of the signal.
        All signals are held back when `main` begins. Raises OSError, which says
        so, where the system cannot fork.
        """
        for file in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # what cannot be written, the child cannot write either
                file.flush()
        try:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        except MemoryError:  # for what it returns: they are held back
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)
            raise
        pid = 0
        try:
            pid = _fork()
            if pid == 0:
                _be_the_child(main)
            self._ends[pid] = ended
        except BaseException:
            if pid:  # nobody would know of it
                self._has_lost = True  # first: there may be no memory for the rest
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self._has_lost = False
            raise
        finally:
            with suppress(MemoryError):  # as above: they are let through
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def adopt(self, pid: int, ended: Callable[[int], None]) -> None:
        """Know a child that was forked by a predecessor of this program, in the same process."""
        self._ends[pid] = ended

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a child that was not reaped yet; no other process can have its number."""
        if pid in self._ends:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def reap(self) -> None:
        """Call back for every child that has ended; never waits."""
        for pid in list(self._ends):
            try:
                reaped, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                reaped, status = pid, 0
            if reaped:
                ended = self._ends.pop(pid)
                try:  # in plain steps: nobody else can tell of this end, should there be no memory for more
                    ended(os.waitstatus_to_exitcode(status))
                except Exception as error:
                    mark_failure()
                    complain(f"the end of process {pid}", error)
        if self._has_lost or os.getpid() == 1:
            self._reap_strangers()

    def _reap_strangers(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if found.si_pid in self._ends:
                    return  # just ended; SIGCHLD comes for it
                os.waitpid(found.si_pid, 0)
                log.debug("process %d, which we adopted, has ended", found.si_pid)


def _fork() -> int:
    try:
        return fork()
    except OSError as error:
        raise OSError(error.errno, f"cannot fork a process: {error.strerror}") from error


def _be_the_child(main: Callable[[], int]) -> NoReturn:
    status = CANNOT_BOOT
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        status = status if 0 <= status <= 255 else 255  # or this would raise here, in a second supervisor
    except BaseException:
        log.exception("process %d broke", os.getpid())
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def end_group(leader: int) -> None:
    """Kill what a process has forked that had a session of its own and has just ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def ending(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"
