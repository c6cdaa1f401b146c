"""Framings of srvkit's and of others, and what comes out of them by any cuts."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from srvkit.errors import FrameError
from srvkit.protocol.framing import (
    Delimiter,
    FixedSize,
    Framing,
    LengthPrefix,
    Lines,
    Netstring,
)


class Short(Framing):
    """The example of Framing's docstring: one byte of length in front."""

    def take(self, data, start, seen):
        end = start + 1 + data[start]
        if data[start] > self.limit:
            raise FrameError(f"message longer than {self.limit} bytes")
        return None if len(data) < end else (bytes(data[start + 1 : end]), end)

    def encode(self, message):
        return bytes([len(message)]) + message


class Slip(Delimiter):
    """RFC 1055: a framing that unescapes what another has found."""

    def __init__(self, max_message: int | None = None) -> None:
        super().__init__(b"\xc0", max_message)

    def take(self, data, start, seen):
        found = super().take(data, start, seen)
        if found is None:
            return None
        message, end = found
        if message.endswith(b"\xdb"):
            raise FrameError("escape at the end of a packet")
        return message.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb"), end

    def encode(self, message):
        return super().encode(message.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc"))


class Careless(Framing):
    """Ends a message at '.', and forgets about the maximum."""

    def take(self, data, start, seen):
        end = data.find(b".", seen)
        return None if end < 0 else (bytes(data[start:end]), end + 1)


FRAMINGS = [
    Lines(),
    Lines(1),
    Lines(3),
    Delimiter(b"\0", 3),
    Delimiter(b"aa", 3),
    Delimiter(b"abab", 1),
    Delimiter(b"aab", 1),
    Delimiter(b"\r\n\r\n", 2),
    Delimiter(b"\r\n\r\n"),
    LengthPrefix(1, max_message=3),
    LengthPrefix(2, "little", 3),
    LengthPrefix(3),
    LengthPrefix(4, max_message=4),
    LengthPrefix(8, "little"),
    Netstring(),
    Netstring(12),
    FixedSize(1),
    FixedSize(3),
    Short(4),
    Slip(3),
    Careless(3),
]
EXACT = [framing for framing in FRAMINGS if not isinstance(framing, (Slip, Careless))]


def cut(data: st.DataObject, stream: bytes) -> list[bytes]:
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=6), label="cuts")
    bounds = [0, *sorted(places), len(stream)]
    return [stream[a:b] for a, b in pairwise(bounds)]


def single(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def outcome(framing: Framing, chunks: list[bytes]) -> tuple[list[bytes], str]:
    """All messages of a stream, and how it ended: the fault's text, or nothing for a clean end."""
    messages = []
    try:
        for chunk in chunks:
            messages += framing.feed(chunk)
        framing.eof()
    except FrameError as error:
        return messages + error.messages, str(error)
    return messages, ""
