"""Conversations with handlers in memory: no socket, no server; a thread only where a loop runs already.

For tests that ask what a handler answers and not how it is served. Limits and timeouts play no part;
sockets are not known here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from srvkit.config.model import convert_options
from srvkit.config.problems import Problems
from srvkit.protocol.conversation import Conversation
from srvkit.server.blocking_handler import DatagramRequestHandler, kind_of

PEER = ("127.0.0.1", 50000)


def converse(
    handler: type[Any],
    messages: Iterable[bytes],
    *,
    options: Mapping[str, Any] | None = None,
    client_address: Any = PEER,
    server: Any = None,
) -> Any:
    """Run a handler in memory and return what it says: no connection, no server.

    For a `MessageHandler` the list of its replies, as messages: what `connected` says, then the answers to
    each of `messages` and what it sends besides, until it closes. Framing is not applied, but a reply that
    the handler's framing cannot encode is an error as ever. For a datagram handler likewise the list
    of datagrams that answer those of `messages`, a handler each. For any other handler the bytes it has
    written; each of `messages` is then what one `recv` finds, the end of the list that of the stream. An
    `AsyncHandler` finds all of them arrived, and is awaited in a loop of its own; in an `async def` test or a
    notebook, where a loop runs already, in a thread of its own too.

    `options` are the handler's, as in its table; `server` stands for the server. The handler's `startup`
    is not called. Raises what the handler raises, and ConfigError for wrong options.
    """
    kind = kind_of(handler)
    if server is None:
        server = SimpleNamespace(always_finish=True, reply_only_if_written=True)
    attributes = _options(handler, options)
    if kind == "message":
        return _exchange(handler, attributes, messages, client_address, server)
    if attributes:
        handler = type(handler.__name__, (handler,), {"__doc__": handler.__doc__, **attributes})
    if kind == "async":
        from srvkit.concurrency.asyncio.memory import run_unserved  # which imports asyncio

        return run_unserved(handler(None, client_address, server), messages)
    # By name: a handler may be built on the standard library's classes.
    if DatagramRequestHandler.__name__ in {base.__name__ for base in handler.__mro__}:
        answers: list[bytes] = []
        for message in messages:
            handler((message, MemorySocket(sent=answers)), client_address, server)
        return answers
    stream = MemorySocket(messages)
    handler(stream, client_address, server)
    return b"".join(stream.sent)


class MemorySocket:
    """What a handler needs of a socket: it reads what was given, and what it sends is kept in `sent`."""

    def __init__(self, incoming: Iterable[bytes] = (), sent: list[bytes] | None = None) -> None:
        self.sent: list[bytes] = [] if sent is None else sent
        self._incoming = [bytes(one) for one in reversed(list(incoming)) if one]
        self._timeout: float | None = None

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return at most `size` bytes of what came at once; b"" at the end."""
        if not self._incoming:
            return b""
        piece = self._incoming.pop()
        if len(piece) > size:
            self._incoming.append(piece[size:])
        return piece[:size]

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """As `recv`, into a buffer; return how many bytes came."""
        piece = self.recv(size or len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Keep what is sent."""
        self.sent.append(bytes(data))

    def send(self, data: Any, flags: int = 0) -> int:
        """Keep what is sent, all of it."""
        self.sendall(data)
        return memoryview(data).nbytes

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """Keep a datagram."""
        return self.send(data)

    def makefile(self, mode: str = "r", buffering: int = -1, **text: Any) -> Any:
        """Return a file on the connection, as a socket's."""
        raw: Any = _MemoryFile(self)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        binary = io.BufferedWriter(raw, size) if "w" in mode else io.BufferedReader(raw, size)
        return binary if "b" in mode else io.TextIOWrapper(binary, **text)

    def settimeout(self, timeout: float | None) -> None:
        """Remember a timeout; nothing here waits."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return the timeout that was set."""
        return self._timeout

    def getpeername(self) -> Any:
        """Return an address that stands for the client's."""
        return PEER

    def setsockopt(self, *option: Any) -> None:
        """Do nothing."""

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _NoOptions:
    """What is declared where nothing is: any option is unknown."""


class _MemoryFile(io.RawIOBase):
    def __init__(self, sock: MemorySocket) -> None:
        self._socket = sock

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._socket.recv_into(buffer)

    def write(self, data: Any) -> int:
        return self._socket.send(data)


class _Conversation(Conversation):
    """A conversation whose messages go in and out as they are; the handler's `link`, too."""

    def hold(self, message: bytes, encode: Callable[[bytes], bytes]) -> None:
        encode(message)
        self.out.append(bytes(message))

    send = hold

    def close(self) -> None:
        self.closing = True


def _exchange(
    handler: type[Any], attributes: dict[str, Any], messages: Iterable[bytes], peer: Any, server: Any
) -> list[bytes]:
    names = {"__module__": handler.__module__, "__qualname__": handler.__qualname__}
    one = type(handler.__name__, (handler,), {**names, **attributes})(None, peer, server)
    one.link = conversation = _Conversation(one)
    outcome = "error"
    try:
        conversation.greet()
        while conversation.busy:
            conversation.pull()
        for message in messages:
            if conversation.closing:
                break
            conversation.go_through(one.framing, [message])
        outcome = "closed" if conversation.closing else "eof"
    finally:
        one.disconnected(outcome)
    return conversation.out


def _options(handler: type[Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    declared = getattr(handler, "Options", None)
    if declared is None and not given:
        return {}
    problems = Problems()
    found = convert_options(declared or _NoOptions, dict(given or {}), ("options",), problems)
    problems.raise_if_any()
    return {"options": found}
