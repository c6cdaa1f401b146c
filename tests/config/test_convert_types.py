"""Options of types of every kind: what one would expect is served, and what cannot be is one line."""

from __future__ import annotations

import collections
import datetime
import enum
import itertools
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path, PurePosixPath
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import msgspec
import pytest

from srvkit.contracts import Duration, Size
from tests.config.converted_options import Color, convert, problems_of


def no_key(value: object) -> str:
    """Return what this Python says of one that cannot be a key."""
    with pytest.raises(TypeError) as caught:
        _ = value in dict[object, int]()
    return str(caught.value)


def no_member(value: object) -> str:
    """Return what this Python says of one that cannot be in a set."""
    with pytest.raises(TypeError) as caught:
        _ = set(itertools.repeat(value, 1))
    return str(caught.value)


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: bytes = b"y"


class Named(TypedDict):
    word: bytes
    size: NotRequired[Size]


@dataclass
class Rule:
    word: bytes = b""


@dataclass
class Other:
    name: str


class Tagged(msgspec.Struct, tag="one"):
    word: bytes = b""


class Tagged2(msgspec.Struct, tag="two"):
    word: bytes = b""


class Written:
    """A class of somebody's own, whose constructor says what it takes."""

    def __init__(self, word: bytes) -> None:
        self.word = word

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Written) and other.word == self.word


class Unknown:
    def __init__(self, *anything: object) -> None: ...


T = TypeVar("T")
U = TypeVar("U")


@dataclass
class Pair(Generic[T]):
    one: T
    more: list[T] = field(default_factory=list)
    other: T | None = None
    extra: InitVar[T | None] = None

    def __post_init__(self, extra: Any) -> None:
        self.kept = extra


@dataclass
class BytesPair(Pair[bytes]):
    count: int = 1


@dataclass
class Both(Pair[bytes], Generic[T]):
    """Its T is not that of what it is built on."""

    last: T | None = None


@dataclass
class Nested(Generic[U]):
    pair: Pair[list[U]]
    by_name: dict[str, U] = field(default_factory=dict)


@dataclass
class Chain(Generic[T]):
    one: T
    rest: Optional[Chain[T]] = None  # noqa: UP045 - evaluated at run time


class Given(Generic[T]):
    def __init__(self, one: T) -> None:
        self.one = one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and other.one == self.one


class Structure(msgspec.Struct, Generic[T]):
    one: T


class Row(NamedTuple, Generic[T]):
    one: T


class Mapped(TypedDict, Generic[T]):
    one: T


class MappedBytes(Mapped[bytes]):
    count: int


Word = NewType("Word", bytes)


def declaring(wanted: Any) -> Any:
    """Return what declares an option `x` of this type."""

    def declared(x):
        return x

    declared.__annotations__["x"] = wanted
    return declared


Q = b"quit"


