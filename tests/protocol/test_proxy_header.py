"""PROXY headers from outside: what is one, what is none and how early that is said, and what it tells."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srvkit.errors import PeerError
from srvkit.protocol.proxy_header import LONGEST, ProxyError, ProxyHeader, ProxyTls, parse

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
LOCAL_V1 = ProxyHeader(1, True)
LOCAL_V2 = ProxyHeader(2, True)


def checksum(data: bytes) -> int:
    """CRC-32C bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ 0x82F63B78 if register & 1 else register >> 1
    return register ^ 0xFFFFFFFF


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def binary(rest: bytes = b"", *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def pair(source: str, source_port: int, destination: str, destination_port: int) -> bytes:
    """The addresses of version 2."""
    hosts = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    return hosts + struct.pack("!HH", source_port, destination_port)


def with_checksum(header: bytes, at: int) -> bytes:
    """Fill the four bytes at `at`, zero so far."""
    return header[:at] + struct.pack("!I", checksum(header)) + header[at + 4 :]


def unix(source: bytes, destination: bytes) -> bytes:
    return source.ljust(108, b"\0") + destination.ljust(108, b"\0")


INET = pair("192.0.2.1", 5000, "198.51.100.2", 443)
INET6 = pair("2001:db8::1", 5000, "2001:db8::2", 443)
IPV4_ENDS: dict[str, Any] = {"source": ("192.0.2.1", 5000), "destination": ("198.51.100.2", 443)}
IPV6_ENDS: dict[str, Any] = {
    "source": ("2001:db8::1", 5000, 0, 0),
    "destination": ("2001:db8::2", 443, 0, 0),
}
CHECKED = with_checksum(binary(INET + tlv(3, bytes(4)) + tlv(5, b"id")), 16 + 12 + 3)

VALID: dict[str, tuple[bytes, ProxyHeader]] = {
    "v1 IPv4": (
        b"PROXY TCP4 192.0.2.1 198.51.100.2 5000 443\r\n",
        ProxyHeader(1, False, **IPV4_ENDS),
    ),
    "v1 IPv4, longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        ProxyHeader(1, False, ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "v1 IPv4, shortest": (
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n",
        ProxyHeader(1, False, ("0.0.0.0", 0), ("0.0.0.0", 0)),
    ),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n", ProxyHeader(1, False, **IPV6_ENDS)),
    "v1 IPv6, capitals, zeros": (
        b"PROXY TCP6 2001:0DB8:0:0:0:0:0:0001 2001:DB8::2 5000 443\r\n",
        ProxyHeader(1, False, **IPV6_ENDS),
    ),
    "v1 IPv6, longest": (
        b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
        ProxyHeader(1, False, (":".join(["ffff"] * 8), 65535, 0, 0), (":".join(["ffff"] * 8), 65535, 0, 0)),
    ),
    "v1 IPv4 in IPv6": (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6402 5000 443\r\n",
        ProxyHeader(1, False, **IPV4_ENDS),
    ),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", LOCAL_V1),
    "v1 unknown, addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", LOCAL_V1),
    "v1 unknown, anything": (b"PROXY UNKNOWN  \0\xff GET / \r\n", LOCAL_V1),
    "v1 unknown, 107 bytes": (b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n", LOCAL_V1),
    "v2 IPv4": (binary(INET), ProxyHeader(2, False, **IPV4_ENDS)),
    "v2 IPv4, datagrams": (binary(INET, family=0x12), ProxyHeader(2, False, **IPV4_ENDS)),
    "v2 IPv6": (binary(INET6, family=0x21), ProxyHeader(2, False, **IPV6_ENDS)),
    "v2 IPv6, datagrams": (binary(INET6, family=0x22), ProxyHeader(2, False, **IPV6_ENDS)),
    "v2 IPv4 in IPv6": (
        binary(pair("::ffff:192.0.2.1", 5000, "::ffff:198.51.100.2", 443), family=0x21),
        ProxyHeader(2, False, **IPV4_ENDS),
    ),
    "v2 Unix": (
        binary(unix(b"/run/client", b"/run/server"), family=0x31),
        ProxyHeader(2, False, "/run/client", "/run/server"),
    ),
    "v2 Unix, datagrams": (
        binary(unix(b"/run/client\0behind", b"/run/server"), family=0x32),
        ProxyHeader(2, False, "/run/client", "/run/server"),
    ),
    "v2 Unix, unnamed and abstract": (
        binary(unix(b"", b"\0name"), family=0x31),
        ProxyHeader(2, False, "", "@name"),
    ),
    "v2 Unix, whole field, not UTF-8": (
        binary(unix(b"/" + b"\xff" * 107, b"/run/server"), family=0x31),
        ProxyHeader(2, False, os.fsdecode(b"/" + b"\xff" * 107), "/run/server"),
    ),
    "v2 local": (binary(command=0x20, family=0), LOCAL_V2),
    "v2 local, addresses": (binary(INET, command=0x20), LOCAL_V2),
    "v2 local, unknown family": (binary(b"\1\2\3", command=0x20, family=0xF7), LOCAL_V2),
    "v2 local, nothing where addresses belong": (binary(command=0x20), LOCAL_V2),
    "v2 unspecified": (binary(family=0), LOCAL_V2),
    "v2 unspecified, unreadable": (binary(b"\1\2\3\4\5", family=0), LOCAL_V2),
    "v2 unspecified, values": (binary(tlv(5, b"id"), family=1), ProxyHeader(2, True, tlvs=((5, b"id"),))),
    "v2 unspecified protocol": (
        binary(INET + tlv(5, b"id"), family=0x10),
        ProxyHeader(2, True, tlvs=((5, b"id"),)),
    ),
    "v2 values": (
        binary(INET6 + tlv(1, b"h2") + tlv(0xE0, b"") + tlv(1, b"http/1.1"), family=0x21),
        ProxyHeader(2, False, **IPV6_ENDS, tlvs=((1, b"h2"), (0xE0, b""), (1, b"http/1.1"))),
    ),
    "v2 padding": (
        binary(INET + tlv(4, b"") + tlv(1, b"h2") + tlv(4, b"xyz")),
        ProxyHeader(2, False, **IPV4_ENDS, tlvs=((1, b"h2"),)),
    ),
    "v2 checksum": (CHECKED, ProxyHeader(2, False, **IPV4_ENDS, tlvs=((3, CHECKED[31:35]), (5, b"id")))),
    "v2 id of 128 bytes": (
        binary(INET + tlv(5, b"i" * 128)),
        ProxyHeader(2, False, **IPV4_ENDS, tlvs=((5, b"i" * 128),)),
    ),
    "v2 longest": (
        binary(INET + tlv(0xE0, bytes(LONGEST - 16 - 12 - 3))),
        ProxyHeader(2, False, **IPV4_ENDS, tlvs=((0xE0, bytes(LONGEST - 31)),)),
    ),
}

