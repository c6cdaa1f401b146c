"""Listening sockets: bind one from an address and its settings, look after its file, close it.

It knows nothing of servers: whoever binds a listener closes it, and closing it removes the file of a
Unix socket only while that is still the very file that was made here.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srvkit.contracts import FileMode, Size, setting
from srvkit.errors import ListenError
from srvkit.net import inherited
from srvkit.net.address import Address

try:
    import fcntl
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
    """A bound socket with the address it came from; `close()` releases both socket and file."""

    def __init__(
        self,
        address: Address,
        sock: socket.socket,
        settings: SocketSettings | None = None,
        claim: socket.socket | None = None,
    ) -> None:
        self.address = address
        self._claim = claim
        self.socket = sock
        self.settings = settings or SocketSettings()
        self._file = identity(address.path) if address.is_unix and not address.is_abstract else None

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
            if self._file is not None and identity(self.address.path) == self._file:
                _set_permissions(self.address, settings)
            if self.is_stream and not is_dead(self.socket):
                self.listen()
        except (OSError, ListenError) as error:
            log.warning("%s: not all of its new settings took effect: %s", self.address, error)

    def lend(self) -> None:
        """Keep the socket alone, in a forked process: whose file it is, is for its parent to remove."""
        self._file = None
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def leave(self, *, keep_socket: bool = False) -> None:
        """Close the descriptors alone, in a forked process that has no use for them."""
        if not keep_socket:
            self.socket.close()
        if self._claim is not None:
            self._claim.close()

    def close(self) -> None:
        """Close the socket and remove its file, unless somebody has put another one in its place."""
        self.leave()
        if self._file is not None:
            found = identity(self.address.path)
            if found == self._file:
                with suppress(FileNotFoundError):
                    os.unlink(self.address.path)
            elif found is not None:
                log.warning("%s: the file is not ours any more, left alone", self.address)
        self._file = None


def bind_each(address: Address, settings: SocketSettings | None = None) -> list[Listener]:
    """Return every listener of an address: one, but for `systemd` as many as were passed by the name.

    Raises ListenError with nothing left open; the caller closes. Closing a listener of `systemd` leaves
    the socket itself open and its file in place: they are systemd's.
    """
    if address.scheme != "systemd":
        return [bind(address, settings)]
    return [Listener(address, sock, settings) for sock in _adopt_named(address)]


def bind(address: Address, settings: SocketSettings | None = None) -> Listener:
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
    family, kind, target = _resolve(address)
    sock = socket.socket(family, kind)
    claim = None
    try:
        _set_listener_options(sock, address, settings)
        if address.is_unix and not address.is_abstract:
            claim = _bind_file(sock, address, settings)
        else:
            sock.bind(target)
        return Listener(address, sock, settings, claim)
    except OSError as error:
        sock.close()
        raise ListenError(address, _explain(error)) from error
    except BaseException:
        sock.close()
        raise


def _resolve(address: Address) -> tuple[int, int, Any]:
    kind = socket.SOCK_STREAM if address.kind == "stream" else socket.SOCK_DGRAM
    if address.is_unix:
        target = "\0" + address.path[1:] if address.is_abstract else address.path
        return socket.AF_UNIX, kind, target
    host = address.host or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
    try:
        found = socket.getaddrinfo(host, address.port, type=kind, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(address, f"the host name cannot be resolved ({error.strerror})") from error
    # A name with both kinds of address is served on IPv4, as the standard library does.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return found[0][0], kind, found[0][4]


def _set_listener_options(sock: socket.socket, address: Address, settings: SocketSettings) -> None:
    if settings.receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.receive_buffer)
    if settings.send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer)
    if address.is_unix:
        return
    if sock.family == socket.AF_INET6:
        # Said explicitly, because the kernel's default is a setting of the machine.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.host not in ("", "::"))
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
        sock = socket.socket(fileno=os.dup(address.fd))
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
    try:
        return [sock.dup() for sock in found]
    except OSError as error:
        raise ListenError(address, _explain(error)) from error


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _bind_file(sock: socket.socket, address: Address, settings: SocketSettings) -> socket.socket | None:
    mode = int(settings.mode, 8)
    with _directory_locked(address):
        claim = _claim(address)
        try:
            _remove_if_stale(sock, address)
            # The mode of the socket itself is the most that bind() gives its file (Linux): there is no
            # moment in which others may connect. chmod() gives back what the umask took away.
            os.fchmod(sock.fileno(), mode)
            sock.bind(address.path)
            try:
                _set_permissions(address, settings)
            except BaseException:
                os.unlink(address.path)
                raise
        except BaseException:
            if claim is not None:
                claim.close()
            raise
    return claim


def _set_permissions(address: Address, settings: SocketSettings) -> None:
    if settings.owner or settings.group:
        os.chown(address.path, _user_id(address, settings), _group_id(address, settings))
    os.chmod(address.path, int(settings.mode, 8))


def _claim(address: Address) -> socket.socket | None:
    """Take the path as ours for as long as the socket returned is open.

    A socket that is bound and does not listen yet refuses connections as a stale one does. An abstract
    name, which is gone with its last descriptor, tells the two apart (Linux alone has them).
    """
    if not sys.platform.startswith("linux"):
        return None
    path = os.path.join(os.path.realpath(os.path.dirname(address.path)), os.path.basename(address.path))
    name = hashlib.sha256(path.encode()).hexdigest()
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0srvkit:{os.getuid()}:{name}")
    except OSError:
        claim.close()
        if os.path.lexists(address.path):
            raise ListenError(address, "another server is listening there") from None
        return None  # it has lost its file: whoever comes next may have the path
    return claim


@contextmanager
def _directory_locked(address: Address) -> Iterator[None]:
    """Keep two starting servers from replacing each other's file; locks the folder, leaves no file behind."""
    folder = Path(address.path).parent
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ListenError(address, f"the folder {folder} does not exist") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_if_stale(sock: socket.socket, address: Address) -> None:
    try:
        found = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(address, "a file that is no socket stands there; it was left untouched")
    with socket.socket(socket.AF_UNIX, sock.type) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EPROTOTYPE, errno.EAGAIN, errno.EINPROGRESS):
                raise
    raise ListenError(address, "another server is listening there")


def _user_id(address: Address, settings: SocketSettings) -> int:
    if not settings.owner:
        return -1
    try:
        return pwd.getpwnam(settings.owner).pw_uid
    except KeyError:
        raise ListenError(address, f"there is no user {settings.owner!r}") from None


def _group_id(address: Address, settings: SocketSettings) -> int:
    if not settings.group:
        return -1
    try:
        return grp.getgrnam(settings.group).gr_gid
    except KeyError:
        raise ListenError(address, f"there is no group {settings.group!r}") from None


def identity(path: Path | str | int) -> tuple[int, int] | None:
    """Return what a file or an open descriptor is; None where there is none. Links are not followed."""
    try:
        found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


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
