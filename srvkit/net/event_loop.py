"""Wait for descriptors, deadlines and calls from other threads, without ever polling.

One `EventLoop` serves one thread: epoll on Linux, the best selector of the platform elsewhere. It
knows nothing of servers or connections; what it calls is what it was given.
"""

from __future__ import annotations

import heapq
import os
import select
import selectors
from _thread import RLock, get_ident
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from time import monotonic
from types import TracebackType
from typing import Any

from srvkit.net.closing import close

READ = 1  # the values of EPOLLIN and EPOLLOUT
WRITE = 4
# As they are before anything is imported that may patch the standard library.
_epoll: Any = getattr(select, "epoll", None)
_new_poll: Any = getattr(select, "poll", None)
EXCLUSIVE: int = getattr(
    select, "EPOLLEXCLUSIVE", 0
)  # of several processes that wait for one socket, wake one


class _SelectorPoll:
    """The calls of `select.epoll` that are used here, over the platform's own selector (kqueue, poll)."""

    def __init__(self) -> None:
        self._selector: Any = selectors.DefaultSelector()

    def register(self, fd: int, events: int) -> None:
        self._selector.register(fd, self._mask(events))

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, self._mask(events))

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def fileno(self) -> int:
        fd: int = self._selector.fileno()
        return fd

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        return [(key.fd, events) for key, events in self._selector.select(timeout)]

    def close(self) -> None:
        self._selector.close()

    @staticmethod
    def _mask(events: int) -> int:
        wanted = 0
        if events & READ:
            wanted |= selectors.EVENT_READ
        if events & WRITE:
            wanted |= selectors.EVENT_WRITE
        return wanted


