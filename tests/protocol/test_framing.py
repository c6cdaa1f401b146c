"""Framings from outside: what goes in by any cuts, what comes out, and what is refused how early."""

from __future__ import annotations

import dataclasses
import threading
import tracemalloc
import zlib
from itertools import pairwise
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import srvkit
from srvkit.errors import FrameError
from srvkit.protocol.framing import (
    DEFAULT_MAX_MESSAGE,
    Delimiter,
    FixedSize,
    Framing,
    LengthPrefix,
    Lines,
    Netstring,
    Raw,
    hand_over,
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


class Stars(Framing):
    """A framing that brings its own feed(): every '*' is a message."""

    def feed(self, data):
        return [b"*"] * bytes(data).count(b"*")

    def encode(self, message):
        return message


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
each_framing = st.sampled_from(FRAMINGS)
scraps = st.one_of(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"a", b"b", b"aa", b"abab", b"aab", b"\0", b"\0\0\0"]
    ),
    st.sampled_from(
        [b"0:,", b"1:a,", b"12:abcdefghijkl,", b"13:", b"01", b"3", b":", b",", b"\xc0", b"\xdb", b"."]
    ),
    st.sampled_from([b"\1", b"\2", b"\3\0", b"\0\3", b"\5"]),
    st.binary(max_size=6),
)


@st.composite
def streams(draw: st.DrawFn, framings: st.SearchStrategy[Framing] = each_framing):
    """A framing and a stream for it: whole messages first, mostly, then anything."""
    framing = draw(framings)
    messages = []
    for message in draw(st.lists(st.binary(max_size=4), max_size=4)):
        try:
            messages.append(framing.encode(message))
        except (ValueError, NotImplementedError):
            continue
    return framing, b"".join(messages + draw(st.lists(scraps, max_size=8)))


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


@given(streams(), st.data())
def test_any_split_of_any_bytes_gives_the_same_messages_and_the_same_fault(case, data):
    framing, stream = case
    whole = outcome(framing.fresh(), [stream])
    assert outcome(framing.fresh(), cut(data, stream)) == whole
    assert outcome(framing.fresh(), single(stream)) == whole


@given(streams(), st.data())
def test_a_fault_is_seen_with_the_byte_that_makes_it_and_not_later(case, data):
    framing, stream = case
    twin = framing.fresh()
    faulty_from = len(stream) + 1
    for at, byte in enumerate(single(stream), 1):
        try:
            twin.feed(byte)
        except FrameError:
            faulty_from = at
            break
    end = data.draw(st.integers(0, len(stream)))
    try:
        framing.fresh().feed(stream[:end])
    except FrameError:
        assert end >= faulty_from
    else:
        assert end < faulty_from


@given(
    st.binary(max_size=12).map(lambda raw: raw.translate(bytes(b"\r\na"[i % 3] for i in range(256)))),
    st.data(),
)
def test_lines_agree_with_their_definition(stream, data):
    *lines, held = stream.split(b"\n")
    expected = [line[:-1] if line[-1:] == b"\r" else line for line in lines]
    framing, messages = Lines(), []
    for chunk in cut(data, stream):
        messages += framing.feed(chunk)
    assert (messages, framing.buffered) == (expected, len(held))


@pytest.mark.parametrize("framing", [Lines(), Lines(2000), Delimiter(b"\n"), Delimiter(b"\r\n", 2000)])
@given(data=st.data())
def test_long_messages_are_cut_like_short_ones(framing, data):
    """How a message is looked for depends on its length; what is found does not."""
    lengths = st.sampled_from([0, 1, 1022, 1023, 1024, 1025, 1998, 1999, 2000, 2001])
    ends = st.sampled_from([b"\n", b"\r\n", b"\r\r\n", b""])
    pieces = data.draw(st.lists(st.tuples(lengths, ends), max_size=4))
    stream = b"".join(b"a" * length + end for length, end in pieces)
    assert outcome(framing.fresh(), [stream]) == outcome(framing.fresh(), single(stream))
    if pieces and type(framing) is Lines and framing.limit > len(stream) and stream.endswith(b"\n"):
        expected = [line[:-1] if line.endswith(b"\r") else line for line in stream.split(b"\n")[:-1]]
        assert outcome(framing.fresh(), [stream]) == (expected, "")


