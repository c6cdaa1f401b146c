"""Handlers whose `__init__` is extended: it only constructs, and the conversation finds what it has set."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import socket
import socketserver
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import srvkit
from srvkit.process.control_client import ask
from srvkit.pytest_plugin import converse, srvkit_models

PATIENCE = 30
HAS_GEVENT = importlib.util.find_spec("gevent") is not None
MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]
RUNS = [(model, "message") for model in MODELS] + [("asyncio", "async")]
PLUGIN = '''
import os
from srvkit import AsyncHandler, Lines, MessageHandler, hookimpl

def count(handler):
    """Set what the conversation needs, as a program's handler does; a file makes it a mistake."""
    if os.path.exists("broken"):
        raise ValueError("built wrong")
    handler.count = 0

class Count(MessageHandler):
    framing = Lines()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        count(self)

    def connected(self):
        self.count += 10

    def handle_message(self, message):
        self.count += 1
        return b"%d" % self.count

    def disconnected(self, reason):
        with open("ends", "a") as file:
            file.write(f"{reason} {self.count}\\n")

class CountAsync(AsyncHandler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        count(self)

    async def handle(self):
        stream = not isinstance(self.request, tuple)
        self.count += 10 * stream
        while await self.reader.readline():
            self.count += 1
            self.writer.write(b"%d\\n" % self.count)

@hookimpl
def srvkit_handlers():
    return {"message": Count, "async": CountAsync}
'''
TABLES = """
[server.stream]
listen = "tcp://127.0.0.1:0"
handler = "{kind}"
concurrency = "{model}"
[server.datagram]
listen = "udp://127.0.0.1:0"
handler = "{kind}"
concurrency = "{model}"
"""


class Count(srvkit.MessageHandler):
    """Count the messages of a connection."""

    framing = srvkit.Lines()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = 0

    def connected(self) -> None:
        self.count += 10

    def handle_message(self, message: bytes) -> bytes:
        self.count += 1
        return b"%d" % self.count


class CountAsync(srvkit.AsyncHandler):
    """The same as a coroutine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = 10

    async def handle(self) -> None:
        while await self.reader.readline():
            self.count += 1
            self.writer.write(b"%d\n" % self.count)


class Served:
    """`srvkit run` with both handlers, and its clients."""

    def __init__(self, program: Any, client: Any, kind: str) -> None:
        self.program = program
        self.kind = kind
        self.folder: Path = program.folder
        self._client = client

    def say(self, server: str, data: bytes) -> bytes:
        """Send this, end, and return all that comes; of a datagram its answer."""
        (address,) = self.program.addresses(server)
        with self._client(address) as sock:
            sock.sendall(data)
            if server == "datagram":
                return bytes(sock.recv(100))
            answer = b""
            with contextlib.suppress(OSError):  # it was closed with our message unread
                sock.shutdown(socket.SHUT_WR)
                while piece := sock.recv(100):
                    answer += piece
            return answer

    def errors(self, server: str) -> int:
        servers = ask(self.folder / "c.sock", {"do": "status"}, PATIENCE)["servers"]
        (counters,) = (one["counters"] for one in servers if one["name"] == server)
        return int(counters["errors"])


@pytest.fixture(params=RUNS, ids="-".join)
def served(request: Any, tmp_path: Path, start: Any, client: Any) -> Iterator[Served]:
    model, kind = request.param
    if model == "gevent" and not HAS_GEVENT:
        assert os.environ.get("SRVKIT_REQUIRE_TOOLS") != "1", "gevent is not installed"
        pytest.skip("gevent is not installed")
    (tmp_path / "plugin.py").write_text(PLUGIN)
    head = '[srvkit]\nplugins = ["plugin.py"]\ncontrol = "c.sock"\n'
    (tmp_path / "srvkit.toml").write_text(head + TABLES.format(kind=kind, model=model))
    with start("-m", "srvkit", "run", folder=tmp_path) as program:
        yield Served(program, client, kind)
        assert program.end() == 0


def test_what_it_has_set_is_there_in_every_conversation(served: Served, eventually: Any) -> None:
    """From `connected` to `disconnected`, for each connection and datagram anew."""
    assert served.say("stream", b"a\nb\n") == b"11\n12\n"
    assert served.say("stream", b"a\n") == b"11\n"
    assert served.say("datagram", b"a\nb\n") == b"1\n2\n"
    assert served.say("datagram", b"a\n") == b"1\n"
    assert "Traceback" not in served.program.log
    if served.kind == "message":
        ends = served.folder / "ends"
        eventually(lambda: sorted(ends.read_text().splitlines()) == ["eof 11", "eof 12"])


def test_a_mistake_in_it_ends_this_connection_and_nothing_else(served: Served, eventually: Any) -> None:
    """One traceback, one error in the counters; the next client is served."""
    broken = served.folder / "broken"
    broken.touch()
    assert served.say("stream", b"a\n") == b""
    eventually(lambda: served.errors("stream") == 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        (address,) = served.program.addresses("datagram")
        host, port = address.removeprefix("udp://").split(":")
        sock.sendto(b"a\n", (host, int(port)))
        eventually(lambda: served.errors("datagram") == 1)
    broken.unlink()
    assert served.say("stream", b"a\n") == b"11\n"
    assert served.say("datagram", b"a\n") == b"1\n"
    for server in ("stream", "datagram"):
        served.program.wait_for(f"{server}: error while handling")
        assert served.errors(server) == 1
    assert served.program.log.count("Traceback") == 2
    assert served.program.log.count("ValueError: built wrong") == 2
    assert len(ask(served.folder / "c.sock", {"do": "status"}, PATIENCE)["servers"][0]["workers"]) == 1


def test_converse_finds_it() -> None:
    assert converse(Count, [b"a", b"b"]) == [b"11", b"12"]
    assert converse(CountAsync, [b"a\nb\n"]) == b"11\n12\n"


@srvkit_models(Count)
def test_exchange_finds_it(srvkit_server: Any) -> None:
    assert srvkit_server(Count).exchange(b"a\nb\n") == b"11\n12\n"
    assert srvkit_server(Count, transport="udp").exchange(b"a\nb\n") == b"1\n2\n"


# On servers that know nothing of it


class OwnFinish:
    """A mixin of a program, which replaces a step of its server as many do."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.handler = self.RequestHandlerClass(request, client_address, self)  # type: ignore[attr-defined]


STREAM_SERVERS: list[Any] = [
    socketserver.TCPServer,
    socketserver.ThreadingTCPServer,
    type("OwnStandard", (OwnFinish, socketserver.TCPServer), {}),
    type("OwnStandardThreads", (OwnFinish, socketserver.ThreadingTCPServer), {}),
    type("Own", (OwnFinish, srvkit.TCPServer), {}),
    type("OwnThreads", (OwnFinish, srvkit.ThreadingTCPServer), {}),
    type("Mixed", (srvkit.ThreadingMixIn, socketserver.TCPServer), {}),
    type("MixedPool", (srvkit.ThreadPoolMixIn, socketserver.TCPServer), {}),
    srvkit.TCPServer,
    srvkit.ThreadingTCPServer,
]
DATAGRAM_SERVERS: list[Any] = [
    socketserver.UDPServer,
    socketserver.ThreadingUDPServer,
    type("OwnStandard", (OwnFinish, socketserver.UDPServer), {}),
    type("Own", (OwnFinish, srvkit.UDPServer), {}),
    srvkit.UDPServer,
    srvkit.ThreadingUDPServer,
]


def name(server: Any) -> str:
    return f"{server.__module__.partition('.')[0]}-{server.__name__}"


@pytest.mark.parametrize("handler", [Count, functools.partial(Count)], ids=["class", "partial"])
@pytest.mark.parametrize("server_class", STREAM_SERVERS, ids=name)
def test_any_server_of_streams_runs_it(server_class: Any, handler: Any, serving: Any) -> None:
    """The standard library's, and those whose program calls the handler's class by itself."""
    server = serving(server_class(("127.0.0.1", 0), handler))
    assert talk(server.server_address) == b"11\n12\n"


@pytest.mark.parametrize("module", ["socketserver", "srvkit"])
def test_a_server_that_forks_runs_it(module: str, run_code: Any) -> None:
    """In a program of its own, which has one thread when it forks."""
    program = run_code(
        f"import sys, {module}; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_construction import Count\n"
        f"with {module}.ForkingTCPServer(('127.0.0.1', 0), Count) as server:\n"
        "    print('port', server.server_address[1], flush=True)\n"
        "    server.handle_request()\n"
    )
    port = int(program.wait_for(r"^port (\d+)$")[1])
    assert talk(("127.0.0.1", port)) == b"11\n12\n"
    assert program.ended() == 0


@pytest.mark.parametrize("server_class", DATAGRAM_SERVERS, ids=name)
def test_any_server_of_datagrams_runs_it(server_class: Any, serving: Any, client: Any) -> None:
    server = serving(server_class(("127.0.0.1", 0), Count))
    with client("udp://{}:{}".format(*server.server_address)) as sock:
        sock.sendall(b"a\nb\n")
        assert sock.recv(100) == b"1\n2\n"


def talk(address: Any) -> bytes:
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"a\nb\n")
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            return file.read()


# The class itself


def test_it_may_come_from_a_class_in_front() -> None:
    """Which knows nothing of handlers, and calls the next `__init__`."""

    class Counted:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seen: list[bytes] = []

    class Seen(Counted, srvkit.MessageHandler):
        framing = srvkit.Lines()

        def handle_message(self, message: bytes) -> bytes:
            self.seen.append(message)
            return b"".join(self.seen)

    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"a\nb\n")
        left.shutdown(socket.SHUT_WR)
        handler = Seen(right, "somebody", None)
        assert left.recv(100) == b"a\nab\n"
    assert handler.seen == [b"a", b"b"]


def test_a_handler_may_be_abstract_and_follow_a_protocol() -> None:
    """Its metaclass goes together with those that programs use most."""

    class Named(typing.Protocol):
        def name(self) -> str: ...

    class Base(srvkit.MessageHandler, ABC):
        @abstractmethod
        def answer(self) -> bytes: ...

        def handle_message(self, message: bytes) -> bytes:
            return self.answer()

    class Handler(Base, Named):
        def name(self) -> str:
            return "handler"

        def answer(self) -> bytes:
            return self.name().encode()

    assert converse(Handler, [b"a"]) == [b"handler"]
    with pytest.raises(TypeError, match="abstract"):
        converse(Base, [b"a"])


def test_instances_of_a_handler_are_told_from_anything_else() -> None:
    class Handler(srvkit.MessageHandler):
        pass

    assert isinstance(Handler(), Handler) and isinstance(Handler(), srvkit.MessageHandler)
    for other in ("text", None, srvkit.MessageHandler(), srvkit.AsyncHandler()):
        assert not isinstance(other, Handler)
    assert not issubclass(srvkit.AsyncHandler, srvkit.MessageHandler)


@pytest.mark.parametrize("how", ["called", "served"])
def test_a_class_may_make_a_handler_of_another(how: str, serving: Any) -> None:
    """Which sees its connection through: once, and the class that was asked does not do so again."""
    greeted: list[Any] = []

    class Other(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def connected(self) -> bytes:
            greeted.append(self)
            return b"welcome"

    class Choice(srvkit.MessageHandler):
        def __new__(cls, *args: Any) -> Any:
            return Other(*args)

    class Server(srvkit.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            greeted.append("error")

    if how == "served":
        server = serving(Server(("127.0.0.1", 0), Choice))
        with socket.create_connection(server.server_address, 30) as sock:
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as heard:
                assert heard.read() == b"welcome\n"
    else:
        left, right = socket.socketpair()
        with left, right:
            left.shutdown(socket.SHUT_WR)
            assert type(Choice(right, "somebody", None)) is Other
            right.close()
            with left.makefile("rb") as heard:
                assert heard.read() == b"welcome\n"
    assert len(greeted) == 1


def test_an_init_that_keeps_nothing_says_what_it_leaves_out() -> None:
    class Forgetful(srvkit.MessageHandler):
        def __init__(self, *args: Any) -> None:
            self.count = 0

    with pytest.raises(
        TypeError, match=r"Forgetful.__init__\(\) leaves out super\(\).__init__\(\*args, \*\*kwargs\)"
    ):
        Forgetful()


@pytest.mark.parametrize(
    ("what", "instead"),
    [("send", "greet"), ("close", "close it"), ("start_tls", "start TLS")],
)
def test_nothing_is_sent_before_the_connection_begins(what: str, instead: str) -> None:
    class Eager(srvkit.MessageHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            getattr(self, what)(*([b"early"] if what == "send" else []))

    left, right = socket.socketpair()
    with left, right, pytest.raises(RuntimeError, match=rf"{instead} in connected\(\)"):
        Eager(right, "somebody", None)
