"""Shout: answer each line in capitals; the smallest plugin there is, to copy and change."""

from srvkit import Lines, MessageHandler, hookimpl


class Shout(MessageHandler):
    """Answer each line in capitals."""

    framing = Lines()

    def handle_message(self, message):
        return message.upper()


@hookimpl
def srvkit_handlers():
    return {"shout": Shout}
