"""Handlers written as coroutines: what they are given, and nothing of the loop that runs them.

A model with an event loop builds the handler, gives it its streams, and awaits `handle()`. Loops and
servers are not known here, so that a handler can be built and awaited in a test without either.
"""

from __future__ import annotations

from typing import Any

from srvkit.server.has_peer import HasPeer


class AsyncHandler(HasPeer):
    """Handle one connection in a coroutine; subclass it and write `async def handle(self)`.

    `self.reader` and `self.writer` are asyncio's streams (`StreamReader`, `StreamWriter`); besides there
    are `self.client_address`, `self.server`, `self.options` (an instance of a nested class `Options`) and
    `self.request`, the socket, and `self.peer`, all that is known of the client. The connection ends when
    `handle()` does, after what was written is out.

    Class attribute: `one_process` (False; True is for a handler that keeps state in its process: `workers`
    above 1 are then an error of the configuration).

    A peer that breaks a limit or vanishes makes the next read, or `drain()`, raise an OSError, which may
    be left alone: it is the peer's fault and one line in the log. A server that stops lets `handle()`
    finish, and cancels it when time is up.

    On datagrams `reader` holds the datagram, then its end, and all that was written leaves in one reply
    when `handle()` returns.

    A subclass may have an `__init__(self, *args, **kwargs)` that first calls
    `super().__init__(*args, **kwargs)` and then sets attributes. It only constructs: `handle()` is awaited
    when it has returned, with `reader` and `writer` in place.

    Without a server (`Shout()`) nothing runs: set `reader` and `writer` in a test and await `handle()`.
    """

    options: Any = None
    one_process = False
    reader: Any = None
    writer: Any = None

    def __init__(self, request: Any = None, client_address: Any = None, server: Any = None) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server

    @classmethod
    def startup(cls, server: Any) -> None:
        """Make what all connections share; once in each worker, before the first connection."""

    @classmethod
    def shutdown(cls, server: Any) -> None:
        """Release what all connections share; once in each worker, after the last connection."""

    async def handle(self) -> None:
        """Handle the connection."""
        raise NotImplementedError(f"{type(self).__name__} has no handle()")

    async def start_tls(self) -> None:
        """Encrypt the connection from here on; returns when the handshake is over.

        For servers with certificates and `begin = "handler"`; RuntimeError on others. Raises PeerError or
        OSError when the handshake fails, takes longer than `handshake_timeout`, or when the client has
        sent something behind its request for TLS.
        """
        await self.writer.start_tls()
