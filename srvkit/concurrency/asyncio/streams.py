"""The reader and the writer of a coroutine: asyncio's own classes, with the hot paths made short.

They look like asyncio's in every method that its documentation lists. What differs is inside: a line is
one coroutine deep where asyncio's are three, and the reader knows since when somebody waits. They know
the transport by its methods and nothing of servers.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, NoReturn

LIMIT = 65536  # bytes of a line where nobody says otherwise, as in asyncio


class Reader(asyncio.StreamReader):
    """What has arrived and was not read yet.

    `transport` is paused while more than twice `limit` bytes are held. `waiting_since` is the moment of
    the monotonic clock since which a coroutine waits for more; 0 while none does. `fault` is the
    exception that told the reading coroutine of its peer's bytes being wrong, or too few.

    Whatever has arrived before the transport failed is handed out first; asyncio's would lose it.
    """

    fault: Exception | None = None
    _since = 0.0

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop, limit: int = LIMIT) -> None:
        # Not the base class's: it looks for the running loop, and sets what is not used here.
        self._source = transport
        self._events = loop
        self._most = limit
        self._full = 2 * limit
        self._held = bytearray()
        self._held_back = False
        self._over = False
        self._failure: BaseException | None = None
        self._arrival: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "at its end" if self._over else "open"
        return f"<{type(self).__name__} {state}, {len(self._held)} bytes>"

    # ---- for the transport

    def feed_data(self, data: Any) -> None:
        held = self._held
        held += data
        arrival = self._arrival
        if arrival is not None:
            self._arrival = None
            if not arrival.done():
                arrival.set_result(None)
        if len(held) > self._full and not self._held_back:
            self._held_back = True
            self._source.pause_reading()

    def feed_eof(self) -> None:
        self._over = True
        self._wake()

    def set_exception(self, exc: BaseException) -> None:
        self._failure = exc
        self._wake()

    def set_transport(self, transport: Any) -> None:
        self._source = transport

    def detach(self) -> None:
        """Let go of the transport: nothing more comes. What was received can still be read."""
        self._source = None
        self._held_back = False

    @property
    def unread(self) -> int:
        """How many bytes were received that nobody has read."""
        return len(self._held)

    @property
    def waiting_since(self) -> float:
        return self._since if self._arrival is not None and not self._arrival.done() else 0.0

    # ---- for the coroutine

    def exception(self) -> Any:
        return self._failure

    def at_eof(self) -> bool:
        return self._over and not self._held

    async def readline(self) -> bytes:
        """Return a line with its end; what is left of one at the end of the stream, then nothing.

        Raises ValueError for a line longer than the limit.
        """
        held = self._held
        seen = 0
        while True:
            end = held.find(b"\n", seen) + 1
            if end:
                if end - 1 > self._most:
                    self._take(end)
                    self._blame(ValueError(f"a line of more than {self._most} bytes"))
                return self._take(end)
            seen = len(held)
            if seen > self._most:
                self._take(seen)
                self._blame(ValueError(f"a line of more than {self._most} bytes"))
            if self._failure is not None:
                await self._fail()
            if self._over:
                return self._take(seen)
            await self._more()

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """Return what comes up to and including the first separator, or the first of several in a tuple.

        Raises IncompleteReadError at the end of the stream, LimitOverrunError beyond the limit.
        """
        separators = separator if isinstance(separator, tuple) else (separator,)
        if not separators or not all(separators):
            raise ValueError("a separator must have at least one byte")
        longest = max(map(len, separators))
        held = self._held
        seen = 0
        while True:
            found = [(at + len(each), at) for each in separators if (at := held.find(each, seen)) >= 0]
            if found:
                end, at = min(found)
                if at > self._most:
                    self._blame(asyncio.LimitOverrunError("the separator is beyond the limit", at))
                return self._take(end)
            seen = max(0, len(held) + 1 - longest)  # a separator may have begun
            if seen > self._most:
                self._blame(asyncio.LimitOverrunError("no separator within the limit", seen))
            if self._failure is not None:
                await self._fail()
            if self._over:
                self._blame(asyncio.IncompleteReadError(self._take(len(held)), None))
            await self._more()

    async def readexactly(self, n: int) -> bytes:
        """Return `n` bytes. Raises IncompleteReadError if the stream ends before."""
        if n < 0:
            raise ValueError(f"cannot read {n} bytes")
        held = self._held
        while len(held) < n:
            if self._failure is not None:
                await self._fail()
            if self._over:
                self._blame(asyncio.IncompleteReadError(self._take(len(held)), n))
            await self._more()
        return self._take(n)

    async def read(self, n: int = -1) -> bytes:
        """Return up to `n` bytes, at least one unless the stream is at its end; all to the end for -1."""
        if n == 0:
            return b""
        if n < 0:
            return await self._read_all()
        while not self._held:
            if self._failure is not None:
                await self._fail()
            if self._over:
                return b""
            await self._more()
        return self._take(min(n, len(self._held)))

    async def _read_all(self) -> bytes:
        pieces = []
        try:
            while piece := await self.read(self._full):
                pieces.append(piece)
        except BaseException:
            self._held[:0] = b"".join(pieces)  # for whoever reads on
            raise
        return b"".join(pieces)

    def _take(self, count: int) -> bytes:
        held = self._held
        if count == len(held):
            data = bytes(held)
            held.clear()
        else:
            data = bytes(held[:count])
            del held[:count]
        if self._held_back and len(held) <= self._most:
            self._resume()
        return data

    def _more(self) -> asyncio.Future[None]:
        """Return what to await for more bytes, the end, or an exception."""
        if self._arrival is not None and not self._arrival.done():
            raise RuntimeError("another coroutine is already waiting for data of this connection")
        if self._held_back:  # more than twice the limit is wanted
            self._resume()
        self._since = monotonic()
        self._arrival = arrival = self._events.create_future()
        return arrival

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)

    def _resume(self) -> None:
        self._held_back = False
        self._source.resume_reading()

    def _blame(self, fault: Exception) -> NoReturn:
        self.fault = fault
        raise fault

    async def _fail(self) -> NoReturn:
        # Not at once: a handler that ignores the exception and reads again must not hold up everybody.
        await asyncio.sleep(0)
        assert self._failure is not None
        raise self._failure


class Writer(asyncio.StreamWriter):
    """What is on its way to the peer; the transport does it all.

    TLS is configured with the server, so `start_tls` takes no context.
    """

    def __init__(self, transport: Any, reader: Reader, loop: asyncio.AbstractEventLoop) -> None:
        # Not the base class's, which makes a future for each connection; but its names, for its methods.
        self._transport = transport
        self._reader = reader
        self._loop = loop

    def write(self, data: Any) -> None:
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait while the peer must first take something. Raises OSError when it has gone."""
        transport = self._transport
        while transport.fault is None:
            if transport.pending < transport.high_water:
                return
            await transport.room()
        await asyncio.sleep(0)  # as in the reader
        raise transport.fault

    async def wait_closed(self) -> None:
        """Wait, after `close()`, until what was written is out or the peer has gone."""
        await self._transport.wait_closed()

    async def start_tls(self, sslcontext: Any = None, **settings: Any) -> None:
        """Encrypt the connection with the server's certificates; without arguments, which asyncio's has."""
        if sslcontext is not None or settings:
            raise TypeError("the certificates are those of the server: start_tls() takes no arguments")
        await self._transport.start_tls()
