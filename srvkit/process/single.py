"""`srvkit run` without a supervisor: all servers in this process, but each forking one in its own.

It starts processes and ends them; what they do is `worker`'s.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import NoReturn

from srvkit.config.compose import Plan
from srvkit.errors import SrvkitError
from srvkit.net.closing import close_one
from srvkit.net.event_loop import wait_for
from srvkit.net.listener import Listener
from srvkit.plugins.manager import Plugins
from srvkit.process.child_reaper import ending
from srvkit.process.signals import IGNORED_SIGNALS, fork_afresh, hold_back, let_through
from srvkit.process.systemd import Notifier
from srvkit.process.worker import FORCED, STOP_SIGNALS, Worker
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.process")

SHORT, LOOK_AGAIN = 0.02, 0.5  # seconds between looks at a process whose end the kernel cannot announce
# What the process of a server writes to its parent: that it is ready, or why it failed; and when it ends,
# with which status, since somebody else may wait for it first: another reaper, or the system (SIG_IGN).
READY = b"\n"
END = b"\0"
APART_SIGNALS = (signal.SIGTERM, signal.SIGQUIT)  # what a process of a server hears; its parent says the rest


class StartError(SrvkitError):
    """The servers cannot start as they are configured."""

    exit_status = 3


def run(
    plans: Sequence[Plan], plugins: Plugins, drain_timeout: float, notifier: Notifier | None = None
) -> int:
    """Bind everything, serve until told to stop, and return the exit status; for a process of its own.

    `notifier` hears when all servers are ready, that the loop goes round, and of the stop.
    Raises ListenError before anything has listened; StartError where forking would not be safe or the
    system refuses. In any case sockets and their files are gone afterwards, and a signal that still
    comes has its default effect: there is nothing left to put away.
    """
    if any(_forks(plan) for plan in plans):
        refuse_threads()
    signals = _stop_signals()
    hold_back(*signals)
    listeners: list[Listener] = []
    try:
        bound = bind_all(plans)
        listeners = [listener for some in bound.values() for listener in some]
        status = _start(plans, bound, plugins, drain_timeout, notifier or Notifier(), signals).run()
    except OSError as error:
        raise StartError(f"cannot run: {error.strerror or error}") from error
    finally:
        for listener in listeners:
            listener.close()
        let_through(*signals)
    _announce_threads()
    return status


def _stop_signals() -> tuple[int, ...]:
    """Return what stops the process: TERM and its like, and HUP unless it was started to outlive that."""
    hangup = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else ()
    return (*STOP_SIGNALS, *hangup)


def _start(
    plans: Sequence[Plan],
    bound: dict[str, list[Listener]],
    plugins: Plugins,
    drain_timeout: float,
    notifier: Notifier,
    signals: Sequence[int],
) -> RunningWorker:
    apart = [plan for plan in plans if _forks(plan)] if len(plans) > 1 else []
    processes: list[ServerProcess] = []
    try:
        for plan in apart:
            processes.append(ServerProcess(plan, bound, plugins, drain_timeout))
        servers = [plan.build(bound[plan.name]) for plan in plans if plan not in apart]
        worker = RunningWorker(servers, plugins, drain_timeout, notifier, signals)
        for process in processes:
            worker.start(process)
    except BaseException:
        for process in processes:
            process.stop_serving()
            process.reap()
        raise
    return worker


def bind_all(plans: Sequence[Plan]) -> dict[str, list[Listener]]:
    """Bind every socket of every server before any of them listens; all or none."""
    bound: dict[str, list[Listener]] = {}
    try:
        for plan in plans:
            bound[plan.name] = plan.bind()
    except BaseException:
        for listeners in bound.values():
            for listener in listeners:
                listener.close()
        raise
    return bound


def _forks(plan: Plan) -> bool:
    return not plan.server_class.fork_beside_threads


def refuse_threads() -> None:
    """Raise StartError where there are other threads than the main one: forking would not be safe."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise StartError(
            f"a plugin started threads when it was imported ({', '.join(others)}), and forking beside "
            "threads is not safe: start them where a connection is handled, or choose another concurrency"
        )


def _announce_threads() -> None:
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.current_thread() and not thread.daemon
    ]
    if left:
        log.warning("stopped; the process ends when these threads of a plugin do: %s", ", ".join(left))


