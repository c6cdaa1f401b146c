"""A handler with `one_process`: the next worker is ready, and begins when the one before it has ended."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.conftest import TALK

MODELS = ["serial", "threading", "pool", "event", "asyncio", "gevent"]

LIVES = """
    one_process = True
    framing = Lines()

    @classmethod
    def startup(cls, server):
        note("begins")

    @classmethod
    def shutdown(cls, server):
        note("ends")
"""
NOTE = """
def note(what):
    with open("lives", "a") as file:
        file.write(f"{VERSION.decode()} {what}\\n")
"""


def plugin(version: str = "one") -> str:
    begin, rest = TALK.split("    framing = Lines()\n", 1)
    rest = rest.split("    def handle_message", 1)[1]
    whole = f"{begin}{LIVES}\n    def handle_message{rest}{NOTE}"
    return whole.replace('VERSION = b"one"', f'VERSION = b"{version}"')


def server(model: str, more: str = "") -> str:
    return f'[server.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\nconcurrency = "{model}"\n{more}\n'


def states(managed: Any) -> list[str]:
    return sorted(worker["state"] for worker in managed.server()["workers"])


def lives(managed: Any) -> list[str]:
    path: Path = managed.folder / "lives"
    return path.read_text().splitlines()


@contextlib.contextmanager
def held(managed: Any) -> Iterator[Any]:
    """A connection whose handler waits at the gate that is given, and how its answer is read."""
    gate = managed.gate("release")
    with managed.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(b"hold\n")
        assert file.readline() == b"holding\n"
        gate.reached()
        yield gate, file


@pytest.mark.parametrize("model", MODELS)
def test_there_are_never_two_over_a_reload(model: str, managed: Any, available: Any, eventually: Any) -> None:
    available(model)
    managed.write(server(model), plugin())
    managed.begin()
    with held(managed) as (gate, file):
        managed.write(server(model), plugin("two"))
        managed.reload()
        assert states(managed) == ["ready", "retiring"]
        with managed.talk() as waiting:  # nobody accepts it yet, and nobody refuses it
            assert lives(managed) == ["one begins"]
            gate.open()
            assert file.readline().startswith(b"hold one ")
            assert waiting.readline().startswith(b"hello two ")
    eventually(lambda: states(managed) == ["ready"])
    assert lives(managed) == ["one begins", "one ends", "two begins"]
    assert managed.program.end() == 0
    assert lives(managed)[3:] == ["two ends"]


def test_there_are_never_two_where_one_has_served_enough(managed: Any, eventually: Any) -> None:
    managed.write(server("event", "limits = { max_requests = 1 }"), plugin())
    managed.begin()
    before = managed.workers()
    eventually(lambda: managed.answer() and managed.workers() not in (before, []))
    eventually(lambda: states(managed) == ["ready"])
    assert managed.program.end() == 0
    assert lives(managed) == ["one begins", "one ends"] * (len(lives(managed)) // 2)


def test_one_that_waits_is_alive(managed: Any, eventually: Any) -> None:
    managed.write(server("threading"), plugin(), 'heartbeat_timeout = "500ms"')
    managed.begin()
    with held(managed) as (gate, _):
        managed.reload()
        (pid,) = managed.workers()
        eventually(lambda: time.time() - managed.server()["workers"][0]["since"] > 1.5)
        assert managed.workers() == [pid]
        gate.open()
    assert "killed" not in managed.program.log


def test_one_that_waits_is_stopped_like_any_other(managed: Any) -> None:
    managed.write(server("threading"), plugin())
    managed.begin()
    with held(managed) as (gate, _):
        managed.reload()
        managed.signal(signal.SIGTERM)
        managed.program.wait_for("SIGTERM: stopping")
        gate.open()
        assert managed.program.process.wait(20) == 0
    assert lives(managed) == ["one begins", "one ends"]


def test_one_that_waits_is_replaced_like_any_other(managed: Any, eventually: Any) -> None:
    managed.write(server("threading"), plugin())
    managed.begin()
    with held(managed) as (gate, file):
        for version in ("two", "three"):
            managed.write(server("threading"), plugin(version))
            managed.reload()
        gate.open()
        assert file.readline().startswith(b"hold one ")
    eventually(lambda: managed.answer().startswith(b"hello three "))
    assert managed.program.end() == 0
    assert lives(managed) == ["one begins", "one ends", "three begins", "three ends"]


def test_there_are_never_two_over_an_upgrade(managed: Any, eventually: Any) -> None:
    managed.write(server("threading"), plugin())
    managed.begin()
    with held(managed) as (gate, file):
        managed.write(server("threading"), plugin("two"))
        managed.signal(signal.SIGUSR2)
        managed.program.wait_for("reloaded: this is generation 2$")
        assert lives(managed) == ["one begins"]
        gate.open()
        assert file.readline().startswith(b"hold one ")
    eventually(lambda: managed.answer().startswith(b"hello two "))
    assert managed.program.end() == 0
    assert lives(managed) == ["one begins", "one ends", "two begins", "two ends"]


def test_one_that_cannot_begin_is_tried_again(managed: Any, eventually: Any) -> None:
    """The one before it is gone by then."""
    managed.write(server("threading"), plugin())
    managed.begin()
    broken = plugin("two").replace('note("begins")', 'note("begins"); open("missing").close()')
    managed.write(server("threading"), broken)
    managed.reload()
    managed.program.wait_for("FileNotFoundError: .*'missing'")
    (managed.folder / "missing").touch()
    eventually(lambda: managed.answer().startswith(b"hello two "))
    assert managed.program.end() == 0
