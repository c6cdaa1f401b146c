"""Echo: send back whatever arrives (RFC 862), the oldest way to see whether a line is alive."""

from srvkit import MessageHandler, Raw, hookimpl


class Echo(MessageHandler):
    """Send everything back, byte for byte (RFC 862).

    On streams bytes are returned as they arrive, until the client closes; on datagrams each one is
    answered by its own copy. With another `framing` in the configuration it echoes whole messages.
    """

    framing = Raw()

    def handle_message(self, message):
        return message


@hookimpl
def srvkit_handlers():
    return {"echo": Echo}
