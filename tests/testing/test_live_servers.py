"""Live servers for tests of handlers: under every model, on every transport, and how they end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import trustme

import srvkit
from srvkit.errors import ConfigError
from srvkit.pytest_plugin import srvkit_models
from tests.testing.served_handlers import Blocking, Coroutine, Echo, Silent, Upper

TRANSPORTS = ["tcp", "udp", "unix", "unixgram"]


@srvkit_models(Echo)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_message_handler_is_served_under_every_model_on_every_transport(srvkit_server, transport):
    assert srvkit_server(Echo, transport=transport).exchange(b"one\ntwo\n") == b"one\ntwo\n"


@srvkit_models(Blocking)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_blocking_handler_is(srvkit_server, transport):
    assert srvkit_server(Blocking, transport=transport).exchange(b"one") == b"ONE"


@srvkit_models(Coroutine)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_coroutine_is(srvkit_server, transport):
    assert srvkit_server(Coroutine, transport=transport).exchange(b"one") == b"ONE"


@srvkit_models(Silent)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_comes_back_from_who_says_nothing(srvkit_server, transport):
    assert srvkit_server(Silent, transport=transport).exchange(b"one") == b""


@srvkit_models(Echo)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_the_handler_raises_is_raised_in_the_exchange(srvkit_server, transport):
    server = srvkit_server(Echo, transport=transport)
    with pytest.raises(LookupError, match=r"^raise this$"):
        server.exchange(b"raise this\n")
    assert server.errors == []
    assert server.exchange(b"more\n") == b"more\n"


@srvkit_models(Echo)
def test_an_error_on_a_connection_of_the_test_may_be_expected(srvkit_server):
    server = srvkit_server(Echo)
    sock = server.connect()
    with server.expect(LookupError, match="this"):
        sock.sendall(b"raise this\n")
    assert sock.recv(10) == b""


def test_an_error_may_be_looked_at_and_forgiven(srvkit_server):
    server = srvkit_server(Echo)
    sock = server.connect()
    sock.sendall(b"raise this\n")
    assert sock.recv(10) == b""
    assert [str(error) for error in server.errors] == ["raise this"]
    server.errors.clear()


def test_an_exception_that_cannot_leave_its_process_comes_as_one_that_names_it(srvkit_server):
    class Unpicklable(Exception):
        pass

    class Failing(srvkit.MessageHandler):
        def handle_message(self, message):
            raise Unpicklable("of this test")

    with pytest.raises(RuntimeError, match="Unpicklable: of this test"):
        srvkit_server(Failing, "forking").exchange(b"x")


def test_config_is_that_of_a_server_table(srvkit_server):
    server = srvkit_server(
        Echo,
        {"name": "pool", "threads": 2},
        framing={"name": "delimiter", "delimiter": ";"},
        limits={"max_message": "4B"},
        options={"times": 2},
    )
    assert server.server.threads == 2
    assert server.exchange(b"four;fives;") == b"four;four;"


@pytest.mark.parametrize(
    ("arguments", "config", "error", "message"),
    [
        ((Echo, "treading"), {}, ConfigError, "did you mean 'threading'"),
        (
            (Echo, "threading", "ucp"),
            {},
            ValueError,
            "transport is one of tcp, unix, udp, unixgram, not 'ucp'",
        ),
        ((Echo,), {"workers": 2}, TypeError, "workers is none of a test's settings"),
        ((Echo,), {"listen": "x"}, TypeError, "listen is none of a test's settings"),
        ((Echo,), {"limits": {"idle": 1}}, ConfigError, "limits.idle: unknown key"),
        ((Upper, "event"), {}, ConfigError, "'event' cannot run Upper"),
    ],
)
def test_what_is_wrong_is_refused(arguments, config, error, message, srvkit_server):
    with pytest.raises(error, match=message):
        srvkit_server(*arguments, **config)


class Who(srvkit.MessageHandler):
    """Says who asks."""

    framing = srvkit.Lines()

    def handle_message(self, message):
        return str(self.client_address[0]).encode()


HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n"
BEHIND_A_PROXY = {"proxy": {"trusted": ["127.0.0.1"]}}


@srvkit_models(Who)
def test_a_client_may_come_through_a_proxy(srvkit_server):
    server = srvkit_server(Who, **BEHIND_A_PROXY)
    assert server.exchange(HEADER + b"who\n") == b"192.0.2.7\n"
    assert server.exchange(b"PROXY UNKNOWN\r\nwho\n") == b"127.0.0.1\n"


@pytest.fixture
def refusing(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What keeps clients out, by name: of a server's settings."""
    plugin = tmp_path / "refuses.py"
    plugin.write_text(
        "import srvkit\n@srvkit.hookimpl\ndef srvkit_verify_request(server):\n    return False\n"
    )
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    return {
        "rule": {"access": {"deny": ["127.0.0.1"]}},
        "hook": {"plugins": [str(plugin)]},
        "no header": BEHIND_A_PROXY,
        "no trust": {"proxy": {"trusted": ["192.0.2.1"]}},
        "rule behind a proxy": {"access": {"deny": ["192.0.2.7"]}, **BEHIND_A_PROXY},
        "no TLS": {"tls": {"cert": str(tmp_path / "cert.pem")}},
    }


