"""A table becomes a class statement; what cannot go together is a problem with its place and advice."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from functools import wraps
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from srvkit.config import loader
from srvkit.config.compose import Plan, compose
from srvkit.errors import PluginError
from srvkit.net.connection import Connection, TimedConnection
from srvkit.plugins.hookspecs import hookimpl
from srvkit.plugins.manager import Offer, Plugins, make_manager
from srvkit.protocol.framing import Lines, Raw
from srvkit.server.async_handler import AsyncHandler
from srvkit.server.blocking_handler import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from srvkit.server.message_handler import MessageHandler


class Message(MessageHandler):
    """A message handler that leaves everything to the configuration."""


class Strict(MessageHandler):
    framing = Lines(max_message=10)


class Room(MessageHandler):
    one_process = True


class BlockingRoom(BaseRequestHandler):
    one_process = True


class Stream(StreamRequestHandler):
    """A handler of streams."""


class Datagram(DatagramRequestHandler):
    """A handler of datagrams."""


class Blocking(BaseRequestHandler):
    """A handler of either."""


class Async:
    async def handle(self):
        """Not run by any model of this part."""


class NoInstance(MessageHandler):
    framing = Lines


class Shared(Lines):
    """Has no copy: two connections would hold one lock."""

    def __init__(self, lock) -> None:
        super().__init__()


class Later(Lines):
    """Is given an attribute below, when it was made already."""


class Itself(Lines):
    def fresh(self, max_message=None):
        return self


class Exits(Lines):
    def fresh(self, max_message=None):
        raise SystemExit(3)


class Lost(Lines):
    def fresh(self, max_message=None):
        """Forgets to return it."""


class NoHandler:
    """Has nothing a server could call."""


HANDLERS = {
    "message": Message,
    "strict": Strict,
    "room": Room,
    "blocking-room": BlockingRoom,
    "stream": Stream,
    "datagram": Datagram,
    "blocking": Blocking,
    "async": Async,
    "no-instance": NoInstance,
    "no-handler": NoHandler,
    "shared": type("Shared", (MessageHandler,), {"framing": Shared(threading.Lock())}),
    "itself": type("Itself", (MessageHandler,), {"framing": Itself()}),
    "later": type("LaterHandler", (MessageHandler,), {"framing": Later()}),
    "exits": type("ExitsHandler", (MessageHandler,), {"framing": Exits()}),
    "lost": type("LostHandler", (MessageHandler,), {"framing": Lost()}),
    "none": type("NoneHandler", (MessageHandler,), {"framing": None}),
    "named": type("NamedHandler", (MessageHandler,), {"framing": "lines"}),
}


async def coroutine(self, *args):
    """What a message handler's methods must not be."""


async def generator(self, message):
    yield message


HANDLERS |= {
    "async-message": type("AsyncMessage", (MessageHandler,), {"handle_message": coroutine}),
    "async-replies": type("AsyncReplies", (MessageHandler,), {"handle_message": generator}),
    "async-greeting": type("AsyncGreeting", (MessageHandler,), {"connected": coroutine}),
    "async-stream": type("AsyncStream", (StreamRequestHandler,), {"handle": coroutine}),
    "async-standard": type("AsyncStandard", (socketserver.StreamRequestHandler,), {"handle": coroutine}),
}
HANDLERS["later"].framing.mark = b"*"
Compose = Callable[..., list[Plan]]


@pytest.fixture
def plugins() -> Plugins:
    made = make_manager()
    made.models = {name: made.models[name] for name in ("forking", "pool", "serial", "threading")}
    made.handlers = {name: Offer(name, thing, "the test") for name, thing in HANDLERS.items()}
    return made


@pytest.fixture
def composed(plugins: Plugins) -> Compose:
    """Compose the plans of a text in which nothing is wrong."""

    def composed(text: str, path: Path | None = None) -> list[Plan]:
        config, problems = loader.read_text(text, "x.toml", path=path)
        plans = compose(config, plugins, problems)
        problems.raise_if_any()
        return plans

    return composed


