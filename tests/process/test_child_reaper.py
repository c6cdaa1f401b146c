"""Forked children of the supervisor: their ends are heard of once, and nobody else's are taken."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

from srvkit.fork import fork
from srvkit.process.child import CANNOT_BOOT, ending
from srvkit.process.supervisor.child_reaper import ChildReaper
from tests.conftest import Eventually

PATIENCE = 30


class Family(ChildReaper):
    """Children, and how they ended; `heard(count)` reaps until so many ends came."""

    def __init__(self, eventually: Eventually) -> None:
        super().__init__()
        self.ends: list[tuple[str, int]] = []
        self._eventually = eventually

    def begin(self, main: Callable[[], int], name: str = "one") -> int:
        return self.fork(main, lambda status: self.ends.append((name, status)))

    def heard(self, count: int = 1) -> list[tuple[str, int]]:
        self._eventually(lambda: self.reap() or len(self.ends) >= count)
        return self.ends


@pytest.fixture
def family(eventually: Eventually) -> Iterator[Family]:
    """Children that are all gone with the test."""
    family = Family(eventually)
    yield family
    for pid in list(family._ends):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: family.reap() or not family)


@pytest.mark.parametrize(("code", "status"), [(3, 3), (2**70, 255), (-1, 255), ("words", 1)])
def test_a_child_that_exits_ends_whatever_it_says(code, status, family):
    def main():
        raise SystemExit(code)

    family.begin(main)
    assert family.heard() == [("one", status)]


def test_a_child_ends_with_what_its_main_returns(family):
    pid = family.begin(lambda: 7)
    assert pid in family and len(family) == 1
    assert family.heard() == [("one", 7)]
    assert pid not in family and not family
    family.reap()
    assert family.ends == [("one", 7)]


@pytest.mark.parametrize(("code", "status"), [(5, 5), (None, 1), ("a word", 1)])
def test_exiting_is_as_good_as_returning(family, code, status):
    family.begin(lambda: sys.exit(code))
    assert family.heard() == [("one", status)]


def test_a_main_that_breaks_is_told_apart_and_never_returns_here(family, caplog):
    def main():
        raise LookupError("as wished")

    family.begin(main)
    assert family.heard() == [("one", CANNOT_BOOT)]


def test_a_signal_shows_as_its_negative_number(family):
    pid = family.begin(lambda: signal.pause() or 0)
    family.signal(pid, signal.SIGKILL)  # the only one that is not held back there
    assert family.heard() == [("one", -signal.SIGKILL)]


def test_signals_are_held_back_when_it_begins_and_as_before_in_the_parent(family):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    family.begin(lambda: len(signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert family.heard() == [("one", 2)]


def test_all_that_have_ended_are_reaped_and_the_rest_stays(family):
    living = family.begin(lambda: signal.pause() or 0, "living")
    pids = [family.begin(lambda number=number: number, str(number)) for number in range(5)]
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    family.reap()
    assert family.ends == [(str(number), number) for number in range(5)]
    assert living in family


def test_others_children_are_left_to_them(family):
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has waited
        family.begin(lambda: 0)
        family.heard()
        assert process.wait(PATIENCE) == 3


def test_a_child_that_somebody_else_has_waited_for_is_gone_as_well(family):
    pid = family.begin(lambda: 3)
    os.waitpid(pid, 0)
    family.reap()
    assert [name for name, _ in family.ends] == ["one"]


def test_no_signal_goes_to_a_number_that_is_not_a_childs(family):
    pid = family.begin(lambda: 0)
    family.heard()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        family.signal(other.pid, signal.SIGKILL)
        family.signal(pid, signal.SIGKILL)
        other.communicate(b"\n", PATIENCE)
        assert other.returncode == 0
    finally:
        other.kill()
        other.wait()


def test_a_child_that_was_forked_before_can_be_adopted(family):
    pid = fork()
    if pid == 0:
        os._exit(9)
    family.adopt(pid, lambda status: family.ends.append(("adopted", status)))
    assert family.heard() == [("adopted", 9)]


def test_warnings_as_errors_lose_no_child_beside_threads(family):
    """Python warns of such a fork, from 3.15 on after it: its parent must know the child all the same."""
    done = threading.Event()
    beside = threading.Thread(target=done.wait)
    beside.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pid = family.begin(lambda: 7)
        assert pid in family
        assert family.heard() == [("one", 7)]
    finally:
        done.set()
        beside.join()


def test_what_was_printed_before_is_printed_once(run_code):
    program = run_code(
        "import os\n"
        "from srvkit.process.supervisor.child_reaper import ChildReaper\n"
        "print('before', end=' ')\n"
        "children = ChildReaper()\n"
        "pid = children.fork(lambda: print('child', end=' ') or 0, print)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "children.reap()\n"
    )
    assert program.ended() == 0
    assert program.log == "before child 0\n"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (78, "ended with status 78"),
        (-9, "was killed by SIGKILL"),
        (-40, "was killed by signal 40"),
    ],
)
def test_an_end_in_words(status, words):
    assert ending(status) == words


@pytest.mark.parametrize("call", ["kill", "waitpid"])
def test_a_child_for_which_there_was_no_memory_is_no_zombie_for_good(call, monkeypatch, eventually):
    """Nobody knows it; it is ended, and where that fails, too, reaped when it has ended."""

    class Full(dict):
        def __setitem__(self, pid, ended):
            pids.append(pid)
            monkeypatch.setattr(os, call, short)
            raise MemoryError

    def short(*arguments):
        monkeypatch.undo()
        raise MemoryError

    pids: list[int] = []
    reaper = ChildReaper()
    reaper._ends = Full()
    with pytest.raises(MemoryError):
        reaper.fork(lambda: 0, lambda status: None)
    reaper._ends = {}

    def is_gone():
        with contextlib.suppress(MemoryError):
            reaper.reap()
        return not os.path.exists(f"/proc/{pids[0]}")

    eventually(is_gone)
