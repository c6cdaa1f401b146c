"""The listening sockets of all servers: bound before anything serves, kept when the configuration changes.

They are the supervisor's. Workers have copies, and close those without harm to the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from srvkit.config.model import Config, ServerSettings
from srvkit.net.address import Address, parse
from srvkit.net.listener import Listener, bind_each


def addresses_of(settings: ServerSettings, config: Config) -> list[Address]:
    """Return where a server listens. Raises ValueError for what is no address."""
    folder = config.path.parent if config.path is not None else Path()
    return [parse(text).relative_to(folder) for text in settings.listen]


class ListeningSockets:
    """What a configuration listens on; made from the one before, whose sockets it takes over.

    Nothing of `before` is closed or changed until `take_over()`; `give_up()` closes what was added instead.
    Raises ListenError, with nothing added left open.
    """

    def __init__(self, config: Config, before: ListeningSockets | None = None) -> None:
        self._before = before
        self.added: list[Listener] = []
        self._by_address: dict[tuple[str, str], list[Listener]] = {}
        self.of: dict[str, list[Listener]] = {}  # by the name of the server
        try:
            for name, settings in config.server.items():
                self.of[name] = [
                    listener
                    for address in addresses_of(settings, config)
                    for listener in self._find_or_bind(name, address, settings)
                ]
        except BaseException:
            self.give_up()
            raise
        self._settings = {name: settings.socket for name, settings in config.server.items()}

    @classmethod
    def inherited(cls, entries: list[tuple[str, str, str, Listener]]) -> ListeningSockets:
        """Know sockets that a predecessor of this program has opened; each with its server and its key."""
        made = cls.__new__(cls)
        made._before, made.added, made._settings = None, [], {}
        made._by_address, made.of = {}, {}
        for server, name, address, listener in entries:
            made._by_address.setdefault((name, address), []).append(listener)
            made.of.setdefault(server, []).append(listener)
        return made

    def entries(self) -> list[tuple[str, str, str, Listener]]:
        """Return every listener, with its server and its key."""
        return [
            (server, *key, listener)
            for server, listeners in self.of.items()
            for key, keyed in self._by_address.items()
            for listener in keyed
            if any(listener is one for one in listeners)
        ]

    def __iter__(self) -> Iterator[Listener]:
        for listeners in self.of.values():
            yield from listeners

    def _find_or_bind(self, name: str, address: Address, settings: ServerSettings) -> list[Listener]:
        # With port 0 several servers may have the same address, and yet each its own sockets.
        key = (name if address.scheme in ("tcp", "udp") and not address.port else "", str(address))
        found = self._before._by_address.get(key) if self._before is not None else None
        if found is None:
            found = bind_each(address, settings.socket)
            self.added += found
            for listener in found:
                # Workers share it: where one has taken what woke them all, the others must not wait.
                if listener.is_stream:
                    os.set_blocking(listener.fileno(), False)
        self._by_address[key] = found
        return found

    def take_over(self) -> list[Listener]:
        """Let the new settings hold for what stays; return the listeners that are of no use any more."""
        for name, listeners in self.of.items():
            for listener in listeners:
                if listener not in self.added:
                    listener.adjust(self._settings[name])
        if self._before is None:
            return []
        kept = {id(listener) for listener in self}
        removed = [listener for listener in self._before if id(listener) not in kept]
        self._before = None
        return removed

    def give_up(self) -> None:
        """Close what was added."""
        for listener in self.added:
            listener.close()

    def close(self) -> None:
        """Close them all, and remove their files."""
        for listener in self:
            listener.close()
