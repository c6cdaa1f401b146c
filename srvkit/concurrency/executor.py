"""Threads that are kept for a while: handing a job to an idle one costs a third of starting a new one.

A `ThreadExecutor` knows jobs, not requests. It holds no reference to the server, so that a server that
nobody closed can still be collected; its idle threads then go home. They also do so by themselves after
`PATIENCE`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any

MOST_IDLE = 256  # threads kept by one executor; each holds about 26 KB
PATIENCE = 2.0  # seconds that an idle thread waits for work
Job = tuple[Callable[..., object], tuple[Any, ...]]


class BusyThreads:
    """The threads at work that `server_close` waits for; what `server._threads` is.

    It has the methods of the standard library's list that programs use; those that start threads of their
    own `append` them.
    """

    def __init__(self) -> None:
        self._threads: dict[threading.Thread, None] = {}  # in order, and quick to remove from

    def __getitem__(self, index: Any) -> Any:
        return list(self._threads)[index]

    def __len__(self) -> int:
        return len(self._threads)

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(list(self._threads))

    def __repr__(self) -> str:
        return f"<{len(self._threads)} busy threads>"

    def append(self, thread: threading.Thread) -> None:
        """Add a thread, and forget those that have ended; daemons are not waited for and so not listed."""
        self.reap()
        self.add(thread)

    def add(self, thread: threading.Thread) -> None:
        """Add a thread, unless it is a daemon."""
        if not thread.daemon:
            self._threads[thread] = None

    def remove(self, thread: threading.Thread) -> None:
        """Forget a thread, if it is there."""
        self._threads.pop(thread, None)

    def pop_all(self) -> list[threading.Thread]:
        """Forget all threads and return them."""
        threads = list(self._threads)
        for thread in threads:
            self.remove(thread)
        return threads

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

    def add(self, thread: threading.Thread) -> None:
        """Ignore the thread."""


class ThreadExecutor:
    """Run each job in a thread of its own, an idle one where there is one.

    `most` bounds the threads (None: no bound); a job beyond it waits for the first thread that is free.
    A job runs in a fresh `contextvars` context. What it raises ends its thread as it would any other.
    `name` is added to the names of the threads.

    At most one thread at a time is *searching*: woken, but without a job yet. It takes the first job that
    waits and, if there are more, wakes the next one before it begins. So no job waits behind one that
    blocks, and yet jobs that do not block follow each other in one thread. Waking a thread for each of
    them would have dozens compete for the interpreter's lock, at every system call of each (measured:
    18 calls of futex(2) per connection where this makes 3).

    Whoever waits in vain for `PATIENCE` goes home. A thread can watch the clock while it waits, which costs
    0.7 µs each time it is woken; so it leaves that to the serving loop, where there is one. `sweeper` is
    then called when somebody is idle, and has `sweep` called from there.
    """

    sweeper: Callable[[], object] | None = None

    def __init__(self, daemon: bool, busy: BusyThreads, most: int | None = None, name: str = "") -> None:
        self.daemon = daemon
        self.name = name
        self.busy = busy
        self.most = most
        self.size = 0
        self.retired = False
        self._idle: list[_Worker] = []  # the last to finish is the first to get work: its cache is warm
        self._waiting: deque[Job] = deque()
        self._searching = False
        self._swept = False  # whether a sweep is to come
        self._hiring = threading.Lock()
        self._hired: set[_Worker] = set()
        self._gone: list[_Worker] = []  # who has left, but may not have ended yet
        _executors.add(self)

    def __repr__(self) -> str:
        return f"<ThreadExecutor of {self.size}, {len(self._idle)} idle, {len(self._waiting)} jobs waiting>"

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

    @property
    def has_waiting(self) -> bool:
        """Whether jobs wait for a thread."""
        return bool(self._waiting)

    def has_this_thread(self) -> bool:
        """Tell whether it is one of its threads that asks."""
        return threading.current_thread() in self._hired

    def retire(self) -> None:
        """Let idle threads exit now, busy ones when the queue is empty."""
        self.retired = True
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().wake.release()

    def sweep(self) -> float | None:
        """Send home who has been idle for long; return in how many seconds to come again, None if never."""
        while True:
            oldest = next(iter(self._idle), None)  # who comes last to rest is the first to get work
            if oldest is None:
                # First say that nobody comes again, then look again: see `_search` of a worker.
                if not self._swept:
                    return None
                self._swept = False
                continue
            left = oldest.since + PATIENCE - monotonic()
            if left > 0:
                self._swept = True
                return left
            self._send_home(oldest)

    def leave_to_themselves(self) -> None:
        """Go on without a sweeper: idle threads go home, and whoever rests later watches the clock."""
        self.sweeper = None
        for worker in list(self._idle):
            self._send_home(worker)

    def _send_home(self, worker: _Worker) -> None:
        try:
            self._idle.remove(worker)
        except ValueError:  # it has got work meanwhile
            return
        worker.is_sent_home = True
        worker.wake.release()

    def join(self) -> None:
        """Wait until every thread has gone home, except the one that asks."""
        for worker in [*self._hired, *self._gone]:
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
        self.busy.add(worker)
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
        self.busy.add(worker)
        try:
            worker.start()
        except BaseException:
            self._did_not_start(worker)
            if self.size == 0:
                raise
            # Those who are busy will take what waits, one after the other.
        else:
            if worker.ident is None:  # a program's tests have put something in the place of start()
                self._did_not_start(worker)

    def _did_not_start(self, worker: _Worker) -> None:
        self._leave(worker)
        self._searching = False

    def _leave(self, worker: _Worker, *, unless_needed: bool = False) -> bool:
        """Let a thread go home; return False where it may not: there is work that nobody else might see."""
        with self._hiring:
            # Whoever brings work adds it before asking, under this lock, whether another may be hired.
            if unless_needed and self._waiting:
                self.busy.add(worker)
                return False
            self.size -= 1
            self._gone = [one for one in self._gone if one.is_alive()]
            if worker.ident is not None:
                self._gone.append(worker)
        self.busy.remove(worker)
        self._hired.discard(worker)
        return True

    def _forget(self) -> None:
        """Begin anew in a forked child, where none of the threads exists."""
        self._hired.clear()
        self._gone.clear()
        self._idle.clear()
        self._waiting.clear()
        self._searching = self._swept = False
        self.sweeper = None
        self.size = 0
        self._hiring = threading.Lock()
        for thread in self.busy:
            self.busy.remove(thread)


class _Worker(threading.Thread):
    """One thread of an executor."""

    def __init__(self, executor: ThreadExecutor) -> None:
        super().__init__(daemon=executor.daemon)
        self.name += executor.name
        self.executor = executor
        self.since = 0.0  # when it came to rest
        self.is_sent_home = False
        self.wake = threading.Lock()
        self.wake.acquire()

    def run(self) -> None:
        executor = self.executor
        try:
            self._search()
            while self._rest() or not executor._leave(self, unless_needed=True):
                self._search()
        except BaseException:
            # The job's own; it ends this thread, and what waits must not wait for it.
            executor._leave(self)
            with suppress(RuntimeError):
                executor.start()
            raise

    def _search(self) -> None:
        """Take jobs as long as there are any."""
        executor = self.executor
        waiting = executor._waiting
        searching = True
        while True:
            try:
                function, args = waiting.popleft()
            except IndexError:
                if not searching:
                    return
                # First say that nobody searches, then look again: a job that came between would be seen by
                # either its bringer or us.
                searching = executor._searching = False
                if not waiting:
                    return
                continue
            if searching:
                searching = executor._searching = False
            if waiting and not executor._searching:
                with suppress(RuntimeError):
                    executor._search()
            Context().run(function, *args)
            del function, args  # nothing of a finished request lives on in an idle thread

    def _rest(self) -> bool:
        """Wait to be woken; return False when it is time to go home, unless there is work after all."""
        executor = self.executor
        executor.busy.remove(self)
        if executor.retired or len(executor._idle) >= MOST_IDLE:
            return False
        self.since, self.is_sent_home = monotonic(), False
        executor._idle.append(self)
        something_came = executor.retired or bool(executor._waiting)  # between the look and the sleep
        if something_came or not self._wait():
            try:
                executor._idle.remove(self)
            except ValueError:  # somebody has found us, and is about to wake us
                self.wake.acquire()
            else:
                executor.busy.add(self)
                return something_came and not executor.retired
        if executor.retired:
            executor._searching = False  # we might be the one who is expected to search
            return False
        return not self.is_sent_home

    def _wait(self) -> bool:
        """Wait to be woken; return False when that was in vain."""
        executor = self.executor
        sweeper = executor.sweeper
        if sweeper is None:
            return self.wake.acquire(True, PATIENCE)
        if not executor._swept:
            executor._swept = True
            sweeper()
        return self.wake.acquire()


_executors: weakref.WeakSet[ThreadExecutor] = weakref.WeakSet()


def _retire_all() -> None:
    for executor in list(_executors):
        executor.retire()


def _forget_all() -> None:
    for executor in list(_executors):
        executor._forget()


# Before the interpreter waits for threads at its end, as concurrent.futures does it: idle threads must
# not keep a program from ending. atexit would be too late, and there is no public name for this.
threading._register_atexit(_retire_all)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
