"""A program: serve lines under a model, and write down which calls the round of one message takes.

    python traced_calls.py MODEL FILE        with a message handler
    python traced_calls.py coroutine FILE    with an AsyncHandler, under asyncio

A round lasts from one call of the handler to its next one, while a client sends a line, reads the reply and
sends the next. FILE gets a list of rounds; each is a list of what single threads have called meanwhile, by
module and name.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import srvkit

PACKAGE = f"{Path(srvkit.__file__).parent}{os.sep}"
ROUNDS = 30
PATIENCE = 10  # seconds
# Where the server waits for the client, the client waits for that: else its line may come before.
REST = {"pool": "_Worker._wait", "gevent": "Wait.wait"}
MODEL, FILE = sys.argv[1:]

calls: list[tuple[int, str, str]] = []
begins: list[int] = []  # of the rounds
client = os.getpid(), threading.get_ident()
at_rest = threading.Semaphore(0)
handled = False  # since it was at rest


def note(frame: FrameType, event: str, called: Any) -> None:
    """Write a call down, where it is the server's: of srvkit, or of what reads and writes for it."""
    global handled
    thread = threading.get_ident()
    if (os.getpid(), thread) == client:
        return
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(PACKAGE):
        calls.append((thread, code.co_filename.removeprefix(PACKAGE), code.co_qualname))
        if handled and code.co_qualname == REST.get(MODEL):
            handled = False
            at_rest.release()
    elif event == "c_call" and called.__name__ in ("recv", "send"):
        calls.append((thread, "the kernel", called.__name__))


def handle(name: str) -> None:
    """Begin a round; after enough of them, tell of them all."""
    global handled
    handled = True
    begins.append(len(calls))
    calls.append((threading.get_ident(), "your handler", name))
    if len(begins) == ROUNDS:
        rounds = []
        for begin, end in pairwise(begins):
            threads: dict[int, list[tuple[str, str]]] = {}
            for thread, module, called in calls[begin:end]:
                threads.setdefault(thread, []).append((module, called))
            rounds.append(list(threads.values()))
        Path(FILE).write_text(json.dumps(rounds))


class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        handle("handle_message")
        return message


class EchoOfStreams(srvkit.AsyncHandler):
    async def handle(self) -> None:
        while line := await self.reader.readline():
            handle("handle")
            self.writer.write(line)
            await self.writer.drain()


handler = EchoOfStreams if MODEL == "coroutine" else Echo
model: Any = MODEL
if MODEL in ("asyncio", "coroutine"):  # on any loop it is the same
    model = {"name": "asyncio", "loop": "asyncio"}
threading.setprofile(note)
sys.setprofile(note)  # for what is forked from this thread
with (
    srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model) as server,
    socket.create_connection(server.address) as peer,
    peer.makefile("rb") as replies,
):
    for _ in range(ROUNDS):
        peer.sendall(b"hello\n")
        assert replies.readline() == b"hello\n"
        if MODEL in REST:
            assert at_rest.acquire(timeout=PATIENCE)
    peer.shutdown(socket.SHUT_WR)
    assert replies.read() == b""
