"""The PROXY protocol, receiving side: what a proxy says about the client in front of a connection's bytes.

Both versions, by HAProxy's specification (doc/proxy-protocol.txt, "the specification" below). Bytes go in,
a header comes out: nothing here knows of sockets, of waiting, or of who may be believed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from os import fsdecode
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from srvkit.contracts import Duration, setting
from srvkit.errors import PeerError

LONGEST = 8192  # bytes of a header; version 2 could announce 65551, and no proxy needs a tenth of that

ProxyAddress = tuple[str, int] | tuple[str, int, int, int] | str
Tlvs = tuple[tuple[int, bytes], ...]

_LONGEST_LINE = 107  # the specification, 2.1; with its CR LF
_SHOWN = 60  # bytes of a peer's that an error quotes


@dataclass(frozen=True)
class ProxySettings:
    """`[server.NAME.proxy]`: that a proxy stands in front, and which one is believed."""

    trusted: list[str] = setting(
        [],
        "who may speak the PROXY protocol: networks like 10.0.0.0/8, or uid:N and gid:N on Unix sockets",
    )
    header_timeout: Duration = setting(
        5.0,
        "how long the header may take; the specification asks for 3 s at least, to outlast a lost packet",
        minimum=0,
    )


class ProxyError(PeerError):
    """What came is no header of the PROXY protocol."""


@dataclass(frozen=True, slots=True)
class ProxyTls:
    """What a proxy says about the TLS it has ended. Text that is no UTF-8 has backslashes in it."""

    client_ssl: bool  # the client spoke TLS with the proxy
    has_certificate: bool  # it presented one, on this connection or earlier in its TLS session
    is_verified: bool  # it presented one, and the proxy found it good
    version: str | None = None  # "TLSv1.3"
    cipher: str | None = None
    common_name: str | None = None  # of the client's certificate
    signature_algorithm: str | None = None  # of the proxy's own certificate
    key_algorithm: str | None = None


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy says about a connection.

    Addresses are as Python's sockets write them; IPv4 within IPv6 is IPv4. On Unix sockets they are the
    path, "@name" for an abstract one, "" for one without a name. Of values that may come several times,
    the properties return the first.
    """

    version: int
    is_local: bool  # nobody is spoken for, or no address is known: the socket's own addresses hold
    source: ProxyAddress | None = None
    destination: ProxyAddress | None = None
    tlvs: Tlvs = ()  # type and value, as they came; without padding

    @property
    def alpn(self) -> str | None:
        """The application protocol that was agreed on, "h2"."""
        return _text(self._value(_ALPN))

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for; of TLS, its server name indication."""
        return _text(self._value(_AUTHORITY))

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's own id of the connection, 128 bytes at most."""
        return self._value(_UNIQUE_ID)

    @property
    def netns(self) -> str | None:
        """The network namespace that the client came through."""
        return _text(self._value(_NETNS))

    @property
    def tls(self) -> ProxyTls | None:
        """What is known of the TLS between client and proxy."""
        value = self._value(_SSL)
        return None if value is None else _read_tls(value)

    def _value(self, wanted: int) -> bytes | None:
        return next((value for kind, value in self.tlvs if kind == wanted), None)


def parse(data: bytes | bytearray) -> tuple[ProxyHeader, int] | None:
    """Return the header at the beginning of `data`, and its length in bytes; None while it is incomplete.

    What follows the header is not looked at. Raises ProxyError as soon as the form of what came cannot
    become a header any more; addresses and values are judged when all of it is there (as the
    specification wants it). It is `LONGEST` bytes at most; a longer one is refused by what it announces.
    """
    first = data[:1]
    if not first:
        return None
    if first == b"P":
        return _parse_line(data)
    if first == _SIGNATURE[:1]:
        return _parse_binary(data)
    raise _no_header(data)


def unmapped(address: Any) -> Any:
    """Return the IPv4 address of an IPv4 client that came through a dual-stack socket; any other as it is."""
    if len(address) == 4 and address[0].startswith("::ffff:") and "." in address[0]:
        return address[0][7:], address[1]
    return address


def _no_header(data: bytes | bytearray) -> ProxyError:
    return ProxyError(f"a PROXY protocol header was expected, not {bytes(data[:16])!r}")


