"""One string names one address: `tcp://127.0.0.1:7007`, `unix:run/echo.sock`, `fd:3`, `systemd:echo`.

Only names and numbers: no host name is resolved, and nothing is opened or bound here.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from srvkit.net import socket_activation as inherited
from srvkit.net import unixpath
from srvkit.protocol.proxy_header import unmapped

Kind = Literal["stream", "datagram"]

SCHEMES: dict[str, str] = {
    "tcp": "tcp://HOST:PORT",
    "udp": "udp://HOST:PORT",
    "unix": "unix:PATH or unix:@NAME",
    "unixgram": "unixgram:PATH or unixgram:@NAME",
    "fd": "fd:N",
    "systemd": "systemd:NAME",
}
MAX_UNIX_PATH = unixpath.MAX_PATH


@dataclass(frozen=True)
class Address:
    """Where a server listens. `str()` gives the string it was parsed from."""

    scheme: str
    host: str = ""  # tcp, udp; without the brackets of IPv6; empty means every address
    port: int = 0  # tcp, udp; 0 lets the kernel choose
    path: str = ""  # unix, unixgram; "@name" is abstract
    fd: int = -1  # fd
    name: str = ""  # systemd: what the socket unit calls it (FileDescriptorName=)

    def __str__(self) -> str:
        if self.scheme in ("tcp", "udp"):
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"{self.scheme}://{host}:{self.port}"
        rest = {"fd": self.fd, "systemd": self.name}.get(self.scheme, self.path)
        return f"{self.scheme}:{rest}"

    @property
    def kind(self) -> Kind:
        """`stream` or `datagram`, what the descriptors of `fd` and `systemd` are; see `kind_is_known`.

        Raises OSError where `fd` is no socket, ValueError where systemd passed both by one name.
        """
        if self.scheme == "fd":
            with socket.socket(fileno=socket.dup(self.fd)) as copy:
                return "stream" if copy.type == socket.SOCK_STREAM else "datagram"
        if self.scheme == "systemd":
            kinds = {sock.type == socket.SOCK_STREAM for sock in inherited.named(self.name)}
            if len(kinds) > 1:
                raise ValueError(f"{self}: both stream and datagram sockets were passed by this name")
            return "datagram" if kinds == {False} else "stream"
        return "stream" if self.scheme in ("tcp", "unix") else "datagram"

    @property
    def kind_is_known(self) -> bool:
        """Whether `kind` can tell; sockets that systemd did not pass (yet) are taken for streams."""
        return self.scheme != "systemd" or bool(inherited.named(self.name))

    @property
    def is_unix(self) -> bool:
        return self.scheme in ("unix", "unixgram")

    @property
    def is_internet(self) -> bool:
        """Whether it is an address of the internet for certain; `fd` and `systemd` do not say."""
        return self.scheme in ("tcp", "udp")

    @property
    def is_abstract(self) -> bool:
        """Whether the name lives in Linux's abstract namespace: no file, gone with its last socket."""
        return self.path.startswith("@")

    def relative_to(self, folder: Path) -> Address:
        """Anchor a relative socket path in `folder`; raises ValueError where no socket can have that."""
        if not self.is_unix or self.is_abstract:
            return self
        return replace(self, path=_checked_path(str(self), str(folder / self.path)))

    def numeric(self) -> Address | None:
        """Return the address with its host as the system writes it; None where that is a name.

        Whatever is the same for the kernel is the same then: `127.1` and `127.0.0.1`, `0::1` and `::1`,
        no host and `::`. IPv4 within IPv6 (`::ffff:127.0.0.1`) is IPv4. What has no host stays as it is.
        """
        if not self.is_internet:
            return self
        host = self.host or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
        try:
            found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except (OSError, ValueError):
            return None
        return self.at(found[0][4])

    def at(self, sockaddr: Any) -> Address:
        """Return the address with the host of a socket address of the internet, written as `numeric` does."""
        sockaddr = unmapped(sockaddr)
        zone = f"%{sockaddr[3]}" if len(sockaddr) == 4 and sockaddr[3] else ""
        return replace(self, host=f"{sockaddr[0].partition('%')[0]}{zone}")


