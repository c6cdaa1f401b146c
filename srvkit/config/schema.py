"""The settings as a JSON Schema, for editors that complete and check srvkit.toml.

Made from the settings classes, so that it cannot say anything else than they do. It is as strict as a
schema can be without being wrong: what plugins may add is open, and a `${...}` in a string may become
anything.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from srvkit.config import toml, units
from srvkit.config.convert import OneOrMore
from srvkit.config.handler_shape import keeps_one_process
from srvkit.config.model import SERVER_NAME, Choice, LoggingSettings, ServerSettings, SrvkitSettings
from srvkit.config.option_fields import Field, fields_of
from srvkit.config.value_types import as_written
from srvkit.contracts import Duration, FileMode, Size, WorkerCount

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TABLES = {"srvkit": SrvkitSettings, "logging": LoggingSettings, "server": ServerSettings}

Schema = dict[str, Any]
Offers = Mapping[str, Any]  # what plugins offer: names and classes

_VARIABLE: Schema = {"$ref": "#/$defs/variable"}
_DEFINITIONS: Schema = {
    "variable": {
        "description": "from the environment: ${NAME} or ${NAME:-default}",
        "type": "string",
        "pattern": r"\$\{",
    }
}


def schema(
    handlers: Offers | None = None, models: Offers | None = None, framings: Offers | None = None
) -> Schema:
    """Return the schema of srvkit.toml, JSON Schema 2020-12.

    What plugins offer by name is suggested and its options are checked; other names are allowed, since
    a configuration may bring plugins of its own.
    """
    offered = {"handler": handlers or {}, "concurrency": models or {}, "framing": framings or {}}
    general, logging, server = (_table(declared, offered) for declared in TABLES.values())
    servers: Schema = {
        "type": "object",
        "description": "one table [server.NAME] for each server",
        "propertyNames": {"pattern": _whole(SERVER_NAME)},
        "additionalProperties": server,
        "minProperties": 1,
    }
    return {
        "$schema": DIALECT,
        "title": "srvkit.toml",
        "description": "what srvkit serves, and how",
        "type": "object",
        "properties": {"srvkit": general, "logging": logging, "server": servers},
        "required": ["server"],
        "additionalProperties": False,
        "$defs": _DEFINITIONS,
    }


def field_of(key: str) -> Field | None:
    """Return what the settings classes declare for a key such as "server.NAME.limits.idle_timeout"."""
    first, *path = key.replace("[]", "").split(".")
    declared: Any = TABLES.get(first)
    found = None
    for part in path[1:] if first == "server" else path:
        if declared is None:
            return None
        found = fields_of(declared).get(part)
        if found is None:
            return None
        declared = _table_class(found.wanted)
    return found


def _table_class(wanted: Any) -> Any:
    """Return the settings class of a table, or of a list of tables; None for anything else."""
    if get_origin(wanted) is list and get_args(wanted):
        (wanted,) = get_args(wanted)
    return wanted if dataclasses.is_dataclass(wanted) and not hasattr(wanted, "from_toml") else None


def _table(declared: Any, offered: Mapping[str, Offers]) -> Schema:
    fields = fields_of(declared)
    properties = {name: _property(declared, one, offered) for name, one in fields.items()}
    made: Schema = {"type": "object"}
    if declared.__doc__ and not declared.__doc__.startswith(f"{declared.__name__}("):
        made["description"] = declared.__doc__.strip().splitlines()[0]
    made |= {"properties": properties, "additionalProperties": False}
    if required := [name for name, one in fields.items() if one.required]:
        made["required"] = required
    return made


def _property(declared: Any, field: Field, offered: Mapping[str, Offers]) -> Schema:
    made = dict(_value(field, offered))
    one = _declaration(declared, field.key)
    if one is None:
        return made
    if doc := one.metadata.get("doc"):
        made["description"] = doc
    default = _default_of(one)
    if default is not dataclasses.MISSING and (shown := _json_of(field.wanted, default)) is not None:
        made["default"] = shown
    return made


def _default_of(one: Any) -> Any:
    if one.default_factory is dataclasses.MISSING:
        return one.default
    try:
        return one.default_factory()
    except Exception:  # srvkit check says so
        return dataclasses.MISSING


def _declaration(declared: Any, name: str) -> Any:
    found = dataclasses.fields(declared) if dataclasses.is_dataclass(declared) else ()
    return next((one for one in found if one.name == name), None)


def _json_of(wanted: Any, default: Any) -> Any:
    if isinstance(default, Choice):
        return default.name
    if wanted == Duration:
        return units.duration_text(default)
    if wanted == Size:
        return units.size_text(default) if default else 0
    if wanted == WorkerCount and default == 0:
        return "auto"
    try:
        return json.loads(toml.literal(as_written(default)))
    except (TypeError, ValueError):  # None, or what else cannot be written
        return None


def _value(field: Field, offered: Mapping[str, Offers]) -> Schema:
    """Return what a key takes; {} for a type that is not known here, which may be anything."""
    wanted = field.wanted
    if wanted is Choice:
        return _choice(field.key, offered.get(field.key, {}))
    bounds = {"minimum": field.minimum, "maximum": field.maximum}
    for known, make in _KNOWN:
        if wanted == known:
            return make({name: bound for name, bound in bounds.items() if bound is not None})
    if get_origin(wanted) is Literal:
        return {"anyOf": [{"enum": [as_written(one) for one in get_args(wanted)]}, _VARIABLE]}
    if (table := _table_class(wanted)) is not None:
        made = _table(table, {})
        return {"type": "array", "items": made} if get_origin(wanted) is list else made
    if get_origin(wanted) is list and get_args(wanted):
        items = _value(Field("", get_args(wanted)[0], False), {})
        return {"anyOf": [{"type": "array", "items": items}, _VARIABLE]}
    return {}


def _whole(pattern: re.Pattern[str]) -> str:
    """Write a pattern for the whole of a string: those of a schema may match anywhere in it."""
    return f"^(?:{pattern.pattern})$"


def _number(kind: str, written: re.Pattern[str] | None = None) -> Callable[[Schema], Schema]:
    def make(bounds: Schema) -> Schema:
        text = [{"type": "string", "pattern": _whole(written)}] if written else []
        return {"anyOf": [{"type": kind, **bounds}, *text, _VARIABLE]}

    return make


def _duration(bounds: Schema) -> Schema:
    return _number("number", units.DURATION)({"minimum": 0, "maximum": units.LONGEST} | bounds)


def _size(bounds: Schema) -> Schema:
    return _number("integer", units.SIZE)({"minimum": 0} | bounds)


def _worker_count(bounds: Schema) -> Schema:
    count = {"type": "integer", "minimum": 1, "maximum": units.MOST_WORKERS}
    return {"anyOf": [count, {"const": "auto"}, _VARIABLE]}


def _one_or_more(bounds: Schema) -> Schema:
    text: Schema = {"type": "string", "examples": ["tcp://127.0.0.1:7007", "unix:run/echo.sock"]}
    return {"anyOf": [text, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}


_KNOWN: tuple[tuple[Any, Callable[[Schema], Schema]], ...] = (
    (Duration, _duration),
    (Size, _size),
    (WorkerCount, _worker_count),
    (
        FileMode,
        lambda bounds: {"type": "string", "anyOf": [{"pattern": _whole(units.MODE)}, {"pattern": r"\$\{"}]},
    ),
    (OneOrMore, _one_or_more),
    (bool, lambda bounds: {"anyOf": [{"type": "boolean"}, _VARIABLE]}),
    (int, _number("integer")),
    (float, _number("number")),
    (str, lambda bounds: {"type": "string"}),
    (bytes, lambda bounds: {"type": "string"}),
)


def _choice(key: str, offers: Offers) -> Schema:
    """Return what takes a name, or a table with a name and the options of what has this name."""
    name: Schema = {"type": "string", "minLength": 1}
    if offers:
        name["examples"] = list(offers)
    other: Schema = {"type": "object", "properties": {"name": name}, "required": ["name"]}
    if offers:
        other["not"] = {"properties": {"name": {"enum": list(offers)}}}
    tables = [_named(key, one, thing) for one, thing in offers.items()]
    return {"anyOf": [name, *tables, other]}


def _named(key: str, name: str, thing: Any) -> Schema:
    """Return a table with this name; its options as far as they are declared in a way that is known."""
    properties: Schema = {"name": {"const": name}}
    declared = thing if key == "framing" else getattr(thing, "Options", None)
    if declared is not None:
        properties |= {key: _option(declared, one) for key, one in _options(declared)}
    description = _title(thing)
    if key == "handler" and keeps_one_process(thing):
        description = f"{description} (one process: workers = 1, not under a model that forks)".strip()
    return {"type": "object", "description": description, "properties": properties, "required": ["name"]}


def _option(declared: Any, field: Field) -> Schema:
    try:
        return _property(declared, field, {})
    except Exception:  # an annotation may be any object; srvkit check says what is wrong with it
        return {}


def _options(declared: Any) -> Iterable[tuple[str, Field]]:
    try:
        return [(one.key, one) for one in fields_of(declared).values()]
    except Exception:
        return []  # srvkit check says what is wrong with the annotations


def _title(thing: Any) -> str:
    return re.split(r"\n", (thing.__doc__ or "").strip(), maxsplit=1)[0]