# Version 1, a line in pieces. Whatever a piece matches, each beginning of that matches too, so that an
# unfinished line can be judged by its form.
_PORT = rb"(0|[1-9][0-9]{0,4})"
_PORTS = (b" ", _PORT, b" ", _PORT, b"\r", b"\n")
_IPV4 = rb"([0-9.]{1,15})"
_IPV6 = rb"([0-9A-Fa-f:.]{1,45})"
_LINES: tuple[list[bytes], ...] = (
    [*map(str.encode, "PROXY TCP4 "), _IPV4, b" ", _IPV4, *_PORTS],
    [*map(str.encode, "PROXY TCP6 "), _IPV6, b" ", _IPV6, *_PORTS],
    [*map(str.encode, "PROXY UNKNOWN"), rb"(?: [^\r\n]*)?", b"\r", b"\n"],
)


_LINE = re.compile(b"|".join(map(b"".join, _LINES)))


@cache  # it takes 1 ms to compile, and is wanted only when a header comes in parts, or none comes
def _beginning() -> re.Pattern[bytes]:
    patterns = []
    for pieces in _LINES:
        pattern = b""
        for piece in reversed(pieces):
            pattern = b"(?:" + piece + pattern + b")?"
        patterns.append(pattern)
    return re.compile(b"|".join(patterns))


def _parse_line(data: bytes | bytearray) -> tuple[ProxyHeader, int] | None:
    match = _LINE.match(data, 0, _LONGEST_LINE)
    if match is None:
        _check_beginning(data)
        return None
    last = match.lastindex
    if last is None:
        return ProxyHeader(1, True), match.end()
    family = AF_INET if last == 4 else AF_INET6
    source, destination, source_port, destination_port = match.group(last - 3, last - 2, last - 1, last)
    header = ProxyHeader(
        1,
        False,
        _address_from_text(family, source.decode(), int(source_port)),
        _address_from_text(family, destination.decode(), int(destination_port)),
    )
    return header, match.end()


def _check_beginning(data: bytes | bytearray) -> None:
    if _beginning().fullmatch(data, 0, _LONGEST_LINE) is None:
        line = bytes(data[:_LONGEST_LINE])
        if not line.startswith(b"PROXY "):
            raise _no_header(data)
        raise ProxyError(f"malformed PROXY line {line[:_SHOWN]!r}")
    missing = 1 if data.endswith(b"\r") else 2
    if len(data) + missing > _LONGEST_LINE:
        raise ProxyError(f"PROXY line of more than {_LONGEST_LINE} bytes: {bytes(data[:_SHOWN])!r}")


def _address_from_text(family: int, host: str, port: int) -> ProxyAddress:
    try:
        packed = inet_pton(family, host)
    except OSError:
        raise ProxyError(f"the PROXY line has {host!r} for an address") from None
    if port > 65535:
        raise ProxyError(f"the PROXY line has {port} for a port")
    address = _address(family, packed, port)
    # Some systems let leading zeros pass, which others read as octal numbers.
    if family == AF_INET and address[0] != host:
        raise ProxyError(f"the PROXY line has {host!r} for an address")
    return address


def _address(family: int, packed: bytes, port: int) -> ProxyAddress:
    host = inet_ntop(family, packed)
    if family == AF_INET:
        return host, port
    address: ProxyAddress = unmapped((host, port, 0, 0))
    return address


# Version 2, binary.
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_START = struct.Struct("!12sBBH")  # signature, version and command, family and protocol, bytes that follow
_INET = struct.Struct("!4s4sHH")
_INET6 = struct.Struct("!16s16sHH")
_UNIX = struct.Struct("!108s108s")
_ADDRESSES = {0: 0, 1: _INET.size, 2: _INET6.size, 3: _UNIX.size}  # bytes, by family

_ALPN = 0x01
_AUTHORITY = 0x02
_CRC32C = 0x03
_NOOP = 0x04
_UNIQUE_ID = 0x05
_SSL = 0x20
_SSL_VERSION = 0x21
_SSL_CN = 0x22
_SSL_CIPHER = 0x23
_SSL_SIG_ALG = 0x24
_SSL_KEY_ALG = 0x25
_NETNS = 0x30


def _parse_binary(data: bytes | bytearray) -> tuple[ProxyHeader, int] | None:
    start = bytes(data[: _START.size])
    _check_start(start)
    if len(start) < _START.size:
        return None
    _, command, kind, length = _START.unpack(start)
    size = _START.size + length
    if len(data) < size:
        return None
    if command == 0x20:  # LOCAL: the specification has the rest discarded unread
        return ProxyHeader(2, True), size
    header = bytes(data[:size])
    family, protocol = kind >> 4, kind & 0x0F
    if family == 0:
        return ProxyHeader(2, True, tlvs=_unspecified(header)), size
    tlvs = _read_tlvs(header, _START.size + _ADDRESSES[family])
    if protocol == 0:
        return ProxyHeader(2, True, tlvs=tlvs), size
    source, destination = _read_addresses(header, family)
    return ProxyHeader(2, False, source, destination, tlvs), size


