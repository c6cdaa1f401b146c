"""One table to one class, field by field, so that every problem in it is found.

What a class declares is `declared`'s business, values of single classes are that of `readers`; containers,
unions and tables within tables are told here. Knows nothing of srvkit's keys, and of files only what
`Problems` knows.
"""

from __future__ import annotations

import collections
import collections.abc
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time
from typing import Annotated, Any, Union, get_args, get_origin, is_typeddict

import msgspec

from srvkit.config import toml, units
from srvkit.config.option_fields import (
    Field,
    fields_of,
    is_annotated,
    is_named_tuple,
    is_struct,
    is_table_class,
    is_union,
    meant,
)
from srvkit.config.problems import Problems
from srvkit.config.toml import Key
from srvkit.config.value_types import noun_of, reader_of, type_name
from srvkit.contracts import Duration, WorkerCount

OneOrMore = Annotated[tuple[str, ...], "one or more"]  # a string, or a list of them that is not empty
FAILED: Any = object()  # stands for a value whose problem was added

_LISTS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Collection: list,
    collections.abc.Iterable: list,
    collections.abc.Reversible: list,
    collections.abc.Container: list,
    collections.deque: collections.deque,
    set: set,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    frozenset: frozenset,
}
_TABLES: dict[Any, Callable[[dict[Any, Any]], Any]] = {
    dict: dict,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
    collections.OrderedDict: collections.OrderedDict,
    collections.defaultdict: lambda table: collections.defaultdict(None, table),
}
_SCALARS = (bool, int, float, str)
_NATIVE = (*_SCALARS, datetime, date, time, object)
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


def convert_options(
    declared: Callable[..., Any], table: Mapping[str, Any], key: Key, problems: Problems
) -> Any:
    """Return an instance of the declared class, built from the options; None after adding problems.

    `declared` is a dataclass, a `msgspec.Struct`, or a class or callable whose annotated parameters
    are the options; a string is encoded as UTF-8 for a parameter of bytes, and `max_message` takes
    sizes. Whatever it raises is a problem at `key`, a KeyboardInterrupt excepted.
    """
    before = len(problems)
    try:
        fields = fields_of(declared)
    except Exception as error:  # annotations are code
        problems.add(key, f"what options there are cannot be read from the annotations: {_said(error)}")
        return None
    if table and not fields and isinstance(declared, type) and inspect.get_annotations(declared):
        why = "has annotations, and no constructor that takes them: is @dataclass missing?"
        problems.add(key, f"{declared.__name__} {why}")
        return None
    values = convert_fields(fields, table, key, problems, noun="option")
    if values is None or len(problems) > before or _any_broken(key, problems):
        return None
    try:
        return (get_origin(declared) or declared)(**values)
    except KeyboardInterrupt:
        raise
    except (ValueError, TypeError) as error:  # how one refuses an option
        problems.add(key, _said(error) or type(error).__name__)
    except BaseException as error:  # SystemExit too: a configuration is checked where others are served
        said = _said(error)
        problems.add(key, f"{type(error).__name__}{': ' if said else ''}{said}")
    return None


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "no words, its __str__ fails"


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
    try:
        converted = _converted(field.wanted, value, key, problems)
        return FAILED if converted is FAILED else _in_bounds(field, converted, value, key, problems)
    except Exception as error:  # an annotation may be any object, and its methods do anything
        why = f"{type_name(field.wanted)} ({type(error).__name__}: {_said(error)})"
        problems.add(key, f"an option cannot be of this type: {why}")
        return FAILED


def _in_bounds(field: Field, converted: Any, value: Any, key: Key, problems: Problems) -> Any:
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
    broken = problems.source.broken
    if key in broken or (hasattr(wanted, "from_toml") and (*key, "name") in broken):
        return FAILED
    if wanted == OneOrMore:
        return _one_or_more(value, key, problems)
    wanted = meant(wanted)
    if problems.source.whole.get(key) and _is_written_out(wanted):
        value = toml.value_of(value)
    if reader := reader_of(wanted):
        return _attempt(reader, value, key, problems)
    if is_annotated(wanted):
        return _bounded(wanted, value, key, problems)
    if is_union(wanted):
        return _one_of(get_args(wanted), value, key, problems)
    return _plain(wanted, value, key, problems)


def _is_written_out(wanted: Any) -> bool:
    """Tell whether a variable that is the whole value is TOML in itself."""
    kind = get_origin(wanted) or wanted
    return kind is tuple or kind in _LISTS or kind in _TABLES or wanted in (Duration, WorkerCount)


