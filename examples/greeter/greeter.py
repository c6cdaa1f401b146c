"""Greeter: says hello to everybody by name, over a connection or without one."""

from srvkit import Lines, MessageHandler, hookimpl


class Greeter(MessageHandler):
    """Welcome a connection, greet each name, and leave at `exit`.

    A datagram has no connection: there is no welcome, and nothing to leave.
    """

    framing = Lines()

    def connected(self):
        return b"Welcome!"

    def handle_message(self, message):
        name = message.strip()
        if name == b"exit":
            self.close()
            return None
        return b"Hello, " + (name or b"stranger") + b"!"


@hookimpl
def srvkit_handlers():
    return {"greeter": Greeter}
