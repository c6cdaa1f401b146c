"""asyncio: the loop, its connections and datagrams, and message handlers in it."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import srvkit
from tests.concurrency.asyncio.conftest import HAS_UVLOOP, Serve
from tests.concurrency.asyncio.loop_servers import ANY, Echo, MessageEcho, Server, ask, everything
from tests.conftest import Connect, Eventually, RunCode, RunSrvkit, Serving

PATIENCE = 30


# ---- serving


@pytest.mark.parametrize("handler", [Echo, MessageEcho])
def test_many_connections_take_turns(
    handler: Any, server_class: type[Server], serving: Serving, client: Connect
) -> None:
    server = serving(server_class(ANY, handler))
    clients = [client(server.server_address) for _ in range(20)]
    for turn in range(3):
        for number, sock in enumerate(clients):
            assert ask(sock, b"%d %d\n" % (turn, number)) == b"%d %d\n" % (turn, number)
    for sock in clients:
        sock.close()


def test_it_is_the_loop_that_was_asked_for(loop: str, serve: Serve, client: Connect) -> None:
    class Which(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(type(asyncio.get_running_loop()).__module__.encode())

    with serve(Which) as server, client(server.address) as sock:
        assert everything(sock).split(b".")[0] == loop.encode()


@pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")
@pytest.mark.parametrize(("installed", "taken"), [(True, b"uvloop"), (False, b"asyncio")])
def test_auto_takes_uvloop_where_it_is_installed(
    installed: bool, taken: bytes, monkeypatch: pytest.MonkeyPatch, client: Connect
) -> None:
    class Which(srvkit.MessageHandler):
        def handle_message(self, message: bytes) -> bytes:
            return type(asyncio.get_running_loop()).__module__.encode()

    if not installed:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    with (
        srvkit.serve(Which, "tcp://127.0.0.1:0", concurrency="asyncio") as server,
        client(server.address) as sock,
    ):
        sock.sendall(b"?")
        assert sock.recv(100).split(b".")[0] == taken


def test_a_missing_uvloop_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(srvkit.ConfigError) as caught:
        srvkit.serve(Echo, "tcp://127.0.0.1:0", concurrency={"name": "asyncio", "loop": "uvloop"})
    assert "pip install 'srvkit[uvloop]'" in str(caught.value)
    assert "concurrency" in str(caught.value)


def test_only_serving_imports_asyncio(run_code: RunCode) -> None:
    """Neither the library nor the plugins' list does."""
    program = run_code(
        "import sys, srvkit\n"
        "from srvkit.plugins.manager import make_manager\n"
        "assert 'asyncio' in make_manager().models\n"
        "print(sorted({'asyncio', 'uvloop'} & set(sys.modules)))"
    )
    assert program.ended() == 0
    assert program.log == "[]\n"


def test_a_handler_that_would_block_is_refused(server_class: type[Server]) -> None:
    with (
        server_class(ANY, srvkit.StreamRequestHandler) as server,
        pytest.raises(TypeError, match="no coroutine"),
    ):
        server.serve_forever()
    with pytest.raises(srvkit.ConfigError, match="cannot run StreamRequestHandler"):
        srvkit.serve(srvkit.StreamRequestHandler, "tcp://127.0.0.1:0", concurrency="asyncio")


def test_one_word_in_the_file_changes_the_model(loop: str, run_srvkit: RunSrvkit, client: Connect) -> None:
    plugin = """
import srvkit

class Shout(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message):
        return message.upper()

@srvkit.hookimpl
def srvkit_handlers():
    return {"shout": Shout}
"""
    config = '[server.test]\nlisten = "tcp://127.0.0.1:0"\nhandler = "shout"\nconcurrency = "threading"\n'
    model = f'{{ name = "asyncio", loop = "{loop}" }}'
    program = run_srvkit(config.replace('"threading"', model), plugin)
    with client(program.addresses("test")[0]) as sock:
        assert ask(sock) == b"HELLO\n"
        assert program.end() == 0
        assert sock.recv(1) == b""


