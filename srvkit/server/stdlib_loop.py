"""What programs do to the standard library's loop, by its private names.

They put a class of their own in place of `socketserver._ServerSelector`: to be told of each wait, or to
wait in a way that another library can interrupt. Where nobody does, servers wait in a `EventLoop`, which
does not poll. And they set `server._BaseServer__shutdown_request` where `shutdown()` would wait for itself.
"""

from __future__ import annotations

import selectors
from time import monotonic
from typing import Any

from srvkit.contracts import open_names
from srvkit.net.event_loop import wait_for

STANDARD: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)
_METHODS = "__init__", "register", "select"
_AS_THEY_WERE = [getattr(STANDARD, name) for name in _METHODS]


class ShutdownFlag:
    """A flag of a server's, kept in the instance as any other; setting it wakes the loop."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, server: Any, value: Any) -> None:
        vars(server)[self._name] = value
        loop = server._srvkit_loop
        if value and loop is not None:
            loop.wake()

    def __bool__(self) -> bool:
        return False  # on a server whose constructor did not run


def replaced_selector() -> Any:
    """Return the class that a program has put in place of the selector; None where it has not."""
    selector = open_names["_ServerSelector"]
    if selector is STANDARD and all(map(_is_untouched, _METHODS, _AS_THEY_WERE)):
        return None
    return selector


def wait_readable(server: Any, timeout: float | None) -> bool:
    """Wait for a request, at most `timeout` seconds; return whether there is one."""
    selector_class = replaced_selector()
    if selector_class is None:
        return wait_for(server.fileno(), timeout)
    deadline = None if timeout is None else monotonic() + timeout
    with selector_class() as selector:
        selector.register(server, selectors.EVENT_READ)
        while not selector.select(timeout):
            if deadline is not None:
                timeout = deadline - monotonic()
                if timeout < 0:
                    return False
    return True


def _is_untouched(name: str, method: Any) -> bool:
    return getattr(STANDARD, name) is method
