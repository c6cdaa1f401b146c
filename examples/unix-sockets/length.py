"""Length: measures lines."""

from srvkit import Lines, MessageHandler, hookimpl


class Length(MessageHandler):
    """Answer each line with how many bytes it has."""

    framing = Lines()

    def handle_message(self, message):
        return b"%d bytes" % len(message)


@hookimpl
def srvkit_handlers():
    return {"length": Length}
