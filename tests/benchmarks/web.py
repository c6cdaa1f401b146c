"""A minimal HTTP/1.1 server with keep-alive, enough for wrk: one page.

The framing cuts requests out of the stream, with their bodies; `answer` turns one into its response.
Neither knows who serves it, so peers are measured with the same two. Source: RFC 9112.
"""

from __future__ import annotations

import re

from srvkit import MessageHandler
from srvkit.errors import FrameError
from srvkit.protocol.framing import Framing

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r\n", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
PAGE = b"Hello, world!\n"


class Requests(Framing):
    """Whole requests, head and body; responses are sent as they are."""

    __slots__ = ()

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        end = data.find(b"\r\n\r\n", start)
        if (len(data) if end < 0 else end) - start > self.limit:
            raise FrameError(f"request longer than {self.limit} bytes")
        if end < 0:
            return None
        end += 4
        length = LENGTH.search(data, start, end)
        if length:
            end += int(length[1])
            if end - start > self.limit:
                raise FrameError(f"request longer than {self.limit} bytes")
        return (bytes(data[start:end]), end) if end <= len(data) else None

    def encode(self, message: bytes) -> bytes:
        return message


def response(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    return head + body


def answer(request: bytes) -> bytes:
    """Respond to one request."""
    parts = request[: request.index(b"\r\n")].split(b" ")
    if len(parts) != 3:
        return response(b"400 Bad Request", b"")
    if parts[0] != b"GET":
        return response(b"405 Method Not Allowed", b"")
    return response(b"200 OK", PAGE) if parts[1] == b"/" else response(b"404 Not Found", b"")


framing = Requests


class Web(MessageHandler):
    """Serve the page; the connection stays open until the client wants it closed."""

    framing = Requests()

    def handle_message(self, message: bytes) -> bytes:
        if CLOSE.search(message) or b" HTTP/1.0\r\n" in message:
            self.close()
        return answer(message)
