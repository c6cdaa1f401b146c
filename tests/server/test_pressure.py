"""Peers that want more than their share: all at once, too slowly, too much, or nothing but protocol."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

import srvkit
from srvkit import Lines, MessageHandler
from srvkit.process.control_client import ask
from tests.conftest import Connect, Eventually, RunSrvkit, Start
from tests.server.conftest import Context, Say, Secure, Under

PATIENCE = 30
MIB = 1 << 20

SLOW = """
[sub.limits]
write_timeout = "1500ms"
first_byte_timeout = "20s"
[sub.socket]
send_buffer = 4096
[sub.tls]
cert = "server.pem"
"""
TABLES = {"slow": (SLOW,)}


# More clients than places


PLUGIN = """
from srvkit import StreamRequestHandler, hookimpl

class Count(StreamRequestHandler):
    def note(self, sign):
        with open("places", "ab", buffering=0) as file:
            file.write(sign)

    def handle(self):
        self.note(b"+")
        try:
            for line in self.rfile:
                self.wfile.write(line)
        finally:
            self.note(b"-")

@hookimpl
def srvkit_handlers():
    return {"count": Count}
"""
PLACES = """control = "c.sock"
[server.few]
listen = "tcp://127.0.0.1:0"
handler = "count"
concurrency = {concurrency}
limits = {{ first_byte_timeout = "20s" }}
{behind}
"""


@pytest.mark.parametrize("behind", ["tls", "proxy"])
@pytest.mark.parametrize(
    "concurrency",
    ['{ name = "forking", max_children = 2 }', '{ name = "pool", threads = 2 }'],
    ids=["forking", "pool"],
)
def test_who_becomes_ready_while_all_are_busy_has_a_turn(
    concurrency: str,
    behind: str,
    run_srvkit: RunSrvkit,
    certificates: Path,
    client: Connect,
    secure: Secure,
    say: Say,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    """All six are accepted before the first is handled; two are handled at a time, and stay a while."""
    tables = {"tls": f'tls.cert = "{certificates}/server.pem"', "proxy": 'proxy.trusted = ["127.0.0.1"]'}
    program = run_srvkit(PLACES.format(concurrency=concurrency, behind=tables[behind]), PLUGIN)
    (address,) = program.addresses("few")
    clients = [client(address) for _ in range(6)]

    def accepted() -> int:
        answer = ask(tmp_path / "c.sock", {"do": "status"}, PATIENCE)
        return int(answer["servers"][0]["counters"]["open"])

    def introduce(number: int) -> Any:
        if behind == "tls":
            return secure(clients[number], "")
        clients[number].sendall(b"PROXY TCP4 10.0.0.%d 10.0.0.9 5 6\r\n" % number)
        return clients[number]

    eventually(lambda: accepted() == 6)
    busy = [introduce(number) for number in (0, 1)]
    for sock in busy:
        assert say(sock, b"hello") == b"hello"
    ready = [introduce(number) for number in (2, 3, 4, 5)]
    with ThreadPoolExecutor(4) as others:

        def converse(sock: Any) -> bytes:
            try:
                return bytes(say(sock, b"hello"))
            finally:
                sock.close()

        answers = others.map(converse, ready)
        for sock in busy:
            sock.close()
        assert list(answers) == [b"hello"] * 4
    assert program.end() == 0
    at_once = most = 0
    for sign in (tmp_path / "places").read_text():
        at_once += 1 if sign == "+" else -1
        most = max(most, at_once)
    assert most == 2
    assert "Traceback" not in program.log


# Slow ones


class SlowClient:
    """Speaks TLS, and takes what the kernel has for it in small pieces."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        host, port = address.removeprefix("tcp://").split(":")
        self.said = b""
        self.socket = sock = socket.socket()
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)  # later on it would be too late
        sock.connect((host, int(port)))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(self._outgoing.read())
                self._incoming.write(sock.recv(65536))
        sock.sendall(self._outgoing.read())

    def close(self) -> None:
        self.socket.close()

    def say(self, data: bytes) -> None:
        self._tls.write(data)
        self.socket.sendall(self._outgoing.read())

    def take(self, size: int) -> None:
        """Take a little, if there is something. Fails where the server has ended it."""
        with suppress(BlockingIOError):
            data = self.socket.recv(size, socket.MSG_DONTWAIT)
            assert data, f"ended after {len(self.said)} bytes"
            self._incoming.write(data)
        with suppress(ssl.SSLWantReadError):
            self.said += self._tls.read(65536)


def test_a_slow_reader_is_not_one_that_does_not_read(under: Under, context: Context) -> None:
    """It takes something all the time, but longer for what is encrypted at a time than a write may take."""
    program = under("slow")
    with ExitStack() as stack:
        slow = {
            cell: stack.enter_context(closing(SlowClient(program.address(cell), context(""))))
            for cell in program.cells
        }
        for one in slow.values():
            one.say(b"big 65536\n")
        deadline = time.monotonic() + PATIENCE
        left = dict(slow)
        while left and time.monotonic() < deadline:
            time.sleep(0.035)  # the client's slowness: 28 KB in a second
            for cell, one in list(left.items()):
                one.take(1000)
                if len(one.said) == 65536:
                    del left[cell]
        assert not left
        for cell, one in slow.items():
            assert program.lines(cell, one.socket.getsockname()) == []