MALFORMED = "malformed PROXY line"
NO_HEADER = "a PROXY protocol header was expected, not b"
# What is refused, and why. The last byte of each is the first that gives it away.
INVALID: dict[str, tuple[bytes, str]] = {
    "another protocol": (b"G", NO_HEADER),
    "LF": (b"\n", NO_HEADER),
    "TLS": (b"\x16", NO_HEADER),
    "HTTP": (b"PO", NO_HEADER),
    "small letters": (b"Pr", NO_HEADER),
    "v1 without a space": (b"PROXY\r", NO_HEADER),
    "v1 two spaces": (b"PROXY  ", MALFORMED),
    "v1 tab": (b"PROXY\t", NO_HEADER),
    "v1 TCP5": (b"PROXY TCP5", MALFORMED),
    "v1 UDP4": (b"PROXY UD", MALFORMED),
    "v1 no protocol": (b"PROXY \r", MALFORMED),
    "v1 no addresses": (b"PROXY TCP4\r", MALFORMED),
    "v1 spaces before the source": (b"PROXY TCP4  ", MALFORMED),
    "v1 spaces before the destination": (b"PROXY TCP4 192.0.2.1  ", MALFORMED),
    "v1 spaces before a port": (b"PROXY TCP4 192.0.2.1 192.0.2.2  ", MALFORMED),
    "v1 space behind the ports": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ", MALFORMED),
    "v1 no destination": (b"PROXY TCP4 192.0.2.1\r", MALFORMED),
    "v1 no port": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r", MALFORMED),
    "v1 lone LF": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", MALFORMED),
    "v1 lone CR": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rG", MALFORMED),
    "v1 CR twice": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r", MALFORMED),
    "v1 unknown, lone LF": (b"PROXY UNKNOWN\n", MALFORMED),
    "v1 unknown, lone LF behind": (b"PROXY UNKNOWN x\n", MALFORMED),
    "v1 unknown, lone CR": (b"PROXY UNKNOWN x\rx", MALFORMED),
    "v1 unknown and more": (b"PROXY UNKNOWNX", MALFORMED),
    "v1 unknown, too long": (b"PROXY UNKNOWN ".ljust(106, b"x"), "of more than 107 bytes"),
    "v1 IPv6, too long": (
        b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 6) + b":255.255.255.255"] * 2) + b" 123",
        "PROXY line",
    ),
    "v1 NUL": (b"PROXY TCP4 192.0.2.1\0", MALFORMED),
    "v1 host name": (b"PROXY TCP4 l", MALFORMED),
    "v1 IPv6 for IPv4": (b"PROXY TCP4 :", MALFORMED),
    "v1 zone": (b"PROXY TCP6 fe80::1%", MALFORMED),
    "v1 sign": (b"PROXY TCP4 192.0.2.1 192.0.2.2 +", MALFORMED),
    "v1 port with a zero in front": (b"PROXY TCP4 192.0.2.1 192.0.2.2 01", MALFORMED),
    "v1 port of six digits": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 100000", MALFORMED),
    "v1 address of 16 digits": (b"PROXY TCP4 1111111111111111", MALFORMED),
    "v1 port too high": (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", "has 65536 for a port"),
    "v1 other port too high": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 99999\r\n", "has 99999 for a port"),
    "v1 octet too high": (b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n", "has '192.0.2.256' for an address"),
    "v1 octal": (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", "has '192.0.2.01' for an address"),
    "v1 three octets": (b"PROXY TCP4 192.0.2.1 192.0.2 1 2\r\n", "has '192.0.2' for an address"),
    "v1 IPv4 for IPv6": (b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n", "has '192.0.2.1' for an address"),
    "v1 two gaps": (b"PROXY TCP6 1::2::3 ::1 1 2\r\n", "has '1::2::3' for an address"),
    "v1 five digits": (b"PROXY TCP6 ::1 12345:: 1 2\r\n", "has '12345::' for an address"),
    "v2 signature": (SIGNATURE[:11] + b"\r", NO_HEADER),
    "v2 empty lines": (b"\r\n\r\nG", NO_HEADER),
    "v2 version 1": (SIGNATURE + b"\x11", "unknown version and command 0x11"),
    "v2 version 3": (SIGNATURE + b"\x31", "unknown version and command 0x31"),
    "v2 command 2": (SIGNATURE + b"\x22", "unknown version and command 0x22"),
    "v2 family 4": (SIGNATURE + b"\x21\x41", "unknown family and protocol 0x41"),
    "v2 protocol 3": (SIGNATURE + b"\x21\x13", "unknown family and protocol 0x13"),
    "v2 short IPv4": (binary(length=11), "whose 11 bytes cannot hold its addresses"),
    "v2 short IPv6": (binary(length=35, family=0x21), "cannot hold its addresses"),
    "v2 short Unix": (binary(length=215, family=0x31), "cannot hold its addresses"),
    "v2 short, unspecified protocol": (binary(length=11, family=0x10), "cannot hold its addresses"),
    "v2 too long": (binary(length=LONGEST - 15), f"of {LONGEST + 1} bytes, more than {LONGEST}"),
    "v2 much too long": (binary(length=65535), "of 65551 bytes"),
    "v2 local, too long": (binary(length=65535, command=0x20, family=0), "of 65551 bytes"),
    "v2 a byte too many": (binary(INET + b"\1"), "type 0x01 is cut short"),
    "v2 value without its length": (binary(INET + b"\1\0"), "type 0x01 is cut short"),
    "v2 value too long": (binary(INET + tlv(5, b"id") + b"\2\0\2x"), "type 0x02 is cut short"),
    "v2 wrong checksum": (CHECKED[:-1] + b"D", "wrong checksum"),
    "v2 wrong checksum, unspecified": (binary(tlv(3, bytes(4)), family=0), "wrong checksum"),
    "v2 checksum of 3 bytes": (binary(INET + tlv(3, bytes(3))), "not 4 bytes"),
    "v2 two checksums": (
        with_checksum(binary(INET + tlv(3, bytes(4)) + tlv(3, bytes(4))), 16 + 12 + 3),
        "two of them",
    ),
    "v2 id of 129 bytes": (binary(INET + tlv(5, b"i" * 129)), "id of 129 bytes"),
    "v2 short TLS": (binary(INET + tlv(0x20, bytes(4))), "TLS value is cut short"),
    "v2 cut within TLS": (binary(INET + tlv(0x20, bytes(5) + b"\x21\0\1")), "type 0x21 is cut short"),
}


def valid(name: str) -> bytes:
    return VALID[name][0]


@pytest.mark.parametrize("name", VALID)
def test_a_header_is_read(name: str) -> None:
    data, header = VALID[name]
    assert parse(data) == (header, len(data))
    assert parse(bytearray(data)) == (header, len(data))


@pytest.mark.parametrize("name", VALID)
def test_a_header_may_come_byte_by_byte(name: str) -> None:
    data, header = VALID[name]
    for end in range(len(data)):
        assert parse(data[:end]) is None
    assert parse(data) == (header, len(data))


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_header_is_refused_as_soon_as_that_is_certain(name: str) -> None:
    data, reason = INVALID[name]
    assert parse(data[:-1]) is None
    for behind in (b"", b"\r\n", bytes(70_000)):
        with pytest.raises(ProxyError) as caught:
            parse(data + behind)
        assert reason in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert isinstance(caught.value, PeerError)


def test_nothing_is_the_beginning_of_anything() -> None:
    assert parse(b"") is None
    assert parse(bytearray()) is None


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("behind", [b"\0", b"\r\n", valid("v1 IPv6"), valid("v2 local"), b"x" * LONGEST])
def test_what_is_behind_a_header_changes_nothing(name: str, behind: bytes) -> None:
    data, header = VALID[name]
    assert parse(data + behind) == (header, len(data))


def test_the_values_of_a_header_have_names() -> None:
    values = tlv(1, b"h2") + tlv(2, "exämple.org".encode()) + tlv(5, b"\0\xff") + tlv(0x30, b"blue")
    found = parse(binary(INET + values + tlv(1, b"http/1.1")))
    assert found is not None
    header = found[0]
    assert header.alpn == "h2"  # the first of two
    assert header.authority == "exämple.org"
    assert header.unique_id == b"\0\xff"
    assert header.netns == "blue"
    assert header.tls is None


def test_a_header_without_values_has_none() -> None:
    for header in (LOCAL_V1, VALID["v1 IPv4"][1], VALID["v2 IPv4"][1]):
        assert (header.alpn, header.authority, header.unique_id, header.netns, header.tls) == (None,) * 5


def test_text_that_is_no_text_can_be_read_all_the_same() -> None:
    found = parse(
        binary(
            INET
            + tlv(1, b"h\xff2")
            + tlv(2, b"\xc3")
            + tlv(0x30, b"\x80")
            + tlv(0x20, bytes(5) + tlv(0x22, b"\xe4"))
        )
    )
    assert found is not None
    header = found[0]
    assert (header.alpn, header.authority, header.netns) == (r"h\xff2", r"\xc3", r"\x80")
    assert header.tls == ProxyTls(False, False, False, common_name=r"\xe4")


@pytest.mark.parametrize(
    ("client", "verify", "expected"),
    [
        (0x00, 0, (False, False, False)),
        (0x01, 0, (True, False, False)),  # no certificate: nothing was verified
        (0x02, 1, (False, True, False)),
        (0x03, 0, (True, True, True)),
        (0x05, 0, (True, True, True)),  # presented earlier in the session
        (0x07, 1, (True, True, False)),
        (0x07, 0x01000000, (True, True, False)),
        (0xF8, 0, (False, False, False)),  # bits without a meaning yet
    ],
)
def test_the_clients_tls_is_told(client: int, verify: int, expected: tuple[bool, bool, bool]) -> None:
    found = parse(binary(INET + tlv(0x20, struct.pack("!BI", client, verify))))
    assert found is not None and found[0].tls is not None
    tls = found[0].tls
    assert (tls.client_ssl, tls.has_certificate, tls.is_verified) == expected


def test_the_clients_tls_has_texts() -> None:
    texts = {0x21: b"TLSv1.3", 0x22: b"client", 0x23: b"AES", 0x24: b"SHA256", 0x25: b"RSA2048", 0x7F: b"?"}
    inner = b"".join(tlv(kind, value) for kind, value in texts.items()) + tlv(0x22, b"another")
    found = parse(binary(INET + tlv(0x20, b"\x03" + bytes(4) + inner)))
    assert found is not None
    assert found[0].tls == ProxyTls(True, True, True, "TLSv1.3", "AES", "client", "SHA256", "RSA2048")


def test_the_checksum_is_the_one_of_rfc_3720() -> None:
    """Of its appendix B.4: the checksum of 32 zero bytes; and the usual check value."""
    assert checksum(bytes(32)) == 0x8A9136AA
    assert checksum(b"123456789") == 0xE3069283


def check(data: bytes) -> None:
    """Whatever comes: a header within its bounds, a wait for more, or a ProxyError."""
    found, reason = None, ""
    try:
        found = parse(data)
    except ProxyError as error:
        reason = str(error)
    assert not reason or reason.isprintable()
    if found is None:
        return
    header, size = found
    assert 0 < size <= min(len(data), LONGEST)
    assert parse(data[:size]) == found
    assert parse(data[: size - 1]) is None
    assert isinstance(header.is_local, bool)
    for address in (header.source, header.destination):
        assert (address is None) == header.is_local
    _ = (header.alpn, header.authority, header.unique_id, header.netns, header.tls)


beginnings = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", SIGNATURE])


@settings(max_examples=300)
@given(beginnings, st.binary(max_size=300))
def test_any_bytes_are_a_header_or_none(beginning: bytes, rest: bytes) -> None:
    check(beginning + rest)


@settings(max_examples=300)
@given(
    st.sampled_from([0x20, 0x21]),
    st.sampled_from([0x00, 0x01, 0x10, 0x11, 0x21, 0x31, 0x32]),
    st.binary(max_size=400),
    st.integers(-3, 3),
)
def test_any_bytes_behind_a_start_are_a_header_or_none(
    command: int, family: int, rest: bytes, more: int
) -> None:
    check(binary(rest, command=command, family=family, length=max(0, len(rest) + more)))


@pytest.mark.parametrize("seed", range(10))
def test_damaged_headers_are_headers_or_none(seed: int) -> None:
    """Bytes changed, removed, inserted and doubled: 200 headers for each seed."""
    chance = random.Random(seed)
    whole = [data for data, _ in VALID.values() if len(data) < 1000]
    for _ in range(200):
        data = bytearray(chance.choice(whole) + b"GET / HTTP/1.1\r\n")
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(5):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    data[at] ^= 1 << chance.randrange(8)
                case 2 if len(data) > 1:
                    del data[at : at + chance.randint(1, 4)]
                    data += b"x" * (not data)
                case 3:
                    data[at:at] = chance.randbytes(chance.randint(1, 4))
                case _:
                    data[at:at] = data[at : at + chance.randint(1, 20)]
        check(bytes(data))


ports = st.integers(0, 65535)
families = st.sampled_from([4, 6])


@given(st.data(), families, ports, ports, st.binary(max_size=20))
def test_what_a_proxy_writes_is_read(
    data: st.DataObject, family: int, source_port: int, destination_port: int, behind: bytes
) -> None:
    """Both versions of the same connection, written by other means than they are read by."""
    addresses = st.ip_addresses(v=family)
    source, destination = data.draw(addresses), data.draw(addresses)

    def end(address: Any, port: int) -> tuple[Any, ...]:
        mapped = address.ipv4_mapped if family == 6 else address
        if mapped is not None:
            return str(mapped), port
        return socket.inet_ntop(socket.AF_INET6, address.packed), port, 0, 0

    ends = end(source, source_port), end(destination, destination_port)
    line = f"PROXY TCP{family} {source} {destination} {source_port} {destination_port}\r\n".encode()
    assert parse(line + behind) == (ProxyHeader(1, False, *ends), len(line))
    values = data.draw(st.lists(st.tuples(st.integers(0xE0, 0xFF), st.binary(max_size=50)), max_size=5))
    rest = pair(str(source), source_port, str(destination), destination_port)
    rest += b"".join(tlv(kind, value) for kind, value in values)
    header = binary(rest + tlv(3, bytes(4)), family=0x11 if family == 4 else 0x21)
    header = with_checksum(header, len(header) - 4)
    expected = ProxyHeader(2, False, *ends, tlvs=(*values, (3, header[-4:])))
    assert parse(header + behind) == (expected, len(header))
