"""A plugin for test_to_the_end.py: handlers that note what they hear, in a file beside them."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from srvkit import (
    AsyncHandler,
    BaseRequestHandler,
    DatagramRequestHandler,
    FrameError,
    Framing,
    LengthPrefix,
    Lines,
    MessageHandler,
    StreamRequestHandler,
    hookimpl,
)

HERE = Path.cwd()
HOST_OF_ALL = threading.Lock()


def note(handler: Any, line: bytes) -> None:
    with HOST_OF_ALL, (HERE / "noted").open("ab") as file:
        file.write(handler.server.name.encode() + b" " + line.strip() + b"\n")


def gate(line: bytes) -> Path | None:
    """The file that is to be there before the line is answered, if it asks for one."""
    word, _, name = line.strip().partition(b" ")
    return HERE / name.decode() if word == b"wait" else None


class Numbered(Lines):
    """Numbers what it sends: whoever mixes up the order is found out."""

    number = 0

    def encode(self, message: bytes) -> bytes:
        self.number += 1
        mine = self.number
        return b"%d %s\n" % (mine, message)


class Still(Framing):
    """Never gets on where a length of nothing comes."""

    def take(self, data: Any, start: int, seen: int) -> tuple[bytes, int] | None:
        end = start + data[start]
        return None if end > len(data) else (bytes(data[start + 1 : end]), end)

    def encode(self, message: bytes) -> bytes:
        return bytes([len(message) + 1]) + message


class Talk(MessageHandler):
    framing = Lines(max_message=100)

    def handle_message(self, message: bytes) -> bytes | None:
        note(self, message)
        if (path := gate(message)) is not None:
            note(self, b"waiting " + path.name.encode())
            while not path.exists():
                time.sleep(0.002)
        if message == b"wrong":
            raise FrameError("a checksum that is none")
        if message == b"fail":
            raise LookupError("as wished")
        if message == b"large":
            self.send(b"L" * 90)
            self.close()
            return None
        return b"heard " + message

    def disconnected(self, reason: str) -> None:
        note(self, b"left " + reason.encode())
        self.send(b"bye " + reason.encode())


class Huge(MessageHandler):
    """Takes leave with a mebibyte."""

    framing = Lines()

    def handle_message(self, message: bytes) -> None:
        self.close()

    def disconnected(self, reason: str) -> None:
        self.send(b"x" * (1 << 20))


class Many(MessageHandler):
    """Sends from four threads, and replies."""

    framing = Numbered()

    def handle_message(self, message: bytes) -> Any:
        def work() -> None:
            for _ in range(100):
                self.send(b"x" * 100)

        for _ in range(4):
            threading.Thread(target=work).start()
        return (b"reply" for _ in range(100))


class Stand(MessageHandler):
    framing = Still()

    def handle_message(self, message: bytes) -> bytes:
        return message


class Tenfold(MessageHandler):
    """Answers datagrams, and sometimes does not."""

    def handle_message(self, message: bytes) -> bytes:
        if message == b"boom":
            raise LookupError("as wished")
        if message == b"wrong":
            raise FrameError("a checksum that is none")
        return message * 10


class TenfoldCoroutine(AsyncHandler):
    async def handle(self) -> None:
        message = await self.reader.read()
        if message == b"boom":
            raise LookupError("as wished")
        if message == b"wrong":
            raise FrameError("a checksum that is none")
        self.writer.write(message * 10)


class TenfoldByHand(DatagramRequestHandler):
    def handle(self) -> None:
        message = self.rfile.read()
        if message == b"boom":
            raise LookupError("as wished")
        if message == b"wrong":
            raise FrameError("a checksum that is none")
        self.wfile.write(message * 10)


class Stream(StreamRequestHandler):
    """Reads lines as files do."""

    def handle(self) -> None:
        for line in self.rfile:
            note(self, line)
            if (path := gate(line)) is not None:
                note(self, b"waiting " + path.name.encode())
                while not path.exists():
                    time.sleep(0.002)


class Async(AsyncHandler):
    """Reads in a way that the first line names, and answers each line."""

    async def handle(self) -> None:
        way = (await self.reader.readline()).strip()
        async for line in self.lines(way.decode()):
            note(self, line)
            if (path := gate(line)) is not None:
                note(self, b"waiting " + path.name.encode())
                while not path.exists():
                    await asyncio.sleep(0.002)
            self.writer.write(line)

    async def lines(self, way: str) -> Any:
        if way == "until":
            while True:
                yield await self.reader.readuntil(b"\n")
        elif way == "exactly":
            while True:
                yield await self.reader.readexactly(int(await self.reader.readexactly(3)))
        elif way == "read":
            held = b""
            while data := await self.reader.read(7):
                *lines, held = (held + data).split(b"\n")
                for line in lines:
                    yield line + b"\n"
        else:
            async for line in self.reader:
                yield line


class ByHand(BaseRequestHandler):
    """Cuts messages for itself."""

    def handle(self) -> None:
        framing = LengthPrefix(2).fresh(100)
        if isinstance(self.request, tuple):
            data, sock = self.request
            for message in framing.datagram(data):
                sock.sendto(framing.encode(message), self.client_address)
            return
        while data := self.request.recv(100):
            for message in framing.feed(data):
                self.request.sendall(framing.encode(message))
        framing.eof()


class AsyncByHand(AsyncHandler):
    async def handle(self) -> None:
        framing = LengthPrefix(2).fresh(100)
        while data := await self.reader.read(100):
            for message in framing.feed(data):
                self.writer.write(framing.encode(message))
        framing.eof()


@hookimpl
def srvkit_handlers() -> dict[str, Any]:
    return {
        "talk": Talk,
        "huge": Huge,
        "many": Many,
        "stand": Stand,
        "stream": Stream,
        "coroutine": Async,
        "tenfold": Tenfold,
        "tenfold-coroutine": TenfoldCoroutine,
        "tenfold-by-hand": TenfoldByHand,
        "by-hand": ByHand,
        "async-by-hand": AsyncByHand,
    }


@hookimpl
def srvkit_connection_close(server: Any, outcome: str, bytes_in: int, bytes_out: int) -> None:
    with HOST_OF_ALL, (HERE / "ended").open("a") as file:
        file.write(f"{server.name} {outcome} {bytes_in} {bytes_out}\n")