@given(st.sampled_from(FRAMINGS), st.lists(st.binary(max_size=6), max_size=5), st.data())
def test_what_is_encoded_is_read_back(framing, messages, data):
    framing = framing.fresh(64) if not isinstance(framing, FixedSize) else framing
    if isinstance(framing, FixedSize):
        messages = [message[: framing.size].ljust(framing.size) for message in messages]
    elif isinstance(framing, Careless):
        messages = []
    elif isinstance(framing, Delimiter) and not isinstance(framing, Slip):
        messages = [message.strip(b"\r\nab\0") for message in messages]
        messages = [message for message in messages if not set(b"\r\nab\0") & set(message)]
    stream = b"".join(map(framing.encode, messages))
    assert outcome(framing.fresh(), cut(data, stream)) == (messages, "")


@given(streams(st.sampled_from(EXACT)), st.data())
def test_rest_is_what_came_after_the_last_handled_message(case, data):
    framing, stream = case
    ends = []  # where in the stream each message is complete
    twin = framing.fresh()
    for at, byte in enumerate(single(stream), 1):
        try:
            ends += [at] * len(twin.feed(byte))
        except FrameError:
            break
    framing, handled, fed = framing.fresh(), 0, 0
    for chunk in cut(data, stream):
        fed += len(chunk)
        fault = False
        try:
            messages = framing.feed(chunk)
        except FrameError as error:
            messages, fault = error.messages, True
        now = data.draw(st.integers(1, len(messages))) if messages else 0
        if fault or data.draw(st.booleans(), label="replace here"):
            handled += now
            raw = framing.rest(messages[now:], chunk)
            assert raw == stream[ends[handled - 1] if handled else 0 : fed]
            assert type(raw) is bytes
            assert framing.buffered == 0
            framing.eof()
            return
        handled += len(messages)


@given(streams(), st.data())
def test_a_datagram_is_a_stream_that_ends_there(case, data):
    framing, stream = case
    messages, fault = outcome(framing.fresh(), [stream])
    fresh = framing.fresh()
    try:
        got, datagram_fault = fresh.datagram(stream), ""
    except FrameError as error:
        got, datagram_fault = error.messages, str(error)
    assert got[: len(messages)] == messages
    if isinstance(framing, Delimiter):
        assert len(got) - len(messages) == (fault.startswith("stream ended") and not datagram_fault)
    else:
        assert (got, datagram_fault) == (messages, fault.replace("stream ended", "datagram ended"))


@given(st.lists(st.binary(max_size=9)))
def test_raw_gives_everything_in_pieces_of_at_most_the_maximum(chunks):
    framing = Raw(4)
    for chunk in chunks:
        messages = framing.feed(chunk)
        assert b"".join(messages) == chunk
        assert all(0 < len(message) <= 4 for message in messages)
        assert framing.buffered == 0
        framing.eof()
        assert framing.rest(messages[1:], chunk) == b"".join(messages[1:])


