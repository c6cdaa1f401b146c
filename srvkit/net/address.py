"""One string names one address: `tcp://127.0.0.1:7007`, `unix:run/echo.sock`, `fd:3`.

Only names and numbers: nothing is resolved, opened or bound here.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["stream", "datagram"]

SCHEMES: dict[str, str] = {
    "tcp": "tcp://HOST:PORT",
    "udp": "udp://HOST:PORT",
    "unix": "unix:PATH or unix:@NAME",
    "unixgram": "unixgram:PATH or unixgram:@NAME",
    "fd": "fd:N",
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

    def __str__(self) -> str:
        if self.scheme in ("tcp", "udp"):
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"{self.scheme}://{host}:{self.port}"
        return f"{self.scheme}:{self.fd if self.scheme == 'fd' else self.path}"

    @property
    def kind(self) -> Kind:
        """`stream` or `datagram`; for `fd` it is what the descriptor says (OSError if it is no socket)."""
        if self.scheme == "fd":
            with socket.socket(fileno=socket.dup(self.fd)) as copy:
                return "stream" if copy.type == socket.SOCK_STREAM else "datagram"
        return "stream" if self.scheme in ("tcp", "unix") else "datagram"

    @property
    def is_unix(self) -> bool:
        return self.scheme in ("unix", "unixgram")

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
