"""HTTP by hand: answers every request with the request itself, so that you see what a browser says."""

from srvkit import StreamRequestHandler, hookimpl

LONGEST = 8192  # bytes of a line
MOST = 100  # lines


class ByHand(StreamRequestHandler):
    """Answer a request with its own head (HTTP/1.0: one request, one response, the end)."""

    def handle(self):
        head = []
        while (line := self.rfile.readline(LONGEST)).strip() and len(head) < MOST:
            head.append(line)  # the request line, then a header a line; an empty line ends them
        page = b"This is what you said:\n\n" + b"".join(head)
        self.wfile.write(
            b"HTTP/1.0 200 OK\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\n"
            b"Content-Length: %d\r\n"
            b"\r\n" % len(page) + page
        )


@hookimpl
def srvkit_handlers():
    return {"http-by-hand": ByHand}
