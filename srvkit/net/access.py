"""Who may come in, by where from: networks for internet addresses, users and groups for Unix sockets.

It knows addresses and what the kernel says about the peer of a Unix socket; not what a refusal looks like.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from srvkit.contracts import setting

try:
    import grp
    import pwd
except ImportError:  # Windows, where no user has a number
    pass

_IS_LINUX = sys.platform.startswith("linux")
_AF_UNIX = getattr(socket, "AF_UNIX", None)
_SO_PEERGROUPS = 59  # socket(7); Python has no name for it
_MOST_GROUPS = 1024  # bytes: the most that Python asks the kernel for
_UCRED = struct.Struct("@iII")  # struct ucred: pid, uid, gid
_NOBODY = 2**32 - 1  # (uid_t)-1: no peer, or a socket that has no such thing

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2: what an IPv4 address within IPv6 begins with


@dataclass(frozen=True)
class AccessSettings:
    """`[server.NAME.access]`: who may come in. The longest match of both lists wins."""

    allow: list[str] = setting(
        [],
        "networks (CIDR) or addresses, uid:N or gid:N for peers on Unix sockets; empty: everybody",
    )
    deny: list[str] = setting([], "who may not come in, written like `allow`")


class Credentials(NamedTuple):
    """The process at the other end of a Unix socket, as it was when it connected."""

    pid: int
    uid: int
    gid: int


class Rule(NamedTuple):
    """What one entry of a list stands for; equal for entries that mean the same."""

    kind: Literal["ipv4", "ipv6", "uid", "gid"]
    value: int  # the network's address, the user, the group
    prefix: int = 0  # bits of the network's address that count


class Rules:
    """Two lists, made ready to be asked once per connection. False where nobody is refused.

    The longest matching network of both wins. On Unix sockets a rule about the user wins over those
    about groups, and a denied group over an allowed one. Who matches nothing comes in unless `allow`
    lists anything at all.

    Raises ValueError for an entry that cannot be read, and for one that is in both lists.
    """

    def __init__(self, allow: Sequence[str], deny: Sequence[str] = ()) -> None:
        self._lists = {"allow": list(allow), "deny": list(deny)}
        verdicts = _verdicts(allow, deny)
        self.has_networks = any(rule.kind in ("ipv4", "ipv6") for rule in verdicts)
        self.has_users = any(rule.kind in ("uid", "gid") for rule in verdicts)
        self._otherwise = not allow
        # By the size of an address in bytes; each table with the bits it ignores, longest prefix first.
        self._networks = {4: _tables(verdicts, "ipv4", 32), 16: _tables(verdicts, "ipv6", 128)}
        self._users = {rule.value: verdict for rule, verdict in verdicts.items() if rule.kind == "uid"}
        self._groups = {rule.value: verdict for rule, verdict in verdicts.items() if rule.kind == "gid"}

    def __repr__(self) -> str:
        return ", ".join(f"{name}={entries!r}" for name, entries in self._lists.items() if entries)

    def __bool__(self) -> bool:
        return self.has_networks or self.has_users

    def admits(self, address: Any, request: Any = None) -> bool:
        """Return whether a client may come in. What cannot be read may not, where there is any rule.

        `address` is a `client_address`: a tuple, or for Unix sockets anything else. `request` is the
        connected socket whose peer has this address; None for an address that a proxy told, since
        the socket's peer is the proxy then.
        """
        if not self:
            return True
        if not isinstance(address, tuple):
            return self._admits_peer(request)
        try:
            packed = _read(address[0])
        except (OSError, ValueError, TypeError, IndexError):
            return False
        number = int.from_bytes(packed, "big")
        for ignored, networks in self._networks[len(packed)]:
            verdict = networks.get(number >> ignored)
            if verdict is not None:
                return verdict
        return self._otherwise

    def _admits_peer(self, request: Any) -> bool:
        if not self.has_users:
            # An internet socket without an address is one whose peer has gone.
            return self._otherwise and getattr(request, "family", _AF_UNIX) == _AF_UNIX
        peer = credentials_of(request)
        if peer is None:
            return False
        verdict = self._users.get(peer.uid)
        if verdict is not None:
            return verdict
        if not self._groups:
            return self._otherwise
        groups = _groups_of(request)
        if groups is None:
            return False
        verdicts = {self._groups[gid] for gid in (peer.gid, *groups) if gid in self._groups}
        return False not in verdicts and (True in verdicts or self._otherwise)


def parse_rule(text: str) -> Rule:
    """Read one entry; names of users and groups are looked up. Raises ValueError with what would be right.

    IPv4 networks within IPv6 (::ffff:0:0/96 and below) are IPv4 networks.
    """
    kind, colon, who = text.partition(":")
    if colon and kind in ("uid", "gid"):
        return Rule("uid", _user_id(text, who)) if kind == "uid" else Rule("gid", _group_id(text, who))
    host, slash, prefix = text.partition("/")
    if "%" in host:
        raise ValueError(f"{text!r}: networks are the same on every interface; leave out what follows '%'")
    try:
        if slash and re.fullmatch("[0-9]{1,3}", prefix) is None:
            raise ValueError(prefix)
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a network like 10.0.0.0/8 or 2001:db8::/32, nor an address, uid:N or gid:N"
        ) from None
    if network.network_address != ipaddress.ip_address(host):
        raise ValueError(f"{text!r} has bits set behind its prefix, did you mean {network}?")
    packed = network.network_address.packed
    if packed.startswith(_MAPPED):  # all of it within the prefix, or there would be bits set behind
        return Rule("ipv4", int.from_bytes(packed[12:], "big"), network.prefixlen - 96)
    return Rule("ipv4" if network.version == 4 else "ipv6", int.from_bytes(packed, "big"), network.prefixlen)


def credentials_of(sock: Any) -> Credentials | None:
    """Return who is at the other end of a connected Unix socket; None where nobody can tell.

    That is so for every other socket, and on systems other than Linux.
    """
    if not _IS_LINUX or not hasattr(sock, "getsockopt"):
        return None
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return None
    peer = Credentials(*_UCRED.unpack(found))
    return None if peer.uid == _NOBODY else peer


def group_of(address: Any, request: Any = None) -> object:
    """Return the key under which a client is counted; None for one that cannot be told from others.

    It is the address; of IPv6 the network of 64 bits, all of which one client has to choose from
    (RFC 6177), unless it is link-local and so shared by a whole LAN; of Unix peers the user. `address`
    and `request` are as for `Rules.admits`.
    """
    if not isinstance(address, tuple):
        peer = credentials_of(request)
        return None if peer is None else ("uid", peer.uid)
    host: object = address[0]
    if not isinstance(host, str) or ":" not in host:
        return host
    try:
        packed = _read(host)
    except (OSError, ValueError):
        return None
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return host
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


def _verdicts(allow: Sequence[str], deny: Sequence[str]) -> dict[Rule, bool]:
    allowed = {parse_rule(text): text for text in allow}
    denied = {parse_rule(text): text for text in deny}
    for rule in allowed.keys() & denied.keys():
        raise ValueError(f"{allowed[rule]!r} of allow and {denied[rule]!r} of deny are the same")
    return dict.fromkeys(allowed, True) | dict.fromkeys(denied, False)


def _tables(verdicts: dict[Rule, bool], kind: str, bits: int) -> list[tuple[int, dict[int, bool]]]:
    tables: dict[int, dict[int, bool]] = {}
    for rule, verdict in verdicts.items():
        if rule.kind == kind:
            ignored = bits - rule.prefix
            tables.setdefault(ignored, {})[rule.value >> ignored] = verdict
    return sorted(tables.items())


def _read(host: str) -> bytes:
    """Return an address in 4 or 16 bytes; raises OSError or ValueError for anything else."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _groups_of(sock: Any) -> tuple[int, ...] | None:
    """Return the further groups of a peer; None where they are more than Python can be told of (256)."""
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS)
    except OSError as error:
        return None if error.errno == errno.ERANGE else ()
    return struct.unpack(f"@{len(found) // 4}I", found)


def _user_id(text: str, who: str) -> int:
    if who.isascii() and who.isdigit():
        return _checked_id(text, int(who))
    try:
        return pwd.getpwnam(who).pw_uid
    except (KeyError, ValueError, NameError):
        raise ValueError(f"{text!r}: this machine has no user {who!r}") from None


def _group_id(text: str, who: str) -> int:
    if who.isascii() and who.isdigit():
        return _checked_id(text, int(who))
    try:
        return grp.getgrnam(who).gr_gid
    except (KeyError, ValueError, NameError):
        raise ValueError(f"{text!r}: this machine has no group {who!r}") from None


def _checked_id(text: str, number: int) -> int:
    if number >= _NOBODY:
        raise ValueError(f"{text!r}: the number must be below {_NOBODY}")
    return number
