"""srvkit's own concurrency models and framings: a plugin like any other, named "srvkit".

It knows the classes' names in the configuration and nothing of what they do. A new model or framing
of srvkit's own is one more line here.
"""

from __future__ import annotations

from srvkit.concurrency.asyncio.model import TaskMixIn
from srvkit.concurrency.events import EventMixIn
from srvkit.concurrency.forks import ForkingMixIn
from srvkit.concurrency.gevent.model import GreenletMixIn
from srvkit.concurrency.pool import ThreadPoolMixIn
from srvkit.concurrency.serial import SerialMixIn
from srvkit.concurrency.threads import ThreadingMixIn
from srvkit.plugins.hookspecs import hookimpl
from srvkit.protocol.framing import Delimiter, FixedSize, LengthPrefix, Lines, Netstring, Raw


@hookimpl
def srvkit_concurrency() -> dict[str, type]:
    """Offer srvkit's models; those that need another package say so themselves."""
    return {
        "serial": SerialMixIn,
        "threading": ThreadingMixIn,
        "pool": ThreadPoolMixIn,
        "forking": ForkingMixIn,
        "gevent": GreenletMixIn,
        "event": EventMixIn,
        "asyncio": TaskMixIn,
    }


@hookimpl
def srvkit_framings() -> dict[str, type]:
    """Offer the six ways in which most protocols tell one message from the next."""
    return {
        "raw": Raw,
        "lines": Lines,
        "delimiter": Delimiter,
        "length-prefix": LengthPrefix,
        "netstring": Netstring,
        "fixed-size": FixedSize,
    }
