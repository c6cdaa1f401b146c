"""One string, one address; what is wrong with it is said, and what would be right."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from srvkit.net.address import MAX_UNIX_PATH, Address, display, overlap, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:7007", Address("tcp", "127.0.0.1", 7007)),
        ("udp://[::1]:0", Address("udp", "::1", 0)),
        ("tcp://:80", Address("tcp", "", 80)),
        ("tcp://example.org:65535", Address("tcp", "example.org", 65535)),
        ("unix:run/echo.sock", Address("unix", path="run/echo.sock")),
        ("unixgram:@name", Address("unixgram", path="@name")),
        ("fd:3", Address("fd", fd=3)),
        ("systemd:echo.socket", Address("systemd", name="echo.socket")),
    ],
)
def test_an_address_is_written_as_it_is_read(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text


def test_two_slashes_before_a_path_are_nothing() -> None:
    assert parse("unix:///run/echo.sock") == Address("unix", path="/run/echo.sock")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("127.0.0.1:80", "is no address; known are tcp://HOST:PORT, udp://HOST:PORT"),
        ("http://x:80", "is no address"),
        ("tcp:127.0.0.1:80", "two slashes are expected, as in tcp://HOST:PORT"),
        ("tcp://127.0.0.1", "a port is expected, as in tcp://HOST:PORT (0 lets the kernel choose)"),
        ("tcp://[::1]", "a port is expected"),
        ("udp://::1:80", "an IPv6 address stands in brackets, as in udp://[::1]:80"),
        ("tcp://x:65536", "the port must be a number from 0 to 65535, not '65536'"),
        ("tcp://x:-1", "the port must be a number from 0 to 65535, not '-1'"),
        ("tcp://x:²", "the port must be a number from 0 to 65535"),
        ("tcp://x y:80", "'x y' is no host name"),
        ("tcp://user@x:80", "'user@x' is no host name"),
        ("unix:", "a path is expected, as in unix:PATH or unix:@NAME"),
        ("unixgram:@", "a path is expected"),
        ("unix:a\0b", "a path is expected"),
        ("fd:three", "a descriptor's number is expected, as in fd:3"),
        ("fd:-1", "a descriptor's number is expected"),
        ("fd:" + "9" * 20, "a descriptor's number is expected"),
        ("tcp://x:" + "9" * 5000, "the port must be a number from 0 to 65535"),
        ("systemd:", "the name of a socket is expected, as in systemd:NAME"),
        ("systemd:a:b", "the name of a socket is expected"),
        ("systemd:" + "x" * 256, "the name of a socket is expected"),
        ("unix:" + "x" * 200, f"is longer than the {MAX_UNIX_PATH} bytes a socket address holds"),
    ],
)
def test_what_is_no_address_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(text)
    assert repr(text) in str(caught.value)


def test_the_longest_path_is_as_long_as_the_kernel_takes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    longest = parse("unix:" + "x" * MAX_UNIX_PATH)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(longest.path)
    with pytest.raises(ValueError, match="is longer than"):
        longest.relative_to(tmp_path)


def test_relative_paths_start_at_the_folder_and_others_do_not() -> None:
    folder = Path("/run/echo")
    assert parse("unix:a.sock").relative_to(folder).path == "/run/echo/a.sock"
    assert parse("unix:/tmp/a.sock").relative_to(folder).path == "/tmp/a.sock"
    assert parse("unix:@a").relative_to(folder).path == "@a"
    assert parse("tcp://a:1").relative_to(folder) == parse("tcp://a:1")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        ("/run/a.sock", "/run/a.sock"),
        (b"\0name", "@name"),
        ("", "unnamed"),
        (None, "unnamed"),
    ],
)
def test_peers_are_displayed_as_people_write_them(address: Any, text: str) -> None:
    assert display(address) == text


def test_a_descriptor_is_of_the_kind_that_it_is(tmp_path: Path) -> None:
    for kind, name in ((socket.SOCK_STREAM, "stream"), (socket.SOCK_DGRAM, "datagram")):
        with socket.socket(socket.AF_INET, kind) as sock:
            assert parse(f"fd:{sock.fileno()}").kind == name
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="socket"):
        assert parse(f"fd:{file.fileno()}").kind


@pytest.mark.parametrize(
    ("text", "numeric"),
    [
        ("tcp://127.1:7", "tcp://127.0.0.1:7"),
        ("tcp://[0:0:0::1]:7", "tcp://[::1]:7"),
        ("udp://[::FFFF:127.0.0.1]:7", "udp://127.0.0.1:7"),
        ("tcp://[::0]:7", "tcp://[::]:7"),
        ("tcp://example.org:7", None),
        ("tcp://" + "x" * 80 + ":7", None),
        ("tcp://höhle:7", None),
        ("unix:a.sock", "unix:a.sock"),
        ("systemd:a", "systemd:a"),
    ],
)
def test_a_number_has_one_spelling_and_a_name_is_none(text: str, numeric: str | None) -> None:
    found = parse(text).numeric()
    assert (str(found) if found is not None else None) == numeric


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("tcp://LOCALHOST.:1", "tcp://127.0.0.1:1", True),
        ("tcp://Example.org:1", "tcp://example.org.:1", True),
        ("tcp://[::ffff:127.0.0.1]:1", "tcp://127.1:1", True),
        ("tcp://[::0]:1", "tcp://10.0.0.1:1", True),
        ("tcp://[::1]:1", "tcp://[0::1]:1", True),
        ("tcp://[::ffff:0.0.0.0]:1", "tcp://[::1]:1", False),
        ("tcp://example.org:1", "tcp://example.net:1", False),
        ("tcp://127.1:0", "tcp://127.0.0.1:0", False),
    ],
)
def test_addresses_are_compared_by_what_they_are(one: str, other: str, same: bool) -> None:
    assert overlap(parse(one), parse(other)) is overlap(parse(other), parse(one)) is same


def test_two_descriptors_of_one_socket_are_one_address() -> None:
    with socket.socket() as one, one.dup() as again, socket.socket() as other:
        first = parse(f"fd:{one.fileno()}")
        assert overlap(first, parse(f"fd:{again.fileno()}"))
        assert not overlap(first, parse(f"fd:{other.fileno()}"))


def test_a_path_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("link/a")
    one = parse(f"unix:{tmp_path}/a")
    assert all(overlap(one, parse(f"unixgram:{tmp_path}/{other}")) for other in ("a", "link/a", "b"))
    assert not overlap(one, parse(f"unix:{tmp_path}/c"))
    assert not overlap(one, parse("unix:@a"))
