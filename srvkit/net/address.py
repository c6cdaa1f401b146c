"""One string names one address: `tcp://127.0.0.1:7007`, `unix:run/echo.sock`, `fd:3`, `systemd:echo`.

Only names and numbers: nothing is resolved, opened or bound here.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from srvkit.net import inherited

Kind = Literal["stream", "datagram"]

SCHEMES: dict[str, str] = {
    "tcp": "tcp://HOST:PORT",
    "udp": "udp://HOST:PORT",
    "unix": "unix:PATH or unix:@NAME",
    "unixgram": "unixgram:PATH or unixgram:@NAME",
    "fd": "fd:N",
    "systemd": "systemd:NAME",
}
# sockaddr_un.sun_path is 108 bytes on Linux, 104 on macOS and the BSDs, with the closing NUL.
MAX_UNIX_PATH = 107 if hasattr(socket, "SO_PEERCRED") else 103


@dataclass(frozen=True)
class Address:
    """Where a server listens. `str()` gives the string it was parsed from, in its canonical form."""

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
        """Anchor a relative socket path in `folder`; raises ValueError where that grows too long."""
        if not self.is_unix or self.is_abstract:
            return self
        return replace(self, path=_checked_path(str(self), str(folder / self.path)))


def parse(text: str) -> Address:
    """Read an address; raises ValueError with what is wrong and what would be right."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(SCHEMES.values())
        raise ValueError(f"{text!r} is no address; known are {known}")
    if scheme == "fd":
        if not rest.isascii() or not rest.isdigit():
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
    if len(path.encode()) > MAX_UNIX_PATH:
        raise ValueError(f"{text!r}: {path} is longer than the {MAX_UNIX_PATH} bytes a socket address holds")
    return path


def _parse_internet(text: str, scheme: str, rest: str) -> Address:
    if not rest.startswith("//"):
        raise ValueError(f"{text!r}: two slashes are expected, as in {SCHEMES[scheme]}")
    host, colon, port = rest[2:].rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        raise ValueError(f"{text!r}: a port is expected, as in {SCHEMES[scheme]} (0 lets the kernel choose)")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, as in {scheme}://[{host}]:{port}")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r}: the port must be a number from 0 to 65535, not {port!r}")
    if "/" in host or "@" in host or any(character.isspace() for character in host):
        raise ValueError(f"{text!r}: {host!r} is no host name")
    return Address(scheme, host=host.strip("[]"), port=int(port))


def display(address: Any) -> str:
    """Write a socket address as people do: `127.0.0.1:7007`, `[::1]:7007`, a path, `unnamed`."""
    if isinstance(address, bytes):
        address = "@" + address.lstrip(b"\0").decode("utf-8", "backslashreplace")
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address) if address else "unnamed"