@pytest.mark.parametrize(
    ("framing", "stream", "messages", "fault"),
    [
        (Lines(), b"a\r\nb\n\nc\r\r\nd\re\n", [b"a", b"b", b"", b"c\r", b"d\re"], ""),
        (Lines(3), b"abc\r\nabc\nabcd\n", [b"abc", b"abc"], "line longer than 3 bytes"),
        (Lines(3), b"\nabcd\r", [b""], "line longer than 3 bytes"),
        (Lines(3), b"abc\rd", [], "line longer than 3 bytes"),
        (Lines(3), b"abcd", [], "line longer than 3 bytes"),
        (Lines(3), b"abc\r", [], "stream ended after 4 bytes, before the end of the line"),
        (Lines(), b"a\nb", [b"a"], "stream ended after 1 byte, before the end of the line"),
        (Delimiter(b"--"), b"a--b-c----", [b"a", b"b-c", b""], ""),
        (Delimiter(b"aa"), b"xaaaaaa", [b"x", b"", b""], ""),
        (Delimiter(b"--", 2), b"ab--a-b", [b"ab"], "message longer than 2 bytes"),
        (Delimiter(b"abcxab", 1), b"abcxabcx", [b""], "message longer than 1 bytes"),
        (Delimiter(b"--", 2), b"ab-", [], "stream ended after 3 bytes, before the end of the message"),
        (LengthPrefix(1), b"\2ab\0\1c", [b"ab", b"", b"c"], ""),
        (LengthPrefix(2, "little"), b"\2\0ab", [b"ab"], ""),
        (LengthPrefix(3), b"\0\0\2ab", [b"ab"], ""),
        (LengthPrefix(8), b"\0\0\0\0\0\0\0\2ab", [b"ab"], ""),
        (LengthPrefix(), b"\0\0", [], "stream ended after 2 bytes, before the end of the 4-byte length"),
        (
            LengthPrefix(),
            b"\0\0\1\0a",
            [],
            "stream ended after 5 bytes, before the end of the 256-byte message",
        ),
        (
            LengthPrefix(1, "big", 3),
            b"\3abc\4",
            [b"abc"],
            "message of 4 bytes announced, longer than 3 bytes",
        ),
        (Netstring(), b"5:hello,0:,", [b"hello", b""], ""),
        (Netstring(), b"0:,05:", [b""], "netstring begins with b'05', not with a length and ':'"),
        (Netstring(), b"x", [], "netstring begins with b'x', not with a length and ':'"),
        (Netstring(), b":", [], "netstring begins with b':', not with a length and ':'"),
        (Netstring(), b"-1:", [], "netstring begins with b'-', not with a length and ':'"),
        (Netstring(), b"1:ab", [], "netstring of 1 bytes ends with b'b', not with ','"),
        (Netstring(12), b"12:hello world!,13:", [b"hello world!"], "netstring longer than 12 bytes"),
        (Netstring(12), b"120", [], "netstring longer than 12 bytes"),
        (Netstring(), b"9" * 30, [], "netstring longer than 1048576 bytes"),
        (Netstring(), b"3:ab", [], "stream ended after 4 bytes, before the end of the netstring"),
        (FixedSize(3), b"abcdef", [b"abc", b"def"], ""),
        (FixedSize(3), b"abcd", [b"abc"], "stream ended after 1 byte, before the end of the 3-byte message"),
        (Slip(), b"a\xdb\xdcb\xc0\xdb\xdd\xc0", [b"a\xc0b", b"\xdb"], ""),
        (Slip(), b"a\xc0\xdb\xc0b\xc0", [b"a"], "escape at the end of a packet"),
        (Careless(2), b"ab.abc.", [b"ab"], "message longer than 2 bytes"),
        (Careless(2), b"x" * 1029, [], "message longer than 2 bytes"),
    ],
)
def test_streams(framing, stream, messages, fault):
    assert outcome(framing.fresh(), [stream]) == (messages, fault)
    assert outcome(framing.fresh(), single(stream)) == (messages, fault)


