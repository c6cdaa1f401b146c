"""Who may come in: the longest match of two lists, and users and groups on real Unix sockets."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srvkit.net.access import AccessSettings, Credentials, Rules, credentials_of, group_of, parse_rule

on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel tells nothing of peers"
)

UID, GID = os.getuid(), os.getgid()
SUPERUSER, SUPERGROUP = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
OTHER = 4_000_000_000  # neither a user nor a group of ours


def address_of(host: str) -> tuple[Any, ...]:
    return (host, 5000, 0, 0) if ":" in host else (host, 5000)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[socket.socket]:
    """What a server accepts on a Unix socket; this very process is at the other end."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        client.connect(str(tmp_path / "s"))
        accepted, _ = listening.accept()
        with accepted:
            yield accepted


@pytest.mark.parametrize(
    ("allow", "deny", "admitted", "refused"),
    [
        pytest.param([], [], ["192.0.2.1", "2001:db8::1", "no address", ""], [], id="no rules"),
        pytest.param(
            ["10.0.0.0/8"],
            [],
            ["10.0.0.0", "10.255.255.255"],
            ["9.255.255.255", "11.0.0.0", "::1"],
            id="allow",
        ),
        pytest.param(
            [],
            ["10.0.0.0/8"],
            ["9.255.255.255", "11.0.0.0", "::1"],
            ["10.0.0.0", "10.255.255.255"],
            id="deny",
        ),
        pytest.param(["192.0.2.1"], [], ["192.0.2.1"], ["192.0.2.0", "192.0.2.2"], id="one address"),
        pytest.param(
            ["10.0.0.0/8", "10.1.2.0/24"],
            ["10.1.0.0/16", "10.1.2.3"],
            ["10.0.0.1", "10.2.0.1", "10.1.2.1"],
            ["10.1.0.1", "10.1.3.1", "10.1.2.3"],
            id="nested, allow outside",
        ),
        pytest.param(
            ["10.1.0.0/16", "10.1.2.3"],
            ["10.0.0.0/8", "10.1.2.0/24"],
            ["10.1.0.1", "10.1.2.3"],
            ["10.0.0.1", "10.1.2.4", "192.0.2.1"],
            id="nested, deny outside",
        ),
        pytest.param(["10.0.0.0/8"], ["0.0.0.0/0"], ["10.0.0.1"], ["192.0.2.1", "::1"], id="all denied but"),
        pytest.param(
            ["0.0.0.0/0"], ["10.0.0.0/8"], ["192.0.2.1", "0.0.0.0"], ["10.0.0.1", "::1"], id="all of IPv4 but"
        ),
        pytest.param(
            ["::/0"], [], ["::", "2001:db8::1"], ["192.0.2.1", "::ffff:192.0.2.1"], id="all of IPv6"
        ),
        pytest.param(["::/0", "0.0.0.0/0"], [], ["::1", "192.0.2.1"], ["", "x"], id="all of both"),
        pytest.param(
            ["2001:db8::/32", "2001:db8:1:2::/64"],
            ["2001:db8:1::/48", "2001:db8:1:2::3"],
            ["2001:db8::1", "2001:db8:1:2::1", "2001:DB8:0:0::1"],
            ["2001:db8:1::1", "2001:db8:1:2::3", "2001:db9::1", "192.0.2.1"],
            id="nested IPv6",
        ),
        pytest.param(["2001:db8::/33"], [], ["2001:db8:7fff::1"], ["2001:db8:8000::1"], id="odd prefix"),
        pytest.param(["192.0.2.128/25"], [], ["192.0.2.128"], ["192.0.2.127"], id="odd IPv4 prefix"),
        pytest.param(
            ["10.0.0.0/8"], [], ["::ffff:10.0.0.1", "::ffff:a00:1"], ["::10.0.0.1"], id="mapped address"
        ),
        pytest.param(
            ["::ffff:10.0.0.0/104"], [], ["10.0.0.1", "::ffff:10.0.0.1"], ["11.0.0.1"], id="mapped rule"
        ),
        pytest.param(["::ffff:0:0/96"], [], ["10.0.0.1"], ["::1"], id="all mapped"),
        pytest.param(["fe80::/10"], [], ["fe80::1%eth0", "fe80::1"], ["fec0::1%eth0"], id="zone"),
        pytest.param(
            [],
            ["10.0.0.0/8"],
            ["192.0.2.1"],
            [
                "",
                "x",
                "192.0.2",
                "192.0.2.01",
                "192.0.2.1 ",
                "1::2::3",
                "\0",
                "\udc80",
                "::\0",
                "10.0.0.1%eth0",
            ],
            id="unreadable",
        ),
    ],
)
def test_the_longest_match_of_both_lists_wins(
    allow: list[str], deny: list[str], admitted: list[str], refused: list[str]
) -> None:
    for lists in ((allow, deny), (allow[::-1], deny[::-1])):
        rules = Rules(*lists)
        assert [host for host in admitted if not rules.admits(address_of(host))] == []
        assert [host for host in refused if rules.admits(address_of(host))] == []


