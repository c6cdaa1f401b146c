"""An asyncio loop for servers that know a `EventLoop`: the one inside the other.

Descriptors are watched by the `EventLoop`, and asyncio watches the one descriptor of that. So everything
that lives in a readiness loop lives here unchanged, beside coroutines, and at its own cost: a connection
is one call of epoll_ctl(2) where `add_reader` of uvloop makes six system calls, and a turn of the loop
brings events by the dozen. Connections and servers are not known here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any

from srvkit.net.event_loop import EventLoop, Timer


class TaskLoop(EventLoop):
    """A `EventLoop` whose `wait` runs an asyncio loop, `aio`, and returns only when it is woken.

    `kind` is "asyncio", "uvloop" (raises ImportError where it is missing or broken) or "auto": uvloop
    where there is one that works. What a callback raises comes out of `wait`, as from any `EventLoop`.
    """

    def __init__(self, kind: str = "auto") -> None:
        super().__init__()
        self.aio = _new_loop(kind)
        self._neutral = Context()  # for what belongs to no connection
        self._failure: BaseException | None = None
        self._finishing = False
        self._written: list[Any] = []
        self._starting: list[Any] = []
        self.aio.add_reader(self.fileno(), self._turn)

    def wait(self, timeout: float | None = None) -> None:
        """Run everything until somebody wakes this, at most `timeout` seconds (None: without end)."""
        self._thread = threading.get_ident()
        timer = None if timeout is None else self.aio.call_later(timeout, self.aio.stop)
        try:
            self.aio.run_forever()
        finally:
            if timer is not None:
                timer.cancel()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)
        with suppress(RuntimeError):  # closed
            # Also in the loop's own thread: a signal handler may have interrupted its sleep.
            self.aio.call_soon_threadsafe(self._turn, context=self._neutral)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(monotonic() + seconds, callback)
        self.aio.call_later(max(0.0, seconds), self._ring, timer, context=self._neutral)
        return timer

    def flush_soon(self, link: Any) -> None:
        """Call `link.flush()` when every coroutine that is ready has had its turn; loop's thread only."""
        if not self._written:
            self.aio.call_soon(self._flush_written, context=self._neutral)
        self._written.append(link)

    def start_soon(self, link: Any) -> None:
        """Call `link.start()` when everything was read that is there already; loop's thread only."""
        if not self._starting:
            self.aio.call_soon(self._start, context=self._neutral)
        self._starting.append(link)

    def finish(self, seconds: float) -> int:
        """Cancel every task, give them so long to end, and return how many have not."""
        self._finishing = True
        tasks = asyncio.all_tasks(self.aio)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run(asyncio.wait(tasks, timeout=seconds))
        self.run(self.aio.shutdown_asyncgens())
        return sum(not task.done() for task in tasks)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run everything until this coroutine is done."""
        task = self.aio.create_task(coroutine, context=Context())
        while not task.done():
            with suppress(RuntimeError):  # a stop asked for earlier
                self.aio.run_until_complete(task)

    def close(self) -> None:
        if not self._closed:
            self.aio.remove_reader(self.fileno())
            self.aio.close()
        super().close()

    def _turn(self) -> None:
        try:
            super().wait(0)
        except BaseException as error:
            self._fail(error)

    def _drain_wake(self) -> None:
        super()._drain_wake()
        if not self._finishing:
            self.aio.stop()

    def _ring(self, timer: Timer) -> None:
        if timer.callback is not None:
            try:
                timer.callback()
            except BaseException as error:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # asyncio would only log it.
        self._failure = error
        if not self._finishing:
            self.aio.stop()

    def _start(self) -> None:
        self._turn()
        starting, self._starting = self._starting, []
        for link in starting:
            link.start()

    def _flush_written(self) -> None:
        written, self._written = self._written, []
        for link in written:
            link.flush()


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind != "asyncio":
        try:
            import uvloop

            return uvloop.new_event_loop()
        except Exception as error:  # an installation that is broken may raise anything
            if kind == "uvloop":
                raise ImportError(str(error)) from error
    return asyncio.SelectorEventLoop()