@pytest.mark.parametrize(
    ("framing", "datagram", "messages", "fault"),
    [
        (Lines(), b"", [], ""),
        (Lines(), b"a\r\nb", [b"a", b"b"], ""),
        (Lines(), b"a\r", [b"a"], ""),
        (Lines(2), b"a\nabc", [b"a"], "line longer than 2 bytes"),
        (Delimiter(b"aa"), b"xa", [b"xa"], ""),
        (Delimiter(b"aa", 1), b"xa", [], "message longer than 1 bytes"),
        (Slip(), b"\xdb\xdc", [b"\xc0"], ""),
        (LengthPrefix(1), b"", [], ""),
        (
            LengthPrefix(1),
            b"\1a\2b",
            [b"a"],
            "datagram ended after 2 bytes, before the end of the 2-byte message",
        ),
        (Netstring(), b"1:a,1", [b"a"], "datagram ended after 1 byte, before the end of the netstring"),
        (FixedSize(2), b"abc", [b"ab"], "datagram ended after 1 byte, before the end of the 2-byte message"),
        (Raw(), b"", [b""], ""),
        (Raw(), b"a\nb", [b"a\nb"], ""),
        (Raw(2), b"abc", [], "datagram of 3 bytes, longer than 2 bytes"),
    ],
)
def test_datagrams(framing, datagram, messages, fault):
    framing = framing.fresh()
    if not fault:
        assert framing.datagram(datagram) == messages
        assert framing.buffered == 0
        return
    with pytest.raises(FrameError) as caught:
        framing.datagram(datagram)
    assert (caught.value.messages, str(caught.value)) == (messages, fault)


def test_a_datagram_that_a_subclass_of_delimiter_calls_unfinished_is_a_fault():
    class Continued(Lines):
        def take(self, data, start, seen):
            found = super().take(data, start, seen)
            return None if found and found[0].endswith(b"\\") else found

    with pytest.raises(
        FrameError, match=r"datagram ended after 2 bytes, before the end of the line"
    ) as caught:
        Continued().datagram(b"a\nb\\")
    assert caught.value.messages == [b"a"]


@pytest.mark.parametrize(
    "framing", [Lines(2), Delimiter(b"|", 2), LengthPrefix(1, max_message=2), Netstring(2)]
)
def test_after_a_fault_every_call_raises_it_again_and_handles_nothing(framing):
    good, bad = framing.encode(b"ab"), framing.encode(b"abc")
    with pytest.raises(FrameError) as first:
        framing.feed(good + bad)
    assert first.value.messages == [b"ab"]
    for call in (lambda: framing.feed(good), lambda: framing.feed(b""), framing.eof):
        with pytest.raises(FrameError) as again:
            call()
        assert (str(again.value), again.value.messages) == (str(first.value), [])


def test_a_clean_end_is_told_apart_from_a_cut_one_which_stays_a_fault():
    framing = Lines()
    framing.eof()
    framing.feed(b"a\nb")
    with pytest.raises(FrameError, match="ended after 1 byte"):
        framing.eof()
    with pytest.raises(FrameError, match="ended after 1 byte"):
        framing.feed(b"\n")


@pytest.mark.parametrize("framing", [*EXACT, Raw()])
@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_kinds_of_bytes_are_taken_and_give_bytes(framing, kind):
    stream = (
        framing.encode(b"c" * getattr(framing, "size", 1) if isinstance(framing, FixedSize) else b"c") * 3
    )
    for chunks in ([stream], single(stream)):
        fresh, messages = framing.fresh(), []
        for chunk in chunks:
            messages += fresh.feed(kind(chunk))
        assert (messages, "") == outcome(framing.fresh(), chunks)
        assert {type(message) for message in messages} == {bytes}
        assert type(framing.fresh().datagram(kind(stream))[0]) is bytes


@pytest.mark.parametrize(
    ("framing", "head"),
    [
        (LengthPrefix(4), b"\xff\xff\xff\xff"),
        (LengthPrefix(8, "little"), b"\xff" * 8),
        (Netstring(), b"4294967296:"),
    ],
)
def test_a_length_above_the_maximum_is_refused_before_anything_is_allocated(framing, head):
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            framing.feed(head)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_an_announced_length_within_the_maximum_is_not_allocated_in_advance():
    framing = LengthPrefix(max_message=2**31)
    tracemalloc.start()
    try:
        assert framing.feed(b"\x7f\0\0\0") == []
        assert framing.feed(b"abc") == []
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("framing", [Lines(), Delimiter(b"|"), LengthPrefix(), Netstring(), FixedSize(1000)])
def test_a_growing_message_is_added_to_and_not_copied(framing):
    message = framing.encode(b"x" * 1000)
    framing.feed(message[:10])
    framing.feed(message[10:20])
    held = framing.held
    for at in range(20, 900, 20):
        assert framing.feed(message[at : at + 20]) == []
        assert framing.held is held
    assert framing.buffered == 900
    assert framing.feed(message[900:]) == [b"x" * 1000]


