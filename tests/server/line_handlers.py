"""A plugin for tests of every model: what a line asks for is done by every kind of handler alike."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from srvkit import AsyncHandler, BaseRequestHandler, Lines, MessageHandler, StreamRequestHandler, hookimpl

CHUNK = b"x" * 65535


def note(handler: Any) -> None:
    """Write down that a handler runs, for tests to see that it did not."""
    with open("handled", "ab", buffering=0) as file:
        file.write(f"{handler.server.name} {handler.client_address!r}\n".encode())


def about(handler: Any) -> bytes:
    """All that a handler knows of its peer."""
    peer, tls, proxy = handler.peer, handler.peer.tls, handler.peer.proxy
    subject = dict(pair for (pair,) in peer.certificate["subject"]) if peer.certificate else None
    return json.dumps(
        {
            "address": handler.client_address,
            "same": peer.address == handler.client_address,
            "socket": peer.socket_address if not isinstance(peer.address, str) or proxy else None,
            "credentials": peer.credentials,
            "tls": tls and [tls.version, tls.server_name, tls.protocol],
            "certificate": subject,
            "proxy": proxy and [proxy.version, proxy.is_local, proxy.source, proxy.destination],
            "authority": proxy and proxy.authority,
            "tlvs": proxy and [[kind, value.hex()] for kind, value in proxy.tlvs],
            "proxied": proxy and proxy.tls and [proxy.tls.client_ssl, proxy.tls.version],
            "pid": os.getpid(),
        }
    ).encode()


def replies(handler: Any, line: bytes) -> Iterator[bytes]:
    """`peer`: what is known of it; `big N`: N bytes, in parts; `lines`: how many so far; else itself."""
    word, _, rest = line.partition(b" ")
    if word == b"peer":
        yield about(handler)
    elif word == b"lines":
        yield b"%d" % handler.lines
    elif word == b"big":
        for _ in range(int(rest) // (len(CHUNK) + 1)):
            yield CHUNK
    elif word == b"early":
        yield b"x" * int(rest)
    else:
        yield line


def is_last(line: bytes) -> bool:
    """Whether the connection is to be ended after the reply, whatever the client still has to say."""
    return line.startswith(b"early ")


class Message(MessageHandler):
    framing = Lines()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lines = 0

    def connected(self) -> None:
        note(self)

    def handle_message(self, message: bytes) -> Any:
        self.lines += 1
        if message == b"tls":
            self.start_tls()
            return b"go"
        if is_last(message):
            for reply in replies(self, message):
                self.send(reply)
            self.close()
            return None
        return replies(self, message)


class Blocking(StreamRequestHandler):
    def handle(self) -> None:
        note(self)
        while line := self.rfile.readline().removesuffix(b"\n"):
            if line == b"tls":
                self.wfile.write(b"go\n")
                self.start_tls()
                continue
            for reply in replies(self, line):
                self.wfile.write(reply + b"\n")
            if is_last(line):
                return


class Receive(BaseRequestHandler):
    """The same as a loop of recv()."""

    def handle(self) -> None:
        note(self)
        held = b""
        while data := self.request.recv(65536):
            *lines, held = (held + data).split(b"\n")
            for line in lines:
                for reply in replies(self, line):
                    self.request.sendall(reply + b"\n")
                if is_last(line):
                    return


class Async(AsyncHandler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lines = 0

    async def handle(self) -> None:
        note(self)
        while line := (await self.reader.readline()).removesuffix(b"\n"):
            self.lines += 1
            if line == b"tls":
                self.writer.write(b"go\n")
                await self.start_tls()
                continue
            for reply in replies(self, line):
                self.writer.write(reply + b"\n")
                await self.writer.drain()
            if is_last(line):
                return


@hookimpl
def srvkit_handlers() -> dict[str, Any]:
    return {
        "line-message": Message,
        "line-blocking": Blocking,
        "line-receive": Receive,
        "line-async": Async,
    }
