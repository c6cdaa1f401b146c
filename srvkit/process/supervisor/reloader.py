"""`srvkit run --reload`: notice when a file changes that the servers are made of; for development.

It looks, twice a second, at the configuration, at the plugins it names, and at whatever else of the
developer's the workers say they have imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from srvkit.config.model import Config
from srvkit.net.event_loop import EventLoop

INTERVAL = 0.5  # seconds

State = dict[str, tuple[int, int, int]]


class Watch:
    """Calls `changed(names)` when files have changed, come or gone since the last look."""

    def __init__(self, loop: EventLoop, changed: Callable[[list[str]], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._config: Config | None = None
        self._more: list[str] = []
        self._state: State = {}

    def over(self, config: Config, files: Iterable[str]) -> None:
        """Watch what makes up this configuration, and these files besides, from now on."""
        if self._config is None:
            self._loop.call_later(INTERVAL, self._look)
        self._config = config
        self._more = sorted(files)
        # What was watched before keeps its stamp: it may have been edited since it was read.
        self._state = {name: self._state.get(name, stamp) for name, stamp in _state_of(self._files()).items()}

    def _look(self) -> None:
        before = self._state
        with suppress(OSError):  # the current folder is gone, so that no relative name leads anywhere
            self._state = _state_of(self._files())
        if before != self._state:
            both = before.items() ^ self._state.items()
            self._changed(sorted({name for name, _ in both}))
        self._loop.call_later(INTERVAL, self._look)

    def _files(self) -> Iterator[str]:
        assert self._config is not None
        folder = self._config.folder
        if self._config.path is not None:
            yield os.path.realpath(self._config.path)
        for plugin in self._config.srvkit.plugins:
            path = folder / plugin
            if path.is_dir():
                yield from map(os.path.realpath, sorted(path.rglob("*.py")))
            elif path.suffix == ".py":
                yield os.path.realpath(path)
        yield from self._more


def _state_of(files: Iterable[str]) -> State:
    state = {}
    for name in files:
        try:
            found = os.stat(name)
        except OSError:
            continue
        state[name] = found.st_mtime_ns, found.st_size, found.st_ino
    return state
