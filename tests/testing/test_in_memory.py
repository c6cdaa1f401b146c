"""Conversations in memory: handlers without a thread and without a socket."""

from __future__ import annotations

import contextvars
import http.server
import socket
import threading
from dataclasses import dataclass

import pytest

import srvkit
from srvkit.errors import ConfigError
from srvkit.pytest_plugin import converse
from tests.testing.served_handlers import Blocking, Coroutine, Echo, Greeter, Upper


def test_messages_are_answered_in_memory() -> None:
    Greeter.ends.clear()
    assert converse(Greeter, [b"you"]) == [b"welcome", b"*thinking", b"hello you"]
    assert converse(Greeter, [b"bye", b"never"]) == [b"welcome", b"*thinking", b"hello bye"][:3]
    assert Greeter.ends == ["eof", "closed"]


def test_no_thread_and_no_socket_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(threading.Thread, "start", None)
    assert converse(Echo, [b"a", b"b"], options={"times": 2}) == [b"a", b"a", b"b", b"b"]
    assert converse(Upper, [b"one\ntw", b"o\n"]) == b"ONE\nTWO\n"


def test_errors_and_wrong_options_are_raised() -> None:
    with pytest.raises(LookupError):
        converse(Echo, [b"raise"])
    with pytest.raises(ConfigError, match=r"options\.tmes: unknown option 'tmes', did you mean 'times'"):
        converse(Echo, [], options={"tmes": 1})
    with pytest.raises(ConfigError, match="there are no options here"):
        converse(Upper, [], options={"tmes": 1})


def test_replies_are_as_the_framing_can_send_them() -> None:
    class Short(srvkit.MessageHandler):
        framing = srvkit.FixedSize(2)

        def handle_message(self, message):
            return message

    assert converse(Short, [b"ab"]) == [b"ab"]
    with pytest.raises(ValueError, match="2"):
        converse(Short, [b"abc"])

    class Wrong(Short):
        replies = "text", 7, False

        def handle_message(self, message):
            return self.replies[int(message)]

    for message, kind in ((b"0", "a str"), (b"1", "an int"), (b"2", "a bool")):
        with pytest.raises(TypeError, match=f"Wrong replied with {kind}; replies are bytes"):
            converse(Wrong, [message])


def test_each_read_finds_what_came_at_once() -> None:
    assert converse(Blocking, [b"one", b"two" * 50, b""]) == b"ONE" + b"TWO" * 50


def test_a_buffered_handler_and_one_of_the_standard_library() -> None:
    class Buffered(Upper):
        wbufsize = -1
        timeout = 5
        disable_nagle_algorithm = True

    assert converse(Buffered, [b"one\n"]) == b"ONE\n"

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    assert converse(Page, [b"GET / HTTP/1.0\r\n\r\n"]).startswith(b"HTTP/1.0 204 No Content\r\n")


def test_datagrams_are_answered_in_memory() -> None:
    class Upper(srvkit.DatagramRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.read().upper())

    assert converse(Upper, [b"one", b"", b"two"]) == [b"ONE", b"TWO"]


class Dialogue(srvkit.AsyncHandler):
    """Reads in every way, and waits."""

    @dataclass
    class Options:
        greeting: str = "welcome"

    async def handle(self):
        import asyncio

        self.writer.write(self.options.greeting.encode())
        await self.writer.drain()
        first = await self.reader.readline()
        await asyncio.sleep(0)
        self.writer.writelines([first.upper(), await self.reader.readexactly(2)])
        async for line in self.reader:
            self.writer.write(line)
        self.writer.write(repr(self.writer.get_extra_info("peername")).encode())
        self.writer.close()
        await self.writer.wait_closed()
        assert self.writer.is_closing()
        self.writer.write(b"too late")


def test_a_coroutine_is_awaited_in_memory() -> None:
    address = ("192.0.2.1", 7)
    written = converse(Dialogue, [b"one", b"\ntwo\nthree"], client_address=address)
    assert written == b"welcomeONE\ntwo\nthree('192.0.2.1', 7)"
    assert converse(Coroutine, [b"x" * 300_000]) == b"X" * 300_000
    assert converse(Dialogue, [b"\n12"], options={"greeting": "hi"}).startswith(b"hi\n12")


def test_what_a_coroutine_raises_is_raised() -> None:
    class Failing(srvkit.AsyncHandler):
        async def handle(self):
            await self.reader.readexactly(5)

    with pytest.raises(EOFError):
        converse(Failing, [b"four"])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_coroutine_is_awaited_where_a_loop_runs_already(loop):
    """As in an `async def` test and in a notebook: whatever is said there, and nothing is left behind."""
    import asyncio

    policy = pytest.importorskip(loop)
    seen = contextvars.ContextVar("seen")

    class Asks(srvkit.AsyncHandler):
        async def handle(self):
            self.writer.write(f"{seen.get()} {await self.reader.read()}".encode())
            if seen.get() == "exit":
                raise SystemExit("told to")

    async def test():
        seen.set("outside")
        assert converse(Asks, [b"hi"]) == b"outside b'hi'"
        assert converse(Upper, [b"hi\n"]) == b"HI\n"
        assert converse(Echo, [b"hi"]) == [b"hi"]
        seen.set("exit")
        with pytest.raises(SystemExit, match="told to"):
            converse(Asks, [b"hi"])
        await asyncio.sleep(0)
        return threading.active_count()

    with asyncio.Runner(loop_factory=policy.new_event_loop) as runner:
        assert runner.run(test()) == threading.active_count()
