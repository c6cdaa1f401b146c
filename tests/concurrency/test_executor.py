"""Threads that are kept for a while, without any server: which one takes a job, who waits, who goes home."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from srvkit.concurrency import executor
from srvkit.concurrency.executor import BusyThreads, NoThreads, ThreadExecutor
from tests.conftest import Eventually, RunCode

PATIENCE = 30
Make = Callable[..., ThreadExecutor]
COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


class Gate:
    """A job that says when it has begun, in which thread, and waits until it may end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.open.wait(PATIENCE)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`make(most=2)`: an executor whose threads are gone with the test; no idle one leaves by itself."""
    monkeypatch.setattr(executor, "PATIENCE", 3600)
    made: list[ThreadExecutor] = []

    def make(most: int | None = None, busy: BusyThreads | None = None, name: str = "") -> ThreadExecutor:
        made.append(ThreadExecutor(True, busy or NoThreads(), most, name))
        return made[-1]

    yield make
    for one in made:
        one.retire()
        one.join()
        assert one.size == 0


def begun(one: ThreadExecutor) -> Gate:
    """Have a job begin, and return it."""
    gate = Gate()
    one.run(gate)
    assert gate.begun.wait(PATIENCE)
    return gate


def rests(one: ThreadExecutor, count: int, eventually: Eventually) -> None:
    """Wait until so many threads have nothing to do."""
    eventually(lambda: len(one._idle) == count)


# Who takes a job


def test_a_thread_that_is_idle_takes_the_next_job(make: Make, eventually: Eventually) -> None:
    one = make()
    threads = set()
    for _ in range(5):
        gate = begun(one)
        gate.open.set()
        threads.add(gate.thread)
        rests(one, 1, eventually)
    assert len(threads) == one.size == 1


def test_the_last_to_rest_is_the_first_to_work(make: Make, eventually: Eventually) -> None:
    one = make()
    gates = [begun(one) for _ in range(3)]
    for count, gate in enumerate(gates, 1):
        gate.open.set()
        rests(one, count, eventually)
    again = begun(one)
    again.open.set()
    assert again.thread is gates[-1].thread


def test_no_job_waits_behind_one_that_blocks(make: Make) -> None:
    one = make()
    first, second, third = gates = [Gate(), Gate(), Gate()]
    for gate in gates:
        one.add(gate)
    assert one.has_waiting and one.size == 0  # nothing runs before it is said
    one.start()
    for gate in gates:
        assert gate.begun.wait(PATIENCE)
    assert len({first.thread, second.thread, third.thread}) == 3
    assert not one.has_waiting
    for gate in gates:
        gate.open.set()


def test_jobs_beyond_the_bound_wait_for_the_first_that_is_free(make: Make) -> None:
    one = make(most=2)
    busy = [begun(one), begun(one)]
    order: list[int] = []
    done = threading.Event()
    for number in range(3):
        one.run(order.append, number)
    one.run(done.set)
    assert one.has_waiting and one.size == 2 and order == []
    busy[1].open.set()
    assert done.wait(PATIENCE)
    assert order == [0, 1, 2]
    assert not busy[0].open.is_set()
    busy[0].open.set()


def test_each_job_has_a_fresh_context(make: Make, eventually: Eventually) -> None:
    one = make(most=1)
    seen: list[str] = []

    def paint() -> None:
        seen.append(COLOUR.get())
        COLOUR.set("red")

    token = COLOUR.set("blue")
    for _ in range(2):
        one.run(paint)
    eventually(lambda: len(seen) == 2)
    COLOUR.reset(token)
    assert seen == ["none", "none"]


def test_it_knows_its_own_threads(make: Make, eventually: Eventually) -> None:
    one, other = make(name=" of one"), make()
    seen: list[Any] = []

    def look() -> None:
        seen.append((one.has_this_thread(), other.has_this_thread(), threading.current_thread().name))

    one.run(look)
    eventually(lambda: seen)
    assert seen[0][:2] == (True, False)
    assert seen[0][2].endswith(" of one")
    assert not one.has_this_thread()


# Jobs that fail


def test_what_a_job_raises_ends_its_thread_and_not_what_waits(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: raised.append(told.exc_value))
    one = make(most=1)
    first, done = begun(one), threading.Event()

    def fail() -> None:
        raise LookupError("as wished")

    one.run(fail)
    one.run(done.set)
    first.open.set()
    assert done.wait(PATIENCE)
    assert first.thread is not None
    first.thread.join(PATIENCE)
    assert [str(one) for one in raised] == ["as wished"]
    assert one.size == 1


def no_more(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_without_any_thread_the_job_is_given_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = BusyThreads()
    one = make(busy=busy)
    ran: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        with pytest.raises(RuntimeError, match="can't start"):
            one.run(ran.append, 1)
    assert (one.size, one.has_waiting, len(busy)) == (0, False, 0)
    gate = begun(one)  # later there are some again
    gate.open.set()
    assert ran == []


def test_where_others_are_at_work_they_take_it_instead(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    gate, done = begun(one), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        one.run(done.set)
    assert one.has_waiting and one.size == 1
    gate.open.set()
    assert done.wait(PATIENCE)


# Who rests, and who goes home


class Sweeper:
    """Counts how often it was asked to come."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)

    def __call__(self) -> None:
        self.asked.release()


