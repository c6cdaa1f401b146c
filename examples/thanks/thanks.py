"""Thanks: shows in the log what it was sent, and says thank you for each piece."""

import codecs
import logging

from srvkit import BaseRequestHandler, hookimpl

log = logging.getLogger(__name__)


class Thanks(BaseRequestHandler):
    """Log what arrives as UTF-8, and answer `thank you!`."""

    def handle(self):
        # Incremental: a character's bytes may arrive in two pieces. What is no UTF-8 is shown as \xff.
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        while data := self.request.recv(1024):
            log.info("received %d bytes: %s", len(data), decoder.decode(data))
            self.request.sendall(b"thank you!\n")
        # recv() returned b"": the client will send no more. Half a character may be left.
        log.info("the client has finished%s", decoder.decode(b"", final=True))


@hookimpl
def srvkit_handlers():
    return {"thanks": Thanks}
