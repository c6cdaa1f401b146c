"""`srvkit run` without a supervisor: all servers in this process, but each forking one in its own.

It starts processes and ends them; what they do is `worker`'s.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence

from srvkit.config.compose import Plan
from srvkit.net.listener import Listener
from srvkit.plugins.manager import Plugins
from srvkit.process.channel import Message
from srvkit.process.child import StartError, ending, refuse_threads
from srvkit.process.server_process import ServerProcess
from srvkit.process.signals import hold_back, let_through
from srvkit.process.systemd import Notifier
from srvkit.process.worker.worker import FORCED, STOP_SIGNALS, Worker
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.process")

LOOK_AGAIN = 0.5  # seconds between looks at a process whose end the kernel cannot announce


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


def _announce_threads() -> None:
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.current_thread() and not thread.daemon
    ]
    if left:
        log.warning("stopped; the process ends when these threads of a plugin do: %s", ", ".join(left))


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

        def heard(message: Message, _: list[int]) -> None:
            if process.heard(message) == "ready":
                self._one_is_ready()

        def reap() -> None:
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

        process.channel.attach(self._loop, heard, _nothing)
        if process.pidfd is not None:
            self.watch(process.pidfd, reap)
        else:
            look()

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


def _nothing() -> None:
    pass
