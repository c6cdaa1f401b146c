"""`srvkit.serve` runs a server inside a program: it raises what keeps it from starting."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

import srvkit
from srvkit.errors import ConfigError, ListenError, PluginError
from tests.conftest import Connect
from tests.process.embedded_handlers import TCP, Echo, ask

MODELS = ["serial", "threading", "pool"]
pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Endless(Echo):
    let_go = threading.Event()  # so that its thread ends with the test

    def handle_message(self, message):
        self.send(b"holding")
        self.let_go.wait()


class OneProcess(Echo):
    one_process = True


class Blocking(srvkit.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())


class Greeter(Echo):
    @dataclass
    class Options:
        greeting: str
        times: int = 1

    def connected(self):
        return [self.options.greeting.encode()] * self.options.times


class Shared(Echo):
    events: list[str] = []

    @classmethod
    def startup(cls, server):
        cls.events.append("startup")

    @classmethod
    def shutdown(cls, server):
        cls.events.append("shutdown")


class Broken(Echo):
    @classmethod
    def startup(cls, server):
        raise LookupError("no database")


@pytest.mark.parametrize("model", MODELS)
def test_a_class_is_served_under_each_model(model):
    with srvkit.serve(Echo, TCP, concurrency=model) as server:
        assert ask(server.address) == b"hello\n"


@pytest.mark.parametrize("model", MODELS)
def test_a_blocking_handler_is_served_under_each_model(model):
    with srvkit.serve(Blocking, TCP, concurrency=model) as server:
        assert ask(server.address) == b"HELLO\n"


def test_the_server_takes_no_connection_after_the_end_of_the_block() -> None:
    with srvkit.serve(Echo, TCP) as server:
        pass
    with pytest.raises(ConnectionRefusedError):
        ask(server.address)


def test_stopping_twice_does_nothing_more() -> None:
    server = srvkit.serve(Echo, TCP)
    assert server.stop() is True
    assert server.stop() is True


def test_a_program_that_fails_inside_the_block_stops_the_server_too() -> None:
    with pytest.raises(ZeroDivisionError), srvkit.serve(Echo, TCP) as server:
        _ = 1 / 0
    with pytest.raises(ConnectionRefusedError):
        ask(server.address)


def test_several_addresses_are_all_told(tmp_path: Path) -> None:
    with srvkit.serve(Echo, TCP, f"unix:{tmp_path}/echo.sock") as server:
        assert server.address == server.addresses[0]
        assert server.addresses[1] == f"{tmp_path}/echo.sock"
        assert [ask(address) for address in server.addresses] == [b"hello\n"] * 2
    assert not (tmp_path / "echo.sock").exists()


def test_datagrams_are_served() -> None:
    with (
        srvkit.serve(Echo, "udp://127.0.0.1:0", concurrency="serial") as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(30)
        sock.sendto(b"hello\n", server.address)
        assert sock.recv(100) == b"hello\n"


def test_an_inherited_unix_socket_tells_its_whole_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/given.sock")
        with srvkit.serve(Echo, f"fd:{sock.fileno()}") as server:
            assert server.address == f"{tmp_path}/given.sock"
            assert ask(server.address) == b"hello\n"


def test_a_handlers_options_are_given_and_checked() -> None:
    with srvkit.serve(Greeter, TCP, options={"greeting": "hi", "times": 2}) as server:
        assert ask(server.address) == b"hi\n"
    with pytest.raises(ConfigError) as caught:
        srvkit.serve(Greeter, TCP, options={"times": "two", "tmies": 1})
    assert str(caught.value).splitlines() == [
        "server.embedded.handler.tmies: unknown option 'tmies', did you mean 'times'?",
        "server.embedded.handler.greeting: missing, this option is required",
        "server.embedded.handler.times: expected an integer, got a string",
    ]


def test_framing_limits_and_socket_settings_are_those_of_the_configuration(tmp_path: Path) -> None:
    with srvkit.serve(
        Echo,
        f"unix:{tmp_path}/echo.sock",
        concurrency={"name": "pool", "threads": 2},
        framing={"name": "delimiter", "delimiter": ";"},
        limits={"max_message": "4B", "max_connections": 3},
        socket={"mode": "0640"},
    ) as server:
        assert server.server.threads == 2
        assert server.server.limits.max_connections == 3
        assert (tmp_path / "echo.sock").stat().st_mode & 0o777 == 0o640
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(server.address)
            sock.sendall(b"four;fives;")
            with sock.makefile("rb") as file:
                assert file.read() == b"four;"


def test_a_name_of_an_installed_plugin_will_do() -> None:
    with srvkit.serve("shout", TCP) as server:
        assert ask(server.address) == b"HELLO\n"


def test_a_plugin_of_the_programs_own_will_do(tmp_path: Path) -> None:
    (tmp_path / "parrot_plugin.py").write_text(
        "from srvkit import *\nclass Parrot(MessageHandler):\n    framing = Lines()\n"
        "    def handle_message(self, message):\n        return message * 2\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'parrot': Parrot}\n"
    )
    with srvkit.serve("parrot", TCP, plugins=[str(tmp_path / "parrot_plugin.py")]) as server:
        assert ask(server.address) == b"hellohello\n"


def test_an_import_name_will_do() -> None:
    with srvkit.serve("http.server:SimpleHTTPRequestHandler", TCP) as server:
        assert ask(server.address, b"HEAD / HTTP/1.0\r\n\r\n") == b"HTTP/1.0 200 OK\r\n"


def test_startup_and_shutdown_are_called_once_each() -> None:
    Shared.events.clear()
    with srvkit.serve(Shared, TCP):
        assert Shared.events == ["startup"]
    assert Shared.events == ["startup", "shutdown"]


@pytest.mark.parametrize("model", MODELS)
def test_what_startup_raises_is_raised_and_nothing_stays_open(model, tmp_path):
    with pytest.raises(LookupError, match="no database"):
        srvkit.serve(Broken, TCP, f"unix:{tmp_path}/echo.sock", concurrency=model)
    assert not list(tmp_path.iterdir())


def test_an_address_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    with srvkit.serve(Echo, TCP) as server:
        address = "tcp://{}:{}".format(*server.address)
        with pytest.raises(ListenError, match=f"cannot listen on {address}: the address is in use"):
            srvkit.serve(Echo, f"unix:{tmp_path}/echo.sock", address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([Echo], {}, "server.embedded.listen: expected at least one, got an empty list"),
        ([Echo, "tcp:127.0.0.1:0"], {}, r"server.embedded.listen\[0\]: .* two slashes are expected"),
        ([Echo, TCP], {"concurrency": "treading"}, "unknown concurrency model 'treading', did you mean"),
        ([Echo, TCP], {"limit": {}}, "server.embedded.limit: unknown key, did you mean 'limits'"),
        ([Blocking, TCP], {"framing": "lines"}, "framing is for message handlers"),
        (
            [OneProcess, TCP],
            {"workers": 2},
            "embedded.workers: 2 workers cannot run OneProcess, whose",
        ),
        ([OneProcess, TCP], {"concurrency": "forking"}, "'forking' cannot run OneProcess, whose"),
        ([object(), TCP], {}, "the handler is an object of type object, not a class or a name"),
        (["shuot", TCP], {}, "unknown handler 'shuot', did you mean 'shout'"),
        (["no_such_module:X", TCP], {}, "there is no module 'no_such_module' on the import path"),
    ],
)
def test_what_is_wrong_is_a_config_error(arguments, settings, message):
    with pytest.raises(ConfigError, match=message):
        srvkit.serve(*arguments, **settings)


def test_a_plugin_that_is_not_there_is_a_plugin_error() -> None:
    with pytest.raises(PluginError, match="no_such_plugin"):
        srvkit.serve(Echo, TCP, plugins=["no_such_plugin"])


def test_forking_beside_threads_is_refused_with_their_names() -> None:
    go_on = threading.Event()
    other = threading.Thread(target=go_on.wait, name="mining")
    other.start()
    try:
        with pytest.raises(ConfigError, match=r"forking beside other threads \(.*mining.*\) is not safe"):
            srvkit.serve(Echo, TCP, concurrency="forking")
    finally:
        go_on.set()
        other.join()


def test_an_endless_handler_is_cut_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    server = srvkit.serve(Endless, TCP)
    assert ask(server.address) == b"holding\n"
    assert server.stop(drain_timeout=0.05) is False
    assert [record.getMessage() for record in caplog.records] == [
        "embedded: a handler did not stop in time, abandoned"
    ]
    Endless.let_go.set()


def test_the_address_of_a_socket_far_down_is_the_short_way_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 80) / ("y" * 80)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with srvkit.serve(Echo, "unix:a.sock") as server:
        assert server.address == "a.sock"
        assert ask(server.address) == b"hello\n"
    assert not list(folder.iterdir())


# ---- stopped by a handler


def _stop_and_answer(line: bytes) -> bytes:
    return b"%s: %s" % (line, str(Stopped.embedded.stop(drain_timeout=0.2)).encode())


class Stopped(Echo):
    embedded: srvkit.EmbeddedServer

    def handle_message(self, message):
        return _stop_and_answer(message)


class BlockingStopped(srvkit.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            self.wfile.write(_stop_and_answer(line.strip()) + b"\n")


class AsyncStopped(srvkit.AsyncHandler):
    async def handle(self):
        while line := await self.reader.readline():
            self.writer.write(_stop_and_answer(line.strip()) + b"\n")


@pytest.mark.parametrize(
    ("handler", "model"),
    [
        *((Stopped, model) for model in ("serial", "threading", "pool", "event", "asyncio", "gevent")),
        *((BlockingStopped, model) for model in ("serial", "threading", "pool", "gevent")),
        (AsyncStopped, "asyncio"),
    ],
)
def test_a_handler_that_stops_its_server_goes_on_and_its_reply_leaves(handler, model, client, available):
    available(model)
    server = Stopped.embedded = srvkit.serve(handler, TCP, concurrency=_without_uvloop(model))
    with client(server.address) as sock, sock.makefile("rwb", buffering=0) as file:
        file.write(b"one\n")
        assert file.readline() == b"one: False\n"
        assert file.read() == b""
    assert server.stop() is True
    with pytest.raises(ConnectionRefusedError):
        client(server.address)


class Ended(Echo):
    def handle_message(self, message):
        self.server.shutdown()
        return message


def _without_uvloop(model):
    """Return the model, with a loop that keeps no descriptors for the process."""
    return {"name": model, "loop": "asyncio"} if model == "asyncio" else model


@pytest.mark.parametrize("model", ["serial", "threading", "pool", "event", "asyncio", "gevent"])
def test_a_handler_that_shuts_its_server_down_is_no_error(model, client, available, caplog):
    available(model)
    server = srvkit.serve(Ended, TCP, concurrency=_without_uvloop(model))
    with client(server.address) as sock, sock.makefile("rwb", buffering=0) as file:
        file.write(b"one\n")
        assert file.readline() == b"one\n"
    server.stop()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("model", ["pool", "event", "asyncio"])
def test_no_connection_stays_open_in_a_loop_that_has_ended(model, client, available):
    available(model)
    server = srvkit.serve(Ended, TCP, concurrency=_without_uvloop(model))
    with client(server.address) as silent, client(server.address) as sock:
        sock.sendall(b"one\n")
        assert sock.recv(100) == b"one\n"
        assert sock.recv(100) == b""
        assert silent.recv(100) == b""
    assert server.stop() is True


@pytest.mark.parametrize("model", ["threading", "pool", "gevent"])
def test_others_have_their_time_and_are_then_cut(model, client, available, eventually):
    available(model)
    server = Stopped.embedded = srvkit.serve(BlockingStopped, TCP, concurrency=model)
    with client(server.address) as silent, client(server.address) as sock:
        silent.sendall(b"half a line")
        sock.sendall(b"one\n")
        with sock.makefile("rb") as file:
            assert file.readline() == b"one: False\n"
        assert silent.recv(100) == b""
    eventually(lambda: not server._thread.is_alive())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_a_handler_has_forked_stops_nobody(client: Connect) -> None:
    class Forks(Echo):
        def handle_message(self, message):
            pid = os.fork()
            if pid == 0:
                os._exit(10 + server.stop())
            return b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with srvkit.serve(Forks, TCP, concurrency="event") as server, client(server.address) as sock:
        for _ in range(2):
            sock.sendall(b"one\n")
            assert sock.recv(100) == b"10\n"