class Timer:
    """A call that is due at a moment of the monotonic clock; `cancel()` forgets it."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class EventLoop:
    """Call back when a descriptor is ready, a moment has come, or another thread asks.

    Only the thread that calls `wait` may watch and unwatch; `call_soon` and `wake` are safe from any
    thread, from signal handlers, and after `close`.
    """

    def __init__(self) -> None:
        self.now = monotonic()  # when the last wait ended
        self._has_epoll = _epoll is not None
        self._poll: Any = _epoll() if _epoll is not None else _SelectorPoll()
        # By descriptor, which are small numbers: a dictionary takes 70 bytes more for each.
        self._callbacks: list[Callable[[], object] | None] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()  # equal deadlines keep the order in which they were set
        self._soon: deque[Callable[[], None]] = deque()
        # Re-entrant: a signal handler may call wake() in the middle of close() in the same thread.
        self._closing = RLock()
        self._closed = False
        self._thread: int | None = None
        if hasattr(os, "eventfd"):
            self._wake_read = self._wake_write = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_read, False)
            os.set_blocking(self._wake_write, False)
        self.watch(self._wake_read, self._drain_wake)

    def __enter__(self) -> EventLoop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def watch(self, fd: int, callback: Callable[[], object], events: int = READ) -> None:
        """Call `callback()` whenever `fd` is ready; level-triggered. Watching it again changes both."""
        if not self._is_watched(fd):
            try:
                self._poll.register(fd, events)
            except FileExistsError:  # it was to be forgotten, and is not closed yet
                self._poll.modify(fd, events)
            self._make_room(fd)
        elif not events & EXCLUSIVE:  # which cannot be modified, see epoll_ctl(2)
            self._modify(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call it before closing the descriptor. Unknown descriptors are ignored."""
        if self._is_watched(fd):
            self._callbacks[fd] = None
            self._poll.unregister(fd)

    def watch_once(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        """Call `callback()` the next time `fd` is ready, and no more; safe from any thread.

        It is for a descriptor that is watched in no other way.
        """
        if not self._has_epoll:
            self.call_soon(lambda: self.watch(fd, partial(self._once, fd, callback), events))
            return
        known = self._is_watched(fd)
        self._make_room(fd)
        self._callbacks[fd] = callback
        events |= select.EPOLLONESHOT
        if not known:
            try:
                self._poll.register(fd, events)
                return
            except FileExistsError:  # it was forgotten, and is not closed yet
                pass
        self._modify(fd, events)

    def _modify(self, fd: int, events: int) -> None:
        try:
            self._poll.modify(fd, events)
        except FileNotFoundError:  # a handler closed what it was, unasked, and another has the number now
            self._poll.register(fd, events)

    def _once(self, fd: int, callback: Callable[[], None]) -> None:
        self.unwatch(fd)
        callback()

    def forget(self, fd: int) -> None:
        """Forget a descriptor that is about to be closed: closing takes it out of epoll by itself."""
        if not self._has_epoll:
            self.unwatch(fd)
        elif self._is_watched(fd):
            self._callbacks[fd] = None

    def _is_watched(self, fd: int) -> bool:
        return 0 <= fd < len(self._callbacks) and self._callbacks[fd] is not None

    def _make_room(self, fd: int) -> None:
        if fd < 0:
            raise ValueError(f"{fd} is no descriptor: closed already?")
        # Two threads at once make too much of it, and never too little.
        self._callbacks += [None] * (fd + 1 - len(self._callbacks))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` once, `seconds` from now."""
        timer = Timer(monotonic() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def postpone(self, timer: Timer, seconds: float) -> None:
        """Have a timer that was due come once more, `seconds` from now; cancelling it still forgets it."""
        timer.when = monotonic() + seconds
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback()` in the waiting thread, as soon as it has called back for what is ready."""
        self._soon.append(callback)
        if get_ident() != self._thread:
            self.wake()

    def wake(self) -> None:
        """Make the current or the next `wait` return."""
        with self._closing:
            if not self._closed:
                with suppress(BlockingIOError):  # full of wake-ups: one is enough
                    os.write(self._wake_write, b"\1\0\0\0\0\0\0\0")

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the first event, at most `timeout` seconds (None: without end), and call back."""
        self._thread = get_ident()
        if self._soon:
            timeout = 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            due = max(0.0, self._timers[0][0] - monotonic())
            timeout = due if timeout is None else min(timeout, due)
        # A callback of this round may have closed a descriptor that is further down the same list,
        # hence the look-up for each.
        events = self._poll.poll(timeout)
        self.now = monotonic()
        callbacks = self._callbacks
        for fd, _events in events:
            callback = callbacks[fd]
            if callback is not None:
                callback()
        if self._timers and self._timers[0][0] <= self.now:
            self._run_timers()
        for _ in range(len(self._soon)):  # what these add is called next time
            self._soon.popleft()()

    def fileno(self) -> int:
        """Return a descriptor that is readable while something watched is ready, timers not included."""
        fd: int = self._poll.fileno()
        return fd

    def close(self) -> None:
        """Release the descriptors; watched ones stay open, they belong to whoever watched them."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._poll.close()
            close(*{self._wake_read, self._wake_write})
        self._callbacks[:] = [None] * len(self._callbacks)  # a list that is being gone through stays as long
        self._timers.clear()

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _run_timers(self) -> None:
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()


def wait_for(fd: int, timeout: float | None, events: int = READ) -> bool:
    """Wait at most `timeout` seconds (None: without end) until one descriptor is ready; return whether it is.

    Any descriptor will do: `select` knows only those below 1024, and is asked where there is nothing else.
    """
    deadline = None if timeout is None else monotonic() + timeout
    while True:
        remaining = None if deadline is None else max(0.0, deadline - monotonic())
        if _new_poll is not None:
            poll = _new_poll()
            poll.register(fd, events)  # POLLIN and POLLOUT have the values of READ and WRITE
            ready = bool(poll.poll(None if remaining is None else remaining * 1000))
        else:
            ready = any(select.select([fd] * bool(events & READ), [fd] * bool(events & WRITE), [], remaining))
        if ready or remaining == 0:
            return ready