def test_who_rests_asks_for_a_sweep_once(
    make: Make, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    one.sweeper = sweeper = Sweeper()
    gates = [begun(one) for _ in range(2)]
    for count, gate in enumerate(gates, 1):
        gate.open.set()
        rests(one, count, eventually)
    assert sweeper.asked.acquire(timeout=PATIENCE)
    assert not sweeper.asked.acquire(blocking=False)
    left = one.sweep()
    assert left is not None and 3500 < left <= 3600
    assert one.size == 2
    monkeypatch.setattr(executor, "PATIENCE", 0)
    assert one.sweep() is None
    one.join()
    assert one.size == 0
    assert one.sweep() is None


def test_after_a_sweep_that_found_nobody_the_next_who_rests_asks_again(
    make: Make, eventually: Eventually
) -> None:
    one = make()
    one.sweeper = sweeper = Sweeper()
    gate = begun(one)
    assert one.sweep() is None
    gate.open.set()
    assert sweeper.asked.acquire(timeout=PATIENCE)
    rests(one, 1, eventually)


def test_without_a_sweeper_whoever_has_waited_in_vain_goes_home(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    gate = begun(one)
    monkeypatch.setattr(executor, "PATIENCE", 0.001)
    gate.open.set()
    assert gate.thread is not None
    gate.thread.join(PATIENCE)
    assert one.size == 0


def test_without_the_sweeper_that_there_was_the_idle_go_home(make: Make, eventually: Eventually) -> None:
    one = make()
    one.sweeper = Sweeper()
    idle, busy = begun(one), begun(one)
    idle.open.set()
    rests(one, 1, eventually)
    one.leave_to_themselves()
    assert idle.thread is not None
    idle.thread.join(PATIENCE)
    assert one.size == 1
    busy.open.set()


def test_when_it_retires_the_busy_finish_what_waits(make: Make, eventually: Eventually) -> None:
    one = make(most=2)
    idle, busy = begun(one), begun(one)
    idle.open.set()
    rests(one, 1, eventually)
    one.retire()
    assert idle.thread is not None and busy.thread is not None
    idle.thread.join(PATIENCE)
    assert one.size == 1
    done: list[int] = []
    one.add(done.append, 1)
    busy.open.set()
    busy.thread.join(PATIENCE)
    assert done == [1]
    assert one.size == 0


def test_no_more_than_so_many_rest(
    make: Make, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "MOST_IDLE", 1)
    one = make()
    first, second = begun(one), begun(one)
    first.open.set()
    rests(one, 1, eventually)
    second.open.set()
    assert second.thread is not None
    second.thread.join(PATIENCE)
    assert one.size == len(one._idle) == 1


def test_a_thread_may_wait_for_all_others(make: Make) -> None:
    one = make()
    other, waited = begun(one), threading.Event()

    def wait() -> None:
        one.retire()
        one.join()
        waited.set()

    one.run(wait)
    other.open.set()
    assert waited.wait(PATIENCE)


def test_a_forked_child_begins_anew(run_code: RunCode) -> None:
    program = run_code(
        "import os, threading\n"
        "from srvkit.concurrency.executor import BusyThreads, ThreadExecutor\n"
        "from srvkit.fork import fork\n"
        "busy = BusyThreads()\n"
        "one = ThreadExecutor(False, busy, most=1)\n"
        "begun, go_on = threading.Event(), threading.Event()\n"
        "one.run(lambda: (begun.set(), go_on.wait()))\n"
        "begun.wait()\n"
        "one.run(print, 'of the parent')\n"
        "pid = fork()\n"
        "if pid == 0:\n"
        "    print('child', one.size, len(busy), one.has_waiting, flush=True)\n"
        "    done = threading.Event()\n"
        "    one.run(done.set)\n"
        "    print('child', done.wait(30), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "go_on.set()\n"
    )
    assert program.ended() == 0
    said = [line for line in program.log.splitlines() if "Warning" not in line and "fork()" not in line]
    assert said == ["child 0 0 False", "child True", "of the parent"]


# The threads that somebody waits for


def test_threads_are_busy_while_they_work(eventually: Eventually) -> None:
    busy = BusyThreads()
    one = ThreadExecutor(False, busy)
    gate = begun(one)
    assert list(busy) == [gate.thread] and busy[0] is gate.thread and len(busy) == 1
    gate.open.set()
    rests(one, 1, eventually)
    assert len(busy) == 0
    gate = begun(one)
    assert list(busy) == [gate.thread]
    one.retire()
    gate.open.set()
    busy.join()
    assert one.size == len(busy) == 0


def test_daemons_are_nobody_to_wait_for() -> None:
    busy = BusyThreads()
    busy.append(threading.Thread(daemon=True))
    assert len(busy) == 0
    thread = threading.Thread(daemon=False)
    busy.append(thread)
    assert list(busy) == [thread]
    busy.join()  # it has not begun: nothing to wait for


def test_those_who_have_ended_are_forgotten() -> None:
    busy = BusyThreads()
    go_on = threading.Event()
    ended, working, future = threading.Thread(), threading.Thread(target=go_on.wait), threading.Thread()
    busy.add(ended)
    busy.add(working)
    ended.start()
    ended.join()
    working.start()
    busy.append(future)
    assert list(busy) == [working, future]
    busy.remove(future)
    busy.remove(future)  # it is not there: no error
    assert busy.pop_all() == [working]
    assert len(busy) == 0
    go_on.set()
    working.join()


def test_who_waits_for_all_does_not_wait_for_itself() -> None:
    busy = BusyThreads()
    busy.add(threading.current_thread())
    busy.join()
    assert list(busy) == [threading.current_thread()]
