"""A plugin for test_matrix.py: the same answer from every kind of handler."""

from __future__ import annotations

from typing import Any

from srvkit import (
    AsyncHandler,
    BaseRequestHandler,
    DatagramRequestHandler,
    Lines,
    MessageHandler,
    StreamRequestHandler,
    hookimpl,
)


def answer(handler: Any, line: bytes) -> bytes:
    """The line in capitals, and the mixin that it was handled under."""
    names = [base.__name__ for base in type(handler.server).__mro__ if base.__name__.endswith("MixIn")]
    names = [name for name in names if "Stats" not in name]  # those of every server that has a supervisor
    return line.strip().upper() + b" " + (names[0].encode() if names else b"alone")


class BaseStream(BaseRequestHandler):
    def handle(self) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += self.request.recv(100)
        self.request.sendall(answer(self, line) + b"\n")


class BaseDatagram(BaseRequestHandler):
    def handle(self) -> None:
        data, socket = self.request
        socket.sendto(answer(self, data) + b"\n", self.client_address)


class Stream(StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(answer(self, self.rfile.readline()) + b"\n")


class Datagram(DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(answer(self, self.rfile.readline()) + b"\n")


class Message(MessageHandler):
    framing = Lines()

    def handle_message(self, message: bytes) -> bytes:
        return answer(self, message)


class Async(AsyncHandler):
    async def handle(self) -> None:
        self.writer.write(answer(self, await self.reader.readline()) + b"\n")


@hookimpl
def srvkit_handlers() -> dict[str, Any]:
    return {
        "async": Async,
        "base-stream": BaseStream,
        "base-datagram": BaseDatagram,
        "stream": Stream,
        "datagram": Datagram,
        "message": Message,
    }
