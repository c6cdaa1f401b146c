"""Count: numbers the messages of a connection, so that you see what the server took for one."""

from srvkit import MessageHandler, hookimpl


class Count(MessageHandler):
    """Answer each message with its number and itself."""

    number = 0

    def handle_message(self, message):
        self.number += 1
        return b"%d: %s" % (self.number, message)


@hookimpl
def srvkit_handlers():
    return {"count": Count}
