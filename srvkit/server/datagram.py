"""Servers of datagram sockets: UDP and Unix.

A request is a pair: the datagram and the socket to answer with.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

from srvkit.net.address import display
from srvkit.net.connection import DONT_WAIT
from srvkit.net.datagrams import NO_ADDRESS, PinnedSocket, ReplySocket, ask_for_destination, receive
from srvkit.server.base import BURST, BaseServer
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.server")

# The steps of a request. Those after get_request() do nothing to a datagram that is handled at once,
# finish_request apart.
STEPS = (
    "_handle_request_noblock",
    "get_request",
    "verify_request",
    "admit_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
    "request_done",
)


class UDPServer(TCPServer):
    """Receive datagrams on one socket and hand each to a handler.

    `request` is `(data, socket)`. A datagram longer than `max_packet_size` bytes is cut by the kernel;
    with `drop_truncated` (set by `srvkit run`) it is dropped and logged instead of handed over.
    """

    socket_type: int = socket.SOCK_DGRAM
    max_packet_size = 8192

    _waits_to_take = False
    _pinned: set[int] | None = None  # the sockets that tell where a datagram was sent to
    _reply_sockets: dict[int, ReplySocket] | None = None  # by descriptor; of servers from TOML
    _plain_steps = False  # whether the steps are the library's own, and handle a datagram at once
    _at_hand: Any = None  # what is being handled where they are: it needs no seat, there is one at a time

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
                if self._reply_sockets is not None:
                    sock = self._reply_socket(sock)
                return (data, sock), client_address
            self._drop(client_address)

    def loop_begins(self, loop: Any) -> None:
        super().loop_begins(loop)
        if self.drop_truncated and self._pinned is None:
            self._find_pinned()
        if (
            self._listeners
            and self.limits is not None
            and not hasattr(self.RequestHandlerClass, "handle_message")
        ):
            self._reply_sockets = {}  # message handlers answer through srvkit anyway
        self._plain_steps = not vars(self).keys() & STEPS and all(map(self._is_plain, STEPS))

    def _is_plain(self, step: str) -> bool:
        for one in type(self).__mro__:  # not just the first: a marked step passes on to the next one
            if one is UDPServer:
                break
            if step in vars(one) and not getattr(vars(one)[step], "passes_datagrams", False):
                return False
        return True

    def _take_requests(self) -> None:
        """Take a burst of datagrams; where the steps are plain, in one short loop to the same effect.

        An echo takes 5.9 µs that way, of which 4.4 are the system's, and 7.2 step by step.
        """
        sock = self.socket
        if not self._plain_steps or (self._pinned and sock.fileno() in self._pinned):
            super()._take_requests()
            return
        answering = sock if self._reply_sockets is None else self._reply_socket(sock)
        longest = self.max_packet_size
        room = longest + self.drop_truncated
        handled = size = 0
        self._more = True
        try:
            for _ in range(self._burst):
                if self._takes_no_more():
                    break
                try:
                    data, client_address = sock.recvfrom(room, DONT_WAIT)
                except OSError as error:
                    self._get_request_failed(error)
                    if self._more:
                        continue
                    break
                if len(data) > longest:
                    self._drop(client_address)
                    continue
                request = self._at_hand = data, answering
                handled += 1
                size += len(data)
                try:
                    BaseServer.finish_request(self, request, client_address)
                except Exception:
                    self.handle_error(request, client_address)
                else:
                    self._failures_in_a_row = 0
        finally:
            if handled:
                self.datagrams_handled(handled, size)
            self.requests_taken()

    def datagrams_handled(self, count: int, size: int) -> None:
        """Hear of datagrams, `size` bytes in all, that were handled at once and not step by step."""

    def requests_taken(self) -> None:
        super().requests_taken()
        self._at_hand = None

    def requests_at_hand(self) -> list[Any]:
        return super().requests_at_hand() if self._at_hand is None else [self._at_hand]

    def server_activate(self) -> None:
        """Nothing to do: datagrams need no listen(). May be overridden."""

    def shutdown_request(self, request: Any) -> None:
        """End the handling of one datagram; the socket stays open, it is everybody's."""
        BaseServer.shutdown_request(self, request)

    def close_request(self, request: Any) -> None:
        """Nothing to release. May be overridden."""

    def _is_listening(self) -> bool:
        return True

    def _drop(self, client_address: Any) -> None:
        self.datagram_dropped()
        message = "%s: dropped a datagram of %s, longer than %d bytes"
        log.info(message, self._name(), display(client_address), self.max_packet_size)

    def datagram_dropped(self) -> None:
        """Hear of a datagram that was no message, or too long to be handed over; in whatever thread."""

    def reply_lost(self, client_address: Any, why: str) -> None:
        """Hear of a reply that its client could not be given; in whatever thread sent it. May be extended."""
        if why != NO_ADDRESS:  # whoever has none does not expect any
            log.info("%s: reply to %s lost: %s", self._name(), display(client_address), why)

    def _reply_socket(self, sock: Any) -> ReplySocket:
        if isinstance(sock, PinnedSocket):
            return ReplySocket(sock, self.reply_lost)
        assert self._reply_sockets is not None
        fd = sock.fileno()
        if fd not in self._reply_sockets:
            self._reply_sockets[fd] = ReplySocket(sock, self.reply_lost)
        return self._reply_sockets[fd]

    def _find_pinned(self) -> set[int]:
        sockets = [listener.socket for listener in self._listeners] or [self.socket]
        self._pinned = {sock.fileno() for sock in sockets if ask_for_destination(sock)}
        return self._pinned

    def _burst_size(self) -> int:
        return BURST if DONT_WAIT and self._takes_requests_as(UDPServer) else 1


if hasattr(socket, "AF_UNIX"):

    class UnixDatagramServer(UDPServer):
        """Receive datagrams on a Unix socket; the address is its path."""

        address_family = socket.AF_UNIX
