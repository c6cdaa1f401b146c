"""Coroutines and their peers: what is read and written in which order, and for how long that may take."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from typing import Any

import pytest

import srvkit
from tests.concurrency.asyncio.conftest import Serve
from tests.concurrency.asyncio.loop_servers import MUCH, Echo, ask, everything
from tests.conftest import Connect, Eventually

PATIENCE = 30


# ---- streams


def test_the_streams_are_asyncios(serve: Serve, client: Connect) -> None:
    class Look(srvkit.AsyncHandler):
        async def handle(self) -> None:
            assert isinstance(self.reader, asyncio.StreamReader)
            assert isinstance(self.writer, asyncio.StreamWriter)
            assert isinstance(self.writer.transport, asyncio.Transport)
            assert self.writer.get_extra_info("socket") is self.request
            assert self.writer.get_extra_info("peername") == self.client_address
            assert self.writer.get_extra_info("sockname") == self.request.getsockname()
            assert self.writer.get_extra_info("sslcontext", "none") == "none"
            with pytest.raises(TypeError, match="str"):
                self.writer.write("text")
            with pytest.raises(RuntimeError, match="needs certificates"):
                await self.writer.start_tls()
            with pytest.raises(TypeError, match="those of the server"):
                await self.writer.start_tls(object())
            self.writer.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
            self.writer.write_eof()
            with pytest.raises(RuntimeError):
                self.writer.write(b"d")
            self.said = await self.reader.read()
            heard.append(self.said)

    heard: list[bytes] = []
    with serve(Look) as server, client(server.address) as sock:
        assert everything(sock) == b"abc"  # while the other direction is still open
        sock.sendall(b"still here")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        server.stop(PATIENCE)
    assert heard == [b"still here"]


def test_what_is_written_in_one_turn_leaves_in_one_write(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, client: Connect
) -> None:
    writes = []

    def send(self: Any, data: bytes, *flags: int) -> int:
        writes.append(data)
        return socket.socket.send(self, data, *flags)

    class Noting(srvkit.AsyncHandler):
        async def handle(self) -> None:
            for line in (b"one\n", b"two\n", b"three\n"):
                self.writer.write(line)
                await self.writer.drain()
            await self.reader.readline()

    monkeypatch.setattr("srvkit.net.connection.Connection.send", send, raising=False)
    with serve(Noting) as server, client(server.address) as sock, sock.makefile("rb") as answers:
        assert [answers.readline() for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]
    assert writes == [b"one\ntwo\nthree\n"]


def test_a_writer_waits_for_a_peer_that_does_not_read(serve: Serve, client: Connect) -> None:
    """And all arrives, in order, once it does."""
    written = []
    stuck = threading.Event()

    class Pour(srvkit.AsyncHandler):
        async def handle(self) -> None:
            for number in range(MUCH >> 16):
                self.writer.write(struct.pack("!I", number) * (1 << 14))
                waiting = asyncio.create_task(self.writer.drain())
                await asyncio.sleep(0)
                if not waiting.done():
                    stuck.set()
                await waiting
                assert self.writer.transport.get_write_buffer_size() < 1 << 17
                written.append(number)

    with serve(Pour) as server, client(server.address) as sock:
        assert stuck.wait(PATIENCE)
        assert len(written) < MUCH >> 16
        assert everything(sock) == b"".join(struct.pack("!I", n) * (1 << 14) for n in range(MUCH >> 16))


def test_a_peer_that_is_not_read_is_held_back(serve: Serve, client: Connect) -> None:
    go_on = threading.Event()

    class Slow(srvkit.AsyncHandler):
        async def handle(self) -> None:
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait, PATIENCE)
            assert len(self.reader._held) <= 2 * 1000 + (1 << 16)
            count = 0
            while data := await self.reader.read(1 << 20):
                count += len(data)
            self.writer.write(b"%d" % count)

    with serve(Slow, limits={"max_message": 1000}) as server, client(server.address) as sock:
        sock.settimeout(0.2)
        sent = 0
        while sent < MUCH:
            try:
                sent += sock.send(bytes(1 << 16))
            except TimeoutError:
                break
        assert sent < MUCH
        go_on.set()
        sock.settimeout(PATIENCE)
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock) == b"%d" % sent


def test_all_that_was_written_is_out_before_the_end(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]]
) -> None:
    class Big(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(bytes(MUCH))

    with serve(Big) as server, client(server.address) as sock:
        assert len(everything(sock)) == MUCH
    assert ends == [("closed", 0, MUCH)]


def test_a_closed_connection_ends_while_its_handler_goes_on(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]]
) -> None:
    go_on = threading.Event()

    class Close(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(b"bye")
            self.writer.close()
            assert self.writer.is_closing()
            await self.writer.wait_closed()
            self.writer.write(b"too late")
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait, PATIENCE)

    with serve(Close) as server:
        with client(server.address) as sock:
            assert everything(sock) == b"bye"
            assert ends == []
            go_on.set()
        server.stop(PATIENCE)
    assert ends == [("closed", 0, 3)]


# ---- limits

TIMEOUTS = [
    ("first_byte_timeout", b"", "first-byte-timeout"),
    ("idle_timeout", b"hello\n", "idle-timeout"),
    ("idle_timeout", b"hello\nhalf a li", "idle-timeout"),
    ("request_timeout", b"hello\nhalf a li", "request-timeout"),
]


@pytest.mark.parametrize(("limit", "said", "reason"), TIMEOUTS)
def test_a_silent_client_is_let_go(
    limit: str,
    said: bytes,
    reason: str,
    serve: Serve,
    client: Connect,
    ends: list[tuple[str, int, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "srvkit.server")
    # Of the whole connection's time the answer takes a part, too.
    seconds = 0.5 if limit == "request_timeout" else 0.1
    with serve(Echo, limits={limit: seconds}) as server:
        with client(server.address) as sock:
            sock.sendall(said)
            assert everything(sock) == b"hello\n" * bool(said)
        server.stop(PATIENCE)
    assert ends == [(reason, len(said), 6 * bool(said))]
    (record,) = caplog.records
    assert f"ended: {reason}" in record.getMessage()
    assert record.exc_info is None


def test_a_client_that_does_not_read_is_let_go(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]], eventually: Eventually
) -> None:
    class Pour(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(bytes(MUCH))
            await self.writer.drain()

    with serve(Pour, limits={"write_timeout": 0.1}) as server, client(server.address):
        eventually(lambda: ends)
    assert ends[0][0] == "write-timeout"


def test_a_client_that_does_not_read_the_last_words_is_let_go(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]], eventually: Eventually
) -> None:
    """The handler has returned, and what it wrote lies here."""

    class Big(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(bytes(MUCH))

    with serve(Big, limits={"write_timeout": 0.1}) as server, client(server.address):
        eventually(lambda: ends)
        eventually(lambda: repr(server.server).endswith("serving, 0 of 1024 seats taken>"))
    assert ends[0][0] == "write-timeout"


def test_a_handler_may_say_goodbye_to_a_silent_client(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]]
) -> None:
    class Polite(srvkit.AsyncHandler):
        async def handle(self) -> None:
            try:
                await self.reader.readline()
            except TimeoutError:
                self.writer.write(b"goodbye")

    with serve(Polite, limits={"first_byte_timeout": 0.1}) as server, client(server.address) as sock:
        assert everything(sock) == b"goodbye"
    assert ends == [("first-byte-timeout", 0, 7)]


@pytest.mark.parametrize("stubborn", ["reads again", "waits for something else"])
def test_a_handler_that_ignores_the_loss_of_its_peer_is_cancelled(
    stubborn: str,
    monkeypatch: pytest.MonkeyPatch,
    serve: Serve,
    client: Connect,
    ends: list[tuple[str, int, int]],
) -> None:
    monkeypatch.setattr("srvkit.concurrency.asyncio.transport.LAST_WORDS", 0.1)
    cancelled = []

    class Stubborn(srvkit.AsyncHandler):
        async def handle(self) -> None:
            try:
                while True:
                    try:
                        if not await self.reader.readline():
                            return
                    except OSError:
                        if stubborn != "reads again":
                            await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    with (
        serve(Stubborn, limits={"first_byte_timeout": 0.1}) as server,
        client(server.address) as sock,
        client(server.address) as other,
    ):
        other.sendall(b"somebody else is served meanwhile")
        assert everything(sock) == b""
    assert cancelled[:1] == [True]
    assert ends[0][0] == "first-byte-timeout"


def test_the_handlers_own_time_is_not_the_peers(serve: Serve, client: Connect) -> None:
    """While it does not read, nobody is idle."""

    class Busy(srvkit.AsyncHandler):
        async def handle(self) -> None:
            for _ in range(2):
                line = await self.reader.readline()
                await asyncio.sleep(0.5)
                self.writer.write(line)

    with serve(Busy, limits={"idle_timeout": 0.2}) as server, client(server.address) as sock:
        sock.sendall(b"one\ntwo\n")
        assert everything(sock) == b"one\ntwo\n"


def test_a_connection_that_goes_on_is_not_idle(serve: Serve, client: Connect) -> None:
    with serve(Echo, limits={"idle_timeout": 1.0}) as server, client(server.address) as sock:
        for _ in range(30):
            assert ask(sock) == b"hello\n"
            threading.Event().wait(0.05)  # together longer than the limit
        assert ask(sock) == b"hello\n"


def test_a_line_that_is_too_long_is_the_peers_fault(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "srvkit.server")
    with serve(Echo, limits={"max_message": 10}) as server, client(server.address) as sock:
        assert ask(sock, b"0123456789\n") == b"0123456789\n"
        sock.sendall(b"0123456789a\n")
        assert everything(sock) == b""
    assert ends == [("bad-message", 23, 11)]
    assert ["ended: bad-message" in record.getMessage() for record in caplog.records] == [True]


def test_an_end_in_the_middle_is_the_peers_fault(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    class Exact(srvkit.AsyncHandler):
        async def handle(self) -> None:
            await self.reader.readexactly(10)

    with serve(Exact) as server, client(server.address) as sock:
        sock.sendall(b"12345")
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock) == b""
    assert ends == [("truncated", 5, 0)]
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("when_full", ["wait", "close"])
def test_no_more_connections_than_seats(when_full: str, serve: Serve, client: Connect) -> None:
    limits = {"max_connections": 2, "when_full": when_full}
    with serve(Echo, limits=limits) as server, client(server.address) as one, client(server.address) as two:
        assert ask(one) == ask(two) == b"hello\n"
        with client(server.address) as three:
            if when_full == "close":
                assert three.recv(1) == b""
                return
            three.sendall(b"hello\n")
            assert ask(one) == b"hello\n"
            assert "2 of 2 seats taken" in repr(server.server)
            one.close()
            assert three.recv(100) == b"hello\n"
