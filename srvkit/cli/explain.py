"""`srvkit explain [KEY]`: what a setting is, or a handler, model or framing with its options.

It finds and prints; what the settings say of themselves is in the settings classes.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from srvkit.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from srvkit.cli.run import Subparsers
    from srvkit.config.model import SettingDoc
    from srvkit.plugins.manager import Offer, Plugins

_WRITTEN = {
    "duration": 'seconds, or "250ms", "30s", "5m", "1h"',
    "size": 'bytes, or "512B", "64KiB", "1MiB", "1GiB"',
    "name or table": 'a name, or { name = "…", and its options }',
    "octal string": 'a string of octal digits, "0600"',
}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "explain",
        help="say what a setting means, its type, default and bounds",
        description="Explain a setting by its key or the end of it: idle_timeout, limits.idle_timeout; or "
        "a handler, model or framing by its name. Without KEY: list all settings.",
    )
    parser.add_argument("key", metavar="KEY", nargs="?")
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help=f"whose plugins are known by name (default: {DEFAULT_CONFIG}, or what is installed)",
    )
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Print the explanation; raises ConfigError where there is none, or more than one."""
    from srvkit.cli.layout import terminal_width
    from srvkit.config.model import settings_table

    settings, width = settings_table(), terminal_width()
    found = settings if args.key is None else _matching(settings, args.key)
    lines: Iterable[str]
    if args.key is not None and len(found) == 1:
        lines = _setting(found[0], width)
    elif args.key is None or _is_table(found, args.key):
        lines = _list(found, width)
    else:
        lines = _offer_or_refuse(args.key, found, settings, args.config, width)
    print("\n".join(lines))
    return 0


def _matching(settings: Iterable[SettingDoc], key: str) -> list[SettingDoc]:
    """Return the settings whose key ends with `key`, else those of the tables whose name does."""
    parts = _general(key)
    keys = [(one, one.key.replace("[]", "").split(".")) for one in settings]
    exact = [one for one, path in keys if path[-len(parts) :] == parts]
    return exact or [
        one
        for one, path in keys
        if any(path[end - len(parts) : end] == parts for end in range(len(parts), len(path)))
    ]


def _general(key: str) -> list[str]:
    """Return the parts of a key, with NAME in place of a server's name, and of a list's number."""
    parts = [part.partition("[")[0] for part in key.strip().split(".")]
    if parts[0] == "server" and len(parts) > 1:
        parts[1] = "NAME"
    return parts


def _is_table(found: Sequence[SettingDoc], key: str) -> bool:
    """Tell whether `found` are the settings of one table, which `key` names."""
    parts = _general(key)
    tables = set()
    for one in found:
        path = one.key.replace("[]", "").split(".")
        ends = [end for end in range(len(parts), len(path)) if path[end - len(parts) : end] == parts]
        tables.add(".".join(path[: ends[0]]) if ends else None)
    return len(tables) == 1 and None not in tables


def _list(settings: Iterable[SettingDoc], width: int | None) -> Iterator[str]:
    from srvkit.cli.layout import table

    shown = [(one, "required" if one.required else one.default or "-") for one in settings]
    return table([(one.key, default, one.doc) for one, default in shown], width, indent="")


def _setting(one: SettingDoc, width: int | None) -> Iterator[str]:
    from srvkit.cli.layout import heading, table, wrapped
    from srvkit.config.schema import field_of

    yield heading(one.key)
    yield from wrapped(one.doc, width, "  ")
    yield ""
    kind = f"{one.type}: {_WRITTEN[one.type]}" if one.type in _WRITTEN else one.type
    rows = [("type", kind), ("default", "none: it is required" if one.required else one.default or "none")]
    field = field_of(one.key)
    if field is not None and (bounds := _bounds(one.type, field.minimum, field.maximum)):
        rows.append(("bounds", bounds))
    head, _, key = one.key.replace("NAME", "echo").rpartition(".")
    value = _example(one)
    rows += [
        ("example", f"[[{head[:-2]}]]" if head.endswith("[]") else f"[{head}]"),
        ("", f"{key} = {value}"),
    ]
    yield from table(rows, width)


