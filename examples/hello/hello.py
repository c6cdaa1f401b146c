"""Hello: says one thing to whoever connects, and hangs up."""

from srvkit import Lines, MessageHandler, hookimpl


class Hello(MessageHandler):
    """Send one line and close."""

    framing = Lines()

    def connected(self):
        self.send(b"hello world")
        self.close()


@hookimpl
def srvkit_handlers():
    return {"hello": Hello}
