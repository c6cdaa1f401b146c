"""Threads that are kept: handing a job to an idle one costs a third of starting a new one.

A `Crew` knows jobs, not requests. It holds no reference to the server, so that a server nobody closed
can still be collected; its idle threads then go home.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from typing import Any

MOST_IDLE = 256  # threads kept by one crew; each holds about 26 KB
Job = tuple[Callable[..., object], tuple[Any, ...]]


class BusyThreads:
    """The threads at work that `server_close` waits for; what `server._threads` is.

    It has the methods of the standard library's list that programs use.
    """

    def __init__(self) -> None:
        self._threads: dict[threading.Thread, None] = {}  # in order, and quick to remove from

    def __len__(self) -> int:
        return len(self._threads)

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(list(self._threads))

    def __repr__(self) -> str:
        return f"<{len(self._threads)} busy threads>"

    def append(self, thread: threading.Thread) -> None:
        """Add a thread; daemons are not waited for and so not listed."""
        if not thread.daemon:
            self._threads[thread] = None

    def remove(self, thread: threading.Thread) -> None:
        """Forget a thread, if it is there."""
        self._threads.pop(thread, None)

    def reap(self) -> None:
        """Forget the threads that have ended."""
        for thread in list(self._threads):
            if thread.ident is not None and not thread.is_alive():
                self._threads.pop(thread, None)

    def join(self) -> None:
        """Wait until all have finished their work, except the one that asks."""
        for thread in list(self._threads):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join()


class NoThreads(BusyThreads):
    """Stands in where nobody waits for threads."""

    def append(self, thread: threading.Thread) -> None:
        """Ignore the thread."""


class Crew:
    """Run each job in a thread of its own, an idle one where there is one.

    `most` bounds the threads (None: no bound); a job beyond it waits for the first thread that is free.
    A job runs in a fresh `contextvars` context. What it raises ends its thread as it would any other.

    At most one thread at a time is *searching*: woken, but without a job yet. It takes the first job that
    waits and, if there are more, wakes the next one before it begins. So no job waits behind one that
    blocks, and yet jobs that do not block follow each other in one thread. Waking a thread for each of
    them would have dozens compete for the interpreter's lock, at every system call of each (measured:
    18 calls of futex(2) per connection where this makes 3).
    """

    def __init__(self, daemon: bool, busy: BusyThreads, most: int | None = None) -> None:
        self.daemon = daemon
        self.busy = busy
        self.most = most
        self.size = 0
        self.retired = False
        self._idle: list[_Worker] = []  # the last to finish is the first to get work: its cache is warm
        self._waiting: deque[Job] = deque()
        self._searching = False
        self._hiring = threading.Lock()
        self._hired: set[_Worker] = set()
        _crews.add(self)

    def __repr__(self) -> str:
        return f"<Crew of {self.size}, {len(self._idle)} idle, {len(self._waiting)} jobs waiting>"

    def add(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` run, from the next `start` on."""
        self._waiting.append((function, args))

    def start(self) -> None:
        """See that the jobs added so far run. Raises RuntimeError when there is no thread for them at all."""
        if self._waiting and not self._searching:
            self._search()

    def run(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` run now. Raises RuntimeError, and does not run it, for want of a thread."""
        job = (function, args)
        self._waiting.append(job)
        try:
            self.start()
        except RuntimeError:
            with suppress(ValueError):  # another thread took it after all
                self._waiting.remove(job)
                raise

    def retire(self) -> None:
        """Send idle threads home now, and busy ones when nothing waits any more."""
        self.retired = True
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().wake.release()

    def join(self) -> None:
        """Wait until every thread has gone home, except the one that asks."""
        for worker in list(self._hired):
            if worker is not threading.current_thread() and worker.ident is not None:
                worker.join()

    def _search(self) -> None:
        """Set another thread searching: an idle one, or a new one."""
        self._searching = True
        try:
            worker = self._idle.pop()
        except IndexError:
            self._hire()
            return
        self.busy.append(worker)
        worker.wake.release()

    def _hire(self) -> None:
        self.busy.reap()
        with self._hiring:
            if self.most is not None and self.size >= self.most:
                self._searching = False  # whoever finishes first looks for waiting jobs
                return
            self.size += 1
        worker = _Worker(self)
        self._hired.add(worker)
        self.busy.append(worker)
        try:
            worker.start()
        except BaseException:
            self.busy.remove(worker)
            self._leave(worker)
            self._searching = False
            if self.size == 0:
                raise
            # Those who are busy will take what waits, one after the other.

    def _leave(self, worker: _Worker) -> None:
        with self._hiring:
            self.size -= 1
        self._hired.discard(worker)

    def _forget(self) -> None:
        """Begin anew in a forked child, where none of the threads exists."""
        self._hired.clear()
        self._idle.clear()
        self._waiting.clear()
        self._searching = False
        self.size = 0
        self._hiring = threading.Lock()
        for thread in self.busy:
            self.busy.remove(thread)


class _Worker(threading.Thread):
    """One thread of a crew."""

    def __init__(self, crew: Crew) -> None:
        super().__init__(daemon=crew.daemon)
        self.crew = crew
        self.wake = threading.Lock()
        self.wake.acquire()

    def run(self) -> None:
        crew = self.crew
        try:
            self._search()
            while self._rest():
                self._search()
        except BaseException:
            # The job's own; it ends this thread, and what waits must not wait for it.
            crew._leave(self)
            with suppress(RuntimeError):
                crew.start()
            raise
        crew._leave(self)

    def _search(self) -> None:
        """Take jobs as long as there are any."""
        crew = self.crew
        waiting = crew._waiting
        searching = True
        while True:
            try:
                function, args = waiting.popleft()
            except IndexError:
                if not searching:
                    return
                # First say that nobody searches, then look again: a job that came between would be seen by
                # either its bringer or us.
                searching = crew._searching = False
                if not waiting:
                    return
                continue
            if searching:
                searching = crew._searching = False
            if waiting and not crew._searching:
                with suppress(RuntimeError):
                    crew._search()
            Context().run(function, *args)
            del function, args  # nothing of a finished request lives on in an idle thread

    def _rest(self) -> bool:
        """Wait to be woken; return False when it is time to go home."""
        crew = self.crew
        crew.busy.remove(self)
        if crew.retired or len(crew._idle) >= MOST_IDLE:
            return False
        crew._idle.append(self)
        if crew.retired or crew._waiting:
            # Something came between the look and the sleep; unless it has found us already, see to it.
            try:
                crew._idle.remove(self)
            except ValueError:
                pass
            else:
                crew.busy.append(self)
                return not crew.retired or bool(crew._waiting)
        self.wake.acquire()
        return not crew.retired or bool(crew._waiting)


_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


def _retire_all() -> None:
    for crew in list(_crews):
        crew.retire()


def _forget_all() -> None:
    for crew in list(_crews):
        crew._forget()


# Before the interpreter waits for threads at its end, as concurrent.futures does it: idle threads must
# not keep a program from ending. atexit would be too late, and there is no public name for this.
threading._register_atexit(_retire_all)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
