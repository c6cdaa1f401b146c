"""The transport of a coroutine's streams: what is done to it late, or twice, or in an unusual order."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

import srvkit
from srvkit import AsyncHandler

PATIENCE = 30
MUCH = bytes(16 * 1024 * 1024)  # more than a kernel takes of what nobody reads


@pytest.mark.parametrize("call", ["abort", "close", "write_eof", "pause_reading", "resume_reading"])
def test_nothing_happens_to_a_connection_that_has_ended(call: str, client: Any, monkeypatch: Any) -> None:
    """Others may still have its writer; it is given back once."""
    ended: queue.Queue[Any] = queue.Queue()
    writers: list[Any] = []

    class Handler(AsyncHandler):
        async def handle(self) -> None:
            writers.append(self.writer)
            await self.reader.readline()

    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency="asyncio") as served:
        server: Any = served.server
        done = server.request_done
        monkeypatch.setattr(server, "request_done", lambda request: (ended.put(request), done(request)))
        sock = client(served.address)
        sock.sendall(b"bye\n")
        assert sock.recv(1) == b""
        first = ended.get(timeout=PATIENCE)
        loop = server._srvkit_loop.aio
        loop.call_soon_threadsafe(getattr(writers[0].transport, call))
        sock = client(served.address)  # is served behind that
        sock.sendall(b"bye\n")
        assert sock.recv(1) == b""
        assert ended.get(timeout=PATIENCE) is not first
    assert ended.empty()


async def _abort_late(handler: AsyncHandler) -> Any:
    handler.writer.write(MUCH)
    handler.writer.close()
    waiting = asyncio.create_task(handler.writer.wait_closed())
    await asyncio.sleep(0)
    handler.writer.transport.abort()
    await asyncio.wait_for(waiting, PATIENCE)
    return handler.writer.transport.get_write_buffer_size()


async def _write_after_the_end(handler: AsyncHandler, then: str = "") -> Any:
    handler.writer.write_eof()
    if then:
        getattr(handler.writer.transport, then)()
    try:
        handler.writer.write(b"too late")
    except RuntimeError as error:
        return str(error)


LATE = "nothing can be written after write_eof()"


@pytest.mark.parametrize(
    ("what", "result"),
    [
        (_abort_late, 0),
        (_write_after_the_end, LATE),
        (lambda handler: _write_after_the_end(handler, "close"), LATE),
        (lambda handler: _write_after_the_end(handler, "abort"), LATE),
    ],
    ids=["close-abort", "write_eof", "write_eof-close", "write_eof-abort"],
)
def test_what_was_said_first_holds(what: Callable[[Any], Any], result: Any, client: Any) -> None:
    results: queue.Queue[Any] = queue.Queue()

    class Handler(AsyncHandler):
        async def handle(self) -> None:
            try:
                results.put(await what(self))
            except TimeoutError:
                results.put("it waits")

    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency="asyncio") as served:
        client(served.address)
        assert results.get(timeout=2 * PATIENCE) == result


def test_progress_counts_from_when_it_was_made(client: Any) -> None:
    """Not from when the loop was last told the time: a coroutine may have held it up since."""
    read = threading.Event()
    full = threading.Event()
    moments: queue.Queue[tuple[float, float]] = queue.Queue()

    class Handler(AsyncHandler):
        async def handle(self) -> None:
            transport = self.writer.transport
            self.writer.write(MUCH)
            full.set()
            read.wait(PATIENCE)  # holds up the loop, on purpose
            before, held = asyncio.get_running_loop().time(), transport.get_write_buffer_size()
            while transport.get_write_buffer_size() == held:  # until the kernel has room
                transport.flush()
            moments.put((before, transport.last))
            transport.abort()

    with srvkit.serve(Handler, "tcp://127.0.0.1:0", concurrency="asyncio") as served:
        sock = client(served.address)
        assert full.wait(PATIENCE)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # when all that the kernel has had is read
            while sock.recv(65536):
                pass
        read.set()
        before, progress = moments.get(timeout=PATIENCE)
    assert progress >= before
