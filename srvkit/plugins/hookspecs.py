"""Every hook of srvkit: the map of what a plugin may add, refuse and watch.

A plugin is a module (or any object) with functions of these names, marked with `srvkit.hookimpl`;
each takes as many of the hook's arguments, by name, as it needs. The first group *offers* things by
name, the second stands at the door, the third only watches. This module knows who may call, not who
does; a hook that nobody implements costs nothing.
"""

from __future__ import annotations

from typing import Any

from pluggy import HookimplMarker, HookspecMarker

hookspec = HookspecMarker("srvkit")
hookimpl = HookimplMarker("srvkit")


@hookspec
def srvkit_handlers() -> dict[str, type] | None:
    """Offer handlers: a dict of names for `handler = "…"` to handler classes.

    Called once, in each worker and in the process that checks a configuration, right after all
    plugins were imported. Names are made of `a-z 0-9 - _ .`; the same name from two plugins is an
    error, except that a plugin of the configuration wins over an installed one. An exception, or a
    value that is not such a dict, is an error of the plugin: nothing starts.
    """


@hookspec
def srvkit_concurrency() -> dict[str, type] | None:
    """Offer concurrency models: a dict of names for `concurrency = "…"` to mixin classes.

    The mixin is put in front of the server class, as in `class S(ThreadingMixIn, TCPServer)`. Its
    attribute `handler_kinds` says what it can run: a frozenset out of "message", "blocking" and
    "async". When it is called, what names may be and what an error does: as in `srvkit_handlers`.
    """


@hookspec
def srvkit_framings() -> dict[str, type] | None:
    """Offer framings: a dict of names for `framing = "…"` to framing classes.

    The class is called with the rest of the table as keyword arguments: `{ name = "length-prefix",
    size = 4 }` becomes `LengthPrefix(size=4)`. When it is called, what names may be and what an
    error does: as in `srvkit_handlers`.
    """


@hookspec
def srvkit_configure(config: Any) -> None:
    """Look at the whole configuration, and veto it by raising.

    Called once, in each worker and in the process that checks a configuration, when it is valid by
    itself and before any server is made. `config` is frozen. A `ValueError` or a
    `srvkit.ConfigError` is reported as a problem of the configuration, anything else as an error of
    the plugin; either way nothing starts, and what runs keeps running.
    """


@hookspec
def srvkit_server_start(server: Any) -> None:
    """Prepare for a server: its sockets are bound, no connection has been taken.

    Called once per server, in the process and the thread that are going to run its loop. An
    exception keeps the server from starting.
    """


@hookspec
def srvkit_server_stop(server: Any) -> None:
    """Put away what belonged to a server: its last connection has ended or was cut.

    Called once per server for which `srvkit_server_start` was called, in the same process. An
    exception is logged with its traceback; the stop goes on.
    """


@hookspec
def srvkit_worker_start(worker: Any) -> None:
    """Prepare for a worker process: privileges are dropped, plugins imported, servers made.

    Called once in each worker, in its main thread, before any `srvkit_server_start`: the place to
    open what all servers of the process share. An exception keeps the worker from getting ready.
    """


@hookspec
def srvkit_worker_stop(worker: Any) -> None:
    """Put away what belonged to a worker process: all its servers have stopped.

    Called once in a worker that ends in order (not in one that is killed), in its main thread. An
    exception is logged with its traceback; the worker ends all the same.
    """


@hookspec
def srvkit_verify_request(server: Any, request: Any, client_address: Any) -> bool | None:
    """Refuse a connection or a datagram by returning False; anything else is no objection.

    Called in the thread of the server's loop, for every connection, before any thread, child or
    task exists for it: it must not block. Behind a proxy that speaks the PROXY protocol it is called
    when the header has come, with the address it names; with TLS, before the handshake. `request` is
    the connection's socket, or on datagrams the pair of data and socket; nothing may be read from it.
    All implementations are asked. An exception refuses, and is reported as an error of the server.
    """


@hookspec
def srvkit_connection_open(server: Any, client_address: Any) -> None:
    """Watch a connection (or datagram) begin: it was accepted, and its handler is about to be made.

    Called where the handler runs: in its thread, child process, task or greenlet, or in the loop's
    thread; under `pool` in the loop's thread for a message handler. `client_address` is empty where
    the peer has none. An exception is logged with its traceback; the connection goes on.
    """


@hookspec
def srvkit_connection_close(
    server: Any, client_address: Any, outcome: str, seconds: float, bytes_in: int, bytes_out: int
) -> None:
    """Watch a connection (or datagram) end: how, after how many seconds, after how many bytes each way.

    Called where `srvkit_connection_open` was called, under `forking` therefore in the child, exactly
    once for each of its calls. `outcome` is one word for how it ended, the same as in the log. An
    exception is logged with its traceback and changes nothing.
    """


@hookspec
def srvkit_error(server: Any, client_address: Any, error: BaseException) -> None:
    """Watch an exception that a handler let escape.

    Called where the handler ran, before `srvkit_connection_close`, beside srvkit's own log record.
    Not called for what is the peer's fault or its leaving. An exception is logged with its traceback
    and changes nothing.
    """