def _plain(wanted: Any, value: Any, key: Key, problems: Problems) -> Any:
    kind, arguments = get_origin(wanted) or wanted, get_args(wanted)
    if is_typeddict(kind):
        return _table(wanted, value, key, problems)
    if is_named_tuple(kind):
        return _named_tuple(wanted, kind._fields, value, key, problems)
    if kind is tuple and not _is_open(wanted, arguments):
        return _tuple(arguments, value, key, problems)
    if kind is tuple or kind in _LISTS:
        items = _items(arguments[:1], value, key, problems)
        return FAILED if items is FAILED else _built(_LISTS.get(kind, tuple), items, key, problems)
    if kind in _TABLES:
        return _mapping(kind, arguments, value, key, problems)
    if wanted is Any or kind in _NATIVE:
        return _leaf(wanted, value, key, problems)
    if isinstance(value, Mapping) and isinstance(kind, type):
        if is_struct(kind):
            value = _untagged(kind, value, key, problems)
            if value is FAILED:
                return FAILED
        built = convert_options(wanted, value, key, problems)
        return FAILED if built is None else built
    if is_table_class(kind):
        problems.add(key, f"expected a table, got {_got(value, key, problems)}")
    else:
        problems.add(key, f"an option cannot be of this type: {type_name(wanted)}")
    return FAILED


def _is_open(wanted: Any, arguments: tuple[Any, ...]) -> bool:
    """Tell whether a tuple may have any length; `tuple[()]` has no arguments either, and differs as text."""
    return (len(arguments) == 2 and arguments[1] is ...) or not (arguments or str(wanted).endswith("[()]"))


def _got(value: Any, key: Key, problems: Problems) -> str:
    return problems.source.whole.get(key) or units.kind(value)


# ---- several values


def _items(wanted: tuple[Any, ...], value: Any, key: Key, problems: Problems) -> Any:
    if not isinstance(value, (list, tuple)):
        problems.add(key, f"expected a list, got {_got(value, key, problems)}")
        return FAILED
    kind = wanted[0] if wanted else Any
    items = [_converted(kind, item, (*key, place), problems) for place, item in enumerate(value)]
    return FAILED if any(item is FAILED for item in items) else items


def _tuple(wanted: tuple[Any, ...], value: Any, key: Key, problems: Problems) -> Any:
    if isinstance(value, (list, tuple)) and len(value) == len(wanted):
        pairs = enumerate(zip(wanted, value, strict=True))
        items = [_converted(kind, item, (*key, place), problems) for place, (kind, item) in pairs]
        return FAILED if any(item is FAILED for item in items) else tuple(items)
    is_list = isinstance(value, (list, tuple))
    got = f"of length {len(wanted)}, got {len(value)}" if is_list else f", got {_got(value, key, problems)}"
    problems.add(key, f"expected a list {got}".replace(" ,", ","))
    return FAILED


def _named_tuple(wanted: Any, fields: tuple[str, ...], value: Any, key: Key, problems: Problems) -> Any:
    if isinstance(value, (list, tuple)):
        if len(value) > len(fields):
            problems.add(key, f"expected a list of at most {len(fields)}, got {len(value)}")
            return FAILED
        value = dict(zip(fields, value, strict=False))
    return _table(wanted, value, key, problems)


def _table(wanted: Any, value: Any, key: Key, problems: Problems) -> Any:
    if isinstance(value, Mapping):
        built = convert_options(wanted, value, key, problems)
        return FAILED if built is None else built
    problems.add(key, f"expected a table, got {_got(value, key, problems)}")
    return FAILED


def _untagged(wanted: Any, table: Mapping[str, Any], key: Key, problems: Problems) -> Any:
    """Leave out what tells one Struct of a union from the others."""
    field, tag = wanted.__struct_config__.tag_field, wanted.__struct_config__.tag
    if tag is None or field not in table:
        return table
    if table[field] != tag:
        problems.add((*key, field), f"expected {tag!r}, got {units.shown(table[field])}")
        return FAILED
    return {name: value for name, value in table.items() if name != field}