@pytest.mark.parametrize("address", [(), (3, 5000), (None,), (b"10.0.0.1", 80)])
def test_a_tuple_without_a_host_is_refused_where_there_is_any_rule(address: Any) -> None:
    assert not Rules([], ["10.0.0.0/8"]).admits(address)
    assert not Rules([], ["uid:0"]).admits(address)
    assert Rules([], []).admits(address)


networks = st.builds(
    lambda number, prefix: (
        f"{socket.inet_ntoa(struct.pack('!I', number >> 32 - prefix << 32 - prefix))}/{prefix}"
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


@given(st.lists(networks, max_size=8), st.lists(networks, max_size=8), st.data())
def test_the_tables_say_what_a_search_through_the_lists_says(
    allow: list[str], deny: list[str], data: st.DataObject
) -> None:
    deny = [text for text in deny if text not in allow]
    rules = Rules(allow, deny)
    near = [text.partition("/")[0] for text in allow + deny]
    host = data.draw(st.sampled_from(near) | st.ip_addresses(v=4).map(str) if near else st.just("10.0.0.1"))
    bits = "".join(f"{int(octet):08b}" for octet in host.split("."))
    best, expected = -1, not allow
    for texts, verdict in ((allow, True), (deny, False)):
        for text in texts:
            network, _, prefix = text.partition("/")
            written = "".join(f"{int(octet):08b}" for octet in network.split("."))
            if written[: int(prefix)] == bits[: int(prefix)] and int(prefix) > best:
                best, expected = int(prefix), verdict
    assert rules.admits((host, 1)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("2001:db8::1/32", "did you mean 2001:db8::/32?"),
        ("0.0.0.1/0", "did you mean 0.0.0.0/0?"),
        ("", "is neither a network like 10.0.0.0/8"),
        ("localhost", "is neither a network like 10.0.0.0/8"),
        ("10.0.0.0/33", "is neither a network"),
        ("10.0.0.0/-1", "is neither a network"),
        ("10.0.0.0/", "is neither a network"),
        ("10.0.0.0/255.0.0.0", "is neither a network"),
        ("10.0.0.0/²", "is neither a network"),
        ("010.0.0.0/8", "is neither a network"),
        ("10/8", "is neither a network"),
        (" 10.0.0.0/8", "is neither a network"),
        ("[::1]", "is neither a network"),
        ("::/129", "is neither a network"),
        ("167772160", "is neither a network"),
        ("fe80::1%eth0", "leave out what follows '%'"),
        ("user:0", "is neither a network"),
        ("uid:no-such-user", "this machine has no user 'no-such-user'"),
        ("gid:no-such-group", "this machine has no group 'no-such-group'"),
        ("uid:", "this machine has no user ''"),
        ("gid:", "this machine has no group ''"),
        ("uid:-1", "no user '-1'"),
        ("gid:1.5", "no group '1.5'"),
        ("uid:²", "no user"),
        ("uid:\0", "no user"),
        ("gid:\udc80", "no group"),
        ("uid:4294967295", "the number must be below 4294967295"),
        ("gid:99999999999", "the number must be below 4294967295"),
    ],
)
def test_an_entry_that_cannot_be_read_is_explained(text: str, message: str) -> None:
    for attempt in (lambda: parse_rule(text), lambda: Rules([text]), lambda: Rules([], [text])):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            attempt()
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("allowed", "denied"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/8", "::ffff:10.0.0.0/104"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:DB8:0::/32"),
        ("uid:0", f"uid:{SUPERUSER}"),
        (f"gid:{SUPERGROUP}", "gid:0"),
    ],
)
def test_what_is_in_both_lists_is_an_error_that_names_both(allowed: str, denied: str) -> None:
    with pytest.raises(ValueError, match="are the same") as caught:
        Rules(["192.0.2.0/24", allowed], ["198.51.100.0/24", denied])
    assert f"{allowed!r} of allow" in str(caught.value)
    assert f"{denied!r} of deny" in str(caught.value)


