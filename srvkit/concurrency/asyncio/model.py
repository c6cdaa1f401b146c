"""asyncio, on uvloop where there is one: coroutines, a task each, and message handlers beside them.

The mixin is light: asyncio itself, and all that stands on it (`taskloop`, `tasklinks`, `streams`), is
imported when a server begins to serve, so that neither programs nor `srvkit` pay for a model they do
not use (55 ms).
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Literal

from srvkit.concurrency.events import EventMixIn
from srvkit.contracts import Package, in_one_line, setting

log = logging.getLogger("srvkit.server")

LAST_MOMENT = 1.0  # seconds that cancelled tasks have to clean up, when the loop ends
UVLOOP = Package("uvloop", "srvkit[uvloop]", "loop")


class TaskMixIn(EventMixIn):
    """Handle each request in an asyncio task; stands in front of a server class.

    For `AsyncHandler`s; message handlers run as under `EventMixIn`, in the same loop, and may use asyncio.
    Class attribute `loop`: "asyncio", "uvloop", or "auto": uvloop where it is installed.

    When the loop ends, tasks that still run are cancelled; so they are by `abort_all`, while `drain`
    lets them finish. `handle_request` runs a coroutine to its end, in a loop of its own.
    """

    @dataclass(frozen=True)
    class Options:
        loop: Literal["auto", "asyncio", "uvloop"] = setting(
            "auto", "the event loop; auto: uvloop where it is installed"
        )

    handler_kinds = frozenset({"message", "async"})

    @classmethod
    def needs(cls, loop: str = "", **options: Any) -> list[Package]:
        """Return the packages that the model needs with these options."""
        return [UVLOOP] if loop == "uvloop" else []

    @classmethod
    def notes(cls, loop: str = "", **options: Any) -> list[str]:
        """Say that there is a uvloop which "auto" cannot take."""
        if loop != "auto" or UVLOOP.is_missing():
            return []
        reason = UVLOOP.why_broken()
        return [f"uvloop cannot be imported, asyncio's own loop takes its place: {reason}"] if reason else []

    @classmethod
    def try_loop(cls) -> None:
        """Make a loop and close it."""
        from srvkit.concurrency.asyncio.loop import TaskLoop

        TaskLoop(cls.loop).close()

    loop = "auto"
    cutting = False  # whether abort_all() was called
    alone = False  # whether the loop is for one request only
    _polled = False

    def make_loop(self) -> Any:
        """Make an asyncio loop. Raises ImportError without uvloop where that is asked for."""
        from srvkit.concurrency.asyncio.loop import TaskLoop

        try:
            return TaskLoop(self.loop)
        except ImportError as error:
            reason = f"pip install {UVLOOP.install!r}" if UVLOOP.is_missing() else in_one_line(error)
            raise ImportError(f'loop = "uvloop" needs the package uvloop: {reason}') from error

    def loop_begins(self, loop: Any) -> None:
        """Begin without tasks. Raises TypeError for a handler that would block. May be extended."""
        super().loop_begins(loop)
        handler = self.RequestHandlerClass
        is_async = hasattr(handler, "reader") or iscoroutinefunction(getattr(handler, "handle", None))
        if not (is_async or self._takes_messages()):
            raise TypeError(f"{type(self).__name__} cannot run {handler!r}: its handle() is no coroutine")
        if not self._takes_messages():
            from srvkit.concurrency.asyncio.transport import DatagramTask, StreamTransport

            self._srvkit_link = StreamTransport if self._takes_connections() else DatagramTask
        self._polled = not getattr(self.service_actions, "event_driven", False)

    def loop_ends(self, loop: Any) -> None:
        """End what is still open, as at `abort_all`."""
        self.cutting = True
        self._cut()
        left = loop.finish(LAST_MOMENT)
        if left:
            message = "%s: %d task%s did not stop when cancelled, abandoned"
            log.warning(message, self._srvkit_name(), left, "s" * (left != 1))
        super().loop_ends(loop)  # which also ends what would not be cancelled
        self.cutting = False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a task for the request, or add its connection to the loop."""
        if self._srvkit_link is not None or self._takes_messages():
            super().process_request(request, client_address)
        else:
            self._process_alone(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a handler handle the request, from now on and beside the others."""
        if self._srvkit_link is not None:  # also in front of the standard library's servers
            self._srvkit_link(self, self._srvkit_loop, request, client_address).begin()
        else:
            super().finish_request(request, client_address)

    def requests_taken(self) -> None:
        """Let an overridden `service_actions` be called after each request."""
        super().requests_taken()
        if self._polled:
            self._srvkit_loop.wake()

    def abort_all(self) -> int:
        """Cancel what is still open; return how much that was."""
        self.cutting = True
        loop = self._srvkit_loop
        count = super().abort_all()
        if loop is not None:
            loop.call_soon(self._cut)
        return count

    def _cut(self) -> None:
        for link in list(self.links):
            link.cut()

    def _process_alone(self, request: Any, client_address: Any) -> None:
        with self.make_loop() as loop:
            self._srvkit_loop, self._srvkit_loop_thread = loop, threading.get_ident()
            self.alone = True
            try:
                self.loop_begins(loop)
                self.finish_request(request, client_address)
                while self.links:
                    loop.wait()
            finally:
                self.loop_ends(loop)
                self.alone = False
                self._srvkit_loop = self._srvkit_loop_thread = None