def _mapping(kind: Any, wanted: tuple[Any, ...], value: Any, key: Key, problems: Problems) -> Any:
    if not isinstance(value, Mapping):
        problems.add(key, f"expected a table, got {_got(value, key, problems)}")
        return FAILED
    names, values = wanted if len(wanted) == 2 else (str, Any)
    table = {}
    complete = True
    for name, item in value.items():
        made_name = _name(names, name, (*key, name), problems)
        made = _converted(values, item, (*key, name), problems)
        if made_name is FAILED or made is FAILED:
            complete = False
        else:
            table[made_name] = made
    return _built(_TABLES[kind], table, key, problems) if complete else FAILED


def _name(wanted: Any, name: str, key: Key, problems: Problems) -> Any:
    """Convert a key of a table, which is always written as a string."""
    wanted = meant(wanted)
    if wanted in (int, float, bool):
        try:
            return msgspec.convert(name, wanted, strict=False)
        except msgspec.ValidationError:
            problems.add(key, f"expected {noun_of(wanted)} for a key, got {units.shown(name)}")
            return FAILED
    made = _converted(wanted, name, key, problems)
    try:
        hash(made)
    except TypeError:
        problems.add(key, f"a key cannot be of this type: {type_name(wanted)}")
        return FAILED
    return made


def _built(build: Callable[[Any], Any], items: Any, key: Key, problems: Problems) -> Any:
    try:
        return build(items)
    except TypeError as error:  # what is not hashable is in no set
        problems.add(key, str(error))
        return FAILED


# ---- unions and bounds


def _one_of(members: tuple[Any, ...], value: Any, key: Key, problems: Problems) -> Any:
    """Convert to the first type that fits; bytes after strings, and numbers to what they are."""
    plain = [meant(member) for member in members]
    if all(member in _SCALARS for member in plain):
        return _leaf(Union[tuple(plain)], value, key, problems)  # noqa: UP007 - made at run time
    if type(value) in plain and (type(value) is not str or problems.source.whole.get(key)):
        return value
    tried: list[tuple[Any, Problems]] = []
    for member in sorted(plain, key=lambda member: member is bytes and str in plain):
        attempt = Problems(problems.source)
        made = _converted(member, value, key, attempt)
        if made is not FAILED:
            return made
        tried.append((member, attempt))
    fitting = [attempt for member, attempt in tried if _takes(member, value)]
    if fitting:
        problems.take(min(fitting, key=len))  # what is wrong with the nearest
    else:
        nouns = dict.fromkeys(noun_of(member) for member in plain)
        got = problems.source.whole.get(key) or units.shown(value)
        problems.add(key, f"expected {' or '.join(nouns)}, got {got}")
    return FAILED


def _takes(wanted: Any, value: Any) -> bool:
    """Tell whether a type is made of tables, or of lists, and the value is one."""
    kind = get_origin(wanted) or wanted
    if isinstance(value, Mapping):
        return is_typeddict(kind) or is_table_class(kind) or kind in _TABLES
    return isinstance(value, list) and (kind is tuple or kind in _LISTS)


def _bounded(wanted: Any, value: Any, key: Key, problems: Problems) -> Any:
    """Convert to what is annotated, and see to the bounds that `msgspec.Meta` sets."""
    inner = get_args(wanted)[0]
    if meant(inner) in _SCALARS:
        return _leaf(Annotated[meant(inner), *wanted.__metadata__], value, key, problems)
    made = _converted(inner, value, key, problems)
    bounds = [one for one in wanted.__metadata__ if isinstance(one, msgspec.Meta)]
    if made is FAILED or not bounds:
        return made
    checked = _leaf(Annotated[type(made), *bounds], made, key, problems)
    return FAILED if checked is FAILED else made


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
    variable = problems.source.whole.get(key)
    reason = ""
    for form in (value, toml.value_of(value)) if variable and isinstance(value, str) else (value,):
        try:
            return reader(form)
        except ValueError as error:
            reason = reason or str(error)
    problems.add(key, reason)
    return FAILED


def _leaf(wanted: Any, value: Any, key: Key, problems: Problems) -> Any:
    variable = problems.source.whole.get(key)
    reason = ""
    for strict in (True, False) if variable else (True,):
        try:
            return msgspec.convert(value, wanted, strict=strict)
        except msgspec.ValidationError as error:
            reason = str(error)
        except (TypeError, ValueError) as error:  # bounds of another type, say
            problems.add(key, f"an option cannot be of this type: {type_name(wanted)} ({error})")
            return FAILED
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


def _any_broken(key: Key, problems: Problems) -> bool:
    return any(broken[: len(key)] == key for broken in problems.source.broken)
