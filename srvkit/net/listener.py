"""Listening sockets: bind one from an address and its settings, look after its file, close it.

It knows nothing of servers: whoever binds a listener closes it, and closing it removes the file of a
Unix socket only while that is still the very file that was made here.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from socket import socket as Socket  # as it is before anybody patches it
from typing import Any

from srvkit.contracts import FileMode, Size, setting
from srvkit.errors import ListenError
from srvkit.net import socket_activation as inherited
from srvkit.net import socketfile, unixpath
from srvkit.net.address import Address, objection
from srvkit.net.closing import close_one
from srvkit.net.socketfile import FileIdentity, Permissions, identity

try:
    import grp
    import pwd
except ImportError:  # Windows, where no socket has a file; there only the bare classes are of use
    pass

log = logging.getLogger("srvkit.net")

# Accepting fails because something ran out: it will fail again at once, so wait a moment.
CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# The listening socket itself may be broken. Anything else is the fault of one connection.
FATAL_ERRNOS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})

# On Linux an accepted socket starts with these options of its listener, so that setting them costs
# nothing per connection (socket(7), tcp(7)); elsewhere they are set on each.
OPTIONS_ARE_INHERITED = os.uname().sysname == "Linux" if hasattr(os, "uname") else False

_C_INT = 2**31 - 1  # the most that listen(2) and setsockopt(2) take


@dataclass(frozen=True)
class SocketSettings:
    """`[server.NAME.socket]`: options of the listening sockets and of what they accept."""

    backlog: int = setting(
        2048, "connections the kernel queues before they are accepted", minimum=1, maximum=_C_INT
    )
    nodelay: bool = setting(True, "TCP: send small replies at once (TCP_NODELAY)")
    keepalive: bool = setting(True, "TCP: probe silent peers (SO_KEEPALIVE)")
    receive_buffer: Size = setting(0, "SO_RCVBUF; 0 leaves it to the kernel", minimum=0, maximum=_C_INT)
    send_buffer: Size = setting(0, "SO_SNDBUF; 0 leaves it to the kernel", minimum=0, maximum=_C_INT)
    mode: FileMode = setting("0600", "Unix sockets: permissions of the file, octal")
    owner: str = setting("", "Unix sockets: the file's user; empty keeps the starting one")
    group: str = setting("", "Unix sockets: the file's group; empty keeps the starting one")


def is_dead(listening: Any) -> bool:
    """Return whether a socket cannot bring requests any more: closed, no socket, or not listening."""
    try:
        if listening.type == socket.SOCK_STREAM:
            return not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return bool(listening.fileno() < 0)
    except OSError:
        return True


class Listener:
    """A bound socket with the address it came from; `close()` releases both socket and file.

    `path` is where its file was made: what the address led to then, whatever links it is written with and
    wherever they lead by now. `file` is the file itself. `number` is what the system calls the socket: the
    same in every process, and no other has it.
    """

    def __init__(
        self,
        address: Address,
        sock: socket.socket,
        settings: SocketSettings | None = None,
        claim: socket.socket | None = None,
        path: str = "",
        file: FileIdentity | None = None,
    ) -> None:
        self.address = address
        self._claim = claim
        self.socket = sock
        self.number = os.fstat(sock.fileno()).st_ino
        self.settings = settings or SocketSettings()
        self.path = path
        self.file = file or (identity(path) if path else None)
        self._name: Any = None

    def __repr__(self) -> str:
        return f"<Listener {self.address}>"

    @property
    def claim(self) -> socket.socket | None:
        """What keeps the path ours for as long as it is open, where there is such a thing."""
        return self._claim

    @property
    def is_stream(self) -> bool:
        return self.socket.type == socket.SOCK_STREAM

    @property
    def is_internet(self) -> bool:
        return self.socket.family in (socket.AF_INET, socket.AF_INET6)

    def fileno(self) -> int:
        return self.socket.fileno()

    def sockname(self) -> Any:
        """Return what `getsockname` does; the system is asked once. Raises OSError."""
        if self._name is None:
            self._name = self.socket.getsockname()
        return self._name

    def bound_to(self) -> Address | None:
        """Return where it is bound, with the port that the kernel has chosen; None unless of the internet."""
        if not self.is_internet:
            return None
        bound = self.sockname()
        return Address("tcp" if self.is_stream else "udp", port=bound[1]).at(bound)

    @property
    def has_lost_its_file(self) -> bool:
        """Whether its path does not lead to it any more, so that nobody new can connect."""
        return bool(self.path) and identity(self.path) != self.file

    def succeed(self, lost: Listener) -> None:
        """Have the path for good that was bound anew while a listener that has lost its file held it."""
        if self._claim is None:
            self._claim, lost._claim = lost._claim, None
        lost.file = None

    def is_at(self, path: str) -> bool:
        """Return whether this path, links and all, leads to its file."""
        try:
            found = os.stat(path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.file

    def listen(self) -> None:
        """Let clients connect. Raises ListenError.

        A socket that systemd listens on already keeps the backlog of its socket unit.
        """
        if not self.is_stream or (self.address.scheme == "systemd" and not is_dead(self.socket)):
            return
        _warn_if_capped(self.address, self.settings.backlog)
        try:
            self.socket.listen(self.settings.backlog)
        except OSError as error:
            raise ListenError(self.address, _explain(error)) from error

    def prepare(self, accepted: socket.socket) -> None:
        """Set the options of a connection where the platform does not inherit them from the listener."""
        if not OPTIONS_ARE_INHERITED and self.is_internet:
            _set_stream_options(accepted, self.settings)

    def adjust(self, settings: SocketSettings) -> None:
        """Let other settings hold from now on, as far as a bound socket lets itself be changed.

        The size of buffers holds for connections accepted later. What the system refuses is logged.
        """
        before, self.settings = self.settings, settings
        if settings == before or self.address.scheme == "systemd":  # whose socket unit says it
            return
        try:
            if self.is_internet and self.is_stream:
                _set_stream_options(self.socket, settings)
            for option, value in (
                (socket.SO_RCVBUF, settings.receive_buffer),
                (socket.SO_SNDBUF, settings.send_buffer),
            ):
                if value:
                    self.socket.setsockopt(socket.SOL_SOCKET, option, value)
            if self.file is not None and identity(self.path) == self.file:
                socketfile.set_permissions(self.path, _permissions(self.address, settings))
            if self.is_stream and not is_dead(self.socket):
                self.listen()
        except (OSError, ListenError) as error:
            log.warning("%s: some new settings did not take effect: %s", self.address, error)

    def keep_in_child(self) -> None:
        """In a forked child: keep the socket, let the parent remove the file."""
        self.file = None
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def close_in_child(self, *, keep_socket: bool = False) -> None:
        """Close the descriptors alone, in a forked process that has no use for them."""
        if not keep_socket:
            self.socket.close()
        if self._claim is not None:
            self._claim.close()

    def close(self) -> None:
        """Close the socket and remove its file, unless somebody has put another one in its place.

        Never raises: what cannot be removed is logged.
        """
        self.close_in_child()
        if self.file is not None:
            found = identity(self.path)
            if found == self.file:
                try:
                    os.unlink(self.path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    log.warning("%s: its file cannot be removed: %s", self.address, error.strerror)
            elif found is not None:
                log.warning("%s: the file belongs to another process now; not removed", self.address)
        self.file = None


def bind_each(
    address: Address,
    settings: SocketSettings | None = None,
    numeric: Address | None = None,
    beside: Sequence[Listener] = (),
    lost: Listener | None = None,
) -> list[Listener]:
    """Return every listener of an address: one, but for `systemd` as many as were passed by the name.

    `numeric` is what a host name was resolved to, if it was. `beside` are listeners of ours that have a
    part of the address and are open still; see `share`. `lost` is one of ours that has lost the file at
    this path, and holds the path until `succeed`.
    Raises ListenError with nothing left open; the caller closes. Closing a listener of `systemd` leaves
    the socket itself open and its file in place: they are systemd's.
    """
    if address.scheme != "systemd":
        return [bind(address, settings, numeric, beside, lost)]
    return [Listener(address, sock, settings) for sock in _adopt_named(address)]


def bind(
    address: Address,
    settings: SocketSettings | None = None,
    numeric: Address | None = None,
    beside: Sequence[Listener] = (),
    lost: Listener | None = None,
) -> Listener:
    """Open a socket and bind it, without listening yet. Raises ListenError; the caller closes.

    For an address that may have several sockets there is `bind_each`; here they are an error.
    """
    settings = settings or SocketSettings()
    if address.scheme == "systemd":
        sock, *others = _adopt_named(address)
        if others:
            for one in (sock, *others):
                one.close()
            raise ListenError(address, "several sockets were passed by this name")
        return Listener(address, sock, settings)
    if address.scheme == "fd":
        return Listener(address, _adopt(address), settings)
    if address.is_unix:
        numeric, family = address, socket.AF_UNIX
    else:
        numeric = numeric or resolve(address)[0]
        family = socket.AF_INET6 if ":" in numeric.host else socket.AF_INET
    sock = _open(address, family)
    try:
        _set_listener_options(sock, numeric, settings)
        if address.is_unix:
            return _bind_unix(sock, address, settings, lost)
        if beside:
            share([sock, *beside])
        sock.bind(_sockaddr(numeric))
        made = Listener(address, sock, settings)
        made.sockname()  # now, when it can still be refused
        return made
    except OSError as error:
        sock.close()
        raise ListenError(address, _explain(error)) from error
    except BaseException:
        sock.close()
        raise


def resolve(address: Address) -> list[Address]:
    """Return the addresses with numbers that a host name stands for, the one to bind first.

    What has no host stands for itself. Raises ListenError.
    """
    numeric = address.numeric()
    if numeric is not None:
        return [numeric]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=_kind_of(address), flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ListenError(address, f"the host name cannot be resolved ({error.strerror})") from error
    except ValueError as error:  # of the codec for host names
        reason = objection(address.host) or error
        raise ListenError(address, f"the host name cannot be resolved ({reason})") from None
    # A name with both kinds of address is served on IPv4, as the standard library does.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(address.at(entry[4]) for entry in found))


def share(sockets: Sequence[Any], on: bool = True) -> None:
    """Let addresses of these sockets contain one another, or not any longer.

    One that listens on 127.0.0.1:7 keeps the kernel from having 0.0.0.0:7 bound, and the other way round,
    unless both have SO_REUSEPORT, which may be said of a socket that listens already. It must hold until
    both listen, since that is when the kernel looks once more. Each connection then goes to the narrower
    of the two, so that there is no moment in which nobody has the address.
    """
    option = getattr(socket, "SO_REUSEPORT", None)
    for sock in sockets if option is not None else ():
        with suppress(OSError):  # closed already, or the kernel has no such thing: binding says so
            getattr(sock, "socket", sock).setsockopt(socket.SOL_SOCKET, option, on)


def _kind_of(address: Address) -> socket.SocketKind:
    return socket.SOCK_STREAM if address.kind == "stream" else socket.SOCK_DGRAM


def _open(address: Address, family: int) -> socket.socket:
    try:
        return Socket(family, _kind_of(address))
    except OSError as error:
        raise ListenError(address, _explain(error)) from error


def _sockaddr(numeric: Address) -> Any:
    (*_, found), *_ = socket.getaddrinfo(
        numeric.host, numeric.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    return found


def _set_listener_options(sock: socket.socket, address: Address, settings: SocketSettings) -> None:
    if settings.receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.receive_buffer)
    if settings.send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer)
    if sock.family == socket.AF_UNIX:
        return
    if sock.family == socket.AF_INET6:
        # Said explicitly, because the kernel's default is a setting of the machine.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.host != "::")
    if address.kind == "stream":
        # Restart while old connections are in TIME_WAIT. Never for datagrams: there it would let a second
        # server in unnoticed.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_stream_options(sock, settings)


def _set_stream_options(sock: socket.socket, settings: SocketSettings) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, settings.nodelay)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, settings.keepalive)


def _adopt(address: Address) -> socket.socket:
    try:
        copy = os.dup(address.fd)
        try:
            sock = Socket(fileno=copy)
        except BaseException:
            close_one(copy)
            raise
    except OSError as error:
        raise ListenError(address, f"descriptor {address.fd} is no socket ({error.strerror})") from error
    if sock.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock.close()
        raise ListenError(address, f"descriptor {address.fd} is neither a stream nor a datagram socket")
    return sock


def _adopt_named(address: Address) -> list[socket.socket]:
    found = inherited.named(address.name)
    if not found:
        raise ListenError(address, inherited.missing(address.name))
    for sock in found:
        if sock.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise ListenError(address, "the socket is neither of streams nor of datagrams")
        if _is_connected(sock):
            raise ListenError(address, "the socket is a connection; its socket unit needs Accept=no")
    copies: list[socket.socket] = []
    try:
        for sock in found:
            copies.append(sock.dup())
    except OSError as error:
        for copy in copies:
            copy.close()
        raise ListenError(address, _explain(error)) from error
    return copies


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _bind_unix(
    sock: socket.socket, address: Address, settings: SocketSettings, lost: Listener | None
) -> Listener:
    if not address.is_abstract:
        return _bind_file(sock, address, settings, lost)
    sock.bind(b"\0" + os.fsencode(address.path[1:]))
    return Listener(address, sock, settings)


def _bind_file(
    sock: socket.socket, address: Address, settings: SocketSettings, lost: Listener | None
) -> Listener:
    folder, name = os.path.split(address.path)
    path = os.path.join(os.path.realpath(folder), name)
    if unixpath.is_long(path) and unixpath.is_long(address.path):
        log.warning(
            "%s: longer than the %d bytes of a socket address: clients need a shorter, a relative way there",
            address,
            unixpath.MAX_PATH,
        )
    held = lost.claim if lost is not None else None
    claim = socketfile.make(sock, address, path, _permissions(address, settings), held)
    try:
        return Listener(address, sock, settings, claim, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        if claim is not None and claim is not held:
            claim.close()
        raise


def _permissions(address: Address, settings: SocketSettings) -> Permissions:
    return Permissions(int(settings.mode, 8), _user_id(address, settings), _group_id(address, settings))


def look_up_owner(address: Address, settings: SocketSettings) -> SocketSettings:
    """Return the settings with numbers as owner and group, for which it may wait for a directory of users.

    Raises ListenError.
    """
    uid, gid = _user_id(address, settings), _group_id(address, settings)
    return replace(settings, owner=str(uid) if uid >= 0 else "", group=str(gid) if gid >= 0 else "")


def _user_id(address: Address, settings: SocketSettings) -> int:
    if not settings.owner or _is_number(settings.owner):
        return int(settings.owner or -1)
    try:
        return pwd.getpwnam(settings.owner).pw_uid
    except (KeyError, ValueError):  # with a zero byte it is no name at all
        raise ListenError(address, f"there is no user {settings.owner!r}") from None


def _group_id(address: Address, settings: SocketSettings) -> int:
    if not settings.group or _is_number(settings.group):
        return int(settings.group or -1)
    try:
        return grp.getgrnam(settings.group).gr_gid
    except (KeyError, ValueError):
        raise ListenError(address, f"there is no group {settings.group!r}") from None


def _is_number(name: str) -> bool:
    # (uid_t) -1 means "as it is" to the system calls.
    return name.isascii() and name.isdigit() and len(name) <= 10 and int(name) < 2**32 - 1


def _warn_if_capped(address: Address, backlog: int) -> None:
    with suppress(OSError, ValueError):
        somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
        if backlog > somaxconn:
            message = "%s: the kernel caps the backlog of %d at %d (net.core.somaxconn)"
            log.warning(message, address, backlog, somaxconn)


def _explain(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; is another server running?"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; ports below 1024 and other users' folders need more rights"
    if error.errno == errno.EAFNOSUPPORT:
        return "this machine does not speak that address family"
    return error.strerror or str(error)
