"""A coroutine handler without a server: its streams hold what is given and keep what is written.

For tests. The streams are those that a server gives it; what stands behind them is memory.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from srvkit.concurrency.asyncio.streams import Reader, Writer


def run_unserved(handler: Any, incoming: Iterable[bytes]) -> bytes:
    """Await the handler's `handle()` in a loop of its own, and return what it has written.

    `incoming` has arrived already, and its end. Where a loop is running in this thread, theirs runs in
    another thread, which this call waits for. Raises what the handler raises.
    """
    transport = _Memory(handler.client_address)

    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        handler.reader = Reader(transport, loop)
        handler.writer = Writer(transport, handler.reader, loop)
        for piece in incoming:
            handler.reader.feed_data(piece)
        handler.reader.feed_eof()
        try:
            await handler.handle()
        finally:
            transport.close()  # as a server does; a writer left open complains when it is collected

    _run(conversation)
    return b"".join(transport.sent)


def _run(conversation: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(conversation())
    else:
        _run_apart(conversation)


def _run_apart(conversation: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it in a thread of its own: a thread has one running loop at most."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(conversation())
        except BaseException as error:  # also what ends a thread without a word
            raised.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="conversation", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised.pop()


class _Memory:
    """Stands for the transport of a connection whose peer takes everything at once."""

    fault = None
    pending, high_water = 0, 1

    def __init__(self, peer: Any) -> None:
        self.sent: list[bytes] = []
        self._peer = peer
        self._closing = False

    def write(self, data: Any) -> None:
        if not self._closing:
            self.sent.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._closing = True

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    async def wait_closed(self) -> None:
        """Return: nothing is on its way."""

    def pause_reading(self) -> None:
        """Do nothing: everything has arrived."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._peer if name == "peername" else default
