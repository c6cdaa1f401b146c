"""asyncio: coroutines, a task each; their limits, their ends, and that nothing of them stays behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
import logging
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import srvkit

ANY = ("127.0.0.1", 0)
PATIENCE = 30
HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
LOOPS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")),
]
MUCH = 16 << 20  # more than the kernel takes for a peer that does not read


class Echo(srvkit.AsyncHandler):
    async def handle(self) -> None:
        while line := await self.reader.readline():
            self.writer.write(line)
            await self.writer.drain()


class MessageEcho(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        return message


class Server(srvkit.TaskMixIn, srvkit.TCPServer):
    """Notes what is shut down, and how it ended."""

    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ends: list[Any] = []

    def shutdown_request(self, request: Any) -> None:
        self.ends.append(getattr(request, "outcome", None))
        super().shutdown_request(request)


@pytest.fixture(params=LOOPS)
def loop(request: Any) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server_class(loop: str) -> type[Server]:
    return type("Server", (Server,), {"loop": loop})


@pytest.fixture
def serve(loop: str) -> Callable[..., Any]:
    def begin(handler: Any, address: str = "tcp://127.0.0.1:0", **settings: Any) -> Any:
        return srvkit.serve(handler, address, concurrency={"name": "asyncio", "loop": loop}, **settings)

    return begin


@pytest.fixture
def ends(monkeypatch: Any) -> Iterator[list[tuple[str, int, int]]]:
    """What each connection's end was, how many bytes came in and went out."""
    seen: list[tuple[str, int, int]] = []
    shutdown_request = srvkit.TCPServer.shutdown_request

    def noting(self: Any, request: Any) -> None:
        seen.append((request.outcome, request.bytes_in, request.bytes_out))
        shutdown_request(self, request)

    monkeypatch.setattr(srvkit.TCPServer, "shutdown_request", noting)
    return seen


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    with sock.makefile("rb") as answers:
        return answers.readline()


def everything(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 20):
        data += piece
    return data


def reset(sock: socket.socket) -> None:
    """Vanish without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- serving


@pytest.mark.parametrize("handler", [Echo, MessageEcho])
def test_many_connections_take_turns(handler: Any, server_class: Any, serving: Any, client: Any) -> None:
    server = serving(server_class(ANY, handler))
    clients = [client(server.server_address) for _ in range(20)]
    for turn in range(3):
        for number, sock in enumerate(clients):
            assert ask(sock, b"%d %d\n" % (turn, number)) == b"%d %d\n" % (turn, number)
    for sock in clients:
        sock.close()


def test_it_is_the_loop_that_was_asked_for(loop: str, serve: Any, client: Any) -> None:
    class Which(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(type(asyncio.get_running_loop()).__module__.encode())

    with serve(Which) as server, client(server.address) as sock:
        assert everything(sock).split(b".")[0] == loop.encode()


@pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")
@pytest.mark.parametrize(("installed", "taken"), [(True, b"uvloop"), (False, b"asyncio")])
def test_auto_takes_uvloop_where_it_is_installed(
    installed: bool, taken: bytes, monkeypatch: Any, client: Any
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


def test_a_missing_uvloop_is_an_error_that_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(srvkit.ConfigError) as caught:
        srvkit.serve(Echo, "tcp://127.0.0.1:0", concurrency={"name": "asyncio", "loop": "uvloop"})
    assert "pip install 'srvkit[uvloop]'" in str(caught.value)
    assert "concurrency" in str(caught.value)


def test_only_serving_imports_asyncio(run_code: Any) -> None:
    """Neither the library nor the plugins' list does."""
    program = run_code(
        "import sys, srvkit\n"
        "from srvkit.plugins.manager import make_manager\n"
        "assert 'asyncio' in make_manager().models\n"
        "print(sorted({'asyncio', 'uvloop'} & set(sys.modules)))"
    )
    assert program.ended() == 0
    assert program.log == "[]\n"


