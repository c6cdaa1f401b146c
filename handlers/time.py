"""Time: the current time as a number for machines (RFC 868)."""

import struct
import time

from srvkit import MessageHandler, Raw, hookimpl

SECONDS_FROM_1900_TO_1970 = 2_208_988_800  # 70 years, 17 of them leap years (RFC 868)


class Time(MessageHandler):
    """Tell the seconds since 1900-01-01 00:00 UTC in four bytes, then close (RFC 868).

    The number is big-endian and counts modulo 2**32, so that it starts again at 0 in February 2036.
    A stream gets it at once and is closed; a datagram, also an empty one, gets it as its answer.
    """

    framing = Raw()

    def connected(self):
        self.send(self.seconds())
        self.close()

    def handle_message(self, message):
        return self.seconds()

    def seconds(self):
        return struct.pack("!I", (int(time.time()) + SECONDS_FROM_1900_TO_1970) % 2**32)


@hookimpl
def srvkit_handlers():
    return {"time": Time}
