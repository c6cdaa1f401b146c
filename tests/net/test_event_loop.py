"""The loop's ear: descriptors, moments and other threads, each heard at once and none polled for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from srvkit.net.event_loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as readiness:
        yield readiness


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_another_thread_ends_the_wait(loop: EventLoop) -> None:
    """Its call runs in the thread that waits."""
    called: list[int] = []
    thread = threading.Thread(target=loop.call_soon, args=(lambda: called.append(threading.get_ident()),))
    thread.start()
    while not called:
        loop.wait()
    assert called == [threading.get_ident()]
    thread.join()


def test_a_wake_up_before_the_wait_is_not_lost(loop: EventLoop) -> None:
    for _ in range(3):
        loop.wake()
    loop.wait()


def test_calls_keep_their_order(loop: EventLoop) -> None:
    called: list[int] = []
    for number in range(5):
        loop.call_soon(lambda number=number: called.append(number))  # type: ignore[misc]
    loop.wait()
    assert called == [0, 1, 2, 3, 4]


def test_a_descriptor_is_heard_until_it_is_unwatched(loop: EventLoop, pipe: tuple[int, int]) -> None:
    """Again and again while there is something to read."""
    read, write = pipe
    called: list[str] = []
    loop.watch(read, lambda: called.append("first"))
    os.write(write, b"x")
    loop.wait()
    loop.wait()
    loop.watch(read, lambda: called.append("second"))
    loop.wait()
    loop.unwatch(read)
    loop.unwatch(read)  # again
    loop.wake()
    loop.wait()
    assert called == ["first", "first", "second"]


def test_a_callback_may_unwatch_what_is_ready_too(loop: EventLoop) -> None:
    """The other one is not called any more, although the kernel has reported it."""
    pipes = [os.pipe(), os.pipe()]
    called: list[int] = []

    def only_me(own: int, other: int) -> None:
        called.append(own)
        loop.unwatch(other)

    for (read, write), (other, _) in zip(pipes, reversed(pipes), strict=True):
        loop.watch(read, lambda read=read, other=other: only_me(read, other))  # type: ignore[misc]
        os.write(write, b"x")
    loop.wait()
    assert len(called) == 1
    for read, write in pipes:
        loop.unwatch(read)
        os.close(read)
        os.close(write)


def test_timers_run_in_the_order_of_their_moments(loop: EventLoop) -> None:
    called: list[str] = []
    loop.call_later(0.02, lambda: called.append("later"))
    loop.call_later(0, lambda: called.append("now"))
    loop.call_later(0, lambda: called.append("then"))
    loop.call_later(0.01, lambda: called.append("never")).cancel()
    while len(called) < 3:
        loop.wait()
    assert called == ["now", "then", "later"]


def test_after_the_end_nothing_happens(pipe: tuple[int, int]) -> None:
    """Other threads may still call; the descriptors that were watched stay open."""
    read, write = pipe
    before = len(os.listdir("/proc/self/fd"))
    loop = EventLoop()
    loop.watch(read, lambda: None)
    loop.close()
    loop.close()
    loop.wake()
    loop.call_soon(lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before
    os.write(write, b"x")
    assert os.read(read, 1) == b"x"


@pytest.mark.parametrize("call", ["watch", "watch_once"])
def test_a_closed_descriptor_is_refused_and_disturbs_no_other(
    loop: EventLoop, pipe: tuple[int, int], call: str
) -> None:
    """A closed socket's number is -1, which must not be taken for the last one."""
    reading, writing = pipe
    heard: list[str] = []
    loop.watch(reading, lambda: heard.append("pipe"))
    with pytest.raises(ValueError, match=r"negative|no descriptor"):
        getattr(loop, call)(-1, lambda: heard.append("closed"))
    loop.unwatch(-1)
    loop.forget(-1)
    os.write(writing, b"x")
    loop.wait(0)
    assert heard == ["pipe"]


@pytest.mark.parametrize("call", ["watch", "watch_once"])
def test_a_number_is_used_again_after_a_descriptor_was_closed_unasked(loop: EventLoop, call: str) -> None:
    """A handler may close its socket; the next one to get the number is another connection's."""
    heard: list[str] = []
    reading, writing = os.pipe()
    getattr(loop, call)(reading, lambda: heard.append("closed"))
    os.close(reading)
    other, far = os.pipe()
    if other != reading:
        os.dup2(other, reading)
    try:
        getattr(loop, call)(reading, lambda: heard.append("another"))
        os.write(far, b"x")
        loop.wait(0)
        assert heard == ["another"]
    finally:
        for fd in {reading, other, writing, far}:
            os.close(fd)
