"""Options of handlers, models and framings: whatever class declares them, all problems at once."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    Literal,
    Optional,
)

import msgspec
import pytest

from srvkit.config.convert import convert_options
from srvkit.config.loader import read_text
from srvkit.config.problems import Problems, Source
from srvkit.contracts import Duration, Size, setting
from tests.config.converted_options import KEY, convert, problems_of


@dataclass
class Peer:
    host: str
    port: int = setting(7, "where to", minimum=1, maximum=65535)


@dataclass
class Options:
    motd: str
    threads: int = 4
    ratio: float = 0.5
    loud: bool = False
    wait: Duration = 1.0
    room: Optional[Size] = None  # noqa: UP045 - the older way of writing it
    color: Literal["red", "blue", 3] = "red"
    names: list[str] = field(default_factory=list)
    ages: dict[str, int] = field(default_factory=dict)
    secret: bytes | None = None
    peer: Peer | None = None
    peers: list[Peer] = field(default_factory=list)
    key: int | str = 0
    pair: tuple[int, str] = (1, "a")
    anything: Any = None
    until: datetime.date | None = None


class Struct(msgspec.Struct, rename="kebab"):
    retry_count: Annotated[int, msgspec.Meta(ge=1)]
    room: Size = 10

    def __post_init__(self) -> None:
        if self.room == 13:
            raise ValueError("unlucky")


class Delimiter:
    def __init__(self, delimiter: bytes, max_message: int | None = None) -> None:
        if not delimiter:
            raise ValueError("the delimiter is empty")
        self.delimiter, self.max_message = delimiter, max_message


class TestWhatDeclaresOptions:
    def test_a_dataclass(self) -> None:
        made, problems = convert(
            Options, motd="hi", threads=2, ratio=1, loud=True, wait="5m", room="1KiB", color=3, names=["a"],
            ages={"x": 1}, secret="ß", peer={"host": "h"}, peers=[{"host": "i", "port": 1}], key="k",
            pair=[2, "b"], anything={"x": [1]}, until=datetime.date(2020, 1, 2),
        )  # fmt: skip
        assert problems == []
        assert made == Options(
            "hi", 2, 1.0, True, 300.0, 1024, 3, ["a"], {"x": 1}, "ß".encode(), Peer("h", 7), [Peer("i", 1)],
            "k", (2, "b"), {"x": [1]}, datetime.date(2020, 1, 2),
        )  # fmt: skip

    def test_a_dataclass_with_defaults(self) -> None:
        assert convert(Options, motd="hi") == (Options("hi"), [])

    def test_a_struct_by_the_names_it_gives(self) -> None:
        made, problems = convert(Struct, **{"retry-count": 3, "room": "2KiB"})
        assert problems == []
        assert (made.retry_count, made.room) == (3, 2048)

    def test_a_constructor_with_bytes_and_a_size(self) -> None:
        made, problems = convert(Delimiter, delimiter="\r\n", max_message="64KiB")
        assert problems == []
        assert (made.delimiter, made.max_message) == (b"\r\n", 65536)

    def test_a_function(self) -> None:
        def build(size: int, *rest: int, **others: int) -> int:
            return size + 1

        assert convert(build, size=4) == (5, [])
        assert problems_of(build, size=4, more=1) == [
            ".more: unknown option 'more', the options here are size"
        ]

    def test_a_class_without_options(self) -> None:
        class Plain:
            pass

        assert isinstance(convert(Plain)[0], Plain)
        assert problems_of(Plain, x=1) == [".x: unknown option 'x', there are no options here"]

    def test_annotations_that_cannot_be_resolved(self) -> None:
        class Broken:
            def __init__(self, size: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
                pass

        assert problems_of(Broken, size=1) == [
            ": what options there are cannot be read from the annotations: name 'Missing' is not defined"
        ]


class TestProblems:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("treads", 4, ".treads: unknown option 'treads', did you mean 'threads'?"),
            ("motd", 1, ".motd: expected a string, got an integer"),
            ("threads", True, ".threads: expected an integer, got a boolean"),
            ("threads", "4", ".threads: expected an integer, got a string"),
            ("ratio", "x", ".ratio: expected a number, got a string"),
            ("loud", 1, ".loud: expected true or false, got an integer"),
            ("wait", -1, ".wait: expected a duration from 0s to 500h, got -1"),
            ("room", [], '.room: expected bytes or a size like "512B", "64KiB", "1MiB", "1GiB", got a list'),
            ("color", "pink", ".color: expected 'red' or 'blue' or 3, got 'pink'"),
            ("names", "a", ".names: expected a list, got a string"),
            ("names", ["a", 1], ".names[1]: expected a string, got an integer"),
            ("ages", {"x": "old"}, ".ages.x: expected an integer, got a string"),
            ("secret", 5, ".secret: expected a string, got an integer"),
            ("peer", "h", ".peer: expected a table, got a string"),
            ("peer", {"port": 1}, ".peer.host: missing, this option is required"),
            ("peer", {"host": "h", "port": 0}, ".peer.port: expected at least 1, got 0"),
            ("peers", [{"host": "h", "prt": 5}], ".peers[0].prt: unknown option 'prt', did you mean 'port'?"),
            ("key", True, ".key: expected an integer or a string, got a boolean"),
            ("pair", [1, 2], ".pair[1]: expected a string, got an integer"),
            ("until", 5, ".until: expected a date, got an integer"),
        ],
    )
    def test_each_says_what_is_expected_and_what_came(self, name, value, message):
        assert problems_of(Options, **{"motd": "hi", name: value}) == [message]

    def test_all_are_found_at_once(self) -> None:
        assert problems_of(Options, threads="x", names=[1, 2], peer={"port": "x"}, treads=1) == [
            ".treads: unknown option 'treads', did you mean 'threads'?",
            ".motd: missing, this option is required",
            ".threads: expected an integer, got a string",
            ".names[0]: expected a string, got an integer",
            ".names[1]: expected a string, got an integer",
            ".peer.host: missing, this option is required",
            ".peer.port: expected an integer, got a string",
        ]

    def test_bounds_of_a_struct(self) -> None:
        assert problems_of(Struct, **{"retry-count": 0}) == [".retry-count: expected an integer >= 1"]

    @pytest.mark.parametrize(
        ("declared", "table", "message"),
        [
            (Struct, {"retry-count": 1, "room": 13}, ": unlucky"),
            (Delimiter, {"delimiter": ""}, ": the delimiter is empty"),
        ],
    )
    def test_what_the_constructor_refuses(self, declared, table, message):
        assert problems_of(declared, **table) == [message]

    def test_a_constructor_that_refuses_without_a_word(self) -> None:
        class Silent:
            def __init__(self) -> None:
                raise ValueError

        assert problems_of(Silent) == [": ValueError"]

    def test_an_enumeration(self) -> None:
        class Color(enum.Enum):
            RED = "red"

        def paint(color):
            return color

        paint.__annotations__["color"] = Color
        assert convert(paint, color="red") == (Color.RED, [])
        assert convert(paint, color="RED") == (Color.RED, [])
        assert problems_of(paint, color="pink") == [".color: expected 'red', got 'pink'"]


class TestVariables:
    TEXT = """\
