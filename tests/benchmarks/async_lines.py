"""Line echo as a coroutine, the same that a bare server of asyncio streams would run."""

from __future__ import annotations

from srvkit import AsyncHandler


class AsyncLines(AsyncHandler):
    """Echo lines until the client closes."""

    async def handle(self) -> None:
        reader, writer = self.reader, self.writer
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
