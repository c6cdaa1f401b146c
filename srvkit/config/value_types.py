"""From what stands in a TOML file to values of one class: paths, addresses, enumerations, durations and more.

Classes are known by name, so that none is imported for it. What is wrong is a `ValueError` that says what is
accepted. Containers, and classes that are tables, are `typed`'s business.
"""

from __future__ import annotations

import datetime
import enum
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, get_args, get_origin

from srvkit.config import units
from srvkit.contracts import Duration, FileMode, Size, WorkerCount

Reader = Callable[[Any], Any]

OWN: tuple[tuple[Any, Reader], ...] = (
    (Duration, units.duration),
    (WorkerCount, units.worker_count),
    (Size, units.size),
    (FileMode, units.file_mode),
)
_NOUNS = (
    (Duration, "a duration"),
    (WorkerCount, "a number"),
    (Size, "a size"),
    (FileMode, "permissions"),
    (datetime.timedelta, "a duration"),
)
_PLAIN: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    bytes: "a string",
}
# What is made of a text, and what one calls it.
_PATHS = {one for name, one in vars(pathlib).items() if name.endswith("Path")}  # what one is made of
_OF_TEXT = {
    "ipaddress.IPv4Address": "an IPv4 address",
    "ipaddress.IPv6Address": "an IPv6 address",
    "ipaddress.IPv4Network": 'an IPv4 network like "192.0.2.0/24"',
    "ipaddress.IPv6Network": 'an IPv6 network like "2001:db8::/32"',
    "ipaddress.IPv4Interface": 'an IPv4 interface like "192.0.2.1/24"',
    "ipaddress.IPv6Interface": 'an IPv6 interface like "2001:db8::1/64"',
    "uuid.UUID": "a UUID",
    "zoneinfo.ZoneInfo": 'a time zone like "Europe/Berlin"',
}
_OF_NUMBERS = {"decimal.Decimal": "a decimal number", "fractions.Fraction": "a fraction"}


def reader_of(wanted: Any) -> Reader | None:
    """Return what makes such a value, None for a type that is not known here."""
    for marker, reads in OWN:
        if marker == wanted:
            return reads
    if from_toml := getattr(wanted, "from_toml", None):
        made: Reader = from_toml
        return made
    if get_origin(wanted) is Literal:
        return lambda value: _literal(get_args(wanted), value)
    if wanted is re.Pattern or get_origin(wanted) is re.Pattern:
        return lambda value: _pattern(value, bytes in get_args(wanted))
    if wanted is datetime.timedelta:
        return _timedelta
    if not isinstance(wanted, type):
        return None
    name = f"{wanted.__module__}.{wanted.__qualname__}"
    if issubclass(wanted, enum.Enum):
        return lambda value: _member(wanted, value)
    if wanted in _PATHS:
        path: Any = wanted
        return lambda value: path(_text(value, "a path"))
    if name in _OF_TEXT:
        return lambda value: _made(wanted, _text(value, _OF_TEXT[name]), _OF_TEXT[name])
    if name in _OF_NUMBERS:
        return lambda value: _made(wanted, _digits(value, _OF_NUMBERS[name]), _OF_NUMBERS[name])
    if wanted in (bytes, bytearray):
        return lambda value: wanted(_encoded(value))
    return memoryview_of if wanted is memoryview else None


def noun_of(wanted: Any) -> str:
    """Name a type for people: "an IPv4 address"."""
    if get_origin(wanted) is Literal:
        return _choices(get_args(wanted))
    for marker, noun in _NOUNS:
        if marker == wanted:
            return noun
    if isinstance(wanted, type):
        name = f"{wanted.__module__}.{wanted.__qualname__}"
        if issubclass(wanted, os.PathLike):
            return "a path"
        return _OF_TEXT.get(name) or _OF_NUMBERS.get(name) or _PLAIN.get(wanted) or wanted.__name__
    return type_name(wanted)


def type_name(wanted: Any) -> str:
    """Return a type as it stands in source."""
    return wanted.__qualname__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")


def memoryview_of(value: Any) -> memoryview:
    """Return a text's bytes."""
    return memoryview(_encoded(value))


def _encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else _text(value, "a string").encode()


def _text(value: Any, noun: str) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"expected {noun}, got {units.kind(value)}")


def _digits(value: Any, noun: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return _text(value, noun)


def _made(wanted: Callable[[str], Any], text: str, noun: str) -> Any:
    try:
        return wanted(text)
    except Exception as error:  # of Decimal and ZoneInfo they are of other kinds
        raise ValueError(f"expected {noun}, got {units.shown(text)}") from error


def _pattern(value: Any, of_bytes: bool) -> re.Pattern[Any]:
    text = _text(value, "a regular expression")
    try:
        return re.compile(text.encode() if of_bytes else text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{units.shown(text)} is no regular expression: {error}") from None


def _timedelta(value: Any) -> datetime.timedelta:
    return datetime.timedelta(seconds=units.duration(value))


def as_written(value: Any) -> Any:
    """Return what one writes in a file for a value, as far as that can be told.

    Raises TypeError for what has no such form, UnicodeDecodeError for bytes that are no text.
    """
    value = _as_written(value, "strict")
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, datetime.timedelta):
        return units.duration_text(value.total_seconds())
    if isinstance(value, re.Pattern):
        return as_written(value.pattern)
    if isinstance(value, Mapping):
        return {str(as_written(name)): as_written(one) for name, one in value.items()}
    if isinstance(value, (Set, Sequence)):
        items = [as_written(one) for one in value]
        return sorted(items, key=str) if isinstance(value, Set) else items
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, os.PathLike) or name in _OF_TEXT or name in _OF_NUMBERS:
        return str(value)
    raise TypeError(f"nobody can write {type_name(type(value))} in a file")


def _as_written(value: Any, errors: str = "replace") -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    return value.decode("utf-8", errors) if isinstance(value, (bytes, bytearray)) else value


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    for one in choices:
        written = _as_written(one)
        if type(written) is type(value) and written == value:
            return one
    raise ValueError(f"expected {_choices(choices)}, got {units.shown(value)}")


def _member(wanted: type[enum.Enum], value: Any) -> enum.Enum:
    for one in wanted:
        written = _as_written(one)
        if type(written) is type(value) and written == value:
            return one
    if isinstance(value, str) and value in wanted.__members__:
        return wanted[value]
    if issubclass(wanted, enum.Flag) and type(value) is int:
        try:
            return wanted(value)
        except ValueError:
            pass
    choices = tuple(
        one if isinstance(_as_written(one), (str, int, float)) else name
        for name, one in wanted.__members__.items()
    )
    raise ValueError(f"expected {_choices(choices)}, got {units.shown(value)}")


def _choices(choices: tuple[Any, ...]) -> str:
    return " or ".join(repr(_as_written(one)) for one in choices)