def test_twice_in_one_list_is_once() -> None:
    assert Rules(["10.0.0.0/8", "10.0.0.0/8"]).admits(("10.0.0.1", 1))


def test_a_user_and_a_group_of_one_number_are_two_things() -> None:
    assert parse_rule("uid:7") != parse_rule("gid:7")
    assert parse_rule("0.0.0.0/0") != parse_rule("::/0")
    Rules(["uid:7"], ["gid:7"])


@pytest.mark.parametrize(
    ("allow", "deny", "networks", "users"),
    [
        ([], [], False, False),
        (["10.0.0.0/8"], [], True, False),
        ([], ["::1"], True, False),
        (["uid:0"], [], False, True),
        (["::1"], ["gid:0"], True, True),
    ],
)
def test_rules_say_what_they_are_about(
    allow: list[str], deny: list[str], networks: bool, users: bool
) -> None:
    rules = Rules(allow, deny)
    assert (rules.has_networks, rules.has_users, bool(rules)) == (networks, users, networks or users)


def test_by_default_everybody_may_come() -> None:
    defaults = AccessSettings()
    assert not Rules(defaults.allow, defaults.deny)
    assert Rules(defaults.allow, defaults.deny).admits("")


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ([f"uid:{UID}"], [], True),
        ([f"gid:{GID}"], [], True),
        ([f"uid:{SUPERUSER}"], [], UID == 0),
        ([], [f"gid:{SUPERGROUP}"], GID != 0),
        ([f"uid:{OTHER}"], [], False),
        ([f"gid:{OTHER}"], [], False),
        ([f"uid:{OTHER}", f"gid:{GID}"], [], True),
        ([], [f"uid:{UID}"], False),
        ([], [f"gid:{GID}"], False),
        ([], [f"uid:{OTHER}", f"gid:{OTHER}"], True),
        ([f"uid:{UID}"], [f"gid:{GID}"], True),
        ([f"gid:{GID}"], [f"uid:{UID}"], False),
        ([f"gid:{GID}"], [f"uid:{OTHER}"], True),
        (["10.0.0.0/8", f"uid:{UID}"], [], True),
        (["10.0.0.0/8"], [f"uid:{OTHER}"], False),
    ],
)
@on_linux
def test_users_and_groups_are_asked_of_the_kernel(
    allow: list[str], deny: list[str], expected: bool, peer: socket.socket
) -> None:
    rules = Rules(allow, deny)
    for address in ("", b"", None, "/run/client", b"\0client"):
        assert rules.admits(address, peer) is expected


def test_networks_say_nothing_about_unix_peers(peer: socket.socket) -> None:
    for request in (peer, None):
        assert not Rules(["0.0.0.0/0", "::/0"]).admits("", request)
        assert Rules([], ["0.0.0.0/0", "::/0"]).admits("", request)


def test_users_say_nothing_about_internet_clients() -> None:
    assert not Rules(["uid:0"]).admits(("192.0.2.1", 1))
    assert Rules([], ["uid:0"]).admits(("192.0.2.1", 1))


def test_a_peer_that_nobody_knows_is_refused_where_users_matter() -> None:
    """As for the path of a client that a proxy told."""
    for rules in (Rules(["uid:0"]), Rules([], ["uid:0"]), Rules([], ["gid:0"])):
        assert not rules.admits("/run/client")
        assert not rules.admits("/run/client", (b"datagram", None))


def test_an_internet_socket_without_an_address_is_refused() -> None:
    with socket.socket() as sock:
        assert not Rules([], ["10.0.0.0/8"]).admits(None, sock)
        assert not Rules([], ["uid:0"]).admits(None, sock)
        assert Rules([]).admits(None, sock)


class PeerOf:
    """A connected socket whose peer has other groups than this process."""

    family = socket.AF_UNIX

    def __init__(self, sock: socket.socket, groups: list[int] | OSError) -> None:
        self.sock = sock
        self.groups = groups

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        if option == socket.SO_PEERCRED:
            return self.sock.getsockopt(level, option, size)
        assert option == 59  # SO_PEERGROUPS of socket(7)
        if isinstance(self.groups, OSError):
            raise self.groups
        return struct.pack(f"{len(self.groups)}I", *self.groups)