def _check_start(start: bytes) -> None:
    """Raise ProxyError where the fixed part, as much of it as is there, announces something unsupported."""
    if start[:12] != _SIGNATURE[: len(start)]:
        raise _no_header(start)
    if len(start) > 12 and start[12] not in (0x20, 0x21):
        raise ProxyError(f"PROXY header of unknown version and command 0x{start[12]:02x}")
    # LOCAL is to be accepted whatever its family is.
    is_local = len(start) > 12 and start[12] == 0x20
    if len(start) > 13 and not is_local and (start[13] >> 4 > 3 or start[13] & 0x0F > 2):
        raise ProxyError(f"PROXY header of unknown family and protocol 0x{start[13]:02x}")
    if len(start) == _START.size:
        length = int.from_bytes(start[14:], "big")
        if _START.size + length > LONGEST:
            raise ProxyError(f"PROXY header of {_START.size + length} bytes, more than {LONGEST}")
        if not is_local and length < _ADDRESSES[start[13] >> 4]:
            raise ProxyError(f"PROXY header whose {length} bytes cannot hold its addresses")


def _read_addresses(header: bytes, family: int) -> tuple[ProxyAddress, ProxyAddress]:
    if family == 3:
        source, destination = _UNIX.unpack_from(header, _START.size)
        return _unix_address(source), _unix_address(destination)
    layout, af = (_INET, AF_INET) if family == 1 else (_INET6, AF_INET6)
    source, destination, source_port, destination_port = layout.unpack_from(header, _START.size)
    return _address(af, source, source_port), _address(af, destination, destination_port)


def _unix_address(field: bytes) -> str:
    name = field.partition(b"\0")[0]
    if name:
        return fsdecode(name)
    name = field[1:].partition(b"\0")[0]
    return "@" + fsdecode(name) if name else ""


def _unspecified(header: bytes) -> Tlvs:
    """Return the values of a header whose addresses, if it has any, are of no known length."""
    try:
        list(_walk(header, _START.size))
    except ProxyError:
        return ()
    return _read_tlvs(header, _START.size)


def _walk(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield the type, and where the value begins and ends, of all from `start` on. Raises ProxyError."""
    while start < len(data):
        begin = start + 3
        end = begin + int.from_bytes(data[start + 1 : begin], "big")
        if end > len(data):
            raise ProxyError(f"PROXY header whose value of type 0x{data[start]:02x} is cut short")
        yield data[start], begin, end
        start = end


def _read_tlvs(header: bytes, start: int) -> Tlvs:
    found: list[tuple[int, bytes]] = []
    for kind, begin, end in _walk(header, start):
        value = header[begin:end]
        if kind == _NOOP:
            continue
        if kind == _CRC32C:
            if len(value) != 4 or any(earlier == _CRC32C for earlier, _ in found):
                raise ProxyError("PROXY header with a checksum that is not 4 bytes, or with two of them")
            if _crc32c(header[:begin] + bytes(4) + header[end:]) != int.from_bytes(value, "big"):
                raise ProxyError("PROXY header with a wrong checksum")
        elif kind == _UNIQUE_ID and len(value) > 128:
            raise ProxyError(f"PROXY header with an id of {len(value)} bytes, more than 128")
        elif kind == _SSL:
            _read_tls(value)
        found.append((kind, value))
    return tuple(found)


def _read_tls(value: bytes) -> ProxyTls:
    if len(value) < 5:
        raise ProxyError("PROXY header whose TLS value is cut short")
    client, verify = value[0], value[1:5]
    texts: dict[int, str | None] = {}
    for kind, begin, end in _walk(value, 5):
        texts.setdefault(kind, _text(value[begin:end]))
    has_certificate = bool(client & 0x06)
    return ProxyTls(
        client_ssl=bool(client & 0x01),
        has_certificate=has_certificate,
        is_verified=has_certificate and not any(verify),
        version=texts.get(_SSL_VERSION),
        cipher=texts.get(_SSL_CIPHER),
        common_name=texts.get(_SSL_CN),
        signature_algorithm=texts.get(_SSL_SIG_ALG),
        key_algorithm=texts.get(_SSL_KEY_ALG),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C of bytes (RFC 4960, appendix B)."""
    table = _crc32c_table()
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = checksum >> 8 ^ table[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF
