"""Receive a datagram together with the address it was sent to, and answer from that address.

On a socket bound to every address the kernel would choose the source of a reply by its routes alone,
and a client that asked another of our addresses drops it (RFC 1122, 4.1.3.5).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable
from math import inf
from typing import Any

from srvkit.errors import PeerGone
from srvkit.net.connection import DONT_WAIT
from srvkit.protocol.outcomes import CLOSED
from srvkit.protocol.proxy_header import unmapped

# The name is new in Python 3.12; the number is Linux's.
IP_PKTINFO: int = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else 0)
IPV6_PKTINFO: int = getattr(socket, "IPV6_PKTINFO", 0)
_IN_PKTINFO = struct.Struct("@I4s4s")  # ipi_ifindex, ipi_spec_dst, ipi_addr
_IN6_PKTINFO = struct.Struct("@16sI")  # ipi6_addr, ipi6_ifindex
_SO_MEMINFO = 55 if sys.platform == "linux" else -1  # socket(7) lacks it; see ss(8), which shows the same
_MEMINFO = struct.Struct("@9I")  # of which the last is what was dropped
NO_ADDRESS = "it has no address"
_ROOM = socket.CMSG_SPACE(_IN6_PKTINFO.size) if hasattr(socket, "CMSG_SPACE") else 0


def ask_for_destination(sock: socket.socket) -> bool:
    """Make `receive` know where a datagram was sent to; False where that makes no difference."""
    if sock.family == socket.AF_INET and IP_PKTINFO and sock.getsockname()[0] == "0.0.0.0":
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        return True
    if sock.family == socket.AF_INET6 and IPV6_PKTINFO and sock.getsockname()[0] == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        return True
    return False


def receive(sock: socket.socket, size: int) -> tuple[bytes, PinnedSocket, Any]:
    """Return the next datagram, the socket to answer it with, and its sender; never blocks.

    An IPv4 client of a dual-stack socket has its IPv4 address.
    """
    data, ancillary, _flags, sender = sock.recvmsg(size, _ROOM, socket.MSG_DONTWAIT)
    return data, PinnedSocket(sock, _source(ancillary)), unmapped(sender)


def _source(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            _, local, _ = _IN_PKTINFO.unpack(value)
            return [(level, kind, _IN_PKTINFO.pack(0, local, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            destination, interface = _IN6_PKTINFO.unpack(value)
            if ipaddress.IPv6Address(destination).is_multicast:
                return []
            return [(level, kind, _IN6_PKTINFO.pack(destination, interface))]
    return []


class PinnedSocket:
    """The listening socket, but `sendto` leaves from the address that the client wrote to."""

    __slots__ = ("_ancillary", "_socket")

    def __init__(self, sock: socket.socket, ancillary: list[tuple[int, int, bytes]]) -> None:
        self._socket = sock
        self._ancillary = ancillary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        flags = flags_and_address[0] if len(flags_and_address) == 2 else 0
        address = flags_and_address[-1]
        if self._socket.family == socket.AF_INET6 and ":" not in address[0]:
            address = ("::ffff:" + address[0], *address[1:])
        return self._socket.sendmsg([data], self._ancillary, flags, address)


class Datagram(tuple[bytes, Any]):
    """A datagram and the socket to answer it with, as handlers have it; and its record, as of a connection.

    Made where each datagram takes the steps of a request by itself. See `net.connection.Connection` for what
    the names mean.
    """

    number = 0
    since = 0.0
    client_address: Any = None
    driver = None
    peer_address = None
    proxy = None
    client: Any = None
    is_admitted = False
    at_work = inf
    row: int | None = None
    opened = 0.0
    idle = False

    @property
    def bytes_in(self) -> int:
        return len(self[0])

    @property
    def bytes_out(self) -> int:
        return getattr(self[1], "bytes_out", 0)

    @property
    def outcome(self) -> str:
        return getattr(self[1], "outcome", CLOSED)

    @outcome.setter
    def outcome(self, outcome: str) -> None:
        self[1].outcome = outcome

    @property
    def fault(self) -> Exception | None:
        return getattr(self[1], "fault", None)

    @fault.setter
    def fault(self, fault: Exception | None) -> None:
        self[1].fault = fault

    @property
    def last(self) -> float:
        """When it came."""
        return self.since


class ReplySocket:
    """The listening socket as the handler of one datagram has it: it never waits for a client, and counts.

    A reply that a client cannot get (it has gone, has no address, does not read) is lost, like any other
    datagram; `lost(address, why)` hears of it. Too long a reply raises OSError: that is the handler's.

    `bytes_out` have left in answer; `outcome` is how the datagram's handling ended, and `fault` what its
    sender is to blame for.
    """

    __slots__ = ("_lost", "bytes_out", "fault", "outcome", "plain")

    def __init__(self, sock: Any, lost: Callable[[Any, str], object]) -> None:
        self.plain = sock
        self.bytes_out = 0
        self.outcome = CLOSED
        self.fault: Exception | None = None
        self._lost = lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        address = flags_and_address[-1]
        try:
            reply(self, data, address)
        except PeerGone as gone:
            self._lost(address, str(gone))
        return len(data)


def reply(sock: Any, data: Any, address: Any) -> None:
    """Send one datagram without waiting; counted where it is a `ReplySocket`.

    Raises PeerGone when the peer has no address, is not there or does not read; OSError when the datagram
    is too long.
    """
    if not address:
        raise PeerGone(NO_ADDRESS)
    try:
        if type(sock) is ReplySocket:
            sock.bytes_out += sock.plain.sendto(data, DONT_WAIT, address)
        else:
            sock.sendto(data, DONT_WAIT, address)
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            raise
        raise PeerGone(error.strerror or str(error)) from error


def dropped_by_kernel(sock: socket.socket) -> int:
    """Return how many datagrams the kernel had no room to keep for this socket; 0 where it does not tell."""
    try:
        memory = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(memory)[-1])
    except (OSError, struct.error):
        return 0