@pytest.mark.parametrize(
    ("wanted", "written", "made"),
    [
        # bytes are UTF-8, wherever they stand
        (bytes, "ß", "ß".encode()),
        (bytearray, "quit", bytearray(Q)),
        (list[bytes], ["quit"], [Q]),
        (typing.List, ["quit"], ["quit"]),  # noqa: UP006 - the older way of writing it
        (Sequence[bytes], ["quit"], [Q]),
        (Iterable[bytes], ["quit"], [Q]),
        (tuple[bytes, ...], ["quit"], (Q,)),
        (tuple[bytes, int], ["quit", 1], (Q, 1)),
        (tuple[tuple[bytes, ...], ...], [["quit"], []], ((Q,), ())),
        (set[bytes], ["quit", "quit"], {Q}),
        (frozenset[bytes], ["quit"], frozenset([Q])),
        (AbstractSet[bytes], ["quit"], {Q}),
        (collections.deque[bytes], ["quit"], collections.deque([Q])),
        (dict[bytes, bytes], {"a": "quit"}, {b"a": Q}),
        (Mapping[str, list[bytes]], {"a": ["quit"]}, {"a": [Q]}),
        (collections.defaultdict[str, bytes], {"a": "quit"}, collections.defaultdict(None, {"a": Q})),
        (dict[str, set[bytes]], {"a": ["quit"]}, {"a": {Q}}),
        (bytes | None, "quit", Q),
        (bytes | int, "quit", Q),
        (bytes | str, "quit", "quit"),
        (list[bytes | int], ["quit", 1], [Q, 1]),
        (list[bytes] | None, ["quit"], [Q]),
        (bytes | list[bytes], ["quit"], [Q]),
        (bytes | list[bytes], "quit", Q),
        (Annotated[bytes, "a word"], "quit", Q),
        (Annotated[list[bytes], msgspec.Meta(min_length=1)], ["quit"], [Q]),
        (Word, "quit", Q),
        (list[Word], ["quit"], [Q]),
        (Final[bytes], "quit", Q),
        (InitVar[bytes], "quit", Q),
        (Literal[b"quit", b"go"], "quit", Q),
        (Literal["a", b"quit", 3], 3, 3),
        (Literal[Color.RAW], "raw", Color.RAW),
        (Color, "raw", Color.RAW),
        (dict[Color, int], {"red": 1}, {Color.RED: 1}),
        (Rule, {"word": "quit"}, Rule(Q)),
        (tuple[Rule, ...], [{"word": "quit"}], (Rule(Q),)),
        (dict[str, tuple[Rule, ...]], {"a": [{"word": "quit"}]}, {"a": (Rule(Q),)}),
        (Rule | Other, {"word": "quit"}, Rule(Q)),
        (Rule | Other, {"name": "n"}, Other("n")),
        (Rule | bytes, "quit", Q),
        (Tagged, {"word": "quit"}, Tagged(Q)),
        (Tagged | Tagged2, {"type": "two", "word": "quit"}, Tagged2(Q)),
        (Named, {"word": "quit", "size": "1KiB"}, {"word": Q, "size": 1024}),
        (Point, {"x": 1, "y": "quit"}, Point(1, Q)),
        (Point, [1, "quit"], Point(1, Q)),
        (Point, [1], Point(1)),
        (Written, {"word": "quit"}, Written(Q)),
        (T, "quit", "quit"),
        # and what else one would expect to be served
        (Path, "run/a.sock", Path("run/a.sock")),
        (PurePosixPath | str, "x", PurePosixPath("x")),
        (str | Path, "x", "x"),
        (IPv4Address | IPv6Address, "::1", IPv6Address("::1")),
        (list[IPv4Network], ["192.0.2.0/24"], [IPv4Network("192.0.2.0/24")]),
        (datetime.timedelta, "5m", datetime.timedelta(minutes=5)),
        (datetime.timedelta, 1.5, datetime.timedelta(seconds=1.5)),
        (Decimal, 1.5, Decimal("1.5")),
        (Decimal, "0.10", Decimal("0.10")),
        (UUID, "12345678123456781234567812345678", UUID(int=0x12345678123456781234567812345678)),
        (re.Pattern, "a+", re.compile("a+")),
        (re.Pattern[bytes], "a+", re.compile(b"a+")),
        (Color, 9, Color.NINE),
        (Rights, 3, Rights.READ | Rights.WRITE),
        (dict[int, str], {"80": "http"}, {80: "http"}),
        (Duration | Literal["off"], "off", "off"),
        (Duration | Literal["off"], "5m", 300.0),
        (int | list[int], 1, 1),
        (float | Path, 1, 1.0),
        (datetime.datetime | str, "x", "x"),
        (object, {"a": [1]}, {"a": [1]}),
        (list, [1, "a"], [1, "a"]),
        (tuple, [1, "a"], (1, "a")),
        (typing.Tuple, [1, "a"], (1, "a")),  # noqa: UP006 - the older way of writing it
        # what a generic class is given stands for its type variables
        (
            Pair[bytes],
            {"one": "quit", "more": ["quit"], "other": "quit"},
            Pair(Q, [Q], Q),
        ),
        (Pair[Path], {"one": "a"}, Pair(Path("a"))),
        (Pair, {"one": "a"}, Pair("a")),
        (list[Pair[bytes]], [{"one": "quit"}], [Pair(Q)]),
        (Pair[bytes] | int, {"one": "quit"}, Pair(Q)),
        (BytesPair, {"one": "quit", "count": 2}, BytesPair(Q, count=2)),
        (Both[int], {"one": "quit", "last": 2}, Both(Q, last=2)),
        (
            Nested[bytes],
            {"pair": {"one": ["quit"]}, "by_name": {"a": "quit"}},
            Nested(Pair([Q]), {"a": Q}),
        ),
        (Chain[bytes], {"one": "quit", "rest": {"one": "quit"}}, Chain(Q, Chain(Q))),
        (Given[bytes], {"one": "quit"}, Given(Q)),
        (Structure[bytes], {"one": "quit"}, Structure(Q)),
        (Row[bytes], ["quit"], Row(Q)),
        (Mapped[bytes], {"one": "quit"}, {"one": Q}),
        (MappedBytes, {"one": "quit", "count": 1}, {"one": Q, "count": 1}),
    ],
    ids=map(str, itertools.count()),
)
def test_what_one_would_expect_is_served(wanted, written, made):
    found, problems = convert(declaring(wanted), x=written)
    assert problems == []
    assert found == made
    assert type(found) is type(made)


