"""USR2: a new installation of srvkit is asked whether it would start, and takes the supervisor's place."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from srvkit.net.closing import close, close_one
from srvkit.net.event_loop import Timer
from srvkit.process import command_line as origin
from srvkit.process import systemd
from srvkit.process.child import ending
from srvkit.process.memfd import contents, unnamed_file
from srvkit.process.signals import HANDLED, IGNORED
from srvkit.process.supervisor import reexec
from srvkit.process.supervisor.fault_barrier import report
from srvkit.process.supervisor.parts import Parts
from srvkit.process.supervisor.shared import Shared
from srvkit.process.worker.worker import CANNOT_START

log = logging.getLogger("srvkit.process")

MOST_OUTPUT = 65536  # bytes


class Upgrade:
    """The way to the next program, one after the other; `go_on()` takes the steps that are due.

    `words` are those of a command that says whether a new installation would start.
    """

    def __init__(self, parts: Parts, words: Sequence[str]) -> None:
        self._parts = parts
        self._words = list(words)
        self._stage: Literal["", "wanted", "checking", "due"] = ""
        self._check: Check | None = None

    def begin(self) -> None:
        """Let a new installation check the configuration, and then take the place of this one.

        One that waits for a reload to be over is checked once more: it may be another one by now.
        """
        if self._stage in ("", "due") and self._parts.generations.current is not None:
            self._stage = "wanted"

    def go_on(self, *, is_free: bool) -> None:
        """Take the next step, or the same again, where there was no memory for it.

        `is_free` is whether no reload goes on.
        """
        if self._stage == "wanted":
            self._begin_check()
        elif self._stage == "checking" and self._check is not None and self._check.is_over:
            self._stage = "due" if self._check.conclude() else ""
        if self._stage == "due" and is_free:
            self._execute()
            self._stage = ""

    def _begin_check(self) -> None:
        generation = self._parts.generations.current
        assert generation is not None
        log.info("USR2: the new installation checks the configuration")
        try:
            self._check = Check(self._words, self._parts.shared, generation.config.srvkit.ready_timeout)
        except Exception as error:
            report("the check cannot be run, so nothing is replaced", error)
            self._stage = ""
        else:
            self._stage = "checking"

    def _execute(self) -> None:
        log.info("the new installation takes over")
        notifier = self._parts.notifier
        notifier.reloading()
        try:
            table, descriptors = reexec.table_of(self._parts)
            with systemd.handed_over(notifier) as environ:
                reexec.execute(table, descriptors, environ, (*HANDLED, *IGNORED))
        except Exception as error:
            report("nothing is replaced", error)
        notifier.ready()


class Check:
    """A command of the new installation that says whether it would start; runs in a child.

    It is started as this program was, and as it will be when it takes over, and told to do what `words`
    say. Raises OSError where it cannot be started.
    """

    def __init__(self, words: list[str], shared: Shared, timeout: float) -> None:
        self._words = words
        self._command = origin.command()
        self._timer: Timer | None = None
        self._status: int | None = None  # once it has ended
        self._output = unnamed_file("check")
        try:
            self._pid = shared.children.fork(self._main, self._ended)
        except BaseException:
            close(self._output)
            raise
        try:
            self._timer = shared.loop.call_later(
                timeout, lambda: shared.children.signal(self._pid, signal.SIGKILL)
            )
        except BaseException:
            shared.children.signal(self._pid, signal.SIGKILL)
            close(self._output)
            raise

    @property
    def is_over(self) -> bool:
        """Whether it has ended, be that known to who began it or not."""
        return self._status is not None

    def conclude(self) -> bool:
        """Log what it has printed if it failed; return whether the new installation would start.

        May be called again, where there was no memory for all of it.
        """
        lines: list[str] = []
        if self._status:
            with suppress(OSError):
                lines = contents(self._output, MOST_OUTPUT).splitlines()
            lines.append(f"the check {ending(self._status)}, so nothing is replaced")
        for line in lines:
            log.error("%s", line)
        close_one(self._output)
        return not self._status

    def _main(self) -> int:
        os.dup2(self._output, 1)
        os.dup2(self._output, 2)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        command = self._command
        try:
            with origin.in_folder():
                os.execve(command[0], command, os.environ | origin.instead(self._words))
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode(errors="backslashreplace"))
        return CANNOT_START

    def _ended(self, status: int) -> None:
        self._status = status
        if self._timer is not None:
            self._timer.cancel()
