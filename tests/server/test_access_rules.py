"""Who may come in, from outside: networks, and users of Unix sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.conftest import Connect
from tests.server.conftest import Ended, Say, Under

PATIENCE = 30
ME, MINE = os.geteuid(), os.getegid()
NOBODY = 65534

NETWORKS = """
[sub.access]
allow = ["127.0.0.0/8", "127.0.1.5"]
deny = ["127.0.1.0/24", "127.0.0.9/32"]
"""
DUAL = 'listen = "tcp://[::]:0"\n[sub.access]\nallow = ["127.0.0.2/32"]\n'
USERS = f'listen = "unix:@{os.getpid()}-edge-CELL"\n[sub.access]\n'
TABLES = {
    "networks": (NETWORKS,),
    "live": (NETWORKS,),
    "dual": (DUAL,),
    "me": (USERS + f'allow = ["uid:{ME}"]\n',),
    "not-me": (USERS.replace("edge", "not") + f'deny = ["uid:{ME}"]\n',),
    "others": (USERS.replace("edge", "others") + 'allow = ["uid:54321"]\n',),
    "group": (USERS.replace("edge", "group") + f'allow = ["gid:{MINE}"]\n',),
    "user-first": (USERS.replace("edge", "first") + f'allow = ["uid:{ME}"]\ndeny = ["gid:{MINE}"]\n',),
}
NO = "refused: denied by access rules"


def come_from(host: str, address: str) -> socket.socket:
    """Connect from an address of this machine's own."""
    there, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((there.strip("[]"), int(port)), PATIENCE, (host, 0))


@pytest.mark.parametrize(
    ("source", "may"),
    [("127.0.0.1", True), ("127.0.0.9", False), ("127.0.1.4", False), ("127.0.1.5", True)],
)
def test_the_longest_match_says_who_comes_in(
    source: str, may: bool, cell: str, under: Under, say: Say, ended: Ended
) -> None:
    program = under("networks")
    with come_from(source, program.address(cell)) as sock:
        address = sock.getsockname()
        if may:
            assert say(sock, b"hello") == b"hello"
        else:
            assert ended(sock) == b""
            program.said(cell, address, NO)
            assert program.handled(cell, address) == 0


def test_a_dual_stack_server_knows_ipv4_networks(cell: str, under: Under, say: Say, ended: Ended) -> None:
    program = under("dual")
    address = program.address(cell).replace("[::]", "127.0.0.1")
    with come_from("127.0.0.2", address) as sock:
        assert say(sock, b"hello") == b"hello"
    with come_from("127.0.0.3", address) as sock:
        assert ended(sock) == b""
        program.said(cell, sock.getsockname(), NO)
    with socket.create_connection(("::1", int(address.rpartition(":")[2])), PATIENCE) as sock:
        assert ended(sock) == b""


@pytest.mark.parametrize(
    ("name", "may"),
    [("me", True), ("not-me", False), ("others", False), ("group", True), ("user-first", True)],
)
def test_users_of_unix_sockets_are_known(
    name: str, may: bool, cell: str, under: Under, client: Connect, say: Say, ended: Ended
) -> None:
    program = under(name)
    sock = client("\0" + program.address(cell, "unix").removeprefix("unix:@"))
    if may:
        assert say(sock, b"hello") == b"hello"
    else:
        assert ended(sock) == b""
        program.program.wait_for(f"{cell}: .*{NO}")


SOMEBODY = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(30)
sock.connect("\\0" + sys.argv[1])
try:
    sock.sendall(b"hello\\n")
    print(sock.recv(100))
except ConnectionError:
    print(b"")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("name", "may"), [("me", False), ("not-me", True), ("group", False)])
def test_so_is_somebody_else(name: str, may: bool, cell: str, under: Under) -> None:
    address = under(name).address(cell, "unix").removeprefix("unix:@")
    done = subprocess.run(
        [sys.executable, "-c", SOMEBODY, address],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.strip() == repr(b"hello\n" if may else b"")


def test_rules_change_with_a_reload_and_nobody_is_cut(under: Under, say: Say, ended: Ended) -> None:
    """Whoever is in the middle of something finishes it; whoever comes meets the new rules."""
    program = under("live")
    inside = {cell: come_from("127.0.0.1", program.address(cell)) for cell in program.cells}
    for sock in inside.values():
        assert say(sock, b"hello") == b"hello"
        sock.sendall(b"half a ")
    config = program.config.replace('"127.0.0.9/32"', '"127.0.0.1/32"')
    (program.folder / "srvkit.toml").write_text(config)
    assert program.ask(do="reload").get("ok"), program.program.log
    for cell in program.cells:
        with come_from("127.0.0.9", program.address(cell)) as sock:
            assert say(sock, b"hello") == b"hello", cell
        with come_from("127.0.0.1", program.address(cell)) as sock:
            assert ended(sock) == b"", cell
    for cell, sock in inside.items():
        assert say(sock, b"message") == b"half a message", cell
        sock.close()
