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
Job = tuple[Callable[..., None], tuple[Any, ...]]


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
    """

    def __init__(self, daemon: bool, busy: BusyThreads, most: int | None = None) -> None:
        self.daemon = daemon
        self.busy = busy
        self.most = most
        self.size = 0
        self.retired = False
        self._idle: list[_Worker] = []  # the last to finish is the first to get work: its cache is warm
        self._waiting: deque[Job] = deque()
        self._hiring = threading.Lock()
        _crews.add(self)

    def __repr__(self) -> str:
        return f"<Crew of {self.size}, {len(self._idle)} idle, {len(self._waiting)} jobs waiting>"

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Have `function(*args)` run. Raises RuntimeError when no thread can be started for it."""
        job = (function, args)
        if not self._give_to_idle(job):
            self._hire(job)

    def retire(self) -> None:
        """Send idle threads home now, and busy ones when they have finished."""
        self.retired = True
        while self._give_to_idle(None):
            pass

    def _give_to_idle(self, job: Job | None) -> bool:
        try:
            worker = self._idle.pop()
        except IndexError:
            return False
        worker.job = job
        if job is not None:
            self.busy.append(worker)
        worker.wake.release()
        return True

    def _hire(self, job: Job) -> None:
        with self._hiring:
            self.busy.reap()
            if self.most is not None and self.size >= self.most:
                self._waiting.append(job)
                # One may have become idle just before it could see the job.
                if self._idle:
                    with suppress(IndexError):  # or seen it after all
                        job = self._waiting.popleft()
                        if not self._give_to_idle(job):
                            self._waiting.appendleft(job)
                return
            self.size += 1
        worker = _Worker(self, job)
        self.busy.append(worker)  # first, so that it cannot have finished before it is listed
        try:
            worker.start()
        except BaseException:
            self.busy.remove(worker)
            self._left(worker)
            raise

    def _next(self, worker: _Worker) -> None:
        """Called by a worker that has finished: wait for its next job, or leave it without one."""
        while True:
            with suppress(IndexError):
                worker.job = self._waiting.popleft()
                return
            self.busy.remove(worker)
            if self.retired or len(self._idle) >= MOST_IDLE:
                return
            self._idle.append(worker)
            if not (self._waiting or self.retired):
                break
            # Something came between the look and the sleep; unless it has found us already, look again.
            try:
                self._idle.remove(worker)
            except ValueError:
                break
            self.busy.append(worker)
        worker.wake.acquire()

    def _left(self, worker: _Worker) -> None:
        with self._hiring:
            self.size -= 1
        # A job that was waiting for this very thread, which died of its last one.
        if worker.died and self._waiting:
            with suppress(IndexError):
                self._hire(self._waiting.popleft())

    def _forget(self) -> None:
        """Begin anew in a forked child, where none of the threads exists."""
        self._idle.clear()
        self._waiting.clear()
        self.size = 0
        self._hiring = threading.Lock()
        for thread in self.busy:
            self.busy.remove(thread)


class _Worker(threading.Thread):
    """One thread of a crew."""

    def __init__(self, crew: Crew, job: Job) -> None:
        super().__init__(daemon=crew.daemon)
        self.name = f"{self.name} ({getattr(job[0], '__name__', 'job')})"
        self.crew = crew
        self.job: Job | None = job
        self.wake = threading.Lock()
        self.wake.acquire()
        self.died = False

    def run(self) -> None:
        crew = self.crew
        self.died = True
        try:
            while self.job is not None:
                Context().run(self.job[0], *self.job[1])
                self.job = None  # nothing of a finished request lives on in an idle thread
                crew._next(self)
            self.died = False
        finally:
            self.job = None
            crew._left(self)


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