@pytest.fixture
def wrong(plugins: Plugins) -> Callable[[str], list[str]]:
    """What is wrong with a text, as it is printed."""

    def wrong(text: str) -> list[str]:
        config, problems = loader.read_text(text, "x.toml")
        compose(config, plugins, problems)
        return [str(problem) for problem in problems.listed()]

    return wrong


def server(handler: str = "message", listen: str = '"tcp://127.0.0.1:7007"', more: str = "", name="a") -> str:
    return f'[server.{name}]\nlisten = {listen}\nhandler = "{handler}"\n{more}\n'


def mro(plan: Plan) -> list[str]:
    return [base.__name__ for base in plan.server_class.__mro__]


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("tcp://127.0.0.1:1", "TCPServer"),
        ("udp://127.0.0.1:1", "UDPServer"),
        ("unix:a.sock", "UnixStreamServer"),
        ("unixgram:a.sock", "UnixDatagramServer"),
    ],
)
def test_the_address_chooses_the_server_class(address, base, composed):
    (plan,) = composed(server(listen=f'"{address}"', name="my-echo"))
    assert plan.server_class.__name__ == f"MyEcho{base}"
    assert mro(plan)[1:3] == ["ThreadingMixIn", "Steps"] or base in mro(plan)
    assert [base.__name__ for base in plan.server_class.__bases__] == ["ThreadingMixIn", base]


def test_an_inherited_descriptor_chooses_it_by_its_socket(composed):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        (plan,) = composed(server(listen=f'"fd:{sock.fileno()}"'))
        assert plan.server_class.__bases__[-1].__name__ == "UDPServer"


@pytest.mark.parametrize(
    ("model", "mixins"),
    [
        ("serial", []),
        ("threading", ["ThreadingMixIn"]),
        ("pool", ["ThreadPoolMixIn"]),
        ("forking", ["ForkingMixIn"]),
    ],
)
def test_the_model_chooses_the_mixin(model, mixins, composed):
    (plan,) = composed(server(more=f'concurrency = "{model}"'))
    assert [base.__name__ for base in plan.server_class.__bases__] == [*mixins, "TCPServer"]


def test_options_of_the_model_become_attributes(composed):
    (plan,) = composed(server(more='concurrency = { name = "pool", threads = 5 }'))
    assert plan.server_class.threads == 5


@pytest.mark.parametrize("handler", ["room", "blocking-room"])
def test_a_handler_of_one_process_has_one(handler, composed, wrong, plugins, monkeypatch):
    """Neither more workers nor a process for each request; every problem is told at once."""
    name = plugins.handlers[handler].cls.__name__
    asks = f"{name}, whose one_process asks for a single process"
    assert composed(server(handler, more="workers = 1"))
    assert wrong(server(handler, more='workers = 4\nconcurrency = "forking"')) == [
        f"x.toml:4: server.a.workers: 4 workers cannot run {asks}; write workers = 1",
        f"x.toml:5: server.a.concurrency: 'forking' cannot run {asks}: "
        "this model forks one for each request; it runs under pool, serial, threading",
    ]
    monkeypatch.setattr("srvkit.config.compose.usable_cpus", lambda: 1)
    assert composed(server(handler, more='workers = "auto"'))
    monkeypatch.setattr("srvkit.config.compose.usable_cpus", lambda: 2)
    assert wrong(server(handler, more='workers = "auto"')) == [
        f'x.toml:4: server.a.workers: "auto" is 2 workers here, which cannot run {asks}; write workers = 1'
    ]


def test_a_worker_does_not_ask_again_how_many_cpus_there_are(plugins, monkeypatch):
    """They may be more than when it was tried; one worker is what the supervisor starts."""
    monkeypatch.setattr("srvkit.config.compose.usable_cpus", lambda: 2)
    config, problems = loader.read_text(server("room", more='workers = "auto"'), "x.toml")
    assert compose(config, plugins, problems, tried=True)
    assert not problems


def test_a_model_that_forks_in_its_own_way_is_none_for_one_process(plugins, wrong):
    class Own:
        handler_kinds = frozenset({"message"})
        managed = {"fork_beside_threads": False}

    plugins.models["own"] = Offer("own", Own, "the test")
    assert "cannot run Room" in wrong(server("room", more='concurrency = "own"'))[0]
    assert wrong(server("message", more='concurrency = "own"')) == []


