"""One request after the other, in the serving loop's own thread."""

from __future__ import annotations


class SerialMixIn:
    """Handle one request after the other, as a server without a mixin does.

    It adds nothing: it stands for the word `serial` in the configuration and is left out of the
    composed class.
    """

    handler_kinds = frozenset({"blocking", "message"})
    datagrams_in_turn = handler_kinds
