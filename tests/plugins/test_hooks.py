"""Each hook is called when, where and with what its specification says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from srvkit.plugins.manager import Plugins, make_manager

MODELS = ["serial", "threading", "pool", "forking"]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Plugins]]:
    """Make a manager with one plugin of the configuration, written from its source."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def plugin(source: str) -> Plugins:
        file = tmp_path / "hooked_plugin.py"
        file.write_text("from srvkit.plugins.hookspecs import hookimpl\n" + dedent(source))
        sys.modules.pop("hooked_plugin", None)
        return make_manager([file.name], folder=tmp_path)

    yield plugin
    sys.modules.pop("hooked_plugin", None)


OFFER = """
class Mine: ...

calls = []

@hookimpl
def {hook}():
    calls.append(Mine)
    return {{"mine": Mine}}
"""


def test_hook_handlers(plugin):
    plugins = plugin(OFFER.format(hook="srvkit_handlers"))
    assert plugins.handlers["mine"].cls is sys.modules["hooked_plugin"].Mine
    assert len(sys.modules["hooked_plugin"].calls) == 1


def test_hook_concurrency(plugin):
    plugins = plugin(OFFER.format(hook="srvkit_concurrency"))
    assert plugins.models["mine"].cls is sys.modules["hooked_plugin"].Mine
    assert len(sys.modules["hooked_plugin"].calls) == 1


def test_hook_framings(plugin):
    plugins = plugin(OFFER.format(hook="srvkit_framings"))
    assert plugins.framings["mine"].cls is sys.modules["hooked_plugin"].Mine
    assert len(sys.modules["hooked_plugin"].calls) == 1


WATCHER = """
import os, sys, threading
from srvkit import BaseRequestHandler, Lines, MessageHandler, hookimpl

def note(*what):
    with open("notes", "a") as notes:
        notes.write(" ".join(map(str, what)) + "\\n")

def place():
    return f"{os.getpid()} {threading.current_thread() is threading.main_thread()}"

class Echo(MessageHandler):
    framing = Lines()
    def handle_message(self, message):
        if message == b"fail":
            raise LookupError("as wished")
        return message

class Blocking(BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            self.request[1].sendto(b"blocking", self.client_address)
        else:
            self.request.sendall(self.request.recv(100))

@hookimpl
def srvkit_handlers():
    return {"watched": Echo, "blocking": Blocking}
"""


