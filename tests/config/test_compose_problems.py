"""What cannot go together is a problem with its place and advice; what is only doubtful is noted."""

from __future__ import annotations

import socketserver
from functools import wraps
from http.server import SimpleHTTPRequestHandler
from typing import Any

import pytest

from srvkit.config import loader
from srvkit.config.compose import compose
from srvkit.plugins.hookspecs import hookimpl
from srvkit.plugins.manager import Offer, Plugins, make_manager
from srvkit.server.async_handler import AsyncHandler
from tests.config.composed_handlers import Message, Stream, server
from tests.config.conftest import Wrong


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            server("stream", '"udp://127.0.0.1:1"'),
            ["x.toml:3: server.a.handler: Stream handles streams (tcp://, unix:), not udp://127.0.0.1:1"],
        ),
        (
            server("datagram", '"unix:/a.sock"'),
            ["x.toml:3: server.a.handler: Datagram handles datagrams (udp://, unixgram:), not unix:/a.sock"],
        ),
        (
            server("blocking", more='framing = "lines"'),
            [
                "x.toml:4: server.a.framing: framing is for message handlers; Blocking does its own "
                "input and "
                "output"
            ],
        ),
        (
            server("async"),
            [
                "x.toml:1: server.a.concurrency: 'threading' cannot run Async, a handler of the async kind; "
                "no model that is installed can"
            ],
        ),
        (
            server("no-instance"),
            ["x.toml:3: server.a.handler: NoInstance.framing is a class, it must be an instance: Lines()"],
        ),
        (server("no-handler"), ["x.toml:3: server.a.handler: NoHandler has no handle(): it is no handler"]),
        (
            server("shared"),
            [
                "x.toml:3: server.a.handler: the framing Shared was given a lock, which cannot be copied: "
                "all connections would have the same one; let its __init__ make it, or override fresh()"
            ],
        ),
        (
            server("itself"),
            [
                "x.toml:3: server.a.handler: Itself.fresh() returns the framing itself, which all "
                "connections would then share"
            ],
        ),
        (
            server("later"),
            [
                "x.toml:3: server.a.handler: Later: 'mark' was set after it was made, so no connection has "
                "it; let __init__ set it"
            ],
        ),
        (server("exits"), ["x.toml:3: server.a.handler: Exits.fresh(): SystemExit: 3"]),
        (
            server("lost"),
            [
                "x.toml:3: server.a.handler: Lost.fresh() returned None: it must be an instance of a "
                "Framing, as Lines() is"
            ],
        ),
        (
            server("none"),
            [
                "x.toml:3: server.a.handler: its framing is None: it must be an instance of a Framing, as "
                "Lines() is"
            ],
        ),
        (
            server("named"),
            [
                "x.toml:3: server.a.handler: its framing is an object of type str, without feed: it must be "
                "an instance of a Framing, as Lines() is"
            ],
        ),
        (
            server(listen='["tcp://127.0.0.1:1", "unixgram:x.sock"]'),
            [
                "x.toml:2: server.a.listen: one server listens either for streams (tcp, unix) or for "
                "datagrams "
                "(udp, unixgram): make two tables"
            ],
        ),
        (
            server(listen='"fd:99"'),
            ["x.toml:2: server.a.listen: fd:99 is no socket: Bad file descriptor"],
        ),
        (
            server(more='concurrency = "forkin"'),
            [
                "x.toml:4: server.a.concurrency: unknown concurrency model 'forkin', did you mean 'forking'? "
                "(known are forking, pool, serial, threading)"
            ],
        ),
        (
            server(more='framing = "line"'),
            [
                "x.toml:4: server.a.framing: unknown framing 'line', did you mean 'lines'? (known are "
                "delimiter, "
                "fixed-size, length-prefix, lines, netstring, raw)"
            ],
        ),
        (
            server(more='framing = "fixed-size"'),
            ["x.toml:4: server.a.framing.size: missing, this option is required"],
        ),
        (
            server(more='framing = { name = "fixed-size", size = 10 }\nlimits.max_message = 9'),
            ["x.toml:5: server.a.limits.max_message: size = 10 does not fit max_message = 9"],
        ),
        (
            server(more='concurrency = { name = "serial", threads = 2 }'),
            ["x.toml:4: server.a.concurrency.threads: unknown option 'threads', there are no options here"],
        ),
        (
            server(more='[server.a.handler]\nname = "message"').replace('handler = "message"\n', ""),
            [],
        ),
    ],
)
def test_what_cannot_go_together_is_a_problem(text, problems, wrong):
    assert wrong(text) == problems


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        ("async-message", "AsyncMessage.handle_message() is a coroutine"),
        ("async-replies", "AsyncReplies.handle_message() is a coroutine"),
        ("async-greeting", "AsyncGreeting.connected() is a coroutine"),
        ("async-stream", "AsyncStream.handle() is a coroutine"),
        ("async-standard", "AsyncStandard.handle() is a coroutine"),
    ],
)
def test_a_handler_that_can_serve_nobody_is_a_problem(handler, problem, wrong):
    if problem.endswith("is a coroutine"):
        problem += ", which nobody awaits: write def, or derive from AsyncHandler"
    assert wrong(server(handler)) == [f"x.toml:3: server.a.handler: {problem}"]