def test_a_handler_that_would_block_is_refused(server_class: Any) -> None:
    with (
        server_class(ANY, srvkit.StreamRequestHandler) as server,
        pytest.raises(TypeError, match="no coroutine"),
    ):
        server.serve_forever()
    with pytest.raises(srvkit.ConfigError, match="cannot run StreamRequestHandler"):
        srvkit.serve(srvkit.StreamRequestHandler, "tcp://127.0.0.1:0", concurrency="asyncio")


def test_one_word_in_the_file_changes_the_model(loop: str, run_srvkit: Any, client: Any) -> None:
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


def test_shutdown_works_from_anywhere(server_class: Any, client: Any) -> None:
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


def test_closing_the_server_ends_its_loop(server_class: Any, client: Any) -> None:
    server = server_class(ANY, Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with client(server.server_address) as sock:
        assert ask(sock) == b"hello\n"
    server.server_close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_broken_listener_ends_the_loop_with_its_error(server_class: Any) -> None:
    """asyncio alone would log it and try again for ever."""
    with server_class(ANY, Echo) as server:
        server.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="Invalid argument"):
            server.serve_forever()


def test_service_actions_are_called_after_each_request(server_class: Any, serving: Any, client: Any) -> None:
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
def test_handle_request_sees_one_connection_through(handler: Any, server_class: Any, client: Any) -> None:
    with server_class(ANY, handler) as server:
        with client(server.server_address) as sock:
            sock.sendall(b"hello\n")
            sock.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert everything(sock) == b"hello\n"
        assert server.ends == [None]
        assert server._srvkit_loop is None


def test_each_connection_has_a_context_of_its_own(serve: Any, client: Any) -> None:
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


# ---- streams


def test_the_streams_are_asyncios(serve: Any, client: Any) -> None:
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


def test_what_is_written_in_one_turn_leaves_in_one_write(monkeypatch: Any, serve: Any, client: Any) -> None:
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


def test_a_writer_waits_for_a_peer_that_does_not_read(serve: Any, client: Any) -> None:
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


def test_a_peer_that_is_not_read_is_held_back(serve: Any, client: Any) -> None:
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


