"""Servers with a loop of asyncio's, echoes for them, and clients."""

from __future__ import annotations

import socket
import struct
from typing import Any

import srvkit

ANY = ("127.0.0.1", 0)
MUCH = 16 << 20  # more than the kernel takes for a peer that does not read


class Echo(srvkit.AsyncHandler):
    async def handle(self) -> None:
        while line := await self.reader.readline():
            self.writer.write(line)
            await self.writer.drain()


class MessageEcho(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        return message


class Server(srvkit.TaskMixIn, srvkit.TCPServer):
    """Notes what is shut down, and how it ended."""

    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ends: list[Any] = []

    def shutdown_request(self, request: Any) -> None:
        self.ends.append(getattr(request, "outcome", None))
        super().shutdown_request(request)


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    with sock.makefile("rb") as answers:
        return answers.readline()


def everything(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 20):
        data += piece
    return data


def reset(sock: socket.socket) -> None:
    """Vanish without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