def parse(text: str) -> Address:
    """Read an address; raises ValueError with what is wrong and what would be right."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(SCHEMES.values())
        raise ValueError(f"{text!r} is no address; known are {known}")
    if scheme == "fd":
        if not (rest.isascii() and rest.isdigit() and len(rest) < 10):  # it is a C int
            raise ValueError(f"{text!r}: a descriptor's number is expected, as in fd:3")
        return Address(scheme, fd=int(rest))
    if scheme == "systemd":
        if not rest.isascii() or not rest.isprintable() or not 0 < len(rest) <= 255 or ":" in rest:
            raise ValueError(f"{text!r}: the name of a socket is expected, as in {SCHEMES[scheme]}")
        return Address(scheme, name=rest)
    if scheme in ("unix", "unixgram"):
        return _parse_unix(text, scheme, rest)
    return _parse_internet(text, scheme, rest)


def _parse_unix(text: str, scheme: str, path: str) -> Address:
    if path.startswith("//"):
        path = path[2:]  # unix:///run/x.sock is written that way elsewhere
    if path in ("", "@") or "\0" in path:
        raise ValueError(f"{text!r}: a path is expected, as in {SCHEMES[scheme]}")
    return Address(scheme, path=_checked_path(text, path))


def _checked_path(text: str, path: str) -> str:
    try:
        objection = unixpath.objection(path)
    except UnicodeEncodeError as error:
        objection = f"{path!r} cannot be the name of a file in this locale ({error.encoding})"
    if objection:
        raise ValueError(f"{text!r}: {objection}")
    return path


def _parse_internet(text: str, scheme: str, rest: str) -> Address:
    if not rest.startswith("//"):
        raise ValueError(f"{text!r}: two slashes are expected, as in {SCHEMES[scheme]}")
    host, colon, port = rest[2:].rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        raise ValueError(f"{text!r}: a port is expected, as in {SCHEMES[scheme]} (0 lets the kernel choose)")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, as in {scheme}://[{host}]:{port}")
    if not (port.isascii() and port.isdigit() and len(port) < 10) or int(port) > 65535:
        raise ValueError(f"{text!r}: the port must be a number from 0 to 65535, not {port!r}")
    if "/" in host or "@" in host or any(character.isspace() for character in host):
        raise ValueError(f"{text!r}: {host!r} is no host name")
    return Address(scheme, host=host.strip("[]"), port=int(port))


def objection(host: str) -> str:
    """Say why a host cannot have this name, wherever it is looked up; "" where it may have."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        cause = error.__cause__ or error  # the codec's own words, without those about the codec
        return getattr(cause, "reason", "") or str(cause)
    return "it has a null character" if "\0" in host else ""


def overlap(one: Address, other: Address) -> bool:
    """Return whether two addresses are the same, or one of them contains the other.

    They are compared by what they are, not by how they are written; of host names, which nobody resolves
    here, only `localhost` is known. With port 0 no address is another's.
    """
    if one.is_unix and other.is_unix and not one.is_abstract and not other.is_abstract:
        return place_of(one.path) == place_of(other.path)
    if one.scheme != other.scheme:
        return False
    if one.is_internet:
        return one.port == other.port != 0 and (covers(one, other) or covers(other, one))
    if one.scheme == "fd":
        return one.fd == other.fd or _same_descriptor(one.fd, other.fd)
    return one == other


def covers(wide: Address, narrow: Address) -> bool:
    """Return whether who listens on `wide` is reached at all of `narrow` too; both of the internet.

    `[::]` is dual stack here, and so contains every other address.
    """
    if wide.scheme != narrow.scheme or wide.port != narrow.port:
        return False
    wide_host, host = (_host_of(one) for one in (wide, narrow))
    if wide_host == "::":
        return ":" in host or socket.has_dualstack_ipv6()
    return wide_host == host or (wide_host == "0.0.0.0" and ":" not in host)


def place_of(path: str) -> tuple[object, ...]:
    """Return what a path leads to, whatever links it is written with: a folder, and a name in it."""
    folder, name = os.path.split(os.path.realpath(path))
    try:
        found = os.stat(folder)
    except OSError:
        return folder, name
    return found.st_dev, found.st_ino, name


def _host_of(address: Address) -> str:
    numeric = address.numeric()
    if numeric is not None:
        return numeric.host
    name = address.host.lower().rstrip(".")
    return "127.0.0.1" if name == "localhost" else name


def _same_descriptor(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


def display(address: Any) -> str:
    """Write a socket address as people do: `127.0.0.1:7007`, `[::1]:7007`, a path, `unnamed`."""
    if isinstance(address, bytes):
        address = "@" + address.lstrip(b"\0").decode("utf-8", "backslashreplace")
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address) if address else "unnamed"
