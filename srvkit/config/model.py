"""The settings of srvkit.toml as typed, frozen classes, and the way from a table to them.

A setting, its default, its bounds and its documentation are written once, in a settings class;
those of sockets and limits stand where they are read. This module knows nothing of files (that is
`loader`) and builds no servers (that is `compose`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from srvkit.config import toml, units
from srvkit.config.convert import OneOrMore, convert_fields, convert_options, report_unknown
from srvkit.config.option_fields import fields_of, without_none
from srvkit.config.paths import current_folder
from srvkit.config.problems import Problems
from srvkit.config.toml import Key
from srvkit.contracts import Duration, FileMode, Size, WorkerCount, setting
from srvkit.net.access import AccessSettings
from srvkit.net.listener import SocketSettings
from srvkit.net.tls_context import SniSettings, TlsSettings
from srvkit.protocol.proxy_header import ProxySettings
from srvkit.server.limits import LimitSettings

__all__ = [
    "Choice",
    "Config",
    "LoggingSettings",
    "Problems",
    "ServerSettings",
    "SettingDoc",
    "SrvkitSettings",
    "convert",
    "convert_options",
    "settings_table",
]

_REQUIRED: Any = dataclasses.MISSING
SERVER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Choice:
    """A name of something plugins offer, with options: "pool", or { name = "pool", threads = 32 }."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_toml(cls, value: Any) -> Choice:
        """Read a name or a table with a name; raises `ValueError` for anything else."""
        if isinstance(value, str) and value:
            return cls(value)
        if not isinstance(value, dict):
            raise ValueError(f'expected a name or a table like {{ name = "..." }}, got {units.shown(value)}')
        name = value.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError('expected a table with a name, { name = "...", ... }')
        return cls(name, {option: value[option] for option in value if option != "name"})


@dataclass(frozen=True)
class SrvkitSettings:
    """[srvkit]: what holds for all servers of the file."""

    plugins: list[str] = setting(
        [], "what to load: folders and .py files, relative to the configuration file, or import names"
    )
    block: list[str] = setting([], "plugins that must not load, by name")
    user: str = setting("", "who serves where root starts srvkit, name or number; plugins load as this user")
    group: str = setting("", "the group that goes with it; empty takes the user's own")
    drain_timeout: Duration = setting(30.0, "how long connections may take to finish when srvkit stops")
    retire_timeout: Duration = setting(
        3600.0, "how long a worker that was replaced serves the connections it has; then it has drain_timeout"
    )
    generations: int = setting(
        8,
        "so many configurations that were replaced may still serve connections; the oldest of more drains",
        minimum=0,
    )
    ready_timeout: Duration = setting(30.0, "a new worker must be ready by then")
    heartbeat_timeout: Duration = setting(
        30.0, "a worker without a heartbeat for so long is replaced, its stacks logged", minimum=0.1
    )
    control: str = setting(
        "", "socket of srvkit status, reload, stop; relative to the file; empty finds a place by itself"
    )
    pid_file: str = setting("", "a file for the process id, relative to the configuration file; empty: none")


