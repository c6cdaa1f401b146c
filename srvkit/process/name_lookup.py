"""What the names stand for that a configuration's sockets need: hosts, and owners of files.

A worker-like child asks; whoever serves meanwhile must not wait for a name server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from srvkit.config.model import Config, ServerSettings
from srvkit.net.address import Address, parse
from srvkit.net.listener import look_up_owner, resolve

Names = Mapping[str, Any]  # what `look_up_names` has found, and fit for a message
NO_NAMES: Names = {"hosts": {}, "owners": {}}


def addresses_of(settings: ServerSettings, config: Config) -> list[Address]:
    """Return where a server listens. Raises ValueError for what is no address."""
    return [parse(text).relative_to(config.folder) for text in settings.listen]


def look_up_names(config: Config, known: Mapping[str, str], looking: Callable[[str], None]) -> Names:
    """Return what the names stand for that the sockets need: hosts, and owners of files.

    Others answer that, in their own time: whoever serves meanwhile asks from a process of its own.
    `looking(what)` is called before each question. `known` are `SocketSet.hosts`: a name that is
    listened on keeps its number, whoever has it by now, so that no reload needs a name server for it.
    Raises ListenError.
    """
    hosts, owners = {}, {}
    for name, settings in config.server.items():
        for address in addresses_of(settings, config):
            if address.is_internet and address.numeric() is None:
                number = known.get(str(address))
                if number is None:
                    looking(f"the host {address.host}")
                hosts[str(address)] = [number] if number else [one.host for one in resolve(address)]
            if address.is_unix and not address.is_abstract:
                looking("the owner of a socket")
                numbered = look_up_owner(address, settings.socket)
                owners[name] = [numbered.owner, numbered.group]
    return {"hosts": hosts, "owners": owners}
