"""Servers of stream sockets: TCP and Unix.

What a connection is, is known here; what is said on it is the handler's business.
"""

from __future__ import annotations

import socket
import sys
from _thread import get_ident
from typing import Any, Self

from srvkit.contracts import open_names
from srvkit.net.connection import TimedConnection, accept
from srvkit.net.listener import Listener
from srvkit.protocol.proxy_header import unmapped
from srvkit.server.admission import Admission
from srvkit.server.base import BURST, BaseServer
from srvkit.server.lingering import Lingering, has_to_linger, wait_out

SHUT_WR = int(socket.SHUT_WR)
_Socket = socket.socket  # what it is without a program's tests, which may put a mock in its place


class TCPServer(BaseServer):
    """Accept connections on one socket and hand each, as a `socket.socket`, to a handler.

    `TCPServer((host, port), Handler)` binds and listens at once; with `bind_and_activate=False` the
    caller does that by `server_bind()` and `server_activate()`. The socket is IPv6 where the address
    is. An open socket in place of the address is used as it is (`from_socket`, `from_fd`).

    Raises OSError (or OverflowError for a port out of range) when it cannot listen, with nothing left
    open. Whoever makes the server closes it by `server_close()`.
    """

    address_family: int = socket.AF_INET
    socket_type: int = socket.SOCK_STREAM
    request_queue_size: int = socket.SOMAXCONN if sys.version_info >= (3, 15) else 5  # as socketserver's
    allow_reuse_address = False
    allow_reuse_port = False

    _plain_class: type[socket.socket] = _Socket  # what they are where nothing else is said

    def __init__(self, server_address: Any, RequestHandlerClass: Any, bind_and_activate: bool = True) -> None:
        """Open the socket. May be extended, do not override."""
        if _is_socket(server_address):
            self.socket = server_address
            self.address_family = self.socket.family
            super().__init__(self.socket.getsockname(), RequestHandlerClass)
            if bind_and_activate and not self._is_listening():
                self.server_activate()
            return
        super().__init__(server_address, RequestHandlerClass)
        if self.address_family == socket.AF_INET and _is_ipv6(server_address):
            self.address_family = socket.AF_INET6
        self.socket = open_names["socket"].socket(self.address_family, self.socket_type)
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    @classmethod
    def from_socket(cls, sock: socket.socket, RequestHandlerClass: Any) -> Self:
        """Serve on a socket that is bound already; it belongs to the server from then on."""
        return cls(sock, RequestHandlerClass)

    @classmethod
    def from_fd(cls, fd: int, RequestHandlerClass: Any) -> Self:
        """Serve on a descriptor that was inherited, from systemd say; the server closes it."""
        return cls(socket.socket(fileno=fd), RequestHandlerClass)

    @classmethod
    def from_listeners(cls, listeners: list[Listener], RequestHandlerClass: Any) -> Self:
        """Serve on several listeners in one loop; `server_close` closes them and removes their files."""
        server = cls(listeners[0].socket, RequestHandlerClass, bind_and_activate=False)
        server._srvkit_listeners = listeners
        if listeners[0].address.is_unix:
            server.server_address = listeners[0].address.path
        if cls.limits is not None:
            server._srvkit_lingering = Lingering(server.close_request, server._stop_when_empty)
            server._srvkit_admission = Admission(server, cls.admission)
        return server

    def server_bind(self) -> None:
        """Bind the socket and learn its real address. May be overridden."""
        if self.allow_reuse_address and hasattr(socket, "SO_REUSEADDR"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Unix sockets refuse the option on newer kernels.
        internet = self.address_family in (socket.AF_INET, socket.AF_INET6)
        if self.allow_reuse_port and internet and hasattr(socket, "SO_REUSEPORT"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Listen, with room for `request_queue_size` clients in the kernel's queue. May be overridden."""
        if self._srvkit_listeners:
            for listener in self._srvkit_listeners:
                listener.listen()
        else:
            self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        """Close the listening sockets; a loop that still runs on them ends. May be overridden."""
        if self._srvkit_loop is not None:
            BaseServer.stop_serving(self)
        for listener in self._srvkit_listeners:
            listener.close()
        self.socket.close()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection: return its socket and the client's address. May be overridden."""
        if self.connection_class is None or not self._srvkit_listeners:
            if type(self.socket) is socket.socket:  # as it is now: what accept() makes a connection of
                return accept(self.socket, self._plain_class)
            connection, client_address = self.socket.accept()  # of a listener that wraps its connections
            return connection, client_address
        connection, client_address = accept(self.socket, self.connection_class)
        if socket.getdefaulttimeout() is not None:  # a handler's own, for the sockets that it makes
            _Socket.settimeout(connection, None)
        for listener in self._srvkit_listeners:
            if listener.socket is self.socket:
                listener.prepare(connection)
        if isinstance(connection, TimedConnection) and self.limits is not None:
            connection.limit(self.limits.waits, self.limits.request_timeout)
        return connection, unmapped(client_address)

    def shutdown_request(self, request: Any) -> None:
        """Tell the client that nothing more will come, and close. May be extended."""
        try:
            request.shutdown(SHUT_WR)
        except OSError:
            pass  # the peer has gone first
        else:
            if self._srvkit_lingering is not None and has_to_linger(request):
                self._linger(request)
                return
        try:
            self.close_request(request)
        finally:
            if self._srvkit_admission is not None:
                self.request_done(request)

    def _linger(self, request: Any) -> None:
        """Close a connection later, when its peer has ended it too; its seat is free at once."""
        assert self._srvkit_lingering is not None
        loop = self._srvkit_loop
        try:
            if loop is not None:
                self._srvkit_lingering.add(request, loop, in_loop=self._srvkit_loop_thread == get_ident())
            else:
                wait_out(request)
                self.close_request(request)
        finally:
            self.request_done(request)

    def close_request(self, request: Any) -> None:
        """Close the connection in this process. May be overridden."""
        request.close()

    def _is_listening(self) -> bool:
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def _burst_size(self) -> int:
        # An overridden get_request() may do anything, a TLS handshake say: one call per readiness.
        return BURST if self._takes_requests_as(TCPServer) else 1

    def _takes_requests_as(self, server_class: type[BaseServer]) -> bool:
        # The latter is private, and yet overridden.
        return self._has_own("get_request", server_class) and self._has_own(
            "_handle_request_noblock", server_class
        )


def _is_socket(server_address: Any) -> bool:
    # Of the type, since a mock has every attribute that it is asked for; gevent's sockets are no `_Socket`.
    return isinstance(server_address, _Socket) or hasattr(type(server_address), "getsockname")


def _is_ipv6(server_address: Any) -> bool:
    return (
        isinstance(server_address, tuple)
        and len(server_address) >= 2
        and isinstance(server_address[0], str)
        and ":" in server_address[0]
    )


if hasattr(socket, "AF_UNIX"):

    class UnixStreamServer(TCPServer):
        """Accept connections on a Unix stream socket; the address is its path."""

        address_family = socket.AF_UNIX
