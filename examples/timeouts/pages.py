"""Pages: answers a line with more than the kernel's buffers hold. Not a word about time."""

from srvkit import Lines, MessageHandler, StreamRequestHandler, hookimpl

PAGE = b"the quick brown fox jumps over the lazy dog " * 500_000  # 22 MB


class Page(MessageHandler):
    """Answer each line with a page; of messages."""

    framing = Lines()

    def handle_message(self, message):
        return PAGE


class BlockingPage(StreamRequestHandler):
    """The same with files."""

    def handle(self):
        while self.rfile.readline(1000):
            self.wfile.write(PAGE + b"\n")


@hookimpl
def srvkit_handlers():
    return {"page": Page, "blocking-page": BlockingPage}
