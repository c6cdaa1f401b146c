"""What others put in place of the standard library, at run time: allowed, prevented, or found out.

`gevent.monkey` makes greenlets of threads and takes `select.epoll` away. That is what handlers under the
gevent model may want, and it harms all others; gevent asks before it patches, and here is who answers.
Of whoever does not ask, `replaced` tells. What srvkit itself cannot do without was taken down when this
module and those beside it were imported, before any plugin.
"""

from __future__ import annotations

import _thread
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import Any

log = logging.getLogger("srvkit.plugins")

GEVENT = "gevent"
ASKS = "gevent.monkey"

_start_native = _thread.start_new_thread

# Without those in the first line nothing here works; the others make clear what has happened.
_VITAL = (
    (select, ("epoll", "kqueue", "poll")),
    (_thread, ("start_new_thread", "get_ident", "allocate_lock")),
    (threading, ("_start_new_thread", "_start_joinable_thread", "get_ident")),
)
_OTHERS = ((select, ("select",)), (socket, ("socket",)), (time, ("sleep",)), (os, ("fork", "read", "write")))
_ORIGINALS = [
    (module, name, getattr(module, name))
    for module, names in (*_VITAL, *_OTHERS)
    for name in names
    if hasattr(module, name)
]


class _Guard:
    """Decides whether gevent may patch; one for the process."""

    def __init__(self) -> None:
        self.allowed = True
        self.notes: list[str] = []
        self._subscribed = False

    def begin(self, models: Collection[str]) -> None:
        self.allowed = set(models) == {GEVENT}
        self.notes.clear()
        if self.allowed:
            with suppress(Exception, SystemExit):  # broken: the model itself says so
                import_module("srvkit.concurrency.gevent.hub")  # which stands on the library as it is now
        if self._subscribed:
            return
        if ASKS in sys.modules:
            with suppress(ImportError):  # without the rest of gevent it patches nothing
                self._subscribe()
        elif self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Begin to answer when it is about to be imported; it is found by the others."""
        if name == ASKS:
            sys.meta_path.remove(self)
            self._subscribe()
        return None

    def _subscribe(self) -> None:
        import_module("gevent.events").subscribers.append(self._asked)
        self._subscribed = True

    def _asked(self, event: Any) -> None:
        events = import_module("gevent.events")
        if self.allowed or not isinstance(event, events.GeventWillPatchEvent):
            return
        when = f"only under concurrency = {GEVENT!r}, and when plugins are imported"
        note = f"gevent.monkey patches nothing here, {when}{_asker()}"
        if note not in self.notes:
            self.notes.append(note)
            log.warning("%s", note)
        raise events.DoNotPatch


_guard = _Guard()


def guard(models: Collection[str]) -> None:
    """Let gevent patch the standard library where all servers of this process run under gevent only."""
    _guard.begin(models)


def notes() -> list[str]:
    """Return who wanted to patch and was not let, with file and line, since `guard` was called."""
    return list(_guard.notes)


def no_more() -> None:
    """Prevent patching from now on: there are threads and sockets by now that know nothing of it."""
    _guard.allowed = False


def replaced() -> list[str]:
    """Return what is missing or replaced of what srvkit cannot do without, and what else, by their names.

    Empty where nothing vital is; and where gevent was let.
    """
    found = [(module, name) for module, name, thing in _ORIGINALS if getattr(module, name, None) is not thing]
    vital = {(module, name) for module, names in _VITAL for name in names}
    if not vital & set(found) or _patched_by_gevent():
        return []
    return [f"{module.__name__}.{name}" for module, name in found]


def put_back() -> None:
    """Put back what `replaced` names."""
    for module, name, thing in _ORIGINALS:
        setattr(module, name, thing)


def start_thread(function: Callable[[], object], name: str) -> threading.Thread | None:
    """Run it in a thread of the system's, a daemon, also where those of `threading` are greenlets now.

    Returns the thread, or None where `threading` does not know it.
    """
    if _thread.start_new_thread is not _start_native:
        _start_native(function, ())
        return None
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


def _patched_by_gevent() -> bool:
    monkey = sys.modules.get(ASKS)
    return _guard.allowed and monkey is not None and bool(monkey.is_module_patched("select"))


def _asker() -> str:
    """Say where it is in the code that wants to patch."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and not f"{module}.".startswith(("gevent.", "zope.event.")):
            return f" ({frame.f_code.co_filename}:{frame.f_lineno})"
        frame = frame.f_back
    return ""
