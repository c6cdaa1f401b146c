"""The ready-made handlers keep to their RFCs, on streams and on datagrams."""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srvkit.plugins.manager import make_manager
from srvkit.pytest_plugin import converse, srvkit_models

PEER = ("127.0.0.1", 9)


@pytest.fixture(scope="module")
def handlers() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        offers = make_manager(["handlers"], folder=Path(__file__).parents[2]).handlers
        yield {name: offer.cls for name, offer in offers.items() if offer.plugin.startswith("handlers/")}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


class AnsweringSocket:
    """Stands for the server's socket of datagrams."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []

    def sendto(self, data: bytes, address: Any) -> int:
        self.sent.append((data, address))
        return len(data)


def test_the_folder_holds_these(handlers):
    assert set(handlers) == {"chargen", "daytime", "discard", "echo", "shout", "time"}


def test_echo_returns_what_it_gets(handlers):
    assert converse(handlers["echo"], [b"a\r\n\0"]) == [b"a\r\n\0"]


@srvkit_models("echo")
def test_echo_is_served_by_every_model(srvkit_server):
    assert srvkit_server("echo").exchange(b"a\r\n\0") == b"a\r\n\0"


def test_discard_answers_nothing(handlers):
    assert converse(handlers["discard"], [b"anything"]) == []


def test_shout_answers_each_line_in_capitals(handlers):
    assert converse(handlers["shout"], [b"one", b"two"]) == [b"ONE", b"TWO"]


@pytest.mark.parametrize("name", ["daytime", "time"])
def test_the_clocks_answer_a_stream_at_once_and_close_it(name, handlers):
    assert len(converse(handlers[name], [b"never read"])) == 1


@pytest.mark.parametrize("name", ["daytime", "time"])
def test_the_clocks_answer_an_empty_datagram(name, handlers):
    clock = handlers[name]()
    assert [bool(clock.handle_message(message)) for message in clock.framing.datagram(b"")] == [True]


def test_daytime_is_one_line_of_ascii(handlers):
    line = handlers["daytime"]().handle_message(b"")
    assert re.fullmatch(rb"[A-Z][a-z]+day, [A-Z][a-z]+ \d{1,2}, \d{4} \d\d:\d\d:\d\d-[ -~]+\r\n", line)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0, 2_208_988_800),  # four examples of the RFC: 1970, 1976, 1980 and May 1983
        (189_302_400, 2_398_291_200),
        (315_532_800, 2_524_521_600),
        (420_595_200, 2_629_584_000),
        (2_085_978_495, 2**32 - 1),  # the last second before it starts again
        (2_085_978_496, 0),
        (2_085_978_497.9, 1),
    ],
)
def test_time_counts_seconds_since_1900_modulo_two_to_the_32(now, expected, handlers, monkeypatch):
    monkeypatch.setattr(sys.modules[handlers["time"].__module__], "time", SimpleNamespace(time=lambda: now))
    assert struct.unpack("!I", handlers["time"]().handle_message(b"")) == (expected,)


def test_chargen_sends_rotating_lines_until_the_client_closes(handlers, pair):
    ours, theirs = pair
    thread = threading.Thread(target=handlers["chargen"], args=(theirs, PEER, None), daemon=True)
    thread.start()
    with ours.makefile("rb") as lines:
        received = [lines.readline() for _ in range(200)]
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    ring = bytes(range(0x20, 0x7F)) * 2
    assert received == [ring[n % 95 : n % 95 + 72] + b"\r\n" for n in range(200)]


def test_chargen_takes_input_without_end_and_goes_on_after_its_end(handlers, pair):
    ours, theirs = pair
    thread = threading.Thread(target=handlers["chargen"], args=(theirs, PEER, None), daemon=True)
    thread.start()
    for _ in range(500):  # 2 MB in all: more than the kernel would keep for a server that does not read
        ours.sendall(bytes(4096))
        received = 0
        while received < 8192:
            received += len(ours.recv(8192))
    ours.shutdown(socket.SHUT_WR)
    for _ in range(50):
        assert ours.recv(65536)
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_chargen_answers_a_datagram_with_up_to_512_characters_of_its_own(handlers):
    answering = AnsweringSocket()
    for _ in range(200):
        handlers["chargen"]((b"ignored", answering), PEER, None)
    lengths = {len(data) for data, _ in answering.sent}
    assert len(answering.sent) == 200
    assert max(lengths) <= 512
    assert len(lengths) > 1
    longest = max((data for data, _ in answering.sent), key=len)
    assert all(longest.startswith(data) and address == PEER for data, address in answering.sent)


@pytest.mark.parametrize("address", [None, "", b""])
def test_chargen_leaves_a_datagram_without_an_address_unanswered(address, handlers):
    answering = AnsweringSocket()
    handlers["chargen"]((b"ignored", answering), address, None)
    assert answering.sent == []
