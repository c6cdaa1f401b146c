"""What a plugin or handler does to its process harms no connection but its own. The README has the table."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]
SURVIVED = {
    "socket.setdefaulttimeout": "import socket; socket.setdefaulttimeout(0.01)",
    "socket.setdefaulttimeout, without waiting": "import socket; socket.setdefaulttimeout(0)",
    "signal.setitimer": "import signal\n"
    "for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):\n"
    "    signal.setitimer(timer, 0.001)\n"
    "for _ in range(200000): pass",
    "signal.pthread_sigmask": "from signal import *; pthread_sigmask(SIG_BLOCK, valid_signals())",
    "os.umask": "import os; os.umask(0o777)",
    "sys.setswitchinterval": "import sys; sys.setswitchinterval(1000)",
    "threading.stack_size": "import threading; threading.stack_size(1 << 16)",
    "asyncio": "import asyncio; asyncio.set_event_loop_policy(None)",  # before that: deprecated since 3.14
    "warnings.simplefilter": "import warnings; warnings.simplefilter('error')",
    "gc": "import gc; gc.disable(); gc.freeze()",
    "standard files": "import sys\nfor file in (sys.stdout, sys.stderr): file.close()\n"
    "sys.stdout = sys.stderr = sys.stdin = None",
    "os.environ": "import os; os.environ.clear()",
    "locale.setlocale": "import locale; locale.setlocale(locale.LC_ALL, 'C')",
    "faulthandler": "import faulthandler; faulthandler.disable()",
    "hooks": "import sys, threading\n"
    "threading.excepthook = sys.excepthook = sys.unraisablehook = lambda *_: 1 / 0",
    "os.nice": "import os; os.nice(1)",
    "atexit": "import atexit, time; atexit.register(lambda: 1 / 0); atexit.register(time.sleep, 1000)",
    "threads": "import sys, threading, time\n"
    "for target in (sys.exit, lambda: time.sleep(1000), lambda: 1 / 0):\n"
    "    threading.Thread(target=target).start()",
    "contexts": "import decimal, random; decimal.getcontext().prec = 1; random.seed(0)",
}
IN_A_CALL = {  # at import, refused or the plugin's own harm
    "os.chdir": "import os; os.chdir('/')",
    "signal.signal": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "signal.set_wakeup_fd": "import signal; signal.set_wakeup_fd(-1)",
    "sys.setrecursionlimit": "import sys; sys.setrecursionlimit(sys.getrecursionlimit() - 1)",
    "sys.path": "import sys; sys.path.clear()",
    "sys.exit": "import sys; sys.exit(3)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
}
REFUSED = {
    "the current folder": "import os; os.chdir('/')",
    "the handler of SIGTERM": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "the beginning of sys.path": "import sys; sys.path.clear()",
}

ACTS = """
from srvkit import Lines, MessageHandler, StreamRequestHandler, hookimpl

class Acts(MessageHandler):
    framing = Lines()

    @classmethod
    def startup(cls, server):
        for code in STARTUP.values():
            exec(code, {})

    def handle_message(self, message):
        if message.startswith(b"act "):
            exec(CALLS[message[4:].decode()], {})
        return message

class ClosesToo(MessageHandler):
    framing = Lines()

    def handle_message(self, message):
        if message.startswith(b"close"):
            self.request.close()
        return None if message == b"close" else message

