"""The settings of framings: how they are declared, shown, refused, and copied for each connection."""

from __future__ import annotations

import dataclasses
import threading
import zlib
from typing import get_type_hints

import pytest

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
)
from tests.protocol.sample_framings import FRAMINGS, Slip


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


def test_fresh_forgets_a_fault() -> None:
    framing = Lines(1)
    with pytest.raises(FrameError):
        framing.feed(b"ab")
    assert framing.fresh().feed(b"a\n") == [b"a"]


def test_fresh_copies_a_subclass_s_own_attributes() -> None:
    class Tagged(Lines):
        def __init__(self, tag: str) -> None:
            super().__init__()
            self.tag = tag

    fresh = Tagged("x").fresh(9)
    assert (fresh.tag, repr(fresh)) == ("x", "Tagged('x')")


def test_one_whose_constructor_does_not_call_the_bases_is_complete() -> None:
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


def test_the_default_maximum_is_a_mebibyte_and_told_apart_from_the_author_s() -> None:
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


def test_what_a_framing_keeps_besides_is_made_anew_by_fresh() -> None:
    one, other = (prototype := Joined()).fresh(), prototype.fresh(64)
    assert one.feed(b"secret+\n") == []
    assert other.feed(b"hello\n") == [b"hello"]
    assert one.fresh().feed(b"hello\n") == [b"hello"]
    assert (other.max_message, other.limit, other.fresh().limit) == (64, 64, 64)
    assert prototype.parts == []


def test_a_framing_within_another_and_what_cannot_be_copied_are_each_connection_s_own() -> None:
    given = Lines()
    prototype = Packed(2, inner=given)
    given.feed(b"left by whoever made it")
    one = prototype.fresh(9)
    one.inner.feed(b"left by a connection")
    other = one.fresh()
    assert (other.width, other.limit, other.inner.buffered) == (2, 9, 0)
    assert len({id(framing.packer) for framing in (prototype, one, other)}) == 3


def test_what_is_given_and_changes_is_copied_as_it_was_given() -> None:
    given = {"a": [1]}
    one = Counted(names=given).fresh()
    one.names["a"].append(2)
    one.seen.append(b"x")
    assert one.fresh() == Counted(names={"a": [1]})
    assert given == {"a": [1]}


def test_an_argument_that_all_connections_would_share_is_refused_by_name() -> None:
    class Locked(Lines):
        def __init__(self, lock: object) -> None:
            super().__init__()

    framing = Locked(threading.Lock())
    with pytest.raises(TypeError, match="the framing Locked was given a lock, which cannot be copied"):
        framing.fresh()
