"""gevent's hub as a server needs it: a loop that waits in it, and greenlets that come to an end.

Imports gevent, and is imported only where that is used. Knows nothing of what greenlets do.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from gevent import GreenletExit, get_hub, getcurrent, sleep
from gevent.event import Event
from greenlet import greenlet

from srvkit.concurrency.gevent.sockets import READING, AnsweringSocket, CooperativeSocket, Wait
from srvkit.net.event_loop import EventLoop, Timer


class HubLoop(EventLoop):
    """A loop that waits in the hub of the thread that makes it, where greenlets run meanwhile.

    What it watches is an epoll (kqueue) of its own, whose descriptor is all that the hub has to watch.
    Callbacks run in the greenlet that calls `wait`; other greenlets of its thread may set them, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._poll: Any = _PollInHub(self._poll)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = super().call_later(seconds, callback)
        self.wake()
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        super().call_soon(callback)
        self.wake()


class _PollInHub:
    """An epoll whose `poll` makes a greenlet wait."""

    def __init__(self, poll: Any) -> None:
        self._poll = poll
        self._ready = Wait(poll.fileno(), READING)
        self.register, self.modify, self.unregister = poll.register, poll.modify, poll.unregister

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        if timeout == 0:
            sleep(0)
        else:
            try:
                self._ready.wait(timeout)
            except TimeoutError:
                pass
        events: list[tuple[int, int]] = self._poll.poll(0)
        return events

    def close(self) -> None:
        self._ready.close()
        self._poll.close()


class CutOff(GreenletExit):  # type: ignore[misc]
    """Thrown into a greenlet that has not ended after its connection was cut."""


class Greenlets:
    """The greenlets at work for one server, each in a fresh context.

    A context manager: what is left at its end gets `grace` seconds to finish, and is then killed. What a
    greenlet lets escape ends the server: `failed` is called, and it is raised where the context ends.
    """

    def __init__(self, grace: float, failed: Callable[[], object]) -> None:
        self._grace = grace
        self._failed = failed
        self._error: BaseException | None = None
        self._hub = get_hub()
        self._schedule = self._hub.loop.run_callback
        self._at_work: set[greenlet] = set()
        self._over = Event()

    def __enter__(self) -> Greenlets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.join(self._grace)
        if self._at_work:
            self.kill()
            self._wait(self._grace)
        if error is None and self._error is not None:
            raise self._error

    def __len__(self) -> int:
        return len(self._at_work)

    def spawn(self, handle: Callable[[Any, Any], object], request: Any, client_address: Any) -> None:
        """Have `handle(request, client_address)` run in a greenlet, soon."""
        # Not gevent.Greenlet, which is ten times the work and copies the context of its maker. Nor are
        # greenlets kept for the next request, which would save an eighth of a short connection (a new one
        # maps and unmaps memory for its frames): whoever noted one, to kill it or in a gevent.Timeout that
        # was not cancelled, would hit the request of somebody else.
        one = greenlet(self._run, self._hub)
        self._at_work.add(one)
        self._schedule(one.switch, handle, request, client_address)

    def kill(self) -> None:
        """Throw `CutOff` into all of them; from the thread they run in."""
        for one in self._at_work:
            self._schedule(one.throw, CutOff)

    @staticmethod
    def was_cut(error: BaseException | None) -> bool:
        """Tell whether this is what `kill` threw, or was made of that."""
        return isinstance(error, CutOff) or isinstance(getattr(error, "__cause__", None), CutOff)

    cooperative_socket = CooperativeSocket.of
    answering_socket = AnsweringSocket

    def join(self, seconds: float | None = None) -> None:
        """Let them run until none is left or one has failed, at most `seconds`."""
        if self._error is None:
            self._wait(seconds)

    def _wait(self, seconds: float | None) -> None:
        self._over.clear()
        if self._at_work:
            self._over.wait(seconds)

    def _run(self, handle: Callable[[Any, Any], object], request: Any, client_address: Any) -> None:
        try:
            handle(request, client_address)
        except GreenletExit:
            pass  # how greenlets are ended
        except BaseException as error:
            self._error = self._error or error
            self._over.set()
            self._failed()
        finally:
            self._at_work.discard(getcurrent())
            if not self._at_work:
                self._over.set()


class HubOfThread:
    """The hub of this thread while a server runs in it; one that was made for that is released at the end."""

    def __enter__(self) -> None:
        self._hub = hub = get_hub()
        self._is_ours = not hub and not hub.main_hub  # not running yet: nobody had a use for it
        self._silent = hub.NOT_ERROR
        # Ctrl-C goes to whoever called serve_forever, and is to be seen there only.
        hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)

    def __exit__(self, *_: object) -> None:
        self._hub.NOT_ERROR = self._silent
        if self._is_ours:
            self._hub.destroy()
