"""Servers of greenlets, a conversation that does what its client says, and clients."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

import srvkit

gevent = pytest.importorskip("gevent")
PATIENCE = 30
ANY = ("127.0.0.1", 0)
TCP = "tcp://127.0.0.1:0"
BIG = 8 << 20  # bytes, more than the buffers of a connection hold


class GreenServer(srvkit.GreenletMixIn, srvkit.TCPServer):
    request_queue_size = 100


class GreenDatagrams(srvkit.GreenletMixIn, srvkit.UDPServer):
    pass


class Echo(srvkit.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Talk(srvkit.MessageHandler):
    """Do what the client says; `NAMED` are those who gave themselves a name."""

    framing = srvkit.Lines()
    NAMED: ClassVar[dict[bytes, Talk]] = {}
    REASONS: ClassVar[list[str]] = []

    def handle_message(self, message: bytes) -> Any:
        word, _, rest = message.partition(b" ")
        return getattr(self, word.decode())(rest)

    def disconnected(self, reason: str) -> None:
        self.REASONS.append(reason)

    def echo(self, rest: bytes) -> bytes:
        return rest

    def name(self, rest: bytes) -> bytes:
        self.NAMED[rest] = self
        return b"hello " + rest

    def tell(self, rest: bytes) -> bytes:
        name, _, text = rest.partition(b" ")
        self.NAMED[name].send(text)
        return b"told"

    def dismiss(self, rest: bytes) -> bytes:
        self.NAMED[rest].close()
        return b"dismissed"

    def big(self, rest: bytes) -> bytes:
        return rest * BIG

    def sleep(self, rest: bytes) -> bytes:
        self.NAMED[b"asleep"] = self
        gevent.sleep(PATIENCE)
        return b"slept"


def ask(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line)
    return read_line(sock)


def read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1 << 20)
        if not data:
            break
        line += data
    return line


def later(call: Callable[..., Any], *arguments: Any) -> None:
    gevent.get_hub().loop.run_callback(call, *arguments)