def test_take_is_told_how_far_an_earlier_call_has_looked():
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


def test_a_subclass_may_transform_in_feed_without_doing_so_twice():
    class Marked(Lines):
        def feed(self, data):
            return [b"<" + message + b">" for message in super().feed(data)]

    framing = Marked()
    assert framing.feed(b"a") == []
    assert framing.feed(b"b\nc\n") == [b"<ab>", b"<c>"]


def test_a_framing_may_bring_only_feed_and_encode():
    framing = Stars().fresh()
    assert framing.feed(b"a**") == [b"*", b"*"]
    assert framing.datagram(b"*") == [b"*"]
    assert framing.rest([b"*"], b"**") == b"*"
    framing.eof()


def test_a_framing_without_take_or_encode_says_so():
    with pytest.raises(NotImplementedError, match=r"Framing has no take\(\)"):
        Framing().feed(b"a")
    with pytest.raises(NotImplementedError, match=r"Framing has no encode\(\)"):
        Framing().encode(b"a")


@pytest.mark.parametrize("framing", [*FRAMINGS, Raw(), Raw(5)])
def test_fresh_has_the_settings_and_nothing_else(framing):
    used = framing.fresh()
    used.held = b"leftover"
    fresh = used.fresh()
    assert type(fresh) is type(framing)
    assert fresh.buffered == 0
    assert (repr(fresh), fresh.max_message, fresh.limit) == (
        repr(framing),
        framing.max_message,
        framing.limit,
    )
    larger = framing.fresh(4096)
    assert larger.max_message == 4096
    assert larger.limit == (framing.size if isinstance(framing, FixedSize) else 4096)
    assert framing.limit != 4096


def test_fresh_forgets_a_fault():
    framing = Lines(1)
    with pytest.raises(FrameError):
        framing.feed(b"ab")
    assert framing.fresh().feed(b"a\n") == [b"a"]


def test_fresh_copies_a_subclass_s_own_attributes():
    class Tagged(Lines):
        def __init__(self, tag: str) -> None:
            super().__init__()
            self.tag = tag

    fresh = Tagged("x").fresh(9)
    assert (fresh.tag, repr(fresh)) == ("x", "Tagged('x')")


def test_one_whose_constructor_does_not_call_the_bases_is_complete():
    @dataclasses.dataclass
    class Blocks(Framing):
        size: int = 2

        def take(self, data, start, seen):
            end = start + self.size
            return None if end > len(data) else (bytes(data[start:end]), end)

    framing = Blocks(3).fresh()
    assert framing.feed(b"abcde") == [b"abc"]
    assert framing.buffered == 2
    assert (framing.max_message, framing.fresh(9).limit) == (None, 9)


@pytest.mark.parametrize(
    "framing", [Lines(), Delimiter(b"|"), LengthPrefix(), Netstring(), FixedSize(1), Raw()]
)
def test_an_idle_framing_is_one_small_object(framing):
    fresh = framing.fresh()
    assert not hasattr(fresh, "__dict__")
    assert type(fresh.held) is bytes


