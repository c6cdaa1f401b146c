"""One request after the other, in the serving loop's own thread."""

from __future__ import annotations


class SerialMixIn:
    """Add nothing: a server without a mixin handles one request after the other.

    It stands for the word `serial` in the configuration and is left out of the composed class.
    """

    handler_kinds = frozenset({"blocking", "message"})
