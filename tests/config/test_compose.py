"""A table becomes a class statement."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from srvkit.config import loader
from srvkit.config.compose import Plan, compose
from srvkit.errors import PluginError
from srvkit.net.connection import Connection, TimedConnection
from srvkit.plugins.hookspecs import hookimpl
from srvkit.plugins.manager import Offer, Plugins
from srvkit.protocol.framing import Lines, Raw
from tests.config.composed_handlers import Message, server
from tests.config.conftest import Composed, Wrong


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


def test_an_inherited_descriptor_chooses_it_by_its_socket(composed: Composed) -> None:
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


def test_options_of_the_model_become_attributes(composed: Composed) -> None:
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


def test_a_worker_does_not_ask_again_how_many_cpus_there_are(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be more than when it was tried; one worker is what the supervisor starts."""
    monkeypatch.setattr("srvkit.config.compose.usable_cpus", lambda: 2)
    config, problems = loader.read_text(server("room", more='workers = "auto"'), "x.toml")
    assert compose(config, plugins, problems, tried=True)
    assert not problems


def test_a_model_that_forks_in_its_own_way_is_none_for_one_process(plugins: Plugins, wrong: Wrong) -> None:
    class Own:
        handler_kinds = frozenset({"message"})
        managed = {"fork_beside_threads": False}

    plugins.models["own"] = Offer("own", Own, "the test")
    assert "cannot run Room" in wrong(server("room", more='concurrency = "own"'))[0]
    assert wrong(server("message", more='concurrency = "own"')) == []


def test_settings_become_attributes(composed: Composed) -> None:
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


def test_a_framing_of_the_configuration_replaces_the_handlers_for_this_server_only(
    composed: Composed,
) -> None:
    (plan,) = composed(server(more='framing = "lines"'))
    assert isinstance(plan.handler.framing, Lines)
    assert isinstance(Message.framing, Raw)
    assert (plan.handler.__name__, plan.handler.__module__) == ("Message", Message.__module__)


def test_relative_socket_paths_begin_at_the_configurations_folder(composed: Composed) -> None:
    (plan,) = composed(server(listen='["unix:a.sock", "unix:/run/b.sock", "unix:@c"]'), Path("etc/x.toml"))
    assert [address.path for address in plan.addresses] == ["etc/a.sock", "/run/b.sock", "@c"]


def test_a_name_that_begins_with_a_digit_still_makes_a_class(composed: Composed) -> None:
    (plan,) = composed(server(name="7-up_x"))
    assert plan.server_class.__name__ == "Server7UpXTCPServer"


def test_hooks_put_their_mixins_in_front_only_where_somebody_listens(
    composed: Composed, plugins: Plugins
) -> None:
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


def test_a_hook_that_decides_cannot_be_a_wrapper(plugins: Plugins, composed: Composed) -> None:
    class Wrapping:
        @hookimpl(wrapper=True)
        def srvkit_configure(self, config: Any) -> Any:
            return (yield)

    plugins.pm.register(Wrapping(), "wrapping")
    with pytest.raises(PluginError, match="plugin wrapping: srvkit_configure cannot be a wrapper"):
        composed(server())