[server.echo]
listen = "x"
handler = { name = "echo", motd = "${MOTD}", threads = "${NUM}", names = ["${MOTD}"], ages.x = "${NUM}" }
"""

    def options(self, declared: Any = Options, **environ: str):
        config, problems = read_text(self.TEXT, "srvkit.toml", (), environ)
        made = None
        if "echo" in config.server:
            made = convert_options(declared, config.server["echo"].handler.options, KEY, problems)
        return made, list(map(str, problems.listed()))

    def test_are_converted_to_the_options_type(self) -> None:
        made, problems = self.options(MOTD="5", NUM="5")
        assert problems == []
        assert made == Options("5", 5, names=["5"], ages={"x": 5})

    def test_that_are_unset_are_the_only_problem(self) -> None:
        made, problems = self.options(MOTD="hi")
        assert made is None
        assert problems == [
            f"srvkit.toml:3: server.echo.handler.{key}: environment variable NUM is not set,"
            " and ${NUM} gives no default"
            for key in ("threads", "ages.x")
        ]

    def test_are_not_shown_in_what_a_constructor_says(self) -> None:
        class Picky:
            def __init__(self, motd: str, threads: int, names: list[str], ages: dict[str, int]) -> None:
                raise ValueError(f"{motd!r} is no good with {threads} of 40")

        made, problems = self.options(Picky, MOTD="hunter2", NUM="4")
        assert made is None
        assert problems == ["srvkit.toml:3: server.echo.handler: '${MOTD}' is no good with ${NUM} of 40"]


def test_options_of_a_key_with_a_problem_of_another_key_are_still_made() -> None:
    problems = Problems(Source())
    problems.add(("server", "other"), "wrong")
    assert convert_options(Delimiter, {"delimiter": ";"}, KEY, problems).delimiter == b";"
