"""The ready-made handlers answer over the real command as their RFCs say, on TCP and on UDP."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Connect, Start

NAMES = ("echo", "discard", "chargen", "daytime", "time")
SECONDS_FROM_1900_TO_1970 = 2_208_988_800


@pytest.fixture(scope="module")
def addresses(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    folder = tmp_path_factory.mktemp("ready-made")
    (folder / "srvkit.toml").write_text(
        "".join(
            f'[server.{name}-{scheme}]\nlisten = "{scheme}://127.0.0.1:0"\nhandler = "{name}"\n'
            for name in NAMES
            for scheme in ("tcp", "udp")
        )
    )
    with start("-m", "srvkit", "run", folder=folder) as program:
        yield lambda server: program.addresses(server)[0]
        assert program.end() == 0
        assert "Traceback" not in program.log


@pytest.fixture
def connect(addresses: Callable[[str], str], client: Connect) -> Callable[[str], socket.socket]:
    return lambda server: client(addresses(server))


def read_all(sock):
    with sock.makefile("rb") as file:
        return file.read()


def test_echo_returns_bytes_until_the_client_closes(connect):
    with connect("echo-tcp") as sock:
        sock.sendall(b"no line end\r\n\0\xff")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"no line end\r\n\0\xff"


@pytest.mark.parametrize("datagram", [b"a", b"", bytes(range(256)) * 200])
def test_echo_returns_each_datagram(datagram, connect):
    with connect("echo-udp") as sock:
        sock.send(datagram)
        assert sock.recv(65535) == datagram


def test_discard_answers_nothing_and_closes_with_its_client(connect):
    with connect("discard-tcp") as sock:
        sock.sendall(bytes(100_000))
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


def test_discard_answers_no_datagram(connect, addresses, client):
    with connect("discard-udp") as sock:
        sock.send(b"anything")
        sock.send(b"")
        with connect("echo-udp") as other:  # by the time this is answered, an answer would long be here
            other.send(b"x")
            other.recv(10)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(10)


def test_chargen_sends_lines_without_end_whatever_the_client_says(connect):
    ring = bytes(range(0x20, 0x7F)) * 2
    with connect("chargen-tcp") as sock, sock.makefile("rb") as file:
        sock.sendall(b"ignored")
        assert [file.readline() for _ in range(200)] == [ring[n % 95 :][:72] + b"\r\n" for n in range(200)]


def test_chargen_answers_a_datagram_with_up_to_512_characters(connect):
    with connect("chargen-udp") as sock:
        for _ in range(20):
            sock.send(b"")
            answer = sock.recv(65535)
            assert len(answer) <= 512
            assert re.fullmatch(rb"[ -~\r\n]*", answer)


LINE = rb"[A-Z][a-z]+day, [A-Z][a-z]+ \d{1,2}, \d{4} \d\d:\d\d:\d\d-[ -~]+\r\n"


def test_daytime_sends_its_line_and_closes(connect):
    with connect("daytime-tcp") as sock:
        assert re.fullmatch(LINE, read_all(sock))


@pytest.mark.parametrize("datagram", [b"", b"what time is it?"])
def test_daytime_answers_a_datagram(datagram, connect):
    with connect("daytime-udp") as sock:
        sock.send(datagram)
        assert re.fullmatch(LINE, sock.recv(65535))


def seconds(answer):
    (number,) = struct.unpack("!I", answer)
    return number - SECONDS_FROM_1900_TO_1970


def test_time_sends_four_bytes_and_closes(connect):
    before = int(time.time())
    with connect("time-tcp") as sock:
        assert before <= seconds(read_all(sock)) <= time.time()


@pytest.mark.parametrize("datagram", [b"", b"x"])
def test_time_answers_a_datagram(datagram, connect):
    before = int(time.time())
    with connect("time-udp") as sock:
        sock.send(datagram)
        assert before <= seconds(sock.recv(65535)) <= time.time()
