"""One table to one class, field by field, so that every problem in it is found.

Works for settings classes, for a handler's or model's `Options`, and for classes whose
constructor's parameters are the options. Knows nothing of srvkit's keys, and of files only what
`Problems` knows.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from srvkit.config import toml, units
from srvkit.config.problems import Problems
from srvkit.config.toml import Key
from srvkit.contracts import Duration, FileMode, Size, WorkerCount

OneOrMore = Annotated[tuple[str, ...], "one or more"]  # a string, or a list of them that is not empty
FAILED: Any = object()  # stands for a value whose problem was added

_READERS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Duration, units.duration),
    (WorkerCount, units.worker_count),
    (Size, units.size),
    (FileMode, units.file_mode),
)
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "bytes": "a string",
    "array": "a list",
    "object": "a table",
    "datetime": "a date and time",
    "date": "a date",
    "time": "a time",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One key that a class declares."""

    key: str
    wanted: Any  # the annotation
    required: bool
    minimum: float | None = None
    maximum: float | None = None


def fields_of(declared: Callable[..., Any]) -> dict[str, Field]:
    """Return what a class or callable declares, by the names of its constructor's parameters.

    Raises `NameError` and the like where an annotation cannot be resolved.
    """
    if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
        return {
            field.name: Field(field.encode_name, field.type, field.required)
            for field in msgspec.structs.fields(declared)
        }
    annotated = declared
    metadata: dict[str, Mapping[str, Any]] = {}
    if dataclasses.is_dataclass(declared):
        metadata = {field.name: field.metadata for field in dataclasses.fields(declared)}
    elif isinstance(declared, type):
        annotated = declared.__init__  # type: ignore[misc]  # of this very class, whose parameters are read
    hints = get_type_hints(annotated, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(declared).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        wanted = without_none(hints.get(name, Any))
        if name == "max_message" and wanted is int:
            wanted = Size
        bounds = metadata.get(name, {})
        required = parameter.default is parameter.empty
        found[name] = Field(name, wanted, required, bounds.get("minimum"), bounds.get("maximum"))
    return found


def convert_options(
    declared: Callable[..., Any], table: Mapping[str, Any], key: Key, problems: Problems
) -> Any:
    """Return an instance of the declared class, built from the options; None after adding problems.

    `declared` is a dataclass, a `msgspec.Struct`, or a class or callable whose annotated parameters
    are the options; a string is encoded as UTF-8 for a parameter of bytes, and `max_message` takes
    sizes. A `ValueError` or `TypeError` that it raises is a problem at `key`.
    """
    before = len(problems)
    try:
        fields = fields_of(declared)
    except (NameError, TypeError, ValueError, AttributeError) as error:
        problems.add(key, f"what options there are cannot be read from the annotations: {error}")
        return None
    values = convert_fields(fields, table, key, problems, noun="option")
    if values is None or len(problems) > before or _any_broken(key, problems):
        return None
    try:
        return declared(**values)
    except (ValueError, TypeError) as error:
        problems.add(key, str(error) or type(error).__name__)
        return None


def convert_fields(
    fields: Mapping[str, Field],
    table: Mapping[str, Any],
    key: Key,
    problems: Problems,
    *,
    noun: str = "key",
    elsewhere: Callable[[str], str] = lambda name: "",
) -> dict[str, Any] | None:
    """Return what the table gives for each field; None where a required one is missing or wrong.

    Anything else that is wrong is left out, so that its default holds. `elsewhere` may name the
    key that was meant by one that is unknown here.
    """
    known = [field.key for field in fields.values()]
    meant = report_unknown(table, known, key, problems, noun=noun, elsewhere=elsewhere)
    values = {}
    complete = True
    for name, field in fields.items():
        value = FAILED
        if table.get(field.key) is not None:
            value = convert_value(field, table[field.key], (*key, field.key), problems)
        elif field.required and field.key not in meant:
            problems.add((*key, field.key), f"missing, this {noun} is required")
        if value is not FAILED:
            values[name] = value
        elif field.required:
            complete = False
    return values if complete else None


def report_unknown(
    table: Mapping[str, Any],
    known: Collection[str],
    key: Key,
    problems: Problems,
    *,
    noun: str = "key",
    elsewhere: Callable[[str], str] = lambda name: "",
) -> set[str]:
    """Add a problem for each key of the table that is not known; return the keys that were meant."""
    meant = set()
    for name in table:
        if name in known:
            continue
        near = ""
        if not problems.full:
            near = elsewhere(name) or "".join(difflib.get_close_matches(name, known, 1))
        meant.add(near)
        advice = f"did you mean '{near}'?" if near else f"the {noun}s here are {', '.join(sorted(known))}"
        if not known:
            advice = f"there are no {noun}s here"
        unknown = f"unknown {noun}" if noun == "key" else f"unknown {noun} {toml.dotted((name,))!r}"
        problems.add((*key, name), f"{unknown}, {advice}")
    return meant


def convert_value(field: Field, value: Any, key: Key, problems: Problems) -> Any:
    """Return the value in the field's type and bounds; FAILED after adding problems."""
    converted = _converted(field.wanted, value, key, problems)
    if converted is FAILED:
        return FAILED
    got = problems.source.whole.get(key) or units.shown(value)
    low, high = field.minimum, field.maximum
    if low is not None and low == high and converted != low:
        problems.add(key, f"only {_bound(field, low)} is possible, got {got}")
    elif low is not None and converted < low:
        problems.add(key, f"expected at least {_bound(field, low)}, got {got}")
    elif high is not None and converted > high:
        problems.add(key, f"expected at most {_bound(field, high)}, got {got}")
    else:
        return converted
    return FAILED


def _bound(field: Field, bound: float) -> str:
    return units.duration_text(bound) if field.wanted == Duration else f"{bound}"


def _converted(wanted: Any, value: Any, key: Key, problems: Problems) -> Any:
    wanted = without_none(wanted)
    origin, arguments = get_origin(wanted), get_args(wanted)
    reader = getattr(wanted, "from_toml", None)
    broken = problems.source.broken
    if key in broken or (reader and (*key, "name") in broken):
        return FAILED
    if wanted == OneOrMore:
        return _one_or_more(value, key, problems)
    if problems.source.whole.get(key) and (origin in (list, dict) or wanted in (Duration, WorkerCount)):
        value = toml.value_of(value)
    if reader := reader or next((reads for marker, reads in _READERS if marker == wanted), None):
        return _attempt(reader, value, key, problems)
    if origin is list and isinstance(value, (list, tuple)):
        items = [_converted(arguments[0], item, (*key, place), problems) for place, item in enumerate(value)]
        return FAILED if FAILED in items else items
    if origin is dict and isinstance(value, dict):
        table = {name: _converted(arguments[1], item, (*key, name), problems) for name, item in value.items()}
        return FAILED if FAILED in table.values() else table
    if _is_table_class(wanted) and isinstance(value, dict):
        built = convert_options(wanted, value, key, problems)
        return FAILED if built is None else built
    if isinstance(value, str) and str not in (wanted, *arguments) and bytes in (wanted, *arguments):
        return value.encode()
    return _leaf(wanted, value, key, problems)


def _one_or_more(value: Any, key: Key, problems: Problems) -> Any:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        problems.add(key, f"expected a string or a list of strings, got {units.kind(value)}")
        return FAILED
    if not value:
        problems.add(key, "expected at least one, got an empty list")
        return FAILED
    items = tuple(_converted(str, item, (*key, place), problems) for place, item in enumerate(value))
    return FAILED if FAILED in items else items


def _attempt(reader: Callable[[Any], Any], value: Any, key: Key, problems: Problems) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        problems.add(key, str(error))
        return FAILED


def _leaf(wanted: Any, value: Any, key: Key, problems: Problems) -> Any:
    variable = problems.source.whole.get(key)
    for strict in (True, False) if variable else (True,):
        try:
            return msgspec.convert(value, wanted, strict=strict)
        except msgspec.ValidationError as error:
            reason = str(error)
    if get_origin(wanted) is Literal:
        reason = f"Expected {' or '.join(map(repr, get_args(wanted)))}, got {units.shown(value)}"
    problems.add(*_in_words(reason, value, variable, key))
    return FAILED


def _in_words(reason: str, value: Any, variable: str | None, key: Key) -> tuple[Key, str]:
    """Put msgspec's "Expected `int`, got `str` - at `$[1]`" into a key and everyday words."""
    reason, _, place = reason.partition(" - at ")
    key += tuple(int(part) for part in re.findall(r"\[(\d+)\]", place))
    got = variable or (units.kind(value) if not place else "")
    expected, _, found = reason.partition(", got ")
    if got and found.startswith("`"):
        reason = f"{expected}, got {got}"
    reason = re.sub(r"`([\w |]+)`", lambda match: _words(match[1]), reason)
    return key, reason[:1].lower() + reason[1:]


def _words(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null"]
    return " or ".join(_WORDS.get(name, name) for name in names)


def without_none(wanted: Any) -> Any:
    """Return a union without None: TOML has no such value."""
    if get_origin(wanted) in (Union, UnionType):
        rest = [part for part in get_args(wanted) if part is not NoneType]
        return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 - made at run time
    return wanted


def _is_table_class(wanted: Any) -> bool:
    is_struct = isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)
    return is_struct or dataclasses.is_dataclass(wanted)


def _any_broken(key: Key, problems: Problems) -> bool:
    return any(broken[: len(key)] == key for broken in problems.source.broken)