@pytest.mark.parametrize(
    ("wanted", "written", "message"),
    [
        (
            Callable[[], int],
            "print",
            ".x: an option cannot be of this type: collections.abc.Callable[[], int]",
        ),
        (type[int], "int", ".x: an option cannot be of this type: type[int]"),
        (Unknown, "x", ".x: an option cannot be of this type: Unknown"),
        (list[Unknown], ["x"], ".x[0]: an option cannot be of this type: Unknown"),
        (complex, "1j", ".x: an option cannot be of this type: complex"),
        (
            [int],
            [1],
            f".x: an option cannot be of this type: [<class 'int'>] (TypeError: {no_key([])})",
        ),
        (Annotated[int, msgspec.Meta(min_length=1)], 1, ".x: an option cannot be of this type: "),
        (set[dict], [{}], f".x: {no_member({})}"),
        (tuple[()], [1], ".x: expected a list of length 0, got 1"),
        (Row[int], [1, 2], ".x: expected a list of at most 1, got 2"),
        (Pair[int], {"one": "a"}, ".x.one: expected an integer, got a string"),
        (IPv4Address | IPv6Address, "x", ".x: expected an IPv4 address or an IPv6 address, got 'x'"),
        (IPv4Network, "192.0.2.1/24", ".x: expected an IPv4 network like "),
        (Path | str, 5, ".x: expected a path or a string, got 5"),
        (Path, 5, ".x: expected a path, got an integer"),
        (Decimal, "x", ".x: expected a decimal number, got 'x'"),
        (Decimal, True, ".x: expected a decimal number, got a boolean"),
        (UUID, "x", ".x: expected a UUID, got 'x'"),
        (
            re.Pattern,
            "(",
            ".x: '(' is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        (datetime.timedelta, "soon", ".x: expected seconds or a duration like "),
        (Literal[b"a", b"b"], "c", ".x: expected 'a' or 'b', got 'c'"),
        (Literal[1], True, ".x: expected 1, got a boolean"),
        (Color, "blue", ".x: expected 'red' or 'raw' or 9, got 'blue'"),
        (Rights, 8, ".x: expected 1 or 2, got 8"),
        (Rule | Other, {"word": 5}, ".x.word: expected a string, got an integer"),
        (Rule | Path, {"word": 5}, ".x.word: expected a string, got an integer"),
        (bytes | list[bytes], [1], ".x[0]: expected a string, got an integer"),
        (tuple[bytes, ...], "quit", ".x: expected a list, got a string"),
        (frozenset[bytes], [1], ".x[0]: expected a string, got an integer"),
        (tuple[int, int], [1], ".x: expected a list of length 2, got 1"),
        (tuple[int, int], 1, ".x: expected a list, got an integer"),
        (dict[int, str], {"http": "x"}, ".x.http: expected an integer for a key, got 'http'"),
        (dict[str, int], [1], ".x: expected a table, got a list"),
        (Named, {}, ".x.word: missing, this option is required"),
        (Point, {}, ".x.x: missing, this option is required"),
        (Point, "p", ".x: expected a table, got a string"),
        (Annotated[list[bytes], msgspec.Meta(min_length=1)], [], ".x: expected a list of length >= 1"),
        (Tagged, {"type": "three"}, ".x.type: expected 'one', got 'three'"),
    ],
    ids=map(str, itertools.count()),
)
def test_what_cannot_be_served_is_one_line(wanted, written, message):
    (said,) = problems_of(declaring(wanted), x=written)
    if message.endswith(" "):
        assert said.startswith(message)
    else:
        assert said == message


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no good"), ": no good"),
        (LookupError("a\nb"), ": LookupError: a b"),
        (KeyError("name"), ": KeyError: 'name'"),
        (ZeroDivisionError(), ": ZeroDivisionError"),
        (SystemExit("out"), ": SystemExit: out"),
        (Mute(), ": Mute: no words, its __str__ fails"),
        (ExceptionGroup("two", [ValueError(), TypeError()]), ": ExceptionGroup: two (2 sub-exceptions)"),
    ],
    ids=repr,
)
def test_whatever_is_raised_while_options_are_made_is_one_line(error, said):
    def fail(*_):
        raise error

    @dataclass
    class After:
        x: int = 0
        __post_init__ = fail

    @dataclass
    class Default:
        x: list[int] = field(default_factory=fail)

    class Made(msgspec.Struct):
        x: int = msgspec.field(default_factory=fail)

    class Constructed:
        __init__ = fail

    for declared in (After, Default, Made, Constructed):
        assert problems_of(declared) == [said]
    assert problems_of(declaring(tuple[After, ...]), x=[{}, {"x": 1}]) == [f".x[0]{said}", f".x[1]{said}"]


def test_options_may_be_a_generic_class_that_is_given_something() -> None:
    made, problems = convert(Pair[bytes], one="quit", extra="quit")
    assert problems == []
    assert (made, made.kept) == (Pair(Q), Q)


def test_a_keyboard_interrupt_is_the_users() -> None:
    class Faulty:
        def __init__(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(Faulty)


def test_a_class_that_only_looks_like_a_dataclass_is_told() -> None:
    class Forgotten:
        times: int = 2

    assert problems_of(Forgotten, times=3) == [
        ": Forgotten has annotations, and no constructor that takes them: is @dataclass missing?"
    ]


def test_annotations_may_raise_anything() -> None:
    class Broken:
        def __init__(self, size: 1 / 0) -> None:  # type: ignore[valid-type]
            pass

    assert problems_of(Broken, size=1) == [
        ": what options there are cannot be read from the annotations: division by zero"
    ]