@pytest.mark.parametrize(
    ("framing", "text"),
    [
        (Lines(), "Lines()"),
        (Lines(65536), "Lines(max_message=65536)"),
        (Delimiter(b"\r\n\r\n"), r"Delimiter(b'\r\n\r\n')"),
        (LengthPrefix(), "LengthPrefix()"),
        (LengthPrefix(2, "little", 9), "LengthPrefix(size=2, byteorder='little', max_message=9)"),
        (Netstring(), "Netstring()"),
        (FixedSize(16), "FixedSize(16)"),
        (Raw(), "Raw()"),
        (Slip(7), "Slip(max_message=7)"),
    ],
)
def test_repr_shows_the_settings(framing, text):
    assert repr(framing) == text
    assert repr(framing.fresh()) == text


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Lines(0), "max_message must be a whole number of bytes, at least 1, not 0"),
        (lambda: Raw(1.5), "max_message must be a whole number of bytes, at least 1, not 1.5"),
        (lambda: Netstring(True), "max_message must be a whole number of bytes, at least 1, not True"),
        (lambda: Lines().fresh(0), "max_message must be a whole number of bytes, at least 1, not 0"),
        (lambda: Delimiter("x"), r"delimiter must be bytes such as b'\\0', not 'x'"),
        (lambda: Delimiter(b""), "delimiter must have 1 to 255 bytes, not 0"),
        (lambda: Delimiter(b"x" * 256), "delimiter must have 1 to 255 bytes, not 256"),
        (lambda: LengthPrefix(5), "size must be 1, 2, 3, 4 or 8 bytes, not 5"),
        (lambda: LengthPrefix(4, "network"), "byteorder must be 'big' or 'little', not 'network'"),
        (lambda: FixedSize(0), "size must be a whole number of bytes, at least 1, not 0"),
        (lambda: FixedSize(9, 8), "size = 9 does not fit max_message = 8"),
        (lambda: FixedSize(9).fresh(8), "size = 9 does not fit max_message = 8"),
    ],
)
def test_wrong_settings_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_messages_that_cannot_be_expressed_are_refused():
    with pytest.raises(ValueError, match="message of 256 bytes does not fit a 1-byte length"):
        LengthPrefix(1).encode(b"x" * 256)
    with pytest.raises(ValueError, match="message of 2 bytes, where each has 3"):
        FixedSize(3).encode(b"ab")


def test_what_is_sent():
    assert Lines().encode(b"a") == b"a\n"
    assert Delimiter(b"\r\n").encode(b"a") == b"a\r\n"
    assert LengthPrefix(2, "little").encode(b"abc") == b"\3\0abc"
    assert Netstring().encode(b"hello") == b"5:hello,"
    assert FixedSize(1).encode(b"a") == b"a"
    assert Raw().encode(b"") == b""


def test_rest_of_lines_keeps_the_carriage_returns_even_of_bytes_behind_a_fault():
    framing, data = Lines(4), b"go\r\na\r\nb\n\r\n\0\0\0\x05\nhello"
    with pytest.raises(FrameError) as caught:
        framing.feed(b"toolong" + data)
    assert framing.rest([], b"") == b"toolong" + data
    with pytest.raises(FrameError) as caught:
        framing.feed(data)
    assert caught.value.messages == [b"go", b"a", b"b", b"", b"\0\0\0\x05"]
    assert framing.rest(caught.value.messages[1:], bytearray(data)) == data[4:]
    assert framing.feed(b"x\n") == [b"x"]


def test_rest_of_a_datagram_of_lines():
    framing = Lines()
    assert framing.datagram(b"a\r\nb\r\nc") == [b"a", b"b", b"c"]
    assert framing.rest([b"b", b"c"], b"a\r\nb\r\nc") == b"b\r\nc"


def test_the_default_maximum_is_a_mebibyte_and_told_apart_from_the_author_s():
    assert DEFAULT_MAX_MESSAGE == 1024 * 1024
    assert Lines().max_message is None
    assert Lines(DEFAULT_MAX_MESSAGE).max_message == DEFAULT_MAX_MESSAGE
    assert Lines().feed(b"x" * DEFAULT_MAX_MESSAGE + b"\n") == [b"x" * DEFAULT_MAX_MESSAGE]
    with pytest.raises(FrameError, match="line longer than 1048576 bytes"):
        Lines().feed(b"x" * (DEFAULT_MAX_MESSAGE + 1))
    assert len(FixedSize(2 * DEFAULT_MAX_MESSAGE).feed(bytes(2 * DEFAULT_MAX_MESSAGE))) == 1


