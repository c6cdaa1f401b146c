"""Each hook is called when, where and with what its specification says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from srvkit.plugins.manager import Plugins, make_manager
from tests.plugins.conftest import Ask, Notes, Watched

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


def test_hook_concurrency_has_its_mixin_in_front_of_the_server(
    watched: Watched, notes: Notes, ask: Ask
) -> None:
    program = watched(
        """
        from srvkit import ThreadingMixIn

        class Mine(ThreadingMixIn):
            def process_request(self, request, client_address):
                note("mine", self.name)
                super().process_request(request, client_address)

        @hookimpl
        def srvkit_concurrency():
            return {"mine": Mine}
        """,
        "mine",
    )
    program.addresses("a")
    assert ask(b"hello\n") == b"hello\n"
    assert program.end() == 0
    assert notes() == [["mine", "a"]]


def test_hook_framings_has_its_class_called_with_the_rest_of_the_table(
    watched: Watched, notes: Notes, ask: Ask
) -> None:
    program = watched(
        """
        from srvkit import Delimiter

        class Mine(Delimiter):
            def __init__(self, mark: str, times: int = 1, max_message: int | None = None):
                note("made", mark, times)
                super().__init__(mark.encode() * times, max_message)

        @hookimpl
        def srvkit_framings():
            return {"mine": Mine}
        """,
        more='framing = { name = "mine", mark = "*", times = 2 }',
    )
    program.addresses("a")
    assert ask(b"one**two*three**") == b"one**two*three**"
    assert program.end() == 0
    assert ["made", "*", "2"] in notes()


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
def test_hook_server_start_keeps_a_server_from_starting(model: str, watched: Watched, notes: Notes) -> None:
    program = watched(
        """
        @hookimpl
        def srvkit_server_start(server):
            note("start", server.name)
            raise LookupError("not today")

        @hookimpl
        def srvkit_server_stop(server):
            note("stop", server.name)
        """,
        model,
    )
    assert program.ended() == 3
    assert "LookupError: not today" in program.log
    assert "listening on" not in program.log
    assert notes() == [["start", "a"]]


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


def test_hook_server_stop_is_not_called_where_server_start_was_not(watched: Watched, notes: Notes) -> None:
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
