"""The way to the next program, without any process: the check, its end, and when it takes over."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from srvkit.config.loader import from_table
from srvkit.process.supervisor import upgrade
from srvkit.process.supervisor.upgrade import Check, Upgrade


class Timer:
    def __init__(self, callback: Any) -> None:
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Shared:
    """A supervisor whose children do nothing by themselves."""

    def __init__(self) -> None:
        self.loop = self.children = self
        self.main: Any = None
        self.ended: Any = None
        self.signals: list[tuple[int, int]] = []
        self.timers: list[Timer] = []
        self.short_of: set[str] = set()

    def fork(self, main: Any, ended: Any) -> int:
        if "processes" in self.short_of:
            raise OSError("cannot fork a process")
        self.main, self.ended = main, ended
        return 77

    def call_later(self, seconds: float, callback: Any) -> Timer:
        if "memory" in self.short_of:
            raise MemoryError
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def signal(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))


class Notifier:
    def __init__(self) -> None:
        self.said: list[str] = []

    def reloading(self) -> None:
        self.said.append("reloading")

    def ready(self) -> None:
        self.said.append("ready")


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def parts(shared: Shared) -> Any:
    """The parts of a supervisor that has a configuration in force."""
    config, _ = from_table({"server": {"a": {"listen": "tcp://127.0.0.1:0", "handler": "echo"}}})
    current = SimpleNamespace(config=config)
    return SimpleNamespace(shared=shared, generations=SimpleNamespace(current=current), notifier=Notifier())


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the next program was started with; here it is never another one that goes on."""
    made: list[Any] = []

    @contextlib.contextmanager
    def handed_over(notifier: Notifier) -> Iterator[dict[str, str]]:
        yield {"for": "systemd"}

    monkeypatch.setattr(upgrade.reexec, "table_of", lambda parts: ("table", [3]))
    monkeypatch.setattr(upgrade.reexec, "execute", lambda *what: made.append(what))
    monkeypatch.setattr(upgrade.systemd, "handed_over", handed_over)
    return made


@pytest.fixture(autouse=True)
def _hear_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "srvkit.process")


# The stages


def test_a_check_comes_first_and_then_the_next_program(
    parts: Any, shared: Shared, executed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    one = Upgrade(parts, ["check"])
    one.go_on(is_free=True)
    assert shared.main is None  # nobody has asked for it
    one.begin()
    one.go_on(is_free=True)
    assert shared.main is not None
    one.go_on(is_free=True)
    assert executed == []
    shared.ended(0)
    assert executed == []  # only where steps are taken
    one.go_on(is_free=True)
    ((table, descriptors, environ, signals),) = executed
    assert (table, descriptors, environ) == ("table", [3], {"for": "systemd"})
    assert {signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2} <= set(signals)
    assert parts.notifier.said == ["reloading", "ready"]
    one.go_on(is_free=True)
    assert len(executed) == 1
    assert caplog.messages == [
        "USR2: the new installation checks the configuration",
        "the new installation takes over",
    ]


def test_it_waits_until_a_reload_is_over(parts: Any, shared: Shared, executed: list[Any]) -> None:
    one = Upgrade(parts, ["check"])
    one.begin()
    one.go_on(is_free=False)
    shared.ended(0)
    for _ in range(2):
        one.go_on(is_free=False)
        assert executed == []
    one.go_on(is_free=True)
    assert len(executed) == 1


def test_one_that_waits_is_checked_once_more(parts: Any, shared: Shared, executed: list[Any]) -> None:
    one = Upgrade(parts, ["check"])
    one.begin()
    one.go_on(is_free=False)
    shared.ended(0)
    one.go_on(is_free=False)
    shared.main = None
    one.begin()
    one.go_on(is_free=True)
    assert executed == [] and shared.main is not None
    shared.ended(3)
    one.go_on(is_free=True)
    assert executed == []


def test_while_it_is_checked_another_wish_is_the_same(
    parts: Any, shared: Shared, executed: list[Any]
) -> None:
    one = Upgrade(parts, ["check"])
    one.begin()
    one.go_on(is_free=True)
    ended, shared.main = shared.ended, None
    one.begin()
    one.go_on(is_free=True)
    assert shared.main is None
    ended(0)
    one.go_on(is_free=True)
    assert len(executed) == 1


def test_before_anything_is_in_force_there_is_nothing_to_replace(parts: Any, shared: Shared) -> None:
    parts.generations.current = None
    one = Upgrade(parts, ["check"])
    one.begin()
    one.go_on(is_free=True)
    assert shared.main is None


def test_a_check_that_fails_replaces_nothing_and_another_may_come(
    parts: Any, shared: Shared, executed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    one = Upgrade(parts, ["check"])
    for _ in range(2):
        one.begin()
        one.go_on(is_free=True)
        shared.ended(2)
        one.go_on(is_free=True)
    assert executed == []
    assert caplog.messages.count("the check ended with status 2, so nothing is replaced") == 2


@pytest.mark.parametrize("what", ["processes", "memory"])
def test_a_check_that_cannot_be_run_replaces_nothing(
    what: str, parts: Any, shared: Shared, executed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    shared.short_of.add(what)
    one = Upgrade(parts, ["check"])
    one.begin()
    one.go_on(is_free=True)
    assert "the check cannot be run, so nothing is replaced: " in caplog.text
    assert shared.signals == ([(77, signal.SIGKILL)] if what == "memory" else [])
    one.go_on(is_free=True)
    assert executed == []


def test_a_program_that_cannot_take_over_leaves_this_one_serving(
    parts: Any,
    shared: Shared,
    executed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("no such program")

    monkeypatch.setattr(upgrade.reexec, "execute", fails)
    one = Upgrade(parts, ["check"])
    one.begin()
    one.go_on(is_free=True)
    shared.ended(0)
    one.go_on(is_free=True)
    assert "nothing is replaced: OSError: no such program" in caplog.text
    assert parts.notifier.said == ["reloading", "ready"]


# The check


def check(shared: Any) -> Check:
    return Check(["check"], shared, 5.0)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_a_failed_check_has_printed_is_logged(shared: Shared, caplog: pytest.LogCaptureFixture) -> None:
    before = open_files()
    one = check(shared)
    assert not one.is_over
    os.write(one._output, b"srvkit.toml:3: no\nand more\n")
    shared.ended(-signal.SIGKILL)
    assert one.is_over and shared.timers[0].is_cancelled
    assert not one.conclude()
    assert caplog.messages == [
        "srvkit.toml:3: no",
        "and more",
        "the check was killed by SIGKILL, so nothing is replaced",
    ]
    assert open_files() <= before


def test_what_a_good_one_has_printed_is_nobodys_business(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_files()
    one = check(shared)
    os.write(one._output, b"fine\n")
    shared.ended(0)
    assert one.conclude()
    assert caplog.messages == [] and open_files() <= before


def test_a_check_has_its_time(shared: Shared) -> None:
    one = check(shared)
    shared.timers[0].callback()
    assert shared.signals == [(77, signal.SIGKILL)]
    shared.ended(-signal.SIGKILL)
    assert not one.conclude()


@pytest.mark.parametrize("what", ["processes", "memory"])
def test_one_that_cannot_begin_leaves_nothing_open(what: str, shared: Shared) -> None:
    before = open_files()
    shared.short_of.add(what)
    with pytest.raises((OSError, MemoryError)):
        check(shared)
    assert open_files() <= before