@pytest.mark.parametrize("framing", [Lines, Delimiter, LengthPrefix, Netstring, FixedSize, Raw])
def test_every_setting_is_annotated(framing):
    assert get_type_hints(framing.__init__)["max_message"] == int | None


class Joined(Framing):
    """Lines that end with '+' go on in the next: it keeps what it has so far in a list."""

    def __init__(self, max_message: int | None = None) -> None:
        super().__init__(max_message)
        self.parts: list[bytes] = []

    def take(self, data, start, seen):
        while (end := data.find(b"\n", start)) >= 0:
            self.parts.append(bytes(data[start:end]))
            start = end + 1
            if not self.parts[-1].endswith(b"+"):
                message = b"".join(self.parts)
                self.parts.clear()
                return message, start
        return None


class Packed(Lines):
    """Keeps what no copy can be made of, makes it itself, and has slots."""

    __slots__ = ("inner", "packer", "width")

    def __init__(self, width: int, *, inner: Framing) -> None:
        super().__init__()
        self.width = width
        self.inner = inner
        self.packer = zlib.compressobj()


@dataclasses.dataclass
class Counted(Lines):
    """Whose __init__ comes after the class."""

    seen: list[bytes] = dataclasses.field(default_factory=list)
    names: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()


def test_what_a_framing_keeps_besides_is_made_anew_by_fresh():
    one, other = (prototype := Joined()).fresh(), prototype.fresh(64)
    assert one.feed(b"secret+\n") == []
    assert other.feed(b"hello\n") == [b"hello"]
    assert one.fresh().feed(b"hello\n") == [b"hello"]
    assert (other.max_message, other.limit, other.fresh().limit) == (64, 64, 64)
    assert prototype.parts == []


def test_a_framing_within_another_and_what_cannot_be_copied_are_each_connection_s_own():
    given = Lines()
    prototype = Packed(2, inner=given)
    given.feed(b"left by whoever made it")
    one = prototype.fresh(9)
    one.inner.feed(b"left by a connection")
    other = one.fresh()
    assert (other.width, other.limit, other.inner.buffered) == (2, 9, 0)
    assert len({id(framing.packer) for framing in (prototype, one, other)}) == 3


def test_what_is_given_and_changes_is_copied_as_it_was_given():
    given = {"a": [1]}
    one = Counted(names=given).fresh()
    one.names["a"].append(2)
    one.seen.append(b"x")
    assert one.fresh() == Counted(names={"a": [1]})
    assert given == {"a": [1]}


def test_an_argument_that_all_connections_would_share_is_refused_by_name():
    class Locked(Lines):
        def __init__(self, lock: object) -> None:
            super().__init__()

    framing = Locked(threading.Lock())
    with pytest.raises(TypeError, match="the framing Locked was given a lock, which cannot be copied"):
        framing.fresh()


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


def test_a_size_that_a_peer_has_named_keeps_to_the_maximum_of_the_framing_before():
    old = Lines(100)
    new = FixedSize(101)
    assert hand_over(old, new, [], b"") == b""
    with pytest.raises(FrameError, match="message of 101 bytes announced, longer than 100 bytes"):
        new.feed(b"x")
    assert new.fresh().limit == 100
    for new in (FixedSize(100), FixedSize(101, max_message=200)):
        assert hand_over(old, new, [], b"") == b""
        assert new.feed(b"x" * new.size) == [b"x" * new.size]


def test_the_end_of_a_stream_in_the_middle_is_told_apart_from_wrong_bytes():
    framing = Netstring()
    framing.feed(b"5:he")
    with pytest.raises(FrameError) as caught:
        framing.eof()
    assert caught.value.cut_short
    with pytest.raises(FrameError) as caught:
        Netstring().feed(b"x")
    assert not caught.value.cut_short
    assert srvkit.FrameError is FrameError
