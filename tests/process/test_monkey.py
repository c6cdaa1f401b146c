"""A plugin that patches the standard library harms no server, and is let where it makes sense."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.process.conftest import Available, Managed

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]
SINGLE = pytest.mark.parametrize("arguments", [[], ["--single"]], ids=["supervised", "single"])

PATCHES = """
import select, threading, time
from srvkit import Lines, MessageHandler, hookimpl

def patch():
    from gevent import monkey
    monkey.patch_all()

if WHEN == "import":
    patch()

met = threading.Event()

class Patch(MessageHandler):
    framing = Lines()

    @classmethod
    def startup(cls, server):
        if WHEN == "startup":
            patch()

    def handle_message(self, message):
        if message == b"patch":
            patch()
        elif message == b"wait":
            self.send(b"waiting")
            with threading.Lock():
                met.wait()
        elif message == b"meet":
            met.set()
        elif message == b"patched":
            from gevent import monkey
            return str(monkey.is_module_patched("select")).encode()
        return message

@hookimpl
def srvkit_handlers():
    return {"patch": Patch}
"""
NOTE = (
    "gevent.monkey patches nothing here, only under concurrency = 'gevent', and when plugins are imported ("
)


def server(model: str, name: str = "a") -> str:
    return f'[server.{name}]\nlisten = "unix:{name}.sock"\nhandler = "patch"\nconcurrency = "{model}"\n'


@pytest.fixture
def patching(managed: Managed, available: Available) -> Callable[..., Managed]:
    """`patching(when, servers, …)`: a srvkit with a handler that calls `gevent.monkey.patch_all`."""

    def begin(when: str, servers: str, *arguments: str):
        available("gevent")
        managed.write(servers, f"WHEN = {when!r}\n{PATCHES}")
        return managed.begin(*arguments)

    return begin


def serves(managed, address: str = "unix:a.sock") -> None:
    with managed.connect(address) as one, one.makefile("rwb", buffering=0) as file:
        for number in range(3):
            file.write(b"%d\n" % number)
            assert file.readline() == b"%d\n" % number
    assert managed.answer(b"hello", address) == b"hello\n"


@SINGLE
@pytest.mark.parametrize("when", ["import", "startup", "message"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_serves_on(model, when, arguments, patching):
    managed = patching(when, server(model), *arguments)
    if when == "message":
        assert managed.answer(b"patch", "unix:a.sock") == b"patch\n"
    serves(managed)
    let = when == "import" and model == "gevent"
    assert managed.answer(b"patched", "unix:a.sock") == str(let).encode() + b"\n"
    if not arguments:
        managed.reload()
        serves(managed)
    assert managed.program.end() == 0
    assert (NOTE in managed.program.log) is not let
    assert "ERROR" not in managed.program.log


@SINGLE
def test_under_gevent_what_is_patched_lets_others_run(arguments, patching):
    managed = patching("import", server("gevent"), *arguments)
    with managed.talk(b"wait", "unix:a.sock") as waiting:
        assert waiting.readline() == b"waiting\n"
        assert managed.answer(b"meet", "unix:a.sock") == b"meet\n"
        assert waiting.readline() == b"wait\n"
    assert managed.program.end(signal.SIGINT) == 0


def test_a_process_with_other_models_is_not_patched(patching):
    managed = patching("import", server("gevent") + server("threading", "b"), "--single")
    for address in ("unix:a.sock", "unix:b.sock"):
        serves(managed, address)
        assert managed.answer(b"patched", address) == b"False\n"
    assert managed.program.end() == 0


def test_each_worker_has_its_own(patching):
    managed = patching("import", server("gevent") + server("threading", "b"))
    assert managed.answer(b"patched", "unix:a.sock") == b"True\n"
    assert managed.answer(b"patched", "unix:b.sock") == b"False\n"


def test_check_names_the_line(managed, available):
    available("gevent")
    managed.write(server("event"), f"WHEN = 'import'\n{PATCHES}")
    checked = managed.command("check")
    assert checked.returncode == 0
    assert f"note: {NOTE}{managed.folder}/plugin.py:8)\n" in checked.stdout


@pytest.mark.parametrize("model", ["threading", "gevent"])
@pytest.mark.parametrize(
    ("patch", "named"),
    [
        ("import select; del select.epoll", "select.epoll"),
        ("import threading; threading.get_ident = lambda: 1", "threading.get_ident"),
        (
            "import _thread, time; _thread.start_new_thread = time.sleep = print",
            "_thread.start_new_thread, time.sleep",
        ),
    ],
)
def test_what_does_not_ask_is_refused_with_its_name(patch, named, model, managed, available):
    available(model)
    managed.write(server(model), f"WHEN = 'never'\n{PATCHES}\n{patch}\n")
    for command in (["check"], ["run"], ["run", "--single"]):
        done = managed.command(*command)
        assert done.returncode == 3
        assert done.stderr == (
            f"srvkit: plugin plugin.py: cannot be imported: it changes {named} of the standard library: "
            "that is the process's own\n"
        )
