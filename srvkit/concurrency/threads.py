"""A thread for each request; threads are kept and reused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from srvkit.concurrency.crew import BusyThreads, Crew, NoThreads
from srvkit.concurrency.handshakes import LateHandshakes


class ThreadingMixIn(LateHandshakes):
    """Handle each request in a thread; stands in front of a server class.

    Class attributes: `daemon_threads` (False; True: the program may end while requests are handled) and
    `block_on_close` (True: `server_close` waits for the requests being handled, daemons excepted).
    `_threads` lists the threads at work. The number of threads has no bound of its own.

    Idle threads wait for the next request, at no cost but their memory, until `server_close` or the
    end of the program. What a handler leaves in `threading.local` therefore outlives its request;
    `contextvars` are fresh for each.
    """

    handler_kinds = frozenset({"blocking", "message"})
    # Under srvkit run, draining waits for requests, and with a deadline; what hangs on then is left behind.
    managed = MappingProxyType({"daemon_threads": True, "block_on_close": False})

    daemon_threads = False
    block_on_close = True
    _threads: BusyThreads = NoThreads()
    _crew: Crew | None = None
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
        crew = self._crew
        if crew is None or crew.daemon != self.daemon_threads or crew.retired:
            crew = self._new_crew()
        if crew.size and getattr(self, "taking_requests", False):  # not on servers of the standard library
            crew.add(self.process_request_thread, request, client_address)
            return
        try:
            crew.run(self.process_request_thread, request, client_address)
        except RuntimeError as error:
            back_off = getattr(self, "back_off_accepting", None)
            if back_off is not None:
                back_off(error)
            raise

    def run_in_thread(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` in the next thread that is free."""
        crew = self._crew
        if crew is None or crew.retired:
            crew = self._new_crew()
        crew.run(function, *args)

    def run_step(self, step: Callable[[], object]) -> None:
        """Take the step in a thread, or here where none can be had."""
        try:
            self.run_in_thread(step)
        except RuntimeError:
            step()

    def requests_taken(self) -> None:
        """Set threads to work on the requests of one burst."""
        super().requests_taken()
        if self._crew is not None:
            try:
                self._crew.start()
            except RuntimeError as error:
                self.back_off_accepting(error)

    def server_close(self) -> None:
        """Close the server and wait for the requests being handled, if `block_on_close`."""
        super().server_close()
        if self._crew is not None:
            self._crew.retire()
        self._threads.join()
        if self._crew is not None and self.block_on_close and not self.daemon_threads:
            self._crew.join()  # threads that are done with their last request

    def _new_crew(self) -> Crew:
        if self._crew is not None:
            self._crew.retire()
        if self.block_on_close:
            vars(self).setdefault("_threads", BusyThreads())
        self._crew = Crew(self.daemon_threads, self._threads, self._most_threads)
        # A server that nobody closed is collected all the same; its idle threads must not stay behind.
        weakref.finalize(self, self._crew.retire).atexit = False
        return self._crew
