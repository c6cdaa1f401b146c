"""The streams of coroutines do what asyncio's own do, whatever arrives in whatever pieces."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srvkit.concurrency.asyncio.streams import Reader

LIMIT = 8

calls = st.one_of(
    st.just(("readline",)),
    st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"ab", b"aab", b"\n\n"])),
    st.tuples(st.just("readexactly"), st.integers(0, 20)),
    st.tuples(st.just("read"), st.integers(-1, 20)),
    st.just(("at_eof",)),
)
pieces = st.lists(st.text("ab\n", min_size=1, max_size=12).map(str.encode), max_size=6)


class Source:
    """Counts whether the reader wants more just now."""

    paused = False

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


async def read(reader: Any, wanted: list[Any], arriving: list[bytes]) -> list[Any]:
    """Make the calls while the pieces arrive; return what came of each, and of each piece."""
    seen: list[Any] = []

    async def make_calls() -> None:
        for name, *arguments in wanted:
            try:
                result = getattr(reader, name)(*arguments)
                seen.append(result if isinstance(result, bool) else await result)
            except asyncio.IncompleteReadError as error:
                seen.append(("incomplete", error.partial, error.expected))
            except (ValueError, asyncio.LimitOverrunError) as error:
                seen.append(type(error))

    task = asyncio.ensure_future(make_calls())
    for piece in arriving:
        reader.feed_data(piece)
        for _ in range(5):
            await asyncio.sleep(0)
    reader.feed_eof()
    await asyncio.wait_for(task, 30)
    return seen


@settings(deadline=None)
@given(st.lists(calls, max_size=8), pieces)
@example([("readline",)], [b"a" * 9])
@example([("readline",), ("readline",)], [b"a" * 9 + b"\nab"])
@example([("readuntil", b"aab")], [b"a", b"aa", b"b"])
@example([("readexactly", 18)], [b"a" * 17, b"b"])
def test_it_reads_as_asyncios_reader(wanted: list[Any], arriving: list[bytes]) -> None:
    async def both() -> None:
        theirs = asyncio.StreamReader(limit=LIMIT)
        ours = Reader(Source(), asyncio.get_running_loop(), LIMIT)
        assert await read(ours, wanted, arriving) == await read(theirs, wanted, arriving)

    asyncio.run(both())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
@settings(deadline=None)
@given(pieces)
def test_the_first_of_several_separators_ends_it_as_in_asyncio(arriving: list[bytes]) -> None:
    async def both() -> None:
        wanted = [("readuntil", (b"\n", b"ab", b"aab"))] * 3
        theirs = asyncio.StreamReader(limit=1000)
        ours = Reader(Source(), asyncio.get_running_loop(), 1000)
        assert await read(ours, wanted, arriving) == await read(theirs, wanted, arriving)

    asyncio.run(both())


def test_the_source_is_paused_while_too_much_is_held() -> None:
    async def test() -> None:
        source = Source()
        reader = Reader(source, asyncio.get_running_loop(), LIMIT)
        reader.feed_data(b"a" * 2 * LIMIT)
        assert not source.paused
        reader.feed_data(b"a")
        assert source.paused
        await reader.readexactly(LIMIT)
        assert source.paused
        await reader.readexactly(1)
        assert not source.paused

    asyncio.run(test())


def test_it_knows_since_when_somebody_waits() -> None:
    async def test() -> None:
        reader = Reader(Source(), asyncio.get_running_loop(), LIMIT)
        assert reader.waiting_since == 0
        for _ in range(2):
            waiting = asyncio.create_task(reader.readline())
            await asyncio.sleep(0)
            assert 0 < reader.waiting_since <= asyncio.get_running_loop().time()
            with pytest.raises(RuntimeError, match="already waiting"):
                await reader.readline()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert reader.waiting_since == 0

    asyncio.run(test())


def test_an_exception_reaches_who_waits_and_who_comes_later() -> None:
    async def test() -> None:
        reader = Reader(Source(), asyncio.get_running_loop(), LIMIT)
        waiting = asyncio.create_task(reader.readline())
        await asyncio.sleep(0)
        reader.set_exception(error := TimeoutError("too late"))
        for attempt in (waiting, reader.read(1), reader.readexactly(1), reader.readuntil(), reader.read()):
            with pytest.raises(TimeoutError) as caught:
                await attempt
            assert caught.value is error
        assert reader.exception() is error

    asyncio.run(test())


def test_it_is_iterated_by_lines() -> None:
    async def test() -> None:
        reader = Reader(Source(), asyncio.get_running_loop(), LIMIT)
        reader.feed_data(b"one\ntwo\nthr")
        reader.feed_eof()
        assert [line async for line in reader] == [b"one\n", b"two\n", b"thr"]

    asyncio.run(test())
