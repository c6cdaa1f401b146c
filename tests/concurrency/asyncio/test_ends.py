"""Coroutines end, by themselves or by others, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import weakref
from typing import Any

import pytest

import srvkit
from tests.concurrency.asyncio.conftest import Serve
from tests.concurrency.asyncio.loop_servers import ANY, Echo, MessageEcho, Server, ask, everything, reset
from tests.conftest import Connect, Eventually, RunSrvkit

PATIENCE = 30


def test_a_peer_that_vanishes_is_one_line_in_the_log(
    serve: Serve,
    client: Connect,
    ends: list[tuple[str, int, int]],
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    caplog.set_level(logging.INFO, "srvkit.server")
    with serve(Echo) as server:
        sock = client(server.address)
        assert ask(sock) == b"hello\n"
        reset(sock)
        eventually(lambda: ends)
    assert ends == [("reset", 6, 6)]
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.levelno == logging.INFO


def test_a_peer_that_vanishes_ends_a_handler_that_only_writes(
    monkeypatch: pytest.MonkeyPatch,
    serve: Serve,
    client: Connect,
    ends: list[tuple[str, int, int]],
    eventually: Eventually,
) -> None:
    """Even if it never drains, and so is never told."""
    monkeypatch.setattr("srvkit.concurrency.asyncio.transport.LAST_WORDS", 0.1)

    class Ticker(srvkit.AsyncHandler):
        async def handle(self) -> None:
            while True:
                self.writer.write(b"tick\n")
                await asyncio.sleep(0.01)

    with serve(Ticker) as server:
        sock = client(server.address)
        sock.sendall(b"subscribe\n")
        assert sock.recv(5) == b"tick\n"
        reset(sock)
        eventually(lambda: ends)
    assert ends[0][0] == "reset"


@pytest.mark.parametrize("error", [ValueError("a mistake"), SystemExit(3), asyncio.CancelledError()])
def test_an_error_is_reported_and_ends_its_connection_only(
    error: BaseException,
    serve: Serve,
    client: Connect,
    ends: list[tuple[str, int, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Echo):
        async def handle(self) -> None:
            if await self.reader.readline() == b"fail\n":
                self.writer.write(b"failing")
                raise error
            self.writer.write(b"well")

    with serve(Fails) as server:
        with client(server.address) as sock:
            sock.sendall(b"fail\n")
            assert everything(sock) == b"failing"
        with client(server.address) as sock:
            sock.sendall(b"hello\n")
            assert everything(sock) == b"well"
    assert ends == [("error", 5, 7), ("closed", 6, 4)]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_without_containment_an_exit_ends_the_loop(server_class: type[Server], client: Connect) -> None:
    """As under the bare classes without a mixin."""

    class Exit(srvkit.AsyncHandler):
        async def handle(self) -> None:
            raise SystemExit(3)

    with server_class(ANY, Exit) as server:
        with client(server.server_address), pytest.raises(SystemExit):
            server.serve_forever()
        assert server.ends == [None]


def test_a_handler_that_cannot_be_made_is_an_error(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    class Unmade(Echo):
        def __init__(self, *args: Any) -> None:
            raise ValueError("not today")

    with serve(Unmade) as server, client(server.address) as sock:
        assert everything(sock) == b""
    assert ends == [("error", 0, 0)]
    assert "not today" in caplog.text


def test_a_drain_lets_handlers_finish(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]]
) -> None:
    with serve(Echo) as server, client(server.address) as sock:
        assert ask(sock) == b"hello\n"
        stopped: list[bool] = []
        thread = threading.Thread(target=lambda: stopped.append(server.stop(PATIENCE)))
        thread.start()
        while not server.server.draining:
            pass
        assert ask(sock, b"one more\n") == b"one more\n"
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock) == b""
        thread.join(PATIENCE)
    assert stopped == [True]
    assert ends == [("eof", 15, 15)]


def test_a_cut_cancels_what_is_left(
    serve: Serve, client: Connect, ends: list[tuple[str, int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers clean up; what they wait for makes no difference."""
    cleaned = []

    class Waits(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(b"begun")
            try:
                await (self.reader.readline() if not cleaned else asyncio.Event().wait())
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(True)

    for _ in range(2):
        with serve(Waits) as server, client(server.address) as sock:
            assert sock.recv(5) == b"begun"
            assert server.stop(0.01) is False
            assert sock.recv(1) == b""
    assert cleaned == [True, True]
    assert [outcome for outcome, _, _ in ends] == ["stopped", "stopped"]
    assert [record for record in caplog.records if record.name.startswith("srvkit")] == []


def test_a_handler_that_will_not_be_cancelled_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
    server_class: type[Server],
    client: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("srvkit.concurrency.asyncio.model.LAST_MOMENT", 0.1)

    class Stubborn(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(b"begun")
            while True:
                try:
                    await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    pass

    server = server_class(ANY, Stubborn)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with server, client(server.server_address) as sock:
        assert sock.recv(5) == b"begun"
        server.shutdown()
        assert sock.recv(1) == b""
    thread.join(PATIENCE)
    assert server.ends == [None]
    assert "1 task did not stop when cancelled" in caplog.text
    caplog.clear()
    gc.collect()


def test_nothing_stays_when_the_loop_ends(server_class: type[Server], client: Connect) -> None:
    """Tasks of connections and those that handlers began are cancelled, each connection is shut down once."""
    tasks = []

    class Begins(srvkit.AsyncHandler):
        async def handle(self) -> None:
            tasks.append(asyncio.current_task())
            tasks.append(asyncio.create_task(asyncio.Event().wait()))
            self.writer.write(b"begun")
            await self.reader.read()

    server = server_class(ANY, Begins)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    clients = [client(server.server_address) for _ in range(3)]
    for sock in clients:
        assert sock.recv(5) == b"begun"
    server.shutdown()
    for sock in clients:
        assert sock.recv(1) == b""
        sock.close()
    assert all(task.done() for task in tasks)
    assert server.ends == [None] * 3
    assert not server.links
    server.server_close()
    thread.join(PATIENCE)


def test_a_connection_accepted_at_the_last_moment_is_closed(
    server_class: type[Server], client: Connect
) -> None:
    """Whether its task has begun or not."""

    class Ending(server_class):  # type: ignore[misc]
        def verify_request(self, request: Any, client_address: Any) -> bool:
            self.shutdown()
            return True

    with Ending(ANY, Echo) as server, client(server.server_address) as sock:
        server.serve_forever()
        assert sock.recv(1) == b""
        assert server.ends == [None]
        assert not server.links


def test_message_handlers_learn_that_the_loop_ends(server_class: type[Server], client: Connect) -> None:
    reasons = []

    class Noting(MessageEcho):
        def disconnected(self, reason: str) -> None:
            reasons.append(reason)

    server = server_class(ANY, Noting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with server, client(server.server_address) as sock:
        assert ask(sock) == b"hello\n"
        server.shutdown()
        assert sock.recv(1) == b""
    thread.join(PATIENCE)
    assert reasons == ["stopped"]
    assert server.ends == [None]


def test_a_finished_connection_leaves_no_garbage(serve: Serve, client: Connect) -> None:
    """All of it is freed by reference counts: no work for the collector."""
    remains: list[Any] = []

    class Noting(Echo):
        async def handle(self) -> None:
            remains.extend(weakref.ref(thing) for thing in (self, self.reader, self.writer))
            await super().handle()

    def links() -> int:
        return sum(type(thing).__name__ == "StreamTransport" for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    before = links()
    try:
        with serve(Noting) as server:
            for _ in range(2):
                with client(server.address) as sock:
                    assert ask(sock) == b"hello\n"
                    sock.shutdown(socket.SHUT_WR)
                    assert sock.recv(1) == b""
            server.stop(PATIENCE)
            assert [ref() for ref in remains] == [None] * 6
            assert links() == before
    finally:
        gc.enable()


def test_hooks_see_each_connection_once(run_srvkit: RunSrvkit, client: Connect, loop: str) -> None:
    plugin = """
import os
import srvkit

def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")  # whole, between the lines of the log

class Echo(srvkit.AsyncHandler):
    @classmethod
    def startup(cls, server):
        say("startup")

    @classmethod
    def shutdown(cls, server):
        say("shutdown")

    async def handle(self):
        line = await self.reader.readline()
        say("handling", line)
        if line == b"fail\\n":
            raise ValueError("a mistake")
        self.writer.write(line)

@srvkit.hookimpl
def srvkit_handlers():
    return {"echo-async": Echo}

@srvkit.hookimpl
def srvkit_connection_open(server, client_address):
    say("open")

@srvkit.hookimpl
def srvkit_connection_close(server, client_address, outcome, seconds, bytes_in, bytes_out):
    say("close", outcome, bytes_in, bytes_out)

@srvkit.hookimpl
def srvkit_error(server, client_address, error):
    say("error", error)
"""
    model = f'{{ name = "asyncio", loop = "{loop}" }}'
    config = f'[server.test]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo-async"\nconcurrency = {model}\n'
    program = run_srvkit(config, plugin)
    for line in (b"hello\n", b"fail\n"):
        with client(program.addresses("test")[0]) as sock:
            sock.sendall(line)
            assert everything(sock) == line * (line != b"fail\n")
    program.wait_for("^close", times=2)
    assert program.end() == 0
    own = ("startup", "shutdown", "open", "close", "error ", "handling")
    assert [line for line in program.log.splitlines() if line.startswith(own)] == [
        "startup",
        "open",
        "handling b'hello\\n'",
        "close closed 6 6",
        "open",
        "handling b'fail\\n'",
        "error a mistake",
        "close error 5 0",
        "shutdown",
    ]
