"""Counter: one customer at a time, and each takes as long as they like."""

from srvkit import Lines, MessageHandler, hookimpl


class Counter(MessageHandler):
    """Call the next one, and serve them until they say thanks."""

    framing = Lines()

    def connected(self):
        return b"your turn"

    def handle_message(self, message):
        self.close()
        return b"goodbye"


@hookimpl
def srvkit_handlers():
    return {"counter": Counter}
