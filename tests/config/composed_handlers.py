"""Handlers of every kind, in order and not, and the tables of servers that name them."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import AsyncIterator
from typing import Any

from srvkit.protocol.framing import Lines
from srvkit.server.blocking_handler import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from srvkit.server.message_handler import MessageHandler


class Message(MessageHandler):
    """A message handler that leaves everything to the configuration."""


class Strict(MessageHandler):
    framing = Lines(max_message=10)


class Room(MessageHandler):
    one_process = True


class BlockingRoom(BaseRequestHandler):
    one_process = True


class Stream(StreamRequestHandler):
    """A handler of streams."""


class Datagram(DatagramRequestHandler):
    """A handler of datagrams."""


class Blocking(BaseRequestHandler):
    """A handler of either."""


class Async:
    async def handle(self) -> None:
        """Not run by any model of this part."""


class NoInstance(MessageHandler):
    framing = Lines  # type: ignore[assignment]


class Shared(Lines):
    """Has no copy: two connections would hold one lock."""

    def __init__(self, lock: Any) -> None:
        super().__init__()


class Later(Lines):
    """Is given an attribute below, when it was made already."""


class Itself(Lines):
    def fresh(self, max_message: int | None = None) -> Itself:
        return self


class Exits(Lines):
    def fresh(self, max_message: int | None = None) -> Exits:
        raise SystemExit(3)


class Lost(Lines):
    def fresh(self, max_message: int | None = None) -> Lost:  # type: ignore[empty-body]
        """Forgets to return it."""


class NoHandler:
    """Has nothing a server could call."""


HANDLERS: dict[str, Any] = {
    "message": Message,
    "strict": Strict,
    "room": Room,
    "blocking-room": BlockingRoom,
    "stream": Stream,
    "datagram": Datagram,
    "blocking": Blocking,
    "async": Async,
    "no-instance": NoInstance,
    "no-handler": NoHandler,
    "shared": type("Shared", (MessageHandler,), {"framing": Shared(threading.Lock())}),
    "itself": type("Itself", (MessageHandler,), {"framing": Itself()}),
    "later": type("LaterHandler", (MessageHandler,), {"framing": Later()}),
    "exits": type("ExitsHandler", (MessageHandler,), {"framing": Exits()}),
    "lost": type("LostHandler", (MessageHandler,), {"framing": Lost()}),
    "none": type("NoneHandler", (MessageHandler,), {"framing": None}),
    "named": type("NamedHandler", (MessageHandler,), {"framing": "lines"}),
}


async def coroutine(self: Any, *args: Any) -> None:
    """What a message handler's methods must not be."""


async def generator(self: Any, message: bytes) -> AsyncIterator[bytes]:
    yield message


HANDLERS |= {
    "async-message": type("AsyncMessage", (MessageHandler,), {"handle_message": coroutine}),
    "async-replies": type("AsyncReplies", (MessageHandler,), {"handle_message": generator}),
    "async-greeting": type("AsyncGreeting", (MessageHandler,), {"connected": coroutine}),
    "async-stream": type("AsyncStream", (StreamRequestHandler,), {"handle": coroutine}),
    "async-standard": type("AsyncStandard", (socketserver.StreamRequestHandler,), {"handle": coroutine}),
}
HANDLERS["later"].framing.mark = b"*"


def server(
    handler: str = "message", listen: str = '"tcp://127.0.0.1:7007"', more: str = "", name: str = "a"
) -> str:
    return f'[server.{name}]\nlisten = {listen}\nhandler = "{handler}"\n{more}\n'
