"""The listening sockets of all servers: bound before anything serves, kept when the configuration changes.

They are the supervisor's. Workers have copies, and close those without harm to the rest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from srvkit.config.model import Config
from srvkit.errors import ListenError
from srvkit.net.address import Address, covers, overlap, place_of
from srvkit.net.listener import Listener, SocketSettings, bind_each, resolve, share
from srvkit.process.name_lookup import NO_NAMES, Names, addresses_of
from srvkit.process.supervisor.fault_barrier import attempt

log = logging.getLogger("srvkit.process")


class SocketSet:
    """What a configuration listens on; made from the one before, whose sockets it takes over.

    An address is the same where it is bound to the same, or leads to the same file, however it is written.
    Nothing of `before` is closed or changed until `take_over()`; `give_up()` closes what was added instead.
    Raises ListenError, with nothing added left open.

    Where an address grows (127.0.0.1:7 becomes 0.0.0.0:7) both sockets are served: the kernel gives each
    connection to the narrower one, and closing that would cut those it has not handed out yet. Where it
    shrinks, the new socket is the narrower one, and the old one is drained as any that is of no use.
    """

    def __init__(self, config: Config, before: SocketSet | None = None, names: Names = NO_NAMES) -> None:
        self._before = before
        self._hosts = names["hosts"]
        self._settings = {
            name: _owned(settings.socket, names["owners"].get(name))
            for name, settings in config.server.items()
        }
        self.added: list[Listener] = []
        self._by_address: dict[tuple[str, str], list[Listener]] = {}
        self.of: dict[str, list[Listener]] = {}  # by the name of the server
        self._placed: list[tuple[str, Address, Address]] = []  # server, as written, with numbers
        self._sharing: list[Listener] = []  # until all of them listen
        self._remade: list[tuple[Listener, Listener]] = []  # a new one, and the one that has lost its file
        try:
            for name, settings in config.server.items():
                self.of[name] = [
                    listener
                    for address in addresses_of(settings, config)
                    for listener in self._find_or_bind(name, address)
                ]
            self._keep_what_is_covered()
        except BaseException:
            self.give_up()
            raise

    @classmethod
    def inherited(cls, entries: list[tuple[str, str, str, Listener]]) -> SocketSet:
        """Know sockets that a predecessor of this program has opened; each with its server and its key."""
        made = cls.__new__(cls)
        made._before, made.added, made._settings, made._sharing = None, [], {}, []
        made._remade = []
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

    def hosts(self) -> dict[str, str]:
        """Return the numbers of hosts that are bound to, by the address as it is written."""
        bounds = ((str(listener.address), listener.bound_to()) for listener in self)
        return {text: bound.host for text, bound in bounds if bound is not None}

    def _find_or_bind(self, name: str, address: Address) -> list[Listener]:
        hosts = self._hosts.get(str(address))
        choices = [replace(address, host=host) for host in hosts] if hosts else resolve(address)
        found = None
        for numeric in choices:  # a name server may give them in another order each time
            found = self._of_before(name, numeric)
            if found is not None:
                break
        else:
            numeric = choices[0]
        key = self._key(name, numeric)
        self._place(name, address, numeric)
        if found is None:
            beside, lost = self._beside(numeric), self._lost(numeric)
            self._sharing += beside  # first: it may be all that there was time for
            found = bind_each(address, self._settings[name], numeric, beside, lost)
            self.added += found
            self._sharing += found if beside else ()
            self._remade += [(one, lost) for one in found] if lost is not None else ()
            for listener in found:
                # Workers share it: where one has taken what woke them all, the others must not wait.
                if listener.is_stream:
                    os.set_blocking(listener.fileno(), False)
        self._by_address[key] = found
        return found

    def _of_before(self, name: str, numeric: Address) -> list[Listener] | None:
        """Return what listens there already, if anything of ours does."""
        if self._before is None:
            return None
        if numeric.is_internet and numeric.port:
            found = [one for one in self._before if one.bound_to() == numeric]
        elif numeric.is_unix and not numeric.is_abstract:
            is_stream = numeric.kind == "stream"
            found = [one for one in self._before if one.is_at(numeric.path) and one.is_stream == is_stream]
        else:
            return self._before._by_address.get(self._key(name, numeric))
        return found[:1] or None

    def _lost(self, numeric: Address) -> Listener | None:
        """Return what has lost its file at this path to somebody who removed it."""
        if self._before is None or not numeric.is_unix or numeric.is_abstract:
            return None
        place = place_of(numeric.path)
        lost = (one for one in self._before if one.has_lost_its_file and place_of(one.path) == place)
        return next(lost, None)

    def _key(self, name: str, numeric: Address) -> tuple[str, str]:
        if not numeric.is_internet or numeric.port:
            return "", str(numeric)
        # With port 0 the same address may be there several times, and yet each time has its own socket.
        nth = sum(placed == numeric for server, _, placed in self._placed if server == name)
        return name, f"{numeric} {nth}" if nth else str(numeric)

    def _place(self, name: str, address: Address, numeric: Address) -> None:
        for server, other, placed in self._placed:
            if overlap(numeric, placed):
                raise ListenError(address, f"{other} of server.{server} is the same address")
        self._placed.append((name, address, numeric))

    def _beside(self, numeric: Address) -> list[Listener]:
        """Return listeners of before that are bound to a part of the address, or to more than it."""
        if self._before is None or not numeric.is_internet:
            return []
        bounds = ((one, one.bound_to()) for one in self._before)
        return [one for one, bound in bounds if bound is not None and overlap(bound, numeric)]

    def _keep_what_is_covered(self) -> None:
        """Serve on with what is bound to a part of an address, by the server that has the whole of it."""
        kept = {id(listener) for listener in self}
        for (name, key), listeners in self._before._by_address.items() if self._before is not None else ():
            for listener in listeners:
                bound = listener.bound_to()
                if bound is None or id(listener) in kept:
                    continue
                for server, _, wide in self._placed:
                    if wide.port and covers(wide, bound):
                        self.of[server].append(listener)
                        self._by_address.setdefault((name, key), []).append(listener)
                        break

    def take_over(self) -> list[Listener]:
        """Let the new settings hold for what stays; return the listeners that are of no use any more.

        All of them listen by now.
        """
        share(self._sharing, False)
        for listener, lost in self._remade:
            listener.succeed(lost)
            log.warning("%s: its file was removed; created it again", listener.address)
        for name, listeners in self.of.items():
            for listener in listeners:
                if listener not in self.added:
                    attempt(f"{name}: new settings", partial(listener.adjust, self._settings[name]))
        if self._before is None:
            return []
        kept = {id(listener) for listener in self}
        removed = [listener for listener in self._before if id(listener) not in kept]
        self._before = None
        return removed

    def give_up(self) -> None:
        """Close what was added."""
        share(self._sharing, False)
        for listener in self.added:
            attempt(f"closing {listener}", listener.close)

    def close(self) -> None:
        """Close them all, and remove their files."""
        for listener in self:
            attempt(f"closing {listener}", listener.close)


def _owned(settings: SocketSettings, owner: list[str] | None) -> SocketSettings:
    return settings if owner is None else replace(settings, owner=owner[0], group=owner[1])
