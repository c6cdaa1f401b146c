"""Handlers that do their own input and output, as the standard library has them.

A handler's constructor sees the request through: `setup()`, `handle()`, `finish()`. It knows its
server only by duck typing, so these also work on servers that are not srvkit's.
"""

from __future__ import annotations

import inspect
import io
import socket
from contextlib import suppress
from typing import Any, Literal

from srvkit.contracts import open_names
from srvkit.errors import PeerError
from srvkit.net.tls_context import encrypt
from srvkit.protocol.outcomes import handshake_outcome
from srvkit.server.async_handler import AsyncHandler
from srvkit.server.has_peer import HasPeer
from srvkit.server.message_handler import MessageHandler

HandlerKind = Literal["blocking", "message", "async"]


def kind_of(handler: Any) -> HandlerKind:
    """Return what a handler needs of a concurrency model: messages, coroutines, or a place to block."""
    if isinstance(handler, type) and issubclass(handler, MessageHandler):
        return "message"
    if isinstance(handler, type) and issubclass(handler, AsyncHandler):
        return "async"
    if inspect.iscoroutinefunction(getattr(handler, "handle", None)):
        return "async"
    return "blocking"


class BaseRequestHandler(HasPeer):
    """Handle one request; subclass it and write `handle()`.

    `self.request` is the connection's socket, or `(datagram, socket)`; `self.client_address` and
    `self.server` are what their names say, and `self.peer` is all that is known of the client. `finish()`
    runs whatever `handle()` does; under `srvkit run` it also runs when `setup()` fails. The server closes
    the connection, not the handler.

    As in the standard library the constructor does it all: set attributes in `setup()`, or in an `__init__`
    before it calls `super().__init__`.

    A class attribute `one_process = True` is for a handler that keeps state in its process: `workers` above 1
    and `forking` are then errors of the configuration.
    """

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        # `is True`: anything may stand for the server, a mock included.
        if getattr(server, "always_finish", False) is True:
            try:
                self.setup()
                self.handle()
            finally:
                self.finish()
            return
        self.setup()
        try:
            self.handle()
        finally:
            self.finish()

    def setup(self) -> None:
        """Prepare; called before `handle()`."""

    def handle(self) -> None:
        """Handle the request."""

    def finish(self) -> None:
        """Clean up; called after `handle()`."""

    def start_tls(self) -> None:
        """Encrypt the connection from here on; returns when the handshake is over.

        For servers with certificates and `begin = "handler"`; RuntimeError on others. Raises PeerError or
        OSError when the handshake fails or takes longer than `handshake_timeout`.
        """
        try:
            encrypt(self.server, self.request)
        except (PeerError, OSError) as error:
            self.request.fault, self.request.outcome = error, handshake_outcome(error)
            raise


class StreamRequestHandler(BaseRequestHandler):
    """Handle a connection through files: read `self.rfile`, write `self.wfile`.

    Class attributes: `rbufsize` (-1: buffered), `wbufsize` (0: unbuffered, each write is sent whole at
    once), `timeout` (seconds for each read and write, None), `disable_nagle_algorithm` (False).
    `self.connection` is the socket.
    """

    rbufsize = -1
    wbufsize = 0
    timeout: float | None = None
    disable_nagle_algorithm = False

    def setup(self) -> None:
        self.connection = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile: Any = self.connection.makefile("rb", self.rbufsize)
        self.wfile: Any
        if self.wbufsize == 0:
            self.wfile = open_names["_SocketWriter"](self.connection)
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)

    def start_tls(self) -> None:
        """Encrypt the connection from here on; `rfile` is a new one afterwards.

        What the client sent too early, in the clear, is thrown away unread.
        """
        self.wfile.flush()
        super().start_tls()
        self.rfile.close()
        self.rfile = self.connection.makefile("rb", self.rbufsize)

    def finish(self) -> None:
        wfile = getattr(self, "wfile", None)  # absent where setup() failed and finish() runs all the same
        rfile = getattr(self, "rfile", None)
        if wfile is not None:
            if not wfile.closed:
                with suppress(OSError):  # the client may have gone: there is nobody left to tell
                    wfile.flush()
            wfile.close()
        if rfile is not None:
            rfile.close()


class _SocketWriter(io.BufferedIOBase):
    """Write to a socket like to a file; every write is sent whole before it returns."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sock.sendall(data)
        if isinstance(data, bytes):
            return len(data)
        with memoryview(data) as view:
            return view.nbytes

    def fileno(self) -> int:
        fd: int = self._sock.fileno()
        return fd


class DatagramRequestHandler(BaseRequestHandler):
    """Handle a datagram through files: read `self.rfile`, write the reply to `self.wfile`.

    The reply is one datagram, sent by `finish()`: also when nothing was written, as in the standard
    library; under `srvkit run` only when something was, and never to a peer without an address.
    `self.packet` is the datagram, `self.socket` the socket to answer with.
    """

    def setup(self) -> None:
        self.packet, self.socket = self.request
        self.rfile = io.BytesIO(self.packet)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        if getattr(self.server, "reply_only_if_written", False) is True:
            wfile = getattr(self, "wfile", None)
            if wfile is not None and wfile.getvalue():
                self.socket.sendto(wfile.getvalue(), self.client_address)
            return
        self.socket.sendto(self.wfile.getvalue(), self.client_address)
