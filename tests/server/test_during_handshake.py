"""What happens on a connection while TLS begins there: from the request for it to the handshake's end."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import srvkit
from srvkit import AsyncHandler, Lines, MessageHandler
from srvkit.errors import PeerError
from tests.conftest import Connect, Eventually, RunSrvkit
from tests.server.conftest import Ended, Say, Secure

PATIENCE = 30
MUCH = b"x" * 1023
COUNT = 200  # lines of that: more than a kernel and srvkit take for one write

in_process = pytest.mark.parametrize(
    "model", ["serial", "threading", "pool", "event", "asyncio", "gevent"], indirect=True
)
crowded = pytest.mark.parametrize("model", ["threading", "pool", "event", "asyncio", "gevent"], indirect=True)


class Speaker(MessageHandler):
    """Begins TLS on a line that starts with `tls`; each test has a class of its own, with what it saw."""

    framing = Lines()
    handlers: list[Speaker]
    outcomes: queue.Queue[str]
    telling: threading.Event

    def connected(self) -> None:
        self.handlers.append(self)

    def handle_message(self, message: bytes) -> Any:
        if not message.startswith(b"tls"):
            if message == b"tell":
                self.tell()
            return message
        self.start_tls()
        if message == b"tls raise":
            raise ValueError("broken on purpose")
        return [b"go", b"ahead", b"now"] if message == b"tls thrice" else b"go"

    def tell(self) -> None:
        """Send much to the first client, whose connection this may not be."""
        self.telling.set()
        for _ in range(COUNT):
            self.handlers[0].send(MUCH)

    def disconnected(self, reason: str) -> None:
        self.outcomes.put(reason)


@pytest.fixture
def speaker() -> type[Speaker]:
    attributes = {"handlers": [], "outcomes": queue.Queue(), "telling": threading.Event()}
    return type("Speaker", (Speaker,), attributes)


@pytest.fixture
def begin(certificates: Path) -> Iterator[Callable[..., Any]]:
    """`begin(Handler, model)`: a server on whose connections TLS may begin."""
    tls = {"cert": str(certificates / "server.pem"), "begin": "handler", "handshake_timeout": PATIENCE}
    with contextlib.ExitStack() as stack:
        yield lambda handler, model, **settings: stack.enter_context(
            srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model, tls=tls, **settings)
        )


@pytest.fixture
def asked(client: Connect, say: Say, eventually: Eventually) -> Callable[..., socket.socket]:
    """`asked(server, handlers)`: a connection on which the server waits for the client's handshake."""

    def ask(server: Any, handlers: list[Any]) -> socket.socket:
        sock: socket.socket = client(server.address)
        assert say(sock, b"tls") == b"go"
        eventually(lambda: handlers[0].request.is_encrypted)
        return sock

    return ask


def lines(sock: Any) -> Iterator[bytes]:
    with sock.makefile("rb") as file:
        for line in file:
            yield line.removesuffix(b"\n")


@in_process
def test_every_reply_arrives_before_it(
    model: str, begin: Any, speaker: Any, client: Connect, secure: Secure, say: Say
) -> None:
    sock = client(begin(speaker, model).address)
    sock.sendall(b"tls thrice\n")
    assert sock.recv(13, socket.MSG_WAITALL) == b"go\nahead\nnow\n"
    assert say(secure(sock, ""), b"hello") == b"hello"