def test_settings_become_attributes(composed):
    (plan,) = composed(
        server(more='socket.backlog = 7\nlimits.idle_timeout = "5s"\nlimits.max_connections = 3')
    )
    assert plan.server_class.name == "a"
    assert plan.server_class.request_queue_size == 7
    assert plan.server_class.limits.idle_timeout == 5.0
    assert plan.server_class.limits.max_connections == 3


@pytest.mark.parametrize(("handler", "wanted"), [("message", Connection), ("stream", TimedConnection)])
def test_only_handlers_that_do_their_own_io_need_a_connection_that_keeps_the_time(handler, wanted, composed):
    (plan,) = composed(server(handler))
    assert plan.server_class.connection_class is wanted


@pytest.mark.parametrize(
    ("handler", "more", "maximum"),
    [
        ("message", "", 1 << 20),
        ("message", "limits.max_message = 99", 99),
        ("strict", "", 10),
        ("strict", "limits.max_message = 99", 99),
        ("strict", 'framing = "lines"', 1 << 20),
        ("message", 'framing = { name = "lines", max_message = 50 }', 50),
    ],
)
def test_who_operates_has_the_last_word_on_the_longest_message(handler, more, maximum, composed):
    (plan,) = composed(server(handler, more=more))
    assert plan.handler.framing.max_message == maximum


def test_a_framing_of_the_configuration_replaces_the_handlers_for_this_server_only(composed):
    (plan,) = composed(server(more='framing = "lines"'))
    assert isinstance(plan.handler.framing, Lines)
    assert isinstance(Message.framing, Raw)
    assert (plan.handler.__name__, plan.handler.__module__) == ("Message", __name__)


def test_relative_socket_paths_begin_at_the_configurations_folder(composed):
    (plan,) = composed(server(listen='["unix:a.sock", "unix:/run/b.sock", "unix:@c"]'), Path("etc/x.toml"))
    assert [address.path for address in plan.addresses] == ["etc/a.sock", "/run/b.sock", "@c"]


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


def test_every_server_is_looked_at_although_one_is_wrong(wrong):
    assert len(wrong(server("x", name="a") + server("y", name="b") + server("z", name="c"))) == 3


def test_a_name_that_begins_with_a_digit_still_makes_a_class(composed):
    (plan,) = composed(server(name="7-up_x"))
    assert plan.server_class.__name__ == "Server7UpXTCPServer"


def test_hooks_put_their_mixins_in_front_only_where_somebody_listens(composed, plugins):
    class Watching:
        @hookimpl
        def srvkit_error(self, error: Any) -> None: ...

        @hookimpl
        def srvkit_verify_request(self) -> None: ...

    assert "HookMixIn" not in str(mro(composed(server())[0]))
    plugins.pm.register(Watching())
    (plan,) = composed(server())
    bases = [base.__name__ for base in plan.server_class.__bases__]
    assert bases == ["ErrorHookMixIn", "ThreadingMixIn", "TCPServer"]
    assert [type(stage).__name__ for stage in plan.server_class.admission] == ["Capacity", "VerifyHook"]


def test_plugins_are_not_asked_about_a_configuration_that_is_wrong_anyway(plugins, wrong):
    class Asked:
        @hookimpl
        def srvkit_configure(self, config: Any) -> None:
            raise ValueError("asked")

    plugins.pm.register(Asked(), "asked")
    assert len(wrong(server("nobody"))) == 1
    assert wrong(server()) == ["x.toml: plugin asked: asked"]


def test_a_hook_that_decides_cannot_be_a_wrapper(plugins, composed):
    class Wrapping:
        @hookimpl(wrapper=True)
        def srvkit_configure(self, config: Any) -> Any:
            return (yield)

    plugins.pm.register(Wrapping(), "wrapping")
    with pytest.raises(PluginError, match="plugin wrapping: srvkit_configure cannot be a wrapper"):
        composed(server())
