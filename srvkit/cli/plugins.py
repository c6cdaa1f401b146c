"""`srvkit plugins [CONFIG]`: everything there is to choose from, and where each thing comes from.

It prints what `plugins` found; how a table is laid out is all it knows itself.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srvkit.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from srvkit.plugins.manager import Offer, Plugins


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "plugins",
        help="list handlers, models, framings and hooks, and where each comes from",
        description="List the handlers, concurrency models, framings and hooks, and the plugin that each "
        f"comes from. Without CONFIG: {DEFAULT_CONFIG} of this folder; without that, only what is installed.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help=f"the configuration (default: {DEFAULT_CONFIG})"
    )
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Print the tables; raises PluginError or ConfigError for the first plugin that cannot be used."""
    plugins = load(args.config)
    print("\n".join(_tables(plugins)))
    return 0


def load(config: str | None) -> Plugins:
    """Load the plugins of a configuration; None: of the one in this folder, or those installed.

    What else is wrong in the configuration is a note.
    """
    from srvkit.config import loader
    from srvkit.plugins.manager import make_manager

    path = config or (DEFAULT_CONFIG if Path(DEFAULT_CONFIG).exists() else None)
    if path is None:
        plugins = make_manager(folder=Path())
        plugins.notes.append(f"there is no {DEFAULT_CONFIG} here: these are the installed plugins only")
        return plugins
    read, problems = loader.read(path)
    plugins = make_manager(read.srvkit.plugins, read.srvkit.block, Path(path).parent)
    if problems:
        plugins.notes.append(f"something is wrong in {path}: srvkit check {path} says what")
    return plugins


def _tables(plugins: Plugins) -> Iterator[str]:
    yield from _table("HANDLERS", ("name", "kind", "from", ""), _handlers(plugins.handlers.values()))
    yield from _table("CONCURRENCY MODELS", ("name", "runs", "from", ""), _models(plugins.models.values()))
    yield from _table("FRAMINGS", ("name", "options", "from", ""), _framings(plugins.framings.values()))
    yield from _table("HOOKS", ("name", "implemented by", ""), _hooks(plugins))
    for note in plugins.notes:
        yield f"note: {note}"


def _handlers(offers: Iterable[Offer]) -> Iterator[tuple[str, ...]]:
    from srvkit.server.handler import kind_of

    for offer in offers:
        yield offer.name, kind_of(offer.thing), offer.plugin, _title(offer.thing)
        if (options := getattr(offer.thing, "Options", None)) is not None:
            yield "", "", "", f"options: {_options(options)}"


def _models(offers: Iterable[Offer]) -> Iterator[tuple[str, ...]]:
    from srvkit.contracts import missing_packages

    for offer in offers:
        kinds = getattr(offer.thing, "handler_kinds", None)
        yield offer.name, ", ".join(sorted(kinds or ())), offer.plugin, _title(offer.thing)
        for package in missing_packages(offer.thing):
            yield "", "", "", f"{package.name} is not installed: pip install {package.install!r}"


def _framings(offers: Iterable[Offer]) -> Iterator[tuple[str, ...]]:
    for offer in offers:
        yield offer.name, _options(offer.thing), offer.plugin, _title(offer.thing)


def _hooks(plugins: Plugins) -> Iterator[tuple[str, ...]]:
    from srvkit.plugins.manager import HOOKS

    for name, spec in HOOKS.items():
        first, *others = plugins.implementers(name) or ["-"]
        yield name, first, _title(spec)
        for other in others:
            yield "", other, ""


def _options(declared: Any) -> str:
    """Write the options that a class declares as they could stand in the configuration."""
    try:
        parameters = inspect.signature(declared).parameters.values()
    except (ValueError, TypeError):
        return ""
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return ", ".join(_option(one.name, one.default) for one in named)


def _option(name: str, default: Any) -> str:
    from srvkit.config import toml

    if isinstance(default, bytes):
        default = default.decode("latin-1")
    plain = isinstance(default, (str, int, float, list, tuple, dict))
    return f"{name} = {toml.literal(default)}" if plain else name


def _title(thing: Any) -> str:
    return next(iter((thing.__doc__ or "").strip().splitlines()), "")


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = [head, *rows]
    if len(lines) == 1:
        lines = [("none",) + ("",) * (len(head) - 1)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    yield title
    for line in lines:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield ""
