"""The supervisor's children: begin one, and hear of the end of each.

Every child that is known is waited for by its number, and nobody else's: as the first process of a
container (or of a namespace), where strangers become children, those are reaped as well.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from srvkit.process.child import begin
from srvkit.process.supervisor.fault_barrier import complain, mark_failure

log = logging.getLogger("srvkit.process")


class Belonging(Protocol):
    """Something that the supervisor has open, and no child of it needs."""

    def close_in_child(self, keep: Collection[object] = ()) -> None:
        """Close its descriptors, in a child, but those of what is in `keep`."""


class ChildReaper:
    """The children that were forked here, by their numbers; `belongings` are closed in each of them."""

    def __init__(self) -> None:
        self.belongings: Sequence[Belonging] = ()
        self._ends: dict[int, Callable[[int], None]] = {}
        self._has_lost = False  # whether there may be a child that it does not know

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ends)

    def __contains__(self, pid: int) -> bool:
        return pid in self._ends

    def fork(
        self, main: Callable[[], int], ended: Callable[[int], None], keep: Collection[object] = ()
    ) -> int:
        """Run `main()` in a child as `child.begin` does; return the child's number.

        What is in `keep` stays open there. `ended(status)` is called from `reap`, with the exit status, or
        the negative number of the signal. Raises OSError where the system cannot fork.
        """

        def run() -> int:
            for one in self.belongings:
                one.close_in_child(keep)
            return main()

        pid = 0
        try:
            pid = begin(run)
            self._ends[pid] = ended
        except OSError:  # there is none
            raise
        except BaseException:
            # Nobody knows of it: it ends by itself, at the end of what it was given here, and is reaped then.
            self._has_lost = True
            if pid:
                os.kill(pid, signal.SIGKILL)
            raise
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