# Too much


def test_a_busy_peer_is_sent_no_more_than_it_may_be_behind(client: Connect) -> None:
    """Nothing of it can leave while the handler is at work, so somebody must count."""
    handlers: queue.Queue[MessageHandler] = queue.Queue()
    outcomes: queue.Queue[str] = queue.Queue()
    done = threading.Event()

    class Busy(MessageHandler):
        framing = Lines()

        def handle_message(self, message: bytes) -> None:
            handlers.put(self)
            done.wait(PATIENCE)

        def disconnected(self, reason: str) -> None:
            outcomes.put(reason)

    with srvkit.serve(Busy, "tcp://127.0.0.1:0", concurrency="pool") as server:
        sock = client(server.address)
        sock.sendall(b"work\n")
        handler = handlers.get(timeout=PATIENCE)
        tracemalloc.start()
        try:
            for _ in range(600):
                handler.send(bytes(100_000))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            done.set()
        assert held < 8 * MIB
        assert outcomes.get(timeout=PATIENCE) == "overflow"
        with suppress(ConnectionError):
            while sock.recv(65536):
                pass


# Nothing but protocol


FLOOD = """
import _ssl, ctypes, socket, ssl, sys
port, answers, count = map(int, sys.argv[1:])
lib = ctypes.CDLL(_ssl.__file__)
for function in (lib.SSL_key_update, lib.SSL_do_handshake, lib.SSL_version):
    function.argtypes = [ctypes.c_void_p, ctypes.c_int][: 1 + (function is lib.SSL_key_update)]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = context.wrap_bio(incoming, outgoing)
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 262144)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
sock.connect(("127.0.0.1", port))
while True:
    try:
        tls.do_handshake()
        break
    except ssl.SSLWantReadError:
        sock.sendall(outgoing.read())
        incoming.write(sock.recv(65536))
sock.sendall(outgoing.read())
# Behind the object's head and its socket; no module offers these messages.
session = ctypes.c_void_p.from_address(id(tls._sslobj) + object.__basicsize__ + 8).value
assert lib.SSL_version(session) == 0x304
for _ in range(count):
    assert lib.SSL_key_update(session, answers) == 1 and lib.SSL_do_handshake(session) == 1
flood = outgoing.read()
print("ready", sock.getsockname()[1], flush=True)
sys.stdin.readline()
try:
    sock.sendall(flood[: len(flood) // 8])
    print("begun", flush=True)
    sock.sendall(flood[len(flood) // 8 :])
    print("through", flush=True)
except ConnectionError:
    print("refused", flush=True)
sys.stdin.readline()
"""


class Echo(MessageHandler):
    framing = Lines()

    def handle_message(self, message: bytes) -> bytes:
        return message


@pytest.mark.parametrize("model", ["event", "asyncio"])
@pytest.mark.parametrize("answers", [False, True], ids=["unanswered", "answered"])
def test_new_keys_without_end_hold_up_nobody(
    answers: bool,
    model: str,
    start: Start,
    certificates: Path,
    client: Connect,
    secure: Secure,
    say: Say,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    """Megabytes of KeyUpdates (RFC 8446, 4.6.3), from a client that reads nothing.

    Those which ask for answers end it soon; for the others there is no end, but everybody else's turns.
    """
    caplog.set_level("INFO", "srvkit.server")
    (tmp_path / "flood.py").write_text(FLOOD)
    settings = {"receive_buffer": 524288, "send_buffer": 8192}  # there is always more of it to read
    tls = {"cert": str(certificates / "server.pem")}
    settings = {
        "socket": settings,
        "tls": tls,
        "limits": {"first_byte_timeout": 0},
    }  # the flood takes its time
    with srvkit.serve(Echo, "tcp://127.0.0.1:0", concurrency=model, **settings) as server:
        other = secure(client(server.address), "")
        assert say(other, b"hello") == b"hello"
        words = "flood.py", str(server.address[1]), str(int(answers)), "75000" if answers else "150000"
        with start(*words, folder=tmp_path, stdin=-1) as flood:
            eventually(lambda: "ready" in flood.log or flood.process.poll() is not None)
            if "ready" not in flood.log:
                pytest.skip(f"this Python's TLS cannot be made to flood: {flood.log}")
            port = flood.wait_for(r"ready (\d+)")[1]

            def ends() -> list[str]:
                return [line for line in caplog.messages if f":{port} ended: " in line]

            flood.say("go\n")
            if answers:
                flood.wait_for("refused")
                eventually(ends)
                assert say(other, b"hello") == b"hello"
                assert [line.split(" ended: ")[1] for line in ends()] == ["reset"]
            else:
                flood.wait_for("begun")
                for _ in range(3):
                    assert say(other, b"hello") == b"hello"
                assert "through" not in flood.log
                assert ends() == []
            flood.process.kill()