@dataclass(frozen=True)
class LoggingSettings:
    """[logging]: what is logged, how and where."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "the least that is logged")
    format: Literal["text", "json"] = setting("text", "lines for people, or one JSON object a line")
    file: str = setting("", "the log's file, relative to the configuration file; empty is standard error")
    connections: bool = setting(False, "one record for each connection: peer, time, bytes, outcome")


@dataclass(frozen=True)
class ServerSettings:
    """[server.NAME]: one server."""

    listen: OneOrMore = setting(
        _REQUIRED,
        "one address or a list: tcp://HOST:PORT, udp://HOST:PORT, unix:PATH, unixgram:PATH, systemd:NAME",
    )
    handler: Choice = setting(
        _REQUIRED, 'a handler by the name its plugin gave it, or "package.module:Class"; a table adds options'
    )
    concurrency: Choice = setting(Choice("threading"), "how many at once: a model; a table adds options")
    workers: WorkerCount = setting(
        1, "processes of this server; auto: as many as there are CPUs; 1 for a handler with one_process"
    )
    framing: Choice | None = setting(
        None, "how messages are told apart, in place of the handler's own way; a table adds options"
    )
    limits: LimitSettings = setting(LimitSettings(), "bounds and timeouts")
    access: AccessSettings = setting(AccessSettings(), "who may come in")
    tls: TlsSettings | None = setting(None, "encryption")
    proxy: ProxySettings | None = setting(None, "a proxy in front that speaks the PROXY protocol")
    socket: SocketSettings = setting(SocketSettings(), "options of the sockets")


_TYPES: dict[Any, str] = {
    Duration: "duration",
    Size: "size",
    FileMode: "octal string",
    OneOrMore: "string or list of strings",
    Choice: "name or table",
    list[str]: "list of strings",
    list[SniSettings]: "list of tables",
    int: "integer",
    WorkerCount: 'integer or "auto"',
    bool: "true or false",
    str: "string",
}


@dataclass(frozen=True)
class Config:
    """Everything one configuration says; `path` is its file, None where there is none.

    `folder` is where its relative paths begin, by default that of the file.
    """

    srvkit: SrvkitSettings
    server: dict[str, ServerSettings]
    path: Path | None = None
    logging: LoggingSettings = LoggingSettings()
    folder: Path = Path()

    def __post_init__(self) -> None:
        if self.folder == Path() and self.path is not None:
            object.__setattr__(self, "folder", self.path.parent)


@dataclass(frozen=True)
class SettingDoc:
    """One setting as documentation shows it."""

    key: str  # "server.NAME.limits.idle_timeout"
    type: str
    default: str  # as TOML; empty where there is none
    doc: str
    required: bool = False


def settings_table() -> list[SettingDoc]:
    """Return every setting there is, in the order of the file."""
    tables = {"srvkit": SrvkitSettings, "logging": LoggingSettings, "server.NAME": ServerSettings}
    return [one for table, declared in tables.items() for one in _documented(declared, table)]


def _documented(declared: Any, table: str) -> Iterator[SettingDoc]:
    hints = get_type_hints(declared, include_extras=True)
    for one in dataclasses.fields(declared):
        key, wanted = f"{table}.{one.name}", without_none(hints[one.name])
        if dataclasses.is_dataclass(wanted) and wanted is not Choice:
            yield from _documented(wanted, key)
            continue
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        shown = "" if default in (None, _REQUIRED) else _default_text(wanted, default)
        yield SettingDoc(key, _type_text(wanted), shown, one.metadata["doc"], default is _REQUIRED)
        if get_origin(wanted) is list and dataclasses.is_dataclass(get_args(wanted)[0]):
            yield from _documented(get_args(wanted)[0], f"{key}[]")


def _type_text(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return " or ".join(map(toml.literal, get_args(wanted)))
    return _TYPES[wanted]


def _default_text(wanted: Any, default: Any) -> str:
    if wanted == Duration:
        return toml.literal(units.duration_text(default))
    if wanted == Size:
        return toml.literal(units.size_text(default)) if default else "0"
    return toml.literal(default.name if isinstance(default, Choice) else default)


def convert(
    data: Mapping[str, Any], problems: Problems, path: Path | None = None, folder: Path | None = None
) -> Config:
    """Return the typed configuration that a table means; what is wrong is added to `problems`.

    A wrong value leaves its default; a server whose `listen` or `handler` is wrong is left out.
    """
    report_unknown(data, ("srvkit", "logging", "server"), (), problems, elsewhere=partial(_elsewhere, ()))
    general = _convert_table(SrvkitSettings, data.get("srvkit", {}), ("srvkit",), problems)
    logging = _convert_table(LoggingSettings, data.get("logging", {}), ("logging",), problems)
    servers = {}
    table = data.get("server", {})
    if not isinstance(table, dict):
        problems.add(("server",), f"expected tables [server.NAME], got {units.kind(table)}")
    elif not table:
        problems.add((), "there is no server; a table [server.NAME] with listen and handler makes one")
    else:
        for name, entry in table.items():
            key = ("server", name)
            if not isinstance(entry, dict):
                problems.add(key, f"expected a table [server.NAME], got {units.kind(entry)}")
                continue
            if not SERVER_NAME.fullmatch(name):
                problems.add(key, "the name of a server consists of letters, digits, '_', '-' and '.'")
            settings = _convert_table(ServerSettings, entry, key, problems)
            if settings is not None:
                servers[name] = settings
    folder = folder or (current_folder() if path is None else path.parent)
    return Config(general or SrvkitSettings(), servers, path, logging or LoggingSettings(), folder)


def _convert_table(declared: Any, table: Any, key: Key, problems: Problems) -> Any:
    """Return the settings class filled from a table; None where something required is not there."""
    if not isinstance(table, dict):
        problems.add(key, f"expected a table, got {units.kind(table)}")
        return None
    fields = dict(_fields_of(declared))
    inner = {}
    for name, one in fields.items():
        if dataclasses.is_dataclass(one.wanted) and one.wanted is not Choice:
            fields[name] = dataclasses.replace(one, wanted=dict)
            if isinstance(table.get(name), dict):
                inner[name] = _convert_table(one.wanted, table[name], (*key, name), problems)
    values = convert_fields(fields, table, key, problems, elsewhere=partial(_elsewhere, key))
    return None if values is None else declared(**(values | inner))


_fields_of = cache(fields_of)  # a file may have many servers, and reading annotations takes its time


@cache
def _places() -> tuple[Key, ...]:
    return tuple(tuple(one.key.split(".")) for one in settings_table())


def _elsewhere(table: Key, name: str) -> str:
    """Return the full key of a setting that stands in another table under this name, "" if none does."""
    if table and table[0] != "server":
        return ""
    for key in _places():
        if name in key[2:] or (not table and name in key[1:]):
            key = key[: key.index(name) + 1]
            return toml.dotted(("server", table[1], *key[2:]) if table else key)
    return ""
