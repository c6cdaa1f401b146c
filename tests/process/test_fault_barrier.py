"""The supervisor's loop goes on whatever its callbacks raise."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from srvkit.process.supervisor import fault_barrier as boundary
from srvkit.process.supervisor.fault_barrier import GuardedLoop, attempt, in_words


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedLoop]:
    monkeypatch.setattr(boundary, "AGAIN", 0.02)
    steady = GuardedLoop()
    with steady:
        yield steady


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


class Breaking:
    """Raises so many times when it is called, and then counts."""

    def __init__(self, times, error):
        self.raises, self.error, self.called = times, error, 0

    def __call__(self):
        self.called += 1
        if self.called <= self.raises:
            raise self.error


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), MemoryError(), UnicodeError("no"), KeyError("event")]
)
def test_what_one_callback_raises_keeps_no_other_from_being_called(loop, pipe, error, caplog):
    read, write = pipe
    first, second = Breaking(1, error), Breaking(0, None)
    os.write(write, b"x")
    loop.watch(read, first)
    loop.call_soon(Breaking(1, error))
    loop.call_soon(second)
    loop.call_later(0, second)
    while second.called < 2 or first.called < 2:
        loop.wait()
    assert len([one for one in caplog.records if one.levelname == "ERROR"]) == 2


@pytest.mark.parametrize("noted", [False, True])
def test_after_a_turn_in_which_something_raised_the_loop_recovers(noted, loop):
    loop.recover = Breaking(1, MemoryError())
    step = Breaking(1, MemoryError())
    loop.call_soon((lambda: attempt("a step", step)) if noted else step)
    loop.wait(0)
    assert loop.recover.called == 1
    for _ in range(2):  # what has failed itself comes once more
        loop.call_soon(lambda: None)
        loop.wait(0)
        assert loop.recover.called == 2


def test_a_timer_that_raised_is_due_again(loop):
    callback = Breaking(3, RuntimeError("what nobody thought of"))
    loop.call_later(0, callback)
    while callback.called < 4:
        loop.wait()
    loop.call_later(0.1, lambda: None)
    loop.wait()  # it has come to its end: only the other one is left
    assert callback.called == 4


def test_a_timer_that_was_cancelled_meanwhile_is_not(loop):
    callback = Breaking(9, RuntimeError("once is enough"))

    def cancelling():
        timer.cancel()
        callback()

    timer = loop.call_later(0, cancelling)
    loop.wait()
    over = Breaking(0, None)
    loop.call_later(0.1, over)
    while not over.called:
        loop.wait()
    assert callback.called == 1


def test_a_callback_that_raises_in_each_turn_leaves_the_others_time(loop, pipe, monkeypatch, caplog):
    slept = []
    monkeypatch.setattr(boundary.time, "sleep", slept.append)
    read, write = pipe
    os.write(write, b"x")
    loop.watch(read, Breaking(10**9, OSError(12, "Cannot allocate memory")))
    for _ in range(9):
        loop.wait()
    assert slept[:3] == [0.01, 0.02, 0.04]
    assert slept[-1] == boundary.LONGEST_PAUSE
    loop.watch(read, lambda: None)
    loop.wait()
    loop.watch(read, Breaking(1, OSError()))
    loop.wait()
    assert slept[-1] == 0.01


def test_what_the_system_refuses_is_one_line_and_what_is_ours_has_its_traceback(caplog):
    assert attempt("this", lambda: None)
    assert not attempt("telling worker 7", Breaking(1, OSError(24, "Too many open files")))
    assert not attempt("telling worker 8", Breaking(1, KeyError("event")))
    first, second = caplog.records
    assert (first.getMessage(), first.exc_info) == ("telling worker 7: Too many open files", None)
    assert second.getMessage() == "telling worker 8: KeyError: 'event'"
    assert second.exc_info[0] is KeyError


def test_an_end_that_no_exception_is_passes(loop):
    loop.call_soon(Breaking(1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        loop.wait()


def test_words_say_which_file_is_meant():
    with pytest.raises(FileNotFoundError) as raised:
        os.stat("/no/such/file")
    assert in_words(raised.value) == "/no/such/file: No such file or directory"
    assert in_words(MemoryError()) == "MemoryError"
