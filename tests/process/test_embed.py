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

MODELS = ["serial", "threading", "pool"]
TCP = "tcp://127.0.0.1:0"


class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message):
        return message


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


def ask(address, line=b"hello\n"):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(30)
        sock.connect(address)
        sock.sendall(line)
        with sock.makefile("rb") as file:
            return file.readline()


def open_descriptors():
    return {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}


def _is_open(fd):
    return Path(f"/proc/self/fd/{fd}").is_symlink()


@pytest.fixture(autouse=True)
def _nothing_is_left():
    threads = set(threading.enumerate())
    before = open_descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(30)
        assert not thread.is_alive()
    assert open_descriptors().keys() <= before.keys()  # others' may have been collected meanwhile


@pytest.mark.parametrize("model", MODELS)
def test_a_class_is_served_under_each_model(model):
    with srvkit.serve(Echo, TCP, concurrency=model) as server:
        assert ask(server.address) == b"hello\n"


@pytest.mark.parametrize("model", MODELS)
def test_a_blocking_handler_is_served_under_each_model(model):
    with srvkit.serve(Blocking, TCP, concurrency=model) as server:
        assert ask(server.address) == b"HELLO\n"


def test_the_server_takes_no_connection_after_the_end_of_the_block():
    with srvkit.serve(Echo, TCP) as server:
        pass
    with pytest.raises(ConnectionRefusedError):
        ask(server.address)


def test_stopping_twice_does_nothing_more():
    server = srvkit.serve(Echo, TCP)
    assert server.stop() is True
    assert server.stop() is True


def test_a_program_that_fails_inside_the_block_stops_the_server_too():
    with pytest.raises(ZeroDivisionError), srvkit.serve(Echo, TCP) as server:
        _ = 1 / 0
    with pytest.raises(ConnectionRefusedError):
        ask(server.address)


def test_several_addresses_are_all_told(tmp_path):
    with srvkit.serve(Echo, TCP, f"unix:{tmp_path}/echo.sock") as server:
        assert server.address == server.addresses[0]
        assert server.addresses[1] == f"{tmp_path}/echo.sock"
        assert [ask(address) for address in server.addresses] == [b"hello\n"] * 2
    assert not (tmp_path / "echo.sock").exists()