def _bounds(kind: str, low: float | None, high: float | None) -> str:
    from srvkit.config import units

    if kind == "duration" and high is None:
        high = units.LONGEST
    elif kind == 'integer or "auto"':
        low, high = 1, units.MOST_WORKERS
    limits = [f"at least {_quantity(kind, low)}"] if low is not None else []
    return ", ".join([*limits, f"at most {_quantity(kind, high)}"] if high is not None else limits)


def _quantity(kind: str, value: float) -> str:
    from srvkit.config import units

    if kind == "size":
        return units.size_text(int(value))
    if kind != "duration":
        return f"{value:g}"
    return f"{value / 3600:g}h" if value >= 3600 else units.duration_text(value)


def _example(one: SettingDoc) -> str:
    examples = {
        "listen": '"tcp://127.0.0.1:7007"',
        "handler": '"echo"',
        "framing": '"lines"',
        "names": '["mail.example.org"]',
        "cert": '"tls/cert.pem"',
    }
    name = one.key.rpartition(".")[2]
    return one.default or examples.get(name) or '"…"'


def _offer_or_refuse(
    key: str,
    found: Sequence[SettingDoc],
    settings: Sequence[SettingDoc],
    config: str | None,
    width: int | None,
) -> Iterable[str]:

    from srvkit.cli.plugins import load, options_of
    from srvkit.errors import ConfigError, did_you_mean

    if found:
        raise ConfigError(
            "\n".join([f"{key} is the end of several keys:", *(f"  {one.key}" for one in found)])
        )
    plugins = load(config)
    every = [(kind, offer) for kind, some in _offers(plugins).items() for offer in some]
    chosen = [(kind, offer) for kind, offer in every if offer.name == key]
    option = key.rpartition(".")[2]
    chosen = chosen or [
        (kind, offer) for kind, offer in every if option in options_of(_declared(kind, offer))
    ]
    if chosen:
        return [line for kind, offer in chosen for line in (*_offer(kind, offer, width), "")][:-1]
    tails = {tail for one in settings for tail in _tails(one.key)}
    near = did_you_mean(key, [*tails, *(offer.name for _, offer in every)])
    hint = near or "; srvkit explain lists them all"
    raise ConfigError(f"there is no setting {key!r}{hint}")


def _tails(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _offers(plugins: Plugins) -> Mapping[str, list[Offer]]:
    found = (plugins.handlers, plugins.models, plugins.framings)
    kinds = ("handler", "concurrency", "framing")
    return {kind: list(some.values()) for kind, some in zip(kinds, found, strict=True)}


def _offer(kind: str, offer: Offer, width: int | None) -> Iterator[str]:
    from srvkit.cli.layout import heading, table, wrapped
    from srvkit.cli.plugins import ONE_PROCESS, options_of, title_of
    from srvkit.config.handler_shape import keeps_one_process

    declared = _declared(kind, offer)
    options = options_of(declared)
    docs = _docs(declared)
    explained = [f"{text}: {docs[name]}" if name in docs else text for name, text in options.items()]
    given = (text.replace(" (required)", ' = "…"') for text in options.values())
    inner = "".join(f", {text}" for text in given if " = " in text)  # else it has no default to show
    yield heading(f"{kind} {offer.name}")
    yield from wrapped(title_of(offer.cls), width, "  ")
    yield ""
    rows = [("from", offer.plugin), ("options", explained[0] if explained else "none")]
    rows += [("", option) for option in explained[1:]]
    if kind == "handler" and keeps_one_process(offer.cls):
        rows.append(("runs in", ONE_PROCESS))
    value = f'{{ name = "{offer.name}"{inner} }}' if inner else f'"{offer.name}"'
    rows.append(("example", f"{kind} = {value}"))
    yield from table(rows, width)


def _declared(kind: str, offer: Offer) -> Any:
    """Return the class whose constructor's parameters are the options."""
    return offer.cls if kind == "framing" else getattr(offer.cls, "Options", None)


def _docs(declared: Any) -> dict[str, str]:
    fields = getattr(declared, "__dataclass_fields__", {})
    return {name: one.metadata["doc"] for name, one in fields.items() if "doc" in one.metadata}