@on_linux
def test_all_groups_of_a_peer_count(peer: socket.socket) -> None:
    member = PeerOf(peer, [OTHER - 1, OTHER])
    assert Rules([f"gid:{OTHER}"]).admits("", member)
    assert not Rules([], [f"gid:{OTHER}"]).admits("", member)
    assert not Rules([f"gid:{OTHER}"], [f"gid:{OTHER - 1}"]).admits("", member)
    assert not Rules([f"gid:{OTHER - 1}"], [f"gid:{OTHER}"]).admits("", member)
    assert not Rules([f"gid:{GID}"], [f"gid:{OTHER}"]).admits("", member)
    assert Rules([f"uid:{UID}"], [f"gid:{OTHER}"]).admits("", member)
    assert not Rules([f"gid:{OTHER}"]).admits("", PeerOf(peer, []))


@on_linux
def test_groups_that_the_kernel_does_not_tell_are_none(peer: socket.socket) -> None:
    unable = PeerOf(peer, OSError(errno.ENOPROTOOPT, "too old"))
    assert Rules([f"gid:{GID}"]).admits("", unable)
    assert Rules([], [f"gid:{OTHER}"]).admits("", unable)


@on_linux
def test_a_peer_of_more_groups_than_can_be_told_is_refused_where_groups_matter(peer: socket.socket) -> None:
    many = PeerOf(peer, OSError(errno.ERANGE, "too many"))
    assert not Rules([], [f"gid:{OTHER}"]).admits("", many)
    assert not Rules([f"gid:{GID}"]).admits("", many)
    assert Rules([f"uid:{UID}"], [f"gid:{OTHER}"]).admits("", many)


CONNECT = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
sys.stdin.read()
"""


@on_linux
@pytest.mark.skipif(UID != 0, reason="only root may change its groups")
@pytest.mark.parametrize("count", [2, 300])
def test_the_kernel_tells_the_groups_of_a_real_peer(tmp_path: Path, count: int) -> None:
    """Of a child that has other groups than its parent: all of them, or that they are too many."""
    groups = [OTHER - number for number in range(count)]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(30)
        connect = [sys.executable, "-c", CONNECT, str(tmp_path / "s")]
        with subprocess.Popen(connect, stdin=subprocess.PIPE, extra_groups=groups) as child:
            accepted, address = listening.accept()
            with accepted:
                found = credentials_of(accepted)
                verdicts = [
                    Rules([f"gid:{OTHER}"]).admits(address, accepted),
                    Rules([], [f"gid:{OTHER - 1}"]).admits(address, accepted),
                    Rules([], [f"gid:{OTHER + 1}"]).admits(address, accepted),
                ]
    assert found == Credentials(child.pid, 0, 0)
    assert verdicts == ([True, False, True] if count == 2 else [False] * 3)


@on_linux
def test_the_kernel_says_who_is_at_the_other_end(peer: socket.socket) -> None:
    assert credentials_of(peer) == Credentials(os.getpid(), UID, GID)
    one, other = socket.socketpair()
    with one, other:
        assert credentials_of(one) == (os.getpid(), UID, GID)


def test_other_sockets_have_nobody_at_the_other_end() -> None:
    closed = socket.socket(socket.AF_UNIX)
    with socket.socket() as internet, socket.socket(socket.AF_UNIX) as lonely:
        closed.close()
        for sock in (internet, lonely, closed, None, (b"datagram", lonely)):
            assert credentials_of(sock) is None


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("192.0.2.1", "::ffff:c000:201"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
        ("2001:db8:1:2::1", "2001:DB8:1:2::2%eth0"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_one_client_is_one_group(one: str, another: str) -> None:
    group = group_of(address_of(one))
    assert group is not None
    assert group == group_of((another, 6000, 0, 0))
    assert hash(group) == hash(group_of((another, 6000, 0, 0)))


def test_different_clients_are_different_groups() -> None:
    hosts = ["192.0.2.1", "192.0.2.2", "2001:db8:1:2::1", "2001:db8:1:3::1", "::1"]
    hosts += ["fe80::1%eth0", "fe80::2%eth0", "fe80::1%eth1"]  # neighbours share one network of 64 bits
    assert len({group_of(address_of(host)) for host in hosts}) == len(hosts)


def test_groups_can_be_read_in_a_log() -> None:
    assert group_of(("192.0.2.1", 1)) == "192.0.2.1"
    assert group_of(("2001:db8:1:2::1", 1, 0, 0)) == "2001:db8:1:2::/64"


@on_linux
def test_unix_peers_are_counted_by_user(peer: socket.socket) -> None:
    for address in ("", None, "/run/client"):
        assert group_of(address, peer) == ("uid", UID)


def test_who_cannot_be_told_from_others_is_in_no_group() -> None:
    assert group_of("") is None
    assert group_of(None, (b"datagram", None)) is None
    assert group_of(("1::2::3", 1, 0, 0)) is None