@pytest.fixture
def watched(tmp_path: Path, start: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`watched(hooks, model)`: `srvkit run` with a plugin of these hooks and a server named a."""
    programs = []

    def watched(
        hooks: str, model: str = "threading", handler: str = "watched", listen: str = "unix:a.sock", also=""
    ):
        (tmp_path / "watcher.py").write_text(dedent(WATCHER) + dedent(hooks))
        (tmp_path / "srvkit.toml").write_text(
            f'[srvkit]\nplugins = ["watcher.py", {also}]\n[server.a]\nlisten = "{listen}"\n'
            f'handler = "{handler}"\nconcurrency = "{model}"\n'
        )
        program = start("-m", "srvkit", "run", folder=tmp_path)
        programs.append(program)
        return program.__enter__()

    yield watched
    for program in programs:
        program.__exit__(None, None, None)


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """What the hooks have noted, in words."""
    return lambda: [line.split(" ") for line in (tmp_path / "notes").read_text().splitlines()]


@pytest.fixture
def worker() -> Callable[[Any], str]:
    """`worker(program)`: the number of the process that serves, once it does."""

    def worker(program: Any) -> str:
        program.addresses("a")
        (child,) = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        return child

    return worker


@pytest.fixture
def ask(client: Callable[..., Any], tmp_path: Path) -> Callable[..., bytes]:
    """Say something to the server and return all that it answers."""

    def ask(data: bytes, address: str = "unix:a.sock") -> bytes:
        with client(address, tmp_path) as sock:
            sock.sendall(data)
            if address.startswith(("udp", "unixgram")):
                return bytes(sock.recv(100))
            sock.shutdown(1)
            with sock.makefile("rb") as file:
                return bytes(file.read())

    return ask


@pytest.mark.parametrize("model", MODELS)
def test_hook_configure(model, watched, notes):
    """Called once where it is tried and once in a worker, with everything it says, before any server."""
    program = watched(
        """
        @hookimpl
        def srvkit_configure(config):
            note("configure", *config.server, config.server["a"].concurrency.name)

        @hookimpl
        def srvkit_worker_start():
            note("worker")
        """,
        model,
    )
    program.addresses("a")
    assert program.end() == 0
    assert notes() == [["configure", "a", model], ["configure", "a", model], ["worker"]]


@pytest.mark.parametrize(
    ("statement", "status", "said"),
    [
        ("raise ValueError('not on a Friday')", 2, "srvkit.toml: plugin watcher.py: not on a Friday"),
        (
            "from srvkit.errors import ConfigError, Problem; "
            "raise ConfigError([Problem('too loud', 'server.a.handler'), Problem('too late')])",
            2,
            "srvkit.toml:5: server.a.handler: plugin watcher.py: too loud\n"
            "srvkit: srvkit.toml: plugin watcher.py: too late",
        ),
        ("1 / 0", 3, "plugin watcher.py: srvkit_configure failed: ZeroDivisionError: division by zero"),
        ("sys.exit(0)", 3, "plugin watcher.py: srvkit_configure failed: SystemExit: 0"),
        ("config.path = None", 3, "plugin watcher.py: srvkit_configure failed: FrozenInstanceError"),
    ],
)
def test_hook_configure_vetoes(statement, status, said, watched, tmp_path):
    """A ValueError or ConfigError is a problem of the configuration, anything else one of the plugin."""
    program = watched(f"@hookimpl\ndef srvkit_configure(config):\n    {statement}\n")
    assert program.ended() == status
    assert program.log.startswith(f"srvkit: {said}")
    assert "Traceback" not in program.log


@pytest.mark.parametrize("model", MODELS)
def test_hook_server_start(model, watched, worker, notes, tmp_path):
    """Called once in the loop's own process and thread, after binding and before clients can connect."""
    program = watched(
        """
        @hookimpl
        def srvkit_server_start(server):
            import socket
            sock = socket.socket(socket.AF_UNIX)
            code = sock.connect_ex("a.sock")
            note(server.name, place(), code, os.path.exists("a.sock"))
        """,
        model,
    )
    pid = worker(program)
    assert program.end() == 0
    refused = 111
    assert notes() == [["a", pid, str(model == "forking"), str(refused), "True"]]


@pytest.mark.parametrize("model", MODELS)
def test_hook_server_stop(model, watched, worker, notes, ask):
    """Called once, after the last connection, in the process of server_start; what it raises is logged."""
    program = watched(
        """
        @hookimpl
        def srvkit_connection_close():
            import time
            time.sleep(0.2)  # slow: the stop has to wait for it
            note("closed")

        @hookimpl
        def srvkit_server_stop(server):
            note("stop", server.name, place(), os.path.exists("a.sock"))
            raise LookupError("no matter")

        @hookimpl
        def srvkit_worker_stop(worker):
            note("worker")
        """,
        model,
    )
    pid = worker(program)
    assert ask(b"hello\n") == b"hello\n"
    assert program.end() == 0
    assert notes() == [
        ["closed"],
        ["stop", "a", pid, str(model == "forking"), "False"],
        ["worker"],
    ]
    assert "srvkit_server_stop of plugin watcher.py failed; everything else goes on" in program.log
    assert "LookupError: no matter" in program.log


def test_hook_server_stop_is_not_called_where_server_start_was_not(watched, notes):
    program = watched(
        """
        @hookimpl
        def srvkit_worker_start():
            note("worker")
            raise LookupError

        @hookimpl
        def srvkit_server_start():
            note("start")

        @hookimpl
        def srvkit_server_stop():
            note("stop")
        """
    )
    assert program.ended() == 3
    assert notes() == [["worker"]]


@pytest.mark.parametrize("model", MODELS)
def test_hook_worker_start(model, watched, worker, notes):
    """Called once in the process, in its main thread, with the worker, before any server starts."""
    program = watched(
        """
        @hookimpl
        def srvkit_worker_start(worker):
            note("worker", place(), worker.pid == os.getpid(), *[server.name for server in worker.servers])

        @hookimpl
        def srvkit_server_start():
            note("server")
        """,
        model,
    )
    pid = worker(program)
    assert program.end() == 0
    assert notes() == [["worker", pid, "True", "True", "a"], ["server"]]


@pytest.mark.parametrize("model", MODELS)
def test_hook_worker_stop(model, watched, worker, notes):
    """Called once in the main thread after all servers; an exception is logged, the end is as clean."""
    program = watched(
        """
        @hookimpl
        def srvkit_server_stop():
            note("server")

        @hookimpl
        def srvkit_worker_stop(worker):
            note("worker", place())
            raise LookupError("no matter")
        """,
        model,
    )
    pid = worker(program)
    assert program.end() == 0
    assert notes() == [["server"], ["worker", pid, "True"]]
    assert "srvkit_worker_stop of plugin watcher.py failed; everything else goes on" in program.log


@pytest.mark.parametrize("model", MODELS)
def test_hook_verify_request(model, watched, worker, notes, ask):
    """Any False refuses; called in the loop's thread, before anything exists for the connection."""
    program = watched(
        """
        count = 0
        loop = set()

        @hookimpl
        def srvkit_server_start():
            loop.add(threading.get_ident())

        @hookimpl
        def srvkit_verify_request(server, request, client_address):
            global count
            count += 1
            note("verify", server.name, os.getpid(), threading.get_ident() in loop, request.family.name)
            if count == 2:
                return False
            if count == 3:
                raise LookupError("cannot say")
            return None if count == 1 else 0

        @hookimpl
        def srvkit_connection_open():
            note("open")

        @hookimpl
        def srvkit_error(error):
            note("error", type(error).__name__)
        """,
        model,
    )
    pid = worker(program)
    answers = []
    for _ in range(4):
        try:
            answers.append(ask(b"hello\n"))
        except ConnectionError:  # closed with what was sent unread
            answers.append(b"")
    assert answers == [b"hello\n", b"", b"", b"hello\n"]
    assert program.end() == 0
    verify = ["verify", "a", pid, "True", "AF_UNIX"]
    assert notes() == [verify, ["open"], verify, verify, ["error", "LookupError"], verify, ["open"]]
    assert "LookupError: cannot say" in program.log


def test_hook_verify_request_refuses_a_datagram(watched, ask, notes, client, tmp_path):
    program = watched(
        """
        @hookimpl
        def srvkit_verify_request(request):
            note(request[0].decode())
            return request[0] == b"yes"
        """,
        listen="unixgram:a.sock",
    )
    program.addresses("a")
    with client("unixgram:a.sock", tmp_path) as refused:
        refused.send(b"no")
        assert ask(b"yes", "unixgram:a.sock") == b"yes\n"
        refused.setblocking(False)
        with pytest.raises(BlockingIOError):
            refused.recv(100)
    assert program.end() == 0
    assert notes() == [["no"], ["yes"]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("handler", ["watched", "blocking"])
def test_hook_connection_open(handler, model, watched, worker, notes, ask):
    """Called where the handler runs; what it raises is logged and the connection goes on."""
    program = watched(
        """
        @hookimpl
        def srvkit_connection_open(server, client_address):
            note(server.name, repr(client_address), os.getpid(), threading.get_ident())
            raise LookupError("no matter")

        class Told(Echo):
            def __init__(self, *args):
                note("handler", os.getpid(), threading.get_ident())
                super().__init__(*args)

        class BlockingTold(Blocking):
            def setup(self):
                note("handler", os.getpid(), threading.get_ident())

        @hookimpl(specname="srvkit_handlers")
        def more():
            return {"told-watched": Told, "told-blocking": BlockingTold}
        """,
        model,
        f"told-{handler}",
    )
    pid = worker(program)
    assert ask(b"hello\n") == b"hello\n"
    assert program.end() == 0
    (name, address, *where), (_, *handled) = notes()
    assert (name, address) == ("a", "''")
    assert where == handled
    assert (where[0] == pid) is (model != "forking")
    assert "srvkit_connection_open of plugin watcher.py failed" in program.log


CLOSE = """
@hookimpl
def srvkit_connection_open():
    note("open", os.getpid())

@hookimpl
def srvkit_connection_close(server, client_address, outcome, seconds, bytes_in, bytes_out):
    note("close", os.getpid(), server.name, outcome, 0 <= seconds < 60, bytes_in, bytes_out)
    raise LookupError("no matter")

@hookimpl
def srvkit_error():
    note("error", os.getpid())
"""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("handler", "data", "outcome", "counts"),
    [
        ("watched", b"hello\nyou\n", "eof", ["10", "10"]),
        ("watched", b"hello\nyo", "truncated", ["8", "6"]),
        ("watched", b"fail\n", "error", ["5", "0"]),
        ("blocking", b"hello", "closed", ["5", "5"]),
        ("blocking", b"", "eof", ["0", "0"]),
    ],
)
def test_hook_connection_close(handler, data, outcome, counts, model, watched, worker, notes, ask):
    """Called exactly once for each open, in the same process, with outcome, seconds and bytes."""
    program = watched(CLOSE, model, handler)
    pid = worker(program)
    ask(data)
    assert program.end() == 0
    opened, *errors, closed = notes()
    assert opened[0] == "open"
    assert errors == ([["error", opened[1]]] if outcome == "error" else [])
    assert closed == ["close", opened[1], "a", outcome, "True", *counts]
    assert (opened[1] == pid) is (model != "forking")
    assert "srvkit_connection_close of plugin watcher.py failed" in program.log


@pytest.mark.parametrize("model", MODELS)
def test_hook_connection_close_of_a_datagram(model, watched, notes, ask):
    program = watched(CLOSE, model, listen="unixgram:a.sock")
    program.addresses("a")
    assert ask(b"hello", "unixgram:a.sock") == b"hello\n"
    assert program.end() == 0
    (_, opener), closed = notes()
    assert closed[:5] == ["close", opener, "a", "closed", "True"]
    assert closed[5] == "5"


@pytest.mark.parametrize("model", MODELS)
def test_hook_error(model, watched, notes, ask):
    """Called where the handler ran, with what it raised, and not for what the peer did."""
    program = watched(
        """
        @hookimpl
        def srvkit_connection_open():
            note("open", os.getpid(), threading.get_ident())

        @hookimpl
        def srvkit_error(server, client_address, error):
            note("error", os.getpid(), threading.get_ident(), server.name, type(error).__name__, error)
            raise KeyError("no matter")
        """,
        model,
    )
    program.addresses("a")
    ask(b"cut short")
    ask(b"fail\n")
    assert program.end() == 0
    (_, *_first), (_, *where), (_, *told) = notes()
    if model == "pool":
        where[1] = told[1]  # a message handler's connection is no single thread's there
    assert told == [*where, "a", "LookupError", "as", "wished"]
    assert "LookupError: as wished" in program.log
    assert "srvkit_error of plugin watcher.py failed" in program.log


def test_a_plugin_that_fails_does_not_keep_another_from_being_told(watched, ask, tmp_path):
    (tmp_path / "other.py").write_text(
        "from srvkit import hookimpl\n"
        "@hookimpl\ndef srvkit_connection_close(outcome):\n    open('told', 'a').write(outcome)\n"
    )
    program = watched(
        """
        @hookimpl(tryfirst=True)
        def srvkit_connection_close():
            sys.exit("no matter")
        """,
        also='"other.py"',
    )
    program.addresses("a")
    ask(b"hello\n")
    assert program.end() == 0
    assert (tmp_path / "told").read_text() == "eof"
    assert "SystemExit: no matter" in program.log
