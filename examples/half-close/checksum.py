"""Checksum: reads until the client has no more to say, and answers then."""

import hashlib

from srvkit import StreamRequestHandler, hookimpl


class Checksum(StreamRequestHandler):
    """Answer with the SHA-256 of everything that came before the client's end."""

    def handle(self):
        digest = hashlib.sha256()
        while data := self.rfile.read1(65536):
            digest.update(data)
        # Only the client's direction has ended. Ours is open.
        self.wfile.write(digest.hexdigest().encode() + b"\n")


@hookimpl
def srvkit_handlers():
    return {"checksum": Checksum}
