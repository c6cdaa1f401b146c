"""One log record for each connection: an observer like any other, loaded where the configuration asks.

It knows the hook and the log, not how connections are served. Where it is not loaded it costs nothing.
"""

from __future__ import annotations

import logging
from typing import Any

from srvkit.net.address import display
from srvkit.plugins.hookspecs import hookimpl

LOGGER = "srvkit.connections"

log = logging.getLogger(LOGGER)


@hookimpl
def srvkit_connection_close(
    server: Any, client_address: Any, outcome: str, seconds: float, bytes_in: int, bytes_out: int
) -> None:
    """Say who it was, how it ended, how long it took, and how much went each way."""
    peer = display(client_address)
    log.info(
        "%s: %s %s after %.3f s, %d bytes in, %d out",
        server.name,
        peer,
        outcome,
        seconds,
        bytes_in,
        bytes_out,
        extra={
            "event": "connection",
            "peer": peer,
            "outcome": outcome,
            "seconds": round(seconds, 6),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
        },
    )
