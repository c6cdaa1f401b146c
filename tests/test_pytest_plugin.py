"""The pytest plugin as authors of handlers see it: live servers, conversations in memory, every model."""

from __future__ import annotations

import contextvars
import http.server
import os
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass

import pytest
import trustme

import srvkit
from srvkit.errors import ConfigError, PluginError
from srvkit.pytest_plugin import converse, srvkit_models

pytest_plugins = ["pytester"]

TRANSPORTS = ["tcp", "udp", "unix", "unixgram"]
PREAMBLE = """
import pytest, srvkit
from srvkit.pytest_plugin import srvkit_models

class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()
    def handle_message(self, message):
        if message == b"bad":
            raise LookupError("bad message")
        return message

class Async(srvkit.AsyncHandler):
    async def handle(self):
        self.writer.write(await self.reader.read())

"""


class Echo(srvkit.MessageHandler):
    """Send lines back; with the option, more than once."""

    framing = srvkit.Lines()

    @dataclass
    class Options:
        times: int = 1

    def handle_message(self, message):
        if message.startswith(b"raise"):
            raise LookupError(message.decode())
        return [message] * self.options.times


class Blocking(srvkit.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            data, sock = self.request
            sock.sendto(data.upper(), self.client_address)
            return
        while data := self.request.recv(100):
            self.request.sendall(data.upper())


class Upper(srvkit.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Coroutine(srvkit.AsyncHandler):
    async def handle(self):
        self.writer.write((await self.reader.read()).upper())


class Silent(srvkit.MessageHandler):
    def handle_message(self, message):
        return None


class Greeter(srvkit.MessageHandler):
    """Greets, sends by itself, and closes; says how it ended."""

    framing = srvkit.Lines()
    ends: list[str] = []

    def connected(self):
        return b"welcome"

    def send(self, message):
        super().send(b"*" + message)

    def handle_message(self, message):
        self.send(b"thinking")
        if message == b"bye":
            self.close()
        yield b"hello " + message

    def disconnected(self, reason):
        self.ends.append(reason)


# ---- live servers


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
def refusing(tmp_path):
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


def test_a_server_ends_with_its_test(pytester):
    pytester.makepyfile(
        PREAMBLE
        + """
address = None

def test_one(srvkit_server):
    global address
    server = srvkit_server(Echo)
    address = server.address
    sock = server.connect()
    sock.sendall(b"hello\\n")
    assert sock.recv(10) == b"hello\\n"

def test_two():
    import socket
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
"""
    )
    pytester.runpytest("-W", "error").assert_outcomes(passed=2)


def test_an_error_that_nobody_expects_fails_the_test_with_the_handlers_own_lines(pytester):
    pytester.makepyfile(
        PREAMBLE
        + """
@srvkit_models(Echo, without="forking")
def test_it(srvkit_server):
    srvkit_server(Echo).connect().sendall(b"bad\\n")

def test_two_of_them(srvkit_server):
    server = srvkit_server(Echo)
    for _ in range(2):
        sock = server.connect()
        sock.sendall(b"bad\\n")
        assert sock.recv(10) == b""

def test_none_is_raised(srvkit_server):
    server = srvkit_server(Echo)
    with server.expect(ValueError, timeout=0.01):
        server.exchange(b"good\\n")
"""
    )
    result = pytester.runpytest("-W", "error", "-k", "not gevent")
    result.assert_outcomes(passed=6, errors=6, failed=1)
    result.stdout.fnmatch_lines(['*raise LookupError("bad message")*', "E*LookupError: bad message*"])
    result.stdout.fnmatch_lines(["*the handler raised (2 sub-exceptions)*", "*DID NOT RAISE*ValueError*"])


def test_a_test_is_made_of_each_model_and_one_without_its_package_is_skipped(pytester, monkeypatch):
    pytester.makepyfile(
        PREAMBLE
        + """
from srvkit.concurrency.gevent.model import GreenletMixIn
from srvkit.contracts import Package
GreenletMixIn.needs = classmethod(lambda cls, **_: [Package("no_such_package", "srvkit[gevent]")])

@srvkit_models(Echo, without=["forking", "pool"])
def test_it(srvkit_model, srvkit_server):
    assert srvkit_server(Echo).exchange(srvkit_model.encode()) == b""

@srvkit_models(Async)
def test_async(srvkit_model):
    assert srvkit_model == "asyncio"
"""
    )
    result = pytester.runpytest_subprocess("-v", "-rs", "--strict-markers")
    result.assert_outcomes(passed=5, skipped=1)
    result.stdout.fnmatch_lines(
        ["*test_it[[]asyncio[]] PASSED*", "*gevent needs the package no_such_package: pip install*"]
    )


def test_a_test_that_takes_no_model_is_told(pytester):
    pytester.makepyfile(PREAMBLE + "@srvkit_models(Echo)\ndef test_it(): ...\n")
    pytester.runpytest().stdout.fnmatch_lines(["*function uses no argument 'srvkit_model'*"])


def models_of(*arguments, **settings):
    return [getattr(one, "values", [one])[0] for one in srvkit_models(*arguments, **settings).mark.args[1]]


def test_a_handler_of_which_models_are_asked_may_be_named():
    able = ["forking", "pool", "serial", "threading"]
    assert models_of("http.server:BaseHTTPRequestHandler", without="gevent") == able
    assert len(models_of("echo")) == 7
    with pytest.raises(PluginError, match="no installed plugin offers a handler of this name"):
        srvkit_models("no-such")


def test_a_handler_of_one_process_is_not_run_under_forking():
    class Room(Echo):
        one_process = True

    assert set(models_of(Echo)) - set(models_of(Room)) == {"forking"}


def test_a_model_to_leave_out_that_cannot_run_the_handler_is_an_error():
    with pytest.raises(ValueError, match="Coroutine runs under asyncio, not under treading"):
        srvkit_models(Coroutine, without="treading")


def test_forking_beside_threads_is_skipped_where_the_model_is_one_of_all(pytester):
    pytester.makepyfile(
        PREAMBLE
        + """
import threading

@pytest.fixture(autouse=True)
def mining():
    event = threading.Event()
    thread = threading.Thread(target=event.wait, name="mining")
    thread.start()
    yield
    event.set()
    thread.join()

@srvkit_models(Echo, without=["serial", "threading", "pool", "event", "asyncio", "gevent"])
def test_it(srvkit_server):
    srvkit_server(Echo)

def test_asked_for(srvkit_server):
    with pytest.raises(srvkit.ConfigError, match="forking beside other threads"):
        srvkit_server(Echo, "forking")
"""
    )
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["*forking beside other threads (*mining*) is not safe*"])


def test_pytest_does_not_import_srvkit_where_nobody_asks_for_it(pytester):
    pytester.makepyfile("def test_it(): pass\n")
    pytester.makeconftest(
        "import sys\ndef pytest_unconfigure():\n"
        "    print({name for name in sys.modules if name.split('.')[0] == 'srvkit'},"
        " 'srvkit_pytest.fixtures' in sys.modules)\n"
    )
    result = pytester.runpytest_subprocess("--co", "-q")
    result.stdout.fnmatch_lines(["set() True"])


def test_pytest_shows_the_fixtures(pytester):
    lines = ["srvkit_server*", "*Start servers: `srvkit_server(Handler, *"]
    pytester.runpytest("--fixtures").stdout.fnmatch_lines(lines)


def test_only_the_entry_is_loaded_before_srvkit():
    """Its source stands inside the folder of srvkit, but is installed beside it."""
    code = "import sys, srvkit_pytest.fixtures; print('srvkit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "False\n"


# ---- in memory


def test_messages_are_answered_in_memory():
    Greeter.ends.clear()
    assert converse(Greeter, [b"you"]) == [b"welcome", b"*thinking", b"hello you"]
    assert converse(Greeter, [b"bye", b"never"]) == [b"welcome", b"*thinking", b"hello bye"][:3]
    assert Greeter.ends == ["eof", "closed"]


def test_no_thread_and_no_socket_is_needed(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(threading.Thread, "start", None)
    assert converse(Echo, [b"a", b"b"], options={"times": 2}) == [b"a", b"a", b"b", b"b"]
    assert converse(Upper, [b"one\ntw", b"o\n"]) == b"ONE\nTWO\n"


def test_errors_and_wrong_options_are_raised():
    with pytest.raises(LookupError):
        converse(Echo, [b"raise"])
    with pytest.raises(ConfigError, match=r"options\.tmes: unknown option 'tmes', did you mean 'times'"):
        converse(Echo, [], options={"tmes": 1})
    with pytest.raises(ConfigError, match="there are no options here"):
        converse(Upper, [], options={"tmes": 1})


def test_replies_are_as_the_framing_can_send_them():
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


def test_each_read_finds_what_came_at_once():
    assert converse(Blocking, [b"one", b"two" * 50, b""]) == b"ONE" + b"TWO" * 50


def test_a_buffered_handler_and_one_of_the_standard_library():
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


def test_datagrams_are_answered_in_memory():
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


def test_a_coroutine_is_awaited_in_memory():
    address = ("192.0.2.1", 7)
    written = converse(Dialogue, [b"one", b"\ntwo\nthree"], client_address=address)
    assert written == b"welcomeONE\ntwo\nthree('192.0.2.1', 7)"
    assert converse(Coroutine, [b"x" * 300_000]) == b"X" * 300_000
    assert converse(Dialogue, [b"\n12"], options={"greeting": "hi"}).startswith(b"hi\n12")


def test_what_a_coroutine_raises_is_raised():
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


@pytest.mark.parametrize("how", ["-p srvkit", "PYTEST_ADDOPTS", "conftest.py", ""])
def test_a_program_may_import_srvkit_before_pytest_comes(how, tmp_path):
    """pytest rewrites the asserts of all that an installed plugin brings, and warns where it is too late."""
    info = tmp_path / "installed" / "another-1.dist-info"  # names the packages as an installed srvkit does
    info.mkdir(parents=True)
    packages = ("srvkit", "srvkit_handlers", "srvkit_pytest")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1\n")
    (info / "RECORD").write_text("".join(f"{name}/__init__.py,,\n" for name in packages))
    (info / "entry_points.txt").write_text("[pytest11]\nanother = textwrap\n")
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_it.py").write_text("import srvkit\ndef test_it(srvkit_server): pass\n")
    if how == "conftest.py":
        (folder / how).write_text(
            'import srvkit.pytest_plugin as ours\npytest_plugins = ["srvkit", ours.__name__]\n'
        )
    (tmp_path / "program.py").write_text(
        f"import sys, {', '.join(packages)}\n"
        "import srvkit.server.base, srvkit_handlers.echo, srvkit_pytest.fixtures\n"
        "sys.modules['socketserver'] = srvkit\n"
        "import pytest\n"
        "sys.exit(pytest.main(sys.argv[1:]))\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environ["PYTHONPATH"] = str(info.parent)
    if how == "PYTEST_ADDOPTS":
        environ[how] = "-p srvkit.pytest_plugin"
    arguments = how.split() if how.startswith("-p") else []
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", "-W", "error", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
