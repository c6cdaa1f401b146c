"""Servers of datagram sockets: UDP and Unix.

A request is a pair: the datagram and the socket to answer with.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

from srvkit.net.address import display
from srvkit.net.datagrams import ask_for_destination, receive
from srvkit.server.base import BURST, BaseServer
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.server")

DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class UDPServer(TCPServer):
    """Receive datagrams on one socket and hand each to a handler.

    `request` is `(data, socket)`. A datagram longer than `max_packet_size` bytes is cut by the kernel;
    with `drop_truncated` (set by `srvkit run`) it is dropped and logged instead of handed over.
    """

    socket_type: int = socket.SOCK_DGRAM
    max_packet_size = 8192

    _waits_to_take = False
    dropped = 0  # datagrams too long to be handed over
    _pinned: set[int] | None = None  # the sockets that tell where a datagram was sent to

    def get_request(self) -> tuple[Any, Any]:
        """Receive a datagram: return it with the socket, and its sender's address. May be overridden."""
        if not self.drop_truncated:
            # A flag and not a non-blocking socket: handlers send on this very socket, and wait.
            flags = DONT_WAIT if self._in_burst else 0
            data, client_address = self.socket.recvfrom(self.max_packet_size, flags)
            return (data, self.socket), client_address
        while True:
            sock: Any = self.socket
            pinned = self._pinned if self._pinned is not None else self._find_pinned()
            if pinned and sock.fileno() in pinned:
                data, sock, client_address = receive(sock, self.max_packet_size + 1)
            else:
                data, client_address = sock.recvfrom(self.max_packet_size + 1, DONT_WAIT)
            if len(data) <= self.max_packet_size:
                return (data, sock), client_address
            self.dropped += 1
            message = "%s: dropped a datagram of %s, longer than %d bytes"
            log.info(message, self._name(), display(client_address), self.max_packet_size)

    def server_activate(self) -> None:
        """Nothing to do: datagrams need no listen(). May be overridden."""

    def shutdown_request(self, request: Any) -> None:
        """End the handling of one datagram; the socket stays open, it is everybody's."""
        BaseServer.shutdown_request(self, request)

    def close_request(self, request: Any) -> None:
        """Nothing to release. May be overridden."""

    def _is_listening(self) -> bool:
        return True

    def _find_pinned(self) -> set[int]:
        sockets = [listener.socket for listener in self._listeners] or [self.socket]
        self._pinned = {sock.fileno() for sock in sockets if ask_for_destination(sock)}
        return self._pinned

    def _burst_size(self) -> int:
        own = type(self).get_request is UDPServer.get_request and "get_request" not in vars(self)
        return BURST if own and DONT_WAIT else 1


if hasattr(socket, "AF_UNIX"):

    class UnixDatagramServer(UDPServer):
        """Receive datagrams on a Unix socket; the address is its path."""

        address_family = socket.AF_UNIX
