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
from typing import NoReturn

from srvkit.config.compose import Plan
from srvkit.errors import SrvkitError
from srvkit.net.listener import Listener
from srvkit.plugins.manager import Plugins
from srvkit.process.worker import FORCED, Worker

log = logging.getLogger("srvkit.process")


class StartError(SrvkitError):
    """The servers cannot start as they are configured."""

    exit_status = 3


def run(plans: Sequence[Plan], plugins: Plugins, drain_timeout: float) -> int:
    """Bind everything, serve until told to stop, and return the exit status.

    Raises ListenError before anything has listened; StartError where forking would not be safe.
    """
    bound = bind_all(plans)
    apart = [plan for plan in plans if _forks(plan)] if len(plans) > 1 else []
    if any(_forks(plan) for plan in plans):
        _refuse_threads()
    processes = [ServerProcess(plan, bound, plugins, drain_timeout) for plan in apart]
    servers = [plan.build(bound[plan.name]) for plan in plans if plan not in apart]
    worker = RunningWorker(servers, plugins, drain_timeout)
    for process in processes:
        worker.start(process)
    return worker.run()


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


def _refuse_threads() -> None:
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise StartError(
            f"a plugin started threads when it was imported ({', '.join(others)}), and forking beside "
            "threads is not safe: start them in the handler's startup(), or choose another concurrency"
        )


class ServerProcess:
    """The process of one forking server, as its parent sees it."""

    def __init__(
        self, plan: Plan, bound: dict[str, list[Listener]], plugins: Plugins, drain_timeout: float
    ) -> None:
        self.name = plan.name
        self.listeners = bound.pop(plan.name)
        lifeline, self._lifeline = os.pipe()
        self._ready, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._lifeline)
            os.close(self._ready)
            for listener in (listener for listeners in bound.values() for listener in listeners):
                listener.socket.close()
            _serve_and_exit(plan, self.listeners, plugins, drain_timeout, lifeline, ready)
        os.close(lifeline)
        os.close(ready)
        for listener in self.listeners:
            listener.socket.close()  # its file is removed at the end, if the process did not get to it
        self.pidfd = os.pidfd_open(self.pid)

    def begin_drain(self) -> None:
        self._signal(signal.SIGTERM)

    def cut_off(self) -> int:
        self._signal(signal.SIGQUIT)
        return 0  # the process counts and reports them itself

    def stop_serving(self) -> None:
        self._signal(signal.SIGKILL)

    def wait_ready(self) -> bool:
        """Wait until clients can connect; False where the process ended instead."""
        return os.read(self._ready, 1) != b""

    def has_ended(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds (None: without end) for the end of the process."""
        return bool(select.select([self.pidfd], [], [], timeout)[0])

    def reap(self) -> int:
        """Wait for the end, clean up, and return the exit status; negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        os.close(self._lifeline)
        os.close(self._ready)
        for listener in self.listeners:
            listener.close()
        return os.waitstatus_to_exitcode(status)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _serve_and_exit(
    plan: Plan,
    listeners: list[Listener],
    plugins: Plugins,
    drain_timeout: float,
    lifeline: int,
    ready: int,
) -> NoReturn:
    status = FORCED
    try:
        # Ctrl-C reaches every process of the terminal; only the parent says what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        worker = Worker([plan.build(listeners)], plugins, drain_timeout, (signal.SIGTERM, signal.SIGQUIT))
        worker.on_ready = lambda: os.write(ready, b"1")
        worker.watch(lifeline, worker.cut)  # becomes readable only by its end: the parent is gone
        status = worker.run()
    except BaseException:
        log.exception("%s: broke", plan.name)
    finally:
        os._exit(status)


class RunningWorker(Worker):
    """A worker that also looks after the processes of forking servers."""

    after_the_cut = 2 * Worker.after_the_cut  # those processes wait for handlers themselves

    def start(self, process: ServerProcess) -> None:
        self.look_after(process)

        def reap() -> None:
            self._loop.unwatch(process.pidfd)
            status = process.reap()
            if status:
                level = logging.INFO if self._stopping else logging.ERROR
                log.log(level, "%s: its process ended with %d", process.name, status)
                self.status = max(self.status, status if status > 0 else FORCED)
            self.ended(process)

        self.watch(process.pidfd, reap)
