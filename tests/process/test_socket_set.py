"""From one configuration to the next, sockets stay where the address does."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srvkit.config.loader import from_table
from srvkit.errors import ListenError
from srvkit.process.supervisor.socket_set import SocketSet


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Callable[..., SocketSet]]:
    """`sockets({"a": "unix:a.sock"}, before)`: those of a configuration in this folder."""
    made: list[SocketSet] = []

    def make(servers: dict[str, Any], before: SocketSet | None = None, **settings: Any):
        made.append(SocketSet(config(servers, **settings), before))
        return made[-1]

    def config(servers: dict[str, Any], **settings: Any):
        table = {
            name: {"listen": listen, "handler": "echo", **({"socket": settings} if settings else {})}
            for name, listen in servers.items()
        }
        config, problems = from_table({"server": table}, path=tmp_path / "srvkit.toml")
        assert not problems
        return config

    make.config = config
    yield make
    for one in made:
        for listener in one:
            with contextlib.suppress(OSError):
                listener.close()


def descriptors(sockets: SocketSet) -> dict[str, list[int]]:
    return {name: [listener.fileno() for listener in listeners] for name, listeners in sockets.of.items()}


def test_every_server_has_what_it_names_bound_and_not_waiting(sockets, tmp_path):
    made = sockets({"a": ["unix:a.sock", "tcp://127.0.0.1:0"], "b": "udp://127.0.0.1:0"})
    assert [len(made.of[name]) for name in "ab"] == [2, 1]
    assert (tmp_path / "a.sock").is_socket()
    assert not any(os.get_blocking(listener.fileno()) for listener in made if listener.is_stream)
    assert list(made) == made.added == [*made.of["a"], *made.of["b"]]


def test_one_that_cannot_be_bound_leaves_nothing_bound(sockets, tmp_path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "b.sock"))
        other.listen()
        with pytest.raises(ListenError, match=r"b\.sock: another server is listening there"):
            sockets({"a": "unix:a.sock", "b": "unix:b.sock"})
    assert not (tmp_path / "a.sock").exists()


def test_the_same_address_is_the_same_socket_whatever_the_server_is_called(sockets):
    first = sockets({"a": "unix:a.sock", "b": "unix:b.sock"})
    second = sockets({"b": "unix:b.sock", "c": "unix:a.sock"}, first)
    assert second.added == []
    assert second.of["c"][0] is first.of["a"][0] and second.of["b"][0] is first.of["b"][0]
    assert second.take_over() == []


def test_with_port_0_each_server_keeps_its_own(sockets):
    first = sockets({"a": "tcp://127.0.0.1:0", "b": "tcp://127.0.0.1:0"})
    second = sockets({"b": "tcp://127.0.0.1:0", "c": "tcp://127.0.0.1:0"}, first)
    assert second.of["b"] == first.of["b"]
    assert second.added == second.of["c"]
    assert second.take_over() == first.of["a"]


def test_port_0_may_be_asked_for_twice_by_one_server(sockets):
    first = sockets({"a": ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]})
    second = sockets({"a": ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]}, first)
    assert second.of["a"] == first.of["a"]
    assert len(set(second.of["a"])) == 2
    assert len(second.entries()) == 2
    assert second.take_over() == []


def test_what_was_added_goes_again_and_the_rest_stays_where_it_was_given_up(sockets, tmp_path):
    first = sockets({"a": "unix:a.sock"})
    second = sockets({"a": "unix:a.sock", "b": "unix:b.sock"}, first)
    assert (tmp_path / "b.sock").exists()
    second.give_up()
    assert not (tmp_path / "b.sock").exists()
    assert (tmp_path / "a.sock").is_socket()
    assert descriptors(first)["a"][0] >= 0


def test_what_cannot_be_added_leaves_those_before_as_they_were(sockets, tmp_path):
    first = sockets({"a": "unix:a.sock"}, mode="0600")
    (tmp_path / "c.sock").write_text("no socket")
    with pytest.raises(ListenError):
        sockets({"a": "unix:a.sock", "b": "unix:b.sock", "c": "unix:c.sock"}, first, mode="0666")
    assert not (tmp_path / "b.sock").exists()
    assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o600
    assert descriptors(first)["a"][0] >= 0


def test_taking_over_tells_what_is_of_no_use_and_changes_what_stays(sockets, tmp_path):
    first = sockets({"a": "unix:a.sock", "b": "unix:b.sock"}, mode="0600")
    second = sockets({"a": "unix:a.sock", "c": "unix:c.sock"}, first, mode="0660")
    assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o600
    removed = second.take_over()
    assert removed == first.of["b"]
    assert (tmp_path / "b.sock").exists()  # until whoever asked closes it
    assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o660
    for listener in removed:
        listener.close()
    second.close()
    assert not list(tmp_path.glob("*.sock"))


def test_a_third_configuration_builds_on_the_second(sockets):
    first = sockets({"a": "unix:a.sock"})
    second = sockets({"a": "unix:a.sock", "b": "unix:b.sock"}, first)
    second.take_over()
    third = sockets({"b": "unix:b.sock"}, second)
    assert third.added == []
    assert third.take_over() == first.of["a"]


def test_a_path_is_the_same_from_whatever_the_folder_is_called(sockets, tmp_path):
    first = sockets({"a": "unix:a.sock"})
    second = sockets({"a": f"unix:{tmp_path}/a.sock"}, first)
    assert second.added == []


def test_a_successor_knows_them_by_their_entries(sockets):
    servers = {"a": ["unix:a.sock", "tcp://127.0.0.1:0"], "b": "tcp://127.0.0.1:0"}
    first = sockets(servers)
    again = SocketSet.inherited(first.entries())
    assert again.of == first.of
    assert sorted(entry[:3] for entry in again.entries()) == sorted(entry[:3] for entry in first.entries())
    second = sockets({"b": "tcp://127.0.0.1:0", "c": "unix:a.sock"}, again)
    assert second.added == []
    assert second.take_over() == [first.of["a"][1]]


# ---- one address, written in several ways


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """Return a port that nobody has at any address, of those that the kernel gives to nobody by itself."""
    while True:
        port = random.randrange(15000, 30000)
        family, whole = (
            (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
        )
        with socket.socket(family, kind) as sock, contextlib.suppress(OSError):
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((whole, port))
            return port


def reached(port: int) -> set[str]:
    """Return by which of these hosts somebody can connect."""
    found = set()
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.settimeout(30)
            if sock.connect_ex((host, port)) == 0:
                found.add(host)
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tcp://127.0.0.1", "tcp://127.1"),
        ("tcp://127.0.0.1", "tcp://0x7f000001"),
        ("tcp://127.0.0.1", "tcp://[::ffff:127.0.0.1]"),
        ("tcp://127.0.0.1", "tcp://[0:0:0:0:0:FFFF:7f00:1]"),
        ("tcp://127.0.0.1", "tcp://localhost"),
        ("tcp://LocalHost", "tcp://localhost"),
        ("tcp://[::1]", "tcp://[0:0:0:0:0:0:0:1]"),
        ("tcp://[::]", "tcp://[::0]"),
        ("tcp://[::]", "tcp://"),
        ("tcp://0.0.0.0", "tcp://0"),
        ("tcp://0.0.0.0", "tcp://[::ffff:0:0]"),
        ("udp://127.0.0.1", "udp://127.0.1"),
    ],
)
def test_another_spelling_of_one_address_is_the_same_socket(one, other, sockets):
    port = free_port(kind=socket.SOCK_DGRAM if one.startswith("udp") else socket.SOCK_STREAM)
    first = sockets({"a": f"{one}:{port}"})
    second = sockets({"b": f"{other}:{port}"}, first)
    assert second.added == []
    assert second.of["b"] == first.of["a"]
    assert second.take_over() == []
    again = SocketSet.inherited(second.entries())
    assert sockets({"a": f"{one}:{port}"}, again).added == []


def test_a_port_that_the_kernel_has_chosen_may_be_written_down_later(sockets):
    first = sockets({"a": "tcp://127.0.0.1:0"})
    port = first.of["a"][0].socket.getsockname()[1]
    second = sockets({"a": f"tcp://127.0.0.1:{port}"}, first)
    assert second.of == first.of and second.take_over() == []


@pytest.mark.parametrize("host", ["[::0]", "[0::0]", "[::]", ""])
def test_the_whole_of_ipv6_is_dual_stack_however_it_is_written(host, sockets):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no dual stack")
    (listener,) = sockets({"a": f"tcp://{host}:0"})
    listener.listen()
    assert reached(listener.socket.getsockname()[1]) == {"127.0.0.1", "127.0.0.2", "::1"}


@pytest.mark.parametrize(
    "spelling", ["{folder}/./a.sock", "{folder}/link/../a.sock", "{folder}/link/a.sock", "link.sock"]
)
def test_another_way_to_one_file_is_the_same_socket(spelling, sockets, tmp_path):
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "link.sock").symlink_to("a.sock")
    if ".." in spelling:
        (tmp_path / "link").unlink()
        (tmp_path / "link").mkdir()
    first = sockets({"a": "unix:a.sock"})
    second = sockets({"a": f"unix:{spelling.format(folder=tmp_path)}"}, first)
    assert second.added == [] and second.take_over() == []
    second.close()
    assert not (tmp_path / "a.sock").exists()


def test_one_spelling_may_come_to_be_another_file(sockets, tmp_path):
    """A deployment turns the link, and then what was there has its own name still."""
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
    (tmp_path / "current").symlink_to("1")
    first = sockets({"a": "unix:current/a.sock"})
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("2")
    second = sockets({"a": "unix:current/a.sock"}, SocketSet.inherited(first.entries()))
    assert len(second.added) == 1 and (tmp_path / "2/a.sock").is_socket()
    for listener in second.take_over():
        listener.close()
    assert not (tmp_path / "1/a.sock").exists()
    second.close()
    assert not (tmp_path / "2/a.sock").exists()


@pytest.mark.parametrize(
    ("one", "other"), [("tcp://127.0.0.1", "tcp://localhost"), ("tcp://127.1", "tcp://0.0.0.0")]
)
@pytest.mark.parametrize("reload", [False, True], ids=["start", "reload"])
def test_what_is_one_address_cannot_be_two(reload, one, other, sockets):
    port = free_port()
    before = sockets({"a": f"tcp://127.0.0.1:{port}"}) if reload else None
    with pytest.raises(ListenError) as refused:
        sockets({"a": f"{one}:{port}", "b": f"{other}:{port}"}, before)
    assert str(refused.value) == (
        f"cannot listen on {other}:{port}: {one}:{port} of server.a is the same address"
    )


WHOLES = {"127.0.0.1": {"127.0.0.1"}, "0.0.0.0": {"127.0.0.1", "127.0.0.2"}}
WHOLES["[::]"] = WHOLES["0.0.0.0"] | {"::1"}


@pytest.mark.parametrize("before", WHOLES)
@pytest.mark.parametrize("after", WHOLES)
def test_an_address_may_grow_and_shrink_on_its_port(before, after, sockets):
    """No moment without a socket that listens, and nothing shared with strangers afterwards."""
    if "[::]" in (before, after) and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no dual stack")
    first = sockets({"a": f"tcp://{before}:{(port := free_port())}"})
    for listener in first:
        listener.listen()
    second = sockets({"a": f"tcp://{after}:{port}"}, first)
    for listener in second:
        listener.listen()
    assert reached(port) == WHOLES[before] | WHOLES[after]
    for listener in second.take_over():
        listener.close()
    assert reached(port) == WHOLES[after]
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
    assert not any(one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for one in second)
    back = sockets({"b": f"tcp://{before}:{port}"}, second)
    for listener in back:
        listener.listen()
    for listener in back.take_over():
        listener.close()
    assert reached(port) == WHOLES[before]


def test_who_waits_on_the_narrower_socket_when_its_address_grows_is_served_by_who_has_the_whole(sockets):
    first = sockets({"a": f"tcp://127.0.0.1:{(port := free_port())}"})
    first.of["a"][0].listen()
    with socket.create_connection(("127.0.0.1", port), 30):
        second = sockets({"b": f"tcp://0.0.0.0:{port}"}, first)
        assert second.take_over() == []
        narrow = second.of["b"][-1]
        narrow.socket.accept()[0].close()
    assert {entry[0] for entry in second.entries()} == {"b"}
    third = sockets({"b": f"tcp://127.0.0.1:{port}"}, second)
    assert third.of["b"] == [narrow]


def test_datagrams_too(sockets):
    first = sockets({"a": f"udp://127.0.0.1:{(port := free_port(kind=socket.SOCK_DGRAM))}"})
    second = sockets({"a": f"udp://0.0.0.0:{port}"}, first)
    assert len(second.added) == 1 and second.take_over() == []
    third = sockets({"a": f"udp://127.0.0.1:{port}"}, second)
    assert third.take_over() == second.added


def test_an_address_that_cannot_grow_after_all_stays_as_it_was(sockets, tmp_path):
    (tmp_path / "c.sock").write_text("no socket")
    first = sockets({"a": f"tcp://127.0.0.1:{(port := free_port())}"})
    first.of["a"][0].listen()
    with pytest.raises(ListenError):
        sockets({"a": f"tcp://0.0.0.0:{port}", "b": "unix:c.sock"}, first)
    assert reached(port) == {"127.0.0.1"}
    assert not first.of["a"][0].socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
