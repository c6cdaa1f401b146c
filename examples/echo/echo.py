"""Echo: every byte goes back to where it came from."""

from srvkit import MessageHandler, Raw, hookimpl


class Echo(MessageHandler):
    """Send back whatever arrives, as it arrives."""

    framing = Raw()

    def handle_message(self, message):
        return message


@hookimpl
def srvkit_handlers():
    return {"my-echo": Echo}  # "echo" itself is one of the handlers that come with srvkit
