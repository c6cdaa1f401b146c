"""Discard: read everything, answer nothing (RFC 863); a sink for tests of senders."""

from srvkit import MessageHandler, Raw, hookimpl


class Discard(MessageHandler):
    """Throw away whatever arrives and never answer (RFC 863).

    A stream stays open until the client closes it, or the server's `idle_timeout` does.
    """

    framing = Raw()

    def handle_message(self, message):
        return None


@hookimpl
def srvkit_handlers():
    return {"discard": Discard}
