"""A thread for each request; threads are kept and reused."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from srvkit.concurrency.executor import BusyThreads, NoThreads, ThreadExecutor
from srvkit.concurrency.ssl_listener import SslListener
from srvkit.contracts import open_names

Thread = threading.Thread  # what it is without a program's tests, which may put a mock in its place
THREAD_NAME = " (process_request_thread)"  # as the standard library's are called after their number


class ThreadingMixIn(SslListener):
    """Handle each request in a thread; stands in front of a server class.

    Class attributes: `daemon_threads` (False; True: the program may end while requests are handled) and
    `block_on_close` (True: `server_close` waits for the requests being handled, daemons excepted).
    `_threads` lists the threads at work. The number of threads has no bound of its own.

    Idle threads wait two seconds for the next request, then they end; so they do at `server_close` and
    at the end of the program. What a handler leaves in `threading.local` may therefore outlive its
    request; `contextvars` are fresh for each.
    """

    handler_kinds = frozenset({"blocking", "message"})
    # Under srvkit run, draining waits for requests, and with a deadline; what hangs on then is left behind.
    managed = MappingProxyType({"daemon_threads": True, "block_on_close": False})

    daemon_threads = False
    block_on_close = True
    _threads: BusyThreads = NoThreads()
    _srvkit_executor: ThreadExecutor | None = None
    _most_threads: int | None = None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle the request; runs in its thread. May be overridden."""
        try:
            if not self.handshakes_due or self.shake_hands(request):
                self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread handle the request. Raises RuntimeError when none can be started."""
        if open_names["threading"].Thread is not Thread:
            self._process_in_their_thread(request, client_address)
            return
        executor = self._srvkit_executor
        if executor is None or executor.daemon != self.daemon_threads or executor.retired:
            executor = self._srvkit_new_executor()
        if executor.size and self.taking_requests:  # not on servers of the standard library
            executor.add(self.process_request_thread, request, client_address)
            return
        try:
            executor.run(self.process_request_thread, request, client_address)
        except RuntimeError as error:
            self.back_off_accepting(error)
            raise

    def _process_in_their_thread(self, request: Any, client_address: Any) -> None:
        """Handle the request in a thread of the class that a program has put in place of the usual one."""
        if self.block_on_close:
            vars(self).setdefault("_threads", BusyThreads())
        make = open_names["threading"].Thread
        thread = make(target=self.process_request_thread, args=(request, client_address))
        thread.daemon = self.daemon_threads
        self._threads.append(thread)
        thread.start()

    def run_in_thread(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` in the next thread that is free."""
        executor = self._srvkit_executor
        if executor is None or executor.retired:
            executor = self._srvkit_new_executor()
        executor.run(function, *args)

    def runs_here(self) -> bool:
        """Tell whether the caller is a handler of this server."""
        return super().runs_here() or (
            self._srvkit_executor is not None and self._srvkit_executor.has_this_thread()
        )

    def run_step(self, step: Callable[[], object]) -> None:
        """Take the step in a thread, or here where none can be started."""
        try:
            self.run_in_thread(step)
        except RuntimeError:
            step()

    def loop_begins(self, loop: Any) -> None:
        """Have the loop send idle threads home. May be extended."""
        super().loop_begins(loop)
        if self._srvkit_executor is not None:
            self._srvkit_executor.sweeper = _sweeper(self._srvkit_executor, loop)

    def loop_ends(self, loop: Any) -> None:
        """Leave that to the threads from now on. May be extended."""
        if self._srvkit_executor is not None:
            self._srvkit_executor.leave_to_themselves()
        super().loop_ends(loop)

    def requests_taken(self) -> None:
        """Set threads to work on the requests of one burst."""
        super().requests_taken()
        if self._srvkit_executor is not None:
            try:
                self._srvkit_executor.start()
            except RuntimeError as error:
                self.back_off_accepting(error)

    def server_close(self) -> None:
        """Close the server and wait for the requests being handled, if `block_on_close`."""
        super().server_close()
        if self._srvkit_executor is not None:
            self._srvkit_executor.retire()
        self._threads.join()
        if self._srvkit_executor is not None and self.block_on_close and not self.daemon_threads:
            self._srvkit_executor.join()  # threads that are done with their last request

    def _srvkit_new_executor(self) -> ThreadExecutor:
        if self._srvkit_executor is not None:
            self._srvkit_executor.retire()
        if self.block_on_close:
            vars(self).setdefault("_threads", BusyThreads())
        self._srvkit_executor = ThreadExecutor(
            self.daemon_threads, self._threads, self._most_threads, THREAD_NAME
        )
        loop = self._srvkit_loop  # where there is none of srvkit's, threads see to themselves
        if loop is not None:
            self._srvkit_executor.sweeper = _sweeper(self._srvkit_executor, loop)
        # A server that nobody closed is collected all the same; its idle threads must not stay behind.
        weakref.finalize(self, self._srvkit_executor.retire).atexit = False
        return self._srvkit_executor


def _sweeper(executor: ThreadExecutor, loop: Any) -> Callable[[], object]:
    """Return what begins a row of sweeps in the loop's thread; it ends when nobody is idle any more."""
    one_is_to_come = False

    def begin() -> None:
        if not one_is_to_come:
            sweep()

    def sweep() -> None:
        nonlocal one_is_to_come
        seconds = executor.sweep()
        one_is_to_come = seconds is not None
        if seconds is not None:
            loop.call_later(seconds, sweep)

    return lambda: loop.call_soon(begin)
