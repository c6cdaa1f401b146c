"""Serve inside somebody else's program: no signals, no logging set up, no process of one's own.

A forking server is the exception: nothing forks beside threads, so it gets a process, and the program
must have one thread only when it starts it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from srvkit.config import loader
from srvkit.config.certificates import load_certificates
from srvkit.config.compose import Plan, compose
from srvkit.errors import ConfigError
from srvkit.net import unixpath
from srvkit.net.listener import Listener
from srvkit.plugins.manager import Offer, Plugins, make_manager
from srvkit.process.child import StartError
from srvkit.process.server_process import ServerProcess
from srvkit.process.signals import interrupts_held_back
from srvkit.process.worker.lifespan import serve_until_stopped
from srvkit.server.stats import telling_ends
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.process")

LONG = 3600.0  # seconds; stop() is who limits the draining
EMBEDDED = "embedded"  # the name of a handler that was given as a class


class Recorder(Protocol):
    """A plugin that also hears of each request's end; in a forked child where the request was there."""

    def request_ended(self, peer: Any) -> None:
        """Note that a request is over; `peer` is the address of who has connected."""


class EmbeddedServer:
    """A server that runs beside the program; made by `serve`, stopped by `stop` or as a context manager.

    `address` is what the first listener is bound to: (host, port), or a path; `addresses` are all.
    """

    def __init__(self, plan: Plan, plugins: Plugins) -> None:
        self._plan = plan
        self._plugins = plugins
        listeners = plan.bind()
        self.addresses = [_address(listener) for listener in listeners]
        self.address = self.addresses[0]
        self.server: TCPServer | None = None  # None where it runs in a process of its own
        self._process: ServerProcess | None = None
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._pid = os.getpid()
        if plan.server_class.fork_beside_threads:
            self.server = plan.build(listeners)
            self._thread = threading.Thread(target=self._serve, name=f"server {plan.name}", daemon=True)
            try:
                self._thread.start()
                self._ready.wait()
            except BaseException:  # Ctrl-C, and nobody would have the server to stop it
                self.server.stop_serving()
                raise
            if self._error is not None:
                self._thread.join()
                raise self._error
        else:
            self._start_process(listeners)

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self._plan.server_class.__name__} {self.address}>"

    def stop(self, drain_timeout: float = 1.0) -> bool:
        """Accept no more connections, give open ones `drain_timeout` seconds, then cut them.

        Returns whether all had finished. Calling it again does nothing. A handler that calls it goes on at
        once, with False: its own request has not finished, and gets its reply.
        """
        if os.getpid() != self._pid:
            self._stop_from_child()
            return False
        if self._process is not None:
            return self._stop_process(drain_timeout)
        if self.server is None or not self._thread.is_alive():
            return True
        if self.server.runs_here():
            # Not by a timer of the loop, which this handler may have to itself.
            threading.Thread(target=self.stop, args=(drain_timeout,), daemon=True).start()
            return False
        self.server.drain()
        self._thread.join(drain_timeout)
        cut = self.server.abort_all() if self._thread.is_alive() else 0
        self._thread.join(1.0)
        if self._thread.is_alive():
            log.warning("%s: a handler did not stop in time, abandoned", self._plan.name)
            self.server.stop_serving()
        return not cut

    def _serve(self) -> None:
        assert self.server is not None
        try:
            serve_until_stopped(self.server, self._plugins, self._ready.set)
        except BaseException as error:
            if self._ready.is_set():
                log.exception("%s: broke", self._plan.name)
            self._error = error
        finally:
            self._ready.set()

    def _start_process(self, listeners: list[Listener]) -> None:
        bound = {self._plan.name: listeners}
        with interrupts_held_back() as let_go:  # or Ctrl-C could leave a process that nobody knows
            process = ServerProcess(self._plan, bound, self._plugins, LONG)
            try:
                let_go()
                reason = process.wait_ready()
            except BaseException:
                process.stop_serving()
                process.reap()
                raise
        if reason:
            process.reap()
            raise StartError(reason)
        self._process = process

    def _stop_from_child(self) -> None:
        """Have the process of a forking server drain, from one that it has forked."""
        if self._process is not None:
            self._process.drain()
        elif self.server is None:  # not known yet when that process began
            os.kill(os.getppid(), signal.SIGTERM)

    def _stop_process(self, drain_timeout: float) -> bool:
        assert self._process is not None
        process, self._process = self._process, None
        try:
            for end, seconds in (
                (process.drain, drain_timeout),
                (process.abort_all, 2.0),
                (process.stop_serving, None),
            ):
                end()
                if process.has_ended(seconds):
                    break
        except BaseException:  # Ctrl-C, and nobody knows of the process any more
            with interrupts_held_back():
                process.stop_serving()
                process.reap()
            raise
        return process.reap() == 0


def serve(
    handler: type[Any] | str,
    *addresses: str,
    concurrency: str | Mapping[str, Any] = "threading",
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    **settings: Any,
) -> EmbeddedServer:
    """Start a server beside the program and return it, ready for clients.

    `handler` is a class, a plugin's name or "package.module:Class", with `options`; `addresses` and
    `settings` are those of a `[server.NAME]` table: `framing="lines"`, `limits={"max_connections": 10}`.
    `plugins` are folders, files and import names to load. Raises ConfigError, PluginError, ListenError,
    or whatever the handler's `startup` raises; then nothing is left open.
    """
    settings["concurrency"] = dict(concurrency) if isinstance(concurrency, Mapping) else concurrency
    return start(handler, addresses, settings, options=options, plugins=plugins)


def start(
    handler: type[Any] | str,
    addresses: Sequence[str],
    settings: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    observer: Recorder | None = None,
) -> EmbeddedServer:
    """Start a server as `serve` does; `observer` sees what its handlers raise and whose requests end."""
    if not isinstance(handler, (str, type)):
        raise ConfigError(f"the handler is an object of type {type(handler).__name__}, not a class or a name")
    named = handler if isinstance(handler, str) else EMBEDDED
    table = {"listen": list(addresses), "handler": {"name": named, **(options or {})}, **settings}
    config, problems = loader.from_table({"server": {EMBEDDED: table}})
    loaded = make_manager(plugins)
    if observer is not None:
        loaded.pm.register(observer, "the observer")
    if not isinstance(handler, str):
        loaded.handlers[EMBEDDED] = Offer(EMBEDDED, handler, "the program")
    plans = compose(config, loaded, problems, load_certificates(config, problems))
    problems.raise_if_any()
    (plan,) = plans
    if observer is not None:
        watched = telling_ends(plan.server_class, observer.request_ended)
        plan = dataclasses.replace(plan, server_class=watched)
    if not plan.server_class.fork_beside_threads and threading.active_count() > 1:
        others = ", ".join(t.name for t in threading.enumerate() if t is not threading.main_thread())
        raise ConfigError(
            f"concurrency = {plan.model!r} forks, and forking beside other threads ({others}) is not safe: "
            "start the server before them, choose another model, or let `srvkit run` serve it"
        )
    return EmbeddedServer(plan, loaded)


def _address(listener: Listener) -> Any:
    if listener.address.is_unix:
        path = listener.address.path
        # Where only the way from here is short enough for a client, it is that.
        return os.path.relpath(path) if unixpath.is_long(path) else path
    address = listener.socket.getsockname()  # of an inherited Unix socket it is a path, too
    return address[:2] if isinstance(address, tuple) else address
