"""Daytime: the current date and time as a line for people (RFC 867)."""

from datetime import datetime

from srvkit import MessageHandler, Raw, hookimpl


class Daytime(MessageHandler):
    """Tell date and time in words, then close (RFC 867).

    A stream gets its line at once, whatever it sends, and is closed; a datagram, also an empty one,
    gets the line as its answer. The time is the server's local time: "Tuesday, March 3, 2026
    17:37:43-UTC", ended by CR LF.
    """

    framing = Raw()

    def connected(self):
        self.send(self.line())
        self.close()

    def handle_message(self, message):
        return self.line()

    def line(self):
        now = datetime.now().astimezone()
        return f"{now:%A, %B} {now.day}, {now:%Y %H:%M:%S-%Z}\r\n".encode("ascii", "replace")


@hookimpl
def srvkit_handlers():
    return {"daytime": Daytime}
