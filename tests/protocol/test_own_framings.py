"""Framings of a program's own: what they may bring, and what they are told when they bring it wrongly."""

from __future__ import annotations

import pytest

from srvkit.errors import FrameError
from srvkit.protocol.framing import (
    Framing,
    Lines,
)
from tests.protocol.sample_framings import Careless


class Stars(Framing):
    """A framing that brings its own feed(): every '*' is a message."""

    def feed(self, data):
        return [b"*"] * bytes(data).count(b"*")

    def encode(self, message):
        return message


def test_a_datagram_that_a_subclass_of_delimiter_calls_unfinished_is_a_fault() -> None:
    class Continued(Lines):
        def take(self, data, start, seen):
            found = super().take(data, start, seen)
            return None if found and found[0].endswith(b"\\") else found

    with pytest.raises(
        FrameError, match=r"datagram ended after 2 bytes, before the end of the line"
    ) as caught:
        Continued().datagram(b"a\nb\\")
    assert caught.value.messages == [b"a"]


def test_take_is_told_how_far_an_earlier_call_has_looked() -> None:
    class Watched(Careless):
        calls: list[tuple[int, int, int]]

        def take(self, data, start, seen):
            self.calls.append((len(data), start, seen))
            return super().take(data, start, seen)

    framing = Watched()
    framing.calls = []
    assert [framing.feed(chunk) for chunk in (b"ab", b"cd", b"e.f.g", b".")] == [
        [],
        [],
        [b"abcde", b"f"],
        [b"g"],
    ]
    assert framing.calls == [(2, 0, 0), (4, 0, 2), (9, 0, 4), (3, 0, 0), (3, 2, 2), (2, 0, 1)]


def test_a_subclass_may_transform_in_feed_without_doing_so_twice() -> None:
    class Marked(Lines):
        def feed(self, data):
            return [b"<" + message + b">" for message in super().feed(data)]

    framing = Marked()
    assert framing.feed(b"a") == []
    assert framing.feed(b"b\nc\n") == [b"<ab>", b"<c>"]


def test_a_framing_may_bring_only_feed_and_encode() -> None:
    framing = Stars().fresh()
    assert framing.feed(b"a**") == [b"*", b"*"]
    assert framing.datagram(b"*") == [b"*"]
    assert framing.rest([b"*"], b"**") == b"*"
    framing.eof()


def test_a_framing_without_take_or_encode_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Framing has no take\(\)"):
        Framing().feed(b"a")
    with pytest.raises(NotImplementedError, match=r"Framing has no encode\(\)"):
        Framing().encode(b"a")


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (0, "ends where it begins"),
        (-1, "ends before it begins"),
        (9, r"ends behind the data \(at 9, of 3 bytes"),
    ],
)
def test_a_take_that_uses_up_nothing_or_more_than_there_is_gets_told(end, text):
    class Wrong(Framing):
        def take(self, data, start, seen):
            return b"", end

    for framing in (Wrong(), Wrong().fresh()):
        with pytest.raises(RuntimeError, match=text):
            framing.feed(b"abc")
    held = Wrong()
    held.held = b"ab"
    with pytest.raises(RuntimeError, match=text):
        held.feed(b"c")