@in_process
def test_a_handler_that_raises_has_not_asked_for_it(
    model: str, begin: Any, speaker: Any, client: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection ends at once, and no handshake is awaited."""
    sock = client(begin(speaker, model).address)
    sock.sendall(b"tls raise\n")
    assert sock.recv(1) == b""
    assert speaker.outcomes.get(timeout=PATIENCE) == "error"
    assert "broken on purpose" in caplog.text
    assert not speaker.handlers[0].request.is_encrypted


@in_process
def test_close_ends_it(
    model: str, begin: Any, speaker: Any, asked: Any, secure: Secure, say: Say, ended: Ended
) -> None:
    """Be it at once or when the handshake is over: nothing more is answered."""
    sock = asked(begin(speaker, model), speaker.handlers)
    speaker.handlers[0].close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        encrypted = secure(sock, "")
        encrypted.sendall(b"hello\n")
        assert ended(encrypted) == b""
    # Where close() breaks the handshake off, that counts as its failure.
    assert speaker.outcomes.get(timeout=PATIENCE) == "closed"


@crowded
@pytest.mark.parametrize("who", ["thread", "connection"])
def test_what_others_send_arrives_after_it(
    who: str, model: str, begin: Any, speaker: Any, asked: Any, client: Connect, secure: Secure, say: Say
) -> None:
    server = begin(speaker, model)
    sock = asked(server, speaker.handlers)
    if who == "thread":
        teller = threading.Thread(target=speaker.handlers[0].tell, daemon=True)
        teller.start()
        teller.join(0.2)  # where it need not wait itself, all of it is there before the handshake
    else:
        other = client(server.address)
        other.sendall(b"tell\n")
    assert speaker.telling.wait(PATIENCE)
    sock = secure(sock, "")
    sock.sendall(b"hello\n")
    heard = lines(sock)
    told = [next(heard) for _ in range(COUNT + 1)]
    assert sorted(told) == [b"hello"] + [MUCH] * COUNT
    if who == "connection":
        assert other.recv(5, socket.MSG_WAITALL) == b"tell\n"


class Coroutine(AsyncHandler):
    """Begins TLS in a task that can be cancelled, and says what came of it."""

    handlers: list[Coroutine]
    results: queue.Queue[Any]

    async def handle(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.reader.readline()
        self.writer.write(b"go\n")
        self.task = asyncio.create_task(self.start_tls())
        self.handlers.append(self)
        try:
            await self.task
        except asyncio.CancelledError:
            self.results.put("cancelled")
        else:
            self.writer.write(b"secure\n")
        self.results.put(await self.reader.readline())

    def soon(self, call: Callable[..., object], *args: Any) -> None:
        """Have the loop make a call; return when it has."""
        made = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (call(*args), made.set()))
        assert made.wait(PATIENCE)


@pytest.fixture
def coroutine() -> type[Coroutine]:
    return type("Coroutine", (Coroutine,), {"handlers": [], "results": queue.Queue()})


@pytest.mark.parametrize("size", [1, COUNT])
def test_what_another_task_writes_arrives_after_it(
    size: int, begin: Any, coroutine: Any, asked: Any, secure: Secure
) -> None:
    sock = asked(begin(coroutine, "asyncio"), coroutine.handlers)
    (handler,) = coroutine.handlers
    handler.soon(handler.writer.write, (MUCH + b"\n") * size)
    sock = secure(sock, "")
    heard = lines(sock)
    assert [next(heard) for _ in range(size + 1)] == [MUCH] * size + [b"secure"]
    sock.sendall(b"hello\n")
    assert coroutine.results.get(timeout=PATIENCE) == b"hello\n"


def test_a_handshake_that_is_cancelled_ends_the_connection(
    begin: Any, coroutine: Any, asked: Any, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes of it could be neither read in the clear nor decrypted."""
    sock = asked(begin(coroutine, "asyncio"), coroutine.handlers)
    (handler,) = coroutine.handlers
    handler.soon(handler.task.cancel)
    assert ended(sock) == b""
    assert coroutine.results.get(timeout=PATIENCE) == "cancelled"
    assert coroutine.results.get(timeout=PATIENCE) == b""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


class Careful(Coroutine):
    """Says what came of the handshake, and of what it tried behind it."""

    pauses = False
    closes = False

    async def handle(self) -> None:
        await self.reader.readline()
        self.writer.write(b"go\n")
        await self.writer.drain()
        if self.pauses:
            self.writer.transport.pause_reading()
        if self.closes:
            self.writer.close()
        try:
            await self.attempt(self.start_tls())
        finally:
            self.results.put(self.writer.is_closing())
            await self.attempt(asyncio.Event().wait() if self.pauses else self.reader.readline())

    async def attempt(self, wait: Any) -> None:
        try:
            await wait
        except (OSError, PeerError) as error:
            self.results.put(str(error) if isinstance(error, TimeoutError) else "failed")
        except asyncio.CancelledError:
            self.results.put("cancelled")
            raise
        else:
            self.results.put("done")


@pytest.mark.parametrize(
    ("limit", "said", "settings", "results"),
    [
        ("request_timeout", b"", {}, ["cancelled", True, "request_timeout is over"]),
        ("idle_timeout", b"in the clear, as before", {}, ["failed", False, "idle_timeout is over"]),
        ("request_timeout", b"TLS", {"pauses": True}, ["done", False, "cancelled"]),
        ("idle_timeout", b"", {"closes": True}, ["failed", True, "done"]),
    ],
    ids=["stalls", "fails", "succeeds", "closed"],
)
def test_the_limits_of_a_coroutine_hold_during_it_and_after(
    limit: str, said: bytes, settings: Any, results: Any, begin: Any, client: Connect, secure: Secure
) -> None:
    handler = type("Handler", (Careful,), {"results": queue.Queue(), **settings})
    sock = client(begin(handler, "asyncio", limits={limit: 0.2}).address)
    sock.sendall(b"tls\n")
    assert sock.recv(3, socket.MSG_WAITALL) == b"go\n"
    if said == b"TLS":
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            sock = secure(sock, "")
    elif said:
        sock.sendall(said)
    assert [handler.results.get(timeout=PATIENCE / 2) for _ in results] == results


def test_a_task_that_waits_for_it_hears_of_the_end(begin: Any, client: Connect, say: Say) -> None:
    """Although the handler is over, and nobody will shake hands."""

    class Hasty(Coroutine):
        async def handle(self) -> None:
            await self.reader.readline()
            self.writer.write(b"go\n")
            self.task = asyncio.create_task(self.attempt())
            while not self.request.is_encrypted:
                await asyncio.sleep(0)

        async def attempt(self) -> None:
            try:
                await self.start_tls()
            except ConnectionError as error:
                self.results.put(str(error))

    handler = type("Handler", (Hasty,), {"results": queue.Queue()})
    assert say(client(begin(handler, "asyncio").address), b"tls") == b"go"
    assert handler.results.get(timeout=PATIENCE / 2) == "no handshake: closed"


@pytest.mark.parametrize("model", ["pool", "event", "asyncio"], indirect=True)
def test_who_is_sent_too_much_meanwhile_ends_behind_it(
    model: str, begin: Any, speaker: Any, asked: Any, secure: Secure, ended: Ended
) -> None:
    """The handshake is seen through: the server does not go on with a connection that was given back."""
    served = begin(speaker, model)
    sock = asked(served, speaker.handlers)
    for _ in range(8):
        speaker.handlers[0].send(bytes(1024 * 1024))
    assert len(served.server._srvkit_admission.waiting) == 1
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        ended(secure(sock, ""))
    assert speaker.outcomes.get(timeout=PATIENCE) == "overflow"
    assert not served.server._srvkit_admission.waiting


PLUGIN = """
from srvkit import Lines, MessageHandler, hookimpl

class Speaker(MessageHandler):
    framing = Lines()

    def handle_message(self, message):
        if message == b"hello":
            return message
        self.start_tls()
        if message == b"tls raise":
            raise ValueError("broken on purpose")
        return [b"go", b"ahead", b"now"] if message == b"tls thrice" else b"go"

    def disconnected(self, reason):
        print(f"outcome: {reason}", flush=True)

@hookimpl
def srvkit_handlers():
    return {"speaker": Speaker}
"""
PROGRAM = """
{more}
[server.speaker]
listen = "tcp://127.0.0.1:0"
handler = "speaker"
concurrency = "{model}"
[server.speaker.tls]
cert = "{folder}/server.pem"
begin = "handler"
handshake_timeout = "2s"
"""


def test_a_forked_child_does_the_same(
    run_srvkit: RunSrvkit, certificates: Path, client: Connect, secure: Secure, say: Say
) -> None:
    program = run_srvkit(PROGRAM.format(more="", model="forking", folder=certificates), PLUGIN)
    (address,) = program.addresses("speaker")
    sock = client(address)
    sock.sendall(b"tls thrice\n")
    assert sock.recv(13, socket.MSG_WAITALL) == b"go\nahead\nnow\n"
    sock = secure(sock, "")
    assert say(sock, b"hello") == b"hello"
    sock.close()
    program.wait_for("outcome: eof")
    sock = client(address)
    sock.sendall(b"tls raise\n")
    assert sock.recv(1) == b""
    program.wait_for("outcome: error")


def test_one_that_stalls_does_not_cost_the_worker(
    run_srvkit: RunSrvkit, certificates: Path, client: Connect, secure: Secure, say: Say, ended: Ended
) -> None:
    """Though a serial one waits for that client alone, and longer than its heart may stand still."""
    more = 'heartbeat_timeout = "500ms"'
    program = run_srvkit(PROGRAM.format(more=more, model="serial", folder=certificates), PLUGIN)
    (address,) = program.addresses("speaker")
    stalled = client(address)
    assert say(stalled, b"tls") == b"go"
    assert ended(stalled) == b""
    program.wait_for("outcome: tls-timeout")
    assert say(client(address), b"hello") == b"hello"
    assert program.end() == 0
    assert "no heartbeat" not in program.log