class ServerProcess:
    """The process of one forking server, as its parent sees it.

    It leads a session, and so a process group: what it forked can be ended where it could not do that itself.
    """

    def __init__(
        self, plan: Plan, bound: dict[str, list[Listener]], plugins: Plugins, drain_timeout: float
    ) -> None:
        self.name = plan.name
        self.listeners = bound.pop(plan.name)
        self._drains = False
        parent, self._lifeline = _end_of(os.getpid()), None
        if parent is None:
            parent, self._lifeline = os.pipe()
        self.ready, ready = os.pipe()  # readable when there is something for `wait_ready`
        self._status: int | None = None  # with which it says that it ends
        self.pid = fork_afresh(*APART_SIGNALS, *IGNORED_SIGNALS)
        if self.pid == 0:
            os.setsid()  # no job of a terminal: it could not read there, nor always write
            close_one(self.ready)
            if self._lifeline is not None:
                close_one(self._lifeline)
            for listener in (listener for listeners in bound.values() for listener in listeners):
                listener.close_in_child()
            _serve_and_exit(plan, self.listeners, plugins, drain_timeout, parent, ready)
        close_one(parent)
        close_one(ready)
        for listener in self.listeners:
            listener.socket.close()  # its file is removed at the end, if the process did not get to it
        self.pidfd = _end_of(self.pid)

    def drain(self, patience: float = 0.0) -> None:
        if not self._drains:  # a second signal would mean more, and patience it has itself
            self._drains = True
            self._signal(signal.SIGTERM)

    def abort_all(self) -> int:
        self._signal(signal.SIGQUIT)
        return 0  # the process counts and reports them itself

    def stop_serving(self) -> None:
        self._signal(signal.SIGKILL)

    def wait_ready(self) -> str:
        """Wait until clients can connect and return "", or why the process has ended instead."""
        news = self._news()
        return "" if news == READY else news.decode() or "its process died"

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
        os.set_blocking(self.ready, False)
        with suppress(BlockingIOError):
            while self._news():
                pass
        if self._status is None:  # it did not get to the end, and so not to what it has forked either
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # the program ignores SIGCHLD, or has waited for it
            status = FORCED if self._status is None else self._status
        for fd in (self.pidfd, self.ready, self._lifeline):
            if fd is not None:
                close_one(fd)
        for listener in self.listeners:
            listener.close()
        return status

    def _news(self) -> bytes:
        """Return what it says next, and note what it says about its end."""
        news, end, status = os.read(self.ready, select.PIPE_BUF).partition(END)
        if end:
            self._status = int(status)
        return news

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


def _serve_and_exit(
    plan: Plan,
    listeners: list[Listener],
    plugins: Plugins,
    drain_timeout: float,
    parent: int,
    ready: int,
) -> NoReturn:
    status = FORCED
    try:
        worker = Worker([plan.build(listeners)], plugins, drain_timeout, APART_SIGNALS, IGNORED_SIGNALS)
        worker.on_ready = lambda: os.write(ready, READY)
        worker.watch(parent, worker.cut)  # becomes readable when the parent ends, however it does
        status = worker.run()
        with suppress(OSError):  # nobody may be there any more
            os.write(ready, worker.failure.encode(errors="replace").replace(END, b" ")[: select.PIPE_BUF])
    except OSError as error:
        log.error("%s: cannot run: %s", plan.name, error.strerror or error)
    except BaseException:
        log.exception("%s: broke", plan.name)
    finally:
        with suppress(OSError):
            os.write(ready, END + b"%d" % status)
        os._exit(status)


class RunningWorker(Worker):
    """A worker that also looks after the processes of forking servers, and tells systemd of it all."""

    def __init__(
        self,
        servers: Sequence[TCPServer],
        plugins: Plugins,
        drain_timeout: float,
        notifier: Notifier,
        signals: Sequence[int],
    ) -> None:
        super().__init__(servers, plugins, drain_timeout, signals)
        self._notifier = notifier
        self._unready = len(servers)
        self.on_ready = lambda: self._loop.call_soon(self._one_is_ready)
        notifier.feed_watchdog(self._loop)

    def start(self, process: ServerProcess) -> None:
        self.look_after(process)
        self.after_the_cut = 2 * Worker.after_the_cut  # those processes wait for handlers themselves
        self._unready += 1

        def ready() -> None:
            if not process.wait_ready():
                self._one_is_ready()

        def reap() -> None:
            self._loop.unwatch(process.ready)
            status = process.reap()
            if status:
                level = logging.INFO if self._stopping else logging.ERROR
                log.log(level, "%s: its process %s", process.name, ending(status))
                self.worsen(status if status > 0 else FORCED)
            self.ended(process)

        def look() -> None:
            if process.has_ended(0):
                reap()
            else:
                self._loop.call_later(LOOK_AGAIN, look)

        if process.pidfd is not None:
            self.watch(process.pidfd, reap)
        else:
            look()
        self.watch(process.ready, ready)

    def stop(self, drain_timeout: float | None = None) -> None:
        """Tell systemd, then as any worker."""
        if not self._stopping:
            self._announce_stop(self._drain_timeout if drain_timeout is None else drain_timeout)
        super().stop(drain_timeout)

    def cut(self) -> None:
        """Tell systemd, then as any worker."""
        self._announce_stop(0.0)
        super().cut()

    def _one_is_ready(self) -> None:
        self._unready -= 1
        if not self._unready and not self._stopping:
            self._notifier.status("serving")
            self._notifier.ready()

    def _announce_stop(self, seconds: float) -> None:
        self._notifier.stopping()
        self._notifier.status("stopping")
        self._notifier.extend_timeout(seconds + 2 * self.after_the_cut)
