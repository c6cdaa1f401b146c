"""Framings from outside: what goes in by any cuts, what comes out, and what is refused how early."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import srvkit
from srvkit.errors import FrameError
from srvkit.protocol.framing import (
    Delimiter,
    FixedSize,
    Framing,
    LengthPrefix,
    Lines,
    Netstring,
    Raw,
    hand_over,
)
from tests.protocol.sample_framings import EXACT, FRAMINGS, Careless, Slip, cut, outcome, single

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


def test_a_clean_end_is_told_apart_from_a_cut_one_which_stays_a_fault() -> None:
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


def test_an_announced_length_within_the_maximum_is_not_allocated_in_advance() -> None:
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


def test_messages_that_cannot_be_expressed_are_refused() -> None:
    with pytest.raises(ValueError, match="message of 256 bytes does not fit a 1-byte length"):
        LengthPrefix(1).encode(b"x" * 256)
    with pytest.raises(ValueError, match="message of 2 bytes, where each has 3"):
        FixedSize(3).encode(b"ab")


def test_what_is_sent() -> None:
    assert Lines().encode(b"a") == b"a\n"
    assert Delimiter(b"\r\n").encode(b"a") == b"a\r\n"
    assert LengthPrefix(2, "little").encode(b"abc") == b"\3\0abc"
    assert Netstring().encode(b"hello") == b"5:hello,"
    assert FixedSize(1).encode(b"a") == b"a"
    assert Raw().encode(b"") == b""


def test_rest_of_lines_keeps_the_carriage_returns_even_of_bytes_behind_a_fault() -> None:
    framing, data = Lines(4), b"go\r\na\r\nb\n\r\n\0\0\0\x05\nhello"
    with pytest.raises(FrameError) as caught:
        framing.feed(b"toolong" + data)
    assert framing.rest([], b"") == b"toolong" + data
    with pytest.raises(FrameError) as caught:
        framing.feed(data)
    assert caught.value.messages == [b"go", b"a", b"b", b"", b"\0\0\0\x05"]
    assert framing.rest(caught.value.messages[1:], bytearray(data)) == data[4:]
    assert framing.feed(b"x\n") == [b"x"]


def test_rest_of_a_datagram_of_lines() -> None:
    framing = Lines()
    assert framing.datagram(b"a\r\nb\r\nc") == [b"a", b"b", b"c"]
    assert framing.rest([b"b", b"c"], b"a\r\nb\r\nc") == b"b\r\nc"


def test_a_size_that_a_peer_has_named_keeps_to_the_maximum_of_the_framing_before() -> None:
    old = Lines(100)
    new = FixedSize(101)
    assert hand_over(old, new, [], b"") == b""
    with pytest.raises(FrameError, match="message of 101 bytes announced, longer than 100 bytes"):
        new.feed(b"x")
    assert new.fresh().limit == 100
    for new in (FixedSize(100), FixedSize(101, max_message=200)):
        assert hand_over(old, new, [], b"") == b""
        assert new.feed(b"x" * new.size) == [b"x" * new.size]


def test_the_end_of_a_stream_in_the_middle_is_told_apart_from_wrong_bytes() -> None:
    framing = Netstring()
    framing.feed(b"5:he")
    with pytest.raises(FrameError) as caught:
        framing.eof()
    assert caught.value.cut_short
    with pytest.raises(FrameError) as caught:
        Netstring().feed(b"x")
    assert not caught.value.cut_short
    assert srvkit.FrameError is FrameError
