"""Chargen: an endless, recognisable pattern of characters (RFC 864), to try how fast a line is."""

import contextlib
import random
import select

from srvkit import BaseRequestHandler, hookimpl

RING = bytes(range(0x20, 0x7F))  # the 95 printing characters
LINE = 72
# Line n starts with character n of the ring; after 95 lines the pattern starts again, so one block
# of 95 lines, sent over and over, is the whole stream.
BLOCK = b"".join((RING * 2)[n : n + LINE] + b"\r\n" for n in range(len(RING)))
LONGEST_DATAGRAM = 512


class Chargen(BaseRequestHandler):
    """Send characters without end, or some for each datagram (RFC 864).

    A stream gets lines of 72 characters, each beginning one character later than the one before,
    until the client goes away; what it sends meanwhile is thrown away. A datagram is answered by one
    of 0 to 512 characters of the same pattern.
    """

    def handle(self):
        if isinstance(self.request, tuple):
            self.answer_datagram()
        else:
            with contextlib.suppress(ConnectionError):  # the client's going away is the regular end
                self.fill_stream()

    def answer_datagram(self):
        _data, socket = self.request
        if self.client_address:  # a Unix datagram from a socket without a name cannot be answered
            socket.sendto(BLOCK[: random.randint(0, LONGEST_DATAGRAM)], self.client_address)

    def fill_stream(self):
        incoming = select.poll()
        incoming.register(self.request, select.POLLIN)
        listening = True
        while True:
            self.request.sendall(BLOCK)
            # A client that has ended its own side may well go on reading.
            if listening and incoming.poll(0):
                listening = bool(self.request.recv(65536))


@hookimpl
def srvkit_handlers():
    return {"chargen": Chargen}
