"""From one configuration to the next, sockets stay where the address does."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from srvkit.config.loader import from_table
from srvkit.errors import ListenError
from srvkit.process.listening import ListeningSockets


@pytest.fixture
def sockets(tmp_path: Path):
    """`sockets({"a": "unix:a.sock"}, before)`: those of a configuration in this folder."""
    made: list[ListeningSockets] = []

    def make(servers: dict[str, Any], before: ListeningSockets | None = None, **settings: Any):
        made.append(ListeningSockets(config(servers, **settings), before))
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


def descriptors(sockets: ListeningSockets) -> dict[str, list[int]]:
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
    again = ListeningSockets.inherited(first.entries())
    assert again.of == first.of
    assert sorted(entry[:3] for entry in again.entries()) == sorted(entry[:3] for entry in first.entries())
    second = sockets({"b": "tcp://127.0.0.1:0", "c": "unix:a.sock"}, again)
    assert second.added == []
    assert second.take_over() == [first.of["a"][1]]