def test_datagrams_are_served():
    with (
        srvkit.serve(Echo, "udp://127.0.0.1:0", concurrency="serial") as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(30)
        sock.sendto(b"hello\n", server.address)
        assert sock.recv(100) == b"hello\n"


def test_an_inherited_unix_socket_tells_its_whole_path(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/given.sock")
        with srvkit.serve(Echo, f"fd:{sock.fileno()}") as server:
            assert server.address == f"{tmp_path}/given.sock"
            assert ask(server.address) == b"hello\n"


def test_a_handlers_options_are_given_and_checked():
    with srvkit.serve(Greeter, TCP, options={"greeting": "hi", "times": 2}) as server:
        assert ask(server.address) == b"hi\n"
    with pytest.raises(ConfigError) as caught:
        srvkit.serve(Greeter, TCP, options={"times": "two", "tmies": 1})
    assert str(caught.value).splitlines() == [
        "server.embedded.handler.tmies: unknown option 'tmies', did you mean 'times'?",
        "server.embedded.handler.greeting: missing, this option is required",
        "server.embedded.handler.times: expected an integer, got a string",
    ]


def test_framing_limits_and_socket_settings_are_those_of_the_configuration(tmp_path):
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


def test_a_name_of_an_installed_plugin_will_do():
    with srvkit.serve("shout", TCP) as server:
        assert ask(server.address) == b"HELLO\n"


def test_a_plugin_of_the_programs_own_will_do(tmp_path):
    (tmp_path / "parrot_plugin.py").write_text(
        "from srvkit import *\nclass Parrot(MessageHandler):\n    framing = Lines()\n"
        "    def handle_message(self, message):\n        return message * 2\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'parrot': Parrot}\n"
    )
    with srvkit.serve("parrot", TCP, plugins=[str(tmp_path / "parrot_plugin.py")]) as server:
        assert ask(server.address) == b"hellohello\n"


def test_an_import_name_will_do():
    with srvkit.serve("http.server:SimpleHTTPRequestHandler", TCP) as server:
        assert ask(server.address, b"HEAD / HTTP/1.0\r\n\r\n") == b"HTTP/1.0 200 OK\r\n"


def test_startup_and_shutdown_are_called_once_each():
    Shared.events.clear()
    with srvkit.serve(Shared, TCP):
        assert Shared.events == ["startup"]
    assert Shared.events == ["startup", "shutdown"]


@pytest.mark.parametrize("model", MODELS)
def test_what_startup_raises_is_raised_and_nothing_stays_open(model, tmp_path):
    with pytest.raises(LookupError, match="no database"):
        srvkit.serve(Broken, TCP, f"unix:{tmp_path}/echo.sock", concurrency=model)
    assert not list(tmp_path.iterdir())


def test_an_address_in_use_is_an_error_that_names_it(tmp_path):
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


def test_a_plugin_that_is_not_there_is_a_plugin_error():
    with pytest.raises(PluginError, match="no_such_plugin"):
        srvkit.serve(Echo, TCP, plugins=["no_such_plugin"])


def test_forking_beside_threads_is_refused_with_their_names():
    go_on = threading.Event()
    other = threading.Thread(target=go_on.wait, name="mining")
    other.start()
    try:
        with pytest.raises(ConfigError, match=r"forking beside other threads \(.*mining.*\) is not safe"):
            srvkit.serve(Echo, TCP, concurrency="forking")
    finally:
        go_on.set()
        other.join()


def test_an_endless_handler_is_cut_and_told_of(caplog):
    server = srvkit.serve(Endless, TCP)
    assert ask(server.address) == b"holding\n"
    assert server.stop(drain_timeout=0.05) is False
    assert [record.getMessage() for record in caplog.records] == [
        "embedded: a handler did not stop in time, abandoned"
    ]
    Endless.let_go.set()


FORKING = """
import logging, os, socket, srvkit, threading
logging.basicConfig(format="%(message)s")

class Child(srvkit.MessageHandler):
    framing = srvkit.Lines()

    @classmethod
    def startup(cls, server):
        {startup}

    def handle_message(self, message):
        self.send(b"child" if os.getpid() != {pid} else b"parent")
        if message == b"endless":
            threading.Event().wait()

def ask(address, line):
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(30)
    sock.connect(address)
    sock.sendall(line + b"\\n")
    return sock, sock.recv(100)

def children():
    return open(f"/proc/self/task/{{os.getpid()}}/children").read().split()

"""


@pytest.mark.parametrize("address", [TCP, "unix:echo.sock"])
def test_a_forking_server_gets_a_process_and_ends_with_the_block(address, run_code, tmp_path):
    program = run_code(
        FORKING.format(startup="pass", pid="os.getppid()")
        + f"""
with srvkit.serve(Child, {address!r}, concurrency="forking") as server:
    print(len(children()), ask(server.address, b"hello")[1])
    again = server
print(children(), server.stop(), threading.active_count(), os.listdir("/proc/self/fd").__len__())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[0] == "1 b'child\\n'"
    assert program.log.splitlines()[1].startswith("[] True 1 ")
    assert not (tmp_path / "echo.sock").exists()


def test_an_endless_child_of_a_forking_server_is_cut(run_code):
    program = run_code(
        FORKING.format(startup="pass", pid="os.getppid()")
        + f"""
server = srvkit.serve(Child, {TCP!r}, concurrency="forking")
sock, said = ask(server.address, b"endless")
print(server.stop(drain_timeout=0.05), sock.recv(100), children())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[-1] == "False b'' []"


def test_a_forking_servers_startup_that_raises_leaves_nothing(run_code, tmp_path):
    program = run_code(
        FORKING.format(startup="raise LookupError('no database')", pid=0)
        + """
before = os.listdir("/proc/self/fd")
try:
    srvkit.serve(Child, "unix:echo.sock", concurrency="forking")
except Exception as error:
    print(type(error).__name__, error)
print(children(), os.listdir("/proc/self/fd") == before, os.listdir())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[-2:] == [
        "StartError embedded: could not start: LookupError: no database",
        "[] True []",
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_start_that_the_user_interrupts_leaves_no_process(at_once, run_code):
    interrupt = "pass" if at_once else "os.kill(os.getppid(), 2)"
    program = run_code(
        FORKING.format(startup=f"{interrupt}; threading.Event().wait()", pid=0)
        + f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
if {at_once}:
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), 2))
try:
    srvkit.serve(Child, {TCP!r}, concurrency="forking")
except KeyboardInterrupt:
    print("interrupted", children())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log == "interrupted []\n"


def test_a_stop_that_the_user_interrupts_leaves_no_process(run_code):
    program = run_code(
        FORKING.format(startup="pass", pid=0)
        + f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
server = srvkit.serve(Child, {TCP!r}, concurrency="forking")
drain = server._process.drain
server._process.drain = lambda: (drain(), os.kill(os.getpid(), signal.SIGINT))
try:
    server.stop()
except KeyboardInterrupt:
    print("interrupted", children(), server.stop())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log == "interrupted [] True\n"


def test_a_forking_server_ends_with_a_program_that_is_killed(run_code):
    program = run_code(
        FORKING.format(startup="pass", pid=0)
        + f"""
import signal
server = srvkit.serve(Child, {TCP!r}, concurrency="forking")
print(server.address[1], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert program.ended() == -9
    # The log ends when the last process that could write to it has: the server's is gone.
    with pytest.raises(ConnectionRefusedError):
        ask(("127.0.0.1", int(program.log)))


def test_a_library_installs_no_signal_handlers_and_no_log_handlers(run_code):
    program = run_code(
        """
import logging, signal, srvkit
def dispositions():
    return [signal.getsignal(number) for number in signal.valid_signals()], logging.root.handlers[:]
before = dispositions()
with srvkit.serve("echo", "tcp://127.0.0.1:0"):
    assert dispositions() == before
assert dispositions() == before
"""
    )
    assert program.ended() == 0, program.log
    assert program.log == ""


# ---- programs with a mind of their own

CHILDREN_OF_ITS_OWN = {
    "a handler": "signal.signal(signal.SIGCHLD, lambda *_: None)",
    "a handler that reaps all": "signal.signal(signal.SIGCHLD, reap)",
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "a thread that reaps all": "late = threading.Thread(target=reap_on, daemon=True)",
    "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "handlers for everything": (
        "[signal.signal(n, lambda *_: None) for n in signal.valid_signals() - {9, 19}]; "
        "pair = socket.socketpair(); pair[1].setblocking(False); signal.set_wakeup_fd(pair[1].fileno())"
    ),
}
THREE_CLIENTS = """
import asyncio, os, signal, socket, sys, threading, srvkit

class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()
    def handle_message(self, message):
        return message

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

def reap_on():
    while True:
        reap()

late = None

def three(server):
    for _ in range(3):
        with socket.create_connection(server.address, 30) as client:
            client.sendall(b"hi\\n")
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as file:
                print(file.read().decode().strip())
    print(server.stop(20))
"""


@pytest.mark.parametrize("how", CHILDREN_OF_ITS_OWN)
def test_a_forking_server_serves_on_whatever_the_program_does_about_its_children(how, run_code):
    program = run_code(
        THREE_CLIENTS
        + f"""
{CHILDREN_OF_ITS_OWN[how]}
server = srvkit.serve(Echo, {TCP!r}, concurrency="forking")
if late is not None:
    late.start()
three(server)
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "hi", "hi", "True"]


def test_a_forking_server_serves_on_beside_a_loop_that_hears_of_children(run_code):
    program = run_code(
        THREE_CLIENTS
        + f"""
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap)
    three(srvkit.serve(Echo, {TCP!r}, concurrency="forking"))
asyncio.run(main())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "hi", "hi", "True"]


def test_signals_that_are_meant_for_the_program_do_not_stop_its_server(run_code):
    program = run_code(
        THREE_CLIENTS
        + f"""
signal.signal(signal.SIGUSR1, lambda *_: None)
server = srvkit.serve(Echo, {TCP!r}, concurrency="forking")
with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
    pid = int(file.read())
for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGALRM, signal.SIGCHLD):
    os.kill(pid, number)
three(server)
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "hi", "hi", "True"]


@pytest.mark.parametrize("reaped", ["", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"])
def test_a_stop_that_cuts_says_so_whoever_hears_of_the_end(reaped, run_code):
    program = run_code(
        THREE_CLIENTS
        + f"""
{reaped}
class Endless(Echo):
    def handle_message(self, message):
        self.send(b"holding")
        threading.Event().wait()
server = srvkit.serve(Endless, {TCP!r}, concurrency="forking")
with socket.create_connection(server.address, 30) as client:
    client.sendall(b"x\\n")
    print(client.recv(100).decode().strip())
    print(server.stop(0))
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[-1] == "False"


@pytest.mark.parametrize("model", ["serial", "threading", "forking"])
def test_a_program_may_go_elsewhere(model, run_code, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    program = run_code(
        THREE_CLIENTS
        + f"""
server = srvkit.serve(Echo, "unix:a.sock", concurrency={model!r})
os.chdir("elsewhere")
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(30)
    client.connect(server.address)
    client.sendall(b"hi\\n")
    print(client.recv(100).decode().strip())
print(server.stop(20))
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "True"]
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_the_address_of_a_socket_far_down_is_the_short_way_there(tmp_path, monkeypatch):
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
def test_a_process_that_a_handler_has_forked_stops_nobody(client):
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