class Doubtful(AsyncHandler):
    def handle(self):
        """Of no use but where it is awaited."""


def awaited_elsewhere(method):
    return wraps(method)(lambda self: method(self))


class Wrapped(AsyncHandler):
    @awaited_elsewhere
    async def handle(self):
        """Is a coroutine all the same."""


@pytest.mark.parametrize(
    ("handler", "model", "doubt"),
    [
        (Message, "threading", "Message has no handle_message() of its own, and answers nobody"),
        (Stream, "threading", "Stream has no handle() of its own, and answers nobody"),
        (socketserver.BaseRequestHandler, "threading", "BaseRequestHandler has no handle() of its own"),
        (Doubtful, "asyncio", "Doubtful.handle() is no coroutine: is async def meant?"),
        (Wrapped, "asyncio", ""),
        (SimpleHTTPRequestHandler, "threading", ""),
    ],
)
def test_a_handler_that_seems_to_lack_something_is_noted(handler, model, doubt):
    plugins = make_manager()
    plugins.handlers = {"it": Offer("it", handler, "the test")}
    config, problems = loader.read_text(server("it", more=f'concurrency = "{model}"'), "x.toml")
    assert compose(config, plugins, problems)
    assert [note for note in plugins.notes if note.startswith(f"server.a: {doubt}")] == plugins.notes
    assert bool(plugins.notes) is bool(doubt)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mine", "; srvkit.plugins names no folder or module of your own)"),
        ("handlers.mine.Mine", "; a class is written package.module:Class)"),
        ("mesage", "async-standard)"),
    ],
)
def test_who_looks_for_a_handler_is_told_where_they_come_from(name, hint, wrong):
    (problem,) = wrong(server(name))
    assert problem.startswith(f"x.toml:3: server.a.handler: unknown handler '{name}'")
    assert problem.endswith(hint)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", True),
        ("tcp://127.0.0.1:1", "tcp://localhost:1", True),
        ("tcp://0.0.0.0:1", "tcp://127.0.0.1:1", True),
        ("tcp://[::]:1", "tcp://127.0.0.1:1", True),
        ("tcp://:1", "tcp://[::1]:1", True),
        ("udp://0.0.0.0:1", "udp://127.0.0.1:1", True),
        ("unix:a.sock", "unix:./a.sock", True),
        ("unix:a.sock", "unix:x/../a.sock", True),
        ("unix:a.sock", "unixgram:a.sock", True),
        ("unix:@a", "unix:@a", True),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", False),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", False),
        ("tcp://127.0.0.1:1", "udp://127.0.0.1:1", False),
        ("tcp://0.0.0.0:1", "tcp://[::1]:1", False),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.2:1", False),
        ("unix:a.sock", "unix:b.sock", False),
        ("unix:a", "unix:@a", False),
        ("unix:@a", "unixgram:@a", False),
    ],
)
def test_two_servers_on_one_address_are_a_problem(one, other, clash, wrong):
    found = wrong(server(listen=f'"{one}"', name="one") + server(listen=f'"{other}"', name="two"))
    assert bool(found) is clash
    if clash:
        (problem,) = found
        assert problem.startswith("x.toml:6: server.two.listen: ")
        assert problem.endswith(" of server.one are the same address")


def test_every_server_is_looked_at_although_one_is_wrong(wrong: Wrong) -> None:
    assert len(wrong(server("x", name="a") + server("y", name="b") + server("z", name="c"))) == 3


def test_plugins_are_not_asked_about_a_configuration_that_is_wrong_anyway(
    plugins: Plugins, wrong: Wrong
) -> None:
    class Asked:
        @hookimpl
        def srvkit_configure(self, config: Any) -> None:
            raise ValueError("asked")

    plugins.pm.register(Asked(), "asked")
    assert len(wrong(server("nobody"))) == 1
    assert wrong(server()) == ["x.toml: plugin asked: asked"]