def test_all_that_was_written_is_out_before_the_end(serve: Any, client: Any, ends: Any) -> None:
    class Big(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(bytes(MUCH))

    with serve(Big) as server, client(server.address) as sock:
        assert len(everything(sock)) == MUCH
    assert ends == [("closed", 0, MUCH)]


def test_a_closed_connection_ends_while_its_handler_goes_on(serve: Any, client: Any, ends: Any) -> None:
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
    limit: str, said: bytes, reason: str, serve: Any, client: Any, ends: Any, caplog: Any
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


def test_a_client_that_does_not_read_is_let_go(serve: Any, client: Any, ends: Any, eventually: Any) -> None:
    class Pour(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(bytes(MUCH))
            await self.writer.drain()

    with serve(Pour, limits={"write_timeout": 0.1}) as server, client(server.address):
        eventually(lambda: ends)
    assert ends[0][0] == "write-timeout"


def test_a_client_that_does_not_read_the_last_words_is_let_go(
    serve: Any, client: Any, ends: Any, eventually: Any
) -> None:
    """The handler has returned, and what it wrote lies here."""

    class Big(srvkit.AsyncHandler):
        async def handle(self) -> None:
            self.writer.write(bytes(MUCH))

    with serve(Big, limits={"write_timeout": 0.1}) as server, client(server.address):
        eventually(lambda: ends)
        eventually(lambda: repr(server.server).endswith("serving, 0 of 1024 seats taken>"))
    assert ends[0][0] == "write-timeout"


def test_a_handler_may_say_goodbye_to_a_silent_client(serve: Any, client: Any, ends: Any) -> None:
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
    stubborn: str, monkeypatch: Any, serve: Any, client: Any, ends: Any
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


def test_the_handlers_own_time_is_not_the_peers(serve: Any, client: Any) -> None:
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


def test_a_connection_that_goes_on_is_not_idle(serve: Any, client: Any) -> None:
    with serve(Echo, limits={"idle_timeout": 1.0}) as server, client(server.address) as sock:
        for _ in range(30):
            assert ask(sock) == b"hello\n"
            threading.Event().wait(0.05)  # together longer than the limit
        assert ask(sock) == b"hello\n"


def test_a_line_that_is_too_long_is_the_peers_fault(serve: Any, client: Any, ends: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "srvkit.server")
    with serve(Echo, limits={"max_message": 10}) as server, client(server.address) as sock:
        assert ask(sock, b"0123456789\n") == b"0123456789\n"
        sock.sendall(b"0123456789a\n")
        assert everything(sock) == b""
    assert ends == [("bad-message", 23, 11)]
    assert ["ended: bad-message" in record.getMessage() for record in caplog.records] == [True]


def test_an_end_in_the_middle_is_the_peers_fault(serve: Any, client: Any, ends: Any, caplog: Any) -> None:
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
def test_no_more_connections_than_seats(when_full: str, serve: Any, client: Any) -> None:
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


# ---- ends


def test_a_peer_that_vanishes_is_one_line_in_the_log(
    serve: Any, client: Any, ends: Any, caplog: Any, eventually: Any
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
    monkeypatch: Any, serve: Any, client: Any, ends: Any, eventually: Any
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
    error: BaseException, serve: Any, client: Any, ends: Any, caplog: Any
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


def test_without_containment_an_exit_ends_the_loop(server_class: Any, client: Any) -> None:
    """As under the bare classes without a mixin."""

    class Exit(srvkit.AsyncHandler):
        async def handle(self) -> None:
            raise SystemExit(3)

    with server_class(ANY, Exit) as server:
        with client(server.server_address), pytest.raises(SystemExit):
            server.serve_forever()
        assert server.ends == [None]


def test_a_handler_that_cannot_be_made_is_an_error(serve: Any, client: Any, ends: Any, caplog: Any) -> None:
    class Unmade(Echo):
        def __init__(self, *args: Any) -> None:
            raise ValueError("not today")

    with serve(Unmade) as server, client(server.address) as sock:
        assert everything(sock) == b""
    assert ends == [("error", 0, 0)]
    assert "not today" in caplog.text


def test_a_drain_lets_handlers_finish(serve: Any, client: Any, ends: Any) -> None:
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


def test_a_cut_cancels_what_is_left(serve: Any, client: Any, ends: Any, caplog: Any) -> None:
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
    monkeypatch: Any, server_class: Any, client: Any, caplog: Any
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


def test_nothing_stays_when_the_loop_ends(server_class: Any, client: Any) -> None:
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


def test_a_connection_accepted_at_the_last_moment_is_closed(server_class: Any, client: Any) -> None:
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


def test_message_handlers_learn_that_the_loop_ends(server_class: Any, client: Any) -> None:
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


def test_a_finished_connection_leaves_no_garbage(serve: Any, client: Any) -> None:
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


def test_hooks_see_each_connection_once(run_srvkit: Any, client: Any, loop: str) -> None:
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
    scheme: str, handler: Any, serve: Any, client: Any, tmp_path: Any
) -> None:
    address = "udp://127.0.0.1:0" if scheme == "udp" else f"unixgram:{tmp_path / 'socket'}"
    with serve(handler, address) as server:
        host = server.address
        with client(f"udp://{host[0]}:{host[1]}" if scheme == "udp" else address) as sock:
            for word in (b"one\n", b"two\n"):
                sock.send(word)
                assert sock.recv(100) == word


def test_nothing_written_is_no_reply(serve: Any, client: Any) -> None:
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
    serve: Any, client: Any, eventually: Any
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


def test_a_datagram_at_hand_is_cut_too(serve: Any, client: Any, caplog: Any) -> None:
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


def test_a_handlers_mistake_with_a_datagram_is_reported(serve: Any, client: Any, caplog: Any) -> None:
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


def test_a_message_handler_may_use_asyncio(serve: Any, client: Any) -> None:
    class Later(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def handle_message(self, message: bytes) -> None:
            asyncio.get_running_loop().call_later(0, self.send, message.upper())

    with serve(Later) as server, client(server.address) as sock:
        assert ask(sock) == b"HELLO\n"


def test_other_threads_may_send(serve: Any, client: Any) -> None:
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