REFUSALS = ["rule", "hook", "no header", "no trust", "rule behind a proxy", "no TLS"]


@srvkit_models(Who)
@pytest.mark.parametrize("why", REFUSALS)
def test_who_is_refused_hears_nothing_and_knows_at_once(why, srvkit_server, refusing):
    server = srvkit_server(Who, **refusing[why])
    said = HEADER + b"who\n" if "proxy" in why else b"who\n"
    assert b"\n" not in server.exchange(said)


@pytest.mark.parametrize("why", ["rule", "hook"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_datagram_may_be_refused_too(transport, why, srvkit_server, refusing):
    assert srvkit_server(Who, transport=transport, **refusing[why]).exchange(b"who\n") == b""


@pytest.mark.parametrize("limits", [{"max_connections": 1, "when_full": "close"}, {"max_per_client": 1}])
def test_one_too_many_is_refused(limits, srvkit_server):
    server = srvkit_server(Who, limits=limits)
    with server.connect() as sock:
        sock.sendall(b"who\n")
        assert sock.recv(100) == b"127.0.0.1\n"
        assert server.exchange(b"who\n") == b""


def test_one_too_soon_is_refused(srvkit_server):
    for transport in ("tcp", "udp"):
        server = srvkit_server(Who, transport=transport, limits={"connect_rate": 1})
        assert {server.exchange(b"who\n") for _ in range(3)} == {b"127.0.0.1\n", b""}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_test_that_is_over_does_not_wait_for_who_was_refused(why, srvkit_server, refusing, monkeypatch):
    monkeypatch.setattr("srvkit.testing.plugin.LAST_MOMENT", 3600.0)
    server = srvkit_server(Who, **refusing[why])
    server.connect().sendall(b"PROX")
    server.stop()


def test_what_is_too_long_for_a_datagram_is_dropped(srvkit_server):
    server = srvkit_server(Blocking, transport="unixgram", limits={"max_message": 4096})
    data = bytes(4097)
    assert server.exchange(data) == b""
    assert server.exchange(b"one") == b"ONE"


@pytest.mark.parametrize("short", [True, False], ids=["a short folder elsewhere", "no short folder"])
@pytest.mark.parametrize("model", ["threading", "forking"])
@pytest.mark.parametrize("transport", ["unix", "unixgram"])
def test_a_temporary_folder_may_be_too_long_for_sockets(
    transport, model, short, srvkit_server, tmp_path, monkeypatch
):
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    if not short:
        monkeypatch.setattr("srvkit.testing.plugin.SHORT_FOLDERS", ())
    server = srvkit_server(Echo, model, transport)
    assert len(server.address) < 100
    assert server.exchange(b"hi\n") == b"hi\n"


def test_a_handler_may_be_named(srvkit_server):
    assert srvkit_server("shout").exchange(b"hello\n") == b"HELLO\n"


def test_more_than_the_kernel_buffers_is_exchanged(srvkit_server):
    data = bytes(range(256)) * 40_000
    assert srvkit_server("echo").exchange(data) == data


def test_many_clients_of_whom_nobody_was_asked_hide_no_end(srvkit_server):
    server = srvkit_server(Silent, "serial", "unixgram")  # on which nothing is lost
    sock = server.connect()
    for _ in range(1000):
        sock.send(b"x")
    assert server.exchange(b"y") == b""


def test_two_servers_have_two_addresses(srvkit_server):
    one, two = srvkit_server(Echo), srvkit_server(Echo, transport="unix")
    assert one.address[0] == "127.0.0.1"
    assert two.address.endswith("/server.sock")
    assert [server.exchange(b"x\n") for server in (one, two)] == [b"x\n"] * 2


def test_an_exchange_that_does_not_end_times_out(srvkit_server):
    server = srvkit_server("chargen", transport="unix")
    sock = server.connect()
    assert sock.recv(10)
    never = srvkit_server(Echo)
    with pytest.raises(TimeoutError, match=r"LiveServer threading tcp .* received so far: b''"):
        with_no_end(never)


def with_no_end(server):
    """Keep the server from taking what comes, as a full one does."""
    server.server.pause_accepting("the test")
    server.exchange(b"hello\n", timeout=0.1)
