"""What every handler can ask about the other end of its connection."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from srvkit.net.peer import Peer


class HasPeer:
    """Mixin that adds `peer`, by what stands in `request` and `client_address`."""

    request: Any
    client_address: Any

    @cached_property
    def peer(self) -> Peer:
        """All that is known of the client: address, credentials, certificate, what a proxy said."""
        return Peer(self.request, self.client_address)
