"""PEM files taken apart: which blocks there are, and what certificates and lists say of themselves.

OpenSSL takes what it knows from such a file and is silent about the rest. Here the rest is found, and of
DER as much is read as is needed for names and dates; whether anything is genuine is OpenSSL's to say.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

CERTIFICATES = ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")
LISTS = ("X509 CRL",)
_KEY = re.compile(r"([A-Z0-9]+ )*(PRIVATE KEY|PARAMETERS)")
_BLOCK = re.compile(
    rb"^-----BEGIN ([A-Z0-9 ]+)-----[ \t]*\r?\n(.*?)^-----END \1-----[ \t]*\r?$", re.MULTILINE | re.DOTALL
)
_BROKEN = re.compile(rb"-{2,} *(BEGIN|END)\b")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
_SHORT = {"2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.10": "O", "2.5.4.11": "OU"}
_SEQUENCE, _INTEGER, _OID, _UTC_TIME, _TIME = 0x30, 0x02, 0x06, 0x17, 0x18
_STRINGS = {0x0C: "utf-8", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}  # anything else is read as Latin-1

Name = tuple[tuple[str, str], ...]  # pairs of an attribute and its value


class PemError(ValueError):
    """A file holds something that is no PEM."""


@dataclass(frozen=True)
class Block:
    """One block: its label, the text as it stands in the file, and the line it begins on."""

    label: str
    text: bytes
    line: int

    @property
    def is_certificate(self) -> bool:
        return self.label in CERTIFICATES

    @property
    def is_list(self) -> bool:
        """Whether it is a list of revoked certificates."""
        return self.label in LISTS

    @property
    def is_key(self) -> bool:
        return _KEY.fullmatch(self.label) is not None

    @property
    def der(self) -> bytes:
        """The bytes it stands for; raises PemError where it has headers, or is no base64."""
        body = b"".join(self.text.split(b"\n", 1)[1].rsplit(b"-----END", 1)[0].split())
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise PemError(f"the {self.label} on line {self.line} is no base64: {error}") from None


@dataclass(frozen=True)
class Facts:
    """What a certificate or a revocation list says of itself; times on the wall clock, None where unsaid."""

    subject: Name  # of a list: whoever issued it
    begins: float | None
    ends: float | None


def blocks(data: bytes) -> list[Block]:
    """Return the blocks of a file. Raises PemError for what only looks like one, and for binary data."""
    found = []
    end = 0
    for match in _BLOCK.finditer(data):
        _check_between(data, end, match.start())
        if b"-----" in match[2]:  # another one begins in it
            raise PemError(f"line {_line(data, match.start())} begins a block that does not end")
        end = match.end()
        found.append(Block(match[1].decode(), match[0], _line(data, match.start())))
    _check_between(data, end, len(data))
    return found


def _check_between(data: bytes, start: int, end: int) -> None:
    between = data[start:end]
    if binary := _BINARY.search(between):
        raise PemError(f"there are bytes that are no PEM, from line {_line(data, start + binary.start())} on")
    if broken := _BROKEN.search(between):
        where = _line(data, start + broken.start())
        raise PemError(f"line {where} begins or ends a block and has no counterpart")


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def certificate_facts(der: bytes) -> Facts:
    """Return the facts of a certificate (RFC 5280, 4.1). Raises PemError if it is malformed."""
    try:
        fields = [item for item in _items(_inside(_inside(der))) if item[0] != 0xA0]  # the version
        _serial, _algorithm, _issuer, validity, subject = fields[:5]
        begins, ends = _items(validity[1])
        return Facts(_name(subject[1]), _time(*begins), _time(*ends))
    except (IndexError, ValueError) as error:
        raise PemError("no certificate") from error


def list_facts(der: bytes) -> Facts:
    """Return the facts of a revocation list (RFC 5280, 5.1). Raises PemError if it is malformed."""
    try:
        fields = [item for item in _items(_inside(_inside(der))) if item[0] != _INTEGER]  # the version
        issuer, begins = fields[1:3]
        ends = fields[3] if len(fields) > 3 and fields[3][0] in (_UTC_TIME, _TIME) else None
        return Facts(_name(issuer[1]), _time(*begins), _time(*ends) if ends else None)
    except (IndexError, ValueError) as error:
        raise PemError("no revocation list") from error


def same(name: Name) -> Name:
    """Return a name as it compares: case and the number of spaces do not count."""
    return tuple((kind, " ".join(value.casefold().split())) for kind, value in name)


def shown(name: Name) -> str:
    """Write a name for people: "CN=an authority"; without a common name, all of it."""
    common = [(kind, value) for kind, value in name if kind == "CN"]
    text = ", ".join(f"{kind}={value}" for kind, value in common or name)
    return text if text.isprintable() else ascii(text)


# ---- DER: tag, length, value (X.690, 8.1)


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        tag, length, start = data[0], data[1], 2
        if length & 0x80:
            start = 2 + (length & 0x7F)
            length = int.from_bytes(data[2:start])
        if start + length > len(data):
            raise ValueError("cut short")
        yield tag, data[start : start + length]
        data = data[start + length :]


def _inside(data: bytes) -> bytes:
    tag, content = next(_items(data), (0, b""))
    if tag != _SEQUENCE:
        raise ValueError("no sequence")
    return content


def _name(content: bytes) -> Name:
    pairs = []
    for _, attributes in _items(content):
        for _, attribute in _items(attributes):
            (kind, oid), (tag, value) = _items(attribute)
            if kind != _OID:
                raise ValueError("no name")
            number = _dotted(oid)
            text = value.decode(_STRINGS.get(tag, "latin-1"), errors="replace")
            pairs.append((_SHORT.get(number, number), text))
    return tuple(pairs)


def _dotted(oid: bytes) -> str:
    numbers, value = [], 0
    for byte in oid:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def _time(tag: int, value: bytes) -> float | None:
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "5" else "19") + text
    try:
        return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))
    except ValueError:
        return None  # in another way than RFC 5280 has it; OpenSSL knows what to make of it