def test_shutdown_works_from_anywhere(server_class: type[Server], client: Connect) -> None:
    """From another thread, from a handler, and before the loop runs; and it may run again after each."""

    class Stop(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.server.shutdown()

    with server_class(ANY, Stop) as server:
        server.shutdown()
        server.serve_forever()
        for _ in range(2):
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with client(server.server_address) as sock:
                assert everything(sock) == b""
            thread.join(PATIENCE)
            assert not thread.is_alive()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        server.shutdown()
        assert server._srvkit_loop is None
        thread.join(PATIENCE)


def test_closing_the_server_ends_its_loop(server_class: type[Server], client: Connect) -> None:
    server = server_class(ANY, Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with client(server.server_address) as sock:
        assert ask(sock) == b"hello\n"
    server.server_close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_broken_listener_ends_the_loop_with_its_error(server_class: type[Server]) -> None:
    """asyncio alone would log it and try again for ever."""
    with server_class(ANY, Echo) as server:
        server.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="Invalid argument"):
            server.serve_forever()


def test_service_actions_are_called_after_each_request(
    server_class: type[Server], serving: Serving, client: Connect
) -> None:
    calls = []

    class Polled(server_class):  # type: ignore[misc]
        def service_actions(self) -> None:
            calls.append(len(self.links))

    server = Polled(ANY, Echo)
    serving(server)
    with client(server.server_address) as sock:
        assert ask(sock) == b"hello\n"
        assert 1 in calls


@pytest.mark.parametrize("handler", [Echo, MessageEcho])
def test_handle_request_sees_one_connection_through(
    handler: Any, server_class: type[Server], client: Connect
) -> None:
    with server_class(ANY, handler) as server:
        with client(server.server_address) as sock:
            sock.sendall(b"hello\n")
            sock.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert everything(sock) == b"hello\n"
        assert server.ends == [None]
        assert server._srvkit_loop is None


def test_each_connection_has_a_context_of_its_own(serve: Serve, client: Connect) -> None:
    variable = contextvars.ContextVar("variable", default=b"fresh")

    class Context(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(variable.get())
            variable.set(b"used")
            await asyncio.sleep(0)
            self.writer.write(variable.get())

    with serve(Context) as server:
        for _ in range(2):
            with client(server.address) as sock:
                assert everything(sock) == b"freshused"


def test_a_handler_is_built_in_a_test_without_a_server() -> None:
    class Writer:
        written = b""

        def write(self, data: bytes) -> None:
            self.written += data

        async def drain(self) -> None:
            pass

    async def test() -> None:
        handler = Echo()
        handler.reader, handler.writer = asyncio.StreamReader(), Writer()
        handler.reader.feed_data(b"hello\n")
        handler.reader.feed_eof()
        await handler.handle()
        assert handler.writer.written == b"hello\n"

    asyncio.run(test())


# ---- datagrams


class DatagramEcho(srvkit.AsyncHandler):
    async def handle(self) -> None:
        data = await self.reader.read()
        assert self.reader.at_eof()
        for piece in (data[:1], bytearray(data[1:])):
            self.writer.write(piece)
            await self.writer.drain()


@pytest.mark.parametrize("handler", [DatagramEcho, MessageEcho])
@pytest.mark.parametrize("scheme", ["udp", "unixgram"])
def test_datagrams_are_answered_in_one(
    scheme: str, handler: Any, serve: Serve, client: Connect, tmp_path: Path
) -> None:
    address = "udp://127.0.0.1:0" if scheme == "udp" else f"unixgram:{tmp_path / 'socket'}"
    with serve(handler, address) as server:
        host = server.address
        with client(f"udp://{host[0]}:{host[1]}" if scheme == "udp" else address) as sock:
            for word in (b"one\n", b"two\n"):
                sock.send(word)
                assert sock.recv(100) == word


def test_nothing_written_is_no_reply(serve: Serve, client: Connect) -> None:
    class Odd(srvkit.AsyncHandler):
        async def handle(self) -> None:
            data = await self.reader.read()
            if data == b"answer":
                self.writer.write(data)

    with (
        serve(Odd, "udp://127.0.0.1:0") as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(b"silence")
        sock.send(b"answer")
        assert sock.recv(100) == b"answer"


def test_datagrams_are_handled_beside_each_other_within_bounds(
    serve: Serve, client: Connect, eventually: Eventually
) -> None:
    """A task each; beyond max_connections they wait in the kernel."""
    busy: list[bytes] = []
    release = threading.Semaphore(0)

    class Hold(srvkit.AsyncHandler):
        async def handle(self) -> None:
            data = await self.reader.read()
            busy.append(data)
            most.append(len(busy))
            await asyncio.get_running_loop().run_in_executor(None, release.acquire, True, PATIENCE)
            busy.remove(data)
            self.writer.write(data)

    most: list[int] = []
    with (
        serve(Hold, "udp://127.0.0.1:0", limits={"max_connections": 3}) as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        for number in range(9):
            sock.send(b"%d" % number)
        eventually(lambda: len(busy) == 3)
        answers = set()
        for _ in range(9):
            release.release()
            answers.add(sock.recv(10))
    assert len(answers) == 9
    assert max(most) == 3


def test_a_datagram_at_hand_is_cut_too(
    serve: Serve, client: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = []
    begun = threading.Event()

    class Wait(srvkit.AsyncHandler):
        async def handle(self) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    with (
        serve(Wait, "udp://127.0.0.1:0") as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(b"hello")
        assert begun.wait(PATIENCE)
        assert server.stop(0.01) is False
    assert cancelled == [True]
    assert caplog.records == []


def test_a_handlers_mistake_with_a_datagram_is_reported(
    serve: Serve, client: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(srvkit.AsyncHandler):
        async def handle(self) -> None:
            if await self.reader.read() == b"fail":
                raise ValueError("a mistake")
            self.writer.write(b"well")

    with (
        serve(Fails, "udp://127.0.0.1:0") as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(b"fail")
        sock.send(b"hello")
        assert sock.recv(10) == b"well"
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a mistake"]


# ---- message handlers in the same loop


def test_a_message_handler_may_use_asyncio(serve: Serve, client: Connect) -> None:
    class Later(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def handle_message(self, message: bytes) -> None:
            asyncio.get_running_loop().call_later(0, self.send, message.upper())

    with serve(Later) as server, client(server.address) as sock:
        assert ask(sock) == b"HELLO\n"


def test_other_threads_may_send(serve: Serve, client: Connect) -> None:
    links: list[Any] = []

    class Room(MessageEcho):
        def connected(self) -> bytes:
            links.append(self)
            return b"welcome"

    with serve(Room) as server, client(server.address) as sock, sock.makefile("rb") as lines:
        assert lines.readline() == b"welcome\n"
        threads = [threading.Thread(target=links[0].send, args=(b"%d" % number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        assert {lines.readline() for _ in range(10)} == {b"%d\n" % number for number in range(10)}
        for thread in threads:
            thread.join()
        links[0].close()
        assert lines.read() == b""
