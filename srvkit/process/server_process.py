"""The process of one forking server, whose parent is no supervisor: `--single`, or a program that embeds it.

Nothing forks beside threads, so it has one of its own. It says over a channel that it is ready, or why not,
and is told there to stop: see `worker.reporting`.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from time import monotonic, sleep

from srvkit.config.compose import Plan
from srvkit.net.closing import close_one
from srvkit.net.event_loop import wait_for
from srvkit.net.listener import Listener
from srvkit.plugins.manager import Plugins
from srvkit.process.channel import Channel, Message, open_channel
from srvkit.process.child import begin, end_group
from srvkit.process.signals import IGNORED_SIGNALS, hold_back_only
from srvkit.process.worker.reporting import ReportingWorker, keep_from_forks, run_and_report
from srvkit.process.worker.worker import FORCED

log = logging.getLogger("srvkit.process")

SHORT = 0.02  # seconds between looks at a process whose end the kernel cannot announce
HEARD = (signal.SIGTERM, signal.SIGQUIT)  # by the process; what else there is of signals is for its parent


class ServerProcess:
    """Begins the process of a server, whose listeners are in `bound`; whoever makes it reaps it.

    Raises OSError where there is no process for it.
    """

    def __init__(
        self, plan: Plan, bound: dict[str, list[Listener]], plugins: Plugins, drain_timeout: float
    ) -> None:
        self.name = plan.name
        self.listeners = bound.pop(plan.name)
        self._drain_timeout = drain_timeout
        self._is_told = False  # whether it was told to drain
        self._is_ready = False
        self._errors: list[str] = []
        # With which it says that it ends: somebody else may wait for it first, or the system (SIG_IGN).
        self._status: int | None = None
        self.channel, channel = open_channel()
        parent = _end_of(os.getpid())
        worker = partial(_worker, plan, self.listeners, plugins, drain_timeout, channel, parent)
        try:
            self.pid = begin(partial(_serve, plan.name, worker, self.channel, channel, bound))
        except BaseException:
            self.channel.close()
            raise
        finally:
            channel.close()
            if parent is not None:
                close_one(parent)
        for listener in self.listeners:
            listener.socket.close()  # its file is removed at the end, if the process did not get to it
        self.pidfd = _end_of(self.pid)

    def drain(self, patience: float = 0.0) -> None:
        if not self._is_told:  # a second signal would mean more, and patience it has itself
            self._is_told = True
            self._tell({"do": "stop", "timeout": self._drain_timeout}, signal.SIGTERM)

    def abort_all(self) -> int:
        self._tell({"do": "cut"}, signal.SIGQUIT)
        return 0  # the process counts and reports them itself

    def stop_serving(self) -> None:
        self._signal(signal.SIGKILL)

    def wait_ready(self) -> str:
        """Wait until clients can connect and return "", or why the process has ended instead."""
        while not (self._is_ready or self._errors or self._status is not None):
            message = self.channel.receive()
            if message is None:
                break
            self.heard(message)
        return "" if self._is_ready else "\n".join(self._errors) or f"{self.name}: its process died"

    def heard(self, message: Message) -> str:
        """Take note of what it says; return what has happened, "" for what a plugin may have said there."""
        match message:
            case {"event": "ready"}:
                self._is_ready = True
            case {"event": "failed", "errors": [*errors]}:
                self._errors = [str(error) for error in errors]
            case {"event": "ended", "status": int(status)}:
                self._status = status
            case _:
                return ""
        return str(message["event"])

    def has_ended(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds (None: without end) for the end of the process."""
        if self.pidfd is not None:
            return wait_for(self.pidfd, timeout)
        deadline = None if timeout is None else monotonic() + timeout
        with suppress(ChildProcessError):  # somebody else has waited for it
            while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if deadline is not None and monotonic() >= deadline:
                    return False
                sleep(SHORT)
        return True

    def reap(self) -> int:
        """Wait for the end, clean up, and return the exit status; negative for a signal."""
        self.has_ended(None)
        while (message := self.channel.receive(wait=False)) is not None:
            self.heard(message)
        if self._status is None:  # it did not get to the end, and so not to what it has forked either
            end_group(self.pid)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # the program ignores SIGCHLD, or has waited for it
            status = FORCED if self._status is None else self._status
        self.channel.close()
        if self.pidfd is not None:
            close_one(self.pidfd)
        for listener in self.listeners:
            listener.close()
        return status

    def _tell(self, message: Message, number: int) -> None:
        """Say it; by a signal as long as nobody hears what is said."""
        if not (self._is_ready and self.channel.send(message)):
            self._signal(number)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.pidfd is None:
                os.kill(self.pid, number)
            else:  # not by its number, which may be another's once somebody else has waited for it
                signal.pidfd_send_signal(self.pidfd, number)


def _end_of(pid: int) -> int | None:
    """Return a descriptor that is readable when a process has ended; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # no such call, or not permitted
        return None


# ---- in the process


def _serve(
    name: str,
    worker: partial[ReportingWorker],
    parents: Channel,
    channel: Channel,
    others: Mapping[str, list[Listener]],
) -> int:
    hold_back_only(*HEARD, *IGNORED_SIGNALS)
    parents.close_in_child()
    keep_from_forks(channel)
    for listener in (listener for listeners in others.values() for listener in listeners):
        listener.close_in_child()
    status = FORCED
    try:
        status = run_and_report(name, channel, worker)
    except BaseException:
        log.exception("%s: broke", name)
    finally:
        channel.send_blocking({"event": "ended", "status": status})
    return status


def _worker(
    plan: Plan,
    listeners: list[Listener],
    plugins: Plugins,
    drain_timeout: float,
    channel: Channel,
    parent: int | None,
) -> ReportingWorker:
    try:
        server = plan.build(listeners)
        worker = ReportingWorker(channel, [server], plugins, drain_timeout, HEARD, IGNORED_SIGNALS)
    except OSError as error:
        log.error("%s: cannot run: %s", plan.name, error.strerror or error)
        raise
    if parent is not None:  # a process that the parent has forked may hold on to the channel
        worker.watch(parent, worker.cut)  # becomes readable when the parent ends, however it does
    return worker
