"""Slow: takes its time for each message, as a query or a calculation would."""

import os
import threading
import time
from dataclasses import dataclass

from srvkit import Lines, MessageHandler, hookimpl


class Slow(MessageHandler):
    """Answer each line after some seconds: when it began, when it ended, and who did it."""

    framing = Lines()

    @dataclass
    class Options:
        seconds: float = 1.0

    def handle_message(self, message):
        begin = time.time()
        time.sleep(self.options.seconds)
        where = f"{os.getpid()}/{threading.get_native_id()}"
        return f"{begin} {time.time()} {where}".encode()


@hookimpl
def srvkit_handlers():
    return {"slow": Slow}
