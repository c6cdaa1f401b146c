"""What becomes of a connection whose handler is done before its peer is."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest

import srvkit

MODELS = ["serial", "threading", "pool", "gevent"]
REPLY = b"x" * 8_000_000  # more than the kernel keeps


class Brief(srvkit.StreamRequestHandler):
    """Reads one line, answers, and has done its part."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(REPLY + b"\n")


class BriefMessages(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        self.close()
        return REPLY


CASES = [(model, handler) for model in MODELS for handler in (Brief, BriefMessages)]
CASES += [("event", BriefMessages), ("asyncio", BriefMessages)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def brief(request: Any) -> Any:
    """A server of one connection at a time."""
    model, handler = request.param
    if model == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    limits = {"max_connections": 1, "idle_timeout": 0, "first_byte_timeout": 0}
    with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model, limits=limits) as server:
        yield server


def everything(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as file:
        return file.read()


def test_a_client_that_stays_holds_nobody_up(brief: Any, client: Any) -> None:
    """Its seat, its thread and the loop are free as soon as it was answered."""
    first = client(brief.address)
    first.sendall(b"hello\n")
    assert everything(first) == REPLY + b"\n"
    second = client(brief.address)
    second.sendall(b"hello\n")
    assert everything(second) == REPLY + b"\n"


def test_the_reply_survives_what_was_not_read(brief: Any, client: Any) -> None:
    """Closing with unread input would have the kernel reset the connection and drop the rest of the reply."""
    with client(brief.address) as sock:
        sock.sendall(b"hello\n" + bytes(300_000))
        assert everything(sock) == REPLY + b"\n"
    with client(brief.address) as another:  # and it goes on
        another.sendall(b"hello\n")
        assert everything(another) == REPLY + b"\n"