class Closes(StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if line == b"close\\n":
            self.request.close()
        elif line == b"shut\\n":
            self.request.shutdown(2)
            self.request.close()
            self.wfile.close()
        else:
            self.wfile.write(line)

@hookimpl
def srvkit_handlers():
    return {"acts": Acts, "closes": Closes, "closes-too": ClosesToo}

for code in IMPORT.values():
    exec(code, {})
"""


def plugin(at_import: dict = {}, at_startup: dict = {}, in_calls: dict = {}) -> str:  # noqa: B006
    return f"IMPORT, STARTUP, CALLS = {at_import!r}, {at_startup!r}, {in_calls!r}\n{ACTS}"


def server(model: str, handler: str = "acts") -> str:
    return f'[server.a]\nlisten = "unix:a.sock"\nhandler = "{handler}"\nconcurrency = "{model}"\n'


def serves_and_stops(managed) -> None:
    before = managed.workers()
    for _ in range(3):
        assert managed.answer(b"hello") == b"hello\n"
    assert managed.workers() == before, managed.program.log
    managed.reload()
    assert managed.answer(b"hello") == b"hello\n"
    assert managed.program.end() == 0, managed.program.log


@pytest.mark.parametrize("model", MODELS)
def test_in_a_call(model, managed, available):
    available(model)
    managed.write(server(model), plugin(in_calls=SURVIVED | IN_A_CALL))
    managed.begin()
    before = managed.workers()
    others = []
    if model != "serial":  # which has one at a time
        others = [managed.connect() for _ in range(2)]
    for name in SURVIVED | IN_A_CALL:
        managed.answer(b"act " + name.encode())
        for other in others:
            other.sendall(b"still\n")
            assert other.recv(100) == b"still\n", name
        assert managed.answer(b"hello") == b"hello\n", name
        assert managed.workers() == before, f"{name}\n{managed.program.log}"
    for other in others:
        other.close()
    serves_and_stops(managed)


@pytest.mark.parametrize("when", ["at_import", "at_startup"])
@pytest.mark.parametrize("model", ["threading", "forking", "event", "gevent"])
def test_at_import_and_in_startup(model, when, managed, available):
    available(model)
    own = {} if when == "at_import" or model != "forking" else IN_A_CALL["signal.signal"]
    more = {"signals": own, "wakeup": IN_A_CALL["signal.set_wakeup_fd"]} if own else {}
    actions = SURVIVED | more
    if model == "forking":  # beside threads it serves nobody, and says so
        actions = {name: code for name, code in actions.items() if name != "threads"}
    managed.write(server(model), plugin(**{when: actions}))
    managed.begin()
    serves_and_stops(managed)


@pytest.mark.parametrize("what", REFUSED)
def test_what_belongs_to_the_process_is_refused(what, managed):
    managed.write(server("threading"), plugin(at_import={what: REFUSED[what]}))
    for command in ("check", "run"):
        done = managed.command(command)
        assert done.returncode == 3
        complaint = f"plugin plugin.py: cannot be imported: it changes {what}: that is the process's own"
        assert complaint in done.stderr


@pytest.mark.parametrize("model", ["serial", "threading", "pool", "forking", "gevent"])
def test_closing_the_request(model, managed, available):
    available(model)
    managed.write(server(model, "closes"), plugin())
    managed.begin()
    for line in (b"close", b"shut"):
        for _ in range(5):
            assert managed.answer(line) == b""
            assert managed.answer(b"hello") == b"hello\n"
    serves_and_stops(managed)
    assert managed.program.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("model", MODELS)
def test_closing_the_request_of_a_message_handler(model, managed, available):
    """The number of the closed descriptor is the next connection's, in the loop that watched it."""
    available(model)
    managed.write(server(model, "closes-too"), plugin())
    managed.begin()
    before = managed.workers()
    other = managed.connect() if model != "serial" else None  # which has one at a time
    for line in (b"close", b"close, and answer", b"close, and answer\nonce more"):
        for _ in range(3):
            assert managed.answer(line) == b""
            assert managed.answer(b"hello") == b"hello\n", managed.program.log
    if other:
        other.sendall(b"still\n")
        assert other.recv(100) == b"still\n"
        other.close()
    assert managed.workers() == before, managed.program.log
    serves_and_stops(managed)


def test_the_readme_has_a_row_for_each():
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    section = text[text.index("## What a handler does to its process") :]
    rows = section[: section.index("\n## ")]
    for name in SURVIVED | IN_A_CALL:
        for word in re.findall(r"[a-z]+\.[a-z_]+", name):
            assert f"`{word}" in rows, word
