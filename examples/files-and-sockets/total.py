"""Total: adds up numbers, and talks to its socket as to a file."""

from srvkit import StreamRequestHandler, hookimpl

LONGEST = 1000  # bytes of a line; a file has no end that one could rely on


class Total(StreamRequestHandler):
    """Answer each number with the sum so far."""

    wbufsize = -1  # buffered: the three writes below leave as one piece. 0, the default, sends each at once

    def handle(self):
        total = 0
        while line := self.rfile.readline(LONGEST):
            try:
                total += int(line)
            except ValueError:
                self.wfile.write(b"not a number, still ")
            self.wfile.write(b"%d" % total)
            self.wfile.write(b"\n")
            self.wfile.flush()  # before waiting for the client, who waits for this


@hookimpl
def srvkit_handlers():
    return {"total": Total}
