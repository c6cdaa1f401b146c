"""Names of hosts as TLS clients send them (SNI, RFC 6066): in ASCII, without a final dot, of any case."""

from __future__ import annotations

import ipaddress
import re
import unicodedata

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
LONGEST = 253  # characters of a name (RFC 1035, without the final dot)


def asked_for(written: str) -> list[str]:
    """Return the names that clients ask for who mean this one; "*." in front stays.

    There are two where the standards of internationalized names differ: "straße.example" is
    xn--strae-oqa to browsers and strasse to older libraries. Raises ValueError, with the reason, for what
    no client asks for.
    """
    name = written.removesuffix(".")
    star, rest = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    if not name:
        raise ValueError("it is empty")
    if "*" in rest or not rest:
        raise ValueError("only a whole first label may be '*'")
    _refuse_addresses(rest)
    labels = [_as_sent(label) for label in re.split("[.\u3002\uff0e\uff61]", rest)]
    found = []
    for way in (0, 1):
        made = ".".join(forms[way] for forms in labels)
        if len(star + made) > LONGEST:
            raise ValueError(f"a name has {LONGEST} characters at most")
        found.append(star + made)
    if re.fullmatch("[0-9]+|0x[0-9a-f]*", found[0].rpartition(".")[2]):
        raise ValueError("its last part is a number, and clients do not ask for addresses by name")
    return list(dict.fromkeys(found))


def as_asked(name: str) -> str:
    """Return the name that a client has sent as it compares with those of `asked_for`."""
    return name.lower().removesuffix(".")


def _refuse_addresses(name: str) -> None:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        pass
    else:
        raise ValueError("clients ask for names only, never for addresses")
    if ":" in name or "/" in name:
        raise ValueError("a name alone is wanted, without a scheme, a port or a path")


def _as_sent(label: str) -> tuple[str, str]:
    if not label:
        raise ValueError("there is nothing between two of its dots, or before the first")
    if label.isascii():
        older = newer = label.lower()
    else:
        normal = unicodedata.normalize("NFKC", label).lower()
        newer = f"xn--{normal.encode('punycode').decode()}" if not normal.isascii() else normal
        try:
            older = label.encode("idna").decode().lower()
        except UnicodeError:
            older = newer  # Python's codec knows Unicode 3.2 only
    for sent in (older, newer):
        if len(sent) > 63:
            raise ValueError(f"{label!r} is longer than 63 characters as clients send it")
        if not _LABEL.fullmatch(sent):
            raise ValueError(f"{label!r} is no part of a host name")
    return older, newer
