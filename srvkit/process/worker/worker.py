"""A process that serves: its main thread for signals and deadlines, each server's loop in a thread.

A forking server is alone in its process and has its loop in the main thread: nothing forks beside
threads. The worker knows servers by their life (`serving`), not by what they serve.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from srvkit.concurrency import monkey_patching as monkey
from srvkit.errors import ListenError, SrvkitError
from srvkit.net.address import display
from srvkit.net.event_loop import EventLoop, Timer
from srvkit.plugins.manager import Plugins
from srvkit.plugins.process_state import Interpreter
from srvkit.process.signals import Signals, SignalsOfChildren
from srvkit.process.worker.lifespan import serve_until_stopped
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.process")

CLEAN, FORCED, CANNOT_START = 0, 1, 3  # exit statuses, the worse the greater
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


class Served(Protocol):
    """What a worker drains and cuts: a server, or a process that has one."""

    name: str

    def drain(self, patience: float = 0.0) -> None:
        """Accept nothing new, let open requests finish, then end.

        With patience, wait for who has just connected, until it is called again without.
        """

    def abort_all(self) -> int:
        """End what is open; return how many connections that were."""

    def stop_serving(self) -> None:
        """End in any case."""


class Worker:
    """Runs servers until it is told to stop.

    The first TERM or INT drains: no new connections, open ones have `drain_timeout` seconds. The
    second one, or QUIT, cuts what is left. `run` returns the exit status: 0 when every connection
    finished, 1 when some were cut or a server broke, 3 when one could not start.
    """

    patience = 1.0  # seconds in which who has just connected may say a first word, when the worker stops
    after_the_cut = 1.0  # seconds for handlers to notice that their connection was cut

    def __init__(
        self,
        servers: Sequence[TCPServer],
        plugins: Plugins,
        drain_timeout: float,
        signals: Sequence[int] = STOP_SIGNALS,
        ignored: Sequence[int] = (),
    ) -> None:
        self.pid = os.getpid()
        self.servers = list(servers)
        self.status = CLEAN
        self.failure = ""  # the first reason why something could not start or broke
        self._plugins = plugins
        self._drain_timeout = drain_timeout
        self._signals = Signals(*signals, ignored=ignored)
        self._ignored = ignored
        self._interpreter = Interpreter.now()
        self._loop = EventLoop()
        self._serving: set[Served] = set(self.servers)
        self._stopping = False
        self._deadline: Timer | None = None
        self.on_ready: Callable[[], object] = bool  # called in a server's thread once clients can connect

    def __repr__(self) -> str:
        state = "stopping" if self._stopping else "running"
        return f"<Worker {self.pid} {state}: {', '.join(server.name for server in self.servers)}>"

    def run(self) -> int:
        """Serve until stopped; in the main thread."""
        monkey.no_more()
        with self._signals as signals, self._loop as loop:
            loop.watch(signals.fileno(), lambda: self._signalled(signals.read()))
            try:
                signals.breaking = True
                self._plugins.hook.srvkit_worker_start(worker=self)
                signals.breaking = False
            except BaseException as error:
                signals.breaking = False
                self._complain("srvkit_worker_start of a plugin", error, started=False)
                self._give_up(loop)
                return self.status
            if not self._await_turn():
                self._give_up(loop)
            elif any(not server.fork_beside_threads for server in self.servers):
                (server,) = self.servers
                server.child_signals = SignalsOfChildren(self._ignored)
                server.use_loop(loop)
                self._serve(server)
                loop.wait(0)  # its own report of its end
            else:
                self._serve_in_threads(loop)
            signals.breaking = True
            self._plugins.notify("srvkit_worker_stop", worker=self)
            signals.breaking = False
        return self.status

    def stop(self, drain_timeout: float | None = None) -> None:
        """Drain, and cut what is left after `drain_timeout` seconds (None: as configured); from the loop."""
        if self._stopping:
            return
        self._stopping = True
        seconds = self._drain_timeout if drain_timeout is None else drain_timeout
        self._deadline = self._loop.call_later(seconds, self.cut)
        for served in list(self._serving):
            served.drain(self.patience)
        self._loop.call_later(self.patience, self._end_silent)

    def retire(self, seconds: float, drain_timeout: float) -> None:
        """Accept nothing more, serve what there is to its end, and stop after so many seconds.

        From the loop.
        """
        if self._stopping:
            return
        if not seconds:
            self.stop(drain_timeout)
            return
        for server in self.servers:
            server.retire()
        self._loop.call_later(seconds, partial(self.stop, drain_timeout))

    def _end_silent(self) -> None:
        for served in list(self._serving):
            served.drain()

    def cut(self) -> None:
        """End what is still open, now; from the loop."""
        self._stopping = True
        if self._deadline is not None:
            self._deadline.cancel()
        for served in list(self._serving):
            served.drain()
            count = served.abort_all()
            if count:
                self.worsen(FORCED)
                plural = "s" * (count != 1)
                log.warning("%s: cut %d connection%s that had not finished", served.name, count, plural)
        self._deadline = self._loop.call_later(self.after_the_cut, self._leave_behind)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback()` in the main thread, once, when `fd` is readable."""

        def ready() -> None:
            self._loop.unwatch(fd)
            callback()

        self._loop.watch(fd, ready)

    def look_after(self, served: Served) -> None:
        """Drain and cut this along with the servers; whoever adds it reports its end by `ended`."""
        self._serving.add(served)

    def ended(self, served: Served) -> None:
        """Note that something has ended; when it was not told to, so does everything else. From the loop."""
        self._serving.discard(served)
        if not self._stopping:
            if self._serving:  # half of what was configured is not what was asked for
                others = ", ".join(sorted(other.name for other in self._serving))
                log.info("%s: has ended, so %s must stop too", served.name, others)
            self.stop()

    def announce(self, server: TCPServer) -> None:
        """Say that clients can connect; in the server's thread."""
        log.info("%s: listening on %s", server.name, ", ".join(map(where, server.listeners)))

    def worsen(self, status: int) -> None:
        """Let the exit status be at least this bad."""
        self.status = max(self.status, status)

    def _await_turn(self) -> bool:
        """Return whether to serve, once that is known."""
        return True

    def _signalled(self, numbers: list[int]) -> None:
        for number in numbers:
            at_once = self._stopping or number == signal.SIGQUIT
            log.info("%s: stopping%s", signal.Signals(number).name, " at once" * at_once)
            if at_once:
                self.cut()
            else:
                self.stop()

    def _serve_in_threads(self, loop: EventLoop) -> None:
        for server in self.servers:
            # Daemons: a handler that hangs must not keep the process once everything else has ended.
            name = f"server {server.name}"
            monkey.start_thread(partial(self._serve, server), name)
        while self._serving:
            loop.wait()

    def _serve(self, server: TCPServer) -> None:
        started = False

        def ready() -> None:
            nonlocal started
            started = True
            if not server.fork_beside_threads:  # its startup() was run in the main thread
                self._signals.take_back()
            self._interpreter.put_back()
            self._signals.breaking = False
            self.announce(server)
            self.on_ready()

        try:
            self._signals.breaking = not server.fork_beside_threads  # its startup() has the main thread
            serve_until_stopped(server, self._plugins, ready)
        except SrvkitError as error:
            self._signals.breaking = False
            if self._stopping and not started and isinstance(error, ListenError):
                log.info("%s: stopped before it was listening", server.name)  # its door is closed already
            else:
                log.error("%s: %s", server.name, error)
                self._failed(str(error), started)
        except BaseException as error:  # a SystemExit in a thread would end it, and nobody would know
            self._signals.breaking = False
            self._complain(server.name, error, started)
        self._loop.call_soon(lambda: self.ended(server))

    def _complain(self, who: str, error: BaseException, started: bool) -> None:
        if isinstance(error, KeyboardInterrupt):
            log.warning("%s: interrupted by a signal", who)
        else:
            log.exception("%s: %s: %s", who, "broke" if started else "could not start", _in_words(error))
        self._failed(f"{'broke' if started else 'could not start'}: {_in_words(error)}", started)

    def _failed(self, reason: str, started: bool) -> None:
        self.failure = self.failure or reason
        self.worsen(FORCED if started else CANNOT_START)

    def _give_up(self, loop: EventLoop) -> None:
        for server in self.servers:
            server.server_close()
            self._serving.discard(server)
        self.stop()
        while self._serving:
            loop.wait()

    def _leave_behind(self) -> None:
        for served in list(self._serving):
            log.warning("%s: did not stop in time, abandoned", served.name)
            served.stop_serving()
            self.worsen(FORCED)
        self._serving.clear()


def where(listener: Any) -> str:
    """Return where a listener can be reached, with the port that the kernel has chosen."""
    is_given = listener.address.scheme in ("fd", "systemd")
    if not (is_given or listener.is_internet):
        return str(listener.address)
    try:
        bound = display(listener.sockname())
    except OSError:  # for want of memory, say: it serves all the same
        return str(listener.address)
    return f"{listener.address} ({bound})" if is_given else f"{listener.address.scheme}://{bound}"


def _in_words(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())
